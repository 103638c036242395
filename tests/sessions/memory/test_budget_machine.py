"""Any actions in any order: the budget holds, only the delta is fed, no owner reads another's conversation."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from sessions.errors import CacheFull, ConversationBusy
from sessions.ledger.ledger import fold, system_prompt_of
from sessions.store.records import Node
from sessions.turns.run import Run
from sessions.types import ConversationSettings, MessageStatus
from tests.sessions.byte_template import said
from tests.sessions.scripted_engine import ScriptedEngine, text_of
from tests.sessions.session_harness import SessionHarness, finish, prompt_of, until

BUDGET_BYTES = 700 * 1024
OWNERS = ("ada", "eve")
PICK = st.integers(0, 1000)


class Machine(RuleBasedStateMachine):
    """Two owners, a budget for about three conversations, two answers at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.mkdtemp()
        self.harness = SessionHarness(
            Path(self.directory),
            ScriptedEngine(max_concurrent=2),
            budget_bytes=BUDGET_BYTES,
            read_ahead=True,
            draft_quiet_s=0.0,
            model_titles=True,
        )
        self.harness.engine.on_step = self.look
        self.conversations: list[tuple[str, str]] = []
        self.uneven: set[str] = set()  # here a KV may hold more than the current path needs
        self.runs: list[Run] = []
        self.broken: list[str] = []

    def teardown(self) -> None:
        self.harness.close()
        shutil.rmtree(self.directory)

    def look(self) -> None:
        """On the engine thread, after every step."""
        holdings = self.harness.manager.memory.held.holdings().values()
        held = sum(h.used_bytes + h.reserved_bytes for h in holdings)
        if held > BUDGET_BYTES:
            self.broken.append(f"{held} bytes held and promised")
        if self.harness.engine.allocated_bytes > BUDGET_BYTES:
            self.broken.append(f"{self.harness.engine.allocated_bytes} bytes allocated")

    def picked(self, pick: int) -> tuple[str, str]:
        return self.conversations[pick % len(self.conversations)]

    def keep(self, run: Run | None) -> None:
        if run is not None:
            self.runs.append(run)

    @rule(owner=st.sampled_from(OWNERS), text=st.text("xyé", min_size=1, max_size=150))
    def begin(self, owner: str, text: str) -> None:
        c = self.harness.conversation(owner, max_new_tokens=60)
        self.conversations = [*dict.fromkeys([*self.conversations, (owner, c)])]
        self.quietly(lambda: self.harness.manager.send(owner, c, f"{owner} {len(self.conversations)} {text}"))

    @precondition(lambda self: self.conversations)
    @rule(pick=PICK, text=st.text("xyé", min_size=1, max_size=100))
    def send(self, pick: int, text: str) -> None:
        owner, c = self.picked(pick)
        self.quietly(lambda: self.harness.manager.send(owner, c, text))

    @precondition(lambda self: self.conversations)
    @rule(pick=PICK, act=st.sampled_from(["regenerate", "continue", "edit", "switch", "drop", "prompt"]), which=PICK)
    def change(self, pick: int, act: str, which: int) -> None:
        owner, c = self.picked(pick)
        manager = self.harness.manager
        messages = manager.view(owner, c).messages
        if not messages:  # its first turn was refused for want of room
            return
        if act == "regenerate":
            self.quietly(lambda: manager.regenerate(owner, c))
        elif act == "continue" and messages[-1].can_continue:
            self.quietly(lambda: manager.continue_answer(owner, c))
        elif act == "edit":
            message = messages[which % len(messages) // 2 * 2]
            self.quietly(lambda: manager.edit(owner, c, message.message_id, message.text + "!"))
        elif act == "switch":
            self.uneven.add(c)
            self.quietly(lambda: manager.switch_sibling(owner, c, messages[which % len(messages)].message_id, -1))
        elif act == "prompt":
            self.uneven.add(c)
            prompt = f"Prompt {which % 3}" if which % 3 else ""
            kept = manager.view(owner, c).settings.sampling
            manager.update_settings(owner, c, ConversationSettings(kept, prompt))
        elif act == "drop":
            self.quietly(lambda: manager.drop_kv(owner, c))

    def quietly(self, call: Callable[[], Run | None]) -> None:
        with contextlib.suppress(ConversationBusy, CacheFull):
            self.keep(call())

    @precondition(lambda self: self.conversations)
    @rule(pick=PICK, text=st.text("xyé ", max_size=150), waits=st.booleans())
    def type(self, pick: int, text: str, waits: bool) -> None:
        """A draft is read, or begins to be: the next rule may well come between."""
        self.harness.manager.read_ahead(*self.picked(pick), text)
        if waits and not any(not run.is_done for run in self.runs):
            until(lambda: self.harness.manager.is_idle)

    @precondition(lambda self: self.conversations)
    @rule(pick=PICK)
    def stop(self, pick: int) -> None:
        owner, c = self.picked(pick)
        self.uneven.add(c)  # stopped between reading and the first token, the KV even holds the last id
        self.harness.manager.stop(owner, c)

    @rule(pick=PICK)
    def delete(self, pick: int) -> None:
        if len(self.conversations) <= 2:  # no precondition: a turn that was refused leaves its conversation to the next
            return
        chosen = self.picked(pick)
        self.harness.manager.delete(*chosen)
        self.conversations.remove(chosen)
        self.runs = [run for run in self.runs if run.conversation_id != chosen[1]]

    @precondition(lambda self: self.conversations)
    @rule()
    def settle(self) -> None:
        """Everything ends; then every answer on every path is what the pure function says to its ledger."""
        for run in self.runs:
            finish(run)
            self.check_receipt(run)
        self.runs.clear()
        for owner, c in self.conversations:
            path = self.harness.path(c, owner)
            for number in range(2, len(path) + 1, 2):
                self.check_answer(path[:number])
            kv_tokens = {r.conversation_id: r.kv_tokens for r in self.harness.manager.memory_view(owner).rows}[c]
            assert kv_tokens <= 8192

    def check_answer(self, path: tuple[Node, ...]) -> None:
        expected = text_of(self.harness.engine.answer(prompt_of(path)))
        if path[-1].status is MessageStatus.COMPLETE and path[-1].ended_with_stop_token:
            assert path[-1].text == expected
        else:
            assert expected.startswith(path[-1].text.rstrip("\ufffd"))
        if all(node.ended_with_stop_token for node in path[1::2]):  # then the texts alone say what the ids must be
            texts = [(node.role, node.text) for node in path[:-1]]
            assert prompt_of(path) == self.harness.template.whole(system_prompt_of(path), said(*texts))
        assert len(fold(path)) == path[-1].ids.ledger_start + len(path[-1].ids.token_ids)

    def check_receipt(self, run: Run) -> None:
        message = run.snapshot().message
        assert message is not None
        receipt = message.receipt
        if receipt is None or receipt.sampled_tokens == 0:
            return
        assert receipt.fed_tokens + receipt.reused_tokens == len(run.plan.turn.ledger)
        assert (receipt.fed_tokens > receipt.delta_tokens) == (receipt.miss_reason is not None)
        if run.conversation_id not in self.uneven:
            assert receipt.fed_tokens + receipt.ahead_tokens >= receipt.delta_tokens

    @invariant()
    def the_budget_holds(self) -> None:
        self.look()
        assert self.broken == []

    @invariant()
    def the_panel_shows_what_is_allocated(self) -> None:
        if not any(not run.is_done for run in self.runs) and self.harness.manager.is_idle:
            memory = self.harness.manager.memory_view("ada")
            assert memory.device_used_bytes == self.harness.engine.allocated_bytes
            assert memory.device_reserved_bytes == 0


def test_any_order_of_everything() -> None:
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=15,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
