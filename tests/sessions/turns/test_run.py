"""The small promises between threads that only show when the timing is bad; here the timing is made."""

from __future__ import annotations

import pytest

from model_runtime.interface.events import Finished, FinishReason, TokenDelta, TokenLogprob, TokenLogprobs
from model_runtime.interface.sampling_params import SamplingParams
from sessions.errors import ConversationBusy
from sessions.ledger.ledger import Turn
from sessions.store.records import NodeIds
from sessions.turns.run import Run, RunPlan, RunTable
from sessions.types import MessageView
from tests.sessions.session_harness import ADA, SessionHarness, finish


class Generation:
    aborted = False

    def abort(self) -> None:
        self.aborted = True


def make_run(message_id: int = 1) -> Run:
    turn = Turn((1, 2), NodeIds(0, (1, 2)), NodeIds(2, ()), 2)
    return Run(RunPlan("c", ADA, message_id, turn, SamplingParams(), "", change=""), promised_bytes=0)


def test_a_stop_between_the_grant_and_the_submit_is_not_lost() -> None:
    run, generation = make_run(), Generation()
    run.ask_to_stop()
    run.started(generation)
    assert generation.aborted


def test_a_stop_while_the_engine_is_at_it() -> None:
    run, generation = make_run(), Generation()
    run.started(generation)
    assert not generation.aborted
    run.ask_to_stop()
    assert generation.aborted


def told(token: str) -> TokenLogprobs:
    return TokenLogprobs(TokenLogprob(token, -0.5), ())


@pytest.mark.parametrize("cut_tokens", [0, 2])
def test_log_probabilities_are_those_of_the_shown_tokens(cut_tokens: int) -> None:
    """A stream sends them with the text; those of a stop string never."""
    run, shown = make_run(), []
    for token_id, (token, text) in enumerate([("Yes", "Yes"), (".", "."), ("\n", ""), ("Question", "")]):
        run.sample(TokenDelta(token_id, text, told(token)))
        shown.append([one.chosen.text for one in run.logprobs])
    assert shown == [["Yes"], ["Yes", "."], ["Yes", "."], ["Yes", "."]]
    tail = "" if cut_tokens else "\nQuestion"
    reason = FinishReason.STOP_STRING if cut_tokens else FinishReason.LENGTH
    event = Finished(reason, 2, 0, 4, 0.1, 0.1, 0.1, text_tail=tail, cut_tokens=cut_tokens)
    assert run.complete(event) == "Yes." + tail
    assert "".join(one.chosen.text for one in run.logprobs) == "Yes." + tail
    assert run.sampled == [0, 1, 2, 3][: 4 - cut_tokens]


def test_the_part_of_a_token_takes_the_place_of_a_stop_string() -> None:
    run = make_run()
    for token_id, text in [(7, "Yes"), (8, "."), (9, "")]:
        run.sample(TokenDelta(token_id, text))
    run.complete(Finished(FinishReason.STOP_STRING, 2, 0, 3, 0.1, 0.1, 0.1, cut_tokens=2, part_ids=(5, 6)))
    assert run.node_ids == [7, 5, 6]


def test_after_done_the_next_message_may_be_sent_at_once(
    harness: SessionHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When DONE is told, the conversation is free and its KV is idle."""
    seen: list[tuple[bool, int]] = []
    tell = Run.finish

    def looking(run: Run, message: MessageView) -> None:
        holding = harness.manager.memory.held.holdings()[run.conversation_id]
        seen.append((harness.manager.active_run(ADA, run.conversation_id) is None, holding.reserved_bytes))
        tell(run, message)

    monkeypatch.setattr(Run, "finish", looking)
    harness.say(harness.conversation(), "Hello")
    assert seen == [(True, 0)]


def test_a_conversation_is_claimed_by_one() -> None:
    table = RunTable(keep_s=60)
    with table.claim("c"):
        with pytest.raises(ConversationBusy), table.claim("c"):
            pytest.fail("two claims")
        with table.claim("d"):
            assert table.is_claimed("d")
    with table.claim("c"):
        table.add(make_run())
    with pytest.raises(ConversationBusy), table.claim("c", timeout_s=0.01):
        pytest.fail("claimed beside a run")


def test_a_later_run_is_not_retired_with_an_earlier_one() -> None:
    table, first, second = RunTable(keep_s=60), make_run(1), make_run(2)
    table.add(first)
    table.retire(first)
    table.add(second)
    table.retire(first)
    assert table.active("c") is second
    assert table.find("c", 1) is first
    assert table.find("d", 1) is None


def test_below_a_switched_message_what_was_used_last_is_shown(harness: SessionHarness) -> None:
    """Not simply what is newest: the first answer was chosen again before the question was edited."""
    c = harness.conversation()
    first = harness.say(c, "Hello")
    second = finish(harness.manager.regenerate(ADA, c))
    harness.manager.switch_sibling(ADA, c, second.message_id, -1)
    question = harness.manager.view(ADA, c).messages[0].message_id
    finish(harness.manager.edit(ADA, c, question, "Other"))
    harness.manager.switch_sibling(ADA, c, question, 0)
    assert harness.manager.view(ADA, c).messages[-1].message_id == first.message_id
