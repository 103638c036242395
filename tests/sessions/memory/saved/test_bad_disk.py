"""A really full and a really read-only disk: the chat continues, and the memory log says what was not saved."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import TinyDir

NAMESPACE = ["unshare", "--user", "--map-root-user", "--mount"]


def can_mount() -> bool:
    """Whether this process may mount file systems. If only root may, and this is not root, there is no disk to test."""
    if shutil.which("unshare") is None:
        return False
    return subprocess.run([*NAMESPACE, "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True).returncode == 0


@pytest.fixture
def happened(tiny_dir: TinyDir, tmp_path: Path, request: pytest.FixtureRequest) -> dict[str, Any]:
    if not can_mount():
        pytest.skip("mounting in a user namespace is not allowed here")
    child = [
        sys.executable,
        "-m",
        "tests.sessions.memory.saved.bad_disk_child",
        str(tiny_dir("llama")),
        str(tmp_path / "data"),
    ]
    ended = subprocess.run([*NAMESPACE, *child, request.param], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    found: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("happened", ["full"], indirect=True)
def test_a_full_disk_is_logged(happened: dict[str, Any]) -> None:
    assert happened["statuses"] == ["complete"] * 8
    assert happened["misses"] == [None] * 8
    assert any("could not be saved" in text for text in happened["events"]), happened["events"]
    assert happened["left_over"] == []
    assert 0 < happened["disk_bytes"] <= 256 * 1024


@pytest.mark.parametrize("happened", ["read-only"], indirect=True)
def test_a_disk_that_becomes_read_only_is_logged_and_a_start_on_one_is_refused(happened: dict[str, Any]) -> None:
    assert happened["statuses"] == ["complete"] * 8
    assert happened["misses"] == [None] * 8
    assert any("could not be saved: Read-only file system" in text for text in happened["events"])
    assert happened["disk_bytes"] > 0
    assert "cannot be used (Read-only file system)" in happened["start"]
    assert "Give this user write permission" in happened["start"]
