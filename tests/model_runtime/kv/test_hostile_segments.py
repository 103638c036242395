"""Thousands of made-up segment files: each is refused with a sentence, or is exactly what was saved.

300 in CI, 3,200 with `make test-long`. Unlike damage (`test_corruption`), these are consistent in themselves: lengths,
offsets and checksums are made to fit what was changed.
"""

from __future__ import annotations

import json
import random
import struct
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from model_runtime.interface.errors import SegmentRefused
from model_runtime.interface.segments import SegmentIdentity
from model_runtime.kv.segment import read
from tests.model_runtime.kv.test_corruption import saved_files
from tests.model_runtime.kv.test_segment import GEOMETRY

Header = dict[str, dict[str, object]]
Dice = random.Random
LENGTHS = (0, 1, 7, 8, 63, 2**16, 2**31 - 1, 2**31, 2**32, 2**63 - 1, 2**63, 2**64 - 1)
NUMBERS = (-1, 0, 1, 3, 2**31, 2**63, -(2**63), 1e308, float("nan"), None, "7", [], {}, True)


def parts(content: bytes) -> tuple[Header, bytes]:
    end = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:end]), content[end:]


def whole(header: object, rows: bytes, pad: bool = True) -> bytes:
    """A file around them that is consistent in itself."""
    text = header if isinstance(header, bytes) else json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % 64) if pad else b""
    return struct.pack("<Q", len(text)) + text + rows


def with_checksum(header: Header, rows: bytes) -> Header:
    header["__metadata__"]["crc32"] = f"{zlib.crc32(rows):08x}"
    return header


def a_length(content: bytes, other: bytes, dice: Dice) -> bytes:
    return struct.pack("<Q", dice.choice(LENGTHS)) + content[8:]


def metadata(content: bytes, other: bytes, dice: Dice) -> bytes:
    header, rows = parts(content)
    name = dice.choice(list(header["__metadata__"]))
    header["__metadata__"][name] = dice.choice([*NUMBERS, "", "x" * 10_000, "\0", "../../x", header["__metadata__"]])
    try:
        return whole(header, rows)
    except ValueError:  # it holds itself
        return whole(b'{"__metadata__":' * 5000, rows)


def a_missing_or_a_new_field(content: bytes, other: bytes, dice: Dice) -> bytes:
    header, rows = parts(content)
    if dice.random() < 0.5:
        del header["__metadata__"][dice.choice(list(header["__metadata__"]))]
    else:
        header["__metadata__"][f"extra{dice.randrange(9)}"] = dice.choice(NUMBERS)
    return whole(header, rows)


def a_dtype(content: bytes, other: bytes, dice: Dice) -> bytes:
    header, rows = parts(content)
    name = dice.choice([key for key in header if key != "__metadata__"])
    header[name]["dtype"] = dice.choice(["F16", "BF16", "F64", "I8", "I64", "F8_E4M3", "", None, "Q"])
    return whole(header, rows)


def offsets(content: bytes, other: bytes, dice: Dice) -> bytes:
    header, rows = parts(content)
    name = dice.choice([key for key in header if key != "__metadata__"])
    begin, end = header[name]["data_offsets"]  # type: ignore[misc]
    header[name]["data_offsets"] = dice.choice(
        [[end, begin], [0, 2**63], [-begin, end], [begin, end + 4], [begin + 4, end], [begin], None, [begin, end, 0]]
    )
    return whole(header, rows)


def shapes(content: bytes, other: bytes, dice: Dice) -> bytes:
    """Another shape of as many numbers, or of none, or of more than there are."""
    header, rows = parts(content)
    name = dice.choice([key for key in header if key != "__metadata__"])
    shape = list(header[name]["shape"])  # type: ignore[call-overload]
    dice.choice(
        [shape.reverse, shape.clear, lambda: shape.append(1), lambda: shape.__setitem__(0, dice.choice(NUMBERS))]
    )()
    header[name]["shape"] = shape
    return whole(header, rows)


def tensors(content: bytes, other: bytes, dice: Dice) -> bytes:
    """In another order, renamed, doubled or gone."""
    header, rows = parts(content)
    names = [key for key in header if key != "__metadata__"]
    chosen = dice.choice(names)
    match dice.randrange(3):
        case 0:
            return whole(dict(dice.sample(list(header.items()), len(header))), rows + b"\0" * dice.randrange(1, 3))
        case 1:
            header[f"layers.{dice.randrange(99)}.keys.x"] = header.pop(chosen)
        case _:
            del header[chosen]
    return whole(header, rows)


def rows_of_another(content: bytes, other: bytes, dice: Dice) -> bytes:
    """With their right checksum: only the key says that they are not these."""
    header, _ = parts(other)
    _, rows = parts(other)
    return whole(with_checksum(header, rows), rows)


def anothers_claims(content: bytes, other: bytes, dice: Dice) -> bytes:
    """One's own rows under the key, the parent, the fingerprint or the place of another: swapped between owners,
    conversations and models."""
    header, rows = parts(content)
    theirs = parts(other)[0]["__metadata__"]
    names = dice.sample(["key", "parent", "fingerprint", "start_tokens"], dice.randrange(1, 5))
    for name in names:
        header["__metadata__"][name] = theirs[name]
    return whole(header, rows)


def fewer_or_more_rows(content: bytes, other: bytes, dice: Dice) -> bytes:
    header, rows = parts(content)
    rows = rows[: dice.randrange(len(rows))] if dice.random() < 0.5 else rows + dice.randbytes(dice.randrange(1, 200))
    return whole(with_checksum(header, rows), rows)


def a_checksum(content: bytes, other: bytes, dice: Dice) -> bytes:
    header, rows = parts(content)
    crc = zlib.crc32(rows)
    header["__metadata__"]["crc32"] = dice.choice(
        [
            f"{crc:X}",
            f"0x{crc:08x}",
            f" {crc:08x}",
            f"-{crc:x}",
            f"{crc + 2**32:x}",
            "1_0",
            "\u0661",
            "",
            f"{~crc & 0xFFFFFFFF:08x}",
        ]
    )
    return whole(header, rows)


def other_json(content: bytes, other: bytes, dice: Dice) -> bytes:
    """The same meaning in other bytes, or no meaning at all."""
    header, rows = parts(content)
    text = json.dumps(header, separators=(",", ":"))
    made = [
        json.dumps(header, indent=1),
        text.replace("crc32", "crc3\\u0032"),
        text[:-1] + "," + text[1:],
        "[" * 100_000,
        "null",
        '"x"',
        "[]",
        '{"__metadata__":null}',
        '{"__metadata__":{"crc32":"0"}}',
        "\xff\xfe",
        "\0" * 100,
    ]
    return whole(dice.choice(made).encode("latin-1"), rows, pad=dice.random() < 0.5)


def padding(content: bytes, other: bytes, dice: Dice) -> bytes:
    header, rows = parts(content)
    text = json.dumps(header, separators=(",", ":")).encode()
    return whole(
        text + dice.choice([b" ", b"\0", b"\n", b"{}"]) * dice.randrange(1, 200), rows, pad=dice.random() < 0.5
    )


def noise(content: bytes, other: bytes, dice: Dice) -> bytes:
    return dice.randbytes(dice.randrange(2000))


def spliced(content: bytes, other: bytes, dice: Dice) -> bytes:
    place = dice.randrange(min(len(content), len(other)))
    return content[:place] + other[place:]


KINDS: list[Callable[[bytes, bytes, Dice], bytes]] = [
    a_length,
    metadata,
    a_missing_or_a_new_field,
    a_dtype,
    offsets,
    shapes,
    tensors,
    rows_of_another,
    anothers_claims,
    fewer_or_more_rows,
    a_checksum,
    other_json,
    padding,
    noise,
    spliced,
]


@pytest.mark.parametrize("count", [150, pytest.param(1600, marks=pytest.mark.long)])
@pytest.mark.parametrize("is_int8", [False, True])
def test_a_saved_file_is_refused_or_correct(tmp_path: Path, is_int8: bool, count: int) -> None:
    dice, files = Dice(2026), saved_files(tmp_path, is_int8)
    identities = list(files)
    true = {i: read(i, GEOMETRY, tmp_path / i.key, is_int8=is_int8).data for i in identities}
    refused, passed = Counter[str](), Counter[str]()
    for number in range(count):
        kind = KINDS[number % len(KINDS)]
        identity, stranger = dice.sample(identities, 2)
        path = tmp_path / identity.key
        path.write_bytes(kind(files[identity], files[stranger], dice))
        judge(identity, path, is_int8, kind.__name__, true[identity], refused, passed)
        path.write_bytes(files[identity])
    assert set(refused) == {kind.__name__ for kind in KINDS}  # every kind was tried and caught
    assert sum(passed.values()) < count // 10, passed
    print(f"refused={sum(refused.values())} true={dict(passed)}")


def judge(
    identity: SegmentIdentity,
    path: Path,
    is_int8: bool,
    kind: str,
    true: torch.Tensor,
    refused: Counter[str],
    passed: Counter[str],
) -> None:
    try:
        found, why = read(identity, GEOMETRY, path, is_int8=is_int8), ""
    except SegmentRefused as error:
        found, why = None, str(error)
    if found is None:
        assert why.startswith("the saved memory ")
        assert len(why) < 500
        refused[kind] += 1
        return
    assert found.identity == identity
    assert torch.equal(found.data, true), kind
    passed[kind] += 1
