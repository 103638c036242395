"""Closing the database while other threads read: each gets an error, and none crashes the process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = """
import pathlib, sys, threading
from sessions.errors import StoreError
from sessions.store.store import Store
from model_runtime.interface.sampling_params import SamplingParams
from sessions.types import ConversationSettings

for number in range(40):
    store, told = Store(pathlib.Path(sys.argv[1])), []
    store.create_conversation("ada", ConversationSettings(SamplingParams()))

    def read():
        try:
            while True:
                store.segments.used_bytes()
        except StoreError as error:
            told.append(str(error))

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    store.segments.used_bytes()
    store.close()
    for thread in threads:
        thread.join()
    assert told == ["The database has been closed."] * 4, told
"""


def test_threads_that_read_while_it_is_closed(tmp_path: Path) -> None:
    child = subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path / "data")], capture_output=True, text=True)
    assert child.returncode == 0, child.stderr[-2000:]
