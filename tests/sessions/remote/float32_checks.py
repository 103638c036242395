"""What a real server of the embedded model in float32 must show, whichever it is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from model_runtime.interface.events import FinishReason, TokenDelta
from model_runtime.interface.sampling_params import SamplingParams
from model_runtime.loading.loaded import LoadedModel
from model_runtime.reference.full_read import full_read
from model_runtime.remote.engine import RemoteEngine
from model_runtime.remote.texts import RemoteTexts
from model_runtime.text.chat_template import ChatTemplate
from tests.model_runtime.remote.remote_harness import Asked, ask
from tests.sessions.remote.margins import margins_of
from tests.sessions.remote.twenty_turns import talk
from tests.sessions.session_harness import ADA, SessionHarness

MOST_MARGIN = 0.01  # in logits: both compute in float32


def first_turn(texts: RemoteTexts) -> tuple[int, ...]:
    template = ChatTemplate(texts.tokenizer, texts.stop_token_ids)
    return template.first_turn("", "Tell me a long story about a kettle.", ())


def twenty_turns(engine: RemoteEngine, texts: RemoteTexts, folder: Path, loaded: LoadedModel) -> None:
    template: Any = ChatTemplate(texts.tokenizer, texts.stop_token_ids)
    own: Any = engine
    harness = SessionHarness(folder / "data", own, template, budget_bytes=1)
    try:
        found = talk(harness, SamplingParams(temperature=0.0, max_new_tokens=8), template.takes_tools, 300.0)
        receipts = [
            message.receipt
            for one in harness.manager.list_conversations(ADA)
            for message in harness.manager.view(ADA, one.conversation_id).messages
            if message.receipt is not None
        ]
    finally:
        harness.close()
    assert len(found.ledgers) >= 20
    assert all(one.is_reuse_reported for one in receipts)
    reused = [one.reused_tokens for one in receipts]
    margins = margins_of(loaded, found.answers)
    equal = sum(margin == 0.0 for margin in margins)
    print(
        f"{len(found.ledgers)} turns: {equal} of {len(margins)} ids are the likeliest here; margin {max(margins):.4f}"
    )
    print(f"reused, as reported: {reused}")
    assert max(margins) < MOST_MARGIN
    assert max(reused) > 200


def same_ids_and_logprobs(
    engine: RemoteEngine, ledger: tuple[int, ...], sampling: SamplingParams, loaded: LoadedModel
) -> None:
    """Asked twice with a seed, or greedily. Log-probabilities are those of the model's own logits."""
    assert engine.sampling_refusal(sampling) == ""
    first, again = ask(engine, ledger, sampling), ask(engine, ledger, sampling)
    assert first.end.reason in (FinishReason.LENGTH, FinishReason.STOP), first.end.error
    assert first.ids == again.ids
    assert len(first.ids) >= 12
    logits = full_read(loaded.model, (*ledger, *first.ids))
    told = [event.logprobs for event in first.events if isinstance(event, TokenDelta)]
    differences = [
        abs(one.chosen.logprob - float(logits[len(ledger) + place - 1].log_softmax(-1)[first.ids[place]]))
        for place, one in enumerate(told)
        if one is not None
    ]
    print(f"log-probabilities differ by at most {max(differences):.5f} of {len(differences)}")
    assert len(differences) >= 12
    assert max(differences) < MOST_MARGIN
    assert all(len(one.top) == 3 for one in told if one is not None)


def stops_limits_and_aborts(engine: RemoteEngine, ledger: tuple[int, ...]) -> None:
    greedy = SamplingParams(temperature=0.0, max_new_tokens=40)
    whole = ask(engine, ledger, greedy)
    assert (whole.end.reason, len(whole.ids)) == (FinishReason.LENGTH, 40)
    stop = whole.text[20:26]
    stopped = ask(engine, ledger, replace(greedy, stop_strings=(stop,)))
    assert stopped.end.reason is FinishReason.STOP_STRING
    assert stopped.text == whole.text[: whole.text.index(stop)]
    assert stopped.end.reused_tokens <= len(ledger)
    ended = ask(engine, ledger, replace(greedy, stop_token_ids=(whole.ids[5],)))
    place = whole.ids.index(whole.ids[5])
    assert (ended.end.reason, ended.ids) == (FinishReason.STOP_STRING, whole.ids[: place + 1])
    endless = ask(engine, ledger, replace(greedy, ignore_eos=True, max_new_tokens=120))
    assert (endless.end.reason, len(endless.ids)) == (FinishReason.LENGTH, 120)
    aborted = Asked(engine, ledger, replace(greedy, ignore_eos=True, max_new_tokens=600))
    aborted.until_token(3)
    aborted.generation.abort()
    assert aborted.end.reason is FinishReason.ABORTED
    assert ask(engine, ledger, greedy).ids == whole.ids
