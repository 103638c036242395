"""Ids go out as they are, ids come back as they came, and receipts say what the server reported."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from model_runtime.interface.errors import SegmentNotSaved
from model_runtime.interface.events import Finished, FinishReason, PrefillProgress, TokenDelta
from model_runtime.interface.grammar import Grammar
from model_runtime.interface.protocol import ReadRequest
from model_runtime.interface.sampling_params import SamplingParams
from tests.model_runtime.remote.conftest import Connect, Start
from tests.model_runtime.remote.remote_harness import GREEDY, Asked, ask, tiny_texts
from tests.model_runtime.remote.scripted_server import ScriptedServer
from tests.polling import pause, until

LEDGER = tuple(range(40, 70))


def test_ids_go_out_and_come_back_unchanged(server: ScriptedServer, connect: Connect) -> None:
    answer = [*server.ids("Good  day,\n é 👩‍🚀 ok"), server.end_id]
    server.answer = lambda ledger: answer
    asked = ask(connect(server), LEDGER)
    assert server.asked[-1]["prompt"] == list(LEDGER)
    assert asked.ids == answer
    assert asked.text == "Good  day,\n é 👩‍🚀 ok"
    assert asked.end.reason is FinishReason.STOP
    assert (asked.end.fed_tokens, asked.end.reused_tokens, asked.end.sampled_tokens) == (30, 0, len(answer))
    assert asked.kv.length_tokens == len(LEDGER) + len(answer) - 1
    assert asked.kv.allocated_bytes == 0


def test_the_next_turn_reuses_what_the_server_says(server: ScriptedServer, connect: Connect) -> None:
    engine = connect(server)
    first = ask(engine, LEDGER)
    ledger = (*LEDGER, *first.ids, 50, 51, 52)
    second = ask(engine, ledger, kv=first.kv)
    assert (second.end.fed_tokens, second.end.reused_tokens) == (4, len(ledger) - 4)  # the pending id and three more
    assert second.end.is_reuse_reported
    progress = [event for event in second.events if isinstance(event, PrefillProgress)]
    assert [(event.fed_tokens, event.total_tokens) for event in progress] == [(0, 4), (4, 4)]


def test_what_is_not_reported_is_not_claimed(server: ScriptedServer, connect: Connect) -> None:
    engine = connect(server)
    server.reports_reuse = False
    end = ask(engine, LEDGER).end
    assert not end.is_reuse_reported
    assert (end.fed_tokens, end.reused_tokens) == (0, 0)


def test_a_claim_beyond_the_prompt_is_not_repeated(server: ScriptedServer, connect: Connect) -> None:
    engine = connect(server)
    server.read = lambda ledger, salt="": len(ledger) + 7  # type: ignore[method-assign]
    assert not ask(engine, LEDGER).end.is_reuse_reported


@pytest.mark.parametrize("stop", ["day", "ay,", "od day", "\n", " é"])
def test_a_stop_string_cuts_text_and_ids_alike(server: ScriptedServer, connect: Connect, stop: str) -> None:
    engine = connect(server)
    whole = "Good day,\n é end"
    server.answer = lambda ledger: [*server.ids(whole), server.end_id]
    asked = ask(engine, LEDGER, replace(GREEDY, stop_strings=(stop,)))
    assert asked.text == whole[: whole.index(stop)]
    assert asked.end.reason is FinishReason.STOP_STRING
    kept = asked.ids[: len(asked.ids) - asked.end.cut_tokens] + list(asked.end.part_ids)
    assert server.text(kept) == asked.text


def test_asked_stop_tokens_are_cut_and_own_ones_kept(server: ScriptedServer, connect: Connect) -> None:
    engine = connect(server)
    server.answer = lambda ledger: [60, 61, 62, 63, server.end_id]
    asked = ask(engine, LEDGER, replace(GREEDY, stop_token_ids=(62,)))
    assert (asked.ids, asked.end.cut_tokens, asked.end.reason) == ([60, 61, 62], 1, FinishReason.STOP_STRING)


def test_a_stop_token_that_only_the_server_knows_is_cut(server: ScriptedServer, connect: Connect) -> None:
    """The next turn closes the answer as the chat template does."""
    engine = connect(server, texts=replace(tiny_texts(), stop_token_ids=frozenset({61})))
    server.answer = lambda ledger: [50, server.end_id]
    asked = ask(engine, LEDGER)
    assert (asked.ids, asked.end.cut_tokens) == ([50, server.end_id], 1)
    assert asked.end.reason is FinishReason.STOP_STRING


@pytest.mark.parametrize(("limit", "reason"), [(5, FinishReason.LENGTH), (64, FinishReason.CONTEXT)])
def test_limits_of_answers(start: Start, connect: Connect, limit: int, reason: FinishReason) -> None:
    server = start(context_tokens=len(LEDGER) + 8)
    server.answer = lambda ledger: [50] * 100
    asked = ask(connect(server), LEDGER, replace(GREEDY, max_new_tokens=limit))
    assert asked.end.reason is reason
    assert len(asked.ids) == min(limit, 8)


def test_an_answer_that_the_server_cuts_short_is_not_complete(server: ScriptedServer, connect: Connect) -> None:
    engine = connect(server)
    server.answer = lambda ledger: [50] * 3
    end = ask(engine, LEDGER).end
    assert end.reason is FinishReason.LOST
    assert end.error is not None
    assert "after 3 tokens" in end.error


def test_every_setting_is_sent(server: ScriptedServer, connect: Connect) -> None:
    sampling = SamplingParams(
        temperature=0.3,
        top_p=0.8,
        top_k=7,
        min_p=0.1,
        repetition_penalty=1.2,
        max_new_tokens=9,
        seed=2**40 + 5,
        logit_bias=((60, -2.5),),
        ignore_eos=True,
    )
    ask(connect(server), LEDGER, sampling)
    body = server.asked[-1]
    sent = {name: body[name] for name in ("temperature", "top_p", "top_k", "min_p", "repeat_penalty", "n_predict")}
    assert sent == {
        "temperature": 0.3,
        "top_p": 0.8,
        "top_k": 7,
        "min_p": 0.1,
        "repeat_penalty": 1.2,
        "n_predict": 9,
    }
    assert body["samplers"] == ["penalties", "temperature", "top_k", "top_p", "min_p"]
    assert body["repeat_last_n"] == 2048, "the whole context"
    assert body["seed"] == (2**40 + 5) % (2**32 - 1)
    assert body["logit_bias"] == [[60, -2.5]]
    assert body["ignore_eos"] is True


def test_log_probabilities_are_the_servers(server: ScriptedServer, connect: Connect) -> None:
    engine = connect(server)
    for wanted in (0, 2):
        asked = ask(engine, LEDGER, replace(GREEDY, top_logprobs=wanted))
        told = [event.logprobs for event in asked.events if isinstance(event, TokenDelta)]
        assert told[-1] is None, "not of the token that ends the answer"
        assert all(one is not None and one.chosen.logprob == -0.5 and len(one.top) == wanted for one in told[:-1])
        assert told[0] is not None
        assert told[0].chosen.text == server.text([asked.ids[0]])


@pytest.mark.parametrize(
    ("setting", "word"),
    [
        ({"presence_penalty": 0.5}, "presence"),
        ({"frequency_penalty": -0.5}, "frequency"),
        ({"min_new_tokens": 3}, "least"),
        ({"grammar": Grammar("regex", "a+")}, "format"),
        ({"penalty_window": 64, "repetition_penalty": 1.1}, "repeat_last_n"),
    ],
)
def test_what_the_server_lacks_is_named(
    server: ScriptedServer, connect: Connect, setting: dict[str, object], word: str
) -> None:
    engine = connect(server)
    assert word in engine.sampling_refusal(replace(GREEDY, **setting))  # type: ignore[arg-type]
    assert engine.sampling_refusal(GREEDY) == ""
    assert engine.sampling_refusal(replace(GREEDY, penalty_window=64)) == "", "there is no penalty"
    assert engine.grammar_refusal(Grammar("regex", "a+"))


def test_aborting_closes_the_stream(server: ScriptedServer, connect: Connect) -> None:
    engine = connect(server)
    server.answer, server.token_delay_s = lambda ledger: [50] * 60, 0.02
    asked = Asked(engine, LEDGER, GREEDY)
    asked.until_token(2)
    asked.generation.abort()
    assert asked.end.reason is FinishReason.ABORTED
    assert asked.end.sampled_tokens == len(asked.ids) < 60
    until(lambda: server.given_up == 1)


def test_the_question_who_is_there_holds_no_request_up(server: ScriptedServer, connect: Connect) -> None:
    """But the answer waits for it."""
    engine = connect(server)
    before, server.question_delay_s = len(server.asked), 0.3
    started = time.monotonic()
    asked = Asked(engine, LEDGER, GREEDY)
    until(lambda: len(server.asked) > before)
    assert time.monotonic() - started < 0.3
    asked.until_token()
    assert time.monotonic() - started > 0.3


def test_aborting_while_the_server_is_asked_who_it_is(server: ScriptedServer, connect: Connect) -> None:
    engine = connect(server)
    server.question_delay_s = 5.0
    asked = Asked(engine, LEDGER, GREEDY)
    pause(0.05)
    asked.generation.abort()
    started = time.monotonic()
    assert asked.end.reason is FinishReason.ABORTED
    assert time.monotonic() - started < 2.0


def test_aborting_before_the_first_step(server: ScriptedServer, connect: Connect) -> None:
    engine = connect(server)
    for _ in range(20):
        asked = Asked(engine, LEDGER, GREEDY)
        asked.generation.abort()
        assert asked.end.reason in (FinishReason.ABORTED, FinishReason.STOP)


def test_closing_ends_every_answer(server: ScriptedServer, connect: Connect) -> None:
    engine = connect(server)
    server.answer, server.token_delay_s = lambda ledger: [50] * 60, 0.05
    running = [Asked(engine, LEDGER, GREEDY) for _ in range(3)]
    for asked in running:
        asked.until_token()
    engine.close()
    engine.close()
    assert {asked.end.reason for asked in running} == {FinishReason.ABORTED}
    assert ask(engine, LEDGER).end.reason is FinishReason.FAILED


def test_a_failing_listener_ends_no_other_answer(server: ScriptedServer, connect: Connect) -> None:
    engine = connect(server)

    def fail(event: object) -> None:
        raise RuntimeError

    from model_runtime.interface.protocol import GenerationRequest

    engine.submit(GenerationRequest(LEDGER, engine.new_kv(), GREEDY), fail)
    assert ask(engine, LEDGER).end.reason is FinishReason.STOP


def test_no_rows_are_kept_here(server: ScriptedServer, connect: Connect) -> None:
    engine = connect(server)
    info, kv = engine.info, engine.new_kv()
    assert not info.keeps_kv
    assert (info.kv_bytes_per_token, engine.kv_bytes(1000), engine.segment_bytes(1000)) == (0, 0, 0)
    assert engine.copy_beginning(kv, kv, LEDGER, 1) == (0, 0)
    assert engine.verify(kv, LEDGER, [kv], lambda: False) is None
    with pytest.raises(SegmentNotSaved):
        engine.save(None, None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="to itself"):
        engine.stage(kv, None)  # type: ignore[arg-type]
    ends: list[object] = []
    engine.read(ReadRequest(LEDGER, kv), ends.append)
    assert isinstance(ends[0], Finished)
    assert len(server.asked) == 1, "only the one at the start"


def test_the_speed_of_reading_is_learnt(server: ScriptedServer, connect: Connect) -> None:
    engine = connect(server)
    assert engine.estimate_read_s(0, 100) == 0.0
    server.first_delay_s = 0.05
    ask(engine, LEDGER)
    assert 0.04 < engine.estimate_read_s(0, 30) < 1.0


def test_a_connection_that_was_kept_too_long_is_no_trouble(server: ScriptedServer, connect: Connect) -> None:
    """Servers close idle connections, and the next request may be on its way just then."""
    engine = connect(server)
    server.keeps_s = 0.3
    for _ in range(3):
        pause(0.4)
        assert ask(engine, LEDGER).end.reason is FinishReason.STOP
    assert [(one.trouble, one.failures) for one in engine.pulse().servers] == [("", 0)]
