"""Do stateless clients benefit from warm KVs without any change on their side?

A client that resends its whole history has a ten-turn conversation over loopback: with prefix matching on; with it
off, so that every request creates a conversation of its own, which still copies its beginning from the previous one;
and off with nothing kept. Medians of alternating repeats. Then eight of these clients talk at once. The client measures
the time from sending the request to the first piece of text, and between pieces.

    python -m benchmarks.api [--model embedded] [--turns 10] [--repeats 3] [--clients 8]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from app.access.auth import LOCAL_OWNER
from app.budgets import Budgets
from app.server.listen import bind
from app.server.site import create_app
from app.server.uvicorn_server import Server
from app.services import Services
from app.wiring import IdleFeatures, ServiceSettings, open_services
from benchmarks.driver import _PROSE
from benchmarks.report import device_name, finish, median, table
from model_runtime.interface.config import ModelConfig
from sessions.manager import SessionManager

ANSWER_TOKENS = 128  # the usual shape of a chat: short questions, longer answers; 2,000 tokens at turn ten
QUESTION_WORDS = 60


@dataclass(slots=True)
class Load:
    """What one client measured."""

    ttft_s: list[float] = field(default_factory=list)
    gaps_s: list[float] = field(default_factory=list)
    cached_tokens: list[int] = field(default_factory=list)
    prompt_tokens: list[int] = field(default_factory=list)
    failed: int = 0


class Loads(list[Load]):
    """Repeats of the same load."""

    def another(self) -> Load:
        self.append(Load())
        return self[-1]

    def ttft_s(self) -> list[float]:
        """The median of the repeats, by turn."""
        return [median(list(turn)) for turn in zip(*(load.ttft_s for load in self), strict=False)]

    @property
    def failed(self) -> int:
        return sum(load.failed for load in self)


@contextmanager
def served(services: Services) -> Iterator[str]:
    listener, ready = bind("127.0.0.1", 0), threading.Event()
    server = Server(create_app(services, "127.0.0.1", headless=True), 2, ready.set)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    ready.wait()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


def talk(url: str, model: str, name: str, turns: int, load: Load, before: Callable[[], None] = lambda: None) -> None:
    """One stateless client's whole conversation. `before` is called before every request."""
    words = _PROSE.split()
    messages: list[dict[str, Any]] = []
    with httpx.Client(base_url=url, timeout=300) as client:
        for turn in range(turns):
            text = " ".join((words * 3)[turn * 7 : turn * 7 + QUESTION_WORDS])
            messages.append({"role": "user", "content": f"{name}, part {turn}: {text}"})
            before()
            try:
                messages.append({"role": "assistant", "content": answer(client, model, messages, load)})
            except (httpx.HTTPError, KeyError, ValueError) as error:
                print(f"# failed: {error}")
                load.failed += 1
                return


def answer(client: httpx.Client, model: str, messages: list[dict[str, Any]], load: Load) -> str:
    body = {
        "model": model,
        "messages": messages,
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0,
        "max_tokens": ANSWER_TOKENS,
    }
    text, last, began = "", 0.0, time.perf_counter()
    with client.stream("POST", "/v1/chat/completions", json=body) as stream:
        stream.raise_for_status()
        for line in stream.iter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line.removeprefix("data: "))
            if usage := chunk.get("usage"):
                load.cached_tokens.append(usage["prompt_tokens_details"]["cached_tokens"])
                load.prompt_tokens.append(usage["prompt_tokens"])
            if chunk["choices"] and (piece := chunk["choices"][0]["delta"].get("content")):
                now = time.perf_counter()
                if last:
                    load.gaps_s.append(now - last)
                else:
                    load.ttft_s.append(now - began)
                text, last = text + piece, now
    return text


def drop_everything(manager: SessionManager) -> None:
    for row in manager.memory_view(LOCAL_OWNER).rows:
        while manager.active_run(LOCAL_OWNER, row.conversation_id) is not None:  # the run ends after its last piece
            time.sleep(0.001)
        manager.drop_kv(LOCAL_OWNER, row.conversation_id)


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))] if values else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--clients", type=int, default=8)
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        config = ModelConfig(model=options.model)
        budgets = Budgets("4GiB", "0")
        idle = IdleFeatures(read_ahead=False, titles=False)  # so that no idle work hides a client's cost
        settings = ServiceSettings(Path(folder), config, budgets, idle_work=idle)
        with (
            open_services(settings, lambda line: print(f"# {line}")) as opened,
            served(opened) as url,
        ):
            model = opened.manager.info.name
            talk(url, model, "Warm-up", 1, Load())
            on, off, nothing = (Loads() for _ in range(3))
            for number in range(options.repeats):
                talk(url, model, f"Ada {number}", options.turns, on.another())
                opened.manager.completions.placements.matches_prefixes = False
                talk(url, model, f"Bob {number}", options.turns, off.another())
                drop = partial(drop_everything, opened.manager)
                talk(url, model, f"Eve {number}", options.turns, nothing.another(), drop)
                opened.manager.completions.placements.matches_prefixes = True
            loads = [Load() for _ in range(options.clients)]
            threads = [
                threading.Thread(target=talk, args=(url, model, f"Client {n}", 4, load)) for n, load in enumerate(loads)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            device, name = opened.manager.info.device, f"{model}, {opened.manager.info.quantization}"

    on_s, off_s, nothing_s = on.ttft_s(), off.ttft_s(), nothing.ttft_s()
    rows = zip(
        *(on[-1].prompt_tokens, on[-1].cached_tokens, on_s),
        *(off[-1].cached_tokens, off_s, nothing[-1].cached_tokens, nothing_s),
        strict=False,
    )
    header = (
        "turn",
        "prompt tokens",
        "cached, on",
        "first text s",
        "off",
        "first text s",
        "nothing kept",
        "first text s",
    )
    table(header, [(str(n), *row) for n, row in enumerate(rows, start=1)])
    gaps = [gap for load in loads for gap in load.gaps_s]
    firsts = [ttft for load in loads for ttft in load.ttft_s]
    figures = {
        "stateless_ttft_reduction": 1 - on_s[-1] / nothing_s[-1],
        "ttft_on_turn_ten_s": on_s[-1],
        "ttft_off_turn_ten_s": off_s[-1],
        "ttft_nothing_kept_turn_ten_s": nothing_s[-1],
        "requests_failed": on.failed + off.failed + nothing.failed + sum(load.failed for load in loads),
        "inter_token_p95_ms": percentile(gaps, 0.95) * 1000,
        "ttft_p95_s_at_once": percentile(firsts, 0.95),
    }
    finish("api", figures, device_name(device), name)


if __name__ == "__main__":
    main()
