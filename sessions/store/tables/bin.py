"""The bin: pruned conversations. They are in no list, and no request finds them, until they are restored; after 30 days
of served time they are deleted. A conversation that a person deletes does not go here.

Uses the database only, so that `keepwarm bin` works while a server is running.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sessions.errors import ConversationNotFound, StoreError
from sessions.store.data_directory import DATABASE_NAME
from sessions.store.database import Database
from sessions.store.tables.served_time import DAY_S, last_seen

KEEP_S = 30 * DAY_S  # of served time (`served_time`), not of the wall clock

# Conversations that only a program knows: begun without a key, and no person wrote in, named or pinned them.
_NAMELESS = "c.origin != 'page' AND c.key IS NULL AND NOT c.is_pinned AND c.title_by != 'person' AND c.binned_s IS NULL"
_MARK = f"""
    INSERT INTO left_alone(conversation_id, turn_number, since_s)
    SELECT c.id, c.turn_number, ? FROM conversations c WHERE {_NAMELESS}
    ON CONFLICT(conversation_id) DO UPDATE SET turn_number = excluded.turn_number, since_s = excluded.since_s
    WHERE turn_number != excluded.turn_number"""  # noqa: S608
_LEFT_ALONE = f"""
    SELECT c.id, c.owner_id, c.turn_number FROM conversations c JOIN left_alone l ON l.conversation_id = c.id
    WHERE {_NAMELESS} AND l.since_s <= ?"""  # noqa: S608
_PUT = f"""
    UPDATE conversations AS c SET binned_s = ?, binned_at = ?
    WHERE c.id = ? AND c.turn_number = ? AND {_NAMELESS}"""  # noqa: S608


@dataclass(frozen=True, slots=True)
class Binned:
    """One conversation in the bin. `binned_at` is in seconds since the epoch, by the wall clock at that time. `left_s`
    is the time until it is deleted."""

    conversation_id: str
    owner_id: str
    title: str
    messages: int
    binned_at: float
    left_s: float


@dataclass(frozen=True, slots=True)
class Unused:
    """A conversation without a key that has been unused for long. Its `turn_number` tells whether it still is."""

    conversation_id: str
    owner_id: str
    turn_number: int


class Bin:
    """Every method is one transaction and raises `StoreError` when the file fails. Times are `Seen.observed_s`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def unused(self, observed_s: float, keep_s: float) -> list[Unused]:
        """All owners' conversations without a key that had no turn for `keep_s`, counted from when this method first
        saw them in their present state, so that no earlier clock matters."""
        with self._database.write() as db:
            db.execute(_MARK, [observed_s])
            rows = db.execute(_LEFT_ALONE, [observed_s - keep_s]).fetchall()
        return [Unused(*row) for row in rows]

    def put(self, unused: Unused, observed_s: float, at: float) -> bool:
        """Moves a conversation to the bin. False if it was continued, named or pinned meanwhile."""
        with self._database.write() as db:
            cursor = db.execute(_PUT, [observed_s, at, unused.conversation_id, unused.turn_number])
            return bool(cursor.rowcount)

    def every(self) -> list[Binned]:
        """The binned conversations of all owners, newest first: anyone who can read the data directory may see them."""
        now_s = last_seen(self._database)
        with self._database.read() as db:
            rows = db.execute(
                "SELECT c.id, c.owner_id, c.title, (SELECT count(*) FROM messages m WHERE m.conversation_id = c.id),"
                " c.binned_at, c.binned_s FROM conversations c WHERE c.binned_s IS NOT NULL"
                " ORDER BY c.binned_s DESC, c.turn_number DESC"
            ).fetchall()
        return [Binned(r[0], r[1], r[2], r[3], r[4], max(0.0, r[5] + KEEP_S - now_s)) for r in rows]

    def restore(self, beginning: str) -> Binned:
        """Gives a conversation back to its owner, as if it had just been used. `beginning` is its id, or a beginning of
        it that no other id in the bin has. Raises `ConversationNotFound`."""
        found = [one for one in self.every() if beginning and one.conversation_id.startswith(beginning)]
        if len(found) != 1:
            how = "No conversation" if not found else "More than one conversation"
            raise ConversationNotFound(f"{how} in the bin has an id that begins with {beginning!r}.")
        with self._database.write() as db:
            db.execute("DELETE FROM left_alone WHERE conversation_id = ?", [found[0].conversation_id])
            db.execute(
                "UPDATE conversations SET binned_s = NULL, binned_at = NULL WHERE id = ?", [found[0].conversation_id]
            )
        return found[0]

    def empty(self) -> int:
        """Deletes everything in the bin permanently. Returns how many conversations there were."""
        return self._delete("binned_s IS NOT NULL", [])

    def delete_overdue(self, observed_s: float) -> int:
        """Deletes what has been in the bin for `KEEP_S`. Returns how many conversations there were."""
        return self._delete("binned_s <= ?", [observed_s - KEEP_S])

    def _delete(self, which: str, parameters: list[float]) -> int:
        with self._database.write() as db:
            return int(db.execute(f"DELETE FROM conversations WHERE {which}", parameters).rowcount)  # noqa: S608


def open_bin(data_dir: Path) -> tuple[Bin, Database]:
    """The bin of a data directory, which a server may be using. Raises `StoreError`."""
    path = data_dir / DATABASE_NAME
    if not path.is_file():
        raise StoreError(f"There is no Keepwarm database in {data_dir}. Name another directory with --data-dir.")
    database = Database(path)
    return Bin(database), database
