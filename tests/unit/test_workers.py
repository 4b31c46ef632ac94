"""Worker processes: whatever one call does, the others get their answers. They call `eval`."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from axolotl_distill.errors import FilterError
from axolotl_distill.sandbox import Failed
from axolotl_distill.sandbox.workers import Workers

LEAVE = "__import__('builtins').__dict__.update(kept=bytearray(300 << 20))"


@pytest.fixture
def workers():
    made = []

    def make(function="builtins:eval", **changes):
        made.append(Workers(function, **{"count": 2, "memory_mb": 512, **changes}))
        return made[-1]

    yield make
    for pool in made:
        pool.close()
    assert gone([child for child in psutil.Process().children() if is_worker(child)])


def is_worker(process):
    try:
        return "axolotl_distill.sandbox.workers" in " ".join(process.cmdline())
    except psutil.Error:
        return False


def gone(processes, seconds=10.0):
    """Whether they end in time. A zombie whose parent has not looked yet has ended."""
    deadline = time.monotonic() + seconds
    while any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in processes):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def test_bad_calls_take_nothing_from_the_others(workers):
    bad = {
        3: ("__import__('time').sleep(1000)", "timed out"),
        11: ("[bytearray(1 << 20) for _ in iter(int, 1)]", "ran out of memory"),
        12: ("__import__('os')._exit(0)", "crashed"),
        20: ("10 ** 10 ** 9", "timed out"),
        21: ("bytearray(1 << 40)", "ran out of memory"),
        30: ("1 / 0", "failed"),
        31: ("__import__('os').abort()", "crashed"),
    }
    pool = workers()
    started = time.monotonic()
    futures = [pool.submit(bad[i][0] if i in bad else f"{i} * {i}", timeout=2.5) for i in range(50)]
    answers = [future.result(timeout=100) for future in futures]
    for i, answer in enumerate(answers):
        if i in bad:
            assert isinstance(answer, Failed) and answer.reason == bad[i][1], (i, answer)
        else:
            assert answer == i * i
    assert time.monotonic() - started < 60


def test_what_an_earlier_call_left_in_memory_is_not_held_against_a_later_one(workers):
    pool = workers(count=1)
    assert pool.submit(LEAVE, timeout=30).result() is None
    assert pool.submit("len(bytearray(300 << 20))", timeout=30).result() == 300 << 20


def test_workers_import_nothing_of_the_caller(workers):
    assert "torch" in sys.modules
    heavy = "sorted({'torch', 'axolotl', 'pytest'} & set(__import__('sys').modules))"
    assert workers().submit(heavy, timeout=30).result() == []


@pytest.mark.parametrize(
    "act",
    [
        "open({target!r}, 'w')",
        "__import__('os').system('touch {target}')",
        "__import__('subprocess').run(['touch', {target!r}])",
        "__import__('os').mkdir({target!r})",
        "__import__('socket').socket()",
        "__import__('os').fork()",
    ],
)
def test_evaluated_text_is_denied_files_processes_and_network(workers, tmp_path, act):
    target = tmp_path / "target"
    answer = workers(count=1).submit(act.format(target=str(target)), timeout=30).result()
    assert answer.reason == "failed" and "denied" in answer.detail
    assert not target.exists()


def test_no_keys_in_the_environment_of_workers(workers, monkeypatch):
    monkeypatch.setenv("SOME_API_KEY", "sk-secret")
    seen = workers(count=1).submit("dict(__import__('os').environ)", timeout=30).result()
    assert "sk-secret" not in seen.values() and {"PATH", "PYTHONPATH"} <= seen.keys()


def test_a_function_that_is_not_there_is_an_error(workers):
    pool = workers("no_such_module:f", count=1)
    with pytest.raises(FilterError, match=r"no_such_module:f.*did not start.*ModuleNotFoundError"):
        pool.submit("1", timeout=5).result()


def test_close_does_not_wait_for_hung_calls(workers):
    pool = workers()
    futures = [pool.submit("__import__('time').sleep(1000)", timeout=500) for _ in range(6)]
    while not all(future.running() for future in futures[:2]):
        time.sleep(0.01)
    started = time.monotonic()
    pool.close()
    assert time.monotonic() - started < 10
    assert all(future.done() for future in futures)


@pytest.mark.skipif(sys.platform != "linux", reason="prctl")
def test_hung_workers_die_with_a_killed_parent():
    code = (
        "from axolotl_distill.sandbox.workers import Workers\n"
        "pool = Workers('builtins:eval', count=2, memory_mb=512)\n"
        "print(*(pool.submit('__import__(\"os\").getpid()', timeout=60).result() for _ in '12'))\n"
        "futures = [pool.submit('__import__(\"time\").sleep(1000)', timeout=900) for _ in '12']\n"
        "print('hung', flush=True)\n"
        "futures[0].result()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True
    ) as parent:
        pids = {int(pid) for pid in parent.stdout.readline().split()}
        assert parent.stdout.readline() == "hung\n"
        processes = [psutil.Process(pid) for pid in pids]
        os.kill(parent.pid, signal.SIGKILL)
    assert gone(processes)
