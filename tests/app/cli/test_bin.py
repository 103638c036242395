"""`keepwarm bin` while a server is running."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.__main__ import main
from sessions.store.tables.bin import KEEP_S
from sessions.store.tables.served_time import DAY_S
from tests.sessions.background.test_pruner import FakeClock, ask, fake_clock, prune, timed_harness
from tests.sessions.conftest import make_harness as make_harness
from tests.sessions.session_harness import SessionHarness

__all__ = ["fake_clock", "make_harness", "timed_harness"]


def test_lists_gives_back_and_empties(
    timed_harness: SessionHarness, fake_clock: FakeClock, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    services, where = timed_harness, ["--data-dir", str(tmp_path / "data")]

    def said(*arguments: str, code: int = 0) -> str:
        assert main(["bin", *arguments, *where]) == code
        return "".join(capsys.readouterr())

    assert said("list") == "The bin is empty.\n"
    first, second = ask(services, "Rivers"), ask(services, "Mountains")
    prune(services)
    fake_clock.pass_days(services, 31)
    assert prune(services) == (2, 0)
    lines = said("list").splitlines()
    assert len(lines) == 2
    assert all("2 messages of ada, 20" in line and "30 days of running left" in line for line in lines)
    assert {line.split()[0] for line in lines} == {first[:8], second[:8]}
    assert "No conversation in the bin has an id that begins with" in said("restore", "nothing", code=1)
    assert said("restore", first[:8]) == "Rivers is back with ada, with all 2 messages.\n"
    assert services.texts(first)[0] == "Rivers"
    assert said("empty") == "1 conversation was deleted permanently.\n"
    assert said("list") == "The bin is empty.\n"
    assert KEEP_S == 30 * DAY_S


def test_a_directory_without_a_database_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bin", "list", "--data-dir", str(tmp_path / "nowhere")]) == 1
    assert "There is no Keepwarm database in" in capsys.readouterr().err
    assert not (tmp_path / "nowhere").exists()
