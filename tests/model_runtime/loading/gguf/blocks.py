"""Cases wide enough for super-blocks of 256 columns, and random blocks in place of their matrices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from gguf import GGMLQuantizationType

from tests.model_runtime.loading.gguf.cases import CASES, Case
from tests.model_runtime.tiny_blocks import random_blocks
from tests.model_runtime.tiny_gguf import Raw

WIDE = {"hidden_size": 256, "intermediate_size": 256, "head_dim": 64}
WIDE_KEYS = {"attention.key_length": 64, "attention.value_length": 64}


def wide(name: str) -> Case:
    """The case with super-blocks in every row."""
    case = CASES[name]
    if case.model_type in ("bloom", "falcon", "gpt2"):
        inner = {"feed_forward_length": 1024} if "feed_forward_length" in case.keys else {}
        keys = case.keys | {"embedding_length": 256} | inner
        return replace(case, settings=case.settings | {"hidden_size": 256}, keys=keys)
    has_own = "head_dim" in case.settings
    settings = case.settings | (WIDE if has_own else {**WIDE, "head_dim": "none"})
    return replace(case, settings=settings, keys=case.keys | (WIDE_KEYS if has_own else {}))


def blocks_of(case: Case, model: torch.nn.Module, kind_of: Callable[[str], str | None]) -> Raw:
    """Random blocks in place of the matrices for which `kind_of` the tensor's short name has a type."""
    raw: Raw = {}
    for seed, (name, weights) in enumerate(case.all_tensors(model).items()):
        short = name.split(".")[-2]
        kind = kind_of(short) if weights.ndim == 2 and name.endswith("weight") else None
        if kind is not None:
            raw[name] = (random_blocks(kind, *weights.shape, seed=seed, std=0.1), GGMLQuantizationType[kind])
    return raw
