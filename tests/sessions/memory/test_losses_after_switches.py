"""Each reason for missing saved memory is given after switches of model or settings too: A, B, then A again."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable

import pytest

import model_runtime.interface.segments
from sessions.maintenance.cache import clear
from sessions.store.tables.losses import Cause
from sessions.types import MissReason
from tests.polling import pause
from tests.sessions.byte_template import ByteTemplate
from tests.sessions.conftest import MakeHarness
from tests.sessions.memory.test_memory import LONG
from tests.sessions.scripted_engine import ScriptedEngine
from tests.sessions.session_harness import ADA, SessionHarness, until

MIB = 1024 * 1024
DAY_S = 86_400.0
NO_ROOM = "This conversation's memory could not be saved: No space left on device."
READ_ONLY = "This conversation's memory could not be saved: Read-only file system."


class Server:
    """One data directory, served by one server after another. `begun` is the conversation."""

    def __init__(self, make: MakeHarness, patch: pytest.MonkeyPatch) -> None:
        self._make, self.patch = make, patch
        self.harness: SessionHarness | None = None
        self.c = ""

    def start(self, switch: str = "", **settings: object) -> SessionHarness:
        """Starts a server, with `switch` for another model or setting than the first one's."""
        self.stop()
        self.patch.setattr(model_runtime.interface.segments, "FORMAT_VERSION", 2 if switch == "format" else 1)
        options = {"disk_kv_budget_bytes": 64 * MIB, **SWITCHES.get(switch, dict)(), **settings}
        self.harness = self._make(**options)
        return self.harness

    def stop(self) -> None:
        if self.harness is not None:
            self.harness.close()

    def begin(self, is_saved: bool = True, **settings: object) -> SessionHarness:
        """A conversation of one turn with the first model."""
        harness = self.start(**settings)
        self.c = harness.conversation()
        harness.say(self.c, LONG)
        if is_saved:
            harness.saved(self.c)
            until(lambda: harness.loss(self.c) is None)
        return harness

    def turn(self, harness: SessionHarness, text: str = "And now?") -> MissReason | None:
        """One more turn. Its text is right whatever it finds."""
        message = harness.say(self.c, text)
        assert message.text == harness.expected_text(self.c)
        return harness.receipt(message).miss_reason


SWITCHES: dict[str, Callable[[], dict[str, object]]] = {
    "model": lambda: {"engine": ScriptedEngine(name="Other-1B")},
    "quantization": lambda: {"engine": ScriptedEngine(quantization="nf4")},
    "tokenizer": lambda: {
        "engine": ScriptedEngine(name="Shifted-1B", tokenizer_fingerprint="shifted"),
        "template": ByteTemplate(shift=1000),
    },
    "format": dict,
}


@pytest.fixture
def server(make_harness: MakeHarness, monkeypatch: pytest.MonkeyPatch) -> Server:
    return Server(make_harness, monkeypatch)


def other_turn(server: Server, switch: str, **settings: object) -> SessionHarness:
    """A turn of the same conversation with another model or setting, all of it saved."""
    harness = server.start(switch, **settings)
    assert server.turn(harness) in (MissReason.MODEL_CHANGED, MissReason.UPGRADED)
    if harness.manager.memory.disk_budget_bytes:
        harness.saved(server.c)
        until(lambda: harness.loss(server.c) is None)
    return harness


def delete_first_models(harness: SessionHarness) -> None:
    """Deletes the files that the first server saved, as another program would."""
    numerics = harness.manager.memory.saved_kvs.disk.numerics
    for row in harness.store.segments.every():
        if row.fingerprint != numerics:
            harness.manager.memory.saved_kvs.disk.path_of(row.key).unlink()


# Each loses what A saved at some time around the turn of B.


def files_missing(server: Server, switch: str) -> MissReason:
    server.begin()
    harness = other_turn(server, switch)
    delete_first_models(harness)
    return MissReason.FILES_MISSING


def files_missing_before(server: Server, switch: str) -> MissReason:
    for path in server.begin().files():
        path.unlink()
    other_turn(server, switch)
    return MissReason.FILES_MISSING


def folder_deleted(server: Server, switch: str) -> MissReason:
    """Noticed by the running server of B."""
    server.begin()
    harness = other_turn(server, switch)
    until(lambda: harness.manager.background.storage_check._kv_seen is not None)  # noqa: SLF001 - the first look is over
    harness.store.kv_dir.rename(harness.store.kv_dir.with_name("elsewhere"))
    until(lambda: bool(harness.manager.storage.reasons))
    return MissReason.FILES_MISSING


def cleared_all(server: Server, switch: str) -> MissReason:
    server.begin()
    harness = other_turn(server, switch)
    harness.close()
    clear(harness.store.data_dir, True, lambda segments, size_bytes: None)
    return MissReason.CLEARED


def cleared_others(server: Server, switch: str) -> MissReason:
    server.begin()
    harness = other_turn(server, switch)
    harness.close()
    clear(harness.store.data_dir, False, lambda segments, size_bytes: None)
    return MissReason.CLEARED


def cleared_before(server: Server, switch: str) -> MissReason:
    harness = server.begin()
    harness.close()
    clear(harness.store.data_dir, True, lambda segments, size_bytes: None)
    other_turn(server, switch)
    return MissReason.CLEARED


def disk_budget(server: Server, switch: str) -> MissReason:
    server.begin(disk_kv_budget_bytes=2 * MIB)
    harness = other_turn(server, switch, disk_kv_budget_bytes=2 * MIB)
    fill(harness)
    return MissReason.DISK_BUDGET


def disk_budget_before(server: Server, switch: str) -> MissReason:
    fill(server.begin(disk_kv_budget_bytes=MIB))
    other_turn(server, switch)
    return MissReason.DISK_BUDGET


def clock(server: Server, switch: str) -> MissReason:
    server.begin(disk_kv_budget_bytes=2 * MIB)
    right = time.time
    server.patch.setattr(time, "time", lambda: right() + 40 * DAY_S)
    fill(other_turn(server, switch, disk_kv_budget_bytes=2 * MIB))
    server.patch.setattr(time, "time", right)
    return MissReason.CLOCK


def by_hand(server: Server, switch: str) -> MissReason:
    server.begin()
    harness = other_turn(server, switch)
    harness.manager.drop_kv(ADA, server.c)
    return MissReason.EVICTED


def disk_full(server: Server, switch: str) -> MissReason:
    cannot_write(server, NO_ROOM, Cause.DISK_FULL)
    other_turn(server, switch)
    return MissReason.DISK_FULL


def not_saved(server: Server, switch: str) -> MissReason:
    cannot_write(server, READ_ONLY, Cause.NOT_SAVED)
    other_turn(server, switch)
    return MissReason.NOT_SAVED


def killed(server: Server, switch: str) -> MissReason:
    engine = ScriptedEngine()
    engine.save_delay_s = 0.5
    server.begin(is_saved=False, flush_timeout_s=0.0, engine=engine)
    server.stop()
    pause(2 * engine.save_delay_s)  # a killed process has no writer that goes on beside the next server
    other_turn(server, switch)
    return MissReason.UNSAVED


def disk_off_then(server: Server, switch: str) -> MissReason:
    server.begin(is_saved=False, disk_kv_budget_bytes=0)
    other_turn(server, switch)
    return MissReason.DISK_OFF


def nothing(server: Server, switch: str) -> MissReason:
    """A finds all that it saved: only the turn of B is read."""
    server.begin()
    other_turn(server, switch)
    return MissReason.UPGRADED if switch == "format" else MissReason.MODEL_CHANGED


def cannot_write(server: Server, why: str, cause: Cause) -> None:
    engine = ScriptedEngine()
    engine.fail_save = lambda identity: why
    harness = server.begin(is_saved=False, engine=engine)
    until(lambda: (loss := harness.loss(server.c)) and loss.cause is cause)


def fill(harness: SessionHarness) -> None:
    """Other conversations, until there is no room for what was there before."""
    before = {row.key for row in harness.store.segments.every()}
    for number in range(20):
        c = harness.conversation()
        harness.say(c, f"{number} {LONG}")
        harness.saved(c)
        if number >= 3 and not before & {row.key for row in harness.store.segments.every()}:
            return
    raise AssertionError("the budget is too large for this test")


CAUSES = (
    files_missing,
    files_missing_before,
    folder_deleted,
    cleared_all,
    cleared_others,
    cleared_before,
    disk_budget,
    disk_budget_before,
    clock,
    by_hand,
    disk_full,
    not_saved,
    killed,
    disk_off_then,
    nothing,
)


@pytest.mark.parametrize("switch", SWITCHES)
@pytest.mark.parametrize("cause", CAUSES, ids=lambda cause: cause.__name__)
def test_back_again(server: Server, cause: Callable[[Server, str], MissReason], switch: str) -> None:
    expected = cause(server, switch)
    harness = server.start()
    assert server.turn(harness) is expected
    harness.saved(server.c)
    until(lambda: harness.loss(server.c) is None)
    harness = server.start()
    assert server.turn(harness) is None, "a loss that was made good is not stated again"


@pytest.mark.parametrize("switch", SWITCHES)
@pytest.mark.parametrize("cause", [files_missing_before, cleared_before, disk_budget_before, disk_full, killed])
def test_what_one_model_lost_is_no_reason_for_another(
    server: Server, cause: Callable[[Server, str], MissReason], switch: str
) -> None:
    """B's own memory is all there when it serves again, although A's was lost."""
    cause(server, switch)
    harness = server.start(switch)
    assert server.turn(harness) is None


def test_losses_of_an_older_database_belong_to_the_last_turn(server: Server) -> None:
    harness = server.begin()
    harness.close()
    clear(harness.store.data_dir, True, lambda segments, size_bytes: None)
    back_to_the_older_table(harness)
    assert server.turn(server.start()) is MissReason.CLEARED


def back_to_the_older_table(harness: SessionHarness) -> None:
    """Undoes the step that gave each loss its numerics."""
    with sqlite3.connect(harness.store.data_dir / "keepwarm.db") as db:
        db.executescript("""
            CREATE TABLE older (conversation_id TEXT PRIMARY KEY REFERENCES conversations(id) ON DELETE CASCADE,
                cause TEXT NOT NULL, detail TEXT NOT NULL, message_id INTEGER NOT NULL) WITHOUT ROWID;
            INSERT INTO older SELECT conversation_id, cause, detail, message_id FROM kv_losses;
            DROP TABLE kv_losses;
            ALTER TABLE older RENAME TO kv_losses;
            DELETE FROM _sqlite_migrations WHERE name = 'losses_by_numerics';""")
    db.close()
