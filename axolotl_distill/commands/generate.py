"""`axolotl distill generate`."""

import os

from axolotl_distill.commands.recipe import Recipe
from axolotl_distill.commands.say import say, warn
from axolotl_distill.config.teacher import TeacherArgs
from axolotl_distill.errors import GenerateError
from axolotl_distill.generate.executor import ask_here
from axolotl_distill.generate.ray_executor import ask_on_ray
from axolotl_distill.generate.run import Generation, Report
from axolotl_distill.show import redact
from axolotl_distill.terms import check_terms


def run(recipe: Recipe, *, limit: int | None, executor: str) -> Report:
    """Ask for what is not there yet, and say what came of it.

    Returns what --json prints: what is in the folder, and what this run did.
    """
    teacher, args = recipe.teacher, recipe.generate
    assert teacher is not None and args is not None
    terms = check_terms(teacher.model, teacher.terms)
    say(terms.summary())
    _check_key(teacher)
    generation = Generation(
        teacher,
        args,
        terms,
        limit=limit,
        executor=ask_on_ray if executor == "ray" else ask_here,
        warn=warn,
    )
    report, lines = generation.run()
    for line in lines:
        say(line)
    if report["this_run"] and report["this_run"]["refused"] and not report["there"]:
        raise GenerateError(f"The teacher refused every request; see {args.output}/failed.")
    return report


def _check_key(teacher: TeacherArgs) -> None:
    """A vendor's API without a key fails on its first request; this says so before."""
    server = teacher.server
    if server is None or not server.base_url.startswith("https://"):
        return
    if not os.environ.get(server.api_key_env):
        warn(
            f"{server.api_key_env} is not set; {redact(server.base_url)} may ask for a key "
            "(`teacher.server.api_key_env` names the variable)."
        )
