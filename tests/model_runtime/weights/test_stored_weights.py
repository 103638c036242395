"""The file of converted weights: the safetensors library's bytes, written and read one parameter at a time."""

from __future__ import annotations

import weakref
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from model_runtime.weights.ggml_blocks import GgmlBlocks
from model_runtime.weights.q4_blocks import Q4Blocks, Q8Blocks, read_q4_1, read_q8_0
from model_runtime.weights.stored_weights import WEIGHTS_FILE, Stored, StoredWeights, Unread, save_weights
from tests.model_runtime.tiny_blocks import random_blocks


def on_meta(stored: Stored) -> Stored:
    """The same without content."""
    if isinstance(stored, torch.Tensor):
        return stored.to("meta")
    if isinstance(stored, Q4Blocks):
        return Q4Blocks(*(t.to("meta") for t in (stored.nibbles, stored.scale, stored.minimum)))
    if isinstance(stored, Q8Blocks):
        return Q8Blocks(stored.codes.to("meta"), stored.scale.to("meta"))
    return GgmlBlocks(stored.rows.to("meta"), stored.kind)


def blocks(kind: str) -> torch.Tensor:
    return torch.from_numpy(random_blocks(kind, 6, 256))


WEIGHTS: dict[str, Stored] = {
    "model.norm.weight": torch.randn(7),
    "model.b.weight": torch.randn(3, 5).to(torch.bfloat16),
    "model.a.weight": torch.randn(3, 5).half(),
    "model.scale": torch.randn(2),
    "model.q4.weight": read_q4_1(blocks("Q4_1")),
    "model.q8.weight": read_q8_0(blocks("Q8_0")),
    "model.k.weight": GgmlBlocks(blocks("Q4_K"), "Q4_K"),
    "model.experts": GgmlBlocks(blocks("Q6_K").view(2, 3, -1), "Q6_K"),
    "number": torch.tensor(3.0),
}


def tensors(stored: Stored) -> list[torch.Tensor]:
    if isinstance(stored, torch.Tensor):
        return [stored]
    return [getattr(stored, name) for name in stored.__slots__ if isinstance(getattr(stored, name), torch.Tensor)]


def test_a_file_has_the_safetensors_librarys_bytes(tmp_path: Path) -> None:
    save_weights({name: Unread(on_meta(s), lambda s=s: s) for name, s in WEIGHTS.items()}, tmp_path)  # type: ignore[misc]
    flat: dict[str, torch.Tensor] = {}
    for name, stored in WEIGHTS.items():
        if isinstance(stored, Q4Blocks):
            flat |= {f"{name}.q4": stored.nibbles, f"{name}.scale": stored.scale, f"{name}.minimum": stored.minimum}
        elif isinstance(stored, Q8Blocks):
            flat |= {f"{name}.q8": stored.codes, f"{name}.scale": stored.scale}
        elif isinstance(stored, GgmlBlocks):
            flat[f"{name}.ggml_{stored.kind}"] = stored.rows
        else:
            flat[name] = stored
    save_file({key: t.contiguous() for key, t in flat.items()}, tmp_path / "again", metadata={"format": "pt"})
    assert (tmp_path / WEIGHTS_FILE).read_bytes() == (tmp_path / "again").read_bytes()


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    save_weights({name: Unread(on_meta(s), lambda s=s: s) for name, s in WEIGHTS.items()}, tmp_path)  # type: ignore[misc]
    found = StoredWeights(tmp_path)
    assert found.names == WEIGHTS.keys()
    for name, stored in WEIGHTS.items():
        read = found.read(name)
        assert type(read) is type(stored)
        assert all(torch.equal(a, b) for a, b in zip(tensors(read), tensors(stored), strict=True))
        assert found.ggml_kind(name) == (stored.kind if isinstance(stored, GgmlBlocks) else None)
    with pytest.raises(KeyError):
        found.read("model.other")


def test_one_parameter_is_in_memory_at_a_time(tmp_path: Path) -> None:
    made: list[weakref.ref[torch.Tensor]] = []

    def read() -> Stored:
        assert all(reference() is None for reference in made)
        tensor = torch.ones(4, 4)
        made.append(weakref.ref(tensor))
        return tensor

    save_weights({str(n): Unread(torch.empty(4, 4, device="meta"), read) for n in range(5)}, tmp_path)
    assert len(made) == 5


def test_a_parameter_of_another_shape_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="x is not of the announced shape"):
        save_weights({"x": Unread(torch.empty(4, 4, device="meta"), lambda: torch.ones(4, 5))}, tmp_path)
