"""Titles from the model: found on a throw-away fork while no run waits, at the cost of the question alone, and never
replacing a person's title."""

from __future__ import annotations

import pytest

from model_runtime.interface.events import FinishReason
from sessions.background.titles import TITLE_QUESTION, usable_title
from tests.sessions.byte_template import END, USER
from tests.sessions.conftest import MakeHarness
from tests.sessions.scripted_answers import checksum_answer
from tests.sessions.scripted_engine import ScriptedEngine
from tests.sessions.session_harness import ADA, SessionHarness, finish, until


def titled(title: str) -> ScriptedEngine:
    """Answers the question for a title with `title`, everything else with the checksum."""

    def answer(ledger: tuple[int, ...]) -> tuple[int, ...]:
        last_user = max(i for i, token in enumerate(ledger) if token == USER)
        asked = bytes(token for token in ledger[last_user + 1 :] if token < 256).decode()
        return (*title.encode(), END) if asked == TITLE_QUESTION else checksum_answer(ledger)

    return ScriptedEngine(answer=answer)


def title(harness: SessionHarness, conversation_id: str) -> str:
    return harness.manager.view(ADA, conversation_id).summary.title


def wait_until_idle(harness: SessionHarness) -> None:
    until(lambda: harness.manager.is_idle)


def test_the_model_names_the_conversation_after_its_first_answer(make_harness: MakeHarness) -> None:
    harness = make_harness(engine=titled("Boats at Dawn"), model_titles=True)
    c = harness.conversation()
    harness.say(c, "Tell me of boats")
    wait_until_idle(harness)
    assert title(harness, c) == "Boats at Dawn"
    [(reason, ledger, fed, reused)] = harness.engine.idle_counts
    assert reason is FinishReason.STOP
    assert fed == len(TITLE_QUESTION) + 4  # the pending id, and the question in its frame: the chat was not read again
    assert reused == len(ledger) - fed
    second = harness.say(c, "And of the sea?")
    assert harness.receipt(second).miss_reason is None
    assert second.text == harness.expected_text(c)  # the fork left nothing behind
    wait_until_idle(harness)
    assert len(harness.engine.idle_counts) == 1  # asked once


@pytest.mark.parametrize("thought", ["<think>\nboats\n", "<think>boats</think>", "[THINK]boats"])
def test_thoughts_are_no_title(make_harness: MakeHarness, thought: str) -> None:
    harness = make_harness(engine=titled(thought), model_titles=True)
    c = harness.conversation()
    harness.say(c, "Tell me of boats")
    wait_until_idle(harness)
    assert title(harness, c) == "Tell me of boats"


def test_an_unusable_title_leaves_the_first_words(make_harness: MakeHarness) -> None:
    harness = make_harness(engine=titled("Sure! Here is a title for you."), model_titles=True)
    c = harness.conversation()
    harness.say(c, "Tell me of boats")
    wait_until_idle(harness)
    assert title(harness, c) == "Tell me of boats"
    harness.say(c, "And of the sea?")
    wait_until_idle(harness)
    assert len(harness.engine.idle_counts) == 1


def test_a_title_from_a_person_stays(make_harness: MakeHarness) -> None:
    engine = titled("Boats at Dawn")
    engine.token_delay_s = 0.02
    harness = make_harness(engine=engine, model_titles=True)
    c = harness.conversation()
    run = harness.manager.send(ADA, c, "Tell me of boats")
    harness.manager.rename(ADA, c, "Mine")
    finish(run)
    wait_until_idle(harness)
    assert (title(harness, c), harness.engine.idle_counts) == ("Mine", [])
    assert not harness.store.take_model_title(c, "Late")
    assert title(harness, c) == "Mine"


def test_a_message_goes_before_the_title_which_is_found_later(make_harness: MakeHarness) -> None:
    engine = titled("Boats at Dawn")
    engine.token_delay_s = 0.02
    harness = make_harness(engine=engine, model_titles=True)
    c = harness.conversation()
    harness.say(c, "Tell me of boats")
    until(lambda: any(g.is_idle and g.sampled for g in engine.running))
    message = harness.say(c, "And of the sea?")
    assert message.text == harness.expected_text(c)
    assert engine.idle_counts[0][0] in (FinishReason.ABORTED, FinishReason.PREEMPTED)
    assert title(harness, c) == "Tell me of boats"
    engine.token_delay_s = 0.0
    wait_until_idle(harness)
    assert title(harness, c) == "Boats at Dawn"


def test_the_first_words_stay_when_it_is_switched_off(make_harness: MakeHarness) -> None:
    harness = make_harness(engine=titled("Boats at Dawn"), model_titles=False)
    c = harness.conversation()
    harness.say(c, "Tell me of boats")
    wait_until_idle(harness)
    assert (title(harness, c), harness.engine.idle_counts) == ("Tell me of boats", [])


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Boats at Dawn", "Boats at Dawn"),
        ('"Boats at Dawn."', "Boats at Dawn"),
        ("**Title: Boats at Dawn**", "Boats at Dawn"),
        ("\n\nTitle - Überfahrt nach Köln\nMore", "Überfahrt nach Köln"),
        ("船の朝", "船の朝"),
        ("- Parser bug (C++)", "Parser bug (C++"),
        ("", ""),
        ("...", ""),
        ("42 : 17", ""),
        ("I am sorry, I cannot do that", ""),
        ("Here's a title: Boats", ""),
        ("A conversation about boats and many other things at dawn", ""),
        ("Supercalifragilisticexpialidocious-incomprehensibilities", ""),
        ("What is the best time? Dawn", ""),
        ("<script>alert(1)</script>", ""),
        ("${alert(1)}", ""),
        ("Dr. Boat's Dawn. And more", ""),
    ],
)
def test_only_a_title_is_taken(answer: str, expected: str) -> None:
    said = "Boats at dawn, überfahrt, 船の朝, a parser, a letter to Dr. Boat, alert(1), supercalifragilistic"
    assert usable_title(answer, said) == expected


@pytest.mark.parametrize(
    ("answer", "said", "expected"),
    [
        ("The KV Cache: A New Era in Data Processing", "What is a KV cache?", "The KV Cache"),
        ("Inflation: A Double-Edged Sword", "What is inflation?", "Inflation: A Double-Edged Sword"),
        ("Why Boats Leave - a harbour story", "The boats leave early", "Why Boats Leave"),
        ("Re: Boats", "The boats leave early", "Re: Boats"),
        ("Reversing Strings", "A function that reverses a string", "Reversing Strings"),
        ("The River of Eternal Spring", "Name a colour. Green is one.", ""),
        ("A Conversation with You", "Have a conversation with me", ""),
        ("Awesome Conversation", "Translate 'good morning'", ""),
        ("朝の船について", "船の話をして", "朝の船について"),
        ("夏休みの計画", "船と海のことを話して", ""),
    ],
)
def test_a_title_is_about_what_was_said(answer: str, said: str, expected: str) -> None:
    assert usable_title(answer, said) == expected


def test_one_line_is_enough_from_a_model_that_continues(make_harness: MakeHarness) -> None:
    harness = make_harness(engine=titled("Boats at Dawn\nsystem and more of it"), model_titles=True)
    c = harness.conversation()
    harness.say(c, "Tell me of boats")
    wait_until_idle(harness)
    assert title(harness, c) == "Boats at Dawn"


def test_an_invented_title_leaves_the_first_words(make_harness: MakeHarness) -> None:
    harness = make_harness(engine=titled("The River of Spring"), model_titles=True)
    c = harness.conversation()
    harness.say(c, "Tell me of boats")
    wait_until_idle(harness)
    assert title(harness, c) == "Tell me of boats"
