"""A comparison of a model with transformers, as lines for a person."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from model_runtime.reference.findings import IdsFinding, ModelComparison, ReadingFinding

AROUND = 3  # ids shown before and behind the first one that differs


def lines_of(found: ModelComparison) -> Iterator[str]:
    """Both sides, ids, logits and greedy tokens beside each other, and the verdict last."""
    if found.keepwarm:
        yield f"  Keepwarm:     {found.keepwarm}"
    if found.transformers and not found.refusal:  # the last sentence says it
        yield f"  transformers: {found.transformers}"
    if found.ids:
        yield "Token ids"
    for ids in found.ids:
        yield from _ids_lines(ids)
    if found.readings:
        yield "Logits and greedy tokens (std: standard deviations of a position's logits)"
    for reading in found.readings:
        yield from _reading_lines(reading)
    for note in found.notes:
        yield f"  Note: {note}"
    yield found.sentence


def _ids_lines(ids: IdsFinding) -> Iterator[str]:
    if ids.agrees:
        yield f"    {ids.what}: {len(ids.keepwarm)} ids, equal"
        return
    at = ids.first_difference
    start = max(at - AROUND, 0)
    yield f"  ! {ids.what}: differs from id {at + 1} on"
    for side, own in (("Keepwarm", ids.keepwarm), ("transformers", ids.transformers)):
        shown = " ".join(map(str, own[start : at + AROUND + 1])) or "nothing more"
        yield f"        {side + ':':<13} {'... ' if start else ''}{shown} ({len(own)} ids)"


def _reading_lines(reading: ReadingFinding) -> Iterator[str]:
    mark = " " if reading.agrees else "!"
    allowed = f"{reading.allowed_std:g} allowed ({reading.measure})"
    yield f"  {mark} {reading.what}, behind {reading.ledger_tokens:,} ids: {reading.gap_std:.2g} std, {allowed}"
    if reading.error:
        yield f"        Keepwarm: {reading.error}"
    ours, theirs = reading.keepwarm_tokens, reading.transformers_tokens
    if ours and ours == theirs:
        yield f"        both:         {_shown(ours)}"
    elif ours:
        why = ", at a near-tie" if reading.agrees else ""
        yield f"        Keepwarm:     {_shown(ours)}"
        yield f"        transformers: {_shown(theirs)} (differs here{why})"


def _shown(tokens: tuple[str, ...]) -> str:
    return " ".join(map(repr, tokens))
