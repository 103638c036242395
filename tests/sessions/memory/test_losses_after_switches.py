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
from tests.sessions.byte_template import ByteTemplate
from tests.sessions.conftest import MakeHouse
from tests.sessions.house import ADA, House, until
from tests.sessions.memory.test_memory import LONG
from tests.sessions.scripted_engine import ScriptedEngine

MIB = 1024 * 1024
DAY_S = 86_400.0
NO_ROOM = "This conversation's memory could not be saved: No space left on device."
READ_ONLY = "This conversation's memory could not be saved: Read-only file system."


class Server:
    """One data directory, served by one server after another. `begun` is the conversation."""

    def __init__(self, make: MakeHouse, patch: pytest.MonkeyPatch) -> None:
        self._make, self.patch = make, patch
        self.house: House | None = None
        self.c = ""

    def start(self, switch: str = "", **settings: object) -> House:
        """Starts a server, with `switch` for another model or setting than the first one's."""
        self.stop()
        self.patch.setattr(model_runtime.interface.segments, "FORMAT_VERSION", 2 if switch == "format" else 1)
        options = {"disk_kv_budget_bytes": 64 * MIB, **SWITCHES.get(switch, dict)(), **settings}
        self.house = self._make(**options)
        return self.house

    def stop(self) -> None:
        if self.house is not None:
            self.house.close()

    def begin(self, is_saved: bool = True, **settings: object) -> House:
        """A conversation of one turn with the first model."""
        house = self.start(**settings)
        self.c = house.conversation()
        house.say(self.c, LONG)
        if is_saved:
            house.saved(self.c)
            until(lambda: house.loss(self.c) is None)
        return house

    def turn(self, house: House, text: str = "And now?") -> MissReason | None:
        """One more turn. Its text is right whatever it finds."""
        message = house.say(self.c, text)
        assert message.text == house.expected_text(self.c)
        return house.receipt(message).miss_reason


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
def server(make_house: MakeHouse, monkeypatch: pytest.MonkeyPatch) -> Server:
    return Server(make_house, monkeypatch)


def other_turn(server: Server, switch: str, **settings: object) -> House:
    """A turn of the same conversation with another model or setting, all of it saved."""
    house = server.start(switch, **settings)
    assert server.turn(house) in (MissReason.MODEL_CHANGED, MissReason.UPGRADED)
    if house.manager.memory.disk_budget_bytes:
        house.saved(server.c)
        until(lambda: house.loss(server.c) is None)
    return house


def delete_first_models(house: House) -> None:
    """Deletes the files that the first server saved, as another program would."""
    numerics = house.manager.memory.saved_kvs.disk.numerics
    for row in house.store.segments.every():
        if row.fingerprint != numerics:
            house.manager.memory.saved_kvs.disk.path_of(row.key).unlink()


# Each loses what A saved at some time around the turn of B.


def files_missing(server: Server, switch: str) -> MissReason:
    server.begin()
    house = other_turn(server, switch)
    delete_first_models(house)
    return MissReason.FILES_MISSING


def files_missing_before(server: Server, switch: str) -> MissReason:
    for path in server.begin().files():
        path.unlink()
    other_turn(server, switch)
    return MissReason.FILES_MISSING


def folder_deleted(server: Server, switch: str) -> MissReason:
    """Noticed by the running server of B."""
    server.begin()
    house = other_turn(server, switch)
    until(lambda: house.manager.background.storage_check._kv_seen is not None)  # noqa: SLF001 - the first look is over
    house.store.kv_dir.rename(house.store.kv_dir.with_name("elsewhere"))
    until(lambda: bool(house.manager.storage.reasons))
    return MissReason.FILES_MISSING


def cleared_all(server: Server, switch: str) -> MissReason:
    server.begin()
    house = other_turn(server, switch)
    house.close()
    clear(house.store.data_dir, True, lambda segments, size_bytes: None)
    return MissReason.CLEARED


def cleared_others(server: Server, switch: str) -> MissReason:
    server.begin()
    house = other_turn(server, switch)
    house.close()
    clear(house.store.data_dir, False, lambda segments, size_bytes: None)
    return MissReason.CLEARED


def cleared_before(server: Server, switch: str) -> MissReason:
    house = server.begin()
    house.close()
    clear(house.store.data_dir, True, lambda segments, size_bytes: None)
    other_turn(server, switch)
    return MissReason.CLEARED


def disk_budget(server: Server, switch: str) -> MissReason:
    server.begin(disk_kv_budget_bytes=2 * MIB)
    house = other_turn(server, switch, disk_kv_budget_bytes=2 * MIB)
    fill(house)
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
    house = other_turn(server, switch)
    house.manager.drop_kv(ADA, server.c)
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
    house = server.begin(is_saved=False, engine=engine)
    until(lambda: (loss := house.loss(server.c)) and loss.cause is cause)


def fill(house: House) -> None:
    """Other conversations, until there is no room for what was there before."""
    before = {row.key for row in house.store.segments.every()}
    for number in range(20):
        c = house.conversation()
        house.say(c, f"{number} {LONG}")
        house.saved(c)
        if number >= 3 and not before & {row.key for row in house.store.segments.every()}:
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
    house = server.start()
    assert server.turn(house) is expected
    house.saved(server.c)
    until(lambda: house.loss(server.c) is None)
    house = server.start()
    assert server.turn(house) is None, "a loss that was made good is not stated again"


@pytest.mark.parametrize("switch", SWITCHES)
@pytest.mark.parametrize("cause", [files_missing_before, cleared_before, disk_budget_before, disk_full, killed])
def test_what_one_model_lost_is_no_reason_for_another(
    server: Server, cause: Callable[[Server, str], MissReason], switch: str
) -> None:
    """B's own memory is all there when it serves again, although A's was lost."""
    cause(server, switch)
    house = server.start(switch)
    assert server.turn(house) is None


def test_losses_of_an_older_database_belong_to_the_last_turn(server: Server) -> None:
    house = server.begin()
    house.close()
    clear(house.store.data_dir, True, lambda segments, size_bytes: None)
    back_to_the_older_table(house)
    assert server.turn(server.start()) is MissReason.CLEARED


def back_to_the_older_table(house: House) -> None:
    """Undoes the step that gave each loss its numerics."""
    with sqlite3.connect(house.store.data_dir / "keepwarm.db") as db:
        db.executescript("""
            CREATE TABLE older (conversation_id TEXT PRIMARY KEY REFERENCES conversations(id) ON DELETE CASCADE,
                cause TEXT NOT NULL, detail TEXT NOT NULL, message_id INTEGER NOT NULL) WITHOUT ROWID;
            INSERT INTO older SELECT conversation_id, cause, detail, message_id FROM kv_losses;
            DROP TABLE kv_losses;
            ALTER TABLE older RENAME TO kv_losses;
            DELETE FROM _sqlite_migrations WHERE name = 'losses_by_numerics';""")
    db.close()
