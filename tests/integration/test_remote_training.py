"""The real Axolotl on stores at s3://, held to the same run on the local store."""

import pytest
from support.axolotl_run import run_axolotl
from support.s3_server import s3_server

from axolotl_distill.store import open_store
from axolotl_distill.store.rearrange import reshard
from axolotl_distill.store.transfer import push

pytestmark = [pytest.mark.axolotl, pytest.mark.slow]
PACKED = {"sample_packing": True, "attn_implementation": "sdpa", "micro_batch_size": 1}


@pytest.mark.parametrize(
    "name, extra, processes",
    [
        ("workers", {"dataloader_num_workers": 2}, 1),
        ("packed", PACKED, 1),
        ("ddp", {}, 2),
    ],
)
def test_trains_as_on_the_local_store(tmp_path, config, store, name, extra, processes):
    """A cache of two shards of many, shared by ranks and workers."""
    near = tmp_path / "near"
    made = reshard(open_store(store), near, 150)
    sizes = [shard.files[shard.records_file]["bytes"] for shard in made.shards]
    assert len(sizes) > 4
    runs = {}
    with s3_server() as server:
        url = f"{server.make_bucket('stores')}/teacher"
        push(open_store(near), url)
        for place, path in (("near", str(near)), ("far", url)):
            distill = dict(config["distill"])
            if place == "far":
                distill["cache"] = {"folder": str(tmp_path / "cache"), "size": 2 * max(sizes)}
            dataset = {"path": path, "type": "axolotl_distill.store"}
            runs[place] = run_axolotl(
                tmp_path / place,
                {**config, **extra, "max_steps": 6, "distill": distill, "datasets": [dataset]},
                processes=processes,
            )
    assert runs["far"].ranks == processes
    for column in ("loss", "grad_norm", "distill/kl", "distill/ce"):
        assert runs["far"].column(column) == runs["near"].column(column), column
    assert len(runs["far"].steps) == 6
    assert "waited" in runs["far"].log and "waited" not in runs["near"].log
    held = [file.stat().st_size for file in (tmp_path / "cache" / "objects").iterdir()]
    assert 0 < sum(held) <= 2 * max(sizes)


@pytest.mark.parametrize(
    "extra, processes", [({}, 1), (PACKED, 1), (PACKED, 2)], ids=["rows", "packed", "packed-ddp"]
)
def test_shards_in_random_order_and_resumed(tmp_path, config, store, extra, processes):
    """Of a cache that has not half of the store; a run that goes on takes the same steps."""
    near = tmp_path / "near"
    made = reshard(open_store(store), near, 30)
    sizes = sorted(shard.files[shard.records_file]["bytes"] for shard in made.shards)
    cache = {"folder": str(tmp_path / "cache"), "size": sum(sizes[-6:])}
    assert sum(sizes) > 1.5 * cache["size"]
    distill = {**config["distill"], "cache": {**cache, "shuffle": "shards", "window": 2}}
    with s3_server() as server:
        url = f"{server.make_bucket('stores')}/teacher"
        push(open_store(near), url)
        given = {
            **config,
            **extra,
            "max_steps": 6,
            "save_steps": 3,
            "save_strategy": "steps",
            "save_total_limit": None,
            "distill": distill,
            "datasets": [{"path": url, "type": "axolotl_distill.store"}],
        }
        whole = run_axolotl(tmp_path / "whole", given, processes=processes)
        checkpoint = next((tmp_path / "whole").rglob("checkpoint-3"))
        again = {**given, "resume_from_checkpoint": str(checkpoint)}
        rest = run_axolotl(tmp_path / "rest", again, processes=processes)
    assert "shards in random order, 2 at a time" in whole.log
    assert len(whole.steps) == 6
    for column in ("loss", "distill/kl"):
        assert rest.column(column)[-3:] == whole.column(column)[3:], column
