"""Whatever ends a capture, what the teacher gave is kept, and the store ends as an unbroken one."""

import os
import random
import resource
import signal
import time
from collections.abc import Iterator

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from distill_kernels import DenseLogits
from support.forks import in_a_fork
from support.synthetic import VOCAB, about_rows, manifest

from axolotl_distill.capture import Capture
from axolotl_distill.capture.graded import GradedSource
from axolotl_distill.capture.journal import RecordJournal, stored_rows
from axolotl_distill.cli.frame import ends_well
from axolotl_distill.config.capture import CaptureArgs
from axolotl_distill.errors import CaptureError, StoreError
from axolotl_distill.signal.signal import Signal
from axolotl_distill.store import StoreWriter, verify_store
from axolotl_distill.store.folder import JOURNAL

ARGS = CaptureArgs(teacher="-", output="-", k=6, temperatures=[1, 2], batch_tokens=200)
SHARD_RECORDS = 900
ROWS = 300


def rows() -> list[dict]:
    """Of every length, some with nothing to store, long ones among short ones."""
    made = []
    for index in range(ROWS):
        length = 3 + (index * 37) % 60
        ids = [(index * 7 + t * t) % VOCAB for t in range(length)]
        labels = [-100] * length if index % 11 == 5 else [-100, -100, *ids[2:]]
        made.append({"input_ids": ids, "labels": labels})
    return made


class SlowUnigram:
    """Logits depend on the token alone, so that a batch gives a row the same whoever is in it.

    Every row it gave is a byte in `given`."""

    vocab_size = VOCAB

    def __init__(self, pause: float = 0.0, given: int | None = None):
        table = torch.randn(VOCAB, VOCAB // 50, generator=torch.Generator().manual_seed(0))
        self.table, self.pause, self.given = table, pause, given

    def grade(self, some, positions, want) -> Iterator:
        time.sleep(self.pause)
        for index, row in some.items():
            logits = self.table[torch.tensor(row)[positions[index]]].repeat(1, 50)
            yield index, slice(0, len(logits)), Signal(DenseLogits(logits))


class Counted(GradedSource):
    def records(self, some, wanted):
        for index, found in super().records(some, wanted):
            yield index, found
            # The loop asks for the next one when this one is kept.
            if self.teacher.given is not None:
                os.write(self.teacher.given, b".")


def run(path, teacher, shard_records=SHARD_RECORDS):
    header = manifest("topk", source=about_rows(rows()))
    with Capture(path, header, rows(), str, shard_records=shard_records) as capture:
        return capture(Counted(teacher, ARGS, ARGS.batch_tokens))


def content(path):
    """Rows and records, without what says of which store they are."""
    store = verify_store(path)
    table = pq.read_table(path / "data").drop(["teacher_start"]).to_pylist()
    found = store.read(np.arange(store.num_records))
    return table, found.entries.tolist(), found.tail.tolist()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "store"
    run(path, SlowUnigram())
    assert sorted(file.name for file in path.iterdir() if file.suffix == ".journal") == []
    return content(path)


def killed_after(path, least: int, seconds: float, number: int) -> tuple[bool, int]:
    """(whether it ended by itself, rows that the loop had taken) of a capture in a process of its
    own, which gets a signal some seconds after it has taken so many rows."""
    reader, given = os.pipe()
    child = os.fork()
    if not child:
        try:
            in_a_fork()
            torch.set_num_threads(1)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            with ends_well("kept"):
                run(path, SlowUnigram(0.002, given))
            os._exit(0)
        except SystemExit as stopped:
            os._exit(stopped.code)
        except KeyboardInterrupt:
            # Before it could be heard.
            os._exit(128 + number)
        except BaseException:
            os._exit(1)
    os.close(given)
    with os.fdopen(reader, "rb", buffering=0) as taken:
        count = 0
        while count < least and (some := taken.read(least - count)):
            count += len(some)
        time.sleep(seconds)
        os.kill(child, number)
        _, status = os.waitpid(child, 0)
        count += len(taken.read())
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, -number, 128 + number)
    return code == 0, count


@pytest.mark.parametrize(
    "rounds", [2, pytest.param(40, marks=pytest.mark.slow)], ids=["few", "many"]
)
def test_killed_at_random_moments(tmp_path, whole, rounds):
    """Every row that the loop took is there after the kill; none is asked for twice; shards are as
    large as they should be however often it was killed."""
    seed = int(np.random.SeedSequence().entropy % 2**31)
    print(f"seed: {seed}")
    rng = random.Random(seed)
    for number in range(rounds):
        path = tmp_path / f"store-{number}"
        there = kills = 0
        for _ in range(200):
            number = rng.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
            moment = rng.randint(0, 120), rng.uniform(0.0, 0.03)
            ended, taken = killed_after(path, *moment, number)
            now = stored_rows(path)
            assert now >= there + taken
            there = now
            if ended:
                break
            kills += 1
        assert ended and kills > 0
        assert content(path) == whole
        records = [shard.records for shard in verify_store(path).manifest.shards]
        assert all(count >= SHARD_RECORDS for count in records[:-1])
        assert not (path / JOURNAL).exists()


def test_a_full_disk(tmp_path, whole):
    """Our error, with what to do; then the same command goes on."""
    path = tmp_path / "store"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, limits[1]))
    try:
        with pytest.raises(CaptureError, match=r"cannot be written.*Make room.*goes on"):
            run(path, SlowUnigram(), shard_records=10**6)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    kept = stored_rows(path)
    assert kept > 0
    report = run(path, SlowUnigram())
    assert content(path) == whole
    assert report.rows + kept == len(whole[0])


@pytest.mark.parametrize("cut", [1, 7, 40])
def test_a_torn_journal(tmp_path, whole, cut):
    """The frame that was torn, and nothing else, is captured again."""
    path = tmp_path / "store"

    class Stops(SlowUnigram):
        def grade(self, some, positions, want):
            if stored_rows(path) > 50:
                raise RuntimeError("the machine is off")
            yield from super().grade(some, positions, want)

    with pytest.raises(RuntimeError, match="is off"):
        run(path, Stops(), shard_records=10**6)
    before = stored_rows(path)
    journal = path / JOURNAL
    os.truncate(journal, journal.stat().st_size - cut)
    assert stored_rows(path) == before - 1
    run(path, SlowUnigram())
    assert content(path) == whole


def test_rows_of_another_config_are_not_dropped(tmp_path):
    """A journal is something captured, also before the first shard is."""
    path = tmp_path / "store"
    writer = StoreWriter.create_or_resume(path, manifest("topk"))
    with RecordJournal(path, writer.manifest.uid) as journal:
        journal.read(0)
        (found,) = GradedSource(SlowUnigram(), ARGS, ARGS.batch_tokens).grade({0: rows()[0]})
        journal.append(*found)
    writer.abandon()
    with pytest.raises(StoreError, match="another `payloads`"):
        StoreWriter.create_or_resume(path, manifest("nucleus"))
    assert StoreWriter.create_or_resume(path, manifest("topk")).manifest.uid == writer.manifest.uid


def test_nothing_captured_is_nothing_to_keep(tmp_path):
    """A source that gave up at once leaves the folder free for another config."""
    path = tmp_path / "store"

    class Refuses(SlowUnigram):
        def grade(self, some, positions, want):
            raise CaptureError("no")
            yield

    with pytest.raises(CaptureError, match="no"):
        run(path, Refuses())
    assert stored_rows(path) == 0 and not (path / JOURNAL).exists()
    StoreWriter.create_or_resume(path, manifest("nucleus")).abandon()
