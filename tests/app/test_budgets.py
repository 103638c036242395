"""The memory that a server may take."""

from __future__ import annotations

from pathlib import Path

from app.process_memory import free_memory_bytes


def test_free_memory_is_the_machines_or_its_containers(tmp_path: Path) -> None:
    whole = free_memory_bytes(tmp_path)
    assert whole > 1024**2
    (tmp_path / "memory.current").write_text("300\n", encoding="ascii")
    (tmp_path / "memory.max").write_text("max\n", encoding="ascii")
    assert free_memory_bytes(tmp_path) > 1024**2
    (tmp_path / "memory.max").write_text("1000\n", encoding="ascii")
    assert free_memory_bytes(tmp_path) == 700
