"""The metadata of one GGUF file, read key by key: what nobody asked for is a reason to refuse the file."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from model_runtime.interface.errors import ModelLoadError
from model_runtime.loading.checks.gguf_header import GgufHeader, Items, Value
from model_runtime.loading.gguf.raw_tensors import read_numbers

_TOLERANCE = 1e-5  # of numbers that converters compute in float32


class Metadata:
    """The keys that start with the architecture's name, without it; each is taken once, and `refuse_rest` names what
    was not taken. Every method raises `ModelLoadError` for a value of the wrong kind."""

    def __init__(self, path: Path, header: GgufHeader) -> None:
        self.path, self.header = path, header
        prefix = f"{header.architecture}."
        self._left = {key.removeprefix(prefix): v for key, v in header.metadata.items() if key.startswith(prefix)}
        self.notes: list[str] = []
        self.read_tensors: set[str] = set()

    def count(self, key: str, default: int | None = None) -> int:
        """A whole number, or a list with the same one for every layer. Required if there is no default."""
        value = self._take(key, default)
        if isinstance(value, Items):
            value = self._same_for_all(key, value)
        if isinstance(value, bool) or not isinstance(value, int):
            self.refuse(key, value)
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number. Required if there is no default."""
        value = self._take(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            self.refuse(key, value)
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """True or False; 0 and 1 mean the same."""
        value = self._take(key, default)
        if value not in (0, 1):
            self.refuse(key, value)
        return bool(value)

    def text(self, key: str, default: str) -> str:
        """A text."""
        value = self._take(key, default)
        if not isinstance(value, str):
            self.refuse(key, value)
        return value

    def pattern(self, key: str, layers: int, default: int) -> list[bool]:
        """For each layer, whether its window slides. The file has a list, or a period n: all but each n-th slide
        (llama.cpp, `set_swa_pattern`)."""
        value = self._take(key, default)
        if isinstance(value, Items):
            if len(value.numbers) != layers or not set(value.numbers) <= {0, 1}:
                self.refuse(key, value)
            return [bool(item) for item in value.numbers]
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            self.refuse(key, value)
        return [value == 0 or layer % value < value - 1 for layer in range(layers)]

    def expect(self, key: str, *allowed: float | str) -> None:
        """Refuses every value but those that the model computes anyway."""
        value = self._left.pop(key, None)
        if value is None or any(_is_same(value, one) for one in allowed):
            return
        self.refuse(key, value)

    def ignore(self, *keys: str) -> None:
        """Keys that change nothing."""
        for key in keys:
            self._left.pop(key, None)

    def has(self, key: str) -> bool:
        """Whether the file states it (and it was not taken)."""
        return key in self._left

    def has_tensor(self, *endings: str) -> bool:
        """Whether any tensor's name ends so."""
        return any(name.endswith(endings) for name in self.header.tensors)

    def numbers_of(self, tensor: str) -> np.ndarray[Any, Any] | None:
        """A vector of the file, float64; None if it has none of that name."""
        info = self.header.tensors.get(tensor)
        if info is not None:
            self.read_tensors.add(tensor)
        return None if info is None else read_numbers(self.path, self.header, info).reshape(-1).astype(np.float64)

    def refuse(self, key: str, value: object) -> NoReturn:
        """Raises `ModelLoadError` with the key's full name."""
        full = f"{self.header.architecture}.{key}"
        shown = f"a list of {value.count:,}" if isinstance(value, Items) else str(value)[:60]
        raise ModelLoadError(
            f"{self.path.name} cannot be used: it sets {full} to {shown}, which Keepwarm does not support for this "
            "architecture."
        )

    def refuse_rest(self) -> None:
        """Raises `ModelLoadError` for the first key that was not taken."""
        for key, value in sorted(self._left.items()):
            self.refuse(key, value)

    def _take(self, key: str, default: Value | None) -> Value:
        value = self._left.pop(key, default)
        if value is None:
            raise ModelLoadError(
                f"{self.path.name} cannot be used: it does not state its {key}. Download it again, or from another "
                "source."
            )
        return value

    def _same_for_all(self, key: str, items: Items) -> Value:
        if len(set(items.numbers)) != 1:
            self.refuse(key, items)
        return items.numbers[0]


def _is_same(value: Value, allowed: float | str) -> bool:
    if isinstance(value, (str, Items)) or isinstance(allowed, str):
        return value == allowed
    return math.isclose(value, allowed, rel_tol=_TOLERANCE, abs_tol=0.0)
