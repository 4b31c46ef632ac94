"""Lets Axolotl load plugins by a bare package name: `plugins: [axolotl_distill]`.

Axolotl splits a plugin's name at its last dot and raises for a name without one. A .pth file
beside this module imports it when the interpreter starts; it waits for
`axolotl.integrations.base` and gives its `load_plugin` the missing case. Standard library only,
and nothing of Axolotl is imported before Axolotl imports it itself.
"""

import importlib.util
import sys
from importlib.abc import Loader, MetaPathFinder

TARGET = "axolotl.integrations.base"
BARE_NAMES = {"axolotl_distill": "axolotl_distill.DistillPlugin"}


class _BareNameFinder(MetaPathFinder):
    """Serves one import, then leaves sys.meta_path."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname != TARGET:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _BareNameLoader(spec.loader)
        return spec


class _BareNameLoader(Loader):
    """Loads the real module and wraps its `load_plugin`."""

    def __init__(self, real):
        self.real = real

    def create_module(self, spec):
        return self.real.create_module(spec)

    def exec_module(self, module):
        self.real.exec_module(module)
        load_plugin = module.load_plugin

        def load_plugin_by_bare_name(plugin_name):
            return load_plugin(BARE_NAMES.get(plugin_name, plugin_name))

        module.load_plugin = load_plugin_by_bare_name

    def __getattr__(self, name):
        return getattr(self.real, name)


sys.meta_path.insert(0, _BareNameFinder())
