"""A capture of a teacher with another tokenizer, looked at before it begins."""

from collections.abc import Sequence

from axolotl_distill.align.methods import METHODS
from axolotl_distill.capture import Capture
from axolotl_distill.capture.check import checked, hold
from axolotl_distill.capture.cross import CrossSource
from axolotl_distill.capture.crossing import Crossing
from axolotl_distill.capture.named import served_note
from axolotl_distill.capture.source import Row, Source
from axolotl_distill.commands.say import say, warn
from axolotl_distill.store.check import check_lines, check_warnings


def look_at(capture: Capture, rows: Sequence[Row], source: Source, crossing: Crossing) -> None:
    """Says what a few of the records are worth, and puts it into the manifest; of a store that was
    begun, what was said then. Raises what the teacher does."""
    if crossing.cross.method in METHODS:
        warn(
            f"`cross_tokenizer.method: {crossing.cross.method}` maps token to token and cannot "
            "know what follows one: on numerals its records are another distribution than the "
            "teacher's, and how much they carry does not show it (docs/cross-tokenizer.md). "
            "`method: span` is right there."
        )
    if crossing.args.teacher.server is not None:
        warn(served_note(crossing.args.teacher, crossing.args.k, "capture.k"))
    found = capture.manifest.teacher.get("check")
    if found is None:
        if capture.rows_found:
            return
        found, least = checked(rows, source)
        spelt = crossing.student.bytes_of
        shown = "  ".join(f"{spelt[i].decode(errors='replace')!r} {s:.2f}" for i, s in least)
        say(f"least is carried at: {shown}")
        here = source if isinstance(source, CrossSource) else getattr(source, "here", None)
        if isinstance(here, CrossSource) and here.unnamed.positions:
            found["unnamed"] = here.unnamed.share
        if crossing.cross.check:
            if isinstance(here, CrossSource):
                hold(found, rows, here, crossing.survey, crossing.cross.check)
            else:
                say(
                    "`cross_tokenizer.check` is left out: no process but Ray's workers has the "
                    "teacher. `axolotl distill align` holds a pair to an oracle."
                )
        capture.note(found)
    for line in check_lines(found):
        say(f"check: {line}")
    for said in check_warnings(found):
        warn(said)
