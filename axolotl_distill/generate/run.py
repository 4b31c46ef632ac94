"""Generation from end to end: prompts in, a folder of trajectories out."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator
from typing import TypedDict

from axolotl_distill.config.generate import GenerateArgs
from axolotl_distill.config.teacher import TeacherArgs
from axolotl_distill.errors import ConfigError, GenerateError, ServerError
from axolotl_distill.generate.executor import Executor, Work, ask_here
from axolotl_distill.generate.folder import GenerationFolder, settings_of
from axolotl_distill.generate.meter import Meter
from axolotl_distill.generate.plan import plan
from axolotl_distill.generate.progress import Progress
from axolotl_distill.generate.prompts import Aside, Prompt, read_prompts
from axolotl_distill.terms import Terms


class ThisRun(TypedDict):
    """What one run did; tokens are the server's own count."""

    completions: int
    refused: int
    prompt_tokens: int
    completion_tokens: int
    without_usage: int
    finish_reasons: dict[str, int]
    seconds: float


class Report(TypedDict):
    """What is in the folder; this_run and cost_usd are None where there was nothing to do."""

    output: str
    asked_for: int
    there: int
    stopped_by_budget: bool
    this_run: ThisRun | None
    cost_usd: float | None


class Generation:
    """Asks the teacher for what is not in the folder `args.output` yet. It is run once.

    terms     what the teacher's terms say, kept beside the answers
    limit     only the first so many prompts
    executor  where requests are asked from
    warn      is told at once what should worry the user

    Raises ConfigError where no prompt can be asked.
    """

    def __init__(
        self,
        teacher: TeacherArgs,
        args: GenerateArgs,
        terms: Terms,
        *,
        limit: int | None = None,
        executor: Executor = ask_here,
        warn: Callable[[str], None] = lambda text: None,
    ):
        self.teacher, self.args, self.terms = teacher, args, terms
        self.executor, self.warn = executor, warn
        self.prompts, self.asides = _read_prompts(args, limit)
        self.ids = {prompt.id for prompt in self.prompts}
        self.total = len(self.prompts) * args.n

    def run(self) -> tuple[Report, list[str]]:
        """The report, and lines for people.

        Raises GenerateError for a folder that cannot be gone on with, and for a teacher that
        cannot; a KeyboardInterrupt gets a note of what is kept.
        """
        with self._folder() as folder:
            self._say_what_is_there(folder)
            todo = plan(self.prompts, self.args.n, folder.done)
            there = self.total - len(todo)
            if not todo:
                return self._report(there), [
                    f"{self.args.output} is complete: {self.total} completions. Nothing to do."
                ]
            meter = Meter(self.args, folder.earlier)
            progress = Progress(self.total, len(todo), folder.earlier, self.args)
            try:
                self.executor(Work(self.teacher, self.args, todo, folder, meter, progress))
            except (ServerError, GenerateError) as error:
                kept = self._kept(there + progress.now.completions)
                raise GenerateError(f"{error}\n{kept}") from error
            except KeyboardInterrupt as stop:
                stop.add_note(self._kept(there + progress.now.completions))
                raise
            finally:
                progress.close()
        there += progress.now.completions
        report = self._report(there, progress, meter.stopped)
        return report, [*self._lines(progress, meter.stopped), self._kept(there)]

    def _folder(self) -> GenerationFolder:
        about = {
            "prompts": [source.model_dump(exclude_none=True) for source in self.args.prompts],
            "n": self.args.n,
            "terms": dataclasses.asdict(self.terms),
        }
        settings = settings_of(self.teacher, self.args)
        return GenerationFolder.open(self.args.output, settings, about, self.ids)

    def _say_what_is_there(self, folder: GenerationFolder) -> None:
        """What is put aside, changed, or in the folder without having been asked for."""
        refused = [aside for aside in self.asides if not aside.asked]
        changed = Counter(aside.reason for aside in self.asides if aside.asked)
        for reason, count in changed.items():
            self.warn(f"{count} rows of the prompts: {reason}.")
        if refused:
            folder.put_aside(refused)
            first = refused[0]
            self.warn(
                f"{len(refused)} rows of the prompts cannot be asked and are put aside, with the "
                f"reasons, in {folder.path}/aside/prompts.jsonl. The first: {first.source}, row "
                f"{first.number}: {first.reason}."
            )
        if folder.damaged:
            self.warn(
                f"{len(folder.damaged)} lines are damaged, are put aside in {folder.path}/aside/"
                f"damaged.jsonl and asked for again. The first: {folder.damaged[0]}."
            )
        others, beyond = folder.strays(self.ids, self.args.n)
        if others:
            self.warn(
                f"{others} completions in {folder.path} are of prompts that are not asked now. "
                "They stay, and `filter` takes them too; use another `generate.output` to keep "
                "them apart."
            )
        if beyond:
            self.warn(
                f"{beyond} completions in {folder.path} are beyond `n: {self.args.n}`. They stay, "
                "and `filter` leaves them out."
            )

    def _report(
        self, there: int, progress: Progress | None = None, stopped: bool = False
    ) -> Report:
        report: Report = {
            "output": self.args.output,
            "asked_for": self.total,
            "there": there,
            "stopped_by_budget": stopped,
            "this_run": None,
            "cost_usd": None,
        }
        if progress is not None:
            now = progress.now
            report["this_run"] = {
                "completions": now.completions,
                "refused": now.refused,
                "prompt_tokens": now.prompt_tokens,
                "completion_tokens": now.completion_tokens,
                "without_usage": now.without_usage,
                "finish_reasons": dict(now.finish_reasons),
                "seconds": progress.seconds,
            }
            report["cost_usd"] = progress.cost if self.args.price else None
        return report

    def _lines(self, progress: Progress, stopped: bool) -> Iterator[str]:
        yield progress.summary()
        if refused := progress.now.refused:
            yield f"{refused} requests were refused; reasons are in {self.args.output}/failed."
        if stopped:
            yield (
                "The budget is used up: what is left of it does not cover another request of up to "
                f"{self.args.most_tokens} tokens. Raise `generate.budget`, and the same command "
                "goes on."
            )

    def _kept(self, there: int) -> str:
        done = f"{self.args.output}: {there} of {self.total} completions are there."
        return done if there == self.total else f"{done} The same command asks for the rest."


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
