"""A cached directory is whole or refused, whatever happened to it."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from model_runtime.loading.sealed_directory import (
    MANIFEST,
    broken_because,
    budget_bytes,
    build,
    keep_within,
    mark_used,
    only_one,
    sealed_in,
    sweep,
)


def fill(directory: Path) -> None:
    (directory / "weights").write_bytes(bytes(range(256)) * 10)
    (directory / "inner").mkdir()
    (directory / "inner" / "config.json").write_text("{}")


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    build(tmp_path / "model", fill)
    return tmp_path / "model"


def test_a_built_directory_is_whole(sealed: Path) -> None:
    assert broken_because(sealed) is None


def test_one_changed_byte_is_found(sealed: Path) -> None:
    data = bytearray((sealed / "weights").read_bytes())
    data[1000] ^= 1
    (sealed / "weights").write_bytes(data)
    assert broken_because(sealed) == "weights has changed on disk"


def test_a_short_file_is_found_with_its_sizes(sealed: Path) -> None:
    (sealed / "weights").write_bytes(b"short")
    assert broken_because(sealed) == "weights has 5 bytes instead of 2,560"


def test_a_missing_file_is_found(sealed: Path) -> None:
    (sealed / "inner" / "config.json").unlink()
    assert "inner/config.json cannot be read" in str(broken_because(sealed))


@pytest.mark.parametrize("manifest", ["", "{", "[]", '{"files": []}', '{"files": {"weights": {}}}', "\x00"])
def test_a_damaged_manifest_is_found(sealed: Path, manifest: str) -> None:
    (sealed / MANIFEST).write_text(manifest)
    assert broken_because(sealed) == f"its {MANIFEST} cannot be read"


def test_a_directory_without_manifest_was_never_finished(tmp_path: Path) -> None:
    fill(tmp_path)
    assert broken_because(tmp_path) == "it was never finished"


def test_a_build_that_fails_leaves_the_old_directory_and_nothing_else(sealed: Path) -> None:
    def fail(directory: Path) -> None:
        (directory / "half").write_bytes(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        build(sealed, fail)
    assert broken_because(sealed) is None
    assert [path.name for path in sealed.parent.iterdir()] == ["model"]


def test_a_rebuild_replaces_everything(sealed: Path) -> None:
    (sealed / "weights").write_text("damaged")
    build(sealed, fill)
    assert broken_because(sealed) is None
    assert [path.name for path in sealed.parent.iterdir()] == ["model"]


@pytest.mark.parametrize("what", ["a file of theirs", "a link", "no manifest"])
def test_what_is_not_all_ours_is_set_aside_and_never_deleted(sealed: Path, what: str) -> None:
    outside = sealed.parent.parent / f"{sealed.parent.name}-outside"
    outside.mkdir()
    (outside / "thesis.odt").write_text("three years")
    if what == "a file of theirs":
        (sealed / "thesis.odt").write_text("three years")
    elif what == "a link":
        (sealed / "thesis.odt").symlink_to(outside / "thesis.odt")
    else:
        (sealed / MANIFEST).unlink()
    build(sealed, fill)
    build(sealed, fill)  # and the next time it is all ours
    assert broken_because(sealed) is None
    assert sorted(path.name for path in sealed.parent.iterdir()) == ["model", "model.set-aside-1"]
    if what != "no manifest":
        assert (sealed.parent / "model.set-aside-1" / "thesis.odt").read_text() == "three years"
    assert (outside / "thesis.odt").exists()


def test_sweep_removes_what_a_killed_build_left(sealed: Path) -> None:
    for name in (".a-model-v1-abc_1234", ".a-model-v1-float16-stale-abcd1234"):
        (sealed.parent / name).mkdir()
        (sealed.parent / name / "half").write_bytes(b"half")
    sweep(sealed.parent)
    assert [path.name for path in sealed.parent.iterdir()] == ["model"]


def test_sweep_leaves_what_others_put_there(sealed: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    for name in (".my-notes", ".model-abc123", ".git-v2"):
        (sealed.parent / name).mkdir()
    outside = tmp_path_factory.mktemp("outside")
    (outside / "thesis.odt").write_text("three years")
    (sealed.parent / ".a-model-v1-abc_1234").symlink_to(outside)
    sweep(sealed.parent)
    assert len(list(sealed.parent.iterdir())) == 5
    assert (outside / "thesis.odt").exists()


def test_only_one_holds_the_lock_and_the_other_says_that_it_waits(tmp_path: Path) -> None:
    held, waiting, order = threading.Event(), threading.Event(), []

    def first() -> None:
        with only_one(tmp_path / ".lock", lambda: None):
            held.set()
            assert waiting.wait(10)
            order.append("first")

    thread = threading.Thread(target=first)
    thread.start()
    assert held.wait(10)
    with only_one(tmp_path / ".lock", waiting.set):
        order.append("second")
    thread.join()
    assert order == ["first", "second"]


def test_what_was_not_used_for_longest_makes_room(tmp_path: Path) -> None:
    for number, name in enumerate(("first", "second", "third")):
        build(tmp_path / name, lambda fresh: (fresh / "weights").write_bytes(bytes(1000)) and None)
        os.utime(tmp_path / name / MANIFEST, (number, number))
    size_bytes = sealed_in(tmp_path)[0].size_bytes
    assert keep_within(tmp_path, 3 * size_bytes, tmp_path / "third") == []
    mark_used(tmp_path / "first")
    assert [one.path.name for one in keep_within(tmp_path, 2 * size_bytes, tmp_path / "third")] == ["second"]
    assert budget_bytes(tmp_path, 1.0, size_bytes) == size_bytes
    assert budget_bytes(tmp_path, 0.0, size_bytes) == 0
    assert [one.path.name for one in keep_within(tmp_path, 0, tmp_path / "third")] == ["first"]
    assert [one.path.name for one in sealed_in(tmp_path)] == ["third"]
