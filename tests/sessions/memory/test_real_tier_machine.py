"""A smaller tier machine over the real engine and tiny models: whatever tiers a KV passed through, every greedy token
is the one that a full read of the ledger up to it gives."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from model_runtime.engine.engine import LocalEngine
from model_runtime.interface.config import EngineConfig
from model_runtime.interface.sampling_params import SamplingParams
from model_runtime.loading.loaded import LoadedModel
from model_runtime.reference.full_read import read_as_it_grew
from model_runtime.text.chat_template import ChatTemplate
from sessions.config import SessionConfig
from sessions.errors import CacheFull, ConversationBusy, StoreError
from sessions.ledger.ledger import fold
from sessions.manager import SessionManager
from sessions.memory.saved.speed import ASSUMED_BYTES_PER_S
from sessions.store.store import Store
from sessions.types import ConversationSettings, Tier
from tests.model_runtime.harness import loaded_tiny
from tests.model_runtime.tiny_models import tiny_llama, tiny_long_rope
from tests.sessions.session_harness import ADA, finish

EXAMPLES = int(os.environ.get("KEEPWARM_REAL_TIER_EXAMPLES", "6"))
GREEDY = ConversationSettings(SamplingParams(temperature=0, max_new_tokens=8))
PICK = st.integers(0, 100)
TIERS = st.sampled_from(["host", "disk"])
LOADED: list[LoadedModel] = []


@pytest.fixture(scope="module", params=[tiny_llama, tiny_long_rope])
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoadedModel]:
    directory = request.param(tmp_path_factory.mktemp("tiny") / "model")
    LOADED.extend([loaded_tiny(directory), loaded_tiny(directory)])  # the second keeps transformers' own attention
    yield LOADED[0]
    LOADED.clear()


class RealTierMachine(RuleBasedStateMachine):
    """Two conversations of one person fit the device; restoring is always tried."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.mkdtemp()
        self.conversations: list[str] = []
        self.tiers: set[Tier] = set()
        self.open()

    def open(self) -> None:
        self.engine = LocalEngine(LOADED[0], EngineConfig(prefill_chunk_tokens=32, kv_step_tokens=32), 512)
        self.store = Store(Path(self.directory))
        template = ChatTemplate(LOADED[0].tokenizer, {0})
        self.budget_bytes = self.engine.kv_bytes(640)
        config = SessionConfig(
            self.budget_bytes,
            host_kv_budget_bytes=self.engine.segment_bytes(400),
            disk_kv_budget_bytes=2**26,
            save_patience_s=0.2,
        )
        self.manager = SessionManager(self.store, self.engine, template, config)
        self.manager.start()
        # Reading is faster than opening a file with a model of three layers; a machine that restores tests more.
        self.engine.estimate_read_s = lambda start, end: (end - start) / ASSUMED_BYTES_PER_S * 1e9  # type: ignore[method-assign]

    def close(self) -> None:
        self.manager.close()
        self.engine.close()
        self.store.close()

    def teardown(self) -> None:
        try:
            self.check()
        finally:
            self.close()
            shutil.rmtree(self.directory)

    @initialize()
    def begin(self) -> None:
        for text in ("Tell me about the harbour in the morning.", "How does one count the swells?"):
            self.conversations.append(self.manager.create_conversation(ADA, GREEDY).conversation_id)
            self.say(len(self.conversations) - 1, text)

    def picked(self, pick: int) -> str:
        return self.conversations[pick % len(self.conversations)]

    @rule(pick=PICK, text=st.sampled_from(["And then?", "Why is that so, in a few words?", "Go on."]))
    def say(self, pick: int, text: str) -> None:
        c = self.picked(pick)
        if len(self.path_ids(c)) < 420:
            with contextlib.suppress(CacheFull):
                message = finish(self.manager.send(ADA, c, text), timeout_s=60)
                assert message.receipt is not None
                self.tiers.add(message.receipt.tier_before)

    @rule(pick=PICK, tier=TIERS)
    def park(self, pick: int, tier: str) -> None:
        with contextlib.suppress(StoreError, ConversationBusy):
            self.manager.park(ADA, self.picked(pick), tier)

    @rule(pick=PICK, tier=TIERS)
    def come_back(self, pick: int, tier: str) -> None:
        self.park(pick, tier)
        self.say(pick, "Back again.")

    @rule(pick=PICK)
    def regenerate(self, pick: int) -> None:
        with contextlib.suppress(CacheFull):
            finish(self.manager.regenerate(ADA, self.picked(pick)), timeout_s=60)

    @rule(pick=PICK)
    def edit(self, pick: int) -> None:
        c = self.picked(pick)
        message = self.manager.view(ADA, c).messages[-2]
        with contextlib.suppress(CacheFull):
            finish(self.manager.edit(ADA, c, message.message_id, message.text + " Please."), timeout_s=60)

    @rule(pick=PICK)
    def edit_the_first(self, pick: int) -> None:
        """Back to a short history."""
        c = self.picked(pick)
        with contextlib.suppress(CacheFull):
            finish(self.manager.edit(ADA, c, self.manager.view(ADA, c).messages[0].message_id, "Hello."), timeout_s=60)

    @rule(pick=PICK)
    def verify(self, pick: int) -> None:
        found = self.manager.verify(ADA, self.picked(pick)).wait(60)
        assert found is not None
        assert not found.device_is_bad

    @rule(pick=PICK)
    def damage(self, pick: int) -> None:
        files = sorted(self.store.kv_dir.rglob("*.kv"))
        if files:
            with contextlib.suppress(FileNotFoundError):
                os.truncate(files[pick % len(files)], 3000)

    @rule()
    def restart(self) -> None:
        self.close()
        self.open()

    def path_ids(self, c: str) -> tuple[int, ...]:
        return fold(self.store.messages.path(self.store.conversation(ADA, c).leaf_id))

    @precondition(lambda self: self.conversations)
    @rule()
    def check(self) -> None:
        """Every sampled token on every path is the best one of one full read, or within rounding of it."""
        for c in self.conversations:
            path = self.store.messages.path(self.store.conversation(ADA, c).leaf_id)
            ids = fold(path)
            logits = read_as_it_grew(LOADED[1].model, ids, len(ids))
            for node in path[1::2]:
                start = node.ids.ledger_start + node.ids.preamble_tokens
                for position in range(start, start + len(node.answer_ids)):
                    row: torch.Tensor = logits[position - 1]
                    assert row.max() - row[ids[position]] < 1e-4

    @invariant()
    def the_budgets_hold(self) -> None:
        memory = self.manager.memory_view(ADA)
        assert memory.device_used_bytes + memory.device_reserved_bytes <= self.budget_bytes
        assert memory.host_used_bytes + memory.host_reserved_bytes <= memory.host_budget_bytes


def test_any_order_of_tiers_over_the_real_engine(loaded: LoadedModel) -> None:
    run_state_machine_as_test(
        RealTierMachine,
        settings=settings(
            max_examples=EXAMPLES, stateful_step_count=12, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
