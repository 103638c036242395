"""The memory that a server may take."""

from __future__ import annotations

from pathlib import Path

from model_runtime.native.free_memory import free_memory_bytes


def test_free_memory_is_the_machines_or_its_containers(tmp_path: Path) -> None:
    whole = free_memory_bytes(tmp_path)
    assert whole > 1024**2
    (tmp_path / "memory.current").write_text("300\n", encoding="ascii")
    (tmp_path / "memory.max").write_text("max\n", encoding="ascii")
    assert free_memory_bytes(tmp_path) > 1024**2
    (tmp_path / "memory.max").write_text("1000\n", encoding="ascii")
    assert free_memory_bytes(tmp_path) == 700


def test_the_cache_of_files_counts_as_free(tmp_path: Path) -> None:
    for name, text in (("max", "1000"), ("current", "900"), ("stat", "anon 300\nactive_file 250\ninactive_file 350\n")):
        (tmp_path / f"memory.{name}").write_text(text, encoding="ascii")
    assert free_memory_bytes(tmp_path, tmp_path / "none") == 700


def test_limits_of_groups_around_the_process_count(tmp_path: Path) -> None:
    inner = tmp_path / "user.slice" / "keepwarm.service"
    inner.mkdir(parents=True)
    process = tmp_path / "self"
    process.write_text("0::/user.slice/keepwarm.service\n", encoding="ascii")
    (inner / "memory.max").write_text("max\n", encoding="ascii")
    (inner.parent / "memory.max").write_text("5000\n", encoding="ascii")
    (inner.parent / "memory.current").write_text("1000\n", encoding="ascii")
    assert free_memory_bytes(tmp_path, process) == 4000


def test_limits_of_the_older_kind_of_groups_count(tmp_path: Path) -> None:
    group = tmp_path / "memory" / "docker" / "abc"
    group.mkdir(parents=True)
    process = tmp_path / "self"
    process.write_text("5:cpu,cpuacct:/docker/abc\n4:memory:/docker/abc\n", encoding="ascii")
    (group / "memory.limit_in_bytes").write_text("5000\n", encoding="ascii")
    (group / "memory.usage_in_bytes").write_text("2000\n", encoding="ascii")
    assert free_memory_bytes(tmp_path, process) == 3000
