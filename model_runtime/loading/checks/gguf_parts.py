"""A GGUF model in several files, `NAME-00001-of-00003.gguf`: finds the parts, checks that they belong together, joins
their headers.

Source: llama.cpp's gguf-split. The first part has all metadata, the others only `split.*` (and whatever agrees).
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path, PurePath

from model_runtime.interface.errors import ModelLoadError
from model_runtime.loading.checks.gguf_header import GgufHeader, TensorInfo, read_gguf_header

_PART = re.compile(r"(?P<name>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.gguf)", re.IGNORECASE)
_COUNT, _NUMBER, _TENSORS = "split.count", "split.no", "split.tensors.count"
_MOST_NAMED = 5  # missing files


def model_name(path: PurePath) -> str:
    """The file's name without its suffix and without the number of the part."""
    match = _PART.fullmatch(path.name)
    return match["name"] if match else path.stem


def part_of(path: PurePath) -> tuple[int, int]:
    """(3, 5) for the third part of five, by the file's name; (1, 1) for a whole model."""
    match = _PART.fullmatch(path.name)
    return (int(match["number"]), int(match["count"])) if match else (1, 1)


def gguf_files(path: Path) -> tuple[Path, ...]:
    """All parts of the model that `path` is a part of, in order; `path` alone if its name says nothing of parts. Raises
    `ModelLoadError` when a part is missing."""
    match = _PART.fullmatch(path.name)
    if match is None:
        return (path,)
    count = int(match["count"])
    names = [f"{match['name']}-{number:05d}-of-{match['count']}{match['suffix']}" for number in range(1, count + 1)]
    files = tuple(path.with_name(name) for name in names)
    missing = [file.name for file in files if not file.is_file()]
    if path not in files:
        raise ModelLoadError(f"{path.name} cannot be used: there is no part {int(match['number'])} of {count}.")
    if missing:
        named = ", ".join(missing[:_MOST_NAMED]) + (" and others" if len(missing) > _MOST_NAMED else "")
        raise ModelLoadError(
            f"{path.name} is one part of {count} of a model, and {len(missing)} of them are missing in {path.parent}: "
            f"{named}. Download them into that directory."
        )
    return files


def read_gguf_files(files: tuple[Path, ...]) -> GgufHeader:
    """The header of the whole model. Raises `ModelLoadError` for files that are not the parts of one model."""
    headers = [read_gguf_header(file) for file in files]
    first, name = headers[0], files[0].name
    stated = first.metadata.get(_COUNT, 1)
    if len(files) == 1 and stated in (0, 1):
        return first
    if len(files) == 1:
        raise ModelLoadError(
            f"{name} is one part of {stated} of a model, but its name does not say which one. Give all parts their "
            "names back (MODEL-00001-of-00003.gguf), by which the others are found."
        )
    for number, (file, header) in enumerate(zip(files, headers, strict=True)):
        _check_part(file.name, number, len(files), header, first)
    tensors: dict[str, TensorInfo] = {}
    for part, (file, header) in enumerate(zip(files, headers, strict=True)):
        for tensor in header.tensors.values():
            if tensor.name in tensors:
                raise _mixed(file.name, f"its tensor {tensor.name} is also in another part")
            tensors[tensor.name] = replace(tensor, part=part)
    total = first.metadata.get(_TENSORS)
    if total != len(tensors):
        raise _mixed(name, f"it says that all parts have {total} tensors, and they have {len(tensors)}")
    others = tuple((file, header.data_start) for file, header in zip(files[1:], headers[1:], strict=True))
    return GgufHeader(first.metadata, tensors, first.data_start, others)


def _check_part(name: str, number: int, count: int, header: GgufHeader, first: GgufHeader) -> None:
    if _COUNT not in header.metadata:
        raise ModelLoadError(
            f"{name} is named like one part of {count} of a model, but does not say so itself. If it is a whole model, "
            "rename it; else download all parts again."
        )
    own = (header.metadata.get(_COUNT), header.metadata.get(_NUMBER), header.metadata.get(_TENSORS))
    if own[:2] != (count, number):
        raise _mixed(name, f"it says that it is part {_ordinal(own[1])} of {own[0]}")
    if own[2] != first.metadata.get(_TENSORS):
        raise _mixed(
            name, f"it says that all parts have {own[2]} tensors, the first one says {first.metadata.get(_TENSORS)}"
        )
    for key, value in header.metadata.items():
        if key != _NUMBER and first.metadata.get(key) != value:
            raise _mixed(name, f"its entry {key[:80]} is not that of the first part")


def _ordinal(number: object) -> object:
    return number + 1 if isinstance(number, int) else number


def _mixed(name: str, why: str) -> ModelLoadError:
    return ModelLoadError(
        f"{name} does not belong to the files beside it: {why}. Download all parts again, from one source."
    )
