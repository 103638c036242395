"""curl: the commands that the documentation shows, and Ollama's without a content type."""

from __future__ import annotations

import json
import shutil
import subprocess
from typing import Any

import pytest

from tests.clients.conftest import Server

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")


def curl(url: str, body: Any, *more: str) -> str:
    command = ["curl", "-sS", url, "-d", json.dumps(body), *more]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout


def test_each_protocol_answers(server: Server) -> None:
    messages = [{"role": "user", "content": "Hello"}]
    kind = ("-H", "Content-Type: application/json")
    base: dict[str, Any] = {"model": server.model, "max_tokens": 8}
    made = json.loads(curl(f"{server.url}/v1/chat/completions", base | {"messages": messages}, *kind))
    assert made["choices"][0]["message"]["content"]
    made = json.loads(curl(f"{server.url}/v1/completions", base | {"prompt": "Once upon"}, *kind))
    assert made["choices"][0]["text"]
    made = json.loads(curl(f"{server.url}/v1/messages", base | {"messages": messages}, *kind))
    assert made["content"][0]["text"]
    asked = {"model": server.model, "input": "Hello", "max_output_tokens": 8}
    assert json.loads(curl(f"{server.url}/v1/responses", asked, *kind))["output"]
    chat = {"model": server.model, "messages": messages, "options": {"num_predict": 8}}
    lines = curl(f"{server.url}/api/chat", chat).strip().split("\n")
    assert json.loads(lines[-1])["done"]
