"""`axolotl evaluate`, which asks no plugin for its datasets."""

import csv
import shutil

import pytest
from support.axolotl_run import run_axolotl
from support.stores import capture_rows, random_rows

pytestmark = pytest.mark.axolotl


def test_a_store_that_was_captured_again_is_read_again(tmp_path, config, tiny_model):
    """Neither Axolotl's cache of prepared rows nor that of `datasets` goes by what is in it."""
    teacher = tiny_model(seed=1)

    def evaluated(path, seed):
        rows = random_rows(teacher.tokenizer, [30, 40, 50, 60], seed=seed)
        shutil.rmtree(path, ignore_errors=True)
        capture_rows(path, lambda: teacher, rows, k=16)
        config["datasets"] = [{"path": str(path), "type": "axolotl_distill.store"}]
        config["test_datasets"] = config["datasets"]
        run = run_axolotl(tmp_path / "run", config, act="evaluate")
        with (run.output / "eval_summary.csv").open() as file:
            return {line["metric"]: line["validation"] for line in csv.DictReader(file)}

    first, again = (evaluated(tmp_path / "store", seed) for seed in (1, 2))
    for name in ("loss", "distill/kl", "distill/ce"):
        assert again[name] != first[name]


def test_a_store_that_does_not_fit_is_refused_before_a_row_is_read(tmp_path, config):
    config["distill"]["temperature"] = 3.0
    config["test_datasets"] = config["datasets"]
    run = run_axolotl(tmp_path, config, act="evaluate", check=False)
    assert run.code != 0
    assert "`distill.temperature` is 3" in run.log
    assert not list((tmp_path / "prepared").glob("*/*"))
    assert "Loading weights" not in run.log
