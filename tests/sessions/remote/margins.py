"""Ids that a real server sampled, held against the model as it runs here."""

from __future__ import annotations

from collections.abc import Mapping

from model_runtime.loading.loaded import LoadedModel
from model_runtime.reference.full_read import full_read


def margins_of(loaded: LoadedModel, answers: Mapping[tuple[int, ...], tuple[int, ...]]) -> list[float]:
    """How far each of the answers' ids lies below the likeliest one, in logits; `answers` by what was sent."""
    found: list[float] = []
    for sent, ids in answers.items():
        logits = full_read(loaded.model, (*sent, *ids))
        rows = [logits[len(sent) + place - 1] for place in range(len(ids))]
        found += [float(row.max() - row[id_]) for row, id_ in zip(rows, ids, strict=True)]
    return found
