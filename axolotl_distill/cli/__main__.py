"""`python -m axolotl_distill.cli`, which launchers take: `accelerate launch -m …`."""

from axolotl_distill.cli import distill

distill()
