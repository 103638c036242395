"""A thousand damages at random over saved files, headers included: every one is refused."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest

from model_runtime.interface.errors import SegmentRefused
from model_runtime.interface.segments import SegmentIdentity, identify
from model_runtime.kv.segment import at_8_bits, copy_out, read, write
from tests.model_runtime.kv.test_segment import GEOMETRY, IDS, filled

DAMAGES = 1000
KINDS = ("bit", "header bit", "cut", "header cut", "swap", "longer", "zeros", "moved")


def saved_files(folder: Path, is_int8: bool) -> dict[SegmentIdentity, bytes]:
    """Segments of two conversations, of two owners, and of two models."""
    files = {}
    for fingerprint in ("model a owner x", "model a owner y", "model b owner x"):
        for shift in (0, 100):
            ids = tuple(i + shift for i in IDS)
            first = identify(None, ids[:25], fingerprint)
            for identity in (first, identify(first, ids[25:], fingerprint)):
                segment = copy_out(filled(ids), GEOMETRY, identity)
                path = folder / identity.key
                write(at_8_bits(segment, GEOMETRY) if is_int8 else segment, GEOMETRY, path)
                files[identity] = path.read_bytes()
    return files


def damaged(kind: str, content: bytes, other: bytes, dice: random.Random) -> bytes:
    header_bytes = 8 + int.from_bytes(content[:8], "little")
    match kind:
        case "bit" | "header bit":
            place = dice.randrange(8 * (header_bytes if kind == "header bit" else len(content)))
            changed = bytearray(content)
            changed[place // 8] ^= 1 << place % 8
            return bytes(changed)
        case "cut":
            return content[: dice.randrange(len(content))]
        case "header cut":
            return content[: dice.randrange(header_bytes)]
        case "swap":
            return other
        case "longer":
            return content + dice.randbytes(dice.randrange(1, 100))
        case "zeros":  # a page that never reached the disk
            start = dice.randrange(len(content))
            page = content[start : start + 512]
            return (
                content[:start] + bytes(byte ^ 0xFF if not any(page) else 0 for byte in page) + content[start + 512 :]
            )
        case _:  # another segment's rows behind this one's header
            return content[:header_bytes] + other[8 + int.from_bytes(other[:8], "little") :]


@pytest.mark.parametrize("is_int8", [False, True])
def test_a_thousand_damages_are_refused(tmp_path: Path, is_int8: bool) -> None:
    dice, files = random.Random(13), saved_files(tmp_path, is_int8)
    identities, reasons = list(files), Counter[str]()
    while reasons.total() < DAMAGES:
        identity, stranger = dice.sample(identities, 2)
        content = damaged(dice.choice(KINDS), files[identity], files[stranger], dice)
        if content == files[identity]:  # the same rows moved behind the same header
            continue
        path = tmp_path / identity.key
        path.write_bytes(content)
        with pytest.raises(SegmentRefused) as refused:
            read(identity, GEOMETRY, path, is_int8=is_int8)
        reasons[str(refused.value)] += 1
        path.write_bytes(files[identity])
    assert len(reasons) >= 5, reasons  # it says which
    for identity in identities:
        assert read(identity, GEOMETRY, tmp_path / identity.key, is_int8=is_int8).identity == identity
