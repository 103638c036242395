"""The database: ownership, what survives a restart, and the errors when the file cannot be used."""

from __future__ import annotations

import errno
import os
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest
import sqlite_utils

from model_runtime.interface.events import FinishReason
from model_runtime.interface.sampling_params import SamplingParams
from sessions.errors import ConversationNotFound, StoreError
from sessions.store import writable_folder
from sessions.store.migrations import MIGRATIONS
from sessions.store.records import NewMessages, NodeIds, pack, unpack
from sessions.store.store import Store
from sessions.types import ConversationSettings, MessageStatus, Receipt, Tier

SETTINGS = ConversationSettings(SamplingParams(stop_strings=("\n\n",), seed=7), "Be brief.")
RECEIPT = Receipt(46, 46, 1812, 30, Tier.DEVICE, 0.2, 0.0, 0.2, 1.0, 4.5, drafted_tokens=20, accepted_tokens=9)


@pytest.fixture
def store(tmp_path: Path):  # type: ignore[no-untyped-def]
    store = Store(tmp_path / "data")
    yield store
    store.close()


def add_turn(store: Store, conversation_id: str, parent_id: int | None = None, text: str = "Hello") -> int:
    return store.messages.begin_turn(
        NewMessages(
            conversation_id,
            parent_id,
            user=(text, NodeIds(0, (1, 2))),
            answer=("", NodeIds(2, ())),
            tokenizer_fingerprint="bytes",
            model_name="Model",
            numerics="weights: a",
            first_title="Title",
        )
    )


def test_migrations_from_an_empty_file(tmp_path: Path) -> None:
    Store(tmp_path / "data").close()
    db = sqlite_utils.Database(tmp_path / "data" / "keepwarm.db")
    assert {"users", "conversations", "messages", "receipts"} <= set(db.table_names())
    assert db.journal_mode == "wal"
    steps = ["users_and_conversations", "message_tree", "receipts", "segments", "restores_on_receipts", "pins"]
    steps += ["message_links", "api_keys", "drafts_on_receipts", "read_ahead"]
    steps += ["shared_beginnings", "numerics", "origins", "last_try", "bin_and_observed_time"]
    steps += ["losses_of_saved_memory"]
    steps += ["a_key_has_existed", "logins_on_the_server", "losses_by_numerics", "template_variables", "responses"]
    steps += ["reports_of_remote_engines", "roots_of_forks", "waits_for_shared_beginnings"]
    steps += ["where_histories_part", "continued_answers", "added_items", "system_items"]
    assert [m.name for m in MIGRATIONS.applied(db)] == steps
    assert MIGRATIONS.pending(db) == []
    db.close()


def test_every_migration_applies_on_the_one_before(tmp_path: Path) -> None:
    """A database of each earlier version opens."""
    for number, migration in enumerate(MIGRATIONS._migrations):  # noqa: SLF001 - each step alone
        data = tmp_path / str(number)
        data.mkdir()
        db = sqlite_utils.Database(data / "keepwarm.db")
        MIGRATIONS.apply(db, stop_before=migration.name)
        db.close()
        Store(data).close()


def test_a_newer_database_is_refused(tmp_path: Path) -> None:
    Store(tmp_path / "data").close()
    db = sqlite_utils.Database(tmp_path / "data" / "keepwarm.db")
    db["_sqlite_migrations"].insert({"migration_set": "keepwarm", "name": "from_the_future", "applied_at": "now"})
    db.close()
    with pytest.raises(StoreError, match="written by a newer Keepwarm"):
        Store(tmp_path / "data")
    with pytest.raises(StoreError, match="newer"):  # and the lock was released
        Store(tmp_path / "data")


def test_only_this_user_may_read_the_files(store: Store, tmp_path: Path) -> None:
    add_turn(store, store.create_conversation("ada", SETTINGS).conversation_id)
    assert stat.S_IMODE((tmp_path / "data").stat().st_mode) == 0o700
    files = list((tmp_path / "data").iterdir())
    assert {f.name for f in files} >= {"keepwarm.db", "keepwarm.db-wal", "keepwarm.lock"}
    assert {stat.S_IMODE(f.stat().st_mode) for f in files} == {0o600}


def test_a_second_process_is_refused(store: Store, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=rf"process {os.getpid()}.*already using the data directory"):
        Store(tmp_path / "data")
    script = "import sys, pathlib; from sessions.store.store import Store; Store(pathlib.Path(sys.argv[1]))"
    child = subprocess.run([sys.executable, "-c", script, tmp_path / "data"], capture_output=True, text=True)
    assert child.returncode == 1
    assert "already using the data directory" in child.stderr


def test_the_data_directory_is_free_again_after_close(tmp_path: Path) -> None:
    Store(tmp_path / "data").close()
    Store(tmp_path / "data").close()


def test_a_data_directory_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("in the way")
    with pytest.raises(StoreError, match=r"cannot be used .*--data-dir"):
        Store(tmp_path / "data")


def test_a_data_directory_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match="cannot be used"):
        Store(tmp_path / "file" / "data")


def test_an_unwritable_data_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may write anywhere, so the kernel's refusal is simulated."""

    def refuse(*args: object, **kwargs: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(StoreError, match=r"Permission denied.*write permission"):
        Store(tmp_path / "data")


def test_a_file_that_is_not_a_database(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "keepwarm.db").write_text("this is a letter, not a database\n" * 100)
    with pytest.raises(StoreError, match="damaged or is not a Keepwarm database"):
        Store(tmp_path / "data")


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ("database or disk is full", "disk that holds .* is full"),
        ("attempt to write a readonly database", "cannot be written"),
        ("database is locked", "locked by another program"),
        ("database disk image is malformed", "damaged"),
        ("no such table: messages", "cannot be used"),
    ],
)
def test_sqlite_errors_are_translated(store: Store, said: str, sentence: str) -> None:
    with pytest.raises(StoreError, match=sentence), store.database.write():
        raise sqlite3.OperationalError(said)


@pytest.mark.parametrize("said", ["attempt to write a readonly database", "disk I/O error"])
@pytest.mark.parametrize(("code", "sentence"), [(errno.EROFS, "disk .* is read-only"), (errno.EDQUOT, "quota")])
def test_what_sqlite_does_not_tell_apart_is_found_out(
    store: Store, monkeypatch: pytest.MonkeyPatch, said: str, code: int, sentence: str
) -> None:
    """A disk that became read-only under an open database, as SQLite reports it."""

    def fails(folder: Path) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(writable_folder, "_write_and_forget", fails)
    with pytest.raises(StoreError, match=sentence), store.database.write():
        raise sqlite3.OperationalError(said)


def test_a_failed_transaction_leaves_nothing(store: Store) -> None:
    def half() -> None:
        with store.database.write() as db:
            db.execute("INSERT INTO users(id, created_at) VALUES ('eve', 0)")
            db.execute("INSERT INTO no_such_table VALUES (1)")

    with pytest.raises(StoreError):
        half()
    with store.database.read() as db:
        assert db["users"].count == 0


def test_foreign_keys_are_on(store: Store) -> None:
    with pytest.raises(StoreError, match="FOREIGN KEY"):
        add_turn(store, "f" * 32)


def test_every_thread_has_its_own_connection(store: Store) -> None:
    connections: set[int] = set()
    errors: list[Exception] = []

    def use() -> None:
        try:
            store.create_conversation(threading.current_thread().name, SETTINGS)
            connections.add(id(store.database._connection().conn))  # noqa: SLF001 - one connection per thread
            barrier.wait(10)
        except Exception as error:
            errors.append(error)

    barrier = threading.Barrier(8)
    threads = [threading.Thread(target=use) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(connections) == 8


def test_a_closed_store_says_so(tmp_path: Path) -> None:
    store = Store(tmp_path / "data")
    store.close()
    store.close()
    with pytest.raises(StoreError, match="closed"):
        store.create_conversation("ada", SETTINGS)


def test_settings_round_trip(store: Store) -> None:
    conversation = store.create_conversation("ada", SETTINGS)
    assert store.conversation("ada", conversation.conversation_id).settings == SETTINGS


def test_sampling_that_is_no_longer_allowed_becomes_the_default(store: Store) -> None:
    conversation = store.create_conversation("ada", SETTINGS)
    with store.database.write() as db:
        db.execute("""UPDATE conversations SET settings = '{"sampling": {"warmth": 3}, "system_prompt": "Kept."}'""")
    assert store.conversation("ada", conversation.conversation_id).settings == ConversationSettings(
        SamplingParams(), "Kept."
    )


def test_an_empty_conversation_is_used_again(store: Store) -> None:
    first = store.create_conversation("ada", SETTINGS)
    assert store.create_conversation("ada", SETTINGS).conversation_id == first.conversation_id
    assert store.create_conversation("eve", SETTINGS).conversation_id != first.conversation_id
    add_turn(store, first.conversation_id)
    assert store.create_conversation("ada", SETTINGS).conversation_id != first.conversation_id


def test_an_empty_conversation_keeps_its_settings_and_its_tab(store: Store) -> None:
    chosen = ConversationSettings(SamplingParams(temperature=0.0), "Be brief.")
    first = store.create_conversation("ada", SETTINGS).conversation_id
    store.set_settings(first, chosen)
    assert store.create_conversation("ada", SETTINGS).settings == chosen
    second = store.create_conversation("ada", SETTINGS, taken=[first])
    assert (second.conversation_id != first, second.settings) == (True, SETTINGS)
    assert store.create_conversation("ada", SETTINGS, taken=[second.conversation_id]).conversation_id == first
    assert store.conversations("ada")[0].conversation_id == first  # the one that is shown comes first
    store.rename(first, "For later")
    assert store.create_conversation("ada", SETTINGS).conversation_id == second.conversation_id
    # A program's conversation is empty until its first message is stored.
    store.add_conversation("ada", "a" * 32, SETTINGS, None)
    assert store.create_conversation("ada", SETTINGS).conversation_id == second.conversation_id


@pytest.mark.parametrize(
    ("text", "search", "found"),
    [
        ("Ich war in Москва, im Winter", "москва", "Москва"),
        ("МОСКВА", "Москва", "МОСКВА"),
        ("Die STRASSE nach Rom", "straße", "STRASSE"),
        ("Die Straße nach Rom", "strasse", "Straße"),
        ("ΟΔΟΣ ΑΘΗΝΩΝ", "οδός αθηνών", None),  # accents are letters
        ("ΟΔΟΣ ΑΘΗΝΩΝ", "οδος", "ΟΔΟΣ"),
        ("İstanbul", "istanbul", "İstanbul"),
        ("ISPARTA", "ısparta", "ISPARTA"),
        ("cafe\u0301 noir", "CAFÉ", "cafe\u0301"),
        ("ＦＵＬＬ width", "full", "ＦＵＬＬ"),
        ("Hello World", "o w", "o W"),
        ("100% sure_thing \\ here", "100% SURE_THING \\", "100% sure_thing \\"),
        ("100x sure", "100%", None),
        ("a東京b", "東京", "東京"),
        ("مرحبا بالعالم", "بالعالم", "بالعالم"),
    ],
)
def test_a_search_knows_the_case_of_every_script(store: Store, text: str, search: str, found: str | None) -> None:
    c = store.create_conversation("ada", SETTINGS).conversation_id
    add_turn(store, c, text=f"Look: {text}!")
    store.create_conversation("ada", SETTINGS)
    places = [one.found for one in store.conversations("ada", search)]
    assert [place.found for place in places if place is not None] == ([] if found is None else [found])
    if found is not None:
        assert f"{places[0].before}{places[0].found}{places[0].after}" == f"Look: {text}!"  # type: ignore[union-attr]
    store.rename(c, text)
    assert len(store.conversations("ada", search)) == (found is not None)


@pytest.mark.parametrize("wrong", ["", "0" * 32, "' OR 1=1 --", "\ud800", "x" * 100_000, None, 7])
def test_wrong_conversation_ids(store: Store, wrong: str) -> None:
    store.create_conversation("ada", SETTINGS)
    with pytest.raises(ConversationNotFound):
        store.conversation("ada", wrong)


@pytest.mark.parametrize("wrong", [0, -1, 2**63, 2**200, "1", None, 12345])
def test_wrong_message_ids(store: Store, wrong: int) -> None:
    conversation = store.create_conversation("ada", SETTINGS)
    add_turn(store, conversation.conversation_id)
    with pytest.raises(ConversationNotFound):
        store.messages.switch(conversation.conversation_id, wrong, 1)


def test_token_ids_round_trip() -> None:
    ids = (0, 1, 255, 49_151, 2**31 - 1)
    assert unpack(pack(ids)) == ids
    assert pack((1, 256)) == b"\x01\0\0\0\0\x01\0\0"


def test_an_answer_its_ids_and_its_receipt_are_one_transaction(store: Store) -> None:
    """If the receipt cannot be written, the answer is still running: nothing is half done."""
    conversation = store.create_conversation("ada", SETTINGS)
    answer = add_turn(store, conversation.conversation_id)
    with store.database.write() as db:
        db.execute("CREATE TRIGGER no BEFORE INSERT ON receipts BEGIN SELECT RAISE(ABORT, 'no receipts today'); END")
    with pytest.raises(StoreError, match="no receipts today"):
        store.messages.finish_answer(answer, "Hi", (3,), MessageStatus.COMPLETE, FinishReason.STOP, "", RECEIPT)
    view = store.messages.view(answer)
    assert (view.status, view.text, view.receipt) == (MessageStatus.RUNNING, "", None)
    with store.database.write() as db:
        db.execute("DROP TRIGGER no")
    store.messages.finish_answer(answer, "Hi", (3,), MessageStatus.COMPLETE, FinishReason.STOP, "", RECEIPT)
    assert store.messages.view(answer).receipt == RECEIPT
    assert store.totals("ada").reused_tokens == 1812


def test_totals_outlive_their_conversation(store: Store) -> None:
    conversation = store.create_conversation("ada", SETTINGS)
    answer = add_turn(store, conversation.conversation_id)
    store.messages.finish_answer(answer, "Hi", (3,), MessageStatus.COMPLETE, FinishReason.STOP, "", RECEIPT)
    store.delete(conversation.conversation_id)
    assert (store.totals("ada").saved_s, store.totals("ada").reused_tokens) == (4.5, 1812)
    with store.database.read() as db:
        assert (db["messages"].count, db["receipts"].count, db["conversations"].count) == (0, 0, 0)


def test_a_late_checkpoint_does_not_touch_a_finished_answer(store: Store) -> None:
    conversation = store.create_conversation("ada", SETTINGS)
    answer = add_turn(store, conversation.conversation_id)
    store.messages.finish_answer(answer, "All of it", (3, 4), MessageStatus.COMPLETE, FinishReason.STOP, "", None)
    store.messages.checkpoint(answer, "Half", (3,))
    assert store.messages.view(answer).text == "All of it"


def test_running_answers_become_interrupted_and_keep_their_ids(store: Store) -> None:
    conversation = store.create_conversation("ada", SETTINGS)
    answer = add_turn(store, conversation.conversation_id)
    store.messages.checkpoint(answer, "Hal", (72, 97, 108))
    assert store.messages.interrupt_running() == 1
    assert store.messages.interrupt_running() == 0
    node = store.messages.path(answer)[-1]
    assert (node.status, node.text, node.ids.token_ids) == (MessageStatus.INTERRUPTED, "Hal", (72, 97, 108))
    assert "Continue it" in store.messages.view(answer).note


def test_siblings_and_the_most_recently_used_child(store: Store) -> None:
    c = store.create_conversation("ada", SETTINGS).conversation_id
    first = add_turn(store, c, text="one")
    below_first = add_turn(store, c, first, "one-below")
    second = add_turn(store, c, None, "two")
    user_two = store.messages.views(second)[0]
    assert (user_two.sibling_number, user_two.sibling_count) == (2, 2)
    store.messages.switch(c, user_two.message_id, -1)
    assert store.conversation("ada", c).leaf_id == below_first
    store.messages.switch(c, store.messages.views(below_first)[0].message_id, -1)  # there is none before the first
    assert store.conversation("ada", c).leaf_id == below_first
    store.messages.switch(c, store.messages.views(below_first)[0].message_id, +1)
    assert store.conversation("ada", c).leaf_id == second


@pytest.mark.parametrize(
    ("search", "found"),
    [
        ("100%", ["100% sure"]),
        ("%", ["100% sure"]),
        ("_", ["snake_case"]),
        ("SURE", ["100% sure"]),
        ("\\", ["back\\slash"]),
        ("Hello", ["back\\slash", "snake_case", "100% sure"]),
        ("nowhere", []),
        ("'; DROP TABLE users", []),
    ],
)
def test_search_takes_wildcards_as_text(store: Store, search: str, found: list[str]) -> None:
    for title in ("100% sure", "snake_case", "back\\slash"):
        conversation = store.create_conversation("ada", SETTINGS)
        store.rename(conversation.conversation_id, title)
        add_turn(store, conversation.conversation_id)
    assert [c.title for c in store.conversations("ada", search)] == found
    assert store.conversations("eve", search) == []
    assert store.conversations("ada", "x" * 100_000) == []


def test_a_database_that_lacks_a_part_is_refused_by_its_name(tmp_path: Path) -> None:
    Store(tmp_path / "whole").close()
    whole = (tmp_path / "whole" / "keepwarm.db").read_bytes()
    with closing(sqlite3.connect(tmp_path / "whole" / "keepwarm.db")) as db:
        tables = [name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    parts = {f'DROP TABLE "{name}"': name for name in tables if not name.startswith(("sqlite_", "_"))}
    assert len(parts) > 15
    parts |= {"ALTER TABLE receipts DROP COLUMN saved_s": r"receipts\.saved_s"}
    for number, (damage, name) in enumerate(parts.items()):
        data = tmp_path / str(number)
        data.mkdir()
        (data / "keepwarm.db").write_bytes(whole)
        with closing(sqlite3.connect(data / "keepwarm.db")) as db:
            db.execute(damage)
            db.commit()
        with pytest.raises(StoreError, match=f"is damaged: it lacks {name}\\. Restore a backup"):
            Store(data)


def test_one_of_thousands_of_versions_is_read_at_once(tmp_path: Path) -> None:
    """Programs that ask the same thing again and again make siblings, and each finished answer is read once more."""
    store = Store(tmp_path)
    with closing(sqlite3.connect(tmp_path / "keepwarm.db")) as db:
        columns = "conversation_id, parent_id, role, status, created_at, last_used_at, tokenizer_fingerprint, "
        columns += "model_name, ledger_start, text, token_ids"
        row = f"INSERT INTO messages({columns}) VALUES ('c', ?, ?, 'complete', 0, 0, 'f', 'm', 0, '', zeroblob(9000))"
        question = db.execute(row, (None, "user")).lastrowid
        db.executemany(row, [(question, "assistant")] * 3000)
        db.commit()
    began = time.monotonic()
    last = store.messages.view(question + 3000)
    assert (last.sibling_number, last.sibling_count) == (3000, 3000)
    assert time.monotonic() - began < 1  # 4 s when each version was compared with each
    store.close()
