"""Sixteen conversations take turns on a device with memory for three: none is ever answered on another's memory."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest

import sessions.memory.moves.restore
from sessions.ledger.ledger import fold
from sessions.manager import SessionManager
from sessions.memory.saved.speed import RestoreChoice
from sessions.store.store import Store
from sessions.turns.run import Run
from sessions.types import Tier
from tests.conftest import TinyDir
from tests.model_runtime.harness import WatchedEngine, full_read
from tests.sessions.real_session_harness import GREEDY, load, manager_of
from tests.sessions.session_harness import finish

CONVERSATIONS, TURNS, RESTART_EVERY = 16, 200, 40
FACTS = "amber basil cobalt dune ember fjord grove harbour indigo kelp lagoon maple nectar opal prairie reed"
SHORT = replace(GREEDY, sampling=replace(GREEDY.sampling, max_new_tokens=8))
QUESTIONS = ("And now?", "What was it?", "Go on.", "Why?")


def test_two_hundred_turns_of_sixteen_conversations(
    tiny_dir: TinyDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every logit of every sampled token equals that of its conversation read alone, to 1e-4."""
    monkeypatch.setattr(sessions.memory.moves.restore, "choose", lambda *args: RestoreChoice(True, "For the test."))
    dice = random.Random(5)
    loaded = load(tiny_dir("llama"))
    engine = WatchedEngine(loaded)
    budget_bytes = 3 * engine.engine.kv_bytes(510)
    owners = [f"owner {number % 3}" for number in range(CONVERSATIONS)]
    tiers = dict.fromkeys(Tier, 0)
    stopped = 0

    def open_services() -> tuple[Store, SessionManager]:
        store = Store(tmp_path / "data")
        manager = manager_of(store, engine, loaded, device_kv_budget_bytes=budget_bytes)
        manager.start()
        return store, manager

    store, manager = open_services()
    conversations: list[str] = []
    running: list[tuple[int, Run]] = []

    def settle() -> None:
        for number, run in running:
            receipt = finish(run, 60).receipt
            if receipt is not None:
                tiers[receipt.tier_before] += 1
            assert manager.memory_view(owners[number]).device_used_bytes <= budget_bytes
        running.clear()

    later = [number % CONVERSATIONS for number in range(TURNS - CONVERSATIONS)]
    dice.shuffle(later)
    for turn, number in enumerate([*range(CONVERSATIONS), *later]):
        if any(number == other for other, _ in running) or len(running) == 3:
            settle()
        if turn < CONVERSATIONS:
            conversations.append(manager.create_conversation(owners[number], SHORT).conversation_id)
        text = f"My word is {FACTS.split()[number]}." if turn < CONVERSATIONS else dice.choice(QUESTIONS)
        run = manager.send(owners[number], conversations[number], text)
        running.append((number, run))
        if dice.random() < 0.15:
            while not run.is_done and run.snapshot().sampled_tokens < 3:
                run.wait(run.snapshot().version, 1.0)
            manager.stop(owners[number], conversations[number])
            stopped += 1
        if turn % RESTART_EVERY == RESTART_EVERY - 1:
            settle()
            manager.close()
            store.close()
            store, manager = open_services()
    settle()

    loaded.model.set_attn_implementation("sdpa")
    compared, largest = 0, 0.0
    for owner, c in zip(owners, conversations, strict=True):
        path = store.messages.path(store.conversation(owner, c).leaf_id)
        ledger = fold(path)
        expected = full_read(loaded.model, ledger)
        for node in path:
            end = node.ids.ledger_start + len(node.ids.token_ids)
            for place in range(end - len(node.answer_ids), end) if node.role == "assistant" else ():
                found = engine.logits[ledger[:place]]
                largest = max(largest, float((found - expected[place - 1]).abs().max()))
                compared += 1
    manager.close()
    store.close()
    engine.close()
    print(f"positions={compared} largest difference={largest:.2g} stopped={stopped} tiers={tiers}")
    assert largest <= 1e-4
    assert compared > TURNS * 5
    assert stopped > 10
    assert tiers[Tier.DISK] > TURNS // 4
