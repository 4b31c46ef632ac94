"""`distill.on_policy.server`: what cannot go with it, found before a weight is read; its writer."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import openai
from accelerate.utils import broadcast_object_list
from axolotl.loaders import load_tokenizer
from axolotl.utils.logging import get_logger
from safetensors.torch import save_file
from transformers import TrainerCallback

from axolotl_distill.config.distill import DistillArgs
from axolotl_distill.config.on_policy import RolloutServerArgs
from axolotl_distill.errors import ConfigError, DistillError, ServerError
from axolotl_distill.host.findings import Finding
from axolotl_distill.host.live_checks import moved_base
from axolotl_distill.rollout.adapters import Adapters
from axolotl_distill.rollout.checkpoints import Checkpoints
from axolotl_distill.rollout.full_sync import FullSync
from axolotl_distill.rollout.held import WRITES
from axolotl_distill.rollout.served import ServedWriter
from axolotl_distill.rollout.sync import Sync
from axolotl_distill.rollout.versions import OURS, Versions
from axolotl_distill.rollout.vllm import VLLM
from axolotl_distill.teachers.temperature import PROSE
from axolotl_distill.teachers.tokenizer import check_reading, probe_texts

LOG = get_logger(__name__)
T = TypeVar("T")
KEY = "distill.on_policy.server"
NOT_TAKEN = {
    "peft_use_dora": "vLLM has no DoRA",
    "lora_modules_to_save": "vLLM takes no whole modules beside an adapter",
    "lora_target_parameters": "no adapter of parameters was tried with it",
    "peft_trainable_token_indices": "vLLM takes no single rows of the embeddings",
    "peft_layer_replication": "vLLM replicates no layers",
}
NOT_SENT = {
    "load_in_4bit": "all weights are sent, and these are not there as such",
    "load_in_8bit": "all weights are sent, and these are not there as such",
    "qat": "the server would compute with other weights than the trainer does",
    "fp8": "the server would compute in another precision than the trainer does",
    "resize_token_embeddings_to_32x": "the server has as many embeddings as `base_model`",
    "tokens": "the server has as many embeddings as `base_model`",
}
"""Of a student without an adapter."""
ENDS = ("lm_head", "embed_tokens", "wte", "embed_out")
"""vLLM leaves an adapter of theirs out of what it scores, or refuses it."""


def served_findings(cfg: Any, args: DistillArgs) -> Iterator[Finding]:
    """What the YAML says and a vLLM server could not be given. Works before Axolotl has validated
    the config, and after."""
    if args.on_policy is None or args.on_policy.server is None:
        return
    adapter = cfg.get("adapter")
    if adapter not in (None, "lora", "qlora"):
        yield Finding(
            "adapter",
            f"`adapter: {adapter}` cannot be combined with `{KEY}`:",
            "vLLM takes LoRA adapters, or all weights.",
            "Set `adapter: lora` or qlora, or remove the block: the student then writes itself.",
        )
    for key in ("fsdp_config", "fsdp", "deepspeed"):
        if cfg.get(key):
            yield Finding(
                key,
                f"`{key}` cannot be combined with `{KEY}`:",
                "weights that are sharded are not sent yet.",
                "Train with DDP or one process, or remove the block.",
            )
    for key, why in (NOT_TAKEN if adapter else NOT_SENT).items():
        if cfg.get(key):
            yield Finding(
                key, f"`{key}` cannot be combined with `{KEY}`:", f"{why}.", "Remove one of them."
            )
    if not adapter:
        return
    named = cfg.get("lora_target_modules") or []
    named = [named] if isinstance(named, str) else named
    if ends := [name for name in named if str(name).split(".")[-1] in ENDS]:
        yield _ends(ends)
    yield from moved_base(cfg, f"`{KEY}`: the server has the base model as it was published")


def _ends(names: list[str]) -> Finding:
    return Finding(
        "lora_target_modules",
        f"`lora_target_modules` has {', '.join(names)}, and vLLM takes no adapter of the "
        "embeddings or the head",
        f"whose scores could be held against the trainer's (`{KEY}`).",
        "Take them out; `lora_target_linear: true` has all others.",
    )


def check_rollout_server(cfg: Any, args: DistillArgs) -> None:
    """Asks the server before a weight is read whether it serves the student, reads text as its
    tokenizer does, has room for its rows, and takes an adapter of `lora_r` from the folder, or
    weights while it runs.

    Raises ConfigError, ServerError or TokenizerMismatchError.
    """
    given = args.on_policy.server if args.on_policy is not None else None
    if given is None:
        return
    base, context = served_base(given, str(cfg.base_model))
    if context is not None and context < cfg.sequence_len:
        raise ConfigError(
            f"`sequence_len: {cfg.sequence_len}`, and `{base}` of {given.base_url} (`{KEY}`) has a "
            f"context of {context}. Start it with `--max-model-len {cfg.sequence_len}`, or lower "
            "`sequence_len`."
        )
    if int(os.environ.get("RANK", "0")) != 0:
        return
    vllm = VLLM(given)
    try:
        tokenizer = load_tokenizer(cfg)
        for text in probe_texts(tokenizer):
            body = {"model": base, "prompt": text, "add_special_tokens": False}
            answer = vllm.run(vllm.client.post(f"{vllm.client.root}/tokenize", body))
            check_reading(base, text, answer.get("tokens") or [], tokenizer)
        if cfg.adapter:
            rank, alpha = int(cfg.lora_r), int(cfg.lora_alpha or 1)
            _empty_adapter(vllm, adapters_of(cfg, given), rank, alpha)
        else:
            _no_weights(vllm, checkpoints_of(cfg, given))
    finally:
        vllm.close()


def _empty_adapter(vllm: VLLM, adapters: Adapters, rank: int, alpha: int) -> None:
    """Endpoints, folder and rank are tried, in this order, with an adapter that has no weight: the
    server looks for those last."""
    name = adapters.name("empty")
    new = adapters.folder / f".{name}"
    try:
        new.mkdir(parents=True)
        about = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": alpha}
        (new / "adapter_config.json").write_text(json.dumps({**about, "target_modules": []}))
        save_file({}, new / "adapter_model.safetensors")
        path = adapters.keep(new, name)
    except OSError as error:
        raise _unwritable(adapters, error) from error
    try:
        vllm.load(name, path, empty=True)
        vllm.unload(name)
    finally:
        shutil.rmtree(new, ignore_errors=True)
        adapters.remove(name)


def _no_weights(vllm: VLLM, checkpoints: Checkpoints) -> None:
    """Folder and endpoints are tried, without a weight: a server that finds none where it looks for
    them is left with nothing."""
    try:
        checkpoints.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=checkpoints.folder):
            pass
    except OSError as error:
        raise _unwritable(checkpoints, error) from error
    vllm.forget()


def _unwritable(versions: Versions, error: OSError) -> ConfigError:
    return ConfigError(
        f"{versions.folder} cannot be written ({error}): it takes what the server is given. Name "
        f"another folder with `{KEY}.adapters`."
    )


def adapters_of(cfg: Any, given: RolloutServerArgs) -> Adapters:
    return Adapters(_folder(cfg, given, "rollout-adapters"), given.adapters_there)


def checkpoints_of(cfg: Any, given: RolloutServerArgs) -> Checkpoints:
    return Checkpoints(_folder(cfg, given, "rollout-weights"), given.adapters_there)


def _folder(cfg: Any, given: RolloutServerArgs, name: str) -> Path:
    return Path(given.adapters or Path(cfg.output_dir) / name)


def served_base(given: RolloutServerArgs, base_model: str) -> tuple[str, int | None]:
    """The name of the base model on the server, and its context in tokens where that is said.

    Raises ConfigError where that is not plain, ServerError where the server cannot be asked.
    """
    try:
        with openai.OpenAI(
            base_url=given.base_url,
            api_key=os.environ.get(given.api_key_env) or "none",
            max_retries=given.retries,
            timeout=given.timeout,
        ) as client:
            served = {
                model.id: getattr(model, "max_model_len", None)
                for model in client.models.list()
                if not getattr(model, "parent", None) and not model.id.startswith(OURS)
            }
    except (openai.OpenAIError, ValueError) as error:
        raise ServerError(
            f"{given.base_url}/models (`{KEY}`) does not say what is served: "
            f"{error.__cause__ or error}. Is the server up, and `base_url` right (it ends in /v1)?"
        ) from error
    name = given.model or (base_model if base_model in served else None)
    if name is None and len(served) == 1:
        name = next(iter(served))
    if name not in served:
        raise ConfigError(
            f"{given.base_url} serves {', '.join(served) or 'nothing'}, and the student's base "
            f"model is `{name or base_model}`. Set `{KEY}.model` to the name that it has there."
        )
    return name, served[name]


def check_adapter(model: Any) -> None:
    """Raises ConfigError for an adapter, as it stands, that vLLM would not take or apply."""
    config = model.peft_config[model.active_adapter]
    wrong = [
        f"{name}: {getattr(config, name)}"
        for name in ("use_dora", "lora_bias", "modules_to_save", "layer_replication")
        if getattr(config, name, None)
    ]
    if config.bias != "none":
        wrong.append(f"bias: {config.bias}")
    if wrong:
        raise ConfigError(
            f"The student's adapter has {', '.join(wrong)}, which vLLM does not take (`{KEY}`). "
            "Remove that from the config, or the block."
        )
    ends = {
        path.split(".")[-1]
        for path, module in model.named_modules()
        if hasattr(module, "lora_A")
        and (path.split(".")[-1] in ENDS or len(getattr(module, "lora_embedding_A", ())) > 0)
    }
    if ends:
        raise ConfigError(str(_ends(sorted(ends))))


class ServedRollouts(TrainerCallback):
    """The student's writer behind a server, and its end: the server forgets an adapter."""

    def __init__(self, cfg: Any, given: RolloutServerArgs, trainer: Any, as_reader: Any):
        self.accelerator = trainer.accelerator
        self.vllm = VLLM(given)
        if cfg.adapter:
            check_adapter(trainer.model)
        tokenizer = trainer.processing_class
        text = tokenizer(PROSE, add_special_tokens=False)["input_ids"]
        text = text[: max(2, cfg.sequence_len - WRITES)]
        self.sync: Sync | FullSync | None = None
        if self.accelerator.is_main_process:
            base, _ = served_base(given, str(cfg.base_model))
            about = (base, text, as_reader, LOG.info)
            if cfg.adapter:
                self.sync = Sync(trainer.model, self.vllm, adapters_of(cfg, given), *about)
            else:
                self.sync = FullSync(trainer.model, self.vllm, checkpoints_of(cfg, given), *about)

    def writer(self, args: Any, stop: tuple[int, ...], context: int, reads: Any) -> ServedWriter:
        shows = self.accelerator.is_main_process
        return ServedWriter(self.vllm, args, stop, context, reads, self._synced, shows)

    def _synced(self, step: int) -> tuple[str, Mapping[str, float]]:
        """Rank 0 gives the server the weights, and the others wait for it."""
        return on_first(self.accelerator, lambda: self.sync(step))  # type: ignore[misc]

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.sync is not None:
            try:
                self.sync.end()
            except ServerError as error:
                LOG.warning(f"axolotl-distill: the server keeps the last adapter: {error}")
        self.vllm.close()


def on_first(accelerator: Any, work: Callable[[], T]) -> T:
    """What `work` gives on the first process, on all of them; or what it raises there."""
    told: list[Any] = [None, None]
    if accelerator.is_main_process:
        try:
            told[0] = work()
        except Exception as error:
            if accelerator.num_processes == 1:
                raise
            said = error if isinstance(error, DistillError) else RuntimeError(repr(error))
            told[1] = (type(said), str(said))
    if accelerator.num_processes > 1:
        broadcast_object_list(told)
    if told[1] is not None:
        kind, text = told[1]
        raise kind(text)
    return told[0]
