"""The capture command with an address in place of a folder."""

import json

import pytest
from support.cli import capture_config, distill_here
from support.s3_server import s3_server

from axolotl_distill.store import open_store

pytestmark = [pytest.mark.axolotl, pytest.mark.slow]


def test_the_command_writes_there(tmp_path, tiny_llama_dir, monkeypatch):
    """What it says, what it leaves here, and that its store is read; again there is nothing to
    do."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "hf"))
    with s3_server() as server:
        url = f"{server.make_bucket('captures')}/store"
        config = capture_config(
            tmp_path, tiny_llama_dir, str(tiny_llama_dir), k=8, shard_records=300
        )
        done = distill_here("capture", config, "--output", url, "--limit", 20, "--json")
        said = json.loads(done.stdout)
        assert said["output"] == url and said["complete"] and said["rows"] > 10
        left = [file for file in (tmp_path / "hf").rglob("*") if file.is_file()]
        assert {file.name for file in left} <= {".lock"}
        assert not (tmp_path / "store").exists()
        again = distill_here("capture", config, "--output", url, "--limit", 20, "--json")
        assert json.loads(again.stdout)["this_run"] is None
        assert distill_here("verify", url).returncode == 0
        near = distill_here("capture", config, "--limit", 20, "--json")
        assert json.loads(near.stdout)["bytes_of_records"] == said["bytes_of_records"]
        here, there = (open_store(place).manifest for place in (tmp_path / "store", url))
        hashes = [
            [shard.files[shard.records_file]["sha256"] for shard in manifest.shards]
            for manifest in (here, there)
        ]
        assert hashes[0] == hashes[1] and len(hashes[0]) > 2
