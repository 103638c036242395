"""Log-ins of browsers, and which owners' conversations each browser opens. Only hashes of the browsers' secrets are
stored.

Log-ins are looked up at every request, also on the event loop, so they are kept in memory as well: only one server uses
the data directory, and nothing else writes them. Tokens are 256 random bits, so a plain SHA-256 is enough.
"""

from __future__ import annotations

import contextlib
import hashlib
import secrets
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from sessions.errors import StoreError
from sessions.store.database import Database

LOGIN_LASTS_S = 30 * 86_400.0
MAX_LOGINS = 10_000  # beyond that the oldest end
MAX_KEPT_OWNERS = 50  # per browser; beyond that it forgets the least recently used
_LOGIN_COLUMNS = "hash, owner_id, browser_hash, password_mark, is_secure, created_at, expires_at, spends"


@dataclass(frozen=True, slots=True)
class StoredLogin:
    """`spends` is what its first use marks as spent, "" for nothing."""

    login_hash: str
    owner_id: str
    browser_hash: str
    password_mark: str
    is_secure: bool
    created_at: float
    expires_at: float
    spends: str


@dataclass(frozen=True, slots=True)
class Kept:
    """An owner whose conversations a browser opens again. `left_at` is the time of a log-out in that browser."""

    owner_id: str
    is_secure: bool
    used_at: float
    left_at: float | None


class LoginStore:
    """Any thread. Every change is one transaction and raises `StoreError` when the file fails."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lock = threading.Lock()
        with database.read() as db:
            rows = db.execute(f"SELECT {_LOGIN_COLUMNS} FROM logins ORDER BY created_at").fetchall()  # noqa: S608
        self._logins = {row[0]: _login(row) for row in rows}

    # Log-ins

    def add(self, owner_id: str, browser_hash: str, password_mark: str, is_secure: bool, spends: str = "") -> str:
        """Adds a log-in. Returns its token, which is never shown again."""
        token, now = secrets.token_urlsafe(32), time.time()
        login = StoredLogin(
            hash_of(token), owner_id, browser_hash, password_mark, is_secure, now, now + LOGIN_LASTS_S, spends
        )
        with self._lock:
            ended = [one for one in self._logins.values() if one.expires_at <= now]
            ended += list(self._logins.values())[: max(0, len(self._logins) + 1 - MAX_LOGINS)]
            with self._database.write() as db:
                for one in ended:
                    db.execute("DELETE FROM logins WHERE hash = ?", [one.login_hash])
                db.execute(
                    f"INSERT INTO logins({_LOGIN_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",  # noqa: S608
                    [*(getattr(login, name) for name in StoredLogin.__slots__)],
                )
            for one in ended:
                self._logins.pop(one.login_hash, None)
            self._logins[login.login_hash] = login
        return token

    def find(self, token: str, password_mark: str) -> StoredLogin | None:
        """The log-in of this token; None if it ended, expired, or was made with another password."""
        login = self._logins.get(hash_of(token))
        if login is None or login.expires_at <= time.time() or login.password_mark != password_mark:
            return None
        if login.spends:
            with contextlib.suppress(StoreError):  # a full disk locks no one out; the next request tries again
                login = self._spend(login)
        return login

    def end(self, login_hash: str) -> None:
        self._end("hash", login_hash)

    def end_all_of(self, owner_id: str) -> None:
        """Ends the owner's log-ins in every browser."""
        self._end("owner_id", owner_id)

    def end_all_in(self, browser_hash: str, owner_id: str) -> None:
        """Ends the owner's log-ins in one browser."""
        with self._lock:
            with self._database.write() as db:
                db.execute("DELETE FROM logins WHERE browser_hash = ? AND owner_id = ?", [browser_hash, owner_id])
            gone = (browser_hash, owner_id)
            self._logins = {key: one for key, one in self._logins.items() if (one.browser_hash, one.owner_id) != gone}

    def end_of_other_passwords(self, password_mark: str) -> int:
        """Ends the log-ins made with another password, permanently: they stay ended if that password comes back.
        Returns how many there were."""
        with self._lock:
            ended = [one.login_hash for one in self._logins.values() if one.password_mark != password_mark]
            if ended:
                with self._database.write() as db:
                    db.execute("DELETE FROM logins WHERE password_mark <> ?", [password_mark])
            for login_hash in ended:
                del self._logins[login_hash]
        return len(ended)

    def _end(self, column: str, value: str) -> None:
        with self._lock:
            with self._database.write() as db:
                db.execute(f"DELETE FROM logins WHERE {column} = ?", [value])  # noqa: S608
            name = {"hash": "login_hash"}.get(column, column)
            self._logins = {key: one for key, one in self._logins.items() if getattr(one, name) != value}

    def _spend(self, login: StoredLogin) -> StoredLogin:
        with self._lock, self._database.write() as db:
            db.execute("INSERT OR IGNORE INTO spent(what, at) VALUES (?, ?)", [login.spends, time.time()])
            db.execute("UPDATE logins SET spends = '' WHERE hash = ?", [login.login_hash])
            if login.login_hash in self._logins:
                login = self._logins[login.login_hash] = replace(login, spends="")
        return login

    # Browsers

    def kept_by(self, browser_hash: str) -> tuple[Kept, ...]:
        """The owners whose conversations this browser opens, most recently used first."""
        with self._database.read() as db:
            rows = db.execute(
                "SELECT owner_id, is_secure, used_at, left_at FROM browser_owners WHERE browser_hash = ?"
                " ORDER BY used_at DESC",
                [browser_hash],
            ).fetchall()
        return tuple(Kept(row[0], bool(row[1]), row[2], row[3]) for row in rows)

    def keep(self, browser_hash: str, owner_id: str, is_secure: bool, others: Sequence[str] = ()) -> None:
        """Makes this browser open the owner's conversations from now on, and those of `others`, which the user chose to
        keep while logging in."""
        now = time.time()
        with self._database.write() as db:
            for other in others:
                db.execute(
                    "INSERT OR IGNORE INTO browser_owners(browser_hash, owner_id, is_secure, used_at, left_at)"
                    " VALUES (?, ?, ?, ?, ?)",
                    [browser_hash, other, int(is_secure), now, now],
                )
            db.execute(
                "INSERT INTO browser_owners(browser_hash, owner_id, is_secure, used_at, left_at)"
                " VALUES (?, ?, ?, ?, NULL) ON CONFLICT DO UPDATE SET used_at = excluded.used_at, left_at = NULL",
                [browser_hash, owner_id, int(is_secure), now],
            )
            db.execute(
                "DELETE FROM browser_owners WHERE browser_hash = ? AND owner_id NOT IN (SELECT owner_id"
                " FROM browser_owners WHERE browser_hash = ? ORDER BY used_at DESC LIMIT ?)",
                [browser_hash, browser_hash, MAX_KEPT_OWNERS],
            )

    def leave(self, owner_id: str, browser_hash: str | None = None) -> None:
        """Records a log-out in this browser (None: in every browser): the next log-in there has to choose an owner."""
        where, values = ("", []) if browser_hash is None else (" AND browser_hash = ?", [browser_hash])
        with self._database.write() as db:
            db.execute(
                f"UPDATE browser_owners SET left_at = ? WHERE owner_id = ?{where}",  # noqa: S608
                [time.time(), owner_id, *values],
            )

    def forget(self, browser_hash: str, owner_id: str) -> str:
        """Makes this browser stop opening the owner's conversations. Returns a recovery code that opens them once."""
        code = recovery_code()
        with self._database.write() as db:
            db.execute("DELETE FROM browser_owners WHERE browser_hash = ? AND owner_id = ?", [browser_hash, owner_id])
            db.execute("INSERT INTO recovery_codes VALUES (?, ?, ?)", [hash_of(_plain(code)), owner_id, time.time()])
        return code

    def owner_of_code(self, code: str) -> tuple[str, str] | None:
        """(owner, what a log-in with this code spends); None for an unknown or used code."""
        code_hash = hash_of(_plain(code))
        with self._database.read() as db:
            row = db.execute("SELECT owner_id FROM recovery_codes WHERE hash = ?", [code_hash]).fetchone()
        what = f"code {code_hash}"
        return None if row is None or self.is_spent(what) else (row[0], what)

    def is_spent(self, what: str) -> bool:
        with self._database.read() as db:
            return db.execute("SELECT 1 FROM spent WHERE what = ?", [what]).fetchone() is not None


def _login(row: Sequence[Any]) -> StoredLogin:
    login_hash, owner_id, browser_hash, mark, is_secure, created_at, expires_at, spends = row
    return StoredLogin(login_hash, owner_id, browser_hash, mark, bool(is_secure), created_at, expires_at, spends)


def hash_of(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def recovery_code() -> str:
    """125 random bits in a form that a person can write down: no letter looks like a digit."""
    alphabet = "abcdefghijkmnpqrstuvwxyz23456789"
    return "-".join("".join(secrets.choice(alphabet) for _ in range(5)) for _ in range(5))


def _plain(code: str) -> str:
    return "".join(character for character in code.lower() if character.isalnum())
