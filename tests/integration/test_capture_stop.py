"""Ctrl-C and SIGTERM end a capture with word of what is kept, whatever it is at."""

import os
import signal
import threading
import time

import pytest
import yaml
from support.axolotl_run import BASE
from support.cli import CHATS, distill_here

from axolotl_distill.store import verify_store
from axolotl_distill.store.folder import JOURNAL, TOKENISED

pytestmark = pytest.mark.axolotl


@pytest.fixture
def config(tmp_path, tiny_llama_dir):
    path = tmp_path / "config.yml"
    capture = {
        "teacher": str(tiny_llama_dir),
        "output": str(tmp_path / "store"),
        "datasets": [{"path": str(CHATS), "type": "chat_template"}],
        "k": 8,
        "batch_tokens": 200,
    }
    values = {
        **BASE,
        "base_model": str(tiny_llama_dir),
        "output_dir": str(tmp_path / "out"),
        "sequence_len": 200,
        "distill": {"capture": capture},
        "datasets": [{"path": str(tmp_path / "store"), "type": "axolotl_distill.store"}],
    }
    path.write_text(yaml.safe_dump(values))
    return path


def stopped(config, number, ready):
    """The command, sent a signal as soon as `ready`."""

    def send():
        while not done.is_set():
            if ready():
                os.kill(os.getpid(), number)
                return
            time.sleep(0.002)

    done = threading.Event()
    sender = threading.Thread(target=send)
    sender.start()
    try:
        return distill_here("capture", config, check=False)
    finally:
        done.set()
        sender.join()


def test_while_it_captures(tmp_path, config):
    """SIGTERM, then Ctrl-C while the text is read, then on to the end."""
    store = tmp_path / "store"
    journal = store / JOURNAL
    first = stopped(
        config, signal.SIGTERM, lambda: journal.exists() and journal.stat().st_size > 2000
    )
    assert first.returncode == 143 and "Traceback" not in first.stderr
    assert "rows with their records are kept. The same command goes on." in first.stderr
    kept = int(first.stderr.split(f"{store}: ")[1].split(" rows")[0])
    assert kept > 0
    assert not list(store.glob(f"{TOKENISED}*"))

    second = stopped(config, signal.SIGINT, lambda: list(store.glob(f"{TOKENISED}*")))
    assert second.returncode == 130 and f"{kept} rows with their records are kept" in second.stderr

    # What a kill leaves of the tokenised text is cleared up by the next run.
    (store / f"{TOKENISED}left").mkdir()
    third = distill_here("capture", config)
    assert f"going on: {kept} of" in third.stdout
    assert verify_store(store).manifest.complete
    assert not list(store.glob(f"{TOKENISED}*")) and not journal.exists()


def test_before_there_is_anything(tmp_path, config):
    store = tmp_path / "store"
    done = stopped(config, signal.SIGTERM, lambda: list(store.glob(f"{TOKENISED}*")))
    assert done.returncode == 143
    assert "Nothing was written yet" in done.stderr and not store.exists()


@pytest.mark.parametrize("output", ["/proc/teacher-store", "{config}/store"])
def test_an_output_that_cannot_be_written(config, output):
    """Found out before anything is tokenised or loaded."""
    output = output.format(config=config)
    done = distill_here("capture", config, "--output", output, check=False)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert output in done.stderr and "cannot be written" in done.stderr
