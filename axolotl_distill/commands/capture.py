"""`axolotl distill capture`."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from axolotl_distill.capture import capture
from axolotl_distill.capture.source import Source, summarise
from axolotl_distill.commands.kept import keeps_what_is_written, stored_rows
from axolotl_distill.commands.say import say
from axolotl_distill.config.capture import CaptureArgs
from axolotl_distill.config.reading import capture_args
from axolotl_distill.errors import CaptureError, StoreError
from axolotl_distill.host.tokenise import capture_datasets, load_config, tokenised
from axolotl_distill.store import Manifest, StoreWriter, describe_tokenizer, new_manifest
from axolotl_distill.store.payloads import payload_of
from axolotl_distill.teachers.fingerprint import identity
from axolotl_distill.terms import check_terms


def run(
    config: str, *, teacher: str | None, output: str | None, limit: int | None
) -> dict[str, Any]:
    """Tokenise, load or reach the teacher, fill the store; goes on with one that was begun.

    Returns what --json prints: the store's numbers, and what this run did.
    """
    cfg, distill = load_config(config)
    args = capture_args(distill.capture, teacher, output)
    terms = check_terms(args.teacher.model, args.teacher.terms)
    say(terms.summary())
    entries = capture_datasets(cfg, args)
    with (
        keeps_what_is_written(args.output),
        tokenised(cfg, entries, Path(args.output)) as (rows, tokenizer),
    ):
        if limit is not None:
            rows = rows.select(range(min(limit, len(rows))))
        read = summarise(rows, len(rows))
        if read.supervised == 0:
            raise CaptureError(
                f"No token of {[entry.path for entry in entries]} is supervised, so there is "
                "nothing to capture. Check the chat template, `roles_to_train` and "
                "`train_on_inputs`, and that rows are not longer than `sequence_len`."
            )
        about = {
            "fingerprint": read.fingerprint,
            "num_rows": len(rows),
            "supervised": read.supervised,
            "datasets": [str(entry.path) for entry in entries],
            "train_on_inputs": bool(cfg.train_on_inputs),
        }
        from_server = args.teacher.server is not None
        if from_server:
            say(
                f"Which weights a server has it does not tell: that `{args.teacher.model}` stays "
                "the same model until the store is complete is for you to see to."
            )
        vocab_size, about_tokenizer = _vocabulary(args, rows, tokenizer)
        manifest = new_manifest(
            vocab_size=vocab_size,
            method=payload_of(args),
            temperatures=args.temperatures,
            tail_estimated=[T for T in args.temperatures if T != 1.0] if from_server else [],
            sequence_len=int(cfg.sequence_len),
            tokenizer=about_tokenizer,
            teacher=identity(args.teacher),
            source=about,
            terms=dataclasses.asdict(terms),
        )
        writer = StoreWriter.create_or_resume(args.output, manifest)
        if writer.manifest.complete:
            writer.abandon()
            say(f"{args.output} is complete: {size(writer.manifest)}. Nothing to do.")
            return numbers(args.output, writer.manifest)
        if there := stored_rows(args.output):
            say(f"going on: {there} of {len(rows)} rows are there")
        with writer, _source(args, vocab_size) as source:
            report = capture(
                rows, source, writer, args.shard_records, tokenizer.decode, read.lengths
            )
        say(f"{args.output}: {size(writer.manifest)}")
    say(
        f"captured {report.rows} rows in {report.seconds:.0f} s "
        f"({report.tokens / max(report.seconds, 1e-9):,.0f} tokens/s); "
        f"{report.skipped} rows had no supervised token"
    )
    return numbers(args.output, writer.manifest, **dataclasses.asdict(report))


def _vocabulary(args: CaptureArgs, rows: Any, tokenizer: Any) -> tuple[int, dict[str, Any]]:
    """(ids that teacher and student share, what the manifest says of the tokenizer), found before
    a store is begun or a weight is read; from the store itself where it is complete."""
    finished = _finished(args.output)
    if finished is not None:
        return finished.vocab_size, finished.tokenizer
    if args.teacher.server is not None:
        from axolotl_distill.capture.server import ServerSource

        with ServerSource(args, vocab_size=len(tokenizer)) as source:
            shared = source.check(tokenizer, longest=max(len(ids) for ids in rows["input_ids"]))
    else:
        from axolotl_distill.teachers.tokenizer import local_vocabulary

        shared, compared = local_vocabulary(args.teacher, tokenizer)
        if not compared:
            say(
                f"{args.teacher.model} has no tokenizer: whether it reads text as the student is "
                "unknown."
            )
    used = shared.check_text(rows, args.teacher.model)
    return shared.size, describe_tokenizer(tokenizer, shared.size, used)


def _finished(output: str) -> Manifest | None:
    try:
        found = Manifest.load(Path(output))
    except StoreError:
        return None
    return found if found.complete else None


@contextmanager
def _source(args: CaptureArgs, vocab_size: int) -> Iterator[Source]:
    """The teacher, loaded into this process, or reached."""
    if args.teacher.server is not None:
        from axolotl_distill.capture.server import ServerSource

        with ServerSource(args, vocab_size=vocab_size) as source:
            yield source
        return
    from axolotl_distill.capture.logits import LogitsSource
    from axolotl_distill.teachers.hf import HFTeacher

    model = HFTeacher(args.teacher, vocab_size=vocab_size)
    yield LogitsSource(model, args, on_cpu=model.device == "cpu")


def numbers(output: str, manifest: Manifest, **this_run: Any) -> dict[str, Any]:
    """A store and what a run added to it, for --json."""
    stored = bytes_of_records(manifest)
    return {
        "output": output,
        "complete": manifest.complete,
        "rows": manifest.num_rows,
        "records": manifest.num_records,
        "bytes_of_records": stored,
        "bytes_a_record": stored / max(1, manifest.num_records),
        "this_run": this_run or None,
    }


def bytes_of_records(manifest: Manifest) -> int:
    """Of the files under teacher/."""
    return sum(shard.files[shard.records_file]["bytes"] for shard in manifest.shards)


def size(manifest: Manifest) -> str:
    """One line: rows, records, bytes."""
    stored = bytes_of_records(manifest)
    per_record = stored / max(1, manifest.num_records)
    return (
        f"{manifest.num_rows} rows, {manifest.num_records:,} records, "
        f"{stored / 1e6:.1f} MB of records, {per_record:.1f} bytes a supervised token"
    )
