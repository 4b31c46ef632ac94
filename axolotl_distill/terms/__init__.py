"""What the teacher's licence or terms say about training on its output. Imports nothing heavy.

Facts with their sources, not legal advice. The table is `table.yml`; `docs/teacher-terms.md` is
printed from it by `python -m axolotl_distill.terms`.
"""

from axolotl_distill.terms.check import Terms, check_terms

__all__ = ["Terms", "check_terms"]
