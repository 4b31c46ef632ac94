"""Heads as users have them: adapters, quantised weights, shards, odd inputs."""

import pytest
import torch
import torch.multiprocessing
from distill_kernels import (
    DenseLogits,
    DistillSpec,
    LogitTransform,
    LowRank,
    SparseTeacher,
    TiledWeight,
    chunk,
    distill_loss,
    fused_linear_distill,
    matmul,
    sweep,
)
from support.kernel_cases import make_case, oracle, relative_error
from torch.nn import functional as F

BACKENDS = ["torch", "triton"]


@pytest.mark.parametrize("backend", ["reference", *BACKENDS])
def test_low_rank_term_is_a_merged_head(backend):
    """Gradients of A and B and of the hidden state are those of W + s B A."""
    case = make_case(rows=17, seed=1, transform=LogitTransform(0.5, 8.0), temperature=2.0)
    spec = DistillSpec(temperature=2.0, alpha=0.6)
    g = torch.Generator().manual_seed(5)
    rank, scaling = 3, 0.7
    down, up = torch.randn(rank, 16, generator=g), torch.randn(101, rank, generator=g)

    merged = make_case(rows=17, seed=1, transform=case.transform, temperature=2.0)
    merged.weight = case.weight.double() + scaling * up.double() @ down.double()
    loss, (grad_hidden, grad_weight, _) = oracle(merged, spec)

    hidden = case.hidden.clone().requires_grad_()
    down.requires_grad_()
    up.requires_grad_()
    out = fused_linear_distill(
        hidden,
        case.weight,
        case.teacher,
        case.labels,
        spec=spec,
        low_rank=LowRank(scaling * hidden @ down.t(), up),
        logit_transform=case.transform,
        backend=backend,
    )
    out.loss.backward()
    assert relative_error(out.loss.detach(), loss) < 5e-6
    assert relative_error(hidden.grad, grad_hidden) < 5e-6
    assert relative_error(up.grad, scaling * grad_weight @ down.detach().double().t()) < 5e-6
    assert relative_error(down.grad, scaling * up.detach().double().t() @ grad_weight) < 5e-6


@pytest.mark.parametrize("backend", BACKENDS)
def test_tiled_weight_is_made_piece_by_piece(backend, monkeypatch):
    monkeypatch.setattr(matmul, "TILE", 32)
    case = make_case(seed=2)
    scale = case.weight.abs().amax(1, keepdim=True) / 127
    stored = (case.weight / scale).round().to(torch.int8)
    case.weight = stored * scale
    largest = 0

    def tile(rows: slice) -> torch.Tensor:
        nonlocal largest
        largest = max(largest, rows.stop - rows.start)
        return stored[rows] * scale[rows]

    weight = TiledWeight((101, 16), torch.float32, tile)
    loss, (expected, _, _) = oracle(case, DistillSpec())
    hidden = case.hidden.clone().requires_grad_()
    out = fused_linear_distill(
        hidden, weight, case.teacher, case.labels, spec=DistillSpec(), backend=backend
    )
    out.loss.backward()
    assert relative_error(out.loss.detach(), loss) < 3e-6
    assert relative_error(hidden.grad, expected) < 3e-6
    assert largest == 32


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_tiled_weight_without_rows(backend, reduction):
    teacher = SparseTeacher(torch.zeros(0, 3, dtype=torch.int64), torch.zeros(0, 3), torch.zeros(0))
    hidden = torch.randn(0, 16, requires_grad=True)
    out = fused_linear_distill(
        hidden,
        TiledWeight((101, 16), torch.float32, lambda rows: torch.ones(101, 16)[rows]),
        teacher,
        torch.zeros(0, dtype=torch.int64),
        spec=DistillSpec(reduction=reduction),
        backend=backend,
    )
    out.loss.sum().backward()
    assert out.loss.sum().item() == 0.0 and hidden.grad.shape == (0, 16)


@pytest.mark.parametrize("backend", ["reference", *BACKENDS])
@pytest.mark.parametrize("train_head", [True, False])
def test_a_loss_for_every_row(backend, train_head, monkeypatch):
    """reduction="none": every row with its own factor in the backward pass."""
    monkeypatch.setitem(sweep.CHUNK_BYTES, "cpu", 4 * 101 * 4)
    case = make_case(rows=70, seed=3, bias=True, temperature=2.0)
    spec = DistillSpec(reduction="none", temperature=2.0, alpha=0.7)
    factors = torch.randn(70, generator=torch.Generator().manual_seed(1))
    hidden, weight, bias = case.leaves(torch.float32)
    if not train_head:
        weight = weight.detach()
    out = fused_linear_distill(
        hidden, weight, case.teacher, case.labels, spec=spec, bias=bias, backend=backend
    )
    assert out.loss.shape == (70,)
    assert out.loss[case.labels == -100].abs().max() == 0
    (out.loss * factors).sum().backward()
    exact_hidden, exact_weight, exact_bias = case.leaves(torch.float64)
    logits = exact_hidden @ exact_weight.t() + exact_bias
    exact = distill_loss(logits, case.teacher, case.labels, spec=spec)
    (exact.loss * factors).sum().backward()
    assert relative_error(out.loss.detach(), exact.loss.detach()) < 3e-6
    assert relative_error(hidden.grad, exact_hidden.grad) < 5e-6
    assert relative_error(bias.grad, exact_bias.grad) < 5e-6
    if train_head:
        assert relative_error(weight.grad, exact_weight.grad) < 5e-6


@pytest.mark.parametrize("backend", ["reference", *BACKENDS])
def test_label_smoothing_is_that_of_torch(backend):
    case = make_case(seed=4)
    hidden, weight, _ = case.leaves(torch.float32)
    spec = DistillSpec(alpha=0.0, label_smoothing=0.2)
    out = fused_linear_distill(
        hidden, weight, case.teacher, case.labels, spec=spec, backend=backend
    )
    out.loss.backward()
    theirs, their_weight, _ = case.leaves(torch.float32)
    expected = F.cross_entropy(theirs @ their_weight.t(), case.labels, label_smoothing=0.2)
    expected.backward()
    assert out.loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert relative_error(hidden.grad, theirs.grad) < 3e-6
    assert relative_error(weight.grad, their_weight.grad) < 3e-6


@pytest.mark.parametrize("backend", ["reference", *BACKENDS])
def test_entropy_is_the_students(backend):
    case = make_case(seed=6, temperature=2.0)
    spec = DistillSpec(temperature=2.0)
    out = fused_linear_distill(
        case.hidden, case.weight, case.teacher, case.labels, spec=spec, backend=backend
    )
    q = (case.hidden.double() @ case.weight.double().t() / 2.0).log_softmax(-1)
    entropy = -(q.exp() * q).sum(-1)[case.labels != -100].sum()
    assert out.entropy.item() == pytest.approx(entropy.item(), rel=1e-5)


@pytest.mark.parametrize("backend", ["reference", *BACKENDS])
@pytest.mark.parametrize(
    "ids, label, message",
    [
        ([4, 101], 0, "outside the student's vocabulary of 101"),
        ([4, 4], 0, "twice"),
        ([4, 5], 101, "labels holds"),
        ([4, 5], -1, "labels holds"),
    ],
)
def test_wrong_ids_are_refused(backend, ids, label, message):
    teacher = SparseTeacher(torch.tensor([ids]), torch.tensor([[-1.0, -1.5]]), torch.tensor([-1.0]))
    with pytest.raises(ValueError, match=message):
        fused_linear_distill(
            torch.randn(1, 8),
            torch.randn(101, 8),
            teacher,
            torch.tensor([label]),
            spec=DistillSpec(),
            backend=backend,
        )


@pytest.mark.parametrize("backend", ["reference", *BACKENDS])
@pytest.mark.parametrize(
    "logprobs, tail, support, message",
    [
        ([3.0, -1.0], -1.0, "tail_bucket", "above 0"),
        ([torch.nan, -1.0], -1.0, "renormalize", "NaN"),
        ([-0.5, -1.0], torch.nan, "tail_bucket", "tail_logprob"),
        ([-0.5, -1.0], 0.4, "tail_bucket", "tail_logprob"),
        ([-torch.inf, -torch.inf], 0.0, "renormalize", "all -inf"),
    ],
)
def test_what_is_no_logprob_is_refused(backend, logprobs, tail, support, message):
    teacher = SparseTeacher(torch.tensor([[4, 5]]), torch.tensor([logprobs]), torch.tensor([tail]))
    with pytest.raises(ValueError, match=message):
        fused_linear_distill(
            torch.randn(1, 8),
            torch.randn(101, 8),
            teacher,
            torch.tensor([3]),
            spec=DistillSpec(support=support),
            backend=backend,
        )


@pytest.mark.parametrize("backend", ["reference", *BACKENDS])
@pytest.mark.parametrize("dense", [False, True])
def test_nan_stays_nan(backend, dense):
    """A student or a teacher that has come apart shows in the loss."""
    case = make_case(ragged=False)
    if dense:
        case.teacher = DenseLogits(torch.randn(13, 101))
    for broken in ("hidden", *["teacher"] * dense):
        values = case.hidden.clone(), case.teacher
        if broken == "hidden":
            values[0][0, 0] = torch.nan
        else:
            values[1].logits[0, 3] = torch.nan
        out = fused_linear_distill(
            values[0], case.weight, values[1], case.labels, spec=DistillSpec(), backend=backend
        )
        assert out.loss.isnan()


@pytest.mark.parametrize("name", ["labels", "weight", "bias", "weights", "low_rank", "teacher"])
def test_tensors_on_other_devices_are_named(name):
    case = make_case(bias=True, weighted=True)
    args = dict(weight=case.weight, labels=case.labels, bias=case.bias, weights=case.weights)
    args |= dict(teacher=DenseLogits(torch.randn(13, 101)), low_rank=None)
    if name == "teacher":
        args[name] = DenseLogits(torch.randn(13, 101, device="meta"))
    elif name == "low_rank":
        args[name] = LowRank(torch.randn(13, 2, device="meta"), torch.randn(101, 2))
    else:
        args[name] = args[name].to("meta")
    with pytest.raises(ValueError, match=f"{name}.* is on meta, hidden on cpu"):
        fused_linear_distill(case.hidden, spec=DistillSpec(), **args)


def test_other_types_are_refused():
    case = make_case()
    args = (case.teacher, case.labels)
    wide = fused_linear_distill(
        case.hidden.double(), case.weight.double(), *args, spec=DistillSpec(), backend="reference"
    )
    assert wide.loss.dtype == torch.float64
    with pytest.raises(ValueError, match="float64: expected float32, bfloat16 or float16"):
        fused_linear_distill(
            case.hidden.double(), case.weight.double(), *args, spec=DistillSpec(), backend="torch"
        )


@pytest.mark.parametrize("wrong", [{"scale": 0.0}, {"scale": torch.nan}, {"softcap": torch.inf}])
def test_wrong_transform(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        LogitTransform(**wrong)


@pytest.mark.parametrize("backend", BACKENDS)
def test_entries_in_any_order(backend):
    case = make_case(seed=7, ragged=False)
    shuffled = torch.randperm(7, generator=torch.Generator().manual_seed(0))
    first = fused_linear_distill(
        case.hidden, case.weight, case.teacher, case.labels, spec=DistillSpec(), backend=backend
    )
    case.teacher = SparseTeacher(
        case.teacher.ids[:, shuffled], case.teacher.logprobs[:, shuffled], case.teacher.tail_logprob
    )
    second = fused_linear_distill(
        case.hidden, case.weight, case.teacher, case.labels, spec=DistillSpec(), backend=backend
    )
    assert second.loss.item() == pytest.approx(first.loss.item(), rel=1e-6)
    assert second.top1_agreement.item() == first.top1_agreement.item()


@pytest.mark.slow
def test_more_logits_than_an_int32_counts():
    rows, vocab = 16_384, 151_936
    assert rows * vocab > 2**31
    hidden, weight = torch.randn(rows, 2), torch.randn(vocab, 2)
    log_half = torch.full((rows,), 0.5).log()
    teacher = SparseTeacher(torch.randint(0, vocab, (rows, 1)), log_half[:, None], log_half)
    labels = torch.randint(0, vocab, (rows,))
    spec = DistillSpec(alpha=0.5, reduction="none")
    hidden.requires_grad_()
    out = fused_linear_distill(hidden, weight, teacher, labels, spec=spec, backend="torch")
    out.loss.sum().backward()
    last = slice(rows - 50, rows)
    exact = hidden.detach()[last].double().requires_grad_()
    logits = exact @ weight.double().t()
    expected = distill_loss(logits, teacher[last], labels[last], spec=spec).loss
    expected.sum().backward()
    assert relative_error(out.loss.detach()[last], expected.detach()) < 1e-5
    # A sum over 151,936 slopes of either sign in fp32.
    assert relative_error(hidden.grad[last], exact.grad) < 1e-3


@pytest.mark.parametrize("vocab", [1, 101, 32_000, 32_001, 49_155, 50_257, 151_936])
def test_rows_of_a_buffer_are_aligned(vocab):
    """Also of a vocabulary that is no multiple of 16, for wide reads and writes and for cuBLAS."""
    logits = chunk.buffer(3, vocab, torch.device("cpu"))
    narrow = chunk.narrow_view(logits, torch.bfloat16)
    assert logits.shape == narrow.shape == (3, vocab)
    for x in (logits, narrow):
        assert x.stride(1) == 1 and x.stride(0) % 64 == 0
    assert logits.stride(0) < vocab + 64 and narrow.data_ptr() == logits.data_ptr()


@pytest.mark.needs_triton
@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("vocab", [101, 5001])
def test_a_narrow_gradient_is_written_over_the_logits(dense, vocab):
    """As on CUDA with low-precision inputs. fp16, for the interpreter truncates to bf16."""
    from distill_kernels.backends.triton_rows import rows

    case = make_case(vocab=vocab, temperature=2.0, seed=10)
    spec = DistillSpec(divergence="jsd", temperature=2.0, alpha=0.5, label_smoothing=0.1)
    logits = case.hidden @ case.weight.t()
    teacher = torch.randn(13, vocab)
    scale = torch.full((13,), 64.0)

    def padded(values):
        """In a buffer of the sweep; what lies between its rows is anything."""
        mine = chunk.buffer(*values.shape, values.device)
        mine.as_strided((13, mine.stride(0)), mine.stride()).fill_(torch.nan)
        return mine.copy_(values)

    bias = torch.randn(vocab)

    def run(dtype):
        mine = chunk.Chunk(
            logits_CV=padded(logits),
            bias_V=bias,
            transform=LogitTransform(0.5, 20.0),
            teacher=DenseLogits(padded(teacher)) if dense else case.teacher,
            labels_C=case.labels,
            spec=spec,
            scale_C=scale,
            grad_dtype=dtype,
        )
        _, grad = rows(mine)
        assert grad.dtype == dtype and grad.data_ptr() == mine.logits_CV.data_ptr()
        return grad

    wide = run(torch.float32)
    narrow = run(torch.float16)
    assert relative_error(narrow, wide) < 2 * relative_error(wide.half(), wide)
