"""`axolotl distill …`. Every command imports what it needs when it runs, so that help is quick."""

import functools
import sys
from collections.abc import Callable
from typing import Any

import click

from axolotl_distill.errors import DistillError


def reports_errors(command: Callable[..., Any]) -> Callable[..., Any]:
    """A DistillError ends the command with its message and exit code 1, without a traceback."""

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except DistillError as error:
            click.secho(f"error: {error}", fg="red", err=True)
            sys.exit(1)

    return wrapped


@click.group()
def distill() -> None:
    """Distil a large teacher into a small student."""


@distill.command()
@click.argument("recipe", type=click.Path())
@click.option("--limit", type=click.IntRange(min=1), help="Only the first N prompts.")
@click.option("--engine", type=click.Choice(["local", "ray"]), default="local", show_default=True)
@reports_errors
def generate(recipe: str, limit: int | None, engine: str) -> None:
    """Ask the teacher of RECIPE every prompt and keep what it writes.

    Can be stopped at any moment; the same command goes on and asks for nothing twice.
    """
    from axolotl_distill.cli.generate import run

    run(recipe, limit=limit, engine=engine)


@distill.command("filter")
@click.argument("recipe", type=click.Path())
@click.option("--engine", type=click.Choice(["local", "ray"]), default="local", show_default=True)
@reports_errors
def filter_(recipe: str, engine: str) -> None:
    """Verify, deduplicate, score and split RECIPE's trajectories into a dataset.

    Says what each step dropped and why, and keeps what was dropped beside the dataset.
    """
    from axolotl_distill.cli.filter import run

    run(recipe, engine=engine)


@distill.command()
@click.argument("config", type=click.Path())
@click.option("--teacher", help="Model to capture, instead of distill.capture.teacher.")
@click.option("--output", help="Folder of the store, instead of distill.capture.output.")
@click.option("--limit", type=click.IntRange(min=1), help="Capture only the first N rows.")
@reports_errors
def capture(config: str, teacher: str | None, output: str | None, limit: int | None) -> None:
    """Run the teacher over CONFIG's text and write its distributions to a teacher store.

    Can be stopped at any moment; the same command goes on where it stopped.
    """
    from axolotl_distill.cli.capture import run

    run(config, teacher=teacher, output=output, limit=limit)


@distill.command("import")
@click.argument("config", type=click.Path())
@click.argument("source", type=click.Path())
@click.option("--layout", help="What SOURCE is; default: found out from its first row.")
@click.option("--output", required=True, help="Folder of the store.")
@reports_errors
def import_(config: str, source: str, layout: str | None, output: str) -> None:
    """Turn log-probabilities collected elsewhere (SOURCE) into a teacher store for CONFIG."""
    from axolotl_distill.cli.import_ import run

    run(config, source, layout=layout, output=output)


@distill.command()
@click.argument("store", type=click.Path())
@click.option("--records", default=3, show_default=True, help="Records to show as text.")
@click.option("--tokenizer", help="Tokenizer for the text; default: the one the store names.")
@click.option("--json", "as_json", is_flag=True, help="Print the numbers as JSON.")
@reports_errors
def inspect(store: str, records: int, tokenizer: str | None, as_json: bool) -> None:
    """Show what is in STORE: numbers, mass held at each temperature, a few records."""
    from axolotl_distill.cli.inspect import run

    run(store, records=records, tokenizer=tokenizer, as_json=as_json)


@distill.command()
@click.argument("store", type=click.Path())
@click.option("--config", type=click.Path(), help="Also check that this config can train on it.")
@reports_errors
def verify(store: str, config: str | None) -> None:
    """Check STORE against its hashes and, with --config, tokenizer, student and loss."""
    from axolotl_distill.cli.verify import run

    run(store, config=config)


@distill.command()
@reports_errors
def schema() -> None:
    """Print the JSON schema of the `distill:` block, which `axolotl config-schema` leaves out."""
    from axolotl_distill.cli.schema import run

    run()
