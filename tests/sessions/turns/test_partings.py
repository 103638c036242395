"""Where a client's history parts from the one that is kept: which token, section and words, and what it cost."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import pytest

from model_runtime.interface.chat import ChatMessage
from model_runtime.interface.errors import TemplateRefused
from model_runtime.interface.sampling_params import SamplingParams
from sessions.ledger.ledger import common_prefix
from sessions.turns.planned_turn import ChatRequest
from sessions.turns.raw_turns import RawRequest
from sessions.turns.run import Run
from sessions.types import ConversationSettings, MissReason, Parting, Receipt, Section
from tests.sessions.conftest import MakeHarness
from tests.sessions.scripted_engine import ByteTemplate
from tests.sessions.session_harness import ADA, SessionHarness, finish

GREEDY = SamplingParams(temperature=0, max_new_tokens=100)
RULES = "Answer briefly, name your sources, and never mention the weather. " * 6


def system(text: str) -> ChatMessage:
    return ChatMessage("system", text)


def user(text: str) -> ChatMessage:
    return ChatMessage("user", text)


def tool(name: str, about: str) -> str:
    return json.dumps({"type": "function", "function": {"name": name, "description": about, "parameters": {}}})


def ask(harness: SessionHarness, *messages: ChatMessage, tools: tuple[str, ...] = (), owner: str = ADA) -> Run:
    run = harness.manager.completions.begin(owner, ChatRequest(messages, GREEDY, tools))
    finish(run)
    return run


def chat(harness: SessionHarness, *head: ChatMessage, turns: int = 3, tools: tuple[str, ...] = ()) -> list[ChatMessage]:
    """The history of a conversation of a few turns, with the last answer."""
    said = [*head]
    for number in range(turns):
        said.append(user(f"Question {number}, and what do you say to that?"))
        said.append(ChatMessage("assistant", finish(ask(harness, *said, tools=tools)).text))
    return said


def receipt_of(harness: SessionHarness, run: Run) -> Receipt:
    message = finish(run)
    assert message.text == harness.expected_text(run.conversation_id, run.plan.owner_id)
    return harness.receipt(message)


def parted(harness: SessionHarness, run: Run) -> Parting:
    receipt = receipt_of(harness, run)
    assert receipt.miss_reason is MissReason.HISTORY_CHANGED
    assert receipt.parting is not None
    assert receipt.parting.again_tokens == receipt.fed_tokens - receipt.delta_tokens
    assert f"differs from the one that is kept at {receipt.parting.place}, so " in receipt.miss_detail
    return receipt.parting


def test_a_date_at_the_start_of_the_system_prompt(harness: SessionHarness) -> None:
    said = chat(harness, system(f"Today is 2026-11-28. {RULES}"))
    dated = system(f"Today is 2026-11-29. {RULES}")
    run = ask(harness, dated, *said[1:], user("And now?"))
    found = parted(harness, run)
    place = 1 + len("Today is 2026-11-2")
    assert (found.token, found.of_tokens, found.section) == (place, len(run.plan.turn.ledger), Section.SYSTEM)
    assert (found.before, found.after, found.is_date) == ("2026-11-28", "2026-11-29", True)
    assert found.place.endswith("in the system text: `2026-11-28` / `2026-11-29`, a date")
    fresh = len("9") + len("And now?") + 4  # the date's last digit, and the marks of the new question
    assert abs(receipt_of(harness, run).delta_tokens - place - fresh) <= 4  # so short a beginning is not copied


def test_a_date_in_a_new_conversation(harness: SessionHarness) -> None:
    """Nothing is resent, but the rules would have been copied."""
    ask(harness, system(f"Today is 2026-11-28. {RULES}"), user("What is a pump?"))
    run = ask(harness, system(f"Today is 2026-11-29. {RULES}"), user("Who was Ada Lovelace?"))
    receipt = receipt_of(harness, run)
    found = receipt.parting
    assert found is not None
    assert found.is_date
    assert (receipt.miss_reason, receipt.delta_tokens) == (None, receipt.fed_tokens)  # a new one has nothing to miss
    assert 0 <= found.again_tokens - len(f". {RULES}".strip()) <= 10  # with marks that every prompt has


def test_a_tools_definition(make_harness: MakeHarness) -> None:
    harness = make_harness(template=ByteTemplate(takes_tools=True))
    weather, clock = tool("weather", "The weather in Rome and elsewhere."), tool("clock", "What time it is.")
    said = chat(harness, tools=(clock, weather))
    other = tool("weather", "The weather in Paris and elsewhere.")
    found = parted(harness, ask(harness, *said, user("And now?"), tools=(clock, other)))
    assert (found.section, found.name, found.before, found.after) == (Section.TOOLS, "weather", "Rome", "Paris")
    assert "in the definition of the tool `weather`: `Rome` / `Paris`" in found.place


@pytest.mark.parametrize(("change", "before", "after"), [("left out", "clock", ""), ("added", "", "map")])
def test_other_tools(make_harness: MakeHarness, change: str, before: str, after: str) -> None:
    harness = make_harness(template=ByteTemplate(takes_tools=True))
    tools = (tool("weather", "The weather."), tool("clock", "The time."))
    said = chat(harness, tools=tools)
    others = tools[:1] if change == "left out" else (*tools, tool("map", "A map."))
    found = parted(harness, ask(harness, *said, user("And now?"), tools=others))
    assert (found.section, found.name, found.before, found.after) == (Section.TOOLS, "", before, after)


def test_a_message_in_the_middle(harness: SessionHarness) -> None:
    said = chat(harness, system("Be brief."), turns=4)
    said[3] = user("Question one, and what do you say to that?")
    run = ask(harness, *said, user("And now?"))
    found = parted(harness, run)
    assert (found.section, found.number, found.role) == (Section.MESSAGE, 3, "user")
    assert (found.before, found.after) == ("1", "one")
    assert "in message 3 (user): `1` / `one`" in found.place


def test_messages_that_were_left_out(harness: SessionHarness) -> None:
    """A client that keeps a window of the newest messages."""
    said = chat(harness, system(RULES), turns=4)
    found = parted(harness, ask(harness, said[0], *said[3:], user("And now?")))
    assert (found.section, found.number) == (Section.MESSAGE, 1)
    assert found.again_tokens >= sum(len(m.text) for m in said[4:])


def test_what_differs_for_good_is_no_miss(harness: SessionHarness) -> None:
    """Other questions under the same system prompt, a side question, another branch's end."""
    said = chat(harness, system(RULES))
    for messages in (
        (system(RULES), user("Something else entirely?")),
        (*said[:3], user("Make a title of three words.")),
        (user("No system prompt at all?"),),
    ):
        receipt = receipt_of(harness, ask(harness, *messages))
        assert (receipt.miss_reason, receipt.parting) == (None, None)


def test_no_other_owners_history_is_compared_or_quoted(harness: SessionHarness) -> None:
    ask(harness, system(f"Today is 2026-11-28. {RULES}"), user("What is a pump?"))
    run = ask(harness, system(f"Today is 2026-11-29. {RULES}"), user("What is a pump?"), owner="eve")
    receipt = receipt_of(harness, run)
    assert (receipt.miss_reason, receipt.parting) == (None, None)


@pytest.mark.parametrize("is_raw", [False, True])
def test_the_words_of_a_deleted_conversation_are_told_no_more(harness: SessionHarness, is_raw: bool) -> None:
    days = [f"Log of 2026-11-{day}. {RULES}" for day in (28, 29)]
    if is_raw:
        runs = [harness.manager.raw_completions.begin(ADA, RawRequest(day, GREEDY)) for day in days[:1]]
        finish(runs[0])
        runs.append(harness.manager.raw_completions.begin(ADA, RawRequest(days[1], GREEDY)))
    else:
        said = chat(harness, system(days[0]), turns=2)
        runs = [ask(harness, *said, user("And now?")), ask(harness, system(days[1]), *said[1:], user("And now?"))]
        assert "2026-11-28" in receipt_of(harness, runs[1]).miss_detail
    message, c = finish(runs[1]), runs[1].conversation_id
    found = harness.receipt(message).parting
    assert found is not None
    assert (found.before, found.kept_id, found.is_kept_gone) == ("2026-11-28", runs[0].conversation_id, False)
    harness.manager.delete(ADA, found.kept_id)
    receipt = harness.manager.view(ADA, c).messages[-1].receipt
    assert receipt is not None
    assert receipt.parting is not None
    assert "2026-11-28" not in f"{receipt} {receipt.parting.place}"
    assert receipt.parting.place == found.place.replace(": `2026-11-28` / `2026-11-29`", "")
    assert receipt.parting.after == "2026-11-29"
    assert (receipt.miss_reason is None) or receipt.parting.place in receipt.miss_detail


def test_what_is_copied_from_elsewhere_is_no_miss(harness: SessionHarness) -> None:
    """The nearest conversation has another date, but a third one has this one."""
    monday, tuesday = system(f"It is Monday. {RULES}"), system(f"It is Tuesday. {RULES}")
    for first in (monday, tuesday):
        ask(harness, first, user("What is a pump?"))
    receipt = receipt_of(harness, ask(harness, monday, user("Who was Ada?")))
    assert (receipt.miss_reason, receipt.parting) == (None, None)
    assert receipt.shared_tokens > len(RULES)


def test_a_prompt_without_a_chat(harness: SessionHarness) -> None:
    for day, owner in (("28", ADA), ("29", "eve"), ("29", ADA)):
        request = RawRequest(f"Log of 2026-11-{day}. {RULES}", GREEDY)
        message = finish(harness.manager.raw_completions.begin(owner, request))
        found = harness.receipt(message).parting
        assert (found is not None) is ((day, owner) == ("29", ADA))
    assert found is not None
    assert found.place == f"token 17 of {len(request.prompt)}, in the prompt: `2026-11-28` / `2026-11-29`, a date"
    assert 0 <= len(f". {RULES}") - found.again_tokens <= len("9. ")


def test_a_prompt_without_a_chat_is_not_compared_with_a_chat(harness: SessionHarness) -> None:
    chat(harness, user(RULES), turns=1)
    message = finish(harness.manager.raw_completions.begin(ADA, RawRequest(f"x{RULES}", GREEDY)))
    assert harness.receipt(message).parting is None


def test_it_survives_a_restart(make_harness: MakeHarness) -> None:
    harness = make_harness(template=ByteTemplate(takes_tools=True))
    said = chat(harness, tools=(tool("weather", "The weather in Rome and elsewhere."),))
    harness.close()
    harness = make_harness(template=ByteTemplate(takes_tools=True))
    run = ask(harness, *said, user("And?"), tools=(tool("weather", "The weather in Paris and elsewhere."),))
    assert parted(harness, run).name == "weather"
    shown = harness.manager.view(ADA, run.conversation_id).messages[-1].receipt
    assert shown is not None
    assert shown.parting == parted(harness, run)


def test_a_page_whose_system_prompt_was_changed(harness: SessionHarness) -> None:
    c = harness.conversation(system_prompt="Be kind.")
    harness.say(c, "One")
    prompt = ConversationSettings(SamplingParams(temperature=0), "Be brief.")
    harness.manager.update_settings(ADA, c, prompt)
    receipt = harness.receipt(harness.say(c, "Two"))
    assert receipt.miss_reason is MissReason.SYSTEM_PROMPT_CHANGED
    assert receipt.parting is not None
    assert (receipt.parting.before, receipt.parting.after, receipt.parting.token) == ("kind", "brief", len("sBe "))
    assert receipt.parting.again_tokens == receipt.fed_tokens - receipt.delta_tokens


def test_nothing_is_stored_when_the_place_cannot_be_told(
    harness: SessionHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    c = harness.conversation(system_prompt="Be kind.")
    harness.say(c, "One")
    harness.manager.update_settings(ADA, c, ConversationSettings(SamplingParams(temperature=0), "Be brief."))
    before = harness.path(c)

    def broken(*texts: str) -> None:
        raise TemplateRefused("No.")

    with monkeypatch.context() as patched:
        patched.setattr("sessions.ledger.partings.excerpt", broken)
        with pytest.raises(TemplateRefused):
            harness.manager.send(ADA, c, "Two")
    assert harness.path(c) == before
    assert len(harness.texts(c)) == 2
    assert harness.say(c, "Two").text == harness.expected_text(c)


@pytest.mark.parametrize("seed", range(6))
def test_any_small_change_is_found_where_it_is(make_harness: MakeHarness, seed: int) -> None:
    """A random word somewhere is changed: the answer is that of a full read, the place is that of the first different
    id, the words are the changed ones, and what was read again is what stands behind it."""
    dice = random.Random(seed)
    harness = make_harness(template=ByteTemplate(takes_tools=True))
    tools = tuple(tool(name, f"It tells {name} things in many words.") for name in ("north", "south"))
    said = chat(harness, system(RULES), tools=tools)
    kept = harness.ledger(harness.manager.list_conversations(ADA)[0].conversation_id)
    number = (0, None, *range(1, len(said)))[seed] if seed < 2 else dice.randrange(1, len(said) - 1)
    sent, offered = list(said), tools
    if number is None:
        offered = (tools[0], tools[1].replace("many", "OTHER"))
    else:
        sent[number] = replace(said[number], text=_changed(dice, said[number].text))
    run = ask(harness, *sent, user("And at last?"), tools=offered)
    found, ledger = parted(harness, run), run.plan.turn.ledger
    assert found.token == common_prefix(kept, ledger)
    assert found.of_tokens == len(ledger)
    assert "OTHER" in found.after
    assert (found.number, found.name) == (number or 0, "south" if number is None else "")
    fresh = len(ledger) - found.token - found.again_tokens
    assert fresh <= len("And at last?") + 4 + len("OTHER")


def _changed(dice: random.Random, text: str) -> str:
    words = text.split(" ")
    words[dice.randrange(len(words))] = "OTHER"
    return " ".join(words)
