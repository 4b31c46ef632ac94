"""Stores of a tiny teacher, for runs of the real Axolotl."""

from pathlib import Path

import pytest
from support.stores import capture_rows, random_rows


@pytest.fixture(scope="session")
def rows(tiny_model):
    """24 rows of 20 to 100 real tokens."""
    lengths = [20 + (37 * i) % 81 for i in range(24)]
    return random_rows(tiny_model().tokenizer, lengths, seed=11)


@pytest.fixture(scope="session")
def store(tmp_path_factory, tiny_model, rows) -> Path:
    """The teacher is another random model than the student."""
    path = tmp_path_factory.mktemp("store") / "teacher-store"
    return capture_rows(path, lambda: tiny_model(seed=1), rows, k=16)


@pytest.fixture(scope="session")
def own_store(tmp_path_factory, tiny_model, rows) -> Path:
    """The teacher is the student as it starts."""
    path = tmp_path_factory.mktemp("own") / "teacher-store"
    return capture_rows(path, tiny_model, rows, k=16)


@pytest.fixture
def config(tiny_llama_dir, store):
    """A complete training config, to be varied."""
    return {
        "base_model": str(tiny_llama_dir),
        "distill": {"alpha": 0.7, "temperature": 2.0},
        "datasets": [{"path": str(store), "type": "axolotl_distill.store"}],
    }


@pytest.fixture(scope="module")
def cluster():
    """A local Ray cluster of two workers."""
    ray = pytest.importorskip("ray")
    # Ray's workers are nice by default, and starve beside other tests.
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="error",
        _system_config={"worker_niceness": 0},
    )
    yield
    ray.shutdown()
