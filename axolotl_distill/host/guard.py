"""Looks at every optimizer step before it is taken: a step of nothing changes nothing, and one
that is not finite ends the run while the weights are still good."""

from math import isfinite
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from axolotl.utils.logging import get_logger
from torch import Tensor, nn
from transformers import TrainerCallback

from axolotl_distill.errors import NotFiniteError
from axolotl_distill.host.supervision import describe_rows

LOG = get_logger(__name__)
NAMED_ROWS, NAMED_PARAMETERS = 8, 4

Batch = dict[str, Any]


class StepGuard(TrainerCallback):
    """Judges a step by its loss, the norm of its gradient and the number of its tokens.

    * Without a supervised token on any rank (or with weights that sum to 0) the step's gradients
      are taken away, so that the optimizer leaves the parameters as they are: a gradient of zero
      would still decay weights and carry momentum on. Said once.
    * NotFiniteError where a micro-batch's loss or the step's gradient is NaN or infinite, before
      the step is taken. Under a GradScaler (fp16) an infinite gradient is normal: the scaler skips
      the step and scales less, until there is nothing left to take back.

    The device is waited for once a step; under DeepSpeed, which steps at the end of the last
    backward and asks nobody, before every backward, and a gradient that is not finite though its
    loss is, is found only afterwards.
    """

    def __init__(self, accelerator: Accelerator, tokenizer: Any):
        self.accelerator = accelerator
        self.tokenizer = tokenizer
        self.gradient_norm: Any = None
        self.steps_not = False
        """Whether DeepSpeed takes no step for want of tokens."""
        self._micro_batches: list[tuple[Batch, Tensor]] = []
        self._num_items: Any = None
        self._said = False

    def before_backward(
        self, step: int, inputs: Batch, loss: Tensor, num_items: Any, model: Any
    ) -> None:
        """What `on_pre_optimizer_step` would find too late: nothing but for DeepSpeed."""
        if self.accelerator.distributed_type != DistributedType.DEEPSPEED:
            return
        items, value = _to_host([num_items, loss.detach()])
        self.steps_not = items == 0
        if not isfinite(value):
            raise NotFiniteError(
                self._message(step, "the loss of a micro-batch is not finite", [inputs], model)
            )
        if self.steps_not:
            # Where no backward is the step's last there is no step; its zeros join the next one's.
            self.accelerator.gradient_state._set_sync_gradients(False)

    def saw(self, inputs: Batch, loss: Tensor, num_items: Any) -> None:
        """A micro-batch of the step, its loss, and the weight of the whole step's tokens."""
        self._micro_batches.append((inputs, loss))
        self._num_items = num_items

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **passed: Any) -> None:
        model, optimizer = passed["model"], passed["optimizer"]
        step, seen, self._micro_batches = state.global_step + 1, self._micro_batches, []
        if not seen:
            return
        norm, num_items, *losses = _to_host(
            [self.gradient_norm, self._num_items, *(loss for _, loss in seen)]
        )
        bad = [batch for (batch, _), loss in zip(seen, losses, strict=True) if not isfinite(loss)]
        if bad:
            what = f"the loss of {len(bad)} of its {len(seen)} micro-batches is not finite"
            raise NotFiniteError(self._message(step, what, bad, model))
        if not isfinite(norm) and not self._scaler_will_skip():
            what = f"its loss is finite, but the norm of its gradient is {norm}"
            if self.accelerator.distributed_type == DistributedType.DEEPSPEED:
                what += ", and DeepSpeed has taken the step"
            raise NotFiniteError(self._message(step, what, [batch for batch, _ in seen], model))
        if num_items == 0:
            self._leave_as_it_is(step, optimizer)

    def _scaler_will_skip(self) -> bool:
        scaler = self.accelerator.scaler
        return scaler is not None and scaler.is_enabled() and scaler.get_scale() > 1

    def _leave_as_it_is(self, step: int, optimizer: Any) -> None:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None
        if not self._said:
            self._said = True
            LOG.warning(
                f"axolotl-distill: step {step} has no supervised token, so it changes nothing and "
                "its loss is logged as 0; further steps like it are not named. Take such rows "
                "out, raise `sequence_len`, use `sample_packing` or a larger batch."
            )

    def _message(self, step: int, what: str, batches: list[Batch], model: nn.Module) -> str:
        rows = [text for batch in batches for text in describe_rows(batch, self.tokenizer)]
        if len(rows) > NAMED_ROWS:
            rows = [*rows[:NAMED_ROWS], f"and {len(rows) - NAMED_ROWS} more"]
        weights = _not_finite_weights(model)
        where = f"Not finite before this step: {', '.join(weights)}. " if weights else ""
        me, all_of_us = self.accelerator.process_index, self.accelerator.num_processes
        return (
            f"Step {step} (process {me} of {all_of_us}): {what}. The run ends before anything "
            "is saved; the checkpoints of earlier steps are good. Rows of the step, "
            "around the first token that each supervises:\n  "
            + "\n  ".join(rows)
            + f"\n{where}Look at these rows; lower `learning_rate` or `max_grad_norm`; set `bf16` "
            "in place of `fp16`; hold the store against its hashes with `axolotl distill verify`."
        )


def _to_host(values: list[Any]) -> list[float]:
    """Numbers and scalars on a device as floats, in one transfer; a missing one as 1."""
    device = values[-1].device
    return torch.stack(
        [_scalar(1.0 if value is None else value, device) for value in values]
    ).tolist()


def _scalar(value: Any, device: torch.device) -> Tensor:
    """Of a number, a scalar, FSDP2's sharded scalar, or a count repeated for several GPUs."""
    if hasattr(value, "full_tensor"):
        value = value.full_tensor()
    return torch.as_tensor(value, dtype=torch.float32, device=device).detach().max()


def _not_finite_weights(model: nn.Module) -> list[str]:
    """Names of the first parameters that are not finite on this process."""
    found = []
    for name, parameter in model.named_parameters():
        value = getattr(parameter.data, "_local_tensor", parameter.data)
        if value.is_floating_point() and not value.isfinite().all():
            found.append(name)
        if len(found) == NAMED_PARAMETERS:
            break
    return found
