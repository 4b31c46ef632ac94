"""Refuses what cannot work, before a row is tokenised or a weight is read."""

from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

from axolotl.integrations.base import PluginManager
from axolotl.loaders import load_tokenizer
from axolotl.utils.logging import get_logger
from transformers import AutoConfig, AutoTokenizer

from axolotl_distill.config.distill import STORE_TYPE, DistillArgs, is_store
from axolotl_distill.errors import ConfigError, StoreError, TokenizerMismatchError
from axolotl_distill.host.datasets.types import (
    CHAT_TYPE,
    all_stores,
    is_ours,
    open_stores,
)
from axolotl_distill.host.parallelism import check_parallelism
from axolotl_distill.signal.stored import resolve_support
from axolotl_distill.store import TeacherStore, added_ids, check_compatible, tokens_of
from axolotl_distill.store.payloads import payload_of

LOG = get_logger(__name__)
ANOTHER_LOSS = {
    "rl": "preference and reinforcement training has a loss of its own",
    "reward_model": "a reward model has no next-token distribution",
    "process_reward_model": "a reward model has no next-token distribution",
    "kd_trainer": "it is Axolotl's other distillation plugin",
    "use_eaft": "it replaces the loss",
    "use_dft": "it replaces the loss",
    "diffusion_lm": "a diffusion model has a loss of its own",
    "trainer_cls": "it brings a trainer of its own",
    "orpo_alpha": "it replaces the loss",
    "label_smoothing_factor": "it replaces the loss",
}
NOT_SUPPORTED = {
    "batch_flattening": "use `sample_packing: true` instead",
    "pretraining_dataset": "use `datasets` with `streaming: true` instead",
    "processor_type": "only text models can be distilled",
    "skip_prepare_dataset": "rows meet the store's records while they are prepared, so remove it",
}
NO_EFFECT = (
    "chunked_cross_entropy",
    "cut_cross_entropy",
    "flash_attn_cross_entropy",
    "liger_cross_entropy",
    "liger_fused_linear_cross_entropy",
    "unsloth_cross_entropy_loss",
)
ATTENTION_KEYS = (
    "attn_implementation",
    "flash_attention",
    "sdp_attention",
    "eager_attention",
    "flex_attention",
    "xformers_attention",
    "sage_attention",
)


def check_without_block(cfg: Any) -> None:
    """Raises ConfigError where the plugin is on and `distill:` is missing, though it was meant:
    it is empty, a key comes near it, or a dataset is of our types."""
    if "distill" in cfg:
        raise ConfigError(
            "`distill:` is empty. Write `distill: {}` for the defaults, or remove the key and the "
            "plugin."
        )
    near = get_close_matches("distill", [str(key).lower() for key in cfg], n=1, cutoff=0.7)
    if near:
        key = next(key for key in cfg if str(key).lower() == near[0])
        raise ConfigError(
            f"`{key}:` is not a key, and nothing would be distilled; did you mean `distill:`?"
        )
    for dataset in [*(cfg.get("datasets") or []), *(cfg.get("test_datasets") or [])]:
        if is_ours(dataset):
            raise ConfigError(
                f"`datasets[].type: {dataset['type']}` needs a `distill:` block, and this config "
                "has none. Add one; `distill: {}` takes the defaults."
            )


def check_other_plugins(cfg: Any, own: type) -> None:
    """Raises ConfigError for a plugin, whatever its place in the list, that brings a trainer or a
    collator: Axolotl takes the first it is given and says nothing of the others."""
    before = True
    for name, plugin in PluginManager.get_instance().plugins.items():
        if isinstance(plugin, own):
            before = False
            continue
        trainer = plugin.get_trainer_cls(cfg)
        collator = plugin.get_collator_cls_and_kwargs(cfg)
        brought = trainer or (collator and collator[0])
        if brought:
            raise ConfigError(
                f"`plugins: {name}` brings {brought.__name__}, and `distill:` another: only one of "
                "the two can train. Remove the plugin, or the `distill:` block."
            )
        if collator is not None and before:
            raise ConfigError(
                f"`plugins: {name}` must come after axolotl_distill: it answers for the collator "
                "without giving one. Change their order, or remove it."
            )


def check_config(cfg: Any, args: DistillArgs) -> None:
    """Raises ConfigError where the YAML combines `distill:` with what cannot go with it."""
    for key, why in ANOTHER_LOSS.items():
        if cfg.get(key):
            raise ConfigError(f"`{key}` cannot be combined with `distill:`: {why}. Remove one.")
    for key, instead in NOT_SUPPORTED.items():
        if cfg.get(key):
            raise ConfigError(f"`{key}` cannot be combined with `distill:`; {instead}.")
    for key in NO_EFFECT:
        if cfg.get(key):
            LOG.warning(
                f"axolotl-distill: `{key}` has no effect: the loss, cross-entropy and all, is "
                "axolotl-distill's own. Remove the key."
            )
    check_parallelism(cfg)
    if cfg.get("streaming") and cfg.get("sample_packing") and len(cfg.get("datasets") or []) > 1:
        raise ConfigError(
            "`streaming: true` with `sample_packing: true` reads the first entry of `datasets` "
            f"alone, and there are {len(cfg['datasets'])}. Leave one of the two out."
        )
    if cfg.get("sample_packing") and not any(cfg.get(key) for key in ATTENTION_KEYS):
        raise ConfigError(
            "`sample_packing: true` without `attn_implementation` lets packed documents attend to "
            "each other, and the student would see text its teacher did not. Set "
            "`attn_implementation: flash_attention_2` on a GPU, or `sdpa`."
        )
    if args.capture:
        _check_capture(args)


def _check_capture(args: DistillArgs) -> None:
    """A store that this very config would capture must be one that it can train on."""
    payload = payload_of(args.capture)
    served = payload.serves(args.support or payload.supports[0], args.capture.temperatures)
    if served is not None and args.temperature not in served:
        raise ConfigError(
            f"`distill.temperature: {args.temperature:g}` is not what "
            f"`distill.capture.{payload.temperature_key}` provides for ({served}). Make them agree "
            "before capturing: the teacher at another temperature cannot be had from the store."
        )


def check_stores(cfg: Any, args: DistillArgs) -> list[TeacherStore]:
    """Opens every store of the config and holds it against tokenizer, student and loss.

    Raises ConfigError when there is none, unless the teacher is text alone, and when there is one
    though it is; StoreError and its children for a store that is missing, damaged, empty, from
    another tokenizer or captured for other settings.
    """
    if args.teacher == "text":
        for dataset in [*(cfg.datasets or []), *(cfg.test_datasets or [])]:
            if is_store(dataset):
                raise ConfigError(
                    "`distill.teacher: text` learns from text alone, but the dataset "
                    f"{dataset['path']} is a store. Set `distill.teacher: store` or remove it."
                )
        return []
    if not open_stores(cfg.datasets):
        raise ConfigError(
            f"`distill:` is set but no entry of `datasets` has `type: {STORE_TYPE}`. Capture one "
            "with `axolotl distill capture CONFIG.yml` and add it; for text without a teacher, "
            f"beside a store, use `type: {CHAT_TYPE}`; to learn from a teacher's text alone, set "
            "`distill.teacher: text`."
        )
    stores = all_stores(cfg)
    _check_labels(cfg, stores)
    for store in stores:
        check_store(cfg, args, store)
    _check_alike(stores)
    return stores


def check_store(cfg: Any, args: DistillArgs, store: TeacherStore) -> None:
    """Raises StoreError and its children when the student cannot learn from this store."""
    student = AutoConfig.from_pretrained(
        cfg.base_model_config or cfg.base_model, trust_remote_code=bool(cfg.trust_remote_code)
    ).get_text_config()
    tokenizer = load_tokenizer(cfg)
    try:
        check_compatible(store.manifest, tokenizer=tokenizer, student_vocab_size=student.vocab_size)
    except TokenizerMismatchError as error:
        raise TokenizerMismatchError(f"{error}{_first_differences(store, tokenizer)}") from None
    check_loss(store, args)
    if (
        args.temperature in store.manifest.tail_estimated
        and resolve_support(store, args) == "tail_bucket"
    ):
        LOG.warning(
            f"axolotl-distill: {store.path} came from a server, which gives the teacher at T=1; "
            f"how much its tail holds at `distill.temperature: {args.temperature:g}` is estimated. "
            "With 64 entries a record and up to T=2 that does little harm; a teacher without "
            "`server` gives it exactly."
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


def check_loss(store: TeacherStore, args: DistillArgs) -> None:
    """Raises StoreError when the store's records cannot give the loss that is asked for."""
    if store.num_records == 0:
        raise StoreError(
            f"{store.path} holds no record: no token of its dataset is supervised. Check the chat "
            "template and `train_on_inputs`/`roles_to_train` of the captured datasets."
        )
    payload, support = store.manifest.method, resolve_support(store, args)
    if support not in payload.supports:
        raise StoreError(
            f"`distill.support: {support}` does not fit {store.path}, whose records are "
            f"{payload.kind}. Use {' or '.join(payload.supports)}, or capture with another "
            "`distill.capture.method`."
        )
    if payload.divergences is not None and args.divergence not in payload.divergences:
        only = " or ".join(payload.divergences)
        raise StoreError(
            f"`distill.divergence: {args.divergence}` cannot be had from {store.path}, whose "
            f"records are {payload.kind} and give an unbiased {only} only. Use {only}, or capture "
            "with another `distill.capture.method`."
        )
    served = payload.serves(support, store.manifest.temperatures)
    if served is not None and args.temperature not in served:
        others = [
            f"`distill.support: {other}`"
            for other in payload.supports
            if payload.serves(other, store.manifest.temperatures) is None
        ]
        raise StoreError(
            f"{store.path} serves the temperatures {served}, but `distill.temperature` is "
            f"{args.temperature:g}. "
            + ", or ".join(
                [
                    "Use one of them",
                    f"capture again with it in `distill.capture.{payload.temperature_key}`",
                    *(f"set {other}" for other in others),
                ]
            )
            + "."
        )


def _check_labels(cfg: Any, stores: Sequence[TeacherStore]) -> None:
    """A store keeps the labels it was made with, whatever the config says of labels now."""
    for store in stores:
        made = bool(store.manifest.source.get("train_on_inputs"))
        if bool(cfg.train_on_inputs) != made:
            raise ConfigError(
                f"`train_on_inputs: {bool(cfg.train_on_inputs)}` has no effect on {store.path}, "
                f"whose labels were fixed with {made}. Set it to {made}, or capture again; other "
                "datasets of this run take `roles_to_train`."
            )


def _check_alike(stores: Sequence[TeacherStore]) -> None:
    first = stores[0]
    for store in stores[1:]:
        mine, theirs = first.manifest, store.manifest
        if mine.vocab_size != theirs.vocab_size:
            raise StoreError(
                f"{first.path} has {mine.vocab_size} token ids and {store.path} has "
                f"{theirs.vocab_size}; stores of one run must share the vocabulary."
            )
        if mine.method.supports != theirs.method.supports:
            raise StoreError(
                f"{first.path} holds {mine.method.kind} records and {store.path} "
                f"{theirs.method.kind} records; draws and log-probabilities cannot be mixed."
            )
