"""`keepwarm backup` of a real server under load: it holds every answer that arrived before it began."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from sessions.maintenance.backup import restore
from sessions.store.store import Store
from sessions.types import MessageStatus
from tests.app.conftest import MODEL, user
from tests.app.server.test_full_disk import ANSWER, Server, start
from tests.polling import pause

__all__ = ["start"]

CLIENTS, BACKUPS = 6, 3


class Clients:
    """Each client talks in its own conversations until `end`. `answered` are the messages whose answers arrived."""

    def __init__(self, url: str) -> None:
        self.answered: list[str] = []
        self._url = url
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._talk, args=(number,)) for number in range(CLIENTS)]
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(60)

    def _talk(self, number: int) -> None:
        with httpx.Client(base_url=self._url, timeout=60) as client:
            turn = 0
            while not self._ended.is_set():
                text = f"client {number} message {turn}"
                body = {"model": MODEL, "messages": [user(text)], "prompt_cache_key": text}
                assert client.post("/v1/chat/completions", json=body).status_code == 200
                self.answered.append(text)
                turn += 1


def keepwarm(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "app", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env={**os.environ})


def answers_in(data_dir: Path) -> dict[str, str]:
    """The answer to every message in the directory, if it is complete and has its receipt. A conversation that was just
    starting has none yet."""
    store = Store(data_dir)
    try:
        paths = [store.messages.views(c.leaf_id) for c in store.every_conversation()]
        troubles = store.troubles()
    finally:
        store.close()
    assert troubles == []
    return {
        said.text: answer.text
        for said, answer in (path for path in paths if path)
        if answer.status is MessageStatus.COMPLETE and answer.receipt
    }


@pytest.mark.timeout(300)
def test_every_answer_of_before_is_in_the_backup(start: Callable[..., Server], tmp_path: Path) -> None:
    server = start(False, token_delay_s=0.0001)
    clients = Clients(server.url)
    checked = 0
    try:
        for number in range(BACKUPS):
            pause(1.0)
            before = list(clients.answered)
            made = keepwarm("backup", str(tmp_path / f"backup {number}"), "--data-dir", str(tmp_path / "data"))
            assert made.returncode == 0, made.stderr
            assert made.stdout.startswith(f"Backed up to {tmp_path}/backup {number}: ")
            restore(tmp_path / f"backup {number}", tmp_path / f"restored {number}", lambda path: "")
            found = answers_in(tmp_path / f"restored {number}")
            assert [text for text in before if found.get(text) != ANSWER] == []
            checked += len(before)
            assert server.health()["ready"]
    finally:
        clients.end()
    print(f"backups={BACKUPS} answers checked={checked}")
    assert checked > 20

    server.process.kill()  # a server that was killed is backed up as well
    server.process.wait()
    made = keepwarm("backup", str(tmp_path / "last"), "--data-dir", str(tmp_path / "data"))
    assert made.returncode == 0, made.stderr
    again = keepwarm("restore", str(tmp_path / "last"), "--data-dir", str(tmp_path / "data"))
    assert (again.returncode, "is not empty" in again.stderr) == (1, True)
    restore(tmp_path / "last", tmp_path / "back", lambda path: "")
    found = answers_in(tmp_path / "back")
    assert [text for text in clients.answered if found.get(text) != ANSWER] == []
