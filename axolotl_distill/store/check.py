"""What a manifest's `teacher.check` says, in words."""

from collections.abc import Iterator

from axolotl_distill.store.counts import LEVEL, may_be_outside
from axolotl_distill.store.schema import Check

# With less than this a student learns a quarter of what the teacher says as one sum.
LEAST_CARRIED = 0.75
# Of a server's; what a record may be off by where a sum over tokens is needed.
MOST_UNNAMED = 0.05


def check_lines(check: Check) -> Iterator[str]:
    """Lines for people."""
    yield (
        f"{check['carried']:.3f} of the teacher's probability in {check['tokens']:,} records of "
        f"{check['rows']} rows"
    )
    if "unnamed" in check:
        yield f"the server does not name {check['unnamed']:.3f} of the teacher's probability"
    if check.get("places"):
        yield (
            f"what the teacher writes fits them at {_fitting(check)} of {check['places']} places "
            f"({check['samples']} samples each; mean error {check['error']:.3f})"
        )
    elif "places" in check:
        yield "held to what the teacher writes at no place: none could be counted"


def check_warnings(check: Check) -> Iterator[str]:
    """What should worry somebody."""
    if check["carried"] < LEAST_CARRIED:
        yield (
            f"the records carry {check['carried']:.2f} of the teacher's probability, and of the "
            "rest a student learns the sum alone. A larger `distill.capture.k` may carry more, "
            "`axolotl distill align` tells what every entry would; else learn from the teacher's "
            "text (`distill.teacher: text`)."
        )
    if check.get("unnamed", 0.0) > MOST_UNNAMED:
        yield (
            f"of the teacher's probability {check['unnamed']:.3f} is of tokens that the server did "
            "not name, and records where the two tokenizers cut apart may be off by as much. A "
            "larger `distill.capture.k` names more (vLLM: `--max-logprobs`)."
        )
    if check.get("places") and fits_too_rarely(check["within"], check["places"]):
        places = check["places"]
        yield (
            f"what the teacher writes fits the records at {_fitting(check)} of {places} places, "
            f"and would at {places - may_be_outside(places)} or more if they were right (a place "
            f"is missed at a level of {LEVEL:.0%}). See `axolotl distill align`."
        )


def fits_too_rarely(within: float, places: int) -> bool:
    """Whether records that are right would be `within` at so small a share of `places` by chance
    with no more than the probability ALARM."""
    return places - round(within * places) > may_be_outside(places)


def _fitting(check: Check) -> int:
    return round(check["within"] * check["places"])
