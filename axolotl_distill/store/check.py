"""What a manifest's `teacher.check` says, in words."""

from collections.abc import Iterator

from axolotl_distill.store.schema import Check

# With less than this a student learns a quarter of what the teacher says as one sum.
LEAST_CARRIED = 0.75
# A record is right within so many standard errors of what was counted, at so many places: what has
# no error at all is outside at one in twenty, and at more than three of twenty once in a hundred.
ERRORS, SHARE = 2.0, 0.85


def check_lines(check: Check) -> Iterator[str]:
    """Lines for people."""
    yield (
        f"{check['carried']:.3f} of the teacher's probability in {check['tokens']:,} records of "
        f"{check['rows']} rows"
    )
    if check.get("places"):
        yield (
            f"within {ERRORS:g} standard errors of what the teacher writes at "
            f"{check['within']:.0%} of {check['places']} places ({check['samples']} samples each; "
            f"mean error {check['error']:.3f})"
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
    if check.get("within", 1.0) < SHARE:
        yield (
            f"the records are within {ERRORS:g} standard errors of what the teacher writes at "
            f"{check['within']:.0%} of {check['places']} places, and what is right is at "
            f"{SHARE:.0%} or more. See `axolotl distill align`."
        )
