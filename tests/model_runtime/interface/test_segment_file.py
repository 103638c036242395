"""A file says itself whether it is whole."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from model_runtime.interface.segment_file import damage
from model_runtime.kv.segment import copy_out, write
from tests.model_runtime.kv.test_segment import GEOMETRY, filled, two_segments


@pytest.fixture
def path(tmp_path: Path) -> Path:
    identity = two_segments()[1]
    path = tmp_path / f"{identity.key}.kv"
    write(copy_out(filled(), GEOMETRY, identity), GEOMETRY, path)
    return path


def test_what_was_written_is_whole(path: Path) -> None:
    assert damage(path) == ""


def test_every_flipped_bit_is_found_or_harms_nothing(path: Path) -> None:
    """Harmless are those that change how the header spells what this check does not ask for."""
    content, dice = path.read_bytes(), random.Random(4)
    data_begins = 8 + int.from_bytes(content[:8], "little")
    for _ in range(500):
        place = dice.randrange(len(content))
        broken = bytearray(content)
        broken[place] ^= 1 << dice.randrange(8)
        path.write_bytes(broken)
        if place >= data_begins:
            assert damage(path) == "its checksum is wrong"
        else:
            damage(path)


@pytest.mark.parametrize("length", [0, 3, 8, 40, -1])
def test_what_is_cut_off_is_found(path: Path, length: int) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:length])
    assert damage(path) in ("its header is damaged", "it is cut off")


def test_what_is_longer_or_another_ones_is_found(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content + b"x")
    assert damage(path) == "it is too long"
    other = path.with_name(f"{'0' * 40}.kv")
    other.write_bytes(content)
    assert damage(other) == "it is another segment's"


@pytest.mark.parametrize("header", [b"[]", b"{}", b"[" * 100_000, b'{"__metadata__": 3}', b"\xff\xfe", b"null"])
def test_headers_that_are_none_are_found(path: Path, header: bytes) -> None:
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    assert damage(path) == "its header is damaged"


def test_a_header_that_claims_gigabytes_is_not_read(path: Path) -> None:
    path.write_bytes((2**63).to_bytes(8, "little"))
    assert damage(path) == "its header is damaged"
