"""A backup is a data directory as it was at one moment, complete or not there at all; the same holds for a restore."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import sessions.maintenance.copying
from sessions.errors import StoreError
from sessions.maintenance.backup import back_up, restore
from sessions.types import Tier
from tests.polling import pause
from tests.sessions.background.test_pruner import ask
from tests.sessions.conftest import MakeHarness
from tests.sessions.memory.test_memory import LONG
from tests.sessions.session_harness import ADA, SessionHarness

MIB = 1024 * 1024
KILLS = 24


def whole(path: Path) -> str:
    """What is wrong with a file of the scripted engine, which has its own checksum."""
    return ""


@pytest.fixture
def talked(make_harness: MakeHarness, tmp_path: Path) -> tuple[SessionHarness, list[str]]:
    """A running server with two saved conversations, the first in two files."""
    harness = make_harness(disk_kv_budget_bytes=64 * MIB)
    (tmp_path / "data" / "cookie.key").write_bytes(b"k" * 32)
    first, second = harness.conversation(), None
    harness.say(first, LONG)
    harness.saved(first)
    harness.say(first, "More " + LONG)
    harness.saved(first)
    second = harness.conversation()
    harness.say(second, "Another " + LONG)
    harness.saved(second)
    return harness, [first, second]


def test_a_running_servers_backup_opens_elsewhere_as_warm_as_it_was(
    talked: tuple[SessionHarness, list[str]], make_harness: MakeHarness, tmp_path: Path
) -> None:
    harness, conversations = talked
    texts = {c: harness.texts(c) for c in conversations}
    made = back_up(tmp_path / "data", tmp_path / "backups" / "monday")
    assert (made.conversations, made.messages, made.segments) == (2, 6, len(harness.store.segments.every()))
    assert made.linked_files == made.segments
    assert made.kv_bytes == sum(path.stat().st_size for path in harness.files())
    harness.say(conversations[0], "Not in the backup")
    harness.manager.delete(ADA, conversations[1])
    harness.close()

    assert restore(tmp_path / "backups" / "monday", tmp_path / "elsewhere", whole).segments == made.segments
    assert (tmp_path / "elsewhere" / "cookie.key").read_bytes() == b"k" * 32
    assert (tmp_path / "elsewhere").stat().st_mode & 0o777 == 0o700
    back = make_harness(data_dir=tmp_path / "elsewhere", disk_kv_budget_bytes=64 * MIB)
    for c in conversations:
        assert back.texts(c) == texts[c]
        receipt = back.receipt(back.say(c, "And now?"))
        assert (receipt.tier_before, receipt.miss_reason) == (Tier.DISK, None)
        assert back.texts(c)[-1] == back.expected_text(c)
    back.close()
    # What was done there is not in the backup, which can be restored again.
    restore(tmp_path / "backups" / "monday", tmp_path / "again", whole)
    again = make_harness(data_dir=tmp_path / "again")
    assert {c: again.texts(c) for c in conversations} == texts


def test_the_database_of_a_backup_is_one_file(talked: tuple[SessionHarness, list[str]], tmp_path: Path) -> None:
    back_up(tmp_path / "data", tmp_path / "backup")
    assert sorted(p.name for p in (tmp_path / "backup").iterdir()) == ["backup.json", "cookie.key", "keepwarm.db", "kv"]
    assert {p.stat().st_mode & 0o077 for p in (tmp_path / "backup").rglob("*")} == {0}
    assert [p for p in tmp_path.iterdir() if "partial" in p.name] == []


def test_files_that_are_missing_take_their_rows_with_them(
    talked: tuple[SessionHarness, list[str]], make_harness: MakeHarness, tmp_path: Path
) -> None:
    harness, (first, second) = talked
    root = next(s for s in harness.store.segments.of_conversation(first) if s.start_tokens == 0)
    harness.manager.memory.saved_kvs.disk.path_of(root.key).unlink()
    lost = len(harness.store.segments.of_conversation(first))
    made = back_up(tmp_path / "data", tmp_path / "backup")
    assert (made.dropped_segments, made.segments) == (lost, len(harness.store.segments.of_conversation(second)))
    assert len(list((tmp_path / "backup" / "kv").rglob("*.kv"))) == made.segments
    harness.close()
    restore(tmp_path / "backup", tmp_path / "elsewhere", whole)
    back = make_harness(data_dir=tmp_path / "elsewhere", disk_kv_budget_bytes=64 * MIB)
    assert back.receipt(back.say(first, "And now?")).tier_before is Tier.NONE
    assert back.receipt(back.say(second, "And now?")).tier_before is Tier.DISK


def test_files_that_are_damaged_are_not_restored(talked: tuple[SessionHarness, list[str]], tmp_path: Path) -> None:
    back_up(tmp_path / "data", tmp_path / "backup")
    made = restore(tmp_path / "backup", tmp_path / "elsewhere", lambda path: "its checksum is wrong")
    assert (made.messages, made.segments) == (6, 0)
    assert list((tmp_path / "elsewhere" / "kv").rglob("*.kv")) == []


def test_on_another_disk_files_are_copied(
    talked: tuple[SessionHarness, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def another_disk(*arguments: object, **more: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", another_disk)
    made = back_up(tmp_path / "data", tmp_path / "backup")
    assert (made.linked_files, made.segments > 2) == (0, True)
    harness, _ = talked
    for path in harness.files():
        copy = tmp_path / "backup" / path.relative_to(tmp_path / "data")
        assert copy.read_bytes() == path.read_bytes()
        assert copy.stat().st_ino != path.stat().st_ino


@pytest.mark.parametrize("where", ["full", "data/inside", ".", "full/thesis.odt", "full/thesis.odt/x"])
def test_a_target_that_is_not_new_is_refused_and_not_changed(
    talked: tuple[SessionHarness, list[str]], tmp_path: Path, where: str
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.odt").write_text("mine")
    names = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(StoreError):
        back_up(tmp_path / "data", tmp_path / where)
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert (tmp_path / "full" / "thesis.odt").read_text() == "mine"
    assert not (tmp_path / "data" / "inside").exists()


def test_a_data_directory_is_never_overwritten(talked: tuple[SessionHarness, list[str]], tmp_path: Path) -> None:
    harness, (first, _) = talked
    back_up(tmp_path / "data", tmp_path / "backup")
    with pytest.raises(StoreError, match="is not empty"):
        restore(tmp_path / "backup", tmp_path / "data", whole)
    assert harness.say(first, "Still here").text == harness.expected_text(first)
    (tmp_path / "empty").mkdir()
    restore(tmp_path / "backup", tmp_path / "empty", whole)


def flip(backup: Path) -> None:
    content = bytearray((backup / "keepwarm.db").read_bytes())
    content[len(content) // 2] ^= 1
    (backup / "keepwarm.db").write_bytes(content)


def cut(backup: Path) -> None:
    content = (backup / "keepwarm.db").read_bytes()
    (backup / "keepwarm.db").write_bytes(content[:-4096])


def without_manifest(backup: Path) -> None:
    (backup / "backup.json").unlink()


def without_database(backup: Path) -> None:
    (backup / "keepwarm.db").unlink()


def other_manifest(backup: Path) -> None:
    (backup / "backup.json").write_text("[1, 2]")


def newer_format(backup: Path) -> None:
    manifest = json.loads((backup / "backup.json").read_text())
    (backup / "backup.json").write_text(json.dumps({**manifest, "format": 2}))


@pytest.mark.parametrize("damage", [flip, cut, without_manifest, without_database, other_manifest, newer_format])
def test_a_damaged_backup_is_refused(
    talked: tuple[SessionHarness, list[str]], tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    back_up(tmp_path / "data", tmp_path / "backup")
    damage(tmp_path / "backup")
    with pytest.raises(StoreError, match=str(tmp_path / "backup")):
        restore(tmp_path / "backup", tmp_path / "elsewhere", whole)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["backup", "data"]


def test_a_full_disk_leaves_nothing_behind(
    talked: tuple[SessionHarness, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object, **more: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "link", full)
    monkeypatch.setattr(sessions.maintenance.copying, "copy_file", full)
    with pytest.raises(StoreError, match=r"could not be written \(No space left on device\)"):
        back_up(tmp_path / "data", tmp_path / "backup")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data"]


def test_the_bin_is_in_the_backup(make_harness: MakeHarness, tmp_path: Path) -> None:
    harness = make_harness()
    c = ask(harness, "Hello")
    (unused,) = harness.store.bin.unused(0.0, 0.0)
    assert harness.store.bin.put(unused, 0.0, time.time())
    back_up(tmp_path / "data", tmp_path / "backup")
    harness.close()
    restore(tmp_path / "backup", tmp_path / "elsewhere", whole)
    back = make_harness(data_dir=tmp_path / "elsewhere")
    assert back.store.bin.restore(c).messages == 2


def test_a_kill_at_any_moment_leaves_a_complete_backup_or_none(make_harness: MakeHarness, tmp_path: Path) -> None:
    harness = make_harness(disk_kv_budget_bytes=64 * MIB)
    for number in range(6):
        c = harness.conversation()
        harness.say(c, f"{number} {LONG}")
        harness.saved(c)
    command = [sys.executable, "-c", "from tests.sessions.maintenance.test_backup import forks; forks()", str(tmp_path)]
    dice, made, times = random.Random(5), 0, []
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as zygote:
        assert zygote.stdin is not None
        assert zygote.stdout is not None
        for number in range(-3, KILLS):  # the first three are not killed, and measure how long a backup takes
            zygote.stdin.write(f"{number}\n")
            zygote.stdin.flush()
            pid, began = int(zygote.stdout.readline()), time.monotonic()
            if number >= 0:
                pause(dice.uniform(0, min(times)))
                with contextlib.suppress(ProcessLookupError):  # it had finished
                    os.kill(pid, signal.SIGKILL)
            assert zygote.stdout.readline() == "dead\n"
            if number < 0:
                times.append(time.monotonic() - began)
            elif (tmp_path / str(number)).exists():
                made += 1
                restore(tmp_path / str(number), tmp_path / f"{number} restored", whole)
        zygote.stdin.close()
    print(f"kills={KILLS} whole={made} takes_s={min(times):.3f}")
    assert made < KILLS
    for number in range(KILLS):
        if not (tmp_path / str(number)).exists():
            back_up(tmp_path / "data", tmp_path / str(number))
    assert [path.name for path in tmp_path.iterdir() if "partial" in path.name] == []  # partial backups were removed
    back_up(tmp_path / "data", tmp_path / "last")
    with sqlite3.connect(tmp_path / "last" / "keepwarm.db") as db:
        assert db.execute("SELECT count(*) FROM conversations").fetchone() == (6,)
    db.close()


def forks() -> None:
    """Starts a process that makes a backup for every number that it reads; prints its id, and "dead" when it has
    ended."""
    where = Path(sys.argv[1])
    for line in iter(sys.stdin.readline, ""):
        pid = os.fork()
        if pid == 0:
            try:
                back_up(where / "data", where / line.strip())
            finally:
                os._exit(0)
        print(pid, flush=True)
        os.waitpid(pid, 0)
        print("dead", flush=True)
