"""Files that are deleted or moved while the server runs: it notices, says so, and writes nothing where it would be
lost. When they are back, everything continues, and what was kept in memory is stored."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sessions.errors import StoreError
from sessions.store import writable_folder
from sessions.store.tables.losses import Cause
from sessions.store.writable_folder import folder_trouble
from sessions.types import MessageStatus, MissReason, Tier
from tests.polling import pause
from tests.sessions.conftest import MakeHarness
from tests.sessions.memory.test_memory import LONG
from tests.sessions.scripted_engine import ScriptedEngine
from tests.sessions.session_harness import ADA, SessionHarness, finish, until

MIB = 1024 * 1024
Damage = Callable[[Path], Callable[[], None]]


def move_directory(data: Path) -> Callable[[], None]:
    away = data.with_name("away")
    data.rename(away)
    return lambda: away.rename(data) and None


def move_database(data: Path) -> Callable[[], None]:
    away = data / "away.db"
    (data / "keepwarm.db").rename(away)
    return lambda: away.rename(data / "keepwarm.db") and None


def move_wal(data: Path) -> Callable[[], None]:
    away = data / "away.wal"
    (data / "keepwarm.db-wal").rename(away)
    return lambda: away.rename(data / "keepwarm.db-wal") and None


def replace_database(data: Path) -> Callable[[], None]:
    put_back = move_database(data)
    shutil.copyfile(data / "away.db", data / "keepwarm.db")
    return put_back


@pytest.mark.parametrize("damage", [move_directory, move_database, move_wal, replace_database])
def test_missing_files_are_noticed_and_so_is_their_return(
    make_harness: MakeHarness, tmp_path: Path, damage: Damage
) -> None:
    harness = make_harness(engine=ScriptedEngine(token_delay_s=0.01))
    c, other = harness.conversation(), None
    harness.say(c, "Hello")
    run = harness.manager.send(ADA, c, "And on")
    began = time.monotonic()
    put_back = damage(tmp_path / "data")
    until(lambda: not harness.manager.storage.can_store)
    assert time.monotonic() - began < 4.0
    assert "while the server was running" in harness.manager.storage.reasons[0]
    answer = finish(run)
    assert (answer.status, answer.is_stored) == (MessageStatus.COMPLETE, False)
    with pytest.raises(StoreError, match="while the server was running"):
        harness.manager.send(ADA, c, "More")
    if damage is move_directory:
        assert not (tmp_path / "data").exists()
    seen: list[list[str]] = []
    reader = threading.Thread(target=lambda: seen.append(harness.texts(c)))  # a thread that has no connection yet
    reader.start()
    reader.join(10)
    assert seen[0][:2] == ["Hello", harness.texts(c)[1]]

    put_back()
    until(lambda: harness.manager.storage.can_store)
    until(lambda: harness.path(c)[-1].status is MessageStatus.COMPLETE)
    assert harness.texts(c)[-1] == answer.text == harness.expected_text(c)
    other = harness.conversation()
    assert harness.say(other, "Elsewhere").is_stored
    harness.close()
    assert make_harness().texts(c)[-1] == answer.text


def test_a_deleted_directory_is_never_written_to(harness: SessionHarness, tmp_path: Path) -> None:
    c = harness.conversation()
    harness.say(c, "Hello")
    shutil.rmtree(tmp_path / "data")
    with pytest.raises(StoreError, match="deleted or replaced while the server was running"):
        harness.manager.send(ADA, c, "More")
    until(lambda: not harness.manager.storage.can_store)
    assert not (tmp_path / "data").exists()


def test_deleting_the_folder_of_saved_memory_costs_one_read(make_harness: MakeHarness, tmp_path: Path) -> None:
    harness = make_harness(disk_kv_budget_bytes=64 * MIB)
    c = harness.conversation()
    harness.say(c, LONG)
    harness.saved(c)
    harness.manager.park(ADA, c)
    until(lambda: harness.manager.background.storage_check._kv_seen is not None)  # noqa: SLF001 - the first look is over
    shutil.rmtree(tmp_path / "data" / "kv")
    until(lambda: bool(harness.manager.storage.reasons))
    assert harness.manager.storage.can_store
    assert "No message is lost" in harness.manager.storage.reasons[0]
    assert harness.store.segments.every() == []
    assert harness.manager.view(ADA, c).summary.tier is Tier.NONE
    run = harness.say(c, "And now?")
    assert run.text == harness.expected_text(c)
    assert harness.receipt(run).miss_reason is MissReason.FILES_MISSING
    harness.saved(c)


def test_a_program_that_locks_the_database_delays_no_stream(make_harness: MakeHarness, tmp_path: Path) -> None:
    harness = make_harness(engine=ScriptedEngine(token_delay_s=0.01))
    c = harness.conversation()
    harness.say(c, "Hello")
    run = harness.manager.send(ADA, c, "And on")
    with sqlite3.connect(tmp_path / "data" / "keepwarm.db", isolation_level=None) as other:
        other.execute("BEGIN EXCLUSIVE")
        began = time.monotonic()
        answer = finish(run)
        assert time.monotonic() - began < 4.0
        assert (answer.status, answer.is_stored) == (MessageStatus.COMPLETE, False)
        assert "locked by another program" in answer.note
        assert not harness.manager.storage.can_store
        other.execute("ROLLBACK")
    other.close()
    until(lambda: harness.manager.storage.can_store)
    until(lambda: harness.path(c)[-1].status is MessageStatus.COMPLETE)
    assert harness.say(c, "More").is_stored


def test_an_answer_that_was_stored_late_is_still_warm(make_harness: MakeHarness, tmp_path: Path) -> None:
    """Nothing is read ahead meanwhile, because the answer to continue from is only in memory."""
    harness = make_harness(engine=ScriptedEngine(token_delay_s=0.01), read_ahead=True, model_titles=True)
    c = harness.conversation()
    run = harness.manager.send(ADA, c, LONG)
    with sqlite3.connect(tmp_path / "data" / "keepwarm.db", isolation_level=None) as other:
        other.execute("BEGIN EXCLUSIVE")
        assert not finish(run).is_stored
        pause(0.5)  # during which idle jobs would run
        other.execute("ROLLBACK")
    other.close()
    until(lambda: harness.path(c)[-1].status is MessageStatus.COMPLETE)
    receipt = harness.receipt(harness.say(c, "And on"))
    assert (receipt.tier_before, receipt.miss_reason) == (Tier.DEVICE, None)
    assert receipt.fed_tokens <= receipt.delta_tokens


def test_why_it_was_not_saved_is_recorded_as_soon_as_the_answer_is_stored(
    make_harness: MakeHarness, tmp_path: Path
) -> None:
    """Without that the answer's own "not saved yet" would stay, and the next server would take the blame."""
    harness = make_harness(engine=ScriptedEngine(token_delay_s=0.01), disk_kv_budget_bytes=64 * MIB)
    c = harness.conversation()
    run = harness.manager.send(ADA, c, LONG)
    put_back = move_database(tmp_path / "data")
    assert not finish(run).is_stored
    pause(0.5)  # during which it is to be saved
    put_back()
    until(lambda: harness.path(c)[-1].status is MessageStatus.COMPLETE)
    until(lambda: (loss := harness.loss(c)) and loss.cause is Cause.NOT_SAVED)


def test_what_is_stored_is_soon_moved_into_the_database_file(
    make_harness: MakeHarness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sessions.background.storage_check.QUIET_S", 0.1)
    harness = make_harness()
    c = harness.conversation()
    harness.say(c, "Hello")
    until(lambda: harness.store.wal_bytes() == 0)
    shutil.copyfile(tmp_path / "data" / "keepwarm.db", tmp_path / "plain.db")
    with sqlite3.connect(tmp_path / "plain.db") as copy:
        assert [row[0] for row in copy.execute("SELECT text FROM messages ORDER BY id")] == harness.texts(c)
    copy.close()
    harness.say(c, "More")
    texts = harness.texts(c)
    harness.close()
    shutil.copyfile(tmp_path / "data" / "keepwarm.db", tmp_path / "closed.db")
    with sqlite3.connect(tmp_path / "closed.db") as closed:
        assert [row[0] for row in closed.execute("SELECT text FROM messages ORDER BY id")] == texts
    closed.close()


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (errno.ENOSPC, "is full"),
        (errno.EDQUOT, "quota"),
        (errno.EROFS, "is read-only"),
        (errno.EACCES, "Give this user write permission"),
        (errno.EIO, "reports errors"),
        (errno.ENOENT, "was deleted or moved"),
        (errno.ESTALE, "cannot be used (Stale file handle)"),
    ],
)
def test_each_problem_of_a_folder_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, said: str
) -> None:
    def fails(folder: Path) -> None:
        raise OSError(code, os.strerror(code))

    assert folder_trouble(tmp_path) == ""
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(writable_folder, "_write_and_forget", fails)
    assert said in folder_trouble(tmp_path)


def test_a_file_system_without_unnamed_files_is_probed_with_a_named_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, real = [], os.open

    def without_tmpfile(path: Path, flags: int, mode: int = 0o777) -> int:
        opened.append(path)
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, "Operation not supported")
        return real(path, flags, mode)

    monkeypatch.setattr(os, "open", without_tmpfile)
    assert folder_trouble(tmp_path) == ""
    assert len(opened) == 2
    assert list(tmp_path.iterdir()) == []
