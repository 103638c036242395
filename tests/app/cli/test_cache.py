"""`keepwarm cache list` and `clear` on directories that were served with one model after another."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from pathlib import Path

import pytest

from app.__main__ import main
from app.http.connection_limits import Connections
from app.metrics import Metrics
from app.page import memory_panel
from app.process_memory import ProcessMeter
from model_runtime.loading import sealed_directory
from sessions.types import MissReason, Tier
from tests.sessions.memory.test_memory import LONG
from tests.sessions.scripted_engine import ScriptedEngine
from tests.sessions.session_harness import ADA, SessionHarness

MIB = 1024 * 1024


def harness_with(data: Path, name: str, **settings: object) -> SessionHarness:
    return SessionHarness(data, ScriptedEngine(name=name), **{"disk_kv_budget_bytes": 64 * MIB, **settings})


@pytest.fixture(autouse=True)
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where converted models are."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "keepwarm" / "models"


def convert(models: Path, name: str, count_bytes: int, used_at_s: float = 1e9) -> None:
    sealed_directory.build(models / name, lambda fresh: (fresh / "weights").write_bytes(bytes(count_bytes)) and None)
    os.utime(models / name / sealed_directory.MANIFEST, (used_at_s, used_at_s))


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


def test_converted_models_are_listed_and_cleared(
    served: tuple[Path, str], models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, _ = served
    assert run(capsys, data, "clear", "--models") == [f"There are no converted models in {models}: nothing to delete."]
    convert(models, "old-v4", MIB)
    convert(models, "new-v4", 2 * MIB, 1.5e9)
    (models / "mine").mkdir()
    (models / "mine" / "notes.txt").write_text("not Keepwarm's")
    whole, new, old = run(capsys, data, "list")[4:]
    assert whole == f"Converted models in {models}: 3.0 MiB."
    assert (new[:16], old[:16]) == ("  new-v4: 2.0 Mi", "  old-v4: 1.0 Mi")
    assert old.endswith(", last used 2001-09-09")
    saved = sorted((data / "kv").rglob("*.kv"))
    assert run(capsys, data, "clear", "--models") == [f"Deleted 2 converted models in {models}, 3.0 MiB."]
    assert [path.name for path in models.iterdir() if path.is_dir()] == ["mine"]
    assert saved == sorted((data / "kv").rglob("*.kv"))


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
