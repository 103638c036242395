"""Other files in the data directory are never deleted or overwritten, whatever their names."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from model_runtime.interface.segments import HEADER_START
from sessions.errors import StoreError
from sessions.maintenance.cache import clear
from sessions.maintenance.doctor import Report, inspect
from sessions.memory.saved.kv_files import KvFiles, path_in
from sessions.store.store import Store
from sessions.store.tables.keys import open_keys
from tests.sessions.conftest import MakeHarness
from tests.sessions.memory.test_memory import LONG
from tests.sessions.session_harness import ADA, until

MIB = 1024 * 1024
KEY = "ab" + "cd" + "0123456789" * 3 + "012345"
THESIS = b"three years of work " * 100
OURS = (300).to_bytes(8, "little") + HEADER_START + b'1"}}'

Tree = dict[str, object]


def seen(folder: Path) -> Tree:
    """Everything in the folder: links as their targets, other files as their contents."""
    found: Tree = {}
    for at, folders, names in os.walk(folder):
        for name in (*folders, *names):
            path = Path(at, name)
            status = path.lstat()
            if stat.S_ISLNK(status.st_mode):
                found[str(path)] = os.readlink(path)
            elif stat.S_ISREG(status.st_mode):
                found[str(path)] = path.read_bytes()
            else:
                found[str(path)] = stat.S_IFMT(status.st_mode)
    return found


def a_document(kv: Path, outside: Path) -> None:
    (kv / "thesis.odt").write_bytes(THESIS)
    (kv / "ab").mkdir()
    (kv / "ab" / "thesis.odt").write_bytes(THESIS)


def our_name_and_other_content(kv: Path, outside: Path) -> None:
    for content in (THESIS, b"", b"x", HEADER_START, (5).to_bytes(8, "little") + b'{"__metadata__":{"format":"pt"}}'):
        key = f"{len(content):040x}"
        path_in(kv, key).parent.mkdir(parents=True, exist_ok=True)
        path_in(kv, key).write_bytes(content)


def our_content_and_another_name(kv: Path, outside: Path) -> None:
    (kv / "ab" / "cd").mkdir(parents=True)
    for name in ("copy.kv", f"{KEY}.kv.bak", f"{KEY}.KV", f"{KEY[:-1]}.kv", f"{KEY}.kv.tmp", f"{KEY}.kv.x.tmp"):
        (kv / "ab" / "cd" / name).write_bytes(OURS)


def our_name_at_another_place(kv: Path, outside: Path) -> None:
    (kv / "ab" / "ce").mkdir(parents=True)
    for folder in (kv, kv / "ab", kv / "ab" / "ce", kv / "ab" / "ce"):
        (folder / f"{KEY}.kv").write_bytes(OURS)


def a_temporary_file_of_theirs(kv: Path, outside: Path) -> None:
    path_in(kv, KEY).parent.mkdir(parents=True)
    path_in(kv, KEY).with_name(f"{KEY}.kv.77.tmp").write_bytes(THESIS)


def directories(kv: Path, outside: Path) -> None:
    path_in(kv, KEY).mkdir(parents=True)
    (path_in(kv, KEY) / "thesis.odt").write_bytes(THESIS)
    (kv / "empty").mkdir()


def links_to_files_outside(kv: Path, outside: Path) -> None:
    path_in(kv, KEY).parent.mkdir(parents=True)
    (outside / "whole.kv").write_bytes(OURS)
    path_in(kv, KEY).symlink_to(outside / "whole.kv")
    path_in(kv, KEY).with_name(f"{KEY}.kv.77.tmp").symlink_to(outside / "whole.kv")
    (kv / "thesis").symlink_to(outside / "whole.kv")


def links_to_directories_outside(kv: Path, outside: Path) -> None:
    path_in(outside, KEY).parent.mkdir(parents=True)
    path_in(outside, KEY).write_bytes(OURS)
    (outside / "cd").mkdir()
    (outside / "cd" / f"{KEY}.kv").write_bytes(OURS)
    (kv / "ab").symlink_to(outside)
    (kv / "elsewhere").symlink_to(outside)


def pipes(kv: Path, outside: Path) -> None:
    path_in(kv, KEY).parent.mkdir(parents=True)
    os.mkfifo(path_in(kv, KEY))
    os.mkfifo(path_in(kv, KEY).with_name(f"{KEY}.kv.77.tmp"))
    os.mkfifo(kv / "pipe")


def unreadable(kv: Path, outside: Path) -> None:
    path_in(kv, KEY).parent.mkdir(parents=True)
    path_in(kv, KEY).write_bytes(THESIS)
    path_in(kv, KEY).chmod(0)


FOREIGN = [
    a_document,
    our_name_and_other_content,
    our_content_and_another_name,
    our_name_at_another_place,
    a_temporary_file_of_theirs,
    directories,
    links_to_files_outside,
    links_to_directories_outside,
    pipes,
    unreadable,
]


@pytest.mark.parametrize("put", FOREIGN)
def test_nothing_that_deletes_touches_other_files(
    make_harness: MakeHarness, tmp_path: Path, put: Callable[[Path, Path], None]
) -> None:
    """Start-up, saves that make room, compaction, dropping, deleting, the doctor, and clearing the cache."""
    harness = make_harness(disk_kv_budget_bytes=MIB)
    c = harness.conversation()
    harness.say(c, LONG)
    harness.saved(c)
    harness.close()
    outside = tmp_path / "outside"
    outside.mkdir()
    before = seen(harness.store.kv_dir)
    put(harness.store.kv_dir, outside)
    theirs = {path: what for path, what in seen(harness.store.kv_dir).items() if path not in before}
    others = seen(outside)
    harness = make_harness(disk_kv_budget_bytes=MIB)
    for number in range(4):
        another = harness.conversation()
        harness.say(another, f"{number} {LONG}")
        harness.saved(another)
    harness.manager.memory.saved_kvs.disk.compact(10_000)
    harness.manager.drop_kv(ADA, another)
    harness.manager.delete(ADA, c)
    harness.close()
    store = Store(tmp_path / "data")
    inspect(store, Report(lambda sentence: None))
    store.close()
    assert clear(tmp_path / "data", True, lambda segments, size_bytes: None).segments
    left = seen(harness.store.kv_dir)
    assert {path: left.get(path) for path in theirs} == theirs
    assert seen(outside) == others
    assert not [path for path in KvFiles(harness.store.kv_dir).every() if KvFiles(harness.store.kv_dir).is_ours(path)]


@pytest.mark.parametrize("put", ["theirs", "a directory", "a link", "a pipe", "a linked folder"])
def test_a_file_with_the_name_of_a_save_stays_and_is_logged(
    make_harness: MakeHarness, tmp_path: Path, put: str
) -> None:
    harness = make_harness(disk_kv_budget_bytes=64 * MIB)
    harness.engine.save_delay_s = 0.3
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "thesis.odt").write_bytes(THESIS)
    c = harness.conversation()
    run = harness.manager.send(ADA, c, LONG)
    kept = harness.engine.save

    def planted(segment, path: Path) -> int:  # type: ignore[no-untyped-def]
        raise AssertionError(f"written to {path}")

    disk = harness.manager.memory.saved_kvs.disk
    chain = disk._files.prepare  # noqa: SLF001 - a file that appears at the worst moment

    def plant(path: Path) -> None:
        if put == "a linked folder":
            path.parent.parent.parent.mkdir(exist_ok=True)
            path.parent.parent.symlink_to(outside)
        else:
            path.parent.mkdir(parents=True)
            if put == "theirs":
                path.write_bytes(THESIS)
            elif put == "a directory":
                path.mkdir()
            elif put == "a pipe":
                os.mkfifo(path)
            else:
                path.symlink_to(outside / "thesis.odt")
        harness.engine.save = planted  # type: ignore[method-assign]
        disk._files.prepare = chain  # type: ignore[method-assign]  # noqa: SLF001 - a file that appears at the worst moment
        chain(path)

    disk._files.prepare = plant  # type: ignore[method-assign]  # noqa: SLF001 - a file that appears at the worst moment
    until(lambda: run.is_done)
    until(lambda: any("is in the way and does not belong" in e.text for e in harness.manager.memory_view(ADA).events))
    assert (outside / "thesis.odt").read_bytes() == THESIS
    assert [path.name for path in outside.iterdir()] == ["thesis.odt"]
    harness.engine.save = kept  # type: ignore[method-assign]


def test_a_temporary_file_never_goes_through_a_link(make_harness: MakeHarness, tmp_path: Path) -> None:
    """The name of the next one can be guessed: it contains the process id."""
    from model_runtime.kv.segment import copy_out, write
    from tests.model_runtime.kv.test_segment import GEOMETRY, filled, two_segments

    (tmp_path / "thesis.odt").write_bytes(THESIS)
    identity = two_segments()[0]
    path = tmp_path / f"{identity.key}.kv"
    path.with_name(f"{path.name}.{os.getpid()}.tmp").symlink_to(tmp_path / "thesis.odt")
    write(copy_out(filled(), GEOMETRY, identity), GEOMETRY, path)
    assert (tmp_path / "thesis.odt").read_bytes() == THESIS
    assert path.stat().st_size > 1000


def test_a_damaged_file_of_ours_is_still_ours(tmp_path: Path) -> None:
    files = KvFiles(tmp_path)
    path = files.path_of(KEY)
    path.parent.mkdir(parents=True)
    for place in range(8, len(OURS) - 4):
        damaged = bytearray(OURS)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        assert files.delete(path), place
    temporary = path.with_name(f"{path.name}.77.tmp")
    for length in range(len(OURS)):  # a save may be killed at any byte
        temporary.write_bytes(OURS[:length])
        assert files.delete(temporary), length


def documents(tmp_path: Path) -> Path:
    folder = tmp_path / "Documents"
    (folder / "kv").mkdir(parents=True)
    (folder / "kv" / "thesis.odt").write_bytes(THESIS)
    (folder / "letter.txt").write_text("Dear")
    folder.chmod(0o755)
    return folder


def another_programs_database(tmp_path: Path) -> Path:
    import sqlite3

    folder = documents(tmp_path)
    db = sqlite3.connect(folder / "keepwarm.db")
    db.execute("CREATE TABLE notes (text TEXT)")
    db.commit()
    db.close()
    return folder


def a_letter_of_that_name(tmp_path: Path) -> Path:
    folder = documents(tmp_path)
    (folder / "keepwarm.db").write_text("Dear diary, " * 1000)
    return folder


def a_pipe_of_that_name(tmp_path: Path) -> Path:
    folder = documents(tmp_path)
    os.mkfifo(folder / "keepwarm.db")
    return folder


@pytest.mark.parametrize("make", [documents, another_programs_database, a_letter_of_that_name, a_pipe_of_that_name])
@pytest.mark.parametrize("opens", ["serve", "key"])
def test_a_directory_that_is_not_ours_is_refused_and_not_changed(
    tmp_path: Path, make: Callable[[Path], Path], opens: str
) -> None:
    folder = make(tmp_path)
    before, modes = seen(folder), {path: path.lstat().st_mode for path in (folder, *folder.rglob("*"))}
    for _ in range(2):
        with pytest.raises(StoreError, match=r"(not a Keepwarm data|or is not a Keepwarm data).*--data-dir"):
            Store(folder) if opens == "serve" else open_keys(folder)
    assert seen(folder) == before
    assert {path: path.lstat().st_mode for path in (folder, *folder.rglob("*"))} == modes


@pytest.mark.parametrize("holds", [[], ["lost+found"], ["keepwarm.lock"], ["kv", "kv/lost+found"]])
def test_a_new_volume_is_accepted(tmp_path: Path, holds: list[str]) -> None:
    folder = tmp_path / "volume"
    folder.mkdir()
    for name in holds:
        (folder / name).touch() if name.endswith(".lock") else (folder / name).mkdir()
    Store(folder).close()
    Store(folder).close()


def test_saved_memory_on_an_unmounted_disk_is_not_forgotten(make_harness: MakeHarness, tmp_path: Path) -> None:
    """`kv` may be a link to another disk, which leads nowhere until that disk is mounted."""
    harness = make_harness(disk_kv_budget_bytes=64 * MIB)
    c = harness.conversation()
    harness.say(c, LONG)
    harness.saved(c)
    harness.close()
    kv, elsewhere = harness.store.kv_dir, tmp_path / "big disk"
    kv.rename(elsewhere)
    kv.symlink_to(elsewhere)
    elsewhere.rename(tmp_path / "unplugged")
    make_harness(disk_kv_budget_bytes=64 * MIB).close()
    (tmp_path / "unplugged").rename(elsewhere)
    harness = make_harness(disk_kv_budget_bytes=64 * MIB)
    receipt = harness.receipt(harness.say(c, "Still there?"))
    assert receipt.miss_reason is None
    assert receipt.restored_bytes


def test_the_doctor_names_them(tmp_path: Path) -> None:
    store = Store(tmp_path / "data")
    store.kv_dir.mkdir(mode=0o700)
    a_document(store.kv_dir, tmp_path)
    report = Report(lambda sentence: None)
    inspect(store, report)
    store.close()
    (found,) = report.wrong
    assert "not written by Keepwarm: 2 files (thesis.odt, thesis.odt). They are left alone." in found
