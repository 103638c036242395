"""Which owner a browser belongs to: one local owner without a password, owners of its own behind a password.

There are two cookies, both random tokens of which the server keeps the hash (`sessions/store/tables/logins.py`).
*Login* proves that the password was known, until the log-in ends on the server. *Owner* identifies the browser, and
thereby the owners whose conversations it keeps. Over TLS the cookies' names begin with `__Host-`, which no other host
can set. A token issued over TLS is valid only under that name, and a token issued without TLS only under the plain one.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import secrets
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum

from itsdangerous import BadSignature, URLSafeTimedSerializer

from app.access.throttle import Permit, Throttle
from app.access.visitors import Visitor
from sessions.store.tables.logins import LOGIN_LASTS_S, LoginStore, StoredLogin, hash_of

log = logging.getLogger(__name__)

LOCAL_OWNER = "local"
OWNER_COOKIE = "keepwarm_owner"
LOGIN_COOKIE = "keepwarm_login"
HOST_PREFIX = "__Host-"
OWNER_MAX_AGE_S = 365 * 86_400
LOGIN_MAX_AGE_S = int(LOGIN_LASTS_S)
NEW_OWNER = "new"

Cookies = Mapping[str, str]


class Refusal(Enum):
    """Why a log-in failed."""

    WRONG_WORD = "This is not the password."
    WRONG_CODE = "This recovery code is unknown, or it was used before. Check it, or leave the field empty."


@dataclass(frozen=True, slots=True)
class Login:
    """The cookies for a browser that sent the right password. `is_secure`: over TLS."""

    owner_id: str
    owner_cookie: str
    login_cookie: str
    is_secure: bool = False

    def name_of(self, cookie: str) -> str:
        return f"{HOST_PREFIX}{cookie}" if self.is_secure else cookie


@dataclass(frozen=True, slots=True)
class Identity:
    """An owner whose conversations this browser keeps. `is_default`: they were not logged out of, so a log-in continues
    with them unless another choice is made. `used_at` is None if only a cookie of an earlier version names them."""

    owner_id: str
    used_at: float | None
    is_default: bool
    spends: str = ""

    @property
    def choice(self) -> str:
        """The value that stands for this identity on the login page."""
        return hash_of(self.owner_id)[:16]


class Owners:
    """Reads and issues the cookies. Thread-safe; `owner_of` touches no file."""

    def __init__(self, secret: bytes, password: str | None, logins: LoginStore | None = None) -> None:
        self._password = password
        self._logins_or_none = logins
        self._throttle = Throttle()
        if password is None:
            return
        assert logins is not None, "behind a password log-ins are stored"
        # Log-ins with another password end. scrypt with the secret as salt and not a plain hash: the database may be
        # copied and a person's password guessed, but the secret is stored elsewhere.
        mark = hashlib.scrypt(password.encode("utf-8", "surrogatepass"), salt=secret, n=2**14, r=8, p=1, dklen=16)
        self._mark = mark.hex()
        logins.end_of_other_passwords(self._mark)
        self._old_owners = URLSafeTimedSerializer(secret, salt="keepwarm-owner")
        self._old_logins = URLSafeTimedSerializer(secret, salt=f"keepwarm-login-{_digest(password).hex()}")

    @property
    def needs_login(self) -> bool:
        return self._password is not None

    def owner_of(self, cookies: Cookies) -> str | None:
        """The owner, or None for a browser that has to log in first."""
        if self._password is None:
            return LOCAL_OWNER
        login = self._login_of(cookies)
        return login.owner_id if login is not None else None

    def identities(self, cookies: Cookies, is_https: bool) -> tuple[Identity, ...]:
        """The owners whose conversations a log-in from this browser can open, the latest first."""
        found: dict[str, Identity] = {}
        for token, is_secure in _tokens(cookies, OWNER_COOKIE):
            for kept in self._logins.kept_by(hash_of(token)):
                if kept.is_secure == is_secure:
                    # Over TLS another host may have set a cookie without the prefix: it is offered, never the default.
                    is_default = kept.left_at is None and is_secure == is_https
                    found.setdefault(kept.owner_id, Identity(kept.owner_id, kept.used_at, is_default))
        old = self._old_owner(cookies)
        if old is not None and old not in found:
            found[old] = Identity(old, None, not is_https, _spending(old))
        return tuple(found.values())

    def upgrade(self, cookies: Cookies, is_https: bool) -> Login | None:
        """New cookies in exchange for those of an earlier version whose log-in is still valid. Works once."""
        if self._password is None:
            return None
        owner_id = self._old_owner(cookies)
        login = _loads(self._old_logins, cookies.get(LOGIN_COOKIE), LOGIN_MAX_AGE_S)
        if owner_id is None or login != owner_id:
            return None
        return self._give(owner_id, cookies, is_https, _spending(owner_id))

    def permit(self, cookies: Cookies, visitor: Visitor) -> Permit:
        """Whether this browser may try a password, and after what wait. Every permit is followed by a `log_in`."""
        known = next((token for token, _ in _tokens(cookies, OWNER_COOKIE) if self._logins.kept_by(hash_of(token))), "")
        known = known or self._old_owner(cookies) or ""
        permit = self._throttle.take(f"browser {hash_of(known)}" if known else visitor.address, bool(known))
        if permit.refused_s > 0:
            log.info("login_refused address=%s wait_s=%.0f", visitor.address, permit.refused_s)
        return permit

    def log_in(
        self, password: str, cookies: Cookies, visitor: Visitor, permit: Permit, choice: str = "", code: str = ""
    ) -> Login | Refusal:
        """New cookies for the right password. `choice` is that of an `Identity`, or "new"; without it this browser
        continues as before, unless it logged out. A recovery code opens the conversations it was issued for."""
        if self._password is None or not hmac.compare_digest(_digest(password), _digest(self._password)):
            return self._refused(Refusal.WRONG_WORD, visitor, permit)
        if code.strip():
            found = self._logins.owner_of_code(code)
            if found is None:
                return self._refused(Refusal.WRONG_CODE, visitor, permit)
            owner_id, spends = found
        else:
            owner_id, spends = self._chosen(cookies, visitor.is_https, choice)
        self._throttle.give_back(permit)
        if (former := self._login_of(cookies)) is not None:
            self._logins.end(former.login_hash)
        return self._give(owner_id, cookies, visitor.is_https, spends)

    def log_out(self, cookies: Cookies, everywhere: bool = False) -> None:
        """Ends the log-in of these cookies, or all log-ins of its owner. The browser keeps the conversations, and the
        next log-in asks whether to open them."""
        login = self._login_of(cookies) if self._password is not None else None
        if login is None:
            return
        if everywhere:
            self._logins.end_all_of(login.owner_id)
            self._logins.leave(login.owner_id)
        else:
            self._logins.end(login.login_hash)
            self._logins.leave(login.owner_id, login.browser_hash)

    def forget(self, cookies: Cookies) -> str | None:
        """Ends the log-in and makes this browser forget its conversations. Returns the recovery code that opens them,
        None if no one is logged in."""
        login = self._login_of(cookies) if self._password is not None else None
        if login is None:
            return None
        code = self._logins.forget(login.browser_hash, login.owner_id)
        self._logins.end_all_in(login.browser_hash, login.owner_id)
        return code

    def keeps_anything(self, cookies: Cookies) -> bool:
        """Whether the owner cookie still opens any conversations."""
        return any(self._logins.kept_by(hash_of(token)) for token, _ in _tokens(cookies, OWNER_COOKIE))

    @property
    def _logins(self) -> LoginStore:
        assert self._logins_or_none is not None
        return self._logins_or_none

    def _login_of(self, cookies: Cookies) -> StoredLogin | None:
        for token, is_secure in _tokens(cookies, LOGIN_COOKIE):
            login = self._logins.find(token, self._mark)
            if login is not None and login.is_secure == is_secure:
                return login
        return None

    def _chosen(self, cookies: Cookies, is_https: bool, choice: str) -> tuple[str, str]:
        """(owner, what the choice uses up) for a log-in without a recovery code."""
        for identity in self.identities(cookies, is_https):
            if identity.choice == choice or (not choice and identity.is_default):
                return identity.owner_id, identity.spends
        return uuid.uuid4().hex, ""

    def _give(self, owner_id: str, cookies: Cookies, is_secure: bool, spends: str) -> Login:
        """Issues cookies. The login token is always new, whatever the browser sent: no one can have known it before."""
        known = (token for token, secure in _tokens(cookies, OWNER_COOKIE) if secure == is_secure)
        browser = next((token for token in known if self._logins.kept_by(hash_of(token))), secrets.token_urlsafe(32))
        others = [one.owner_id for one in self.identities(cookies, is_secure) if one.owner_id != owner_id]
        self._logins.keep(hash_of(browser), owner_id, is_secure, others)
        login = self._logins.add(owner_id, hash_of(browser), self._mark, is_secure, spends)
        return Login(owner_id, browser, login, is_secure)

    def _refused(self, refusal: Refusal, visitor: Visitor, permit: Permit) -> Refusal:
        log.warning("login_failed address=%s tries_in_an_hour=%d why=%s", visitor.address, permit.tries, refusal.name)
        return refusal

    def _old_owner(self, cookies: Cookies) -> str | None:
        """The owner that a cookie of an earlier version names, until that cookie has been exchanged."""
        owner_id = _loads(self._old_owners, cookies.get(OWNER_COOKIE), OWNER_MAX_AGE_S)
        return None if owner_id is None or self._logins.is_spent(_spending(owner_id)) else owner_id


def _tokens(cookies: Cookies, name: str) -> Iterator[tuple[str, bool]]:
    """(token, whether its cookie has the name that only this host can set over TLS)."""
    for is_secure in (True, False):
        if token := cookies.get(f"{HOST_PREFIX}{name}" if is_secure else name):
            yield token, is_secure


def _spending(owner_id: str) -> str:
    return f"old cookie {owner_id}"


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def _loads(serializer: URLSafeTimedSerializer, cookie: str | None, max_age_s: int) -> str | None:
    if not cookie:
        return None
    try:
        value, signed_at = serializer.loads(cookie, return_timestamp=True)
    except BadSignature:
        return None
    # A cookie from the future was signed here too, before the clock was set back: it stays valid.
    if time.time() - signed_at.timestamp() > max_age_s:
        return None
    return value if isinstance(value, str) and value else None
