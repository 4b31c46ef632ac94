"""AxolotlTrainer with the distillation loss: weighted by tokens, measured, evaluated."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from axolotl.core.trainers.base import AxolotlTrainer
from axolotl.utils.logging import get_logger
from transformers import Trainer

from axolotl_distill.errors import ConfigError
from axolotl_distill.host.ahead import look_ahead
from axolotl_distill.host.average import load_average, save_average
from axolotl_distill.host.compat import local_processes, tensor_parallel_ranks
from axolotl_distill.host.guard import StepGuard
from axolotl_distill.host.hidden import give_own_rate, load_projections, save_projections
from axolotl_distill.host.shard_order import shard_order
from axolotl_distill.host.supervision import check_supervision
from axolotl_distill.host.tensor_parallel import check_same_batch, save_in_parts
from axolotl_distill.objectives.metrics import MetricSums
from axolotl_distill.rollout.evaluate import OwnText
from axolotl_distill.rollout.step import OnPolicy, is_of_own_text
from axolotl_distill.signal.batch import (
    CHOICES,
    CONTEXTS,
    IGNORE,
    LOSS_WEIGHTS,
    OTHER_IDS,
    OTHER_LABELS,
    POINTERS,
    TARGETS,
    WEIGHTS,
)
from axolotl_distill.teachers.average import Average

LOG = get_logger(__name__)

# A mixin: at run time its base is the Trainer class that it is put before.
if TYPE_CHECKING:
    Base = Trainer
else:
    Base = object


class DistillMixin(Base):
    """Put before a Trainer class whose model went through `attach_distill_forward`.

    The loss of an optimizer step is a sum over supervised tokens divided by their number in the
    whole step, over micro-batches and ranks; with weights, the weighted sum by the weights' sum.
    The Trainer counts (`num_items_in_batch`) for models that declare they use the count, which
    the patched forward does.
    """

    _signature_columns: Any
    projection_rate: float | None = None
    """Of the projections of hidden states; None: the run's own"""
    shard_window: int | None = None
    """Shards at a time, where `distill.cache.shuffle: shards` asks for their order"""
    _create_multipack_sampler: Any
    average: Average | None = None
    """The teacher's weights, where `distill.teacher.ema` asks for them"""
    on_policy: OnPolicy | None = None
    """Writes a step's text, where `distill.on_policy` asks for it"""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = True
        self._distill_sums = {True: MetricSums(), False: MetricSums()}
        self._guard = StepGuard(self.accelerator, self.processing_class)
        self.add_callback(self._guard)
        check_supervision(self.named_datasets(), self.processing_class)
        LOG.info(
            f"axolotl-distill: {self.accelerator.num_processes} process(es), "
            f"{self.accelerator.distributed_type}; the loss is averaged over the supervised "
            "tokens of each optimizer step"
        )

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        is_new = self.optimizer is None
        optimizer = super().create_optimizer(*args, **kwargs)
        if is_new:
            give_own_rate(optimizer, self.model, self.projection_rate)
        return optimizer

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        if tensor_parallel_ranks(self.accelerator) > 1:
            save_in_parts(self, super().save_model, output_dir, _internal_call)
        else:
            super().save_model(output_dir, _internal_call)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        super()._save(output_dir, state_dict=state_dict)
        save_projections(self.model, str(output_dir or self.args.output_dir))
        save_average(self.average, str(output_dir or self.args.output_dir))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        load_projections(self.model, resume_from_checkpoint)
        load_average(self.average, resume_from_checkpoint)

    def named_datasets(self) -> dict[str, Any]:
        """The datasets by what a user calls them."""
        evaluated = self.eval_dataset
        if not isinstance(evaluated, dict):
            return {"training set": self.train_dataset, "evaluation set": evaluated}
        named = {f"evaluation set {name}": dataset for name, dataset in evaluated.items()}
        return {"training set": self.train_dataset, **named}

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        columns = (POINTERS, LOSS_WEIGHTS, CHOICES, CONTEXTS, OTHER_IDS, OTHER_LABELS)
        ours = [column.name for column in columns]
        self._signature_columns = list(dict.fromkeys([*self._signature_columns, *ours]))

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> Any:
        """The micro-batches of one optimizer step, and the weight of their tokens."""
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self.on_policy is None or not batches:
            return batches, items
        batches = self.on_policy.replace(batches, self.state.global_step + 1)
        return batches, self._get_num_items_in_batch(batches, device)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """Axolotl's, or where `distill.cache.shuffle` asks for it, rows in the order of shards;
        packed by Axolotl's packing, out of the rows of a window at a time."""
        if self.shard_window is None:
            return super()._get_train_sampler(train_dataset)
        dataset = self.train_dataset if train_dataset is None else train_dataset
        args: Any = self.args
        seed = args.seed if args.data_seed is None else args.data_seed
        stores = getattr(self.data_collator, "stores", {})
        order = shard_order(dataset, stores, self.shard_window, seed)
        if not args.sample_packing or args.pretraining:
            return order
        group = args.sample_packing_group_size
        args.sample_packing_group_size = min(group, order.window_rows)
        try:
            return order.packed_by(self._create_multipack_sampler(order, dataset))
        finally:
            args.sample_packing_group_size = group

    def get_train_dataloader(self) -> Any:
        loader = super().get_train_dataloader()
        stores = getattr(self.data_collator, "stores", {})
        look_ahead(loader, self.train_dataset, stores, max(1, local_processes()))
        return loader

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: Any) -> Any:
        """The supervised tokens of the step, or the sum of their weights where a batch carries
        them (then every batch does, on every rank: the collator sees to that)."""
        if not batch_samples:
            return None
        counts = [
            batch[WEIGHTS.name].sum()
            if WEIGHTS.name in batch
            else (batch[TARGETS.name] != IGNORE).sum()
            for batch in batch_samples
        ]
        total = sum(counts).to(device)
        if tensor_parallel_ranks(self.accelerator) > 1:
            # All processes hold one student, and have the same batch.
            check_same_batch(self.accelerator, total, batch_samples)
        elif self.args.average_tokens_across_devices and self.args.world_size > 1:
            total = self.accelerator.gather(total).sum()
        # In mixed precision FSDP2 makes bf16 of what is handed to a model, but of integers.
        return total.item() if total.is_floating_point() else total

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        loss, outputs = super().compute_loss(
            model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch
        )
        if not (isinstance(outputs, Mapping) and "metrics" in outputs):
            raise ConfigError(
                f"The student's forward gave a {type(outputs).__name__} without the distillation "
                "loss: something patched it after axolotl-distill had. Remove that plugin, or the "
                "`distill:` block."
            )
        self._distill_sums[model.training].add(outputs["metrics"])
        if model.training:
            if self.on_policy is not None:
                self.on_policy.saw(outputs["metrics"])
            step = self.state.global_step + 1
            self._guard.before_backward(step, inputs, loss, num_items_in_batch, self.model)
        return (loss, outputs) if return_outputs else loss

    def training_step(
        self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> Any:
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._guard.saw(inputs, loss, num_items_in_batch)
        return loss

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        # DeepSpeed tells of its last step, which is an earlier one where it took none.
        self._guard.gradient_norm = 0.0 if self._guard.steps_not else norm
        return self._guard.gradient_norm

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            means = self._distill_sums[True].means(self.accelerator)
            means.pop("loss", None)
            logs = {**logs, **{f"distill/{name}": value for name, value in means.items()}}
            if self.on_policy is not None:
                logs |= self.on_policy.logs(self.accelerator)
                if table := self.on_policy.table():
                    LOG.info(table)
        super().log(logs, start_time)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """As the Trainer's, with the loss and the metrics averaged over tokens, not batches."""
        self._distill_sums[False] = MetricSums()
        output: Any = super().evaluation_loop(*args, **kwargs)
        prefix = kwargs.get("metric_key_prefix", "eval")
        means = self._distill_sums[False].means(self.accelerator)
        if "loss" in means:
            output.metrics[f"{prefix}_loss"] = means.pop("loss")
        elif output.metrics.pop(f"{prefix}_loss", None) is not None:
            LOG.warning(
                "axolotl-distill: no token of the evaluation set is supervised, so there is no "
                f"`{prefix}_loss`. Check its masks and `eval_sequence_len`."
            )
        output.metrics.update({f"{prefix}_distill/{name}": means[name] for name in means})
        if self.on_policy is not None and self.on_policy.evaluation is not None:
            loader = args[0] if args else kwargs["dataloader"]
            own = self._of_own_text(loader, self.on_policy.evaluation)
            output.metrics.update({f"{prefix}_rollout_{name}": own[name] for name in own})
        return output

    def _of_own_text(self, loader: Any, evaluation: OwnText) -> dict[str, float]:
        """Means over what the student writes for the prompts of an evaluation set."""
        sums = self._distill_sums[False] = MetricSums()
        for batch in evaluation.batches(loader):
            with torch.no_grad():
                self.compute_loss(self.model, self._prepare_inputs(batch))
        sizes = MetricSums()
        sizes.add(evaluation.sizes(self.accelerator.device))
        means = {**sums.means(self.accelerator), **sizes.means(self.accelerator)}
        return {
            name: mean
            for name, mean in means.items()
            if is_of_own_text(name) or name in ("length", "truncated")
        }


class PerplexityOfCE(Trainer):
    """Makes `ppl` the perplexity of the cross-entropy.

    AxolotlTrainer logs exp(loss), which means nothing for a mixture of divergences. It does so
    in `log` on its way up, so this class stands above it in the method resolution order. Without
    a supervised token there is none.
    """

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        for key, ce in (("ppl", "distill/ce"), ("eval_ppl", "eval_distill/ce")):
            if key in logs:
                del logs[key]
                if ce in logs:
                    logs[key] = math.exp(min(logs[ce], 700.0))
        super().log(logs, start_time)


class AxolotlDistillTrainer(DistillMixin, AxolotlTrainer, PerplexityOfCE):
    """The trainer that the plugin gives Axolotl."""
