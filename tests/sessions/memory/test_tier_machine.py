"""The budget machine over device, host and disk: parks, pins, restores, restarts, failing and torn files, a device
without memory, in any order. Never wrong text, never a byte over a budget, never a pinned KV evicted.

30 examples by default; the full run is 500 examples of 30 steps, in less than 5 minutes:

    KEEPWARM_TIER_EXAMPLES=500 python -m pytest tests/sessions/memory/test_tier_machine.py --timeout=600
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule, run_state_machine_as_test

from model_runtime.interface.segments import SegmentIdentity
from sessions.errors import CacheFull, ConversationBusy, StoreError
from sessions.memory.memory_records import Dropped
from sessions.turns.run import Run
from tests.sessions.memory.test_budget_machine import BUDGET_BYTES, PICK, Machine
from tests.sessions.scripted_engine import ScriptedEngine, ScriptedKV
from tests.sessions.session_harness import SessionHarness

HOST_BYTES = 512 * 1024
DISK_BYTES = 1536 * 1024
EXAMPLES = int(os.environ.get("KEEPWARM_TIER_EXAMPLES", "15"))


class TierMachine(Machine):
    """Room for about three conversations on the device, two in host memory, five on disk; files may fail."""

    def __init__(self) -> None:
        super().__init__()
        self.harness.close()
        self.failing = ""
        self.count = 0
        self.pinned: set[str] = set()
        self.open()

    def open(self) -> None:
        engine = ScriptedEngine(max_concurrent=2)
        self.harness = SessionHarness(
            Path(self.directory),
            engine,
            budget_bytes=BUDGET_BYTES,
            host_kv_budget_bytes=HOST_BYTES,
            disk_kv_budget_bytes=DISK_BYTES,
            save_patience_s=0.05,
            read_ahead=True,
            draft_quiet_s=0.0,
            model_titles=True,
        )
        engine.on_step = self.look
        engine.fail_save = lambda identity: self.fault("save", identity)
        engine.fail_load = lambda identity: self.fault("load", identity)
        leases = self.harness.manager.memory.leases
        noted = leases._on_dropped  # noqa: SLF001 - every drop is checked as it happens

        def dropped(what: Dropped) -> None:
            if what.conversation_id in self.pinned:
                self.broken.append(f"pinned and evicted: {what}")
            noted(what)

        leases._on_dropped = dropped  # noqa: SLF001 - every drop is checked as it happens

    def fault(self, what: str, identity: SegmentIdentity) -> str | None:
        self.count += 1
        return f"A {what} that fails." if self.failing == what and self.count % 4 == 0 else None

    def look(self) -> None:
        super().look()
        host = self.harness.manager.memory.host
        if host.used_bytes + host.reserved_bytes > HOST_BYTES:
            self.broken.append(f"{host.used_bytes} bytes used and {host.reserved_bytes} reserved in host memory")

    def teardown(self) -> None:
        """Whatever happened, at the end every answer is right."""
        try:
            self.settle()
        finally:
            super().teardown()

    @initialize()
    def talk(self) -> None:
        """Three conversations to begin with: a machine that draws its first message late tests little."""
        for owner in ("ada", "ada", "eve"):
            self.begin(owner, f"{len(self.conversations)} to begin with" * 5)

    @precondition(lambda self: self.conversations)
    @rule(pick=PICK, tier=st.sampled_from(["host", "disk"]))
    def come_back(self, pick: int, tier: str) -> None:
        """To a conversation that was parked a while ago."""
        self.park(pick, tier)
        self.send(pick, "back")

    @rule(failing=st.sampled_from(["", "", "save", "load"]))
    def break_files(self, failing: str) -> None:
        self.failing = failing

    @precondition(lambda self: self.conversations)
    @rule(pick=PICK, tier=st.sampled_from(["host", "disk"]))
    def park(self, pick: int, tier: str) -> None:
        owner, c = self.picked(pick)
        with contextlib.suppress(ConversationBusy, StoreError):
            self.harness.manager.park(owner, c, tier)

    @precondition(lambda self: self.conversations)
    @rule(pick=PICK)
    def pin(self, pick: int) -> None:
        owner, c = self.picked(pick)
        with contextlib.suppress(ConversationBusy, CacheFull):
            self.harness.manager.pin(owner, c)
            if not self.harness.manager.memory.held.is_leaving(c):  # else it was on its way out already
                self.pinned.add(c)

    @rule()
    def unpin(self) -> None:
        if not self.pinned:  # no precondition: whether a pin succeeded depends on threads
            return
        chosen = sorted(self.pinned)[0]
        self.pinned.discard(chosen)
        owner = next((owner for owner, c in self.conversations if c == chosen), None)
        if owner is not None:
            self.harness.manager.unpin(owner, chosen)

    @precondition(lambda self: self.conversations)
    @rule(pick=PICK)
    def prepare(self, pick: int) -> None:
        self.harness.manager.prepare(*self.picked(pick))

    @rule(pick=PICK)
    def damage(self, pick: int) -> None:
        if files := self.harness.files():
            with contextlib.suppress(FileNotFoundError):  # it went meanwhile
                os.truncate(files[pick % len(files)], 100)

    @rule()
    def refuse_memory(self) -> None:
        """What the engine does when its device has no memory left."""
        engine = self.harness.engine

        def free() -> None:
            for kv in engine.idle_kvs():
                assert isinstance(kv, ScriptedKV)
                assert not kv.busy, "offered a KV that is in use"
                kv.clear()

        engine.between_steps(free)

    @rule()
    def restart(self) -> None:
        self.harness.close()
        self.runs.clear()
        self.open()

    def check_receipt(self, run: Run) -> None:
        """Disk may hold more of a ledger than the path that was current before: then less than the delta is fed."""
        self.uneven.add(run.conversation_id)
        super().check_receipt(run)

    @invariant()
    def the_panel_shows_what_is_allocated(self) -> None:
        """A restore ahead of the person may be under way at any moment: the sums are looked at after every step."""

    @invariant()
    def pins_stay_within_what_may_be_pinned(self) -> None:
        pins = self.harness.manager.memory.pins
        assert pins.total_bytes <= pins.limit_bytes

    @invariant()
    def the_disk_budget_holds(self) -> None:
        held_bytes = 0
        for path in self.harness.files():
            with contextlib.suppress(FileNotFoundError):
                held_bytes += path.stat().st_size
        assert held_bytes <= DISK_BYTES


def test_any_order_of_everything_on_three_tiers() -> None:
    run_state_machine_as_test(
        TierMachine,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
