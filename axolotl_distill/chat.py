"""The public name of a dataset type; see `unplugged`."""

from axolotl_distill.unplugged import needs_plugin

load = needs_plugin("axolotl_distill.chat")
