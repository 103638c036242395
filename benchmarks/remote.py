"""What does Keepwarm cost in front of an engine elsewhere, and do several engines add up?

The engines wait instead of computing (`benchmarks.waiting_engine`), each in a process of its own, so every other
millisecond is ours. Turns go through the session manager: template, limits, commit, queue, HTTP. The overhead is the
time from the call of `send` to the moment at which the engine has read the request, ids and all.

    python -m benchmarks.remote [--tokens 16000] [--streams 200]
"""

from __future__ import annotations

import argparse
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import httpx

from benchmarks.driver import _PROSE
from benchmarks.report import finish, median, table
from model_runtime.interface.config import RemoteConfig
from model_runtime.interface.sampling_params import SamplingParams
from model_runtime.remote.engine import RemoteEngine
from model_runtime.remote.texts import load_texts
from model_runtime.text.chat_template import ChatTemplate
from sessions.config import SessionConfig
from sessions.manager import SessionManager
from sessions.store.store import Store
from sessions.turns.affinity import affinity_of
from sessions.turns.run import Run
from sessions.types import ConversationSettings, MessageStatus, RunPhase

OWNER = "benchmark"


class EngineProcess:
    """A waiting engine."""

    def __init__(self, slots: int, token_ms: float) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.address = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", "benchmarks.waiting_engine", str(port), str(slots), str(token_ms)]
        self._process = subprocess.Popen(command)
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            with suppress(httpx.HTTPError):
                httpx.get(f"{self.address}/props")
                return
            time.sleep(0.2)
        raise SystemExit("The waiting engine did not start.")

    def arrivals(self) -> list[tuple[str, float]]:
        found = httpx.get(f"{self.address}/arrivals", timeout=30).json()["arrivals"]
        return [(name, at) for name, at in found if name]

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


@contextmanager
def managed(*engines: EngineProcess) -> Iterator[tuple[SessionManager, Store]]:
    config = RemoteConfig(tuple(engine.address for engine in engines))
    texts = load_texts(config, lambda sentence: None)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        store = Store(Path(folder))
        stack.callback(store.close)
        engine = RemoteEngine(config, texts, lambda sentence: None)
        stack.callback(engine.close)
        template = ChatTemplate(texts.tokenizer, texts.stop_token_ids)
        settings = SessionConfig(1, disk_kv_budget_bytes=0, read_ahead=False, model_titles=False)
        manager = SessionManager(store, engine, template, settings)
        manager.start()
        stack.callback(manager.close)
        yield manager, store


def conversation(manager: SessionManager, answer_tokens: int, first: str = "Hello.") -> str:
    """With its first turn."""
    settings = ConversationSettings(SamplingParams(temperature=0.0, max_new_tokens=answer_tokens))
    conversation_id = manager.create_conversation(OWNER, settings).conversation_id
    end(manager.send(OWNER, conversation_id, first))
    return conversation_id


def end(run: Run) -> bool:
    """Whether the answer is complete."""
    snapshot = run.snapshot()
    while snapshot.phase is not RunPhase.DONE:
        snapshot = run.wait(snapshot.version, 5.0)
    return snapshot.message is not None and snapshot.message.status is MessageStatus.COMPLETE


def overhead_s(tokens: int, turns: int) -> list[float]:
    """Of turns behind a ledger of so many tokens."""
    engine = EngineProcess(4, 0.0)
    try:
        with managed(engine) as (manager, store):
            text = " ".join(_PROSE.split() * (1 + tokens // len(_PROSE.split())))
            while manager.count_tokens(OWNER, probe := conversation(manager, 2), text)[0] > tokens:
                text = text[: int(len(text) * 0.97)]
            manager.delete(OWNER, probe)
            long = conversation(manager, 2, text)
            begun = []
            for number in range(turns):
                begun.append(time.time())
                end(manager.send(OWNER, long, f"Question {number}?"))
            own = affinity_of(store.conversation(OWNER, long))
            arrived = [at for name, at in engine.arrivals() if name == own][1:]
            return [at - start for at, start in zip(arrived, begun, strict=True)]
    finally:
        engine.kill()


def streams(count: int, answer_tokens: int) -> tuple[int, float]:
    """(answers that failed, share of a processor) of so many at once."""
    engine = EngineProcess(count, 50.0)
    try:
        with managed(engine) as (manager, store):
            conversations = [new(store, answer_tokens) for _ in range(count)]
            store.create_conversation(OWNER, ConversationSettings(SamplingParams()))  # the owner
            cpu, wall = time.process_time(), time.perf_counter()
            runs = [manager.send(OWNER, one, "Tell me more.") for one in conversations]
            failed = sum(not end(run) for run in runs)
            return failed, (time.process_time() - cpu) / (time.perf_counter() - wall)
    finally:
        engine.kill()


def new(store: Store, answer_tokens: int) -> str:
    """Without a turn. (The manager would give the newest empty one out again.)"""
    settings = ConversationSettings(SamplingParams(temperature=0.0, max_new_tokens=answer_tokens))
    found = f"{time.monotonic_ns():032x}"
    store.add_conversation(OWNER, found, settings, None)
    return found


def affinity_and_failover(turns: int, names: int) -> tuple[float, float]:
    """(share of turns at the server of the turn before, seconds to the first token after that server was killed)."""
    engines = [EngineProcess(8, 0.0) for _ in range(2)]
    try:
        with managed(*engines) as (manager, store):
            conversations = [conversation(manager, 2) for _ in range(names)]
            for _ in range(turns):
                for one in conversations:
                    end(manager.send(OWNER, one, "More."))
            counts = [[name for name, _ in engine.arrivals()] for engine in engines]
            by_name = [[count.count(name) for count in counts] for name in {*counts[0], *counts[1]}]
            share = sum(max(pair) for pair in by_name) / sum(map(sum, by_name))
            places = {one: affinity_of(store.conversation(OWNER, one)) in counts[0] for one in conversations}
            engines[0].kill()
            started = time.perf_counter()
            run = manager.send(OWNER, next(one for one, is_first in places.items() if is_first), "Still there?")
            while not run.snapshot().sampled_tokens:
                run.wait(run.snapshot().version, 1.0)
            return share, time.perf_counter() - started
    finally:
        for engine in engines:
            engine.kill()


def throughput(count: int, seconds_each: float, answers: int) -> float:
    """Answers a second with so many engines of four slots each."""
    tokens = 20
    engines = [EngineProcess(4, seconds_each * 1000 / tokens) for _ in range(count)]
    try:
        with managed(*engines) as (manager, store):
            conversations = [new(store, tokens) for _ in range(answers)]
            started = time.perf_counter()
            runs = [manager.send(OWNER, one, "Go.") for one in conversations]
            failed = sum(not end(run) for run in runs)
            assert not failed
            return answers / (time.perf_counter() - started)
    finally:
        for engine in engines:
            engine.kill()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=16_000)
    parser.add_argument("--streams", type=int, default=200)
    options = parser.parse_args(arguments)
    waits = sorted(overhead_s(options.tokens, 60))
    failed, share = streams(options.streams, 40)
    affinity, failover = affinity_and_failover(5, 12)
    # Of fewer conversations the hash gives one engine more than its half by chance: 160 made 1.7 to 2.1.
    one, two = throughput(1, 0.25, 320), throughput(2, 0.25, 320)
    p95 = waits[int(len(waits) * 0.95)]
    rows = [
        (
            f"overhead before the engine has a turn behind {options.tokens:,} tokens, median",
            f"{median(waits) * 1000:.1f} ms",
        ),
        ("  the same, 95th percentile", f"{p95 * 1000:.1f} ms"),
        (f"{options.streams} streams at once, 20 tokens a second each: failed", failed),
        ("  processors that took", f"{share:.2f}"),
        ("turns at the engine of the turn before", f"{affinity:.3f}"),
        ("first token after that engine was killed", f"{failover:.2f} s"),
        ("throughput of two engines over one", f"{two / one:.2f}"),
    ]
    table(("", ""), rows)
    figures = {
        "overhead_p50_ms": median(waits) * 1000,
        "overhead_p95_ms": p95 * 1000,
        "streams": options.streams,
        "streams_failed": failed,
        "cpu_share": share,
        "affinity_share": affinity,
        "failover_s": failover,
        "two_engines_over_one": two / one,
    }
    finish("remote", figures, "waiting engines", "none")


if __name__ == "__main__":
    main()
