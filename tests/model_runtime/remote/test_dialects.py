"""The same answers in every dialect: ids, reuse, settings, log-probabilities."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from model_runtime.interface.errors import ModelLoadError
from model_runtime.interface.events import FinishReason, TokenDelta
from model_runtime.interface.sampling_params import SamplingParams
from model_runtime.remote import generation
from tests.model_runtime.remote.conftest import Connect, Start
from tests.model_runtime.remote.remote_harness import GREEDY, ask, connected, texts_of, tiny_texts
from tests.model_runtime.remote.scripted_dialects import UNFINISHED, LlamaCppScript, SglangScript, VllmScript
from tests.model_runtime.remote.scripted_server import ScriptedServer
from tests.model_runtime.tiny_tokenizers import wrapped

LEDGER = tuple(range(40, 70))


def sglang(**settings: bool) -> SglangScript:
    script = SglangScript()
    for name, value in settings.items():
        setattr(script, name, value)
    return script


DIALECTS: dict[str, Callable[[], Any]] = {
    "llama.cpp": LlamaCppScript,
    "vLLM": VllmScript,
    "SGLang": SglangScript,
    "SGLang, incremental": lambda: sglang(is_incremental=True),
    "SGLang, ahead": lambda: sglang(runs_ahead=True),
}


@pytest.fixture(params=DIALECTS)
def spoken(request: pytest.FixtureRequest, start: Start) -> ScriptedServer:
    return start(DIALECTS[request.param]())


def test_three_turns(spoken: ScriptedServer, connect: Connect) -> None:
    engine = connect(spoken)
    ledger = LEDGER
    for turn in range(3):
        asked = ask(engine, ledger)
        answer = spoken.answer(ledger)
        end = asked.end
        assert (asked.ids, end.reason) == (answer, FinishReason.STOP)
        assert end.is_reuse_reported
        assert (end.reused_tokens > 0) == (turn > 0)
        assert end.fed_tokens + end.reused_tokens == len(ledger)
        if turn:
            assert end.fed_tokens <= 5
        ledger = (*ledger, *asked.ids, 50, 51, 52)


@pytest.mark.parametrize("ids", [[50], [50, 50, 50, 50], [50, 51, 50, 51, 50, 51]])
def test_repetitions_are_not_taken_for_what_was_there(spoken: ScriptedServer, connect: Connect, ids: list[int]) -> None:
    engine = connect(spoken)
    spoken.answer = lambda ledger: [*ids, spoken.end_id]
    found = ask(engine, LEDGER)
    assert found.ids[: len(ids)] == ids
    assert len(found.ids) <= len(ids) + 1
    limited = ask(engine, LEDGER, replace(GREEDY, max_new_tokens=len(ids)))
    assert (limited.ids, limited.end.reason) == (ids, FinishReason.LENGTH)


CHARACTERS = "Good  👩‍🚀🇨🇭 day, 日本語 is 𝔘𝔫𝔦, \n é ½ 🙂🙂."


def test_characters_of_several_tokens(spoken: ScriptedServer, connect: Connect) -> None:
    """llama.cpp's server sends no token that ends within a character."""
    ids = spoken.ids(CHARACTERS)
    assert len(ids) > len(CHARACTERS)
    spoken.answer = lambda ledger: [*ids, spoken.end_id]
    sampling = replace(GREEDY, max_new_tokens=200)
    for wanted in (None, 2):
        asked = ask(connect(spoken), LEDGER, replace(sampling, top_logprobs=wanted))
        assert (asked.ids, asked.text) == ([*ids, spoken.end_id], CHARACTERS)
        assert asked.end.reason is FinishReason.STOP
    asked = ask(connect(spoken), LEDGER, replace(sampling, stop_strings=("語",)))
    assert (asked.text, asked.end.reason) == (CHARACTERS.partition("語")[0], FinishReason.STOP_STRING)


@pytest.mark.parametrize("family", ["byte fallback", "unigram"])
def test_characters_of_several_tokens_in_other_vocabularies(start: Start, connect: Connect, family: str) -> None:
    server = start(tokenizer=wrapped(family))
    ids = server.ids(CHARACTERS)
    server.answer = lambda ledger: [*ids, server.end_id][max(0, len(ledger) - len(LEDGER)) :]
    asked = ask(connect(server, texts=tiny_texts(family)), LEDGER, replace(GREEDY, max_new_tokens=300))
    assert (asked.ids, asked.end.reason) == ([*ids, server.end_id], FinishReason.STOP)


@pytest.mark.parametrize("start_text", ["Go ", ""], ids=["in the middle", "first"])
def test_bytes_that_are_no_character(server: ScriptedServer, connect: Connect, start_text: str) -> None:
    """llama.cpp's server leaves ids out, and which ones the text does not say: they are asked for again, at once."""
    first, second = server.ids("👩")[:2]
    ids = [*server.ids(start_text), first, *server.ids(" on "), second, first, *server.ids("é."), first, server.end_id]
    engine = connect(server)
    server.answer = lambda ledger: ids[len(ledger) - len(LEDGER) :]
    asked = ask(engine, LEDGER)
    assert (asked.ids, asked.end.reason) == (ids, FinishReason.STOP)
    assert (asked.end.fed_tokens, asked.end.reused_tokens) == (len(LEDGER), 0)
    assert not all(body["stream"] for body in server.asked)
    for seed in (5, 2**32 - 3, 2**63 - 1):
        server.asked.clear()
        assert ask(engine, LEDGER, replace(GREEDY, seed=seed)).ids == ids
        assert len(server.asked) > 2
        for body in server.asked:
            assert body["seed"] == (seed + len(body["prompt"]) - len(LEDGER)) % 2**63 % (2**32 - 1)
    for limit in range(1, len(ids)):
        asked = ask(engine, LEDGER, replace(GREEDY, max_new_tokens=limit, top_logprobs=1))
        assert (asked.ids, asked.end.reason) == (ids[:limit], FinishReason.LENGTH), asked.end.error


def test_bytes_that_are_no_character_where_one_token_writes_their_sign(start: Start, connect: Connect) -> None:
    """U+FFFD in a text stands for any bytes: the vocabulary's own id for it is not what was sampled."""
    tokenizer = wrapped("byte-level")
    tokenizer.add_tokens([UNFINISHED])
    server = start(tokenizer=tokenizer)
    assert len(server.ids(UNFINISHED)) == 1
    first, second = server.ids("👩")[:2]
    ids = [*server.ids("Go "), first, *server.ids(" on "), second, *server.ids("."), server.end_id]
    server.answer = lambda ledger: ids[len(ledger) - len(LEDGER) :]
    asked = ask(connect(server, texts=texts_of(tokenizer, "with U+FFFD")), LEDGER)
    assert (asked.ids, asked.end.reason) == (ids, FinishReason.STOP)


@pytest.mark.parametrize("script", [{"loses": 3}, {"drafts": 4}], ids=str)
def test_ids_that_do_not_come_when_they_are_counted(start: Start, connect: Connect, script: dict[str, int]) -> None:
    """Lost for good, or counted up to three too early: nothing is missing, and the prompt is not sent for each."""
    dialect = LlamaCppScript()
    for name, value in script.items():
        setattr(dialect, name, value)
    server = start(dialect)
    engine, ids = connect(server), [*range(60, 120), *range(60, 120), server.end_id]
    server.answer = lambda ledger: ids[len(ledger) - len(LEDGER) :]
    for limit in (2, 3, 4, 5, 100, 200):
        server.asked.clear()
        asked = ask(engine, LEDGER, replace(GREEDY, max_new_tokens=limit))
        assert asked.ids == ids[:limit], asked.end.error
        assert asked.end.reason is (FinishReason.LENGTH if limit < len(ids) else FinishReason.STOP)
        assert len(server.asked) <= 15


def test_a_limit_within_a_character(spoken: ScriptedServer, connect: Connect) -> None:
    engine, ids = connect(spoken), spoken.ids("Go 👩‍🚀")
    spoken.answer = lambda ledger: [*ids, spoken.end_id][len(ledger) - len(LEDGER) :]
    for limit in range(1, len(ids) + 1):
        asked = ask(engine, LEDGER, replace(GREEDY, max_new_tokens=limit))
        assert (asked.ids, asked.end.reason) == (ids[:limit], FinishReason.LENGTH), asked.end.error


def test_a_full_context(spoken: ScriptedServer, connect: Connect) -> None:
    """Every prompt of fewer tokens than the context is taken, and its answer may fill the context."""
    spoken.answer = lambda ledger: [50] * 64
    engine = connect(spoken)
    limit = engine.info.context_limit_tokens
    assert limit > spoken.context_tokens - 10
    for room in (1, 2, 7):
        end = ask(engine, (60,) * (limit - room)).end
        assert (end.reason, end.sampled_tokens) == (FinishReason.CONTEXT, room), end.error


def test_log_probabilities(spoken: ScriptedServer, connect: Connect) -> None:
    engine = connect(spoken)
    spoken.answer = lambda ledger: [50, 51, spoken.end_id]
    for wanted in (0, 2):
        asked = ask(engine, LEDGER, replace(GREEDY, top_logprobs=wanted))
        told = [event.logprobs for event in asked.events if isinstance(event, TokenDelta)][:2]
        assert [(one.chosen.logprob, len(one.top)) for one in told if one is not None] == [(-0.5, wanted)] * 2


def test_what_is_not_reported_is_not_claimed(spoken: ScriptedServer, connect: Connect) -> None:
    engine = connect(spoken)
    spoken.reports_reuse = False
    assert not ask(engine, LEDGER).end.is_reuse_reported


def test_a_stop_string(spoken: ScriptedServer, connect: Connect) -> None:
    engine = connect(spoken)
    spoken.answer = lambda ledger: [*spoken.ids("one two three"), spoken.end_id]
    asked = ask(engine, LEDGER, replace(GREEDY, stop_strings=("two",)))
    assert (asked.text, asked.end.reason) == ("one ", FinishReason.STOP_STRING)


SAMPLING = SamplingParams(
    temperature=0.3, top_p=0.8, top_k=0, min_p=0.1, max_new_tokens=9, seed=2**40, logit_bias=((60, -2.5),),
    presence_penalty=0.5, frequency_penalty=0.25, min_new_tokens=3, stop_token_ids=(77,),
)  # fmt: skip


def test_a_full_queue_that_sglang_reports_in_an_event(
    start: Start, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The response has begun with 200 by then. It is another server's turn, and no fault of this one's."""
    monkeypatch.setattr(generation, "BUSY_PATIENCE_S", 2.0)
    script = sglang()
    server = start(script)
    engine = connect(server)
    script.queue_is_full = True
    end = ask(engine, LEDGER).end
    assert end.reason is FinishReason.FAILED
    assert 'has no room now: "The request queue is full."' in str(end.error)
    assert len(server.asked) > 2, "asked again while there was patience"
    assert engine.pulse().servers[0].trouble == ""


def test_settings_as_vllm_takes_them(start: Start, connect: Connect) -> None:
    server = start(VllmScript())
    engine, sampling = connect(server), replace(SAMPLING, repetition_penalty=1.2)
    assert engine.sampling_refusal(sampling) == ""
    ask(engine, LEDGER, sampling)
    sent = server.asked[-1]
    own = sorted({*tiny_texts().stop_token_ids, 77})
    assert sent["prompt"] == list(LEDGER)
    assert sent["model"] == server.model
    assert {name: sent[name] for name in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")} == {
        "temperature": 0.3, "top_p": 0.8, "top_k": 0, "min_p": 0.1, "repetition_penalty": 1.2,
    }  # fmt: skip
    assert (sent["presence_penalty"], sent["frequency_penalty"], sent["seed"]) == (0.5, 0.25, 2**40)
    assert (sent["min_tokens"], sent["stop_token_ids"], sent["logit_bias"]) == (3, own, {"60": -2.5})
    ask(engine, LEDGER, replace(GREEDY, ignore_eos=True, max_new_tokens=7))
    assert (server.asked[-1]["min_tokens"], server.asked[-1]["stop_token_ids"]) == (
        7,
        own[:1] if own[0] != 77 else own[1:],
    )


def test_settings_as_sglang_takes_them(start: Start, connect: Connect) -> None:
    server = start(SglangScript())
    engine = connect(server)
    assert engine.sampling_refusal(SAMPLING) == ""
    ask(engine, LEDGER, SAMPLING)
    assert server.asked[-1]["input_ids"] == list(LEDGER)
    sent = server.asked[-1]["sampling_params"]
    assert (sent["temperature"], sent["top_p"], sent["top_k"], sent["min_p"]) == (0.3, 0.8, -1, 0.1)
    assert (sent["presence_penalty"], sent["frequency_penalty"], sent["sampling_seed"]) == (0.5, 0.25, 2**40)
    assert (sent["min_new_tokens"], sent["logit_bias"], sent["max_new_tokens"]) == (3, {"60": -2.5}, 9)
    assert "whole conversation" in engine.sampling_refusal(replace(GREEDY, repetition_penalty=1.1))
    told = replace(GREEDY, top_logprobs=2)
    for changed in (
        {"temperature": 0.7},
        {"presence_penalty": 0.5},
        {"logit_bias": ((60, 1.0),)},
        {"ignore_eos": True},
    ):
        assert "log-probabilities" in engine.sampling_refusal(replace(told, **changed))  # type: ignore[arg-type]
    assert engine.sampling_refusal(told) == engine.sampling_refusal(replace(told, temperature=1.0, top_k=5)) == ""
    other = connect(start(sglang(is_deterministic=False)))
    assert "--enable-deterministic-inference" in other.sampling_refusal(replace(GREEDY, seed=1))
    assert other.sampling_refusal(GREEDY) == ""


def test_an_sglang_without_a_tokenizer(start: Start, connect: Connect) -> None:
    engine = connect(start(sglang(has_tokenizer=False)))
    assert any("does not say which text" in note for note in engine.info.notes)
    assert ask(engine, LEDGER).end.reason is FinishReason.STOP
    for lacking, named in (
        (replace(GREEDY, min_new_tokens=3), "min_tokens"),
        (replace(GREEDY, ignore_eos=True), "ignore_eos"),
        (replace(GREEDY, min_new_tokens=3, ignore_eos=True), "min_tokens and ignore_eos"),
    ):
        refusal = engine.sampling_refusal(lacking)
        assert "--skip-tokenizer-init" in refusal
        assert refusal.endswith(f": leave {named} out.")
    assert engine.sampling_refusal(GREEDY) == ""


def test_models_are_named_to_a_server_with_several(start: Start, connect: Connect) -> None:
    class Several(VllmScript):
        def get(self, server: ScriptedServer, path: str) -> dict[str, Any] | None:
            found = super().get(server, path)
            if found is not None:
                found["data"].insert(0, {"id": "adapter", "root": "adapter", "max_model_len": 64})
            return found

    server = start(Several())
    for model in ("embedded", "Other-1B"):
        with pytest.raises(ModelLoadError, match="serves adapter, Scripted-1B"):
            connected(server, texts=tiny_texts(), model=model)
    assert connect(server, model="Scripted-1B").info.context_limit_tokens == 2048
    assert connect(server, model="adapter").info.context_limit_tokens == 64


def test_an_engine_without_details_says_so(start: Start, connect: Connect) -> None:
    dialect = VllmScript()
    dialect.reports_details = False
    engine = connect(start(dialect))
    assert any("--enable-prompt-tokens-details" in note for note in engine.info.notes)


@pytest.mark.parametrize("dialect", [VllmScript, SglangScript])
def test_a_server_that_returns_no_ids_is_refused(start: Start, dialect: Callable[[], Any]) -> None:
    script = dialect()
    script.returns_ids = False
    with pytest.raises(ModelLoadError, match="token ids are sent and returned"):
        connected(start(script), texts=tiny_texts())


def spoiled(dialect: Callable[[], Any], **settings: Any) -> Callable[[], Any]:
    def new() -> Any:
        script = dialect()
        for name, value in settings.items():
            setattr(script, name, value)
        return script

    return new


@pytest.mark.parametrize(
    ("dialect", "says", "kept"),
    [
        (spoiled(LlamaCppScript, repeats=3), "sent ids twice", 3),
        (spoiled(LlamaCppScript, cuts_tokens=2), "it read 28 tokens where 30 were sent", 0),
        (spoiled(VllmScript, repeats=3), "some are missing, or came twice", 3),
        (spoiled(SglangScript, has_no_numbers=True), "NaN happened", 5),
    ],
)
def test_an_answer_that_did_not_arrive_as_it_was_written(
    start: Start, connect: Connect, dialect: Callable[[], Any], says: str, kept: int
) -> None:
    script = dialect()
    server = start(type(script)())
    server.answer = lambda ledger: [50, 51, 52, 53, 54, server.end_id]
    engine = connect(server)
    server.dialect = script
    end = ask(engine, LEDGER).end
    assert says in str(end.error)
    assert end.sampled_tokens == kept
    assert end.reason is (FinishReason.LOST if kept else FinishReason.FAILED)


def test_lost_ids_are_noticed(start: Start, connect: Connect) -> None:
    """An event that never arrived would leave a hole in the ledger."""

    class Lossy(SglangScript):
        is_incremental = True

        def _events(self, server: ScriptedServer, body: Any) -> Any:
            for number, event in enumerate(super()._events(server, body)):
                if number != 2:
                    yield event

    end = ask(connect(start(Lossy())), LEDGER).end
    assert end.reason is FinishReason.LOST
    assert end.error is not None
    assert "the ids of some are missing" in end.error


@pytest.mark.parametrize("name", ["vLLM", "SGLang"])
def test_nothing_is_reused_between_owners(start: Start, connect: Connect, name: str) -> None:
    server = start(DIALECTS[name]())
    engine = connect(server)
    for owner in ("ada", "bob"):
        assert ask(engine, LEDGER, fairness_key=owner).end.reused_tokens == 0
        assert ask(engine, LEDGER, fairness_key=owner).end.reused_tokens > 0
    assert len(server.salted) == 2
    assert not any(owner in salt for owner in ("ada", "bob") for salt in server.salted)


def test_an_engine_that_cannot_keep_owners_apart_says_so(server: ScriptedServer, connect: Connect) -> None:
    assert any("one cache for all users" in note for note in connect(server).info.notes)


def test_a_redirect_is_not_followed(start: Start, connect: Connect) -> None:
    """The key and the messages go where they were meant to go."""
    server, other = start(), start()
    engine = connect(server, key="s3cret")
    server.refuse = [(307, {"location": f"{other.address}/completion"}, b"")] * 10
    end = ask(engine, LEDGER).end
    assert end.reason is FinishReason.FAILED
    assert end.error is not None
    assert "HTTP 307" in end.error
    assert other.asked == []
