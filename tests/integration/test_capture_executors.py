"""A capture by any number of workers, whichever of them die, is the capture of one process."""

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from support.axolotl_run import environment
from support.captures import Captures, rows_of, small_model, small_rows
from support.cli import capture_config, distill_here
from support.crossed import CHATS, smollm2_teacher
from support.forks import in_a_fork
from support.tokenizers import sentencepiece

from axolotl_distill.align import Pair, Pieces
from axolotl_distill.capture.crossing import Crossed
from axolotl_distill.capture.grader import Grader
from axolotl_distill.capture.journal import stored_rows
from axolotl_distill.capture.oracle import plain_row, survey_of
from axolotl_distill.capture.ranks import Ranks
from axolotl_distill.capture.ray_executor import opened_on_ray
from axolotl_distill.cli.frame import ends_well
from axolotl_distill.config.capture import CaptureArgs
from axolotl_distill.errors import CaptureError
from axolotl_distill.store import verify_store
from axolotl_distill.teachers.tokenizer import other_tokenizer

TESTS = Path(__file__).resolve().parents[1]
RECORDS = {"k": 8}
# The last bits of logits depend on it, as the batches that a model gets do not.
ENVIRONMENT = {**environment(), "PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return small_model(tmp_path_factory.mktemp("model") / "small")


@pytest.fixture(scope="module")
def whole(model, tmp_path_factory):
    """What one process captures."""
    job, folder = Captures(model, small_rows(), **RECORDS), tmp_path_factory.mktemp("whole")
    report = job.captured(folder)
    assert report.workers == 1 and 0.0 < report.teacher_share < 1.0
    return job.result(folder)


def launched(processes, job, folder, dies=0):
    """Exit codes of so many forks that are told what torchrun tells; the last is killed at its
    `dies`th batch."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    children = []
    for rank in range(processes):
        child = os.fork()
        if not child:
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes}
            os.environ.update(meeting, **{name: str(value) for name, value in place.items()})
            _rank(job, folder, dies if rank == processes - 1 else 0)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children[:1]]
    for child in children[1:]:
        if codes[0]:
            os.kill(child, signal.SIGTERM)  # as torchrun does
        codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    return codes


def _rank(job, folder, dies):
    in_a_fork()
    code = 1
    try:
        ranks, grade, batches = Ranks.of_this_launch(), Grader.grade, itertools.count(1)

        def dying(self, rows):
            if next(batches) == dies:
                os.kill(os.getpid(), signal.SIGKILL)
            return grade(self, rows)

        Grader.grade = dying
        if ranks.rank:
            ranks.serve()
        else:
            with ends_well("kept"), ranks.leading():
                report = job.captured(folder, ranks.opened)
                (folder / "report.json").write_text(json.dumps(vars(report)))
        code = 0
    except SystemExit as stop:
        code = stop.code
    finally:
        os._exit(code)


def test_any_number_of_processes(tmp_path, model, whole):
    job = Captures(model, small_rows(), **RECORDS)
    assert launched(3, job, tmp_path) == [0, 0, 0]
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["workers"] == 3 and report["rows"] == len(whole[0])
    assert 0.0 < report["teacher_seconds"] < 3 * report["seconds"]
    assert job.result(tmp_path) == whole
    # Complete: nobody waits for anybody.
    assert launched(2, job, tmp_path) == [0, 0]


class CrossJob:
    """A teacher with another tokenizer, as launched() has a capture done."""

    def __init__(self, teacher):
        self.args = CaptureArgs(teacher=str(teacher), output="o", k=8, batch_tokens=64)
        self.args.settle(method="topk", temperatures=[1.0])
        pair = Pair(Pieces(other_tokenizer(self.args.teacher)), Pieces(sentencepiece()))
        texts = [said for _, said in CHATS] * 2
        self.rows = {n: plain_row(text, pair) for n, text in enumerate(texts)}
        survey = survey_of(list(self.rows.values()), pair)
        self.crossed = Crossed(
            "span", pair.student.tokenizer, survey.ends, survey.occurrences, survey.open_ends
        )

    def captured(self, folder, opener):
        with opener(self.args, len(self.crossed.student), self.crossed) as source:
            found = dict(source.records(self.rows, {0, *range(2, len(self.rows))}))
            workers = source.workers
        parts = {
            n: [part.tolist() for part in (found[n].entries, found[n].tail, found[n].lengths)]
            for n in sorted(found)
        }
        (folder / "records").write_text(json.dumps(parts))
        return SimpleNamespace(workers=workers)


def test_another_tokenizer_in_several_processes(tmp_path, tiny_model):
    job = CrossJob(smollm2_teacher(tmp_path / "teacher", tiny_model))
    alone, many = tmp_path / "alone", tmp_path / "many"
    alone.mkdir(), many.mkdir()

    @contextmanager
    def here(args, size, crossed):
        with crossed.opened(args) as source:
            yield source

    assert job.captured(alone, here).workers == 1
    assert launched(2, job, many) == [0, 0]
    assert json.loads((many / "report.json").read_text()) == {"workers": 2}
    assert (many / "records").read_text() == (alone / "records").read_text()


def test_a_process_dies(tmp_path, model, whole, capfd):
    """It costs the round; three processes, then one, go on."""
    job = Captures(model, small_rows(), **RECORDS)
    first, last = launched(2, job, tmp_path, dies=4)
    assert (first, last) == (1, -signal.SIGKILL)
    assert "A process of this launch ended" in capfd.readouterr().err
    kept = stored_rows(tmp_path / "store")
    assert 0 < kept < 300
    assert launched(3, job, tmp_path, dies=3)[0] == 1
    assert kept < stored_rows(tmp_path / "store") < 300
    job.captured(tmp_path)
    # What ended in an error closed its shard: there are more of them, with the same rows.
    assert job.result(tmp_path)[0] == whole[0]


def test_a_process_cannot_load(tmp_path, capfd):
    job = Captures(tmp_path / "nothing", small_rows(), **RECORDS)
    assert launched(2, job, tmp_path)[0] == 1
    assert "cannot be loaded" in capfd.readouterr().err


@pytest.mark.slow
def test_workers_of_ray(tmp_path, model, whole, cluster):
    """One of them is killed on the way: its batch is graded by the one that takes its place."""
    job, killed = Captures(model, small_rows(), **RECORDS), []

    def kill():
        until = time.monotonic() + 120
        while not killed and time.monotonic() < until:
            if stored_rows(tmp_path / "store"):
                for process in psutil.Process().children(recursive=True):
                    with suppress(psutil.Error):
                        if "Grader" in " ".join(process.cmdline()):
                            process.kill()
                            killed.append(stored_rows(tmp_path / "store"))
                            break
            time.sleep(0.002)

    killer = threading.Thread(target=kill)
    killer.start()
    report = job.captured(tmp_path, opened_on_ray)
    killer.join()
    assert killed and killed[0] < len(whole[0])
    assert report.workers == 2 and report.rows == len(whole[0])
    assert job.result(tmp_path) == whole


@pytest.mark.slow
def test_another_tokenizer_on_ray(tmp_path, tiny_model, cluster):
    job = CrossJob(smollm2_teacher(tmp_path / "teacher", tiny_model))
    with job.crossed.opened(job.args) as source:
        alone = dict(source.records(job.rows, set(job.rows)))
    with opened_on_ray(job.args, len(job.crossed.student), job.crossed) as source:
        many = dict(source.records(job.rows, set(job.rows)))
        assert source.workers == 2
    for number, records in alone.items():
        assert (many[number].entries == records.entries).all()
        assert (many[number].tail == records.tail).all()


@pytest.mark.slow
def test_a_teacher_that_no_worker_can_load(tmp_path, cluster):
    job = Captures(tmp_path / "nothing", small_rows(), **RECORDS)
    with pytest.raises(CaptureError, match="cannot be loaded"):
        job.captured(tmp_path, opened_on_ray)


@pytest.mark.slow
@pytest.mark.axolotl
def test_the_command(tmp_path, tiny_llama_dir):
    """By torchrun, which `accelerate launch` is where there are GPUs; on a CPU it starts one
    process, however many it was asked for."""
    launch = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    found = {}
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        config = capture_config(tmp_path / name, tiny_llama_dir, str(tiny_llama_dir), draws=8)
        if name == "here":
            done = distill_here("capture", config)
        else:
            done = subprocess.run(
                [sys.executable, "-m", *launch, "-m", "axolotl_distill.cli", "capture",
                 str(config), "--executor", "accelerate", "--json"],
                env=ENVIRONMENT, capture_output=True, text=True, timeout=500, check=False,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr[-3000:]
            assert json.loads(done.stdout)["this_run"]["workers"] == 2
        found[name] = rows_of(verify_store(tmp_path / name / "store"))
    assert found["here"] == found["there"]


@pytest.mark.axolotl
def test_refusals(tmp_path, tiny_llama_dir, monkeypatch):
    """A launcher without the option, the option without a launcher, and a teacher behind a
    server."""
    config = capture_config(tmp_path, tiny_llama_dir, str(tiny_llama_dir))
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    done = distill_here("capture", config, "--executor", "accelerate", check=False)
    assert done.returncode == 1 and "accelerate launch" in done.stderr
    monkeypatch.setenv("WORLD_SIZE", "2")
    done = distill_here("capture", config, check=False)
    assert done.returncode == 1 and "Add `--executor accelerate`" in done.stderr
