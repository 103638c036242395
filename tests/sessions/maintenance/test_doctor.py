"""`keepwarm doctor` on the data directory of a scripted server: a healthy one, and each kind of damage."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from sessions.maintenance.doctor import Report, inspect, verify_everything
from sessions.memory.saved.kv_files import path_in
from sessions.store.store import Store
from tests.sessions.conftest import MakeHarness
from tests.sessions.memory.test_memory import LONG
from tests.sessions.scripted_engine import ScriptedEngine
from tests.sessions.session_harness import ADA

MIB = 1024 * 1024


@dataclass
class Patient:
    """A data directory with three conversations of two owners, and the files of the first one in order."""

    data_dir: Path
    chain: list[Path]
    segments: int

    def examine(self, engine: ScriptedEngine | None = None) -> tuple[list[str], list[str]]:
        """(every line, the problems)."""
        said: list[str] = []
        report = Report(said.append)
        engine, store = engine or ScriptedEngine(), Store(self.data_dir)
        try:
            inspect(store, report)
            verify_everything(store, engine, report)
            assert engine.allocated_bytes == 0
        finally:
            engine.close()
            store.close()
        return said, report.wrong

    def sql(self, statement: str, *values: object) -> None:
        with sqlite3.connect(self.data_dir / "keepwarm.db") as db:
            db.execute(statement, values)
        db.close()


@pytest.fixture
def patient(make_harness: MakeHarness) -> Patient:
    harness = make_harness(disk_kv_budget_bytes=64 * MIB)
    talks = [(ADA, "First"), (ADA, "Second"), ("eve", "Third")]
    for owner, name in talks:
        c = harness.conversation(owner)
        harness.say(c, f"{name} {LONG}", owner)
        harness.say(c, f"More {LONG}", owner)
        harness.saved(c, owner)
    first = harness.manager.list_conversations(ADA)[-1].conversation_id
    rows = sorted(harness.store.segments.of_conversation(first), key=lambda row: row.start_tokens)
    chain = [path_in(harness.store.kv_dir, row.key) for row in rows]
    count = len(harness.store.segments.every())
    harness.close()
    return Patient(harness.store.kv_dir.parent, chain, count)


def test_a_healthy_directory(patient: Patient) -> None:
    said, wrong = patient.examine()
    assert wrong == []
    assert f"Database: 3 conversations, {patient.segments} saved segments." in said
    assert sum("its memory is correct" in line for line in said) == 3
    assert patient.examine()[0] == said  # and the examination changed nothing


def remove(patient: Patient) -> None:
    patient.chain[0].unlink()


def cut_off(patient: Patient) -> None:
    os.truncate(patient.chain[0], 100)


def flip_a_bit(patient: Patient) -> None:
    content = bytearray(patient.chain[0].read_bytes())
    content[-5] ^= 8
    patient.chain[0].write_bytes(content)


def open_to_all(patient: Patient) -> None:
    patient.chain[0].chmod(0o644)


def strangers(patient: Patient) -> None:
    patient.chain[0].with_name("stranger.kv").write_bytes(b"x" * MIB)
    patient.chain[0].with_name(f"{patient.chain[0].name}.99.tmp").write_bytes(b"x" * MIB)


def left_over(patient: Patient) -> None:
    """Complete files of Keepwarm: one of a save that was killed, one whose row is gone."""
    key = "0" * 40
    content = patient.chain[0].read_bytes()
    for path in (path_in(patient.data_dir / "kv", key), patient.chain[0].with_name(f"{patient.chain[0].name}.99.tmp")):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def forget_references(patient: Patient) -> None:
    patient.sql("DELETE FROM segment_references WHERE segment_key = ?", patient.chain[-1].stem)


def forge_ids(patient: Patient) -> None:
    row = "UPDATE segments SET token_ids = zeroblob(length(token_ids)) WHERE key = ?"
    patient.sql(row, patient.chain[-1].stem)


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (remove, "A row without its file: "),
        (cut_off, "A file whose length differs from its row: "),
        (flip_a_bit, "A file that was refused: "),
        (open_to_all, "A file that other users may read: "),
        (strangers, "2.0 MiB not written by Keepwarm: 2 files ("),
        (left_over, "0.5 MiB without a row: 2 files ("),
        (forget_references, "A segment that no conversation refers to: "),
        (forge_ids, "A row whose ids do not match its key: "),
    ],
)
def test_each_damage_is_found(patient: Patient, damage: Callable[[Patient], None], sentence: str) -> None:
    damage(patient)
    said, wrong = patient.examine()
    assert wrong
    assert wrong[0].startswith(sentence)
    assert f"  ! {wrong[0]}" in said
    assert sum("its memory is correct" in line for line in said) >= 2  # the others


def test_rows_that_differ_from_a_re_read_are_deleted(patient: Patient, make_harness: MakeHarness) -> None:
    """The files are undamaged, but the model computes other rows with the same fingerprint: another build of its
    kernels, for example."""

    class Other(ScriptedEngine):
        def load(self, identity, path):  # type: ignore[no-untyped-def]
            segment = super().load(identity, path)
            marks = tuple(mark ^ 1 if path == patient.chain[-1] else mark for mark in segment.marks)
            return type(segment)(segment.identity, marks, segment.data_bytes)

    _, wrong = patient.examine(Other())
    assert len(wrong) == 1
    assert wrong[0].startswith("First A long message")
    assert "its copy on disk was wrong from token" in wrong[0]
    assert not patient.chain[-1].exists()
    assert patient.chain[0].exists()
    assert patient.examine()[1] == []
    harness = make_harness(disk_kv_budget_bytes=64 * MIB)
    c = harness.manager.list_conversations(ADA)[-1].conversation_id
    assert harness.say(c, "And now?").text == harness.expected_text(c)


@pytest.mark.parametrize(
    ("other", "why"),
    [({"name": "Other-1B"}, "the model's weights were changed"), ({"quantization": "nf4"}, "from none to nf4")],
)
def test_another_models_segments_are_left_alone(patient: Patient, other: dict[str, str], why: str) -> None:
    said, wrong = patient.examine(ScriptedEngine(**other))  # type: ignore[arg-type]
    assert wrong == []
    assert any("of another model or precision (" in line and f"{why}): not verified" in line for line in said)
    assert all(path.exists() for path in patient.chain)


def test_a_damaged_database_is_reported(patient: Patient) -> None:
    patient.sql("PRAGMA foreign_keys = OFF")
    patient.sql("DELETE FROM users WHERE id = 'eve'")
    _, wrong = patient.examine()
    assert wrong[0].startswith("The database is damaged: a row of ")
