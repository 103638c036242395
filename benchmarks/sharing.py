"""What `benchmarks.clients` measures of requests that begin alike: forks that are asked once, and four at once."""

from __future__ import annotations

import threading
import time
from typing import Any

import httpx

from app.access.auth import LOCAL_OWNER
from sessions.manager import SessionManager
from sessions.memory.device.spare_copies import SPARE_AFTER_S

PART_TOKENS = 16  # of one sentence of `prompt`
EXCHANGES = 6
SIDE_QUESTIONS = ("A title for this chat.", "Three tags for this chat.", "What may be asked next?")


def prompt(tokens: int, salt: str) -> str:
    """About that many tokens that no earlier prompt begins with."""
    return " ".join(f"Part {n} of {salt} holds a valve and {n * n} screws." for n in range(tokens // PART_TOKENS))


def forks(client: httpx.Client, manager: SessionManager, model: str, tokens: int = 3_000) -> tuple[float, float]:
    """Bytes on the device over those of one copy, of a chat with three side questions about beginnings of it, on forks:
    at once, and when no one has gone on with these for a while."""
    messages: list[dict[str, str]] = []
    for number in range(EXCHANGES):
        messages.append({"role": "user", "content": prompt(tokens // EXCHANGES, f"box {number}")})
        messages.append({"role": "assistant", "content": f"Box {number} is understood."})
    asked = [messages[:-1]]
    for place, question in enumerate(SIDE_QUESTIONS, start=2):
        asked.append([*messages[: 2 * place], {"role": "user", "content": question}])
    ids, own_tokens = [], 0
    for one in asked:
        body = _answer(client, model, one)
        ids.append(body["keepwarm"]["session_id"])
        own_tokens += body["keepwarm"]["fed"] + body["usage"]["completion_tokens"] - 1
    assert len(set(ids)) == len(asked), "a side question was not asked on a fork"
    least = own_tokens * manager.info.kv_bytes_per_token
    held = _held_bytes(manager, ids) / least
    deadline = time.monotonic() + 3 * SPARE_AFTER_S
    while _held_bytes(manager, ids) > 1.1 * least and time.monotonic() < deadline:
        time.sleep(0.1)
    return held, _held_bytes(manager, ids) / least


def at_once(client: httpx.Client, model: str, count: int, salt: str, tokens: int = 4_000) -> list[float]:
    """Seconds to the first token of `count` requests with the same new prompt, sent together."""
    text, began = prompt(tokens, salt), time.perf_counter()
    found = [0.0] * count

    def ask(place: int) -> None:
        question = f"What is said of number {place}, and of {place * place}?"
        said = [{"role": "system", "content": text}, {"role": "user", "content": question}]
        body = {"model": model, "messages": said, "temperature": 0, "max_tokens": 4, "stream": True}
        with client.stream("POST", "/v1/chat/completions", json=body) as stream:
            for line in stream.iter_lines():
                if '"content"' in line and '"content": ""' not in line and not found[place]:
                    found[place] = time.perf_counter() - began

    threads = [threading.Thread(target=ask, args=(place,)) for place in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def _answer(client: httpx.Client, model: str, messages: list[dict[str, str]]) -> dict[str, Any]:
    body = {"model": model, "messages": messages, "max_tokens": 16, "temperature": 0}
    answered = client.post("/v1/chat/completions", json=body)
    assert answered.status_code == 200, answered.text
    return dict(answered.json())


def _held_bytes(manager: SessionManager, ids: list[str]) -> int:
    return sum(manager.memory_row(LOCAL_OWNER, one).used_bytes for one in ids)
