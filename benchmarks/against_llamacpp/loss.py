"""What rounding activations costs on real text: here with float32, int8 and int16, and in llama.cpp."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import torch
from torch.nn import functional

from benchmarks.against_llamacpp.llama_cpp_side import LlamaCpp
from benchmarks.against_llamacpp.models import Match
from model_runtime.engine.passing_thread import in_passing_thread
from model_runtime.interface.config import CpuActivations
from model_runtime.loading.loaded import LoadedModel
from model_runtime.loading.loading import load_model, unload

PROSE = Path(__file__).parents[2] / "tests" / "model_runtime" / "prose.txt"
_PIECE = 64  # rows whose logits are in memory at once


def losses(python: str, match: Match, threads: int, most_tokens: int) -> dict[str, float]:
    """Mean negative log-likelihoods of the prose, in nats a token: "int8", "int16", "float32" and "llamacpp"."""
    found = dict[str, float]()
    ids: list[int] = []
    for activations in get_args(CpuActivations):
        if activations != "auto":
            config = match.config(activations)
            loaded = in_passing_thread(lambda: load_model(config, say=print))  # noqa: B023 - called at once
            ids = list(loaded.tokenizer(PROSE.read_text(encoding="utf-8"))["input_ids"])[:most_tokens]
            found[activations] = in_passing_thread(lambda: _loss(loaded, ids))  # noqa: B023
            unload(loaded)
    other = LlamaCpp(python, match.gguf, threads, len(ids) + 256, "off")
    found["llamacpp"] = other.loss(ids)
    other.close()
    return found


@torch.inference_mode()
def _loss(loaded: LoadedModel, ids: Sequence[int]) -> float:
    """With the model's own attention, float32 throughout."""
    hidden = loaded.model.model(torch.tensor([ids])).last_hidden_state[0]
    then = torch.tensor(ids[1:])
    total = 0.0
    for start in range(0, len(then), _PIECE):
        wanted = then[start : start + _PIECE]
        logits = loaded.model.get_output_embeddings()(hidden[start : start + len(wanted)])
        total += float(functional.cross_entropy(logits.float(), wanted, reduction="sum"))
    return total / len(then)
