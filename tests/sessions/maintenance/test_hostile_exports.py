"""An export may come from anyone. Whatever its rows say, an import adds none that leads to what is here already."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import shutil
import sqlite3
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest

from sessions.errors import StoreError
from sessions.maintenance import copying
from sessions.maintenance.copying import sha256
from sessions.maintenance.owner_export import MANIFEST_NAME, export_owner
from sessions.maintenance.owner_import import import_owner
from sessions.maintenance.owner_rows import OF_OWNERS
from sessions.store.store import Store
from tests.sessions.memory.test_memory import LONG
from tests.sessions.session_harness import ADA, SessionHarness, finish

MIB = 1024 * 1024
FIRST = "SELECT id FROM conversations WHERE rowid = 1"
BOB, SECRET = "bob", "Only Bob reads this here."
AT_ONCE, OF_MANY = 4, 250  # imports in the short run, and in that of `make test-long`


@dataclass(frozen=True)
class Site:
    """An export of Ada's, and the server that it comes to, which has a conversation of Bob's."""

    export: Path
    data: Path
    bobs_id: str
    bobs_segment: str

    def fresh(self, target: Path) -> Site:
        shutil.copytree(self.export, target / "moved")
        shutil.copytree(self.data, target / "second")
        return Site(target / "moved", target / "second", self.bobs_id, self.bobs_segment)

    def spoil(self, *statements: str) -> None:
        """Changes the export's database, and its checksum with it."""
        with contextlib.closing(sqlite3.connect(self.export / "keepwarm.db")) as db:
            for statement in statements:
                db.execute(statement)
            db.commit()
        self.say(contents={"database_sha256": sha256(self.export / "keepwarm.db")})

    def say(self, **fields: object) -> None:
        said = json.loads((self.export / MANIFEST_NAME).read_text())
        said["contents"] |= fields.pop("contents", {})
        (self.export / MANIFEST_NAME).write_text(json.dumps(said | fields))

    def take(self) -> None:
        import_owner(self.export, self.data, True, lambda path: "")

    def everything(self) -> tuple[list[str], list[Path]]:
        with contextlib.closing(sqlite3.connect(self.data / "keepwarm.db")) as db:
            return list(db.iterdump()), sorted(self.data.rglob("*.kv"))

    def read(self, owner_id: str) -> str:
        """All that an owner sees."""
        with contextlib.closing(Store(self.data)) as store:
            found = [
                (one.title, asdict(view), node.text, node.messages)
                for one in store.conversations(owner_id)
                for view, node in zip(store.messages.views(one.leaf_id), store.messages.path(one.leaf_id), strict=True)
            ]
            keys = [key.key_id for key in store.keys.every() if key.owner_id == owner_id]
            return repr((found, keys, store.logins.kept_by("browser"), store.totals(owner_id)))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Site:
    folder = tmp_path_factory.mktemp("site")
    first = SessionHarness(folder / "first", disk_kv_budget_bytes=64 * MIB)
    own = first.conversation()
    first.say(own, LONG)
    first.say(own, "More.")
    finish(first.manager.regenerate(ADA, own))
    first.say(first.conversation(), "Another one.")
    first.saved(own)
    first.close()
    export_owner(folder / "first", ADA, folder / "moved", with_saved=True)
    second = SessionHarness(folder / "second", disk_kv_budget_bytes=64 * MIB)
    bobs = second.conversation(BOB)
    second.say(bobs, SECRET + LONG, BOB)
    second.saved(bobs, BOB)
    key = second.store.segments.every()[0].key
    second.close()
    return Site(folder / "moved", folder / "second", bobs, key)


@pytest.fixture
def site(made: Site, tmp_path: Path) -> Site:
    return made.fresh(tmp_path)


def refuse(site: Site, sentence: str) -> None:
    before = site.everything()
    with pytest.raises(StoreError, match=sentence):
        site.take()
    assert site.everything() == before


@pytest.mark.parametrize(
    ("statement", "sentence"),
    [
        ("UPDATE messages SET parent_id = -1 WHERE parent_id IS NULL", "below one of another conversation"),
        ("UPDATE messages SET parent_id = (SELECT max(id) FROM messages) WHERE id = 1", "below one of another"),
        ("UPDATE messages SET first_part_id = -1", "a part of a message of another"),
        ("UPDATE conversations SET leaf_id = -1", "a last message of another"),
        ("UPDATE conversations SET leaf_id = (SELECT max(id) FROM messages)", "a last message of another"),
        ("UPDATE receipts SET message_id = -message_id", "refers to a missing one"),
        ("INSERT INTO kv_losses SELECT id, '', 'unsaved', '', -1 FROM conversations", "a message of another"),
        (
            f"UPDATE messages SET id = {2**45} WHERE id = (SELECT max(id) FROM messages)",
            "a number that is no message's",
        ),
        ("UPDATE segments SET key = '../../../../x' WHERE rowid = 1", "not 40 hexadecimal digits"),
        ("UPDATE segments SET token_ids = x'01000000'", "not of its owner and its tokens"),
        ("INSERT INTO users(id, created_at) VALUES ('bob', 0)", "a row of another owner"),
        (
            "INSERT INTO api_keys(id, name, hash, owner_id, created_at) VALUES ('k', 'k', 'h', 'bob', 0)",
            "another owner",
        ),
        ("INSERT INTO api_keys(id, name, hash, owner_id, created_at) VALUES ('k', 'k', 'h', 'ada', 0)", "is no key's"),
        ("UPDATE conversations SET settings = '{}'", "cannot be read"),
        ("UPDATE conversations SET origin = 'nowhere'", "origin that there is not"),
        ("UPDATE messages SET text = CAST(x'ff' AS TEXT)", "cannot be read"),
        ("UPDATE messages SET token_ids = 'text'", "a token_ids that is none"),
        ("UPDATE conversations SET updated_at = 9e999", "a updated_at that is none"),
        *(
            (
                f"INSERT INTO added_items(id, conversation_id, body) VALUES ('msg_1', ({FIRST}), '{body}')",
                sentence,
            )
            for body, sentence in (
                ("7", "an item that is none"),
                ("[]", "an item that is none"),
                ('{"type": "message"}', "an item that is none"),
                ('{"type": "message", "id": "msg_2"}', "an item that is none"),
                ('{"type": "other", "id": "msg_1"}', "an item that is none"),
                ('{"type": ["message"], "id": "msg_1"}', "an item that is none"),
                ("[" * 100_000, "cannot be read"),
            )
        ),
        ("UPDATE conversations SET metadata = '{'", "cannot be read"),
        ("UPDATE conversations SET metadata = '[]'", "metadata that are none"),
        ("""UPDATE conversations SET metadata = '{"a": 1}'""", "metadata that are none"),
    ],
)
def test_a_row_that_no_export_has(site: Site, statement: str, sentence: str) -> None:
    site.spoil(statement)
    refuse(site, sentence)


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO api_keys(id, name, hash, owner_id, created_at) VALUES ('k', 'k', 'h', 'key:1', 0)",
        "INSERT INTO logins VALUES ('h', 'key:1', 'b', 'm', 0, 0, 9e9, '')",
        "INSERT INTO browser_owners VALUES ('browser', 'key:1', 0, 0, NULL)",
        "INSERT INTO recovery_codes VALUES ('h', 'key:1', 0)",
    ],
)
def test_nothing_opens_what_is_here(site: Site, statement: str) -> None:
    """Whose owner is here already, and everywhere."""
    renamed = [f"UPDATE {table} SET owner_id = 'key:1'" for table in ("conversations", "message_links")]
    renamed += ["UPDATE users SET id = 'key:1'", "DELETE FROM segment_references", "DELETE FROM segments"]
    site.spoil(*renamed, statement)
    site.say(owner_id="key:1")
    with contextlib.closing(sqlite3.connect(site.data / "keepwarm.db")) as db, db:
        db.execute("INSERT INTO users(id, created_at) VALUES ('key:1', 0)")
    refuse(site, "is here already, and the export brings log-ins or keys")
    site.spoil(*(f"DELETE FROM {table}" for table in ("api_keys", "logins", "browser_owners", "recovery_codes")))
    site.take()
    assert "Another one." in site.read("key:1")


def test_the_owner_of_every_server_without_a_password_has_no_log_in(site: Site) -> None:
    site.spoil("UPDATE users SET id = 'local'", "INSERT INTO recovery_codes VALUES ('h', 'local', 0)")
    site.spoil(*(f"UPDATE {table} SET owner_id = 'local'" for table in ("conversations", "message_links")))
    site.spoil("DELETE FROM segment_references", "DELETE FROM segments")
    site.say(owner_id="local")
    refuse(site, "a log-in of an owner who has none")


def test_another_owners_conversation_and_segment_are_not_named(site: Site) -> None:
    site.spoil(f"UPDATE receipts SET shared_from = '{site.bobs_id}'")
    refuse(site, "A receipt of the export names what is another owner's here")
    mine = "(SELECT id FROM conversations WHERE rowid = 1)"
    site.spoil(
        "UPDATE receipts SET shared_from = ''",
        *(
            f"UPDATE {table} SET conversation_id = '{site.bobs_id}' WHERE conversation_id = {mine}"
            for table in ("messages", "segment_references", "kv_losses")
        ),
        f"UPDATE conversations SET id = '{site.bobs_id}' WHERE rowid = 1",
    )
    refuse(site, "1 conversation of .* is here already")


def test_nothing_of_the_exports_schema_is_used(site: Site) -> None:
    site.spoil(
        "CREATE TABLE extra (x)",
        "CREATE TRIGGER late AFTER DELETE ON segments BEGIN UPDATE messages SET text = 'changed'; END",
        "CREATE VIEW more AS SELECT load_extension('x')",
    )
    site.take()
    assert "changed" not in site.read(ADA)
    with contextlib.closing(sqlite3.connect(site.data / "keepwarm.db")) as db:
        names = {row[0] for row in db.execute("SELECT name FROM sqlite_master")}
    assert not names & {"extra", "late", "more"}


def test_an_older_versions_export_is_brought_up_to_date(site: Site) -> None:
    site.spoil(
        "DROP INDEX messages_by_first_part",
        "DROP INDEX messages_by_version",
        "ALTER TABLE messages DROP COLUMN first_part_id",
        "DROP TABLE added_items",
        "ALTER TABLE conversations DROP COLUMN metadata",
        "ALTER TABLE conversations DROP COLUMN system_items",
        "DELETE FROM _sqlite_migrations WHERE name IN ('continued_answers', 'added_items', 'system_items')",
    )
    site.take()
    assert "Another one." in site.read(ADA)


def test_items_and_metadata_come_along(site: Site) -> None:
    body = json.dumps({"id": "msg_1", "type": "message", "role": "user", "content": "Waiting."})
    site.spoil(
        f"INSERT INTO added_items(id, conversation_id, body) VALUES ('msg_1', ({FIRST}), '{body}')",
        """UPDATE conversations SET metadata = '{"a": "b"}'""",
    )
    site.take()
    with contextlib.closing(sqlite3.connect(site.data / "keepwarm.db")) as db:
        assert db.execute("SELECT id, body FROM added_items").fetchall() == [("msg_1", body)]


def test_steps_that_are_missing(site: Site) -> None:
    site.spoil("DELETE FROM _sqlite_migrations WHERE name = 'pins'")
    refuse(site, "steps of its schema are missing")


def test_a_view_is_no_table(site: Site) -> None:
    site.spoil("ALTER TABLE messages RENAME TO kept", "CREATE VIEW messages AS SELECT * FROM kept")
    refuse(site, "has no table messages")


@pytest.mark.parametrize("name", ["keepwarm.db", MANIFEST_NAME, "kv/x.kv"])
@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_a_link_or_a_pipe_is_no_file(site: Site, name: str, kind: str) -> None:
    path = site.export / name
    path.unlink(missing_ok=True)
    if kind == "link":
        path.symlink_to(site.data / "keepwarm.db")
    else:
        os.mkfifo(path)
    refuse(site, "is neither a file nor a folder")


def test_another_users_directory(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    before = site.everything()
    monkeypatch.setattr(copying.os, "geteuid", lambda: site.data.stat().st_uid + 1)
    with pytest.raises(StoreError, match=r"runuser -u \S+ -- keepwarm import .*Nothing was changed"):
        site.take()
    assert site.everything() == before


def values(site: Site) -> tuple[str, ...]:
    """What each column is changed to, as SQL."""
    texts = ("../../x", "bob", site.bobs_id, site.bobs_segment, "1,2")
    return ("-1", "-4", "0", "1", "3", str(2**62), str(-(2**63)), "9e999", "NULL", "x'ff'", *map(repr, texts))


def changes(site: Site) -> Iterator[tuple[str, str]]:
    with contextlib.closing(sqlite3.connect(site.export / "keepwarm.db")) as db:
        for table in sorted(OF_OWNERS):
            count = db.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
            columns = [row[1] for row in db.execute(f"PRAGMA table_info({table})")] if count else []
            yield from itertools.product([f"{table} SET {name}" for name in columns], values(site))


def try_changes(site: Site, tmp_path: Path, which: list[tuple[str, str]]) -> dict[bool, int]:
    """Imports the export with each change alone. Returns how many were taken, and how many refused."""
    before, bobs = site.everything(), site.read(BOB)
    counts = {True: 0, False: 0}
    for number, (column, value) in enumerate(which):
        one = site.fresh(tmp_path / str(number))
        try:
            one.spoil(f"UPDATE OR REPLACE {column} = {value}")
        except sqlite3.IntegrityError:  # the table itself forbids it
            continue
        try:
            one.take()
        except StoreError:
            assert one.everything()[0] == before[0], (column, value)
            counts[False] += 1
        else:
            assert one.read(BOB) == bobs, (column, value)
            assert SECRET not in one.read(ADA), (column, value)
            counts[True] += 1
        shutil.rmtree(tmp_path / str(number))
    return counts


def test_a_changed_value_shows_nothing_of_others(site: Site, tmp_path: Path) -> None:
    which = random.sample(list(changes(site)), AT_ONCE)
    try_changes(site, tmp_path, which)


@pytest.mark.long
def test_no_changed_value_shows_anything_of_others(site: Site, tmp_path: Path) -> None:
    counts = try_changes(site, tmp_path, random.sample(list(changes(site)), OF_MANY))
    assert min(counts.values()) > 20, "some are harmless, and most are refused"
