"""The shipped Ray Serve application with two replicas of llama.cpp's real server: a conversation stays at its replica.

`make test-ray` installs Ray and the server, and runs this file."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from model_runtime.interface.config import RemoteConfig
from model_runtime.loading.embedded import SMOLLM2
from model_runtime.remote.engine import RemoteEngine
from model_runtime.remote.texts import RemoteTexts, load_texts
from model_runtime.text.chat_template import ChatTemplate
from sessions.types import MessageStatus
from tests.ports import free_port
from tests.sessions.session_harness import ADA, SessionHarness, finish

RAY = Path(__file__).parents[2] / "deploy" / "ray-serve"
PYTHON = os.environ.get("KEEPWARM_RAY_PYTHON", "")
START_S = 300.0
pytestmark = [
    pytest.mark.remote,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not PYTHON, reason="KEEPWARM_RAY_PYTHON names no Python with Ray: make test-ray"),
]


@pytest.fixture(scope="module")
def texts(embedded_cache: Path) -> RemoteTexts:
    return load_texts(RemoteConfig(("http://x",), cache_dir=embedded_cache), lambda sentence: None)


@pytest.fixture(scope="module")
def ray_serve(embedded_cache: Path) -> Iterator[str]:
    """Its address."""
    config: dict[str, Any] = yaml.safe_load((RAY / "llama.yaml").read_text())
    config["http_options"]["port"] = port = free_port()
    gguf = str(embedded_cache / "embedded" / SMOLLM2.gguf_name)
    config["applications"][0]["args"] |= {"model": gguf, "slots": 8, "context_tokens": 1024, "num_cpus": 0.5}
    with tempfile.TemporaryDirectory(prefix="ray") as short:  # paths of sockets may have 107 bytes
        (Path(short) / "llama.yaml").write_text(yaml.safe_dump(config))
        log = Path(short) / "serve.log"
        command = [str(Path(PYTHON).with_name("serve")), "run", f"{short}/llama.yaml"]
        environment = {"PATH": f"{Path(PYTHON).parent}:{os.environ['PATH']}", "HOME": short, "RAY_TMPDIR": short}
        environment |= {"RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(RAY)}
        with log.open("wb") as said:
            process = subprocess.Popen(command, stdout=said, stderr=said, env=environment, start_new_session=True)
        address, started = f"http://127.0.0.1:{port}", time.monotonic()
        try:
            while not is_up(address):
                text = log.read_text(errors="replace")
                is_lost = process.poll() is not None or "Traceback" in text
                assert not is_lost and time.monotonic() - started < START_S, text[-4000:]  # noqa: PT018
                time.sleep(0.5)
            print(f"two replicas after {time.monotonic() - started:.0f} s")
            yield address
        finally:
            process.send_signal(signal.SIGINT)  # ends its own cluster
            process.wait(60)


def is_up(address: str) -> bool:
    try:
        return httpx.get(f"{address}/props", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


@pytest.fixture
def opened(ray_serve: str, texts: RemoteTexts, tmp_path: Path) -> Iterator[SessionHarness]:
    engine: Any = RemoteEngine(RemoteConfig((ray_serve,)), texts, lambda sentence: None)
    template: Any = ChatTemplate(texts.tokenizer, texts.stop_token_ids)
    harness = SessionHarness(tmp_path / "data", engine, template, budget_bytes=1)
    yield harness
    harness.close()


def replica_of(address: str, session: str) -> str:
    headers = {"x-session-id": session} if session else {}
    return httpx.get(f"{address}/v1/models", headers=headers, timeout=30).headers["x-replica"]


def test_a_session_has_one_replica_and_all_sessions_have_both(ray_serve: str) -> None:
    names = [f"session {number}" for number in range(24)]
    places = {name: replica_of(ray_serve, name) for name in names}
    assert len(set(places.values())) == 2
    again = [replica_of(ray_serve, name) == places[name] for _ in range(4) for name in names]
    assert sum(again) >= 0.98 * len(again)  # Ray asks another replica where the first does not answer its probe in time
    assert len({replica_of(ray_serve, "") for _ in range(24)}) == 2, "without the header it is anywhere"


def test_every_turn_meets_what_its_conversation_has_there(opened: SessionHarness) -> None:
    """With any replica for any turn, half of the turns would find nothing. All begin at once, because llama.cpp gives a
    new conversation the slot of one that began alike, if it is free."""
    conversations: list[str] = []
    runs = []
    for number in range(8):
        conversations.append(opened.conversation(temperature=0.0, max_new_tokens=8))
        runs.append(opened.manager.send(ADA, conversations[-1], f"Hello from number {number}."))
    assert {finish(run, 120).status for run in runs} == {MessageStatus.COMPLETE}
    found = []
    for number in range(3):
        runs = [opened.manager.send(ADA, one, f"Question {number}: what is {number} + 3?") for one in conversations]
        for run in runs:
            message = finish(run, 120)
            assert message.status is MessageStatus.COMPLETE, message.note
            receipt = opened.receipt(message)
            found.append(receipt.fed_tokens <= receipt.delta_tokens)
    kept = sum(found)
    print(f"{kept} of {len(found)} turns read only what they added")
    assert kept == len(found)
    assert opened.engine.max_concurrent == 16, "the slots of both replicas"
