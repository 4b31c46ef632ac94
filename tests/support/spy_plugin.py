"""An Axolotl plugin for tests: prints what a run is made of."""

from axolotl.integrations.base import BasePlugin
from bitsandbytes.nn import Linear4bit


class SpyPlugin(BasePlugin):
    def post_model_load(self, cfg, model):
        quantised = sum(isinstance(module, Linear4bit) for module in model.modules())
        print(f"spy: 4-bit layers {quantised}", flush=True)
