"""What has to be in place before Axolotl is imported; a .pth file beside this module imports it
when the interpreter starts. Standard library only, and nothing of Axolotl is imported before
Axolotl imports it itself.

1. Axolotl splits a plugin's name at its last dot and raises for a name without one. Its
   `load_plugin` gets the missing case: `plugins: [axolotl_distill]`.
2. Axolotl prints its banner to stdout before it knows which command is run. `axolotl distill …
   --json` is for pipes, so the banner of our commands goes to stderr.
3. Axolotl drops a key that no plugin knows without a word. A `distill:` block whose plugin is not
   listed would be an ordinary fine-tune, so it is refused, and the missing line is named.
"""

import importlib.util
import sys
from importlib.abc import Loader, MetaPathFinder

BARE_NAMES = {"axolotl_distill": "axolotl_distill.DistillPlugin"}


def _plugins_by_bare_name(module):
    load_plugin = module.load_plugin

    def load_plugin_by_bare_name(plugin_name):
        return load_plugin(BARE_NAMES.get(plugin_name, plugin_name))

    module.load_plugin = load_plugin_by_bare_name


def _banner_beside_our_output(module):
    print_banner = module.print_axolotl_text_art

    def print_banner_beside_our_output():
        if sys.argv[1:2] != ["distill"]:
            return print_banner()
        stdout, sys.stdout = sys.stdout, sys.stderr
        try:
            return print_banner()
        finally:
            sys.stdout = stdout

    module.print_axolotl_text_art = print_banner_beside_our_output


def _block_needs_its_plugin(module):
    prepare_plugins = module.prepare_plugins

    def prepare_plugins_of_the_block(cfg):
        if "distill" in cfg:
            from axolotl_distill.config.reading import check_plugin_listed

            check_plugin_listed(cfg, cfg.get("axolotl_config_path"))
        return prepare_plugins(cfg)

    module.prepare_plugins = prepare_plugins_of_the_block


class _Finder(MetaPathFinder):
    """Hands over each module once, with what is to be done to it, then leaves sys.meta_path."""

    def __init__(self):
        self.changes = {
            "axolotl.integrations.base": _plugins_by_bare_name,
            "axolotl.cli.art": _banner_beside_our_output,
            "axolotl.cli.config": _block_needs_its_plugin,
        }

    def find_spec(self, fullname, path=None, target=None):
        change = self.changes.pop(fullname, None)
        if change is None:
            return None
        if not self.changes:
            sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, change)
        return spec


class _Loader(Loader):
    """Loads the real module and changes it."""

    def __init__(self, real, change):
        self.real, self.change = real, change

    def create_module(self, spec):
        return self.real.create_module(spec)

    def exec_module(self, module):
        self.real.exec_module(module)
        self.change(module)

    def __getattr__(self, name):
        return getattr(self.real, name)


sys.meta_path.insert(0, _Finder())
