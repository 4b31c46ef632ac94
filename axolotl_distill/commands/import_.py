"""`axolotl distill import`."""

from dataclasses import asdict
from typing import Any

from axolotl_distill.capture import Capture
from axolotl_distill.capture.imported import ImportedRows, ImportedSource
from axolotl_distill.capture.layouts import find_layout
from axolotl_distill.capture.layouts.files import open_rows
from axolotl_distill.capture.teacher import vocabulary_of_import
from axolotl_distill.commands.kept import keeps_what_is_written, store_line, store_numbers
from axolotl_distill.commands.say import say, warn
from axolotl_distill.config.capture import CaptureArgs
from axolotl_distill.config.distill import DistillArgs
from axolotl_distill.errors import ConfigError
from axolotl_distill.host.chat import chat_context, load_tokenizer
from axolotl_distill.host.tokenise import load_config
from axolotl_distill.store import new_manifest
from axolotl_distill.store.payloads.logprobs import TopK
from axolotl_distill.teachers.fingerprint import UNKNOWN, content_of
from axolotl_distill.terms import check_terms

DEFAULTS = {name: field.default for name, field in CaptureArgs.model_fields.items()}


def run(config: str, path: str, *, layout: str | None, output: str) -> dict[str, Any]:
    """Read every row once to learn what there is, then again to store it, and before that to count
    where a row may hold several answers; goes on with a store that was begun.

    Returns what --json prints: the store's numbers, and what this run did.
    """
    cfg, distill = load_config(config)
    with keeps_what_is_written(output):
        return _import(cfg, distill, path, layout, output)


def _import(
    cfg: Any, distill: DistillArgs, path: str, layout: str | None, output: str
) -> dict[str, Any]:
    given = distill.capture
    if given is not None and given.teacher.tempered != 1.0:
        raise ConfigError(
            "`distill.capture.teacher.tempered` is not read by an import: what was collected is "
            "taken to be at T = 1. Capture from the server instead, or remove the key."
        )
    temperatures = given.temperatures if given else DEFAULTS["temperatures"]
    source = open_rows(path)
    name, found = find_layout(layout, source[0], path)
    tokenizer = load_tokenizer(cfg)
    context = chat_context(cfg, given, tokenizer)
    rows = ImportedRows(source, found, context, path, longest=int(cfg.sequence_len))
    teacher = rows.example(0).teacher or (given.teacher.model if given else "unknown")
    terms = check_terms(teacher, given.teacher.terms if given else None)
    say(terms.summary())
    survey = rows.survey()
    say(f"{path}: {name}, {survey.summary()}")
    if doubt := survey.doubt():
        warn(doubt)
    vocabulary = vocabulary_of_import(
        tokenizer,
        str(cfg.tokenizer_config),
        trust_remote_code=bool(cfg.trust_remote_code),
        rows=rows,
        teacher=teacher,
    )
    manifest = new_manifest(
        vocab_size=vocabulary.size,
        payloads=[TopK(kind="topk", k=survey.k)],
        temperatures=temperatures,
        tail_estimated=[T for T in temperatures if T != 1.0 or found.renormalised],
        sequence_len=int(cfg.sequence_len),
        tokenizer=vocabulary.tokenizer,
        teacher={"name": teacher, "imported": name, "weights": UNKNOWN},
        source=survey.source.described(content=content_of(path), datasets=[path]),
        terms=asdict(terms),
    )
    with Capture(
        output,
        manifest,
        rows,
        tokenizer.decode,
        shard_records=given.shard_records if given else DEFAULTS["shard_records"],
        lengths=survey.source.lengths,
    ) as capture:
        if capture.was_complete:
            say(f"{output} is complete: {store_line(capture.manifest)}. Nothing to do.")
            return store_numbers(capture)
        report = capture(ImportedSource(survey.k, temperatures, vocab_size=vocabulary.size))
    say(f"{output}: {store_line(capture.manifest)}")
    say(
        f"imported {report.rows} rows in {report.seconds:.0f} s; {report.skipped} rows had no "
        f"log-probabilities, or were longer than {cfg.sequence_len} tokens"
    )
    return store_numbers(capture)
