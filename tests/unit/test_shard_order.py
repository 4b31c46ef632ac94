"""Rows in random order, few shards at a time."""

from itertools import pairwise

import numpy as np
import pytest
from accelerate import skip_first_batches
from accelerate.data_loader import BatchSamplerShard, prepare_data_loader
from datasets import Dataset
from support import synthetic
from torch.utils.data import BatchSampler, DataLoader

from axolotl_distill.config.distill import parse_distill
from axolotl_distill.errors import ConfigError
from axolotl_distill.host.ahead import look_ahead
from axolotl_distill.host.shard_order import ShardOrder, shard_order
from axolotl_distill.store import CachePlace, open_store, pointer_record, pointer_tag

pytestmark = pytest.mark.axolotl
WINDOW = 3
BATCH = 4


@pytest.fixture
def far(tmp_path):
    near = synthetic.write_store(tmp_path / "store", rows=120, every=60)
    store = open_store(f"file://{near}", cache=CachePlace(tmp_path / "cache", 10**6))
    sizes = sorted(s.files[s.records_file]["bytes"] for s in store.manifest.shards)
    assert len(sizes) > 20
    store.cache.size = sum(sizes[-3 * WINDOW :])
    return store


@pytest.fixture
def rows(far):
    """Every row of the store in any order, and three without a record of it."""
    made = []
    first = far.manifest.pointer_base
    for number in range(120):
        row = synthetic.row(number, "nucleus")
        if row is not None:
            count = len(row["records"])
            made.append({"teacher_pos": [-1, *range(first, first + count)]})
            first += count
    made = [made[at] for at in np.random.default_rng(1).permutation(len(made))]
    for place in (5, 50, 80):
        made.insert(place, {"teacher_pos": [-1, -1]})
    return Dataset.from_list(made)


def stores(far):
    return {int(pointer_tag(np.int64(far.manifest.pointer_base))): far}


def shard_numbers(far, dataset):
    firsts = [max(row) for row in dataset["teacher_pos"]]
    return np.array(
        [far.shard_of(int(pointer_record(np.int64(at)))) if at >= 0 else -1 for at in firsts]
    )


def test_an_epoch_has_every_row_once_and_few_shards_at_a_time(far, rows):
    order = shard_order(rows, stores(far), WINDOW, seed=7)
    seen = shard_numbers(far, rows)
    assert (order.shards == seen).all() and len(order) == len(rows)
    epochs = [list(order)]
    order.set_epoch(1)
    epochs.append(list(order))
    assert epochs[0] != epochs[1]
    again = shard_order(rows, stores(far), WINDOW, seed=7)
    assert list(again) == epochs[0] != list(shard_order(rows, stores(far), WINDOW, seed=8))
    for given in epochs:
        assert sorted(given) == list(range(len(rows)))
        # A shard is read in one stretch, in which there are `window` shards and no other.
        shards = [int(seen[at]) for at in given if seen[at] >= 0]
        groups, left = [], dict(zip(*np.unique(shards, return_counts=True), strict=True))
        while shards:
            window, size = [*dict.fromkeys(shards)][:WINDOW], 0
            size = sum(left[shard] for shard in window)
            assert {*shards[:size]} == {*window}
            groups.append(tuple(window))
            del shards[:size]
        assert groups != sorted(groups), "shards come in random order"


def read(far, dataset, loader):
    """Reads what the batches ask for; how often a shard was fetched."""
    fetched = []
    fetch = far.cache._fetch
    far.cache._fetch = lambda wanted: (fetched.append(wanted.where), fetch(wanted))[1]
    for batch in loader:
        pointers = np.concatenate([np.array(row["teacher_pos"]) for row in batch])
        far.read(pointer_record(pointers[pointers >= 0]))
    assert far.cache.used() <= far.cache.size
    return len(fetched)


@pytest.mark.parametrize("ahead", [False, True])
def test_a_shard_is_fetched_once_an_epoch(far, rows, ahead, monkeypatch):
    order = shard_order(rows, stores(far), WINDOW, seed=0)
    loader = DataLoader(rows, batch_size=BATCH, sampler=order, collate_fn=list)
    if ahead:
        look_ahead(loader, rows, stores(far), processes=1)
    number = len(far.manifest.shards)
    # Ahead it may be fetched and make room again before it is read.
    assert number <= read(far, rows, loader) <= number + 2 * ahead
    shuffled = DataLoader(rows, batch_size=BATCH, shuffle=True, collate_fn=list)
    assert read(far, rows, shuffled) > 2 * number


@pytest.mark.parametrize("processes", [2, 3])
def test_ranks_have_other_rows_and_as_many_batches(far, rows, processes):
    order = shard_order(rows, stores(far), WINDOW, seed=0)
    ranks = []
    for rank in range(processes):
        own = shard_order(rows, stores(far), WINDOW, seed=0)
        own.set_epoch(2)
        batches = BatchSamplerShard(
            BatchSampler(own, BATCH, drop_last=True), processes, rank, even_batches=True
        )
        ranks.append([row for batch in batches for row in batch])
    assert len({len(rank) for rank in ranks}) == 1
    together = [row for rank in ranks for row in rank]
    usable = len(order) // (BATCH * processes) * BATCH * processes
    # accelerate begins anew where the last round lacks a batch.
    assert usable <= len({*together}) and len(together) - len({*together}) < BATCH * processes


@pytest.mark.parametrize("processes", [1, 2])
def test_a_resumed_epoch_is_the_same(far, rows, processes):
    """As the Trainer resumes: it passes batches by, then tells of the epoch."""

    def loader():
        order = shard_order(rows, stores(far), WINDOW, seed=0)
        made = DataLoader(rows, batch_size=BATCH, sampler=order, collate_fn=str)
        made = prepare_data_loader(
            made, num_processes=processes, process_index=processes - 1, put_on_device=False
        )
        look_ahead(made, rows, stores(far), processes)
        return made

    whole, resumed = loader(), loader()
    epochs = []
    for epoch in range(3):
        whole.set_epoch(epoch)
        epochs.append(list(whole))
    assert epochs[0] != epochs[1] != epochs[2]
    rest = skip_first_batches(resumed, 9)
    rest.set_epoch(2)
    assert list(rest) == epochs[2][9:]


def test_a_window_that_does_not_fit(far, rows):
    with pytest.raises(ConfigError, match=r"`distill.cache.window: 4`: 3 windows.*Lower"):
        shard_order(rows, stores(far), 4, seed=0)


def test_what_it_costs_in_randomness():
    """The mean of a batch of 32 rows, where a shard's rows resemble each other (a value that grows
    along the store): how far it strays from that of all, against a random order."""
    shards = np.repeat(np.arange(256), 64)
    values = np.linspace(-1, 1, len(shards))

    def strays(order):
        return np.std(values[order].reshape(-1, 32).mean(1))

    random = strays(np.random.default_rng(0).permutation(len(shards)))
    found = {
        w: strays(ShardOrder(shards, w, 0).order(0)) / random for w in (1, 2, 4, 8, 16, 32, 64)
    }
    print({window: round(float(ratio), 2) for window, ratio in found.items()})
    assert all(found[w] > found[2 * w] for w in (1, 2, 4, 8))
    assert found[1] > 5 and found[32] < 1.6
    # Where the text was shuffled before it was captured, it costs nothing.
    mixed = np.random.default_rng(1).permutation(values)
    assert np.std(mixed[ShardOrder(shards, 1, 0).order(0)].reshape(-1, 32).mean(1)) / random > 0.9
    assert np.std(mixed[ShardOrder(shards, 1, 0).order(0)].reshape(-1, 32).mean(1)) / random < 1.1


def test_keys():
    cache = {"shuffle": "shards", "window": 4}
    assert parse_distill({"cache": cache}).cache.window == 4
    with pytest.raises(ConfigError, match=r"`window: 4` is read by `shuffle: shards` only"):
        parse_distill({"cache": {"window": 4}})


@pytest.mark.parametrize("key", ["curriculum_sampling", "group_by_length", "streaming"])
def test_other_orders_are_refused(key):
    from axolotl_distill.host.checks import config_findings

    cfg = {"datasets": [{"path": "s3://b/store", "type": "axolotl_distill.store"}], key: True}
    args = parse_distill({"cache": {"shuffle": "shards"}}, cfg["datasets"])
    assert any(f"`{key}` cannot be combined" in str(found) for found in config_findings(cfg, args))


@pytest.mark.parametrize("processes", [1, 2])
def test_axolotl_packs_the_rows_of_a_window(far, rows, processes):
    """Its bins are of few shards, and of every epoch its own, on several ranks too."""
    from axolotl.utils.samplers.multipack import MultipackBatchSampler

    order = shard_order(rows, stores(far), WINDOW, seed=0)
    lengths = np.array([len(row) for row in rows["teacher_pos"]])
    packing = MultipackBatchSampler(
        order,
        batch_size=1,
        batch_max_len=80,
        lengths=lengths,
        bin_size=200,
        group_size=order.window_rows,
        num_processes=1,
    )
    order.packed_by(packing)
    loader = DataLoader(rows, batch_sampler=packing, collate_fn=list)
    made = prepare_data_loader(
        loader, num_processes=processes, process_index=0, put_on_device=False
    )
    look_ahead(made, rows, stores(far), processes)
    seen, epochs = shard_numbers(far, rows), []
    for epoch in range(2):
        made.set_epoch(epoch)
        bins = list(made.batch_sampler)
        epochs.append(bins)
        shards = [{int(seen[row]) for one in batch for row in one} - {-1} for batch in bins]
        # A group of rows may lie in two windows.
        assert max(map(len, shards)) <= 2 * WINDOW
        near = [len(one | other) for one, other in pairwise(shards)]
        assert max(near) <= 3 * WINDOW < len(far.manifest.shards) / 3
    assert epochs[0] != epochs[1]
