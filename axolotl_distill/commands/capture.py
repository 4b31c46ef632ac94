"""`axolotl distill capture`."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from axolotl_distill.capture import Capture
from axolotl_distill.capture.crossing import Crossed, Crossing
from axolotl_distill.capture.ranks import Ranks
from axolotl_distill.capture.ray_executor import opened_on_ray
from axolotl_distill.capture.source import Source, summarise
from axolotl_distill.capture.teacher import Vocabulary, estimated_at, opened, vocabulary_of
from axolotl_distill.commands.crossed import look_at
from axolotl_distill.commands.kept import (
    finished,
    keeps_what_is_written,
    outlet_of,
    shown_bytes,
    store_line,
    store_numbers,
)
from axolotl_distill.commands.say import say
from axolotl_distill.config.capture import CaptureArgs
from axolotl_distill.config.distill import DistillArgs
from axolotl_distill.config.reading import capture_args
from axolotl_distill.errors import CaptureError, ConfigError
from axolotl_distill.host.datasets.paired import Reader
from axolotl_distill.host.hidden import hidden_to_capture
from axolotl_distill.host.tokenise import capture_datasets, load_config, tokenised
from axolotl_distill.show import redact
from axolotl_distill.store import new_manifest
from axolotl_distill.store.payloads import distribution_of
from axolotl_distill.store.payloads.hidden import Hidden
from axolotl_distill.teachers.fingerprint import identity
from axolotl_distill.terms import check_terms

BIASED = (
    "With `method: sampled`, the default, a student learned more of a forward_kl than with k: 16, "
    "at half the bytes: a bucket for all that is not kept is a bias, and it stays. topk and "
    "nucleus are for other divergences, or several temperatures, from one store (docs/guide.md, "
    "'Which record')."
)

SHARD_BYTES = 1 << 29
"""Of hidden states in a shard, which is held in memory until it is closed"""

Opened = Callable[[CaptureArgs, int, Crossed | None], AbstractContextManager[Source]]


def run(
    config: str,
    *,
    teacher: str | None,
    output: str | None,
    limit: int | None,
    executor: str = "local",
    ranks: Ranks | None = None,
) -> dict[str, Any]:
    """Tokenise, load or reach the teacher, fill the store; goes on with one that was begun.

    executor  local, ray, or accelerate
    ranks     for accelerate: the processes of which this is the first

    Returns what --json prints: the store's numbers, and what this run did.
    """
    if ranks is not None:
        with ranks.leading():
            return _captured(config, teacher, output, limit, ranks.opened)
    opener: Opened = opened_on_ray if executor == "ray" else _opened_here
    return _captured(config, teacher, output, limit, opener)


def _captured(
    config: str, teacher: str | None, output: str | None, limit: int | None, opener: Opened
) -> dict[str, Any]:
    cfg, distill = load_config(config)
    args = capture_args(distill, teacher, output)
    terms = check_terms(args.teacher.model, args.teacher.terms)
    say(terms.summary())
    hidden = hidden_to_capture(cfg, distill, args)
    entries = capture_datasets(cfg, args)
    paths = [str(entry.path) for entry in entries]
    outlet, output = outlet_of(args), redact(args.output)
    folder = outlet.spool if outlet else Path(args.output)
    with (
        keeps_what_is_written(args.output, outlet),
        tokenised(cfg, entries, folder, _reader(distill, args)) as (rows, tokenizer),
    ):
        if limit is not None:
            rows = rows.select(range(min(limit, len(rows))))
        text = summarise(rows, len(rows))
        if text.supervised == 0:
            raise CaptureError(
                f"No token of {paths} is supervised, so there is nothing to capture. Check the "
                "chat template, `roles_to_train` and `train_on_inputs`, and that rows are not "
                "longer than `sequence_len`."
            )
        about = identity(args.teacher)
        crossing = None
        if distill.cross_tokenizer is None:
            vocabulary = vocabulary_of(args, rows, tokenizer, finished(args.output, outlet))
        else:
            crossing = Crossing(args, distill.cross_tokenizer, rows, tokenizer)
            about |= crossing.about_teacher
            vocabulary = Vocabulary(len(crossing.student), crossing.tokenizer, crossing.summary())
            if args.teacher.server is not None and finished(args.output, outlet) is None:
                say(crossing.reach())
        if vocabulary.note:
            say(vocabulary.note)
        payload = distribution_of(args)
        if hidden is not None:
            _tell(hidden, args, text.supervised)
        if "tail" in payload.columns and not args.teacher.server and _could_be_drawn(distill):
            say(BIASED)
        manifest = new_manifest(
            vocab_size=vocabulary.size,
            payloads=[payload] if hidden is None else [payload, hidden],
            temperatures=args.own_temperatures if "tail" in payload.columns else [],
            tail_estimated=estimated_at(args),
            sequence_len=int(cfg.sequence_len),
            tokenizer=vocabulary.tokenizer,
            teacher=about,
            source=text.described(datasets=paths, train_on_inputs=bool(cfg.train_on_inputs)),
            terms=asdict(terms),
        )
        with Capture(
            args.output,
            manifest,
            rows,
            tokenizer.decode,
            shard_records=args.shard_records,
            lengths=text.lengths,
            outlet=outlet,
        ) as capture:
            if capture.was_complete:
                say(f"{output} is complete: {store_line(capture.manifest)}. Nothing to do.")
                return store_numbers(capture)
            if capture.rows_found:
                say(f"going on: {capture.rows_found} of {len(rows)} rows are there")
            here = opener(args, vocabulary.size, crossing.shared if crossing else None)
            with here as source:
                if crossing is not None:
                    look_at(capture, rows, source, crossing)
                report = capture(source)
        say(f"{output}: {store_line(capture.manifest)}")
    on = "" if report.workers == 1 else f" on {report.workers} workers"
    say(
        f"captured {report.rows} rows in {report.seconds:.0f} s ({report.tokens_a_second:,.0f} "
        f"tokens/s{on}, {report.teacher_share:.0%} of the time in the teacher's forward pass); "
        f"{report.skipped} rows had no supervised token"
    )
    return store_numbers(capture)


@contextmanager
def _opened_here(args: CaptureArgs, size: int, crossed: Crossed | None) -> Iterator[Source]:
    with opened(args, size) if crossed is None else crossed.opened(args) as source:
        yield source


def _tell(hidden: Hidden, args: CaptureArgs, tokens: int) -> None:
    """Says what hidden states of so many tokens take, and settles what else they ask of the
    capture. Raises ConfigError for more than their `limit`."""
    given, size = args.hidden_states, hidden.bytes_a_record
    assert given is not None
    layers = ", ".join(map(str, hidden.layers))
    about = (
        f"idden states of layers {layers} of {hidden.depth}, {hidden.width} numbers each as "
        f"{hidden.dtype}: {size:,} bytes a supervised token, {shown_bytes(size * tokens)} for "
        f"{tokens:,} tokens"
    )
    if size * tokens > given.limit:
        raise ConfigError(
            f"H{about}, and `distill.capture.hidden_states.limit` is {shown_bytes(given.limit)}. "
            "Raise it, store fewer `layers`, or set `dtype: int8`."
        )
    say(f"h{about}")
    given.layers = hidden.layers
    args.settle(shard_records=min(args.shard_records, max(1, SHARD_BYTES // size)))


def _could_be_drawn(distill: DistillArgs) -> bool:
    drawn = distill.divergence == "forward_kl" and distill.support is None
    return drawn and distill.cross_tokenizer is None


def _reader(distill: DistillArgs, args: CaptureArgs) -> Reader | None:
    if distill.cross_tokenizer is None:
        return None
    return Reader(args.teacher, distill.cross_tokenizer)
