"""What cannot work is found before a row is tokenised or a weight is read."""

from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from axolotl.integrations.base import PluginManager
from axolotl.utils.dict import DictDefault

from axolotl_distill.address import is_address
from axolotl_distill.config.capture import CaptureArgs
from axolotl_distill.config.distill import DistillArgs, is_store, parse_distill
from axolotl_distill.config.yaml_file import read_yaml
from axolotl_distill.host.crossing import cross_findings
from axolotl_distill.host.datasets.types import is_ours
from axolotl_distill.host.findings import Finding
from axolotl_distill.host.live_checks import live_findings
from axolotl_distill.host.parallelism import parallelism
from axolotl_distill.host.store_checks import loss_findings, store_findings
from axolotl_distill.host.telling import told_findings
from axolotl_distill.host.tokenise import load_config
from axolotl_distill.store import TeacherStore
from axolotl_distill.store.payloads import distribution_of
from axolotl_distill.store.remote import is_mirror

REMOVE = "Remove one."
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

OTHER_ORDERS = (
    "curriculum_sampling",
    "group_by_length",
    "streaming",
    "pretraining_dataset",
)


def missing_block(cfg: Any) -> Iterator[Finding]:
    """Where the plugin is on and `distill:` is not there, though it was meant: it is empty, a key
    comes near it, or a dataset is of our types."""
    if "distill" in cfg:
        yield Finding(
            "distill",
            "`distill:` is empty.",
            "It is a mapping.",
            "Write `distill: {}` for the defaults, or remove the key and the plugin.",
        )
        return
    near = get_close_matches("distill", [str(key).lower() for key in cfg], n=1, cutoff=0.7)
    if near:
        key = next(key for key in cfg if str(key).lower() == near[0])
        yield Finding(
            key,
            f"`{key}:` is not a key, and nothing would be distilled;",
            "did you mean `distill:`?",
            "Rename it.",
        )
    for dataset in [*(cfg.get("datasets") or []), *(cfg.get("test_datasets") or [])]:
        if is_ours(dataset):
            yield Finding(
                "datasets[].type",
                f"`datasets[].type: {dataset['type']}` needs a `distill:` block, and this config "
                "has none.",
                "",
                "Add one; `distill: {}` takes the defaults.",
            )


def other_plugins(cfg: Any, own: type) -> Iterator[Finding]:
    """Every plugin, whatever its place in the list, that brings a trainer or a collator: Axolotl
    takes the first it is given and says nothing of the others."""
    before = True
    for name, plugin in PluginManager.get_instance().plugins.items():
        if isinstance(plugin, own):
            before = False
            continue
        trainer = plugin.get_trainer_cls(cfg)
        collator = plugin.get_collator_cls_and_kwargs(cfg)
        brought = trainer or (collator and collator[0])
        if brought:
            yield Finding(
                "plugins",
                f"`plugins: {name}` brings {brought.__name__}, and `distill:` another:",
                "only one of the two can train.",
                "Remove the plugin, or the `distill:` block.",
            )
        elif collator is not None and before:
            yield Finding(
                "plugins",
                f"`plugins: {name}` answers for the collator without giving one:",
                "it must come after axolotl_distill.",
                "Change their order, or remove it.",
            )


def config_findings(cfg: Any, args: DistillArgs) -> Iterator[Finding]:
    """What the YAML combines with `distill:` and cannot go with it. Works before Axolotl has
    validated the config, and after."""
    for key, why in ANOTHER_LOSS.items():
        if cfg.get(key):
            yield Finding(key, f"`{key}` cannot be combined with `distill:`:", f"{why}.", REMOVE)
    for key, instead in NOT_SUPPORTED.items():
        if cfg.get(key):
            yield Finding(key, f"`{key}` cannot be combined with `distill:`;", "", f"{instead}.")
    for key in NO_EFFECT:
        if cfg.get(key):
            yield Finding(
                key,
                f"`{key}` has no effect:",
                "the loss, cross-entropy and all, is axolotl-distill's own.",
                "Remove the key.",
                error=None,
            )
    yield from parallelism(cfg)
    yield from live_findings(cfg, args)
    yield from told_findings(cfg, args)
    yield from cross_findings(cfg, args)
    packs = cfg.get("sample_packing")
    if cfg.get("streaming") and packs and len(cfg.get("datasets") or []) > 1:
        yield Finding(
            "streaming",
            "`streaming: true` with `sample_packing: true` reads the first entry of `datasets` "
            f"alone, and there are {len(cfg['datasets'])}.",
            "",
            "Leave one of the two out.",
        )
    if packs and not any(cfg.get(key) for key in ATTENTION_KEYS):
        yield Finding(
            "sample_packing",
            "`sample_packing: true` without `attn_implementation` lets packed documents attend to "
            "each other,",
            "and the student would see text its teacher did not.",
            "Set `attn_implementation: flash_attention_2` on a GPU, or `sdpa`.",
        )
    datasets = [*(cfg.get("datasets") or []), *(cfg.get("test_datasets") or [])]
    if args.cache and not any(map(_lies_elsewhere, datasets)):
        yield Finding(
            "distill.cache",
            "`distill.cache` is for stores at an address, and no entry of `datasets` is one.",
            "",
            "Remove it, or set `path: s3://…` (gs://, hf://, …) of a store.",
        )
    if args.cache and args.cache.shuffle == "shards":
        for key in OTHER_ORDERS:
            if cfg.get(key):
                yield Finding(
                    key,
                    f"`{key}` cannot be combined with `distill.cache.shuffle: shards`:",
                    "each says in which order rows come.",
                    "Leave one of the two out.",
                )
    if args.capture:
        yield from _capture_findings(args, args.capture)


def _lies_elsewhere(dataset: Any) -> bool:
    path = str(dataset.get("path"))
    return is_store(dataset) and (is_address(path) or is_mirror(Path(path)))


def _capture_findings(args: DistillArgs, capture: CaptureArgs) -> Iterator[Finding]:
    """A store that this very config would capture must be one that it can train on."""
    payload = distribution_of(capture)
    served = payload.serves(args.support or payload.supports[0], capture.temperatures)
    if served is not None and args.temperature not in served:
        yield Finding(
            "distill.temperature",
            f"`distill.temperature: {args.temperature:g}` is not what "
            f"`distill.capture.{payload.temperature_key}` provides for ({served}):",
            "the teacher at another temperature cannot be had from the store.",
            "Make them agree before capturing.",
        )


def verify_findings(config: str | Path, store: TeacherStore) -> list[Finding]:
    """All that training would refuse of a YAML and this store, and what it would only say.

    Where Axolotl would not even take the YAML up, tokenizer and student stay unseen.
    """
    from axolotl_distill.host.plugin import DistillPlugin

    values = read_yaml(config)
    args = parse_distill(values.get("distill"), values.get("datasets"))
    found = [*config_findings(DictDefault(values), args)]
    if any(finding.error is not None for finding in found):
        return [*found, *loss_findings(store, args)]
    cfg, args = load_config(config)
    return [*found, *other_plugins(cfg, DistillPlugin), *store_findings(cfg, args, store)]
