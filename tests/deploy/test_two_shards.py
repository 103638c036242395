"""Two real servers behind a real nginx or Caddy with the shipped configurations: who is answered where, also while one
is away.

`apt-get install nginx-light caddy`; `make test-long` runs this."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from sessions.store.tables.keys import open_keys
from tests.app.cli.start_process import StartedProcess, clean_environment
from tests.deploy.front import FRONTS, front_of
from tests.model_runtime.remote.scripted_dialects import LlamaCppScript
from tests.model_runtime.remote.scripted_server import ScriptedServer, byte_level

DEPLOY = Path(__file__).parents[2] / "deploy"
SYSTEMD = shutil.which("systemd-analyze")
PASSWORD = "a password for both"
pytestmark = pytest.mark.long


class Shard:
    """A server with a page behind a password, on an engine elsewhere."""

    def __init__(self, folder: Path, engine: ScriptedServer, tokenizer: Path, key: bytes) -> None:
        self.folder, self.data = folder, folder / "data"
        self.data.mkdir(parents=True, mode=0o700)
        (self.data / "cookie.key").write_bytes(key)
        self._flags = ["--engine", engine.address, "--tokenizer", str(tokenizer), "--password", PASSWORD]
        self._flags += ["--trusted-proxy", "127.0.0.1", "--require-key", "--no-titles"]
        self.port = 0
        self._process: StartedProcess | None = None

    def start(self) -> None:
        flags = [*self._flags, *(["--port", str(self.port)] if self.port else [])]
        self._process = StartedProcess(self.folder, flags, clean_environment(XDG_CACHE_HOME=str(self.folder)))
        self.port = int(self._process.url().rstrip("/").rpartition(":")[2])

    def stop(self) -> None:
        if self._process is not None:
            self._process.stop()

    def key(self, name: str) -> tuple[str, str]:
        """(id, text) of a new key."""
        keys, database = open_keys(self.data)
        key, text = keys.add(name)
        database.close()
        return key.key_id, text


@pytest.fixture
def shards(tmp_path: Path) -> Iterator[dict[str, Shard]]:
    engine = ScriptedServer(LlamaCppScript())
    byte_level().save_pretrained(tmp_path / "tokenizer")
    found = {name: Shard(tmp_path / name, engine, tmp_path / "tokenizer", bytes(range(40))) for name in "ab"}
    try:
        for shard in found.values():
            shard.start()
        yield found
    finally:
        for shard in found.values():
            shard.stop()
        engine.close()


@pytest.fixture(params=FRONTS)
def front(request: pytest.FixtureRequest, shards: dict[str, Shard], tmp_path: Path) -> Iterator[str]:
    """Its address."""
    with front_of(request.param, shards["a"].port, shards["b"].port, tmp_path) as address:
        yield address


def ask(address: str, key: str, name: str, *texts: str) -> httpx.Response:
    """A chat completion; users and answers take turns in `texts`."""
    messages = [{"role": "assistant" if n % 2 else "user", "content": text} for n, text in enumerate(texts)]
    body = {"model": "any", "messages": messages, "max_tokens": 40, "prompt_cache_key": name}
    model = httpx.get(f"{address}/v1/models", headers={"authorization": f"Bearer {key}"}, timeout=30)
    if model.status_code != 200:
        return model
    body["model"] = model.json()["data"][0]["id"]
    return httpx.post(
        f"{address}/v1/chat/completions", json=body, headers={"authorization": f"Bearer {key}"}, timeout=60
    )


def keepwarm(shard: Shard, *arguments: str) -> str:
    from app.__main__ import main

    assert main([*arguments, "--data-dir", str(shard.data)]) == 0, arguments
    return ""


@pytest.mark.timeout(600)
def test_programs(front: str, shards: dict[str, Shard], tmp_path: Path) -> None:
    keys = {name: [shard.key(f"{name}{number}") for number in range(3)] for name, shard in shards.items()}
    for key_id, key in [*keys["a"], *keys["b"]]:
        assert ask(front, key, key_id, "Hello.").status_code == 200, "wherever its hash leads"
    assert ask(front, "kw-unknown", "x", "Hello.").status_code == 401
    shards["a"].stop()
    for key_id, key in keys["b"]:
        assert ask(front, key, key_id, "Hello again.").status_code == 200
    for key_id, key in keys["a"]:
        away = ask(front, key, key_id, "Hello again.")
        assert (away.status_code, "cannot be reached" in away.json()["error"]["message"]) == (503, True)
    key_id, key = keys["a"][0]
    keepwarm(shards["a"], "export", key_id, str(tmp_path / "moved"))
    shards["b"].stop()
    keepwarm(shards["b"], "import", str(tmp_path / "moved"))
    shards["b"].start()
    assert ask(front, key, key_id, "Hello.").status_code == 200, "its new server has its key"
    keepwarm(shards["a"], "key", "revoke", key_id)
    shards["a"].start()
    again = ask(front, key, key_id, "Hello.")
    assert again.status_code == 200
    keys_a, database = open_keys(shards["a"].data)
    assert keys_a.holder(key) is None
    database.close()


@pytest.mark.timeout(600)
def test_browsers(front: str, shards: dict[str, Shard], tmp_path: Path) -> None:
    first = page(front)
    shard = cookie_of(first, "keepwarm_shard")
    assert shard in shards
    cookies = {"keepwarm_shard": shard}
    login = httpx.post(f"{front}/login", data={"password": PASSWORD}, cookies=cookies, timeout=60)
    assert login.status_code == 303, login.text
    assert "keepwarm_shard" not in str(login.headers.get_list("set-cookie"))
    cookies |= {name: value for name, value in login.cookies.items() if value}
    for _ in range(4):
        assert page(front, **cookies).status_code == 200
    other = "b" if shard == "a" else "a"
    assert page(front, **{**cookies, "keepwarm_shard": other}).status_code == 303, "unknown there"
    shards[shard].stop()
    away = page(front, **cookies)
    assert (away.status_code, away.headers.get_list("set-cookie")) == (503, []), "its conversations are not elsewhere"
    for _ in range(6):
        new = page(front)
        assert (new.status_code, cookie_of(new, "keepwarm_shard")) == (303, other)
    link = page(f"{front}/shard/{other}")
    assert (link.status_code, cookie_of(link, "keepwarm_shard")) == (303, other)


def page(address: str, **cookies: str) -> httpx.Response:
    """As a browser asks; without its cookies it is sent to the log-in."""
    return httpx.get(address, headers={"accept": "text/html"}, cookies=cookies, timeout=60)


def cookie_of(response: httpx.Response, name: str) -> str:
    """The value that is set last, as a browser takes it."""
    values = [one.partition(";")[0] for one in response.headers.get_list("set-cookie")]
    return next(one.partition("=")[2] for one in reversed(values) if one.startswith(f"{name}="))


def test_the_unit_is_understood() -> None:
    if SYSTEMD is None:
        pytest.skip("systemd-analyze is not installed")
    unit = str(DEPLOY / "systemd" / "keepwarm@.service")
    found = subprocess.run([SYSTEMD, "verify", unit], capture_output=True, text=True, check=False)
    lines = [line for line in found.stderr.splitlines() if "is not executable" not in line]
    assert [line for line in lines if "keepwarm@" in line] == []
