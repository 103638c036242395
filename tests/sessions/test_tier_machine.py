"""The budget machine with a disk: parks, restores, restarts and failing files in any order. Never wrong text."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule, run_state_machine_as_test

from model_runtime.segments import SegmentIdentity
from sessions.errors import ConversationBusy, StoreError
from sessions.runs import Run
from tests.sessions.house import House
from tests.sessions.scripted_engine import ScriptedEngine
from tests.sessions.test_budget_machine import BUDGET_BYTES, PICK, Machine

DISK_BYTES = 1536 * 1024


class TierMachine(Machine):
    """Room for about three conversations on the device, for about five on disk; every fourth file may fail."""

    def __init__(self) -> None:
        super().__init__()
        self.house.close()
        self.failing = ""
        self.count = 0
        self.open()

    def open(self) -> None:
        engine = ScriptedEngine(max_concurrent=2)
        self.house = House(
            Path(self.directory),
            engine,
            budget_bytes=BUDGET_BYTES,
            disk_kv_budget_bytes=DISK_BYTES,
            save_patience_s=0.1,
            read_ahead=True,
            model_titles=True,
        )
        engine.on_step = self.look
        engine.fail_save = lambda identity: self.fault("save", identity)
        engine.fail_load = lambda identity: self.fault("load", identity)

    def fault(self, what: str, identity: SegmentIdentity) -> str | None:
        self.count += 1
        return f"A {what} that fails." if self.failing == what and self.count % 4 == 0 else None

    @initialize()
    def talk(self) -> None:
        """Three conversations to begin with: a machine that draws its first message late tests little."""
        for owner in ("ada", "ada", "eve"):
            self.begin(owner, f"{len(self.conversations)} to begin with" * 5)

    @precondition(lambda self: self.conversations)
    @rule(pick=PICK)
    def come_back(self, pick: int) -> None:
        """To a conversation that was parked a while ago."""
        self.park(pick)
        self.send(pick, "back")

    @rule(failing=st.sampled_from(["", "", "save", "load"]))
    def break_files(self, failing: str) -> None:
        self.failing = failing

    @precondition(lambda self: self.conversations)
    @rule(pick=PICK)
    def park(self, pick: int) -> None:
        owner, c = self.picked(pick)
        with contextlib.suppress(ConversationBusy, StoreError):
            self.house.manager.park(owner, c)

    @precondition(lambda self: self.conversations)
    @rule(pick=PICK)
    def prepare(self, pick: int) -> None:
        self.house.manager.prepare(*self.picked(pick))

    @rule(pick=PICK)
    def damage(self, pick: int) -> None:
        if files := self.house.files():
            with contextlib.suppress(FileNotFoundError):  # it went meanwhile
                os.truncate(files[pick % len(files)], 100)

    @rule()
    def restart(self) -> None:
        self.house.close()
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
    def the_disk_budget_holds(self) -> None:
        held_bytes = 0
        for path in self.house.files():
            with contextlib.suppress(FileNotFoundError):
                held_bytes += path.stat().st_size
        assert held_bytes <= DISK_BYTES


def test_any_order_of_everything_with_a_disk() -> None:
    run_state_machine_as_test(
        TierMachine,
        settings=settings(
            max_examples=40,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
