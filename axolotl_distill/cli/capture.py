"""`axolotl distill capture`."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from axolotl_distill.args import CaptureArgs, CaptureTeacherArgs, capture_args
from axolotl_distill.capture import capture
from axolotl_distill.capture.source import Source, summarise
from axolotl_distill.cli.frame import say
from axolotl_distill.cli.kept import keeps_what_is_written, stored_rows
from axolotl_distill.data.source import capture_datasets, load_config, tokenised
from axolotl_distill.errors import CaptureError
from axolotl_distill.store import Manifest, StoreWriter, new_manifest, tokenizer_fingerprint
from axolotl_distill.teachers.fingerprint import UNKNOWN, weights_of
from axolotl_distill.terms import check_terms


def run(
    config: str, *, teacher: str | None, output: str | None, limit: int | None
) -> dict[str, Any]:
    """Tokenise, load or reach the teacher, fill the store; goes on with one that was begun.

    Returns what --json prints: the store's numbers, and what this run did.
    """
    cfg, distill = load_config(config)
    args = capture_args(distill.capture, teacher, output)
    terms = check_terms(args.teacher.model_name, args.teacher.terms)
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
        }
        from_server = args.teacher.type == "server"
        manifest = new_manifest(
            vocab_size=len(tokenizer),
            method=_method(args),
            temperatures=args.temperatures,
            tail_estimated=[T for T in args.temperatures if T != 1.0] if from_server else [],
            sequence_len=int(cfg.sequence_len),
            tokenizer=about_tokenizer(tokenizer),
            teacher=_about_teacher(args.teacher),
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
        with writer, _source(args, rows, tokenizer) as source:
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


@contextmanager
def _source(args: CaptureArgs, rows: Any, tokenizer: Any) -> Iterator[Source]:
    """The teacher, ready: loaded into this process, or reached and found to be the right one."""
    if args.teacher.type == "server":
        from axolotl_distill.capture.server import ServerSource

        with ServerSource(args, vocab_size=len(tokenizer)) as source:
            source.check(tokenizer, longest=max(len(ids) for ids in rows["input_ids"]))
            yield source
        return
    from axolotl_distill.capture.logits import LogitsSource
    from axolotl_distill.teachers.hf import HFTeacher
    from axolotl_distill.teachers.tokenizer import check_local_teacher

    path, trusted = args.teacher.path, args.teacher.trust_remote_code
    if not check_local_teacher(path, tokenizer, trust_remote_code=trusted):
        say(f"{path} has no tokenizer: whether it reads text as the student is unknown.")
    model = HFTeacher(
        path,
        vocab_size=len(tokenizer),
        dtype=args.teacher.dtype,
        device=args.teacher.device,
        trust_remote_code=trusted,
    )
    yield LogitsSource(model, args, on_cpu=model.device == "cpu")


def about_tokenizer(tokenizer: Any) -> dict[str, str]:
    """What a manifest says of a tokenizer."""
    return {
        "fingerprint": tokenizer_fingerprint(tokenizer),
        "name": tokenizer.name_or_path,
        "class": type(tokenizer).__name__,
    }


def _about_teacher(teacher: CaptureTeacherArgs) -> dict[str, str]:
    if teacher.server is not None:
        say(
            f"Which weights a server has it does not tell: that `{teacher.model_name}` stays the "
            "same model until the store is complete is for you to see to."
        )
        about = {"name": teacher.model_name, "server": teacher.server.engine}
        return {**about, "weights": UNKNOWN}
    weights = weights_of(teacher.model_name)
    return {"name": teacher.model_name, "dtype": teacher.dtype, "weights": weights}


def _method(args: CaptureArgs) -> dict[str, object]:
    if args.method == "topk":
        return {"kind": "topk", "k": args.k}
    if args.method == "nucleus":
        return {"kind": "nucleus", "p": args.p, "max_k": args.max_k}
    return {
        "kind": "sampled",
        "draws": args.draws,
        "temperature": args.sampling_temperature,
        "seed": args.seed,
    }


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
