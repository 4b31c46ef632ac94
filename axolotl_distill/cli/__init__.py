"""`axolotl distill …`, and the same as `axolotl-distill …`.

Every command checks its YAML first and imports what it needs then, so that help is quick and a
typo is told before torch and Axolotl are there.
"""

import os
import sys
from collections.abc import Mapping
from typing import Any

import click

from axolotl_distill.cli.frame import framed

KEPT_ROWS = "What was committed is kept; the same command goes on from there."
KEPT_ANSWERS = "Every answer that arrived is kept; the same command asks for the rest."
KEPT_DATASET = (
    "A dataset is written whole or not at all: what was there before still is. Answers of servers "
    "are kept; run the same command again."
)
KEPT_FILES = "Files that arrived are kept; the same command copies the rest."
KEPT_ALL = "Nothing was changed."
KEPT_NOTHING = "A checkpoint is written whole or not at all: nothing is there of this one."
EXECUTOR = click.Choice(["local", "ray"])
# Not click's own check: its message has no remedy.
PATH = click.Path()


@click.group()
def distill() -> None:
    """Distil a large teacher into a small student."""


@distill.command()
@click.argument("recipe", type=PATH)
@click.option("--limit", type=click.IntRange(min=1), help="Only the first N prompts.")
@click.option("--executor", type=EXECUTOR, default="local", show_default=True)
@framed(KEPT_ANSWERS)
def generate(recipe: str, limit: int | None, executor: str) -> Mapping[str, object]:
    """Ask the teacher of RECIPE every prompt and keep what it writes.

    Can be stopped at any moment; the same command goes on and asks for nothing twice.
    """
    from axolotl_distill.commands.recipe import load_recipe

    loaded = load_recipe(_file(recipe), "teacher", "generate")
    from axolotl_distill.commands.generate import run

    return run(loaded, limit=limit, executor=executor)


@distill.command("filter")
@click.argument("recipe", type=PATH)
@click.option("--executor", type=EXECUTOR, default="local", show_default=True)
@framed(KEPT_DATASET)
def filter_(recipe: str, executor: str) -> Mapping[str, object]:
    """Verify, deduplicate, score and split RECIPE's trajectories into a dataset.

    Says what each step dropped and why, and keeps what was dropped beside the dataset.
    """
    from axolotl_distill.commands.recipe import load_recipe

    loaded = load_recipe(_file(recipe), "filter")
    from axolotl_distill.commands.filter import run

    return run(loaded, executor=executor)


@distill.command()
@click.argument("config", type=PATH)
@click.option("--teacher", help="Model to capture, instead of distill.capture.teacher.")
@click.option("--output", help="Folder of the store, instead of distill.capture.output.")
@click.option("--limit", type=click.IntRange(min=1), help="Capture only the first N rows.")
@click.option(
    "--executor", type=click.Choice(["local", "ray", "accelerate"]), default="local",
    show_default=True, help="Where the teacher is; accelerate: in every process of a launch.",
)  # fmt: skip
@framed(KEPT_ROWS)
def capture(
    config: str, teacher: str | None, output: str | None, limit: int | None, executor: str
) -> dict[str, Any]:
    """Run the teacher over CONFIG's text and write its distributions to a teacher store.

    Can be stopped at any moment; the same command goes on where it stopped.
    """
    from axolotl_distill.config.reading import capture_args, check_config_file

    capture_args(check_config_file(_file(config)), teacher, output)
    from axolotl_distill.capture.ranks import Ranks, refuse_launch

    ranks = None
    if executor == "accelerate":
        ranks = Ranks.of_this_launch()
        if ranks.rank:
            ranks.serve()
            sys.exit(0)
    else:
        refuse_launch()
    from axolotl_distill.commands.capture import run

    return run(
        _file(config), teacher=teacher, output=output, limit=limit, executor=executor, ranks=ranks
    )


@distill.command("import")
@click.argument("config", type=PATH)
@click.argument("source", type=PATH)
@click.option("--layout", help="What SOURCE is; default: found out from its first row.")
@click.option("--output", required=True, help="Folder of the store.")
@framed(KEPT_ROWS)
def import_(config: str, source: str, layout: str | None, output: str) -> dict[str, Any]:
    """Turn log-probabilities collected elsewhere (SOURCE) into a teacher store for CONFIG."""
    from axolotl_distill.config.reading import check_config_file

    check_config_file(_file(config))
    from axolotl_distill.commands.import_ import run

    return run(_file(config), _file(source), layout=layout, output=_file(output))


@distill.command()
@click.argument("store", type=PATH)
@click.option(
    "--records", type=click.IntRange(min=0), default=3, show_default=True,
    help="Records to show as text.",
)  # fmt: skip
@click.option("--tokenizer", help="Tokenizer for the text; default: the one the store names.")
@framed(KEPT_ALL)
def inspect(store: str, records: int, tokenizer: str | None) -> dict[str, Any]:
    """Show what is in STORE: numbers, mass held at each temperature, a few records.

    A folder of kept rollouts (`distill.on_policy.keep`) is counted.
    """
    from axolotl_distill.commands.inspect import run

    as_json = click.get_current_context().params["as_json"]
    return run(_file(store), records=0 if as_json else records, tokenizer=tokenizer)


@distill.command()
@click.argument("store", type=PATH)
@click.option("--config", type=PATH, help="Also check that this config can train on it.")
@framed(KEPT_ALL)
def verify(store: str, config: str | None) -> dict[str, Any]:
    """Check STORE against its hashes and, with --config, tokenizer, student and loss.

    Of a folder of kept rollouts every row and record is read, and its store.
    """
    if config is not None:
        from axolotl_distill.config.reading import check_config_file

        check_config_file(_file(config))
    from axolotl_distill.commands.verify import run

    return run(_file(store), config=None if config is None else _file(config))


@distill.group("store")
def store_group() -> None:
    """Join, cut and move teacher stores. What they are made of is never changed."""


@store_group.command()
@click.argument("stores", nargs=-1, required=True, type=PATH)
@click.option("--output", required=True, help="Folder of the new store.")
@framed(KEPT_ROWS)
def merge(stores: tuple[str, ...], output: str) -> dict[str, Any]:
    """Make one store of STORES: all their rows, one store after another.

    They must have been captured alike; what differs is named.
    """
    from axolotl_distill.commands.store import merged

    return merged([_file(store) for store in stores], _file(output))


@store_group.command()
@click.argument("store", type=PATH)
@click.option("--parts", type=click.IntRange(min=1), required=True, help="How many stores.")
@click.option("--output", required=True, help="Folder of the new stores: part-00000 and on.")
@framed(KEPT_ROWS)
def split(store: str, parts: int, output: str) -> dict[str, Any]:
    """Cut STORE into stores of consecutive rows, each with about as many records."""
    from axolotl_distill.commands.store import parted

    return parted(_file(store), parts, _file(output))


@store_group.command()
@click.argument("store", type=PATH)
@click.option(
    "--shard-records", type=click.IntRange(min=1), required=True,
    help="Records after which a shard is closed.",
)  # fmt: skip
@click.option("--output", required=True, help="Folder of the new store.")
@framed(KEPT_ROWS)
def reshard(store: str, shard_records: int, output: str) -> dict[str, Any]:
    """Write STORE again in smaller or larger shards: the same rows and records, in their order."""
    from axolotl_distill.commands.store import resharded

    return resharded(_file(store), shard_records, _file(output))


@store_group.command("rollouts")
@click.argument("folder", type=PATH)
@click.option("--output", required=True, help="Folder of the store.")
@click.option("--only", type=PATH, help="A filtered dataset: only the rows whose ids it has.")
@framed(KEPT_ROWS)
def rollouts(folder: str, output: str, only: str | None) -> dict[str, Any]:
    """Make a store of FOLDER, which `distill.on_policy.keep` fills: its rows with their records.

    A training that ends makes one itself, FOLDER/store; this is for one that was stopped, and for
    rollouts that were filtered.
    """
    from axolotl_distill.commands.rollouts import gathered

    return gathered(_file(folder), _file(output), None if only is None else _file(only))


@store_group.command("push")
@click.argument("store", type=PATH)
@click.argument("address")
@framed(KEPT_FILES)
def push(store: str, address: str) -> dict[str, Any]:
    """Copy STORE to ADDRESS (s3://…, gs://…, hf://datasets/…, …), its manifest last.

    Can be stopped at any moment; the same command sends what is not there yet.
    """
    from axolotl_distill.commands.store import pushed

    return pushed(_file(store), address)


@store_group.command("pull")
@click.argument("address")
@click.argument("folder", type=PATH)
@framed(KEPT_FILES)
def pull(address: str, folder: str) -> dict[str, Any]:
    """Copy the store at ADDRESS to FOLDER, which is there when all of it is.

    Can be stopped at any moment; the same command fetches what is not there yet.
    """
    from axolotl_distill.commands.store import pulled

    return pulled(address, _file(folder))


@distill.command()
@click.argument("teacher", type=PATH)
@click.argument("out", type=PATH)
@click.option("--layers", help="Layers to keep: `0,2,4`, `0-7,16-23`, `every 2`, `drop 5,10,15`.")
@click.option("--keep", type=click.IntRange(min=1), help="Keep so many, evenly spread.")
@framed(KEPT_NOTHING)
def prune(teacher: str, out: str, layers: str | None, keep: int | None) -> dict[str, Any]:
    """Cut a student out of TEACHER's layers, to be distilled: the checkpoint OUT.

    TEACHER is a folder with safetensors. They go over as they are, and nothing is loaded.
    """
    if (layers is None) is (keep is None):
        raise click.UsageError("Give either --layers or --keep.")
    from axolotl_distill.commands.prune import run

    return run(_file(teacher), _file(out), layers=layers, keep=keep)


@distill.command()
@click.argument("teacher", type=PATH)
@click.argument("student", type=PATH)
@click.option("--text", type=PATH, help="A text of yours, instead of some English and some code.")
@click.option(
    "--samples",
    type=click.IntRange(min=20),
    default=400,
    show_default=True,
    help="Continuations of each prompt that the teacher writes.",
)
@click.option("--picture", type=PATH, help="Also draw the comparison to this file.")
@framed(KEPT_ALL)
def align(
    teacher: str, student: str, text: str | None, samples: int, picture: str | None
) -> dict[str, Any]:
    """Can STUDENT learn from TEACHER, whose tokenizer is another?

    How much of the teacher's probability records would carry, and whether they are right: held to
    what the teacher writes, cut by the student's tokenizer.
    """
    from axolotl_distill.commands.align import run

    files = (None if path is None else _file(path) for path in (text, picture))
    return run(_file(teacher), _file(student), *files, samples=samples)


@distill.command()
@click.argument("model", type=PATH)
@click.argument("out", type=PATH)
@click.option("--temperature", type=float, required=True, help="T, as in softmax(z / T).")
@click.option("--device", default="cpu", show_default=True, help="Where it is tried; `auto`.")
@click.option("--link", is_flag=True, help="Hard links for weights that stay; write to neither.")
@framed(KEPT_NOTHING)
def temper(model: str, out: str, temperature: float, device: str, link: bool) -> dict[str, Any]:
    """Write OUT, whose distribution at T = 1 is MODEL's at --temperature, for a server to serve.

    MODEL is a folder with safetensors. Both are loaded, one after the other, and compared.
    """
    from axolotl_distill.commands.temper import run

    return run(_file(model), _file(out), temperature=temperature, device=device, link=link)


@distill.command()
@click.argument("name", required=False)
@framed(KEPT_ALL, reports=False)
def docs(name: str | None) -> None:
    """Print the document NAME, or list those there are."""
    from axolotl_distill.commands.docs import run

    run(name)


@distill.command()
@framed(KEPT_ALL, reports=False)
def schema() -> None:
    """Print the JSON schema of the `distill:` block, which `axolotl config-schema` leaves out."""
    from axolotl_distill.commands.schema import run

    run()


def _file(path: str) -> str:
    """A path of the command line, which a shell leaves as it is in `--output=~/store`."""
    return os.path.expanduser(path)
