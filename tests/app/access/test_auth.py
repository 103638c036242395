"""Owners, cookies, passwords, and the limits on log-in tries."""

from __future__ import annotations

import hashlib
import logging
import os
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from itsdangerous import URLSafeTimedSerializer

import sessions.store.tables.logins
from app.access.auth import LOCAL_OWNER, LOGIN_COOKIE, NEW_OWNER, OWNER_COOKIE, Login, Owners, Refusal
from app.access.cookie_key import load_secret
from app.access.throttle import MOST_BUDGETS, Throttle
from app.access.visitors import Visitor
from sessions.errors import StoreError
from sessions.store.database import Database
from sessions.store.tables.logins import LoginStore

SECRET = b"0" * 32
HOME = Visitor("127.0.0.1", "", False)
SECURE = Visitor("203.0.113.7", "it came from another machine", True)
Make = Callable[..., Owners]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """`make(password)`: the owners after a start with this password, on the same database."""
    opened: list[Database] = []

    def start(password: str | None = "kettle") -> Owners:
        opened.append(Database(tmp_path / "keepwarm.db"))
        return Owners(SECRET, password, LoginStore(opened[-1]))

    yield start
    for database in opened:
        database.close()


def log_in(
    owners: Owners,
    password: str = "kettle",
    cookies: dict[str, str] | None = None,
    visitor: Visitor = HOME,
    **asked: str,
) -> Login | Refusal | float:
    cookies = cookies or {}
    permit = owners.permit(cookies, visitor)
    return permit.refused_s or owners.log_in(password, cookies, visitor, permit, **asked)


def cookies_of(login: object) -> dict[str, str]:
    assert isinstance(login, Login)
    return {login.name_of(OWNER_COOKIE): login.owner_cookie, login.name_of(LOGIN_COOKIE): login.login_cookie}


def old_cookies(owner_id: str, password: str = "kettle") -> dict[str, str]:
    """Cookies as earlier versions wrote them."""
    login = URLSafeTimedSerializer(SECRET, salt=f"keepwarm-login-{hashlib.sha256(password.encode()).hexdigest()}")
    return {
        OWNER_COOKIE: URLSafeTimedSerializer(SECRET, salt="keepwarm-owner").dumps(owner_id),
        LOGIN_COOKIE: login.dumps(owner_id),
    }


def test_without_a_password_every_browser_is_the_local_owner() -> None:
    owners = Owners(SECRET, None)
    assert not owners.needs_login
    assert owners.owner_of({}) == LOCAL_OWNER


def test_every_browser_becomes_its_own_owner(make: Make) -> None:
    owners = make()
    assert owners.owner_of({}) is None
    first, second = log_in(owners), log_in(owners)
    assert isinstance(first, Login)
    assert isinstance(second, Login)
    assert owners.owner_of(cookies_of(first)) == first.owner_id != second.owner_id
    assert make().owner_of(cookies_of(first)) == first.owner_id  # after a restart


def test_a_wrong_password_of_any_characters_is_refused(make: Make) -> None:
    owners = make()
    assert log_in(owners, "Kettle") is Refusal.WRONG_WORD
    assert log_in(owners, "\udcff") is Refusal.WRONG_WORD


@pytest.mark.parametrize("spoil", [lambda c: c[:-2] + "xx", lambda c: "", lambda c: "local", lambda c: c + "."])
def test_a_forged_cookie_is_no_cookie(make: Make, spoil: Callable[[str], str]) -> None:
    owners = make()
    cookies = cookies_of(log_in(owners))
    assert owners.owner_of({**cookies, LOGIN_COOKIE: spoil(cookies[LOGIN_COOKIE])}) is None
    assert owners.identities({OWNER_COOKIE: spoil(cookies[OWNER_COOKIE])}, False) == ()


def test_the_two_cookies_cannot_stand_in_for_each_other(make: Make) -> None:
    owners = make()
    cookies = cookies_of(log_in(owners))
    assert owners.owner_of({**cookies, LOGIN_COOKIE: cookies[OWNER_COOKIE]}) is None
    assert owners.owner_of({OWNER_COOKIE: cookies[OWNER_COOKIE]}) is None
    assert owners.identities({OWNER_COOKIE: cookies[LOGIN_COOKIE]}, False) == ()


def test_only_hashes_are_stored(make: Make, tmp_path: Path) -> None:
    owners = make("a long kettle")
    cookies = cookies_of(log_in(owners, "a long kettle"))
    code = owners.forget(cookies)
    assert code is not None
    raw = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    for secret in (
        *cookies.values(),
        code,
        code.replace("-", ""),
        "a long kettle",
        hashlib.sha256(b"a long kettle").hexdigest(),
    ):
        assert secret.encode() not in raw


def test_a_log_in_that_ended_opens_nothing(make: Make) -> None:
    """Copies of its cookies open nothing either, and neither does a restart."""
    owners = make()
    cookies = cookies_of(log_in(owners))
    other = cookies_of(log_in(owners))
    owners.log_out(cookies)
    for later in (owners, make()):
        assert later.owner_of(cookies) is None
        assert later.owner_of(other) is not None


def test_log_ins_expire(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    owners = make()
    cookies = cookies_of(log_in(owners))
    now = time.time()
    monkeypatch.setattr(sessions.store.tables.logins.time, "time", lambda: now + 30 * 86_400 - 60)
    assert owners.owner_of(cookies) is not None
    monkeypatch.setattr(sessions.store.tables.logins.time, "time", lambda: now + 30 * 86_400 + 60)
    assert owners.owner_of(cookies) is None


def test_a_log_in_always_makes_a_new_token_and_ends_the_former(make: Make) -> None:
    owners = make()
    first = log_in(owners)
    second = log_in(owners, cookies=cookies_of(first))
    assert isinstance(first, Login)
    assert isinstance(second, Login)
    assert first.login_cookie != second.login_cookie
    assert owners.owner_of(cookies_of(first)) is None
    chosen = log_in(owners, cookies={LOGIN_COOKIE: "a" * 43, OWNER_COOKIE: "b" * 43})
    assert isinstance(chosen, Login)
    assert {chosen.login_cookie, chosen.owner_cookie}.isdisjoint({"a" * 43, "b" * 43})


def test_a_new_password_ends_every_log_in_for_good_but_keeps_the_owner(make: Make) -> None:
    login = log_in(make())
    cookies = cookies_of(login)
    after = make("pot")
    assert after.owner_of(cookies) is None
    again = log_in(after, "pot", cookies)
    assert isinstance(login, Login)
    assert isinstance(again, Login)
    assert again.owner_id == login.owner_id
    assert make().owner_of(cookies) is None  # the old password is back, the log-in is not


def test_logging_out_everywhere(make: Make) -> None:
    owners = make()
    here = cookies_of(log_in(owners))
    code = owners.forget(here)
    assert code is not None
    there = [cookies_of(log_in(owners, code=code))]
    there.append(cookies_of(log_in(owners, cookies={OWNER_COOKIE: there[0][OWNER_COOKIE]})))
    stranger = cookies_of(log_in(owners))
    assert {owners.owner_of(cookies) for cookies in there} == {owners.owner_of(there[0])} != {None}
    owners.log_out(there[0], everywhere=True)
    assert [owners.owner_of(cookies) for cookies in there] == [None, None]
    assert owners.owner_of(stranger) is not None


def test_after_a_log_out_the_next_one_is_asked(make: Make) -> None:
    owners = make()
    login = log_in(owners)
    assert isinstance(login, Login)
    cookies = cookies_of(login)
    owners.log_out(cookies)
    (kept,) = owners.identities(cookies, False)
    assert not kept.is_default
    second = log_in(owners, cookies=cookies)  # no choice
    assert isinstance(second, Login)
    assert second.owner_id != login.owner_id
    owners.log_out(cookies_of(second))
    again = log_in(owners, cookies=cookies_of(second), choice=kept.choice)
    assert isinstance(again, Login)
    assert again.owner_id == login.owner_id
    third = log_in(owners, cookies=cookies_of(again), choice=NEW_OWNER)
    assert isinstance(third, Login)
    assert third.owner_id not in (login.owner_id, second.owner_id)


def test_a_forgotten_browser_opens_nothing_of_before_and_a_code_does_once(make: Make) -> None:
    owners = make()
    login = log_in(owners)
    assert isinstance(login, Login)
    cookies = cookies_of(login)
    code = owners.forget(cookies)
    assert code is not None
    assert owners.owner_of(cookies) is None
    assert not owners.keeps_anything(cookies)
    assert owners.identities(cookies, False) == ()
    second = log_in(owners, cookies=cookies)
    assert isinstance(second, Login)
    assert second.owner_id != login.owner_id
    assert log_in(owners, "pot", code=code) is Refusal.WRONG_WORD
    assert log_in(owners, code="abcde-" * 5) is Refusal.WRONG_CODE
    lost = log_in(owners, code=f" {code.upper().replace('-', ' ')} ")  # the answer never arrives
    assert isinstance(lost, Login)
    again = log_in(owners, code=code)
    assert isinstance(again, Login)
    assert owners.owner_of(cookies_of(again)) == again.owner_id == login.owner_id
    assert log_in(owners, code=code) is Refusal.WRONG_CODE


def test_cookies_of_before_work_once_and_are_replaced(make: Make) -> None:
    owners = make()
    old = old_cookies("ada")
    assert owners.owner_of(old) is None
    lost, login = owners.upgrade(old, False), owners.upgrade(old, False)  # of two answers one may get lost
    assert isinstance(lost, Login)
    assert isinstance(login, Login)
    assert owners.owner_of(cookies_of(login)) == "ada"
    assert owners.upgrade(old, False) is None
    assert owners.identities(old, False) == ()
    owners.log_out(cookies_of(login))
    assert owners.upgrade(old, False) is None
    assert make().upgrade(old, False) is None


@pytest.mark.parametrize(
    "cookies",
    [
        {**old_cookies("ada"), OWNER_COOKIE: old_cookies("eve")[OWNER_COOKIE]},
        old_cookies("ada", "pot"),
        {LOGIN_COOKIE: old_cookies("ada")[LOGIN_COOKIE]},
    ],
)
def test_cookies_of_before_that_opened_nothing_still_do_not(make: Make, cookies: dict[str, str]) -> None:
    assert make().upgrade(cookies, False) is None


def test_an_old_browser_keeps_its_owner(make: Make) -> None:
    owners = make()
    old = {OWNER_COOKIE: old_cookies("ada")[OWNER_COOKIE]}
    login = log_in(owners, cookies=old)
    assert isinstance(login, Login)
    assert owners.owner_of(cookies_of(login)) == "ada"
    assert owners.identities(old, False) == ()


def test_over_tls_a_cookie_that_another_host_can_set_counts_for_nothing(make: Make) -> None:
    owners = make()
    plain, secure = log_in(owners), log_in(owners, visitor=SECURE)
    assert isinstance(plain, Login)
    assert isinstance(secure, Login)
    assert secure.name_of(LOGIN_COOKIE) == "__Host-keepwarm_login"
    assert owners.owner_of(cookies_of(secure)) == secure.owner_id
    for login in (plain, secure):  # each under the other's name
        for name in (LOGIN_COOKIE, OWNER_COOKIE):
            other = name if login.is_secure else f"__Host-{name}"
            value = login.login_cookie if name == LOGIN_COOKIE else login.owner_cookie
            assert owners.owner_of({other: value}) is None
            assert owners.identities({other: value}, True) == ()
    both = {**cookies_of(secure), **cookies_of(plain)}
    assert owners.owner_of(both) == secure.owner_id
    planted = {OWNER_COOKIE: plain.owner_cookie}
    assert [one.is_default for one in owners.identities(planted, True)] == [False]
    victim = log_in(owners, cookies=planted, visitor=SECURE)
    assert isinstance(victim, Login)
    assert victim.owner_id != plain.owner_id


# Patience


def visitor(address: str) -> Visitor:
    return Visitor(address, "it came from another machine", False)


def test_too_many_wrong_passwords_have_to_wait(make: Make) -> None:
    owners = make()
    assert [log_in(owners, "pot") for _ in range(5)] == [Refusal.WRONG_WORD] * 5
    wait_s = log_in(owners)
    assert isinstance(wait_s, float)
    assert 0 < wait_s <= 60


def test_strangers_lock_no_one_else_out(make: Make) -> None:
    owners = make()
    at_home = cookies_of(log_in(owners))
    owners.log_out(at_home)
    for _ in range(30):
        log_in(owners, "pot")
    assert isinstance(log_in(owners), float)
    assert isinstance(log_in(owners, cookies=at_home), Login)
    assert isinstance(log_in(owners, cookies=old_cookies("ada")), Login)
    assert isinstance(log_in(owners, visitor=visitor("198.51.100.1")), Login)
    for _ in range(6):
        last = log_in(owners, "pot", cookies=at_home)
    assert isinstance(last, float), "a known browser has a budget as well"


def test_many_addresses_are_slowed_and_known_browsers_are_not() -> None:
    now = [1000.0]
    throttle = Throttle(lambda: now[0])
    tried = refused = 0
    for second in range(600):
        for number in range(20):
            permit = throttle.take(f"stranger {second} {number}", False)
            tried, refused = tried + (not permit.refused_s), refused + bool(permit.refused_s)
        if second % 60 == 0:
            known = throttle.take("browser ada", True)
            assert (known.refused_s, known.wait_s) == (0.0, 0.0)
            throttle.give_back(known)
        now[0] += 1.0
    assert 600 <= tried <= 600 + 30 + 16, "one a second, after the first half minute's worth"
    assert refused == 600 * 20 - tried


def test_known_browsers_are_slowed_and_never_refused_by_each_other() -> None:
    throttle = Throttle(lambda: 1000.0)
    permits = [throttle.take(f"browser {number}", True) for number in range(500)]
    assert all(permit.refused_s == 0 and permit.wait_s <= 5 for permit in permits)
    assert max(permit.wait_s for permit in permits) > 0


@pytest.mark.parametrize("addresses", [50_000, pytest.param(1_000_000, marks=pytest.mark.long)])
def test_many_addresses_take_bounded_memory(addresses: int) -> None:
    now = [1000.0]
    throttle = Throttle(lambda: now[0])
    for number in range(addresses):
        throttle.take(f"10.0.{number}", False)
        now[0] += 0.001
    assert len(throttle) < 1_100
    for number in range(12_000):
        throttle.take(f"browser {number}", True)
    assert len(throttle) <= MOST_BUDGETS


def test_twenty_tries_an_hour() -> None:
    now = [1000.0]
    throttle = Throttle(lambda: now[0])
    tried = 0
    for _ in range(3600):
        tried += throttle.take("10.0.0.1", False).refused_s == 0
        now[0] += 1.0
    assert tried == 20


def test_right_passwords_do_not_count_as_tries() -> None:
    throttle = Throttle(lambda: 1000.0)
    for _ in range(100):
        permit = throttle.take("10.0.0.1", False)
        assert (permit.refused_s, permit.wait_s) == (0, 0)
        throttle.give_back(permit)
    assert len(throttle) == 0


def test_failed_log_ins_are_logged_without_the_password(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    owners = make()
    with caplog.at_level(logging.WARNING):
        for _ in range(7):
            log_in(owners, "wrong-secret", visitor=visitor("203.0.113.0"), code="codes-are-secret-too")
    lines = [record.getMessage() for record in caplog.records]
    assert lines == [f"login_failed address=203.0.113.0 tries_in_an_hour={n} why=WRONG_WORD" for n in range(1, 6)]


# The key


def test_the_secret_is_made_once_and_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "cookie.key"
    first = load_secret(path)
    assert len(first) == 32
    assert load_secret(path) == first
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_rights_that_are_too_wide_are_mended_and_said(tmp_path: Path) -> None:
    path = tmp_path / "cookie.key"
    first, said = load_secret(path), list[str]()
    for mode in (0o644, 0o640, 0o666, 0o604):
        path.chmod(mode)
        assert load_secret(path, said.append) == first
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(said) == 4
    assert str(path) in said[0]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda path: path.write_bytes(b""), "has 0 bytes instead of 32"),
        (lambda path: path.write_bytes(os.urandom(31)), "has 31 bytes"),
        (lambda path: path.write_bytes(bytes(32)), "does not hold random bytes"),
        (lambda path: path.write_bytes(os.urandom(5000)), "does not hold random bytes"),
        (lambda path: path.mkdir(), "is a directory"),
        (lambda path: os.mkfifo(path), "is not a file"),
        (lambda path: path.symlink_to("/dev/zero"), "is a symbolic link"),
        (lambda path: path.symlink_to(path.parent / "nowhere"), "is a symbolic link"),
    ],
)
def test_what_cannot_be_a_secret_is_refused(tmp_path: Path, spoil: Callable[[Path], object], words: str) -> None:
    path = tmp_path / "cookie.key"
    spoil(path)
    with pytest.raises(StoreError, match=words):
        load_secret(path)


def test_a_key_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "cookie.key"
    load_secret(path)
    monkeypatch.setattr(os, "geteuid", lambda: path.stat().st_uid + 1)
    with pytest.raises(StoreError, match="belongs to another user"):
        load_secret(path)
