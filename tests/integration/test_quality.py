"""The benchmark that ranks records by the students they make, at its smallest."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support.axolotl_run import environment

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_students_rank_the_records(tmp_path, smollm2_dir):
    """Four steps: enough for what leaves the tail out to fall behind, and for a torn line of the
    log to be done again and nothing else."""
    command = [
        *(sys.executable, str(ROOT / "benchmarks/quality.py"), "--quick"),
        *("--folder", str(tmp_path)),
    ]

    def run() -> dict[str, dict]:
        done = subprocess.run(command, env=environment(), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        lines = (tmp_path / "quick.jsonl").read_text().splitlines()
        whole = [json.loads(line) for line in lines if line.endswith("}")]
        return {row["kind"]: row for row in whole}

    found = run()
    assert found["full"]["kl"] < found["sft"]["kl"]
    assert found["sampled:8"]["kl"] < found["renormalized:16"]["kl"]
    assert found["sampled:8"]["bytes_a_token"] < found["tail_bucket:16"]["bytes_a_token"] / 2

    log = tmp_path / "quick.jsonl"
    log.write_text(log.read_text()[:-20])
    again = run()
    assert list(again) == list(found)
    assert [kind for kind in found if again[kind] != found[kind]] == [list(found)[-1]]
