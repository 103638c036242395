"""Only one server uses a data directory, whatever is removed or replaced meanwhile; and what works beside it."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from model_runtime.interface.sampling_params import SamplingParams
from sessions.errors import StoreError
from sessions.maintenance import cache
from sessions.store.store import Store
from sessions.store.tables.keys import open_keys
from sessions.types import ConversationSettings

SETTINGS = ConversationSettings(SamplingParams())
OPEN = "import sys, pathlib; from sessions.store.store import Store; Store(pathlib.Path(sys.argv[1]))"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def running(data: Path) -> Iterator[Store]:
    store = Store(data)
    store.create_conversation("ada", SETTINGS)
    yield store
    store.close()


def start_another(data: Path, environment: dict[str, str] | None = None) -> str:
    """Starts another process. Returns its error, "" if it could open the directory."""
    command = [sys.executable, "-c", OPEN, str(data)]
    child = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **(environment or {})})
    return "" if child.returncode == 0 else child.stderr.strip().splitlines()[-1]


def test_removing_the_lock_file_lets_no_other_server_in(running: Store, data: Path) -> None:
    (data / "keepwarm.lock").unlink()
    assert "already using the data directory" in start_another(data)
    running.create_conversation("eve", SETTINGS)  # and the first one continues


def test_replacing_the_lock_file_lets_no_other_server_in(running: Store, data: Path) -> None:
    (data / "keepwarm.lock").unlink()
    (data / "keepwarm.lock").write_text("1\n")
    assert "already using the data directory" in start_another(data)


def test_the_database_is_locked_where_directories_cannot_be(running: Store, data: Path) -> None:
    """As on NFS: the other process finds no lock file and cannot lock the directory."""
    (data / "keepwarm.lock").unlink()
    blind = (
        "import errno, fcntl, os, stat, sys, pathlib\n"
        "flock = fcntl.flock\n"
        "def refuse(descriptor, how):\n"
        "    if stat.S_ISDIR(os.fstat(descriptor).st_mode):\n"
        "        raise OSError(errno.EBADF, 'Bad file descriptor')\n"
        "    flock(descriptor, how)\n"
        "fcntl.flock = refuse\n"
        "from sessions.store.store import Store\n"
        "Store(pathlib.Path(sys.argv[1]))\n"
    )
    child = subprocess.run([sys.executable, "-c", blind, str(data)], capture_output=True, text=True)
    assert child.returncode == 1
    assert "already using the data directory" in child.stderr
    running.create_conversation("eve", SETTINGS)


def test_sqlite_keeps_its_own_locks(running: Store, data: Path) -> None:
    """Our lock does not interfere: a reader and a writer of another program still wait for each other."""
    shell = "import sqlite3, sys; db = sqlite3.connect(sys.argv[1], timeout=0.2); db.execute(sys.argv[2]); db.commit()"

    def other(statement: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", shell, str(data / "keepwarm.db"), statement]
        return subprocess.run(command, capture_output=True, text=True)

    assert other("SELECT count(*) FROM users").returncode == 0
    with running.database.write() as db:
        db.execute("UPDATE users SET saved_s_total = 1")
        assert "locked" in other("UPDATE users SET saved_s_total = 2").stderr
    assert other("UPDATE users SET saved_s_total = 3").returncode == 0


@pytest.mark.parametrize("what", ["directory removed", "directory replaced", "database removed", "database replaced"])
def test_nothing_is_written_to_a_replaced_database(running: Store, data: Path, what: str) -> None:
    if what.startswith("directory"):
        data.rename(data.with_name("elsewhere"))
        if what.endswith("replaced"):
            shutil.copytree(data.with_name("elsewhere"), data)
    else:
        shutil.copyfile(data / "keepwarm.db", data / "copy")
        (data / "keepwarm.db").unlink()
        if what.endswith("replaced"):
            (data / "copy").rename(data / "keepwarm.db")
    with pytest.raises(StoreError, match="was deleted or replaced while the server was running"):
        running.create_conversation("eve", SETTINGS)


def test_a_directory_that_was_put_back_is_written_to_again(running: Store, data: Path) -> None:
    data.rename(data.with_name("elsewhere"))
    with pytest.raises(StoreError, match="deleted or replaced"):
        running.create_conversation("eve", SETTINGS)
    data.with_name("elsewhere").rename(data)
    running.create_conversation("eve", SETTINGS)


def test_replacing_the_database_lets_no_other_server_in(running: Store, data: Path) -> None:
    """A restored backup and a new lock file while the first server runs: the second would delete the first one's
    files."""
    for name in ("keepwarm.lock", "keepwarm.db", "keepwarm.db-wal", "keepwarm.db-shm"):
        (data / name).unlink()
    sqlite3.connect(data / "keepwarm.db").close()
    assert "already using the data directory" in start_another(data)


def test_a_directory_is_free_after_the_server_ends(running: Store, data: Path) -> None:
    running.close()
    assert start_another(data) == ""
    assert start_another(data) == ""


def test_beside_a_running_server(running: Store, data: Path) -> None:
    """Keys and listing work; commands that delete or read everything are refused."""
    script = "import sys; from app.__main__ import main; sys.exit(main(sys.argv[1:]))"

    def keepwarm(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", script, *arguments, "--data-dir", str(data)]
        return subprocess.run(command, capture_output=True, text=True)

    added = keepwarm("key", "add", "robot")
    assert added.returncode == 0, added.stderr
    assert len(running.keys.every()) == 1
    listed = keepwarm("cache", "list")
    assert (listed.returncode, "Saved memory in" in listed.stdout) == (0, True)
    for refused in (["cache", "clear"], ["cache", "clear", "--all"], ["doctor", "--no-verify"]):
        ended = keepwarm(*refused)
        assert ended.returncode in (1, 2)
        assert "already using the data directory" in ended.stdout + ended.stderr
        assert "Traceback" not in ended.stderr
    running.create_conversation("eve", SETTINGS)  # none of this released the server's locks
    assert "already using the data directory" in start_another(data)


def test_listing_creates_nothing(tmp_path: Path) -> None:
    for look in (cache.list_saved, lambda folder: cache.clear(folder, True, lambda segments, size_bytes: None)):
        with pytest.raises(StoreError, match="There is no data directory"):
            look(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()
    keys, database = open_keys(tmp_path / "new")  # a key may be made before the first start
    keys.add("robot")
    database.close()
    assert cache.list_saved(tmp_path / "new") == []
