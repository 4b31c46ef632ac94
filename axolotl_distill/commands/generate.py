"""`axolotl distill generate`."""

import asyncio
import dataclasses
import os
from collections import Counter
from typing import Any

from axolotl_distill import cluster
from axolotl_distill.commands.say import say, warn
from axolotl_distill.config.generate import GenerateArgs
from axolotl_distill.config.recipe import Recipe
from axolotl_distill.errors import ConfigError, GenerateError, ServerError
from axolotl_distill.generate.backend import Backend, make_backend
from axolotl_distill.generate.folder import GenerationFolder, journals, settings_of
from axolotl_distill.generate.meter import Meter
from axolotl_distill.generate.plan import plan
from axolotl_distill.generate.progress import Progress
from axolotl_distill.generate.prompts import Aside, Prompt, read_prompts
from axolotl_distill.generate.request import Request
from axolotl_distill.generate.run import run_requests
from axolotl_distill.show import redact
from axolotl_distill.terms import check_terms


def run(recipe: Recipe, *, limit: int | None, executor: str) -> dict[str, Any]:
    """Ask for what is not there yet, and say what came of it.

    Returns what --json prints: what is in the folder, and what this run did.
    """
    args = recipe.generate
    terms = check_terms(recipe.teacher.model, recipe.teacher.terms)
    say(terms.summary())
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
            say(f"{args.output} is complete: {total} completions. Nothing to do.")
            return {"output": args.output, "asked_for": total, "there": total, "this_run": None}
        meter = Meter(args, folder.earlier)
        progress = Progress(total, len(todo), folder.earlier, args)
        try:
            if executor == "ray":
                cluster.connect()  # says so where Ray is not installed, which the import would not
                from axolotl_distill.generate import ray_executor

                ray_executor.run(recipe, folder, todo, meter, progress)
            else:
                backend = make_backend(recipe.teacher, args, folder.uid)
                _ask(backend, recipe.teacher.model, folder, todo, meter, progress)
        except (ServerError, GenerateError) as error:
            raise GenerateError(f"{error}\n{_kept(args.output, total, todo, progress)}") from error
        except KeyboardInterrupt as stop:
            stop.add_note(_kept(args.output, total, todo, progress))
            raise
        finally:
            progress.close()
    _report(recipe, total, todo, meter, progress)
    now = progress.now
    return {
        "output": args.output,
        "asked_for": total,
        "there": total - len(todo) + now.completions,
        "stopped_by_budget": meter.stopped,
        "this_run": {
            "completions": now.completions,
            "refused": now.refused,
            "prompt_tokens": now.prompt_tokens,
            "completion_tokens": now.completion_tokens,
            "without_usage": now.without_usage,
            "finish_reasons": dict(now.finish_reasons),
            "seconds": progress.seconds,
        },
        "cost_usd": progress.cost if args.price else None,
    }


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
        warn(note)


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
    say(progress.summary())
    if progress.now.refused:
        where = f"{output}/failed"
        say(f"{progress.now.refused} requests were refused; reasons are in {where}.")
        if progress.nothing_but_refusals:
            raise GenerateError(f"The teacher refused every request; see {where}.")
    if meter.stopped:
        say(
            "The budget is used up: what is left of it does not cover another request of up to "
            f"{recipe.generate.most_tokens} tokens. Raise `generate.budget`, and the same command "
            "goes on."
        )
    say(_kept(output, total, todo, progress))


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
        warn(
            f"{server.api_key_env} is not set; {redact(server.base_url)} may ask for a key "
            "(`teacher.server.api_key_env` names the variable)."
        )
