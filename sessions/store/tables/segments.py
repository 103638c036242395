"""The rows of saved segments: which file holds which run of which ledger, and which conversations refer to it."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from model_runtime.interface.segments import SegmentIdentity
from sessions.store.database import Database
from sessions.store.records import pack, unpack

# All but the token ids
_COLUMNS = "s.key, s.parent_key, s.owner_id, s.fingerprint, s.start_tokens, s.tokens, s.bytes, s.last_used_at"
_OF_CONVERSATION = f"""
    SELECT {_COLUMNS}, r.conversation_id AS users FROM segment_references r
    JOIN segments s ON s.key = r.segment_key WHERE r.conversation_id = ?"""  # noqa: S608
_EVERY = f"""
    SELECT {_COLUMNS}, group_concat(r.conversation_id) AS users FROM segments s
    LEFT JOIN segment_references r ON r.segment_key = s.key GROUP BY s.key"""  # noqa: S608
_ALIKE = f"""
    WITH RECURSIVE alike(key) AS (
        SELECT key FROM (
            SELECT key FROM segments
            WHERE owner_id = ? AND fingerprint = ? AND parent_key = '' AND substr(token_ids, 1, ?) = ?
            ORDER BY last_used_at DESC LIMIT ?)
        UNION SELECT s.key FROM segments s JOIN alike a ON s.parent_key = a.key
    ) SELECT {_COLUMNS}, group_concat(r.conversation_id) AS users FROM segments s JOIN alike a ON a.key = s.key
    JOIN segment_references r ON r.segment_key = s.key GROUP BY s.key"""  # noqa: S608
_DESCENDANTS = """
    WITH RECURSIVE doomed(key) AS (
        SELECT ? UNION SELECT s.key FROM segments s JOIN doomed d ON s.parent_key = d.key
    ) SELECT key FROM doomed """


@dataclass(frozen=True, slots=True)
class SavedSegment:
    """A row without its token ids. `fingerprint` says what it was computed with (`segments.with_format`), without the
    owner; `size_bytes` is the size of the file."""

    key: str
    parent_key: str
    owner_id: str
    fingerprint: str
    start_tokens: int
    tokens: int
    size_bytes: int
    last_used_at: float
    conversation_ids: tuple[str, ...] = ()  # those that refer to it

    @property
    def end_tokens(self) -> int:
        return self.start_tokens + self.tokens

    @property
    def users(self) -> tuple[tuple[str, str], ...]:
        """Who would lose it: pairs of conversation and numerics."""
        return tuple((conversation_id, self.fingerprint) for conversation_id in self.conversation_ids)


@dataclass(frozen=True, slots=True)
class Served:
    """What a group of segments was computed with. `model` is the model's name, "" if unknown."""

    numerics: str
    model: str
    segments: int
    size_bytes: int
    is_last: bool  # the most recent server computes with it


@dataclass(frozen=True, slots=True)
class Saved:
    """What one conversation has saved in a tier, all branches together. `tokens` is how far the longest one reaches;
    `all_tokens` counts every branch, what they have in common once."""

    tokens: int
    size_bytes: int
    all_tokens: int


class SegmentTable:
    """Every method is one transaction and raises `StoreError` when the file fails."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def of_conversation(self, conversation_id: str) -> list[SavedSegment]:
        """The segments that a conversation refers to, of any model."""
        with self._database.read() as db:
            return [_saved(row) for row in db.query(_OF_CONVERSATION, [conversation_id])]

    def beginning_with(self, owner_id: str, numerics: str, ids: tuple[int, ...], most: int) -> list[SavedSegment]:
        """The owner's chains of segments whose first segment begins with these ids. If more than `most` first segments
        do, those used most recently."""
        head = pack(ids)
        with self._database.read() as db:
            return [_saved(row) for row in db.query(_ALIKE, [owner_id, numerics, len(head), head, most])]

    def every(self) -> list[SavedSegment]:
        """All segments, with the conversations that refer to each."""
        with self._database.read() as db:
            return [_saved(row) for row in db.query(_EVERY)]

    def token_ids(self, key: str) -> tuple[int, ...]:
        """A segment's ids; () if it has no row."""
        with self._database.read() as db:
            row = db.execute("SELECT token_ids FROM segments WHERE key = ?", [key]).fetchone()
        return unpack(row[0]) if row else ()

    def knows(self, key: str) -> bool:
        with self._database.read() as db:
            return db.execute("SELECT 1 FROM segments WHERE key = ?", [key]).fetchone() is not None

    def owner_of(self, key: str) -> str:
        """A segment's owner; "" if it has no row."""
        with self._database.read() as db:
            row = db.execute("SELECT owner_id FROM segments WHERE key = ?", [key]).fetchone()
        return str(row[0]) if row else ""

    def by_conversation(self, owner_id: str, numerics: str | None = None) -> dict[str, Saved]:
        """What each of the owner's conversations has on disk, computed with `numerics` (None: with anything). A segment
        that two conversations share counts for both."""
        with self._database.read() as db:
            rows = db.execute(
                "SELECT r.conversation_id, max(s.start_tokens + s.tokens), sum(s.bytes), sum(s.tokens) FROM segments s"
                " JOIN segment_references r ON r.segment_key = s.key"
                " WHERE s.owner_id = ? AND s.fingerprint = ifnull(?, s.fingerprint)"
                " GROUP BY r.conversation_id",
                [owner_id, numerics],
            ).fetchall()
        return {str(row[0]): Saved(int(row[1]), int(row[2]), int(row[3])) for row in rows}

    def used_bytes(self) -> int:
        with self._database.read() as db:
            return int(db.execute("SELECT coalesce(sum(bytes), 0) FROM segments").fetchone()[0])

    def other_bytes(self, numerics: str) -> int:
        """The size of what other models and settings computed."""
        sql = "SELECT coalesce(sum(bytes), 0) FROM segments WHERE fingerprint != ?"
        with self._database.read() as db:
            return int(db.execute(sql, [numerics]).fetchone()[0])

    def served(self) -> list[Served]:
        """What the segments were computed with; the most recent server's first."""
        with self._database.read() as db:
            models = dict(db.execute("SELECT numerics, model FROM kv_served ORDER BY id DESC").fetchall())
            groups = db.execute(
                "SELECT fingerprint, count(*), sum(bytes) FROM segments GROUP BY fingerprint"
            ).fetchall()
        counts = {str(row[0]): (int(row[1]), int(row[2])) for row in groups}
        last = next(iter(models), None)
        return [
            Served(numerics, models.get(numerics, ""), *counts.get(numerics, (0, 0)), is_last=numerics == last)
            for numerics in dict.fromkeys([*models, *counts])
        ]

    def serves(self, numerics: str, model: str) -> None:
        """Records that a server starts which computes with this."""
        if any(one.is_last and (one.numerics, one.model) == (numerics, model) for one in self.served()):
            return
        with self._database.write() as db:
            db.execute("DELETE FROM kv_served WHERE numerics = ?", [numerics])
            db.execute("INSERT INTO kv_served(numerics, model) VALUES (?, ?)", [numerics, model])

    def not_in_the_future(self, now: float) -> float:
        """Sets times of last use that lie in the future (the clock was ahead) to `now`. Returns the time of the last
        use of any segment, 0.0 for never."""
        with self._database.read() as db:
            last_used_at = float(db.execute("SELECT ifnull(max(last_used_at), 0) FROM segments").fetchone()[0])
        if last_used_at > now:
            with self._database.write() as db:
                db.execute("UPDATE segments SET last_used_at = ? WHERE last_used_at > ?", [now, now])
        return min(last_used_at, now)

    def add(
        self, owner_id: str, conversation_id: str, fingerprint: str, identity: SegmentIdentity, size_bytes: int
    ) -> bool:
        """Adds the row of a file that is in its place. False if the conversation, or the segment that it continues, was
        deleted meanwhile."""
        with self._database.write() as db:
            if not _owns(db, owner_id, conversation_id) or not _has_parent(db, identity):
                return False
            _insert(db, owner_id, fingerprint, identity, size_bytes)
            _refer(db, conversation_id, identity.key)
        return True

    def replace(self, old_keys: Iterable[str], identity: SegmentIdentity, size_bytes: int) -> bool:
        """Replaces several segments by one, for the same conversations. False if one of them is gone."""
        old = list(old_keys)
        with self._database.write() as db:
            rows = [db.execute("SELECT owner_id, fingerprint FROM segments WHERE key = ?", [k]).fetchone() for k in old]
            if not all(rows):
                return False
            users = db.execute("SELECT conversation_id FROM segment_references WHERE segment_key = ?", [old[-1]])
            conversation_ids = [str(row[0]) for row in users.fetchall()]
            _insert(db, str(rows[0][0]), str(rows[0][1]), identity, size_bytes)
            for conversation_id in conversation_ids:
                _refer(db, conversation_id, identity.key)
            for key in old:
                db.execute("DELETE FROM segments WHERE key = ?", [key])
        return True

    def adopt(self, owner_id: str, conversation_id: str, key: str) -> bool:
        """Makes the conversation refer to a segment that another conversation of the owner has saved. False if there is
        none."""
        with self._database.write() as db:
            found = db.execute("SELECT 1 FROM segments WHERE key = ? AND owner_id = ?", [key, owner_id]).fetchone()
            if not found or not _owns(db, owner_id, conversation_id):
                return False
            _refer(db, conversation_id, key)
        return True

    def touch(self, keys: Iterable[str]) -> None:
        """Sets their time of last use to now."""
        now = time.time()
        with self._database.write() as db:
            for key in keys:
                db.execute("UPDATE segments SET last_used_at = ? WHERE key = ?", [now, key])

    def remove(self, keys: Iterable[str]) -> None:
        with self._database.write() as db:
            for key in keys:
                db.execute("DELETE FROM segments WHERE key = ?", [key])

    def remove_with_descendants(self, key: str) -> tuple[list[str], set[tuple[str, str]]]:
        """Removes a segment and all that continue it, which are useless without it. Returns the removed keys, and who
        lost them: pairs of conversation and numerics."""
        users: set[tuple[str, str]] = set()
        with self._database.write() as db:
            doomed = [str(row[0]) for row in db.execute(_DESCENDANTS, [key]).fetchall()]
            for doomed_key in doomed:
                sql = (
                    "SELECT r.conversation_id, s.fingerprint FROM segment_references r"
                    " JOIN segments s ON s.key = r.segment_key WHERE s.key = ?"
                )
                users.update((str(row[0]), str(row[1])) for row in db.execute(sql, [doomed_key]).fetchall())
                db.execute("DELETE FROM segments WHERE key = ?", [doomed_key])
        return doomed, users

    def release(self, conversation_id: str) -> None:
        """Removes all references of a conversation; the segments stay."""
        with self._database.write() as db:
            db.execute("DELETE FROM segment_references WHERE conversation_id = ?", [conversation_id])

    def remove_unreferenced(self) -> list[str]:
        """Removes the segments that no conversation refers to. Returns their keys."""
        sql = "FROM segments WHERE key NOT IN (SELECT segment_key FROM segment_references)"
        with self._database.write() as db:
            doomed = [str(row[0]) for row in db.execute(f"SELECT key {sql}").fetchall()]
            db.execute(f"DELETE {sql}")
        return doomed


def all_of(segments: Iterable[SavedSegment]) -> Saved:
    """What the segments of one conversation are together."""
    found = list(segments)
    return Saved(
        max((segment.end_tokens for segment in found), default=0),
        sum(segment.size_bytes for segment in found),
        sum(segment.tokens for segment in found),
    )


def _insert(db: Any, owner_id: str, fingerprint: str, identity: SegmentIdentity, size_bytes: int) -> None:
    now = time.time()
    db["segments"].insert(
        {
            "key": identity.key,
            "parent_key": identity.parent_key,
            "owner_id": owner_id,
            "fingerprint": fingerprint,
            "start_tokens": identity.start_tokens,
            "tokens": len(identity.token_ids),
            "bytes": size_bytes,
            "created_at": now,
            "last_used_at": now,
            "token_ids": pack(identity.token_ids),
        }
    )


def _owns(db: Any, owner_id: str, conversation_id: str) -> bool:
    sql = "SELECT 1 FROM conversations WHERE id = ? AND owner_id = ?"
    return db.execute(sql, [conversation_id, owner_id]).fetchone() is not None


def _has_parent(db: Any, identity: SegmentIdentity) -> bool:
    """Whether the segment that it continues is saved; without that one it could never be used."""
    sql = "SELECT 1 FROM segments WHERE key = ?"
    return not identity.parent_key or db.execute(sql, [identity.parent_key]).fetchone() is not None


def _refer(db: Any, conversation_id: str, key: str) -> None:
    db.execute("INSERT OR IGNORE INTO segment_references VALUES (?, ?)", [conversation_id, key])


def _saved(row: dict[str, Any]) -> SavedSegment:
    return SavedSegment(
        key=row["key"],
        parent_key=row["parent_key"],
        owner_id=row["owner_id"],
        fingerprint=row["fingerprint"],
        start_tokens=row["start_tokens"],
        tokens=row["tokens"],
        size_bytes=row["bytes"],
        last_used_at=row["last_used_at"],
        conversation_ids=tuple((row["users"] or "").split(",")) if row["users"] else (),
    )
