"""One owner's conversations move to another server, as warm as they were, and nothing of anyone else goes along."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sessions.errors import StoreError
from sessions.maintenance import copying, owner_import
from sessions.maintenance.copying import sha256
from sessions.maintenance.owner_export import MANIFEST_NAME, export_owner, owners
from sessions.maintenance.owner_import import import_owner
from sessions.maintenance.owner_rows import OF_OWNERS, OF_THE_DIRECTORY
from sessions.store.database import Database
from sessions.types import MissReason, Tier
from tests.sessions.conftest import MakeHarness
from tests.sessions.memory.test_memory import LONG
from tests.sessions.scripted_engine import ScriptedEngine
from tests.sessions.session_harness import ADA, SessionHarness, finish, until

MIB = 1024 * 1024
BOB = "bob"
SECRET = "Nothing of this leaves the first server"


def whole(path: Path) -> str:
    """What is wrong with a file of the scripted engine, which has its own checksum."""
    return ""


@pytest.fixture
def first(make_harness: MakeHarness) -> SessionHarness:
    """A server where Ada has a saved conversation with a branch and an edited beginning, and Bob has one too."""
    harness = make_harness(disk_kv_budget_bytes=64 * MIB)
    own = harness.conversation()
    harness.say(own, LONG)
    harness.say(own, "More " + LONG)
    finish(harness.manager.regenerate(ADA, own))
    harness.saved(own)
    other = harness.conversation(BOB)
    harness.say(other, SECRET, BOB)
    harness.saved(other, BOB)
    return harness


@pytest.fixture
def own(first: SessionHarness) -> str:
    return first.manager.list_conversations(ADA)[0].conversation_id


@pytest.fixture
def second(make_harness: MakeHarness, tmp_path: Path) -> Callable[[], SessionHarness]:
    """The other server, with a conversation of Bob's, which has the numbers of Ada's messages."""

    def start(**settings: object) -> SessionHarness:
        config = {"disk_kv_budget_bytes": 64 * MIB, **settings}
        return make_harness(data_dir=tmp_path / "second", **config)

    harness = start()
    harness.say(harness.conversation(BOB), LONG, BOB)
    harness.close()
    return start


@pytest.fixture
def moved(first: SessionHarness, tmp_path: Path) -> Path:
    """Ada's export, with her saved memory."""
    target = tmp_path / "moved"
    export_owner(tmp_path / "data", ADA, target, with_saved=True)
    return target


def test_an_owner_goes_on_elsewhere_where_the_first_server_was(
    first: SessionHarness, own: str, second: Callable[[], SessionHarness], moved: Path, tmp_path: Path
) -> None:
    texts, ledger = first.texts(own), first.ledger(own)
    made = import_owner(moved, tmp_path / "second", True, whole)
    assert (made.owner_id, made.conversations, made.messages, made.dropped_segments) == (ADA, 1, 5, 0)
    assert made.segments > 0
    there = second()
    assert (there.texts(own), there.ledger(own)) == (texts, ledger)
    (bobs,) = there.manager.list_conversations(BOB)
    assert there.texts(bobs.conversation_id, BOB)[0] == LONG
    before = there.manager.view(ADA, own).messages[-1]
    assert (before.sibling_number, before.sibling_count, before.receipt is not None) == (2, 2, True)
    receipt = there.receipt(there.say(own, "And now?"))
    assert (receipt.tier_before, receipt.miss_reason, receipt.fed_tokens) == (Tier.DISK, None, receipt.delta_tokens)
    assert there.texts(own)[-1] == there.expected_text(own)
    finish(there.manager.edit(ADA, own, there.path(own)[0].message_id, "Other words."))
    assert first.texts(own) == texts, "the first server still has them"


def test_the_parts_of_an_answer_that_was_gone_on_with_stay_one_version(
    make_harness: MakeHarness, second: Callable[[], SessionHarness], tmp_path: Path
) -> None:
    first = make_harness()
    c = first.conversation(max_new_tokens=3)
    first.say(c, "Hello")
    finish(first.manager.continue_answer(ADA, c))
    export_owner(tmp_path / "data", ADA, tmp_path / "moved", with_saved=False)
    import_owner(tmp_path / "moved", tmp_path / "second", False, whole)
    last = second().manager.view(ADA, c).messages[-1]
    assert (last.sibling_number, last.sibling_count, last.message_id - last.first_part_id) == (1, 1, 1)


@pytest.fixture(params=["one disk", "two disks"])
def export_elsewhere(
    request: pytest.FixtureRequest, moved: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """The same export, on the data directories' disk or on another one."""
    if request.param == "one disk":
        yield moved
        return
    memory = Path("/dev/shm")
    if not memory.is_dir() or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no second file system")
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(shutil.copytree(moved, Path(folder) / "moved"))


def test_what_was_imported_outlives_the_export_and_the_first_server(
    first: SessionHarness, own: str, second: Callable[[], SessionHarness], export_elsewhere: Path, tmp_path: Path
) -> None:
    """Segments are linked where they can be. Neither side loses what the other one deletes."""
    made = import_owner(export_elsewhere, tmp_path / "second", True, whole)
    exported = {path.name: path.stat() for path in (export_elsewhere / "kv").rglob("*.kv")}
    brought = {path.name: path for path in (tmp_path / "second" / "kv").rglob("*.kv") if path.name in exported}
    assert made.segments == len(exported) == len(brought)
    on_one_disk = export_elsewhere.stat().st_dev == tmp_path.stat().st_dev
    assert {os.path.samestat(path.stat(), exported[name]) for name, path in brought.items()} == {on_one_disk}
    assert {path.stat().st_mode & 0o077 for path in brought.values()} == {0}
    contents = {path: path.read_bytes() for path in brought.values()}
    shutil.rmtree(export_elsewhere)
    there = second()
    receipt = there.receipt(there.say(own, "And now?"))
    assert (receipt.tier_before, receipt.fed_tokens) == (Tier.DISK, receipt.delta_tokens)
    first.manager.delete(ADA, own)
    until(lambda: not any(path.name in exported for path in first.files()))
    assert {path: path.read_bytes() for path in brought.values()} == contents
    there.close()
    again = second()
    receipt = again.receipt(again.say(own, "And after that?"))
    assert (receipt.tier_before, receipt.fed_tokens) == (Tier.DISK, receipt.delta_tokens)


def test_a_file_that_changes_hands_before_it_is_linked_is_copied(
    first: SessionHarness, own: str, moved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = os.link

    def swapped(origin: Path, target: Path, **more: bool) -> None:
        origin.chmod(0o666)
        link(origin, target, **more)

    monkeypatch.setattr(os, "link", swapped)
    made = import_owner(moved, tmp_path / "second", True, whole)
    exported = {path.name: path.stat().st_ino for path in (moved / "kv").rglob("*.kv")}
    brought = [path for path in (tmp_path / "second" / "kv").rglob("*.kv") if path.name in exported]
    assert made.segments == len(brought) > 0
    assert all(path.stat().st_ino != exported[path.name] for path in brought)
    assert {path.stat().st_mode & 0o777 for path in brought} == {0o600}


def test_deleting_what_was_imported_leaves_the_first_server_its_own(
    first: SessionHarness, own: str, second: Callable[[], SessionHarness], moved: Path, tmp_path: Path
) -> None:
    contents = {path: path.read_bytes() for path in first.files()}
    import_owner(moved, tmp_path / "second", True, whole)
    there = second()
    there.manager.delete(ADA, own)
    until(lambda: len(list((tmp_path / "second" / "kv").rglob("*.kv"))) < len(contents))
    assert {path: path.read_bytes() for path in first.files()} == contents
    receipt = first.receipt(first.say(own, "And now?"))
    assert receipt.fed_tokens == receipt.delta_tokens


def test_a_file_that_others_may_write_is_copied(
    second: Callable[[], SessionHarness], moved: Path, tmp_path: Path
) -> None:
    """Linked, it could be changed after it was checked."""
    files = {path.name: path for path in (moved / "kv").rglob("*.kv")}
    for path in files.values():
        path.chmod(0o666)
    import_owner(moved, tmp_path / "second", True, whole)
    brought = [path for path in (tmp_path / "second" / "kv").rglob("*.kv") if path.name in files]
    assert len(brought) == len(files)
    assert not any(path.samefile(files[path.name]) for path in brought)
    assert {path.stat().st_mode & 0o077 for path in brought} == {0}


def test_a_disk_that_fills_up_keeps_no_half_files(
    second: Callable[[], SessionHarness], moved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(origin: Path, target: Path) -> None:
        target.write_bytes(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    before = sorted((tmp_path / "second").rglob("*.kv"))
    for path in (moved / "kv").rglob("*.kv"):
        path.chmod(0o666)
    monkeypatch.setattr(copying, "copy_file", full)
    with pytest.raises(StoreError, match="No space left"):
        import_owner(moved, tmp_path / "second", True, whole)
    assert sorted((tmp_path / "second").rglob("*.kv")) == before


def test_without_its_saved_memory_a_receipt_says_why(
    own: str, second: Callable[[], SessionHarness], moved: Path, tmp_path: Path
) -> None:
    assert import_owner(moved, tmp_path / "second", False, whole).segments == 0
    there = second()
    receipt = there.receipt(there.say(own, "And now?"))
    assert (receipt.tier_before, receipt.miss_reason) == (Tier.NONE, MissReason.MOVED)
    assert receipt.miss_detail.startswith("It came from another server without its saved memory")


def test_nothing_of_others_is_in_an_export(first: SessionHarness, moved: Path) -> None:
    assert first.path(first.manager.list_conversations(BOB)[0].conversation_id, BOB)
    assert all(SECRET.encode() not in path.read_bytes() for path in moved.rglob("*") if path.is_file())
    with contextlib.closing(sqlite3.connect(moved / "keepwarm.db")) as db:
        assert db.execute("SELECT id FROM users").fetchall() == [(ADA,)]
        assert db.execute("SELECT DISTINCT owner_id FROM segments").fetchall() == [(ADA,)]
    assert sorted(path.name for path in moved.iterdir()) == ["keepwarm.db", "kv", MANIFEST_NAME]
    assert {path.stat().st_mode & 0o077 for path in [moved, *moved.rglob("*")]} == {0}


def test_every_table_is_an_owners_or_the_directorys(tmp_path: Path) -> None:
    """A new table must say which."""
    with contextlib.closing(Database(tmp_path / "new.db")) as database, database.read() as db:
        tables = {name for name in db.table_names() if not name.startswith(("sqlite_", "_sqlite"))}
    assert tables == OF_OWNERS | OF_THE_DIRECTORY


def test_log_ins_keys_and_codes_go_along(first: SessionHarness, own: str, tmp_path: Path) -> None:
    key, text = first.store.keys.add("A program")
    conversation = first.conversation(key.owner_id)
    first.say(conversation, "Hello.", key.owner_id)
    login = first.store.logins.add(key.owner_id, "browser", "mark", True)
    first.store.logins.keep("browser", key.owner_id, True)
    code = first.store.logins.forget("browser 2", key.owner_id)
    (tmp_path / "data" / "cookie.key").write_bytes(b"k" * 40)
    export_owner(tmp_path / "data", key.key_id, tmp_path / "moved", with_saved=False)
    (tmp_path / "second").mkdir()  # prepared, as for a new shard
    (tmp_path / "second" / "cookie.key").write_bytes(b"k" * 40)
    assert import_owner(tmp_path / "moved", tmp_path / "second", False, whole).has_same_key
    there = SessionHarness(tmp_path / "second")
    try:
        assert there.texts(conversation, key.owner_id)[0] == "Hello."
        assert (found := there.store.keys.holder(text)) is not None
        assert found.owner_id == key.owner_id
        assert there.store.keys.ever_made()
        assert there.store.logins.find(login, "mark") is not None
        assert [kept.owner_id for kept in there.store.logins.kept_by("browser")] == [key.owner_id]
        assert (opened := there.store.logins.owner_of_code(code)) is not None
        assert opened[0] == key.owner_id
        assert there.manager.list_conversations(ADA) == []
    finally:
        there.close()


def test_nothing_is_overwritten(own: str, second: Callable[[], SessionHarness], moved: Path, tmp_path: Path) -> None:
    import_owner(moved, tmp_path / "second", True, whole)
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "second" / "kv").rglob("*.kv")}
    with pytest.raises(StoreError, match=r"1 conversation of .* is here already\. Nothing was imported"):
        import_owner(moved, tmp_path / "second", True, whole)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "second" / "kv").rglob("*.kv")} == files
    there = second()
    assert there.receipt(there.say(own, "And now?")).tier_before is Tier.DISK
    with pytest.raises(StoreError, match="already using the data directory"):
        import_owner(moved, tmp_path / "second", True, whole)


def test_another_models_memory_is_refused(
    make_harness: MakeHarness, first: SessionHarness, own: str, moved: Path, tmp_path: Path
) -> None:
    other = make_harness(data_dir=tmp_path / "second", engine=ScriptedEngine(quantization="int8"))
    other.say(other.conversation(BOB), "Hello.", BOB)
    other.close()
    with pytest.raises(StoreError, match=r"the quantization was changed from .* to int8.*without --warm"):
        import_owner(moved, tmp_path / "second", True, whole)
    assert not list((tmp_path / "second" / "kv").rglob("*.kv"))
    import_owner(moved, tmp_path / "second", False, whole)
    assert {one.owner_id for one in owners(tmp_path / "second")} == {ADA, BOB}


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda moved: (moved / MANIFEST_NAME).unlink(), "was not made by `keepwarm export`"),
        (lambda moved: (moved / MANIFEST_NAME).write_text("{}"), "cannot be read"),
        (lambda moved: (moved / "keepwarm.db").write_bytes(b"x"), "is damaged"),
        (lambda moved: changed(moved, format=9), "another version of Keepwarm"),
    ],
)
def test_an_export_that_cannot_be_one(
    moved: Path, tmp_path: Path, spoil: Callable[[Path], object], sentence: str
) -> None:
    spoil(moved)
    with pytest.raises(StoreError, match=sentence):
        import_owner(moved, tmp_path / "third", True, whole)
    assert not (tmp_path / "third").exists()


def changed(moved: Path, **fields: object) -> None:
    said = json.loads((moved / MANIFEST_NAME).read_text())
    said["contents"] |= fields
    (moved / MANIFEST_NAME).write_text(json.dumps(said))


def test_a_newer_versions_export_is_refused(moved: Path, tmp_path: Path) -> None:
    with contextlib.closing(sqlite3.connect(moved / "keepwarm.db")) as db, db:
        db.execute("UPDATE _sqlite_migrations SET name = 'of_tomorrow' WHERE name = 'roots_of_forks'")
    changed(moved, database_sha256=sha256(moved / "keepwarm.db"))
    with pytest.raises(StoreError, match="newer Keepwarm"):
        import_owner(moved, tmp_path / "third", True, whole)


def test_damaged_files_are_left_out(own: str, moved: Path, tmp_path: Path) -> None:
    made = import_owner(moved, tmp_path / "third", True, lambda path: "its checksum is wrong")
    assert (made.segments, made.messages) == (0, 5)
    assert made.dropped_segments > 0
    assert not list((tmp_path / "third" / "kv").rglob("*.kv"))
    assert not list((tmp_path / "third").glob(".keepwarm-import-*"))


def test_what_fails_at_last_leaves_nothing(
    moved: Path, tmp_path: Path, second: Callable[[], SessionHarness], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object, **more: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    before = sorted((tmp_path / "second").rglob("*.kv"))
    monkeypatch.setattr(owner_import, "copy_owner", full)
    with pytest.raises(StoreError, match="disk is full"):
        import_owner(moved, tmp_path / "second", True, whole)
    assert sorted((tmp_path / "second").rglob("*.kv")) == before
    assert [one.owner_id for one in owners(tmp_path / "second")] == [BOB]


def test_the_bins_time_begins_again(first: SessionHarness, own: str, tmp_path: Path) -> None:
    """Each data directory counts its own hours."""
    with first.store.database.write() as db:
        db.execute("UPDATE conversations SET binned_s = 9e9, binned_at = ? WHERE id = ?", [time.time(), own])
    export_owner(tmp_path / "data", ADA, tmp_path / "moved", with_saved=False)
    import_owner(tmp_path / "moved", tmp_path / "third", False, whole)
    with contextlib.closing(sqlite3.connect(tmp_path / "third" / "keepwarm.db")) as db:
        assert db.execute("SELECT binned_s FROM conversations").fetchall() == [(0.0,)]
