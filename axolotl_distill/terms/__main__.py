"""`python -m axolotl_distill.terms` prints docs/teacher-terms.md."""

import sys

from axolotl_distill.terms.table import as_markdown

sys.stdout.write(as_markdown())
