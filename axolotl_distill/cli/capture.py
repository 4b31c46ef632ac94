"""`axolotl distill capture`."""

import click

from axolotl_distill.args import CaptureArgs, parse_distill
from axolotl_distill.capture import capture
from axolotl_distill.capture.run import source_fingerprint
from axolotl_distill.data.source import capture_datasets, load_config, tokenised
from axolotl_distill.errors import CaptureError, ConfigError
from axolotl_distill.store import Manifest, StoreWriter, new_manifest, tokenizer_fingerprint
from axolotl_distill.teachers.hf import HFTeacher


def run(config: str, *, teacher: str | None, output: str | None, limit: int | None) -> None:
    """Tokenise, load the teacher, fill the store; goes on with one that was begun."""
    cfg, distill = load_config(config)
    args = _with_overrides(distill.capture, teacher, output)
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
        manifest = new_manifest(
            vocab_size=len(tokenizer),
            method=_method(args),
            temperatures=args.temperatures,
            sequence_len=int(cfg.sequence_len),
            tokenizer={
                "fingerprint": tokenizer_fingerprint(tokenizer),
                "name": tokenizer.name_or_path,
                "class": type(tokenizer).__name__,
            },
            teacher={"name": args.teacher.path, "dtype": args.teacher.dtype},
            source=about,
        )
        writer = StoreWriter.create_or_resume(args.output, manifest)
        if writer.manifest.complete:
            writer.abandon()
            click.echo(f"{args.output} is complete: {_size(writer.manifest)}. Nothing to do.")
            return
        if writer.next_source_row:
            click.echo(f"going on at row {writer.next_source_row} of {len(rows)}")
        with writer:
            model = HFTeacher(
                args.teacher.path,
                vocab_size=len(tokenizer),
                dtype=args.teacher.dtype,
                device=args.teacher.device,
                trust_remote_code=args.teacher.trust_remote_code,
            )
            report = capture(rows, model, writer, args, tokenizer.decode)
    click.echo(f"{args.output}: {_size(writer.manifest)}")
    click.echo(
        f"captured {report.rows} rows in {report.seconds:.0f} s "
        f"({report.tokens / max(report.seconds, 1e-9):,.0f} tokens/s); "
        f"{report.skipped} rows had no supervised token"
    )


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
        block["teacher"] = {**block.get("teacher", {}), "path": teacher}
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


def _size(manifest: Manifest) -> str:
    size = sum(
        about["bytes"]
        for shard in manifest.shards
        for name, about in shard.files.items()
        if name.startswith("teacher/")
    )
    per_record = size / max(1, manifest.num_records)
    return (
        f"{manifest.num_rows} rows, {manifest.num_records:,} records, "
        f"{size / 1e6:.1f} MB of logits, {per_record:.1f} bytes a supervised token"
    )
