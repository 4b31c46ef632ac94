"""`axolotl distill schema`."""

import json

import click

from axolotl_distill.config.distill import DistillArgs


def run() -> None:
    """The JSON schema of the `distill:` block. `axolotl config-schema` knows Axolotl's own keys
    alone, and takes none from plugins."""
    click.echo(json.dumps({"distill": DistillArgs.model_json_schema()}, indent=2))
