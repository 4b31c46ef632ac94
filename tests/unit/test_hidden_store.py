"""Hidden states in a store: what rounding costs, in float64; what damage is seen; what people are
told. Kills, damage of every byte and stores of stores: the kinds `…+int8` of their own tests."""

import numpy as np
import pytest
import torch
from support import synthetic

from axolotl_distill.capture.hidden import hidden_columns
from axolotl_distill.commands.inspect import statistics
from axolotl_distill.errors import CaptureError, StoreCorruptError, StoreError
from axolotl_distill.store import StoreWriter, open_store, verify_store
from axolotl_distill.store.rearrange import merge

DTYPES = ("float16", "int8")


def decoded(columns):
    return (
        columns["hidden"].astype(np.float64) * columns["hidden_scale"].astype(np.float64)[..., None]
    )


def bound(x, dtype):
    """Of the error of each number, as the payload says, and what fp32 loses in 127ths."""
    largest = np.abs(x).max(-1, keepdims=True)
    if dtype == "int8":
        return largest / 254 * (1 + 2.0**-15)
    return np.abs(x) * 2.0**-11 + largest * 2.0**-39


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16, torch.float16])
def test_the_error_is_within_its_bound(dtype, given):
    generator = torch.Generator().manual_seed(0)
    sizes = 10.0 ** torch.arange(-6.0, 4.0)
    states = torch.randn(10, 3, 257, generator=generator) * sizes[:, None, None]
    # One channel far above the others, as models have them.
    states[:, 0, 7] *= 300
    states = states.to(given)
    columns = hidden_columns(states, dtype, 0)
    x = states.double().numpy()
    error = np.abs(decoded(columns) - x)
    assert (error <= bound(x, dtype)).all()
    # The bound is one that is reached: nothing is rounded twice, and no scale is too large.
    used = (error / np.maximum(bound(x, dtype), 1e-300)).max()
    assert used > 0.9 or (dtype, given) == ("float16", torch.bfloat16) or given == torch.float16
    if dtype == "float16" and given != torch.float32:
        assert (error[np.abs(x) > 1e-9 * np.abs(x).max(-1, keepdims=True)] == 0).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_fp16_could_not_hold_and_nothing_at_all(dtype):
    states = torch.zeros(4, 1, 3)
    states[1] = torch.tensor([3.0e5, -1.0, 0.0])
    states[2] = 1e-42
    states[3] = torch.tensor([-7e30, 7e30, 1e28])
    columns = hidden_columns(states, dtype, 0)
    x = states.double().numpy()
    assert np.isfinite(columns["hidden"].astype(np.float32)).all()
    assert (columns["hidden_scale"][:, 0] == 0).tolist() == [True, False, True, False]
    assert (np.abs(decoded(columns) - x) <= bound(x, dtype) + 1e-36).all()


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
def test_an_output_that_is_not_finite_is_refused(wrong):
    states = torch.ones(3, 2, 4)
    states[1, 1, 2] = wrong
    with pytest.raises(CaptureError, match=r"not finite for row 17.*dtype: float32"):
        hidden_columns(states, "float16", 17)


def truth(kind):
    made = [synthetic.row(index, kind) for index in range(40)]
    found = [
        synthetic.hidden_states(index, len(one["records"])) for index, one in enumerate(made) if one
    ]
    return np.concatenate(found).astype(np.float64)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["topk", "nucleus", "sampled"])
def test_a_store_gives_back_what_it_was_given(tmp_path, kind, dtype):
    store = verify_store(synthetic.write_store(tmp_path / "with", f"{kind}+{dtype}"))
    index = np.random.default_rng(0).permutation(store.num_records)
    found = store.read(index)
    x = truth(kind)[index]
    assert (np.abs(decoded(found.columns) - x) <= bound(x, dtype)).all()
    plain = open_store(synthetic.write_store(tmp_path / "plain", kind))
    assert (found.entries == plain.read(index).entries).all()
    extra = store.manifest.bytes_a_record - plain.manifest.bytes_a_record
    # But for what a shard's header says of two more tensors.
    assert store.manifest.payloads.each[1].bytes_a_record == pytest.approx(extra, abs=3)


def test_people_are_told_of_it(tmp_path):
    path = synthetic.write_store(tmp_path / "store", "sampled+int8")
    numbers = statistics(open_store(path))
    said = "hidden {'layers': [1, 4], 'depth': 6, 'width': 5, 'dtype': 'int8'}"
    assert numbers["a record holds"][1] == said
    rms = np.sqrt(np.square(truth("sampled")).mean((0, 2)))
    assert numbers["rms of layer"] == pytest.approx({"1": rms[0], "4": rms[1]}, rel=2e-2)
    assert "depth 6, width 5, dtype int8" in (path / "README.md").read_text()


@pytest.mark.parametrize(
    "dtype, change, said",
    [
        ("float16", {"hidden": np.float16(np.nan)}, "one is not finite"),
        ("float16", {"hidden_scale": np.float32(3.0)}, "no power of 2"),
        ("int8", {"hidden_scale": np.float32(np.nan)}, "negative or not finite"),
        ("int8", {"hidden_scale": np.float32(-1.0)}, "negative or not finite"),
        ("int8", {"hidden": np.int8(-128)}, "not as large as its scale"),
        ("int8", {"hidden_scale": np.float32(0.0)}, "not as large as its scale"),
    ],
)
def test_damage_is_seen(tmp_path, dtype, change, said):
    path = synthetic.write_store(tmp_path / "store", f"nucleus+{dtype}")
    name = "teacher/shard-00001.safetensors"
    ((tensor, value),) = change.items()
    data = bytearray((path / name).read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    place = data.index(open_store(path).arrays(1)[tensor][7].tobytes(), start)
    data[place : place + value.nbytes] = value.tobytes()
    (path / name).write_bytes(data)
    synthetic.rehash(path, name)
    with pytest.raises(StoreCorruptError, match=f"shard-00001.*{said}"):
        verify_store(path)


def test_a_store_without_it_is_another(tmp_path):
    synthetic.write_store(tmp_path / "with", "nucleus+int8", 10)
    plain = synthetic.write_store(tmp_path / "plain", "nucleus", 10)
    half = synthetic.write_store(tmp_path / "half", "nucleus+float16", 10)
    stores = [open_store(tmp_path / "with"), open_store(plain), open_store(half)]
    for other in stores[1:]:
        with pytest.raises(StoreError, match="payloads"):
            merge([stores[0], other], tmp_path / "both")
    with pytest.raises(StoreError, match=r"'nucleus', 'hidden'\] there and \['nucleus'\] now"):
        StoreWriter.create_or_resume(tmp_path / "with", synthetic.manifest(rows=10))


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"layers": []}, "layers"),
        ({"layers": [4, 1]}, "ascending"),
        ({"layers": [1, 1]}, "ascending"),
        ({"layers": [1, 6]}, "below `depth`"),
        ({"layers": [-1]}, "layers"),
        ({"dtype": "float32"}, "dtype"),
        ({"width": 0}, "width"),
    ],
)
def test_a_manifest_that_contradicts_itself(changes, said):
    payloads = [{"kind": "topk", "k": 6}, {**synthetic.about_hidden("int8"), **changes}]
    with pytest.raises(StoreError, match=said):
        synthetic.manifest(payloads=payloads)
