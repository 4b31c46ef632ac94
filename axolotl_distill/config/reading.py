"""Reads an Axolotl YAML for our commands, before Axolotl is imported."""

import re
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from axolotl_distill.config.capture import CaptureArgs
from axolotl_distill.config.distill import DistillArgs, parse_distill
from axolotl_distill.config.yaml_file import read_yaml
from axolotl_distill.errors import ConfigError
from axolotl_distill.show import foreign

PLUGIN = re.compile(r"axolotl_distill([.:][\w.:]+)?")


def check_config_file(path: str | Path) -> DistillArgs:
    """The `distill:` block of an Axolotl YAML, found wrong before Axolotl is imported.

    Raises ConfigError for what is no YAML, has no `distill:` block or not the plugin (and names
    what was meant), and for a wrong key or value in the block.
    """
    values = read_yaml(path)
    if "distill" not in values:
        near = _near("distill", values)
        if near is None and values.keys() & {"generate", "filter"}:
            raise ConfigError(
                f"{path} is a recipe and not an Axolotl config: it is for `axolotl distill "
                "generate` and `axolotl distill filter`."
            )
        meant = f" Is `{near}:` meant?" if near else " Add one; docs/guide.md has its keys."
        raise ConfigError(f"{path} has no `distill:` block.{meant}")
    check_plugin_listed(values, path)
    datasets = values.get("datasets")
    try:
        return parse_distill(values["distill"], datasets if isinstance(datasets, list) else None)
    except ConfigError as error:
        raise ConfigError(f"{path}:\n{error}") from None


def check_plugin_listed(values: dict[str, Any], path: str | Path) -> None:
    """Raises ConfigError where a config with a `distill:` block does not list the plugin that reads
    it: Axolotl would drop the block without a word."""
    plugins = values.get("plugins")
    listed = "`plugins: [axolotl_distill]`"
    if plugins is None:
        near = _near("plugins", values)
        meant = f", but `{near}:`" if near else ""
        raise ConfigError(f"{path} has a `distill:` block and no `plugins:`{meant}. Add {listed}.")
    if not isinstance(plugins, list):
        raise ConfigError(f"{path}: `plugins` must be a list, as in {listed}.")
    names = [name for name in plugins if isinstance(name, str)]
    if not any(PLUGIN.fullmatch(name) for name in names):
        alike = get_close_matches("axolotl_distill", names, n=1, cutoff=0.7)
        meant = f" Is `{foreign(alike[0])}` meant to be it?" if alike else ""
        raise ConfigError(
            f"{path}: `plugins` does not list axolotl_distill.{meant} Write {listed}."
        )


def as_written(path: str | Path, block: Any) -> Any:
    """The `distill:` block that Axolotl read from a file, as the file has it.

    Axolotl reads YAML 1.1, where `yes` is true and 010 is eight, and takes the last of two keys of
    one name. What was changed since it was read, by the command line for example, stays.

    Raises what read_yaml does; a block of no file is left as it is.
    """
    if not Path(path).is_file():
        return block
    exact = read_yaml(path)
    with open(path, encoding="utf-8") as file:
        loose = yaml.safe_load(file)
    return _restored(block, loose.get("distill"), exact.get("distill"))


def _restored(held: Any, loose: Any, exact: Any) -> Any:
    """`held`, with every value that is still what `loose` has as it is in `exact`."""
    if all(isinstance(value, dict) for value in (held, loose, exact)):
        both = loose.keys() & exact.keys()
        return {
            key: _restored(value, loose[key], exact[key]) if key in both else value
            for key, value in held.items()
        }
    return exact if held == loose and type(held) is type(loose) else held


def capture_args(distill: DistillArgs, teacher: str | None, output: str | None) -> CaptureArgs:
    """`distill.capture` with a teacher and an output given on the command line in place of its own.

    Raises ConfigError where one of them is given nowhere.
    """
    if distill.capture is None and not (teacher and output):
        raise ConfigError(
            "The config has no `distill.capture:` block. Add one with `teacher:` and `output:`, "
            "or give both --teacher and --output."
        )
    block = distill.model_dump(exclude_unset=True)
    keys = block.get("capture") or {}
    if teacher:
        keys["teacher"] = {**keys.get("teacher", {}), "model": teacher}
    if output:
        keys["output"] = output
    capture = parse_distill({**block, "capture": keys}).capture
    assert capture is not None
    return capture


def _near(key: str, values: dict[str, Any]) -> str | None:
    """The key of `values` that may have been meant as `key`."""
    lower = {str(name).lower(): str(name) for name in values}
    near = get_close_matches(key, lower, n=1, cutoff=0.7)
    return foreign(lower[near[0]]) if near else None
