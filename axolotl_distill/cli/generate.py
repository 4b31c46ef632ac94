"""`axolotl distill generate`."""

import asyncio
import dataclasses
import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import click

from axolotl_distill import cluster
from axolotl_distill.errors import ConfigError, GenerateError, ServerError
from axolotl_distill.generate.backend import Backend, make_backend
from axolotl_distill.generate.folder import GenerationFolder, journals, settings_of
from axolotl_distill.generate.meter import Meter
from axolotl_distill.generate.plan import plan
from axolotl_distill.generate.progress import Progress
from axolotl_distill.generate.prompts import Aside, Prompt, read_prompts
from axolotl_distill.generate.request import Request
from axolotl_distill.generate.run import run_requests
from axolotl_distill.recipe import Recipe, load_recipe
from axolotl_distill.recipe.generate import GenerateArgs
from axolotl_distill.show import redact
from axolotl_distill.terms import check_terms


def run(path: str, *, limit: int | None, engine: str) -> None:
    """Ask for what is not there yet, and say what came of it."""
    recipe = load_recipe(path, "teacher", "generate")
    args = recipe.generate
    terms = check_terms(recipe.teacher.name, recipe.teacher.terms)
    click.echo(terms.summary())
    _check_key(recipe)
    prompts, asides = _read_prompts(args, limit)
    about = {
        "prompts": [source.model_dump(exclude_none=True) for source in args.prompts],
        "n": args.n,
        "terms": dataclasses.asdict(terms),
    }
    ids = {prompt.id for prompt in prompts}
    with GenerationFolder.open(args.output, settings_of(recipe), about, ids) as folder:
        todo = plan(prompts, args.n, folder.done)
        total = len(prompts) * args.n
        _say_what_is_there(folder, asides, ids, args.n)
        if not todo:
            click.echo(f"{args.output} is complete: {total} completions. Nothing to do.")
            return
        meter = Meter(args, folder.earlier)
        progress = Progress(total, len(todo), folder.earlier, args)
        stopped = Stop()
        try:
            with stopped.on_terminate():
                if engine == "ray":
                    cluster.connect()  # says so where Ray is not installed; the import would not
                    from axolotl_distill.generate import ray_engine

                    ray_engine.run(recipe, folder, todo, meter, progress)
                else:
                    backend = make_backend(recipe.teacher, args, folder.uid)
                    _ask(backend, recipe.teacher.name, folder, todo, meter, progress)
        except (ServerError, GenerateError) as error:
            raise GenerateError(f"{error}\n{_kept(args.output, total, todo, progress)}") from error
        except KeyboardInterrupt:
            progress.close()
            click.echo(f"stopped. {_kept(args.output, total, todo, progress)}", err=True)
            sys.exit(stopped.exit_code)
        finally:
            progress.close()
    _report(recipe, total, todo, meter, progress)


class Stop:
    """Ctrl-C and SIGTERM (what a scheduler sends before it kills) end a run in the same way."""

    exit_code = 128 + signal.SIGINT

    @contextmanager
    def on_terminate(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGTERM, self._terminate)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    def _terminate(self, *_: object) -> None:
        self.exit_code = 128 + signal.SIGTERM
        signal.raise_signal(signal.SIGINT)


def _read_prompts(args: GenerateArgs, limit: int | None) -> tuple[list[Prompt], list[Aside]]:
    asides: list[Aside] = []
    tools = args.extra.get("tools")
    prompts = read_prompts(args.prompts, args.system, limit, tools, asides.append)
    refused = [aside for aside in asides if not aside.asked]
    if not prompts and refused:
        first = refused[0]
        raise ConfigError(
            f"`generate.prompts`: not one of {len(refused)} rows can be asked. {first.source}, row "
            f"{first.number}: {first.reason}"
        )
    if not prompts:
        raise ConfigError("`generate.prompts`: there is not one row in them.")
    return prompts, asides


def _say_what_is_there(
    folder: GenerationFolder, asides: list[Aside], ids: set[str], n: int
) -> None:
    """What is put aside, changed, or in the folder without having been asked for."""
    refused = [aside for aside in asides if not aside.asked]
    changed = Counter(aside.reason for aside in asides if aside.asked)
    notes = [f"{count} rows of the prompts: {reason}." for reason, count in changed.items()]
    if refused:
        folder.put_aside(refused)
        first = refused[0]
        notes.append(
            f"{len(refused)} rows of the prompts cannot be asked and are put aside, with the "
            f"reasons, in {folder.path}/aside/prompts.jsonl. The first: {first.source}, row "
            f"{first.number}: {first.reason}."
        )
    if folder.damaged:
        notes.append(
            f"{len(folder.damaged)} lines are damaged, are put aside in {folder.path}/aside/"
            f"damaged.jsonl and asked for again. The first: {folder.damaged[0]}."
        )
    others, beyond = folder.strays(ids, n)
    if others:
        notes.append(
            f"{others} completions in {folder.path} are of prompts that are not asked now. They "
            "stay, and `filter` takes them too; use another `generate.output` to keep them apart."
        )
    if beyond:
        notes.append(
            f"{beyond} completions in {folder.path} are beyond `n: {n}`. They stay, and `filter` "
            "leaves them out."
        )
    for note in notes:
        click.echo(f"note: {note}", err=True)


def _ask(
    backend: Backend,
    teacher: str,
    folder: GenerationFolder,
    todo: list[Request],
    meter: Meter,
    progress: Progress,
) -> None:
    async def ask() -> None:
        try:
            await run_requests(todo, backend, teacher, journal, refusals, meter, progress)
        finally:
            await backend.close()

    journal, refusals = journals(folder.path)
    with journal, refusals:
        asyncio.run(ask())


def _report(
    recipe: Recipe, total: int, todo: list[Request], meter: Meter, progress: Progress
) -> None:
    output = recipe.generate.output
    click.echo(progress.summary())
    if progress.now.refused:
        where = f"{output}/failed"
        click.echo(f"{progress.now.refused} requests were refused; reasons are in {where}.")
        if progress.nothing_but_refusals:
            raise GenerateError(f"The teacher refused every request; see {where}.")
    if meter.stopped:
        click.echo(
            "The budget is used up: what is left of it does not cover another request of up to "
            f"{recipe.generate.most_tokens} tokens. Raise `generate.budget`, and the same command "
            "goes on."
        )
    click.echo(_kept(output, total, todo, progress))


def _kept(output: str, total: int, todo: list[Request], progress: Progress) -> str:
    left = len(todo) - progress.now.completions
    done = f"{output}: {total - left} of {total} completions are there."
    return f"{done} The same command asks for the rest." if left else done


def _check_key(recipe: Recipe) -> None:
    """A vendor's API without a key fails on its first request; this says so before."""
    server = recipe.teacher.server
    if server is None or not server.base_url.startswith("https://"):
        return
    if not os.environ.get(server.api_key_env):
        click.echo(
            f"note: {server.api_key_env} is not set; {redact(server.base_url)} may ask "
            "for a key (`teacher.server.api_key_env` names the variable).",
            err=True,
        )
