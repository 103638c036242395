"""Ends an answer after its first call, where the client asked for no more than one."""

from __future__ import annotations

from bisect import bisect_left

from model_runtime.interface.chat import TurnTemplate
from model_runtime.interface.events import FinishReason
from sessions.turns.run import Run


def end_after_first_call(run: Run, text: str, reason: FinishReason, template: TurnTemplate) -> tuple[str, FinishReason]:
    """(the text, why it ended) of a finished run. Where it has more calls, its ids are cut behind the first one: as
    after a stop string, the next turn reads what was shown, no less and no more."""
    begun = run.plan.text
    chars = template.first_call_chars(text) if run.plan.has_one_call else len(text)
    if chars == len(text) or chars < len(begun):
        return text, reason
    needed = chars - len(begun)
    tokens = bisect_left(range(len(run.sampled)), needed, key=lambda n: len(template.plain(run.sampled[:n])))
    run.keep(tokens)
    return begun + template.plain(run.sampled), FinishReason.STOP_STRING
