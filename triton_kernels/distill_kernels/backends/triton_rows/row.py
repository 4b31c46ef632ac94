"""The two ends of a row, for both kernels: logits from products and back, and what is kept."""

import triton
import triton.language as tl


@triton.jit
def head_logits(
    raw,
    bias_ptr,
    v,
    width,
    scale,
    softcap,
    HAS_BIAS: tl.constexpr,
    SCALED: tl.constexpr,
    CAPPED: tl.constexpr,
):
    """The model's logits from the head's products, as LogitTransform has it."""
    z = raw
    if HAS_BIAS:
        z += tl.load(bias_ptr + v, mask=(v >= 0) & (v < width), other=0.0)
    if SCALED:
        z *= scale
    if CAPPED:
        x = z / softcap
        e = tl.exp(-2.0 * tl.abs(x))
        z = softcap * tl.where(x < 0, e - 1.0, 1.0 - e) / (1.0 + e)
    return z


@triton.jit
def read_label(
    label_ptr,
    row,
    z_ptr,
    bias_ptr,
    width,
    scale,
    softcap,
    HAS_BIAS: tl.constexpr,
    SCALED: tl.constexpr,
    CAPPED: tl.constexpr,
):
    """(the label, 0 where there is none; whether there is one; the model's logit there)."""
    label = tl.load(label_ptr + row)
    labelled = label >= 0
    label = tl.maximum(label, 0)
    raw = tl.load(z_ptr + label)
    logit = head_logits(raw, bias_ptr, label, width, scale, softcap, HAS_BIAS, SCALED, CAPPED)
    return label, labelled, logit


@triton.jit
def to_product(grad, z, scale, softcap, SCALED: tl.constexpr, CAPPED: tl.constexpr):
    """d loss / d logits brought back to the head's products; z as head_logits gave it."""
    if CAPPED:
        x = z / softcap
        grad *= 1.0 - x * x
    if SCALED:
        grad *= scale
    return grad


@triton.jit
def cross_entropy(lse, label_logit, total_logit, V, labelled, smoothing, SMOOTH: tl.constexpr):
    """(without label smoothing, with it), nats; total_logit is read when SMOOTH."""
    nll = tl.where(labelled, lse - label_logit, 0.0)
    ce = nll
    if SMOOTH:
        even = tl.where(labelled, lse - total_logit / V, 0.0)
        ce = (1.0 - smoothing) * nll + smoothing * even
    return nll, ce


@triton.jit
def store_values(
    out_ptr, num_rows, row, kd, nll, ce, agree, entropy, labelled, kd_weight, ce_weight, temperature
):
    """RowValues of a row, into out [5, C]; kd_weight is the slope's: the loss's is T times it."""
    # A part that counts for nothing adds nothing, even where it is infinite.
    loss = tl.where(ce_weight > 0, ce_weight * ce, 0.0)
    loss += tl.where(kd_weight > 0, kd_weight * temperature * kd, 0.0)
    tl.store(out_ptr + row, loss)
    tl.store(out_ptr + num_rows + row, kd)
    tl.store(out_ptr + 2 * num_rows + row, nll)
    tl.store(out_ptr + 3 * num_rows + row, tl.where(agree, 1.0, 0.0))
    tl.store(out_ptr + 4 * num_rows + row, tl.where(labelled, entropy, 0.0))
