"""API keys and their own conversations; without any key, only programs on this machine are answered."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import sqlite_utils

from app.__main__ import main
from sessions.errors import StoreError
from sessions.store.database import Database
from sessions.store.migrations import MIGRATIONS
from sessions.store.tables.keys import KeyStore, open_keys
from tests.app.conftest import MODEL, Connect, Serve, user
from tests.app.site import Site

BODY = {"model": MODEL, "messages": [user("Hello")]}


def add(site: Site, name: str) -> str:
    return site.store.keys.add(name)[1]


def test_two_keys_see_nothing_of_each_other(site: Site, connect: Connect) -> None:
    ada, bob = connect(site, add(site, "ada")), connect(site, add(site, "bob"))
    said: list[Any] = [user("Hello")]
    first = ada.chat.completions.create(model=MODEL, messages=said, prompt_cache_key="chat")
    said += [{"role": "assistant", "content": first.choices[0].message.content}, user("And now?")]
    second = bob.chat.completions.create(model=MODEL, messages=said)
    third = bob.chat.completions.create(model=MODEL, messages=said, prompt_cache_key="chat")
    for theirs in (second, third):
        assert theirs.model_extra is not None
        assert theirs.model_extra["keepwarm"]["session_id"] != first.model_extra["keepwarm"]["session_id"]  # type: ignore[index]
    assert second.usage is not None
    assert second.usage.prompt_tokens_details is not None
    assert second.usage.prompt_tokens_details.cached_tokens == 0


def test_once_there_is_a_key_every_program_needs_one(site: Site, connect: Connect, http: httpx.Client) -> None:
    assert http.post("/v1/chat/completions", json=BODY).status_code == 200
    text = add(site, "ada")
    for header in (
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": text},
        {"Cookie": f"keepwarm_login={text}"},
    ):
        refused = http.post("/v1/chat/completions", json=BODY, headers=header)
        assert refused.status_code == 401
        assert refused.json()["error"]["code"] == "invalid_api_key"
    with pytest.raises(openai.AuthenticationError):
        connect(site, "kw-wrong").models.list()
    assert connect(site, text).models.list().data
    (key,) = site.store.keys.every()
    assert key.last_used_at is not None


def test_revoking_the_last_key_lets_no_one_in(serve: Serve, http: httpx.Client, site: Site, tmp_path: Path) -> None:
    texts = [add(site, "ada"), add(site, "bob")]
    for key in site.store.keys.every():
        site.store.keys.revoke(key.key_id)
    database = sqlite3.connect(tmp_path / "data" / "keepwarm.db")

    def is_shut(client: httpx.Client) -> None:
        for header in ({}, *({"Authorization": f"Bearer {text}"} for text in texts)):
            refused = client.post("/v1/chat/completions", json=BODY, headers=header)
            assert refused.status_code == 401
            assert refused.json()["error"]["code"] == "invalid_api_key"
            assert "Add one: keepwarm key add NAME." in refused.json()["error"]["message"]
            assert client.get("/metrics", headers=header).status_code == 401
            assert client.get("/health", headers=header).json() == {"live": True, "ready": True}

    is_shut(http)
    with database:
        database.execute("DELETE FROM api_keys")
    database.close()
    is_shut(http)
    site.close()
    again = serve(headless=True)
    with httpx.Client(base_url=again.url) as client:
        is_shut(client)
        found = client.get("/v1/models", headers={"Authorization": f"Bearer {add(again, 'eve')}"})
        assert found.status_code == 200


def test_a_key_of_before_counts(tmp_path: Path) -> None:
    """A database from before the existence of keys was recorded."""
    database = sqlite3.connect(tmp_path / "keepwarm.db")
    db = sqlite_utils.Database(database)
    MIGRATIONS.apply(db, stop_before="a_key_has_existed")
    db.execute("INSERT INTO api_keys VALUES ('1', 'ada', 'hash', 'key:1', 5.0, NULL, 6.0)")
    database.commit()
    database.close()
    keys, opened = open_keys(tmp_path)
    assert keys.ever_made()
    opened.close()


def test_a_key_can_be_asked_for_from_the_start(serve: Serve) -> None:
    site = serve(headless=True, require_key=True)
    with httpx.Client(base_url=site.url) as client:
        refused = client.get("/v1/models")
        assert refused.status_code == 401
        assert "this server has no key yet. Add one: keepwarm key add NAME." in refused.json()["error"]["message"]
        text = add(site, "ada")
        assert client.get("/v1/models", headers={"Authorization": f"Bearer {text}"}).status_code == 200


def test_a_full_disk_turns_no_valid_key_away(site: Site, http: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    text = add(site, "ada")

    def full(database: Database) -> None:
        raise StoreError("The disk is full.")

    monkeypatch.setattr(Database, "write", full)
    assert http.get("/v1/models", headers={"Authorization": f"Bearer {text}"}).status_code == 200


def test_health_and_metrics_hold_nothing_of_people(serve: Serve) -> None:
    """Not even for callers who may see everything: they contain only totals."""
    site = serve(headless=True)
    with httpx.Client(base_url=site.url) as client:
        said = [user("My secret is a kettle")]
        client.post("/v1/chat/completions", json={**BODY, "messages": said, "prompt_cache_key": "chat of ada"})
        (row,) = client.get("/v1/sessions").json()["data"]
        for text in (client.get("/health").text, client.get("/metrics").text):
            for word in ("kettle", "secret", "chat of ada", row["id"], "local"):
                assert word not in text


@pytest.mark.parametrize(
    "header",
    [
        {"Host": "chat.example.org"},
        {"Host": "1a2b.gradio.live"},
        {"Host": "127.0.0.1.example.org"},
        {"X-Forwarded-For": "203.0.113.7"},
        {"X-Real-IP": "203.0.113.7"},
        {"Forwarded": "for=203.0.113.7"},
    ],
)
def test_what_comes_through_a_proxy_or_a_share_link_needs_a_key(
    site: Site, http: httpx.Client, header: dict[str, str]
) -> None:
    refused = http.post("/v1/chat/completions", json=BODY, headers=header)
    assert refused.status_code == 403
    assert "keepwarm key add" in refused.json()["error"]["message"]
    allowed = http.post(
        "/v1/chat/completions", json=BODY, headers={**header, "Authorization": f"Bearer {add(site, 'ada')}"}
    )
    assert allowed.status_code == 200


def test_other_sites_pages_are_refused(site: Site, http: httpx.Client) -> None:
    for origin in ("https://evil.example", "null", "http://127.0.0.1:1"):
        refused = http.post("/v1/chat/completions", json=BODY, headers={"Origin": origin})
        assert refused.status_code == 403
        assert refused.json()["error"]["type"] == "permission_error"
    assert http.post("/v1/chat/completions", json=BODY, headers={"Origin": site.url}).status_code == 200


def test_behind_a_password_every_program_needs_a_key(serve: Serve, connect: Connect) -> None:
    site = serve(headless=True, password="secret")
    with pytest.raises(openai.PermissionDeniedError, match="keepwarm key add"):
        connect(site).models.list()
    assert connect(site, add(site, "ada")).models.list().data


def test_the_command_makes_lists_and_revokes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--data-dir", str(tmp_path / "data")]
    assert main(["key", "list", *where]) == 0
    assert "There are no keys" in capsys.readouterr().out
    assert main(["key", "add", "my laptop", *where]) == 0
    said = capsys.readouterr().out
    text, key_id = said.split()[-1], said.split()[1]
    assert text.startswith("kw-")
    assert main(["key", "list", *where]) == 0
    listed = capsys.readouterr().out
    assert "my laptop" in listed
    assert text not in listed
    raw = b"".join(path.read_bytes() for path in (tmp_path / "data").iterdir())
    assert text.encode() not in raw
    keys, database = open_keys(tmp_path / "data")
    assert keys.holder(text) is not None
    assert main(["key", "revoke", key_id, *where]) == 0
    assert "It was the last one: no program is answered until there is another." in capsys.readouterr().out
    assert main(["key", "list", *where]) == 0
    assert "No key is valid: no program is answered" in capsys.readouterr().out
    assert keys.holder(text) is None
    database.close()
    assert main(["key", "revoke", "nothere", *where]) == 1
    assert "There is no key" in capsys.readouterr().err
    assert main(["key", "add", " ", *where]) == 2


def test_a_running_server_sees_new_keys_at_once(site: Site, http: httpx.Client, tmp_path: Path) -> None:
    assert http.get("/v1/models").status_code == 200
    assert main(["key", "add", "later", "--data-dir", str(tmp_path / "data")]) == 0
    assert http.get("/v1/models").status_code == 401


def test_keys_are_never_stored(site: Site) -> None:
    text = add(site, "ada")
    assert isinstance(site.store.keys, KeyStore)
    assert text not in repr(site.store.keys.every())
