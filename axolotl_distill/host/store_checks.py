"""Whether the student can learn what is asked of it from the stores of a config."""

from collections.abc import Iterator, Sequence
from typing import Any

from axolotl.loaders import load_tokenizer
from transformers import AutoConfig, AutoTokenizer

from axolotl_distill.config.distill import STORE_TYPE, DistillArgs, is_store
from axolotl_distill.errors import StoreError, TokenizerMismatchError
from axolotl_distill.host.datasets.types import CHAT_TYPE, all_stores, open_stores
from axolotl_distill.host.findings import Finding
from axolotl_distill.host.hidden import hidden_store_findings, unlike_hidden_findings
from axolotl_distill.signal.source import resolve_support
from axolotl_distill.store import TeacherStore, added_ids, check_compatible, tokens_of


def stores_findings(cfg: Any, args: DistillArgs) -> Iterator[Finding]:
    """Opens every store of the config and holds it against tokenizer, student and loss.

    There must be one, unless the teacher is another or text alone, and then there must be none.
    """
    if args.teacher != "store":
        what = "learns from text alone"
        if args.teacher != "text":
            what = "is a model that is asked while the student trains"
        for dataset in [*(cfg.datasets or []), *(cfg.test_datasets or [])]:
            if is_store(dataset):
                yield Finding(
                    "distill.teacher",
                    f"`distill.teacher` {what}, but the dataset {dataset['path']} is a store, "
                    "which has a teacher of its own.",
                    "",
                    "Set `distill.teacher: store` or remove it; or name the text that the store "
                    "was made of.",
                )
        return
    try:
        there = open_stores(cfg.datasets)
        stores = all_stores(cfg)
    except StoreError as error:
        yield Finding.of("datasets", error)
        return
    if not there:
        yield Finding(
            "datasets",
            f"`distill:` is set but no entry of `datasets` has `type: {STORE_TYPE}`.",
            "",
            "Capture one with `axolotl distill capture CONFIG.yml` and add it; for text without a "
            f"teacher, beside a store, use `type: {CHAT_TYPE}`; to learn from a teacher's text "
            "alone, set `distill.teacher: text`.",
        )
        return
    for store in stores:
        yield from store_findings(cfg, args, store)
    yield from _unlike(stores)
    yield from unlike_hidden_findings(args, stores)


def store_findings(cfg: Any, args: DistillArgs, store: TeacherStore) -> Iterator[Finding]:
    """Why the student cannot learn from this store."""
    yield from _labels(cfg, store)
    student = AutoConfig.from_pretrained(
        cfg.base_model_config or cfg.base_model, trust_remote_code=bool(cfg.trust_remote_code)
    ).get_text_config()
    tokenizer = load_tokenizer(cfg)
    try:
        check_compatible(store.manifest, tokenizer=tokenizer, student_vocab_size=student.vocab_size)
    except TokenizerMismatchError as error:
        detailed = TokenizerMismatchError(f"{error}{_first_differences(store, tokenizer)}")
        yield Finding.of("base_model", detailed)
    except StoreError as error:
        yield Finding.of("base_model", error)
    yield from loss_findings(store, args)
    yield from hidden_store_findings(cfg, args, store)


def loss_findings(store: TeacherStore, args: DistillArgs) -> Iterator[Finding]:
    """Why the store's records cannot give the loss that is asked for."""
    if store.num_records == 0:
        yield Finding(
            str(store),
            f"{store} holds no record:",
            "no token of its dataset is supervised.",
            "Check the chat template and `train_on_inputs`/`roles_to_train` of the captured "
            "datasets.",
            StoreError,
        )
        return
    payload, support = store.manifest.payloads.distribution, resolve_support(store, args)
    if support not in payload.supports:
        yield Finding(
            "distill.support",
            f"`distill.support: {support}` does not fit {store}, whose records are {payload.kind}.",
            "",
            f"Use {' or '.join(payload.supports)}, or capture with another "
            "`distill.capture.method`.",
            StoreError,
        )
        return
    if payload.divergences is not None and args.divergence not in payload.divergences:
        only = " or ".join(payload.divergences)
        yield Finding(
            "distill.divergence",
            f"`distill.divergence: {args.divergence}` cannot be had from {store}, whose "
            f"records are {payload.kind}",
            f"and give an unbiased {only} only.",
            f"Use {only}, or capture with another `distill.capture.method`.",
            StoreError,
        )
    served = payload.serves(support, store.manifest.served)
    if served is not None and args.temperature not in served:
        others = [
            f"set `distill.support: {other}`"
            for other in payload.supports
            if payload.serves(other, store.manifest.served) is None
        ]
        again = f"capture again with it in `distill.capture.{payload.temperature_key}`"
        yield Finding(
            "distill.temperature",
            f"{store} serves the temperatures {served},",
            f"but `distill.temperature` is {args.temperature:g}.",
            f"{', or '.join(['Use one of them', again, *others])}.",
            StoreError,
        )
    if support == "renormalize" and "cross_tokenizer" in store.manifest.teacher:
        yield Finding(
            "distill.support",
            f"`distill.support: renormalize` does not fit {store.path}, whose teacher has another "
            "tokenizer:",
            "many of its records have one entry and a tail, which renormalised says nothing.",
            "Use tail_bucket.",
            StoreError,
        )
    elif support == "renormalize":
        yield Finding(
            "distill.support",
            "`distill.support: renormalize` leaves out of the loss what a record does not hold,",
            "and the student never learns how much the teacher leaves to other tokens.",
            "Remove the key, unless that is what you want.",
            error=None,
        )
    manifest = store.manifest
    if args.temperature / manifest.tempered in manifest.tail_estimated and support == "tail_bucket":
        yield Finding(
            "distill.temperature",
            f"{store} came from a server, which gives the teacher at "
            f"T={manifest.tempered:g}; how much its tail "
            f"holds at `distill.temperature: {args.temperature:g}` is estimated.",
            "With 64 entries a record and up to T=2 that does little harm;",
            "a teacher without `server` gives it exactly.",
            error=None,
        )


def _labels(cfg: Any, store: TeacherStore) -> Iterator[Finding]:
    """A store keeps the labels it was made with, whatever the config says of labels now."""
    made = bool(store.manifest.source.get("train_on_inputs"))
    if bool(cfg.train_on_inputs) != made:
        yield Finding(
            "train_on_inputs",
            f"`train_on_inputs: {bool(cfg.train_on_inputs)}` has no effect on {store},",
            f"whose labels were fixed with {made}.",
            f"Set it to {made}, or capture again; other datasets of this run take "
            "`roles_to_train`.",
        )


def _unlike(stores: Sequence[TeacherStore]) -> Iterator[Finding]:
    first = stores[0]
    for store in stores[1:]:
        mine, theirs = first.manifest, store.manifest
        own, other = mine.payloads.distribution, theirs.payloads.distribution
        if mine.vocab_size != theirs.vocab_size:
            yield Finding(
                "datasets",
                f"{first} has {mine.vocab_size} token ids and {store} has {theirs.vocab_size};",
                "stores of one run must share the vocabulary.",
                "Take one of them out.",
                StoreError,
            )
        if mine.tempered != theirs.tempered:
            yield Finding(
                "datasets",
                f"{first} has the teacher at T = {mine.tempered:g} and {store} at T = "
                f"{theirs.tempered:g}, for one of them was tempered;",
                "stores of one run must agree in that.",
                "Take one of them out.",
                StoreError,
            )
        if own.supports != other.supports:
            yield Finding(
                "datasets",
                f"{first} holds {own.kind} records and {store} {other.kind} records;",
                "draws and log-probabilities cannot be mixed.",
                "Take one of them out, or capture it again.",
                StoreError,
            )


def _first_differences(store: TeacherStore, tokenizer: Any) -> str:
    """Which ids differ, where the tokenizer that the store names can still be had; else nothing."""
    about, size = store.manifest.tokenizer, store.manifest.vocab_size
    try:
        theirs = AutoTokenizer.from_pretrained(about["name"], local_files_only=True)
    except (OSError, ValueError):
        return ""
    own, other, apart = tokens_of(tokenizer), tokens_of(theirs), added_ids(about)
    wrong = [i for i in range(size) if i not in apart and own.get(i) != other.get(i)]
    return "".join(
        f"\n  id {i} is {other.get(i)!r} in the store and {own.get(i)!r} in the student's"
        for i in wrong[:3]
    )
