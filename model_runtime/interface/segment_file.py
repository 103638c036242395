"""Checks the file of a saved segment against itself: its name, length and checksum. Whether it is the segment that is
wanted is checked when it is loaded (`model_runtime.kv.segment`)."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

PIECE_BYTES = 4 * 1024 * 1024
LONGEST_HEADER_BYTES = 16 * 1024 * 1024


def damage(path: Path) -> str:
    """What is wrong with the file, as a clause; "" if nothing is. Raises `OSError` when it cannot be read."""
    with path.open("rb", buffering=0) as file:
        count = int.from_bytes(file.read(8), "little")
        if count > LONGEST_HEADER_BYTES:
            return "its header is damaged"
        try:
            header = json.loads(file.read(count))
            metadata, ends = header.pop("__metadata__"), [tensor["data_offsets"][1] for tensor in header.values()]
            key, crc, data_bytes = str(metadata["key"]), int(metadata["crc32"], 16), max(ends, default=0)
        except (ValueError, KeyError, TypeError, AttributeError, LookupError, RecursionError):
            return "its header is damaged"
        if key != path.stem:
            return "it is another segment's"
        found_crc = found_bytes = 0
        while piece := file.read(PIECE_BYTES):
            found_crc, found_bytes = zlib.crc32(piece, found_crc), found_bytes + len(piece)
    if found_bytes != data_bytes:
        return "it is cut off" if found_bytes < data_bytes else "it is too long"
    return "" if found_crc == crc else "its checksum is wrong"
