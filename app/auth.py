"""Who is asking. Without a password one local owner; behind a password every browser is its own owner.

Two signed cookies: *owner* says whose conversations these are and lasts a year; *login* says that the password was
known, and dies with the password. So a new password locks everybody out without taking anybody's conversations.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import threading
import time
import uuid
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from itsdangerous import BadSignature, URLSafeTimedSerializer

LOCAL_OWNER = "local"
OWNER_COOKIE = "keepwarm_owner"
LOGIN_COOKIE = "keepwarm_login"
OWNER_MAX_AGE_S = 365 * 86_400
LOGIN_MAX_AGE_S = 30 * 86_400
TRIES = 5
TRIES_WINDOW_S = 60.0


def load_secret(path: Path) -> bytes:
    """The signing secret, made on first use, readable by its owner alone. Raises `OSError`."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        pass
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(secrets.token_bytes(32))
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    return path.read_bytes()


@dataclass(frozen=True, slots=True)
class Login:
    """Cookies of a browser that knew the password."""

    owner_id: str
    owner_cookie: str
    login_cookie: str


class Owners:
    """Reads and writes the cookies. Thread-safe."""

    def __init__(self, secret: bytes, password: str | None) -> None:
        self._password = password
        self._owners = URLSafeTimedSerializer(secret, salt="keepwarm-owner")
        self._logins = URLSafeTimedSerializer(secret, salt=f"keepwarm-login-{_digest(password or '').hex()}")
        self._throttle = Throttle(TRIES, TRIES_WINDOW_S)

    @property
    def needs_login(self) -> bool:
        return self._password is not None

    def owner_of(self, cookies: Mapping[str, str]) -> str | None:
        """The owner, or None for a browser that has to log in first."""
        if self._password is None:
            return LOCAL_OWNER
        owner_id = self._owner(cookies)
        login = _loads(self._logins, cookies.get(LOGIN_COOKIE), LOGIN_MAX_AGE_S)
        return owner_id if owner_id is not None and login == owner_id else None

    def log_in(self, password: str, cookies: Mapping[str, str]) -> Login | float | None:
        """Cookies for the right password, None for a wrong one, or seconds to wait after too many wrong ones.

        A browser that was here before keeps its owner, whatever the password was then.
        """
        wait_s = self._throttle.take()
        if wait_s > 0:
            return wait_s
        if self._password is None or not hmac.compare_digest(_digest(password), _digest(self._password)):
            return None
        self._throttle.give_back()
        owner_id = self._owner(cookies) or uuid.uuid4().hex
        return Login(owner_id, self._owners.dumps(owner_id), self._logins.dumps(owner_id))

    def _owner(self, cookies: Mapping[str, str]) -> str | None:
        return _loads(self._owners, cookies.get(OWNER_COOKIE), OWNER_MAX_AGE_S)


class Throttle:
    """At most `tries` failures in `window_s` seconds, over all addresses: through a tunnel they all look the same.

    A try counts as failed until it is given back, so that many at once cannot slip through together.
    """

    def __init__(self, tries: int, window_s: float) -> None:
        self._tries = tries
        self._window_s = window_s
        self._taken: deque[float] = deque()
        self._lock = threading.Lock()

    def take(self) -> float:
        """0 when a try is allowed (and is now taken), else the seconds to wait."""
        now = time.monotonic()
        with self._lock:
            while self._taken and self._taken[0] + self._window_s <= now:
                self._taken.popleft()
            if len(self._taken) >= self._tries:
                return self._taken[0] + self._window_s - now
            self._taken.append(now)
            return 0.0

    def give_back(self) -> None:
        """The latest try was a right one."""
        with self._lock:
            if self._taken:
                self._taken.pop()


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def _loads(serializer: URLSafeTimedSerializer, cookie: str | None, max_age_s: int) -> str | None:
    if not cookie:
        return None
    try:
        value, signed_at = serializer.loads(cookie, return_timestamp=True)
    except BadSignature:
        return None
    # One from the future was signed here too, before the clock was set back: whoever has it is no stranger for that.
    if time.time() - signed_at.timestamp() > max_age_s:
        return None
    return value if isinstance(value, str) and value else None
