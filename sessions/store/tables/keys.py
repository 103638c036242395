"""Keys of API clients. Only a key's SHA-256 is stored: keys are 256 random bits, so nothing slower is needed.

`KeyStore` uses the database only, without the data directory's lock: `keepwarm key` works while a server is running,
which sees a new or a revoked key at its next request.
"""

from __future__ import annotations

import contextlib
import hashlib
import secrets
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

from sessions.errors import SessionError, StoreError
from sessions.store.data_directory import DATABASE_NAME, refuse_foreign, refuse_foreign_database
from sessions.store.database import Database
from sessions.text import clean_title

PREFIX = "kw-"
ID_CHARS = 8
_SELECT = "SELECT id, name, owner_id, created_at, last_used_at, revoked_at FROM api_keys "
USED_EVERY_S = 60.0  # the time of last use is written at most this often


class KeyNotFound(SessionError):
    """No key has this id."""


@dataclass(frozen=True, slots=True)
class ApiKey:
    """What is stored about a key; not the key itself."""

    key_id: str
    name: str
    owner_id: str
    created_at: float
    last_used_at: float | None
    revoked_at: float | None


class KeyStore:
    """Every method is one transaction and raises `StoreError` when the file fails."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._ever_made = False  # looked up at every request until it is true

    def add(self, name: str) -> tuple[ApiKey, str]:
        """A new key, which owns the conversations that it begins, and its text, which is never shown again. Raises
        `ValueError`."""
        name = clean_title(name)
        if not name:
            raise ValueError("A key needs a name, so that it can be told apart from others.")
        text = PREFIX + secrets.token_urlsafe(32)
        key = ApiKey(uuid.uuid4().hex[:ID_CHARS], name, f"key:{uuid.uuid4().hex}", time.time(), None, None)
        with self._database.write() as db:
            db.execute(
                "INSERT INTO api_keys(id, name, hash, owner_id, created_at) VALUES (?, ?, ?, ?, ?)",
                [key.key_id, key.name, _digest(text), key.owner_id, key.created_at],
            )
        return key, text

    def every(self) -> list[ApiKey]:
        """All keys, revoked ones included, oldest first."""
        with self._database.read() as db:
            rows = db.execute(_SELECT + "ORDER BY created_at").fetchall()
        return [ApiKey(*row) for row in rows]

    def revoke(self, key_id: str) -> ApiKey:
        """Revokes a key; its conversations stay. Raises `KeyNotFound`."""
        with self._database.write() as db:
            db.execute("UPDATE api_keys SET revoked_at = ifnull(revoked_at, ?) WHERE id = ?", [time.time(), key_id])
            row = db.execute(_SELECT + "WHERE id = ?", [key_id]).fetchone()
        if row is None:
            raise KeyNotFound(f"There is no key {key_id!r}. `keepwarm key list` shows them.")
        return ApiKey(*row)

    def any_valid(self) -> bool:
        with self._database.read() as db:
            return db.execute("SELECT 1 FROM api_keys WHERE revoked_at IS NULL LIMIT 1").fetchone() is not None

    def ever_made(self) -> bool:
        """Whether a key was ever made, revoked and deleted ones included. Once True, it stays True."""
        if not self._ever_made:
            with self._database.read() as db:
                self._ever_made = db.execute("SELECT 1 FROM api_key_history LIMIT 1").fetchone() is not None
        return self._ever_made

    def holder(self, text: str) -> ApiKey | None:
        """The key with this text; None if it is unknown or revoked."""
        with self._database.read() as db:
            sql = _SELECT + "WHERE hash = ? AND revoked_at IS NULL"
            row = db.execute(sql, [_digest(text)]).fetchone()
        if row is None:
            return None
        key, now = ApiKey(*row), time.time()
        if key.last_used_at is None or now - key.last_used_at > USED_EVERY_S:
            # A full disk is no reason to reject a valid key.
            with contextlib.suppress(StoreError), self._database.write() as db:
                db.execute("UPDATE api_keys SET last_used_at = ? WHERE id = ?", [now, key.key_id])
        return key


def open_keys(data_dir: Path) -> tuple[KeyStore, Database]:
    """The keys of a data directory, which a server may be using. Raises `StoreError`."""
    try:
        refuse_foreign(data_dir)
        path = data_dir / DATABASE_NAME
        refuse_foreign_database(path)
        data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        data_dir.chmod(0o700)
        path.touch(mode=0o600)
    except OSError as error:
        raise StoreError(f"The data directory {data_dir} cannot be used ({error.strerror or error}).") from error
    database = Database(path)
    return KeyStore(database), database


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
