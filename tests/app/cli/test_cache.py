"""`keepwarm cache list` and `clear` on directories that were served with one model after another."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

import pytest

from app.__main__ import main
from app.http.connection_limits import Connections
from app.metrics import Metrics
from app.page import memory_panel
from app.process_memory import ProcessMeter
from sessions.types import MissReason, Tier
from tests.sessions.memory.test_memory import LONG
from tests.sessions.scripted_engine import ScriptedEngine
from tests.sessions.session_harness import ADA, SessionHarness

MIB = 1024 * 1024


def harness_with(data: Path, name: str, **settings: object) -> SessionHarness:
    return SessionHarness(data, ScriptedEngine(name=name), **{"disk_kv_budget_bytes": 64 * MIB, **settings})


@pytest.fixture
def served(tmp_path: Path) -> tuple[Path, str]:
    """A conversation saved by two models, one after the other."""
    data, c = tmp_path / "data", ""
    for name in ("First-1B", "Second-2B"):
        services = harness_with(data, name)
        c = c or services.conversation()
        services.say(c, LONG)
        services.saved(c)
        services.close()
    return data, c


def run(capsys: pytest.CaptureFixture[str], data: Path, *arguments: str) -> list[str]:
    assert main(["cache", *arguments, "--data-dir", str(data)]) == 0
    return capsys.readouterr().out.splitlines()


def test_list(served: tuple[Path, str], capsys: pytest.CaptureFixture[str]) -> None:
    total, second, first, others = run(capsys, served[0], "list")
    assert total.startswith(f"Saved memory in {served[0]}: ")
    assert second.startswith("  Second-2B (quantization none): ")
    assert second.endswith(", served last")
    assert first.startswith("  First-1B (quantization none): ")
    assert others.endswith("They are deleted first when space is needed.")


@pytest.mark.parametrize("flags", [[], ["--other-models"]])
def test_clear_other_models(served: tuple[Path, str], capsys: pytest.CaptureFixture[str], flags: list[str]) -> None:
    data, c = served
    before, done = run(capsys, data, "clear", *flags)
    assert before.startswith("Deleting ")
    assert "of other models and settings" in before
    assert done == "Done. No text was touched."
    assert run(capsys, data, "clear", *flags) == [
        "There is no saved memory of other models and settings: nothing to delete."
    ]
    services = harness_with(data, "Second-2B")
    receipt = services.receipt(services.say(c, "Still warm?"))
    assert (receipt.tier_before, receipt.miss_reason) == (Tier.DISK, None)
    services.close()


def test_clear_all(served: tuple[Path, str], capsys: pytest.CaptureFixture[str]) -> None:
    data, c = served
    run(capsys, data, "clear", "--all")
    assert not list((data / "kv").rglob("*.kv"))
    services = harness_with(data, "Second-2B")
    assert len(services.texts(c)) == 4
    receipt = services.receipt(services.say(c, "And now?"))
    assert receipt.miss_reason is MissReason.CLEARED
    services.close()


def test_clear_where_it_is_not_known_what_was_served_last(
    served: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """A directory of an earlier version: the command does not guess."""
    harness_with(served[0], "Second-2B").close()
    with contextlib.closing(sqlite3.connect(served[0] / "keepwarm.db", isolation_level=None)) as database:
        database.execute("DELETE FROM kv_served")
    files = sorted((served[0] / "kv").rglob("*.kv"))
    assert main(["cache", "clear", "--data-dir", str(served[0])]) == 1
    assert "not known which model this directory was last served with" in capsys.readouterr().err
    assert sorted((served[0] / "kv").rglob("*.kv")) == files


def test_clear_takes_one_choice(tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        main(["cache", "clear", "--all", "--other-models", "--data-dir", str(tmp_path)])


def test_a_foreign_directory_is_no_cache(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.odt").write_text("three years")
    for action in ("list", "clear"):
        assert main(["cache", action, "--data-dir", str(tmp_path)]) == 1
        assert "is not a Keepwarm data directory: it contains thesis.odt" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.odt"]


def test_the_panel_and_the_metrics_show_other_models(served: tuple[Path, str]) -> None:
    services = harness_with(served[0], "First-1B")
    view = services.manager.memory_view(ADA)
    assert 0 < view.disk_other_bytes < view.disk_used_bytes
    (disk,) = [bar for bar in memory_panel.draw(view)["bars"] if bar["tier"] == "disk"]
    assert disk["note"].startswith("other models: ")
    text = Metrics(services.manager, ProcessMeter(), Connections()).text().decode()
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if line.startswith("keepwarm_kv_bytes"))
    assert float(values['keepwarm_kv_bytes{kind="other_models",tier="disk"}']) == view.disk_other_bytes
    used_bytes = float(values['keepwarm_kv_bytes{kind="used",tier="disk"}'])
    assert used_bytes == view.disk_used_bytes - view.disk_other_bytes
    services.close()


def test_the_panel_shows_what_is_not_read(served: tuple[Path, str]) -> None:
    services = harness_with(served[0], "First-1B", disk_kv_budget_bytes=0)
    (disk,) = [bar for bar in memory_panel.draw(services.manager.memory_view(ADA))["bars"] if bar["tier"] == "disk"]
    assert disk["note"] == "not read now"
    assert disk["used"] != "0"
    services.close()
