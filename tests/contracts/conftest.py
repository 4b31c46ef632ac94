"""A store that the contract tests read."""

import pytest
from support.stores import capture_rows, random_rows


@pytest.fixture(scope="module")
def store(tmp_path_factory, tiny_model):
    """A teacher that is not the student, over four rows."""
    rows = random_rows(tiny_model().tokenizer, [30, 12, 41, 7])
    path = tmp_path_factory.mktemp("contracts") / "store"
    return capture_rows(path, lambda: tiny_model(seed=1), rows, k=6)
