"""`keepwarm export` and `keepwarm import`: what they say, and what they refuse."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.__main__ import main
from sessions.errors import StoreError
from sessions.maintenance.backup import restore
from tests.sessions.session_harness import ADA, SessionHarness


@pytest.fixture
def data(tmp_path: Path) -> list[str]:
    """The flag that names a data directory with conversations of two owners."""
    harness = SessionHarness(tmp_path / "data")
    try:
        harness.say(harness.conversation(), "Hello.")
        harness.say(harness.conversation("bob"), "Hello.", "bob")
    finally:
        harness.close()
    return ["--data-dir", str(tmp_path / "data")]


def test_a_list_an_export_and_an_import(data: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", *data]) == 0
    assert [line.split("  ")[0] for line in capsys.readouterr().out.splitlines()] == ["bob", ADA]
    assert main(["export", ADA, str(tmp_path / "cold"), *data]) == 0
    assert f"Exported to {tmp_path / 'cold'}: 1 conversation, 2 messages of ada." in capsys.readouterr().out
    assert main(["import", str(tmp_path / "cold"), "--data-dir", str(tmp_path / "other")]) == 0
    assert f"Imported into {tmp_path / 'other'}: 1 conversation, 2 messages of ada." in capsys.readouterr().out
    assert main(["export", "--data-dir", str(tmp_path / "other")]) == 0
    assert capsys.readouterr().out.startswith("ada  1 conversation, last used ")


def test_what_is_refused(data: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = str(tmp_path / "cold")
    for arguments, code, sentence in (
        (["export", "eve", target, *data], 1, "`keepwarm export` lists the owners"),
        (["export", ADA, *data], 2, "Name a target directory too"),
        (["export", ADA, str(tmp_path / "data" / "x"), *data], 1, "neither inside it nor around it"),
        (["export", "--data-dir", str(tmp_path / "none")], 1, "There is no Keepwarm database"),
        (["export", ADA, target, *data], 0, ""),
        (["export", ADA, target, *data], 1, "is not empty"),
        (["import", target, "--warm", "--data-dir", str(tmp_path / "other")], 1, "holds no saved memory"),
        (["import", target, *data], 1, "is here already. Nothing was imported"),
    ):
        assert main(arguments) == code, arguments
        assert sentence in capsys.readouterr().err
    with pytest.raises(StoreError, match="is not a backup"):
        restore(tmp_path / "cold", tmp_path / "restored")
