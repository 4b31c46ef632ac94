"""`axolotl distill capture`."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from axolotl_distill.args import CaptureArgs, CaptureTeacherArgs, parse_distill
from axolotl_distill.capture import capture
from axolotl_distill.capture.run import source_fingerprint
from axolotl_distill.capture.source import Source
from axolotl_distill.data.source import capture_datasets, load_config, tokenised
from axolotl_distill.errors import CaptureError, ConfigError
from axolotl_distill.store import Manifest, StoreWriter, new_manifest, tokenizer_fingerprint
from axolotl_distill.terms import check_terms


def run(config: str, *, teacher: str | None, output: str | None, limit: int | None) -> None:
    """Tokenise, load or reach the teacher, fill the store; goes on with one that was begun."""
    cfg, distill = load_config(config)
    args = _with_overrides(distill.capture, teacher, output)
    terms = check_terms(args.teacher.model_name, args.teacher.terms)
    click.echo(terms.summary())
    entries = capture_datasets(cfg, args)
    with tokenised(cfg, entries) as (rows, tokenizer):
        if limit is not None:
            rows = rows.select(range(min(limit, len(rows))))
        fingerprint, supervised = source_fingerprint(rows)
        if supervised == 0:
            raise CaptureError(
                f"No token of {[entry.path for entry in entries]} is supervised, so there is "
                "nothing to capture. Check the chat template, `roles_to_train` and "
                "`train_on_inputs`, and that rows are not longer than `sequence_len`."
            )
        about = {"fingerprint": fingerprint, "num_rows": len(rows), "supervised": supervised}
        about["datasets"] = [str(entry.path) for entry in entries]
        about["train_on_inputs"] = bool(cfg.train_on_inputs)
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
            click.echo(f"{args.output} is complete: {size(writer.manifest)}. Nothing to do.")
            return
        if writer.next_source_row:
            click.echo(f"going on at row {writer.next_source_row} of {len(rows)}")
        with writer, _source(args, rows, tokenizer) as source:
            report = capture(rows, source, writer, args.shard_records, tokenizer.decode)
    click.echo(f"{args.output}: {size(writer.manifest)}")
    click.echo(
        f"captured {report.rows} rows in {report.seconds:.0f} s "
        f"({report.tokens / max(report.seconds, 1e-9):,.0f} tokens/s); "
        f"{report.skipped} rows had no supervised token"
    )


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
        click.echo(f"{path} has no tokenizer: whether it reads text as the student is unknown.")
    model = HFTeacher(
        path,
        vocab_size=len(tokenizer),
        dtype=args.teacher.dtype,
        device=args.teacher.device,
        trust_remote_code=trusted,
    )
    yield LogitsSource(model, args)


def about_tokenizer(tokenizer: Any) -> dict[str, str]:
    """What a manifest says of a tokenizer."""
    return {
        "fingerprint": tokenizer_fingerprint(tokenizer),
        "name": tokenizer.name_or_path,
        "class": type(tokenizer).__name__,
    }


def _about_teacher(teacher: CaptureTeacherArgs) -> dict[str, str]:
    if teacher.server is not None:
        return {"name": teacher.model_name, "server": teacher.server.engine}
    return {"name": teacher.model_name, "dtype": teacher.dtype}


def _with_overrides(
    args: CaptureArgs | None, teacher: str | None, output: str | None
) -> CaptureArgs:
    if args is None and not (teacher and output):
        raise ConfigError(
            "The config has no `distill.capture:` block. Add one with `teacher:` and `output:`, "
            "or give both --teacher and --output."
        )
    block = args.model_dump() if args is not None else {}
    if teacher:
        given = block.get("teacher", {})
        key = "name" if given.get("type") == "server" else "path"
        block["teacher"] = {**given, key: teacher}
    if output:
        block["output"] = output
    return parse_distill({"capture": block}).capture


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


def size(manifest: Manifest) -> str:
    """One line: rows, records, bytes."""
    stored = sum(
        about["bytes"]
        for shard in manifest.shards
        for name, about in shard.files.items()
        if name.startswith("teacher/")
    )
    per_record = stored / max(1, manifest.num_records)
    return (
        f"{manifest.num_rows} rows, {manifest.num_records:,} records, "
        f"{stored / 1e6:.1f} MB of records, {per_record:.1f} bytes a supervised token"
    )
