"""Who is asking: cookies, passwords, patience."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from app.auth import LOCAL_OWNER, LOGIN_COOKIE, OWNER_COOKIE, Login, Owners, Throttle, load_secret

SECRET = b"0" * 32


def cookies_of(login: object) -> dict[str, str]:
    assert isinstance(login, Login)
    return {OWNER_COOKIE: login.owner_cookie, LOGIN_COOKIE: login.login_cookie}


def test_without_a_password_everybody_is_the_local_owner() -> None:
    owners = Owners(SECRET, None)
    assert not owners.needs_login
    assert owners.owner_of({}) == LOCAL_OWNER


def test_every_browser_becomes_its_own_owner() -> None:
    owners = Owners(SECRET, "kettle")
    assert owners.owner_of({}) is None
    first, second = owners.log_in("kettle", {}), owners.log_in("kettle", {})
    assert isinstance(first, Login)
    assert isinstance(second, Login)
    assert owners.owner_of(cookies_of(first)) == first.owner_id != second.owner_id


def test_a_wrong_password_is_refused_whatever_it_holds() -> None:
    owners = Owners(SECRET, "kettle")
    assert owners.log_in("Kettle", {}) is None
    assert owners.log_in("\udcff", {}) is None


@pytest.mark.parametrize("spoil", [lambda c: c[:-2] + "xx", lambda c: "", lambda c: "local", lambda c: c + "."])
def test_a_forged_cookie_is_no_cookie(spoil: object) -> None:
    owners = Owners(SECRET, "kettle")
    cookies = cookies_of(owners.log_in("kettle", {}))
    for name in cookies:
        assert owners.owner_of({**cookies, name: spoil(cookies[name])}) is None  # type: ignore[operator]


def test_the_two_cookies_cannot_stand_in_for_each_other() -> None:
    owners = Owners(SECRET, "kettle")
    cookies = cookies_of(owners.log_in("kettle", {}))
    assert owners.owner_of({**cookies, LOGIN_COOKIE: cookies[OWNER_COOKIE]}) is None


def test_a_new_password_locks_out_but_keeps_the_owner() -> None:
    before = Owners(SECRET, "kettle")
    login = before.log_in("kettle", {})
    after = Owners(SECRET, "pot")
    assert after.owner_of(cookies_of(login)) is None
    again = after.log_in("pot", cookies_of(login))
    assert isinstance(login, Login)
    assert isinstance(again, Login)
    assert again.owner_id == login.owner_id


def test_too_many_wrong_passwords_have_to_wait() -> None:
    owners = Owners(SECRET, "kettle")
    assert [owners.log_in("pot", {}) for _ in range(5)] == [None] * 5
    wait_s = owners.log_in("kettle", {})
    assert isinstance(wait_s, float)
    assert 0 < wait_s <= 60


def test_right_passwords_do_not_count_as_tries() -> None:
    throttle = Throttle(2, 60.0)
    for _ in range(10):
        assert throttle.take() == 0
        throttle.give_back()
    assert throttle.take() == 0
    assert throttle.take() == 0
    assert throttle.take() > 0


def test_the_secret_is_made_once_and_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "cookie.key"
    first = load_secret(path)
    assert len(first) == 32
    assert load_secret(path) == first
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]
