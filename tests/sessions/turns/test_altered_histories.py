"""A history that came back altered a little is the one that is kept, where nothing is lost; else it is another one."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import replace

import pytest

from model_runtime.interface.chat import ChatMessage, ToolCall, UserInput
from model_runtime.interface.sampling_params import SamplingParams
from sessions.ledger import history_hash
from sessions.ledger.rendition import normal_form
from sessions.turns.planned_turn import ChatRequest
from sessions.turns.run import Run
from tests.sessions.byte_template import END, ByteTemplate
from tests.sessions.conftest import MakeHarness
from tests.sessions.scripted_engine import checksum
from tests.sessions.session_harness import ADA, SessionHarness, finish

GREEDY = SamplingParams(temperature=0, max_new_tokens=200)


def markdown_answer(ledger: tuple[int, ...]) -> tuple[int, ...]:
    count, code = len(ledger), "```\nif a:\n    b\n```"
    text = f"\n\nSum: *{checksum(ledger)}*\n\n\n* __{count}__ ids, a_b & more  \n* `x  y`\n\n{code}\n"
    return (*text.encode(), END)


class TrimmingTemplate(ByteTemplate):
    """Leaves out white space at the ends of messages, as many models' templates do."""

    def _input(self, asked: UserInput) -> tuple[int, ...]:
        messages = [ChatMessage("user", asked)] if isinstance(asked, str) else asked
        return super()._input([replace(m, text=m.text.strip()) for m in messages])  # type: ignore[arg-type]


def ask(harness: SessionHarness, *messages: ChatMessage, tools: tuple[str, ...] = ()) -> Run:
    run = harness.manager.completions.begin(ADA, ChatRequest(messages, GREEDY, tools))
    finish(run)
    return run


def user(text: str) -> ChatMessage:
    return ChatMessage("user", text)


def chat(harness: SessionHarness, head: tuple[ChatMessage, ...] = (), turns: int = 2) -> list[ChatMessage]:
    said = [*head]
    for number in range(turns):
        said.append(user(f"Question {number}?\n"))
        said.append(ChatMessage("assistant", finish(ask(harness, *said)).text))
    return said


def went_on(harness: SessionHarness, run: Run, fed: int) -> None:
    """In place, with the ids that were sampled, and as a full read would."""
    message = finish(run)
    assert message.text == harness.expected_text(run.conversation_id)
    assert harness.receipt(message).fed_tokens == fed
    assert len(harness.manager.list_conversations(ADA)) == 1


RENDITIONS: dict[str, Callable[[str], str]] = {
    "trimmed": str.strip,
    "padded": lambda text: f"  {text} \n",
    "line ends": lambda text: text.replace("\n", "\r\n"),
    "blank lines": lambda text: text.replace("\n\n\n", "\n\n"),
    "written anew": lambda text: text.replace("* __", "-  **").replace("__ ids", "** ids").replace("\n* `", "\n- `"),
    "emphasis": lambda text: re.sub(r"(?<!\*)\*(\w+)\*(?!\*)", r"_\1_", text),
    "escaped for HTML": lambda text: text.replace(" & ", " &amp; "),
}
OTHERS: dict[str, Callable[[str], str]] = {
    "a word": lambda text: text.replace("more", "less"),
    "code": lambda text: text.replace("    b", "  b"),
    "code in a line": lambda text: text.replace("`x  y`", "`x y`"),
    "a name": lambda text: text.replace("a_b", "ab"),
}


@pytest.mark.parametrize("way", RENDITIONS)
def test_another_rendition_is_the_same_answer(make_harness: MakeHarness, way: str) -> None:
    harness = make_harness()
    harness.engine.answer = markdown_answer
    said = chat(harness)
    sent = [replace(m, text=RENDITIONS[way](m.text)) if m.role == "assistant" else m for m in said]
    assert sent != said
    run = ask(harness, *sent, user("And?"))
    went_on(harness, run, fed=len("And?") + 4)
    assert run.plan.notes == (
        "Messages 2, 4 were sent back with other white space or markup than written; what was written counts.",
    )
    said += [user("And?"), ChatMessage("assistant", finish(run).text)]
    last = ask(harness, *said, user("Now?"))  # as they were written, after all
    went_on(harness, last, fed=len("Now?") + 4)
    assert last.plan.notes == ()


@pytest.mark.parametrize("way", OTHERS)
def test_what_was_said_differs(make_harness: MakeHarness, way: str) -> None:
    harness = make_harness()
    harness.engine.answer = markdown_answer
    said = chat(harness)
    sent = [*said[:3], replace(said[3], text=OTHERS[way](said[3].text))]
    run = ask(harness, *sent, user("And?"))
    assert len(harness.manager.list_conversations(ADA)) == 1 or run.plan.is_fork
    assert finish(run).text == harness.expected_text(run.conversation_id)
    assert harness.texts(run.conversation_id)[3] == sent[3].text
    assert run.plan.notes == ()


def test_white_space_at_the_ends_of_what_was_asked(make_harness: MakeHarness) -> None:
    """Left out by the template, so that the ids are the same; of the system text in any case."""
    harness = make_harness(template=TrimmingTemplate())
    said = chat(harness, (ChatMessage("system", "Be brief.\n"),))
    sent = [replace(m, text=m.text.strip()) for m in said]
    went_on(harness, ask(harness, *sent, user("And?")), fed=len("And?") + 4)
    c = harness.manager.list_conversations(ADA)[0].conversation_id
    assert harness.manager.view(ADA, c).settings.system_prompt == "Be brief.\n"
    harness.say(c, " On the page. ")
    went_on(harness, ask(harness, *harness_messages(harness, c, "Be brief."), user("Now?")), fed=len("Now?") + 4)


def harness_messages(harness: SessionHarness, conversation_id: str, system_prompt: str) -> list[ChatMessage]:
    texts = harness.texts(conversation_id)
    return [
        ChatMessage("system", system_prompt),
        *(ChatMessage("assistant" if n % 2 else "user", text) for n, text in enumerate(texts)),
    ]


def test_white_space_that_the_template_writes_counts(harness: SessionHarness) -> None:
    first = ask(harness, user("Count: "))
    assert finish(first).text == harness.expected_text(first.conversation_id)
    other = ask(harness, user("Count:"))
    assert first.plan.turn.ledger != other.plan.turn.ledger
    assert finish(other).text == harness.expected_text(other.conversation_id)
    again = ask(harness, user("Count:"))
    assert again.plan.turn.ledger == other.plan.turn.ledger


def test_an_answer_is_gone_on_with_as_the_client_has_it(harness: SessionHarness) -> None:
    """Its end matters: the client puts the rest behind it."""
    harness.engine.answer = lambda ledger: (*b"Hello, wor ld", END)
    first = harness.manager.completions.begin(
        ADA, ChatRequest((user("Say it"),), replace(GREEDY, max_new_tokens=len("Hello, wor ")))
    )
    assert finish(first).text == "Hello, wor "
    run = ask(harness, user("Say it"), ChatMessage("assistant", "Hello, wor"))
    assert run.plan.text == "Hello, wor"
    run = ask(harness, user("Say it"), ChatMessage("assistant", "Hello, wor "))
    assert run.plan.text == "Hello, wor "


def test_keys_of_tools_in_another_order(make_harness: MakeHarness) -> None:
    harness = make_harness(template=ByteTemplate(takes_tools=True))
    one, other = '{"name": "clock", "about": "time"}', '{"about":"time","name":"clock"}'
    first = ask(harness, user("What time?"), tools=(one,))
    said = (user("What time?"), ChatMessage("assistant", finish(first).text), user("And?"))
    went_on(harness, ask(harness, *said, tools=(other,)), fed=len("And?") + 4)


def test_arguments_of_calls(make_harness: MakeHarness) -> None:
    harness = make_harness(template=ByteTemplate(takes_tools=True))
    call = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2.0}}\n</tool_call>'
    harness.engine.answer = lambda ledger: (*call.encode(), END)
    first = ask(harness, user("Add"), tools=('{"name": "add"}',))
    said = harness.manager.completions.message(first, finish(first).text)
    sent = replace(said, text=" ", tool_calls=(ToolCall(said.tool_calls[0].call_id, "add", '{"b":2,"a":1}'),))
    result = ChatMessage("tool", "3", tool_call_id=said.tool_calls[0].call_id)
    run = ask(harness, user("Add"), sent, result, tools=('{"name": "add"}',))
    assert run.conversation_id == first.conversation_id
    assert harness.receipt(finish(run)).fed_tokens == len("3") + 4


def test_conversations_of_earlier_versions_are_found(
    make_harness: MakeHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their hashes told white space and markup apart."""
    harness = make_harness()
    harness.engine.answer = markdown_answer
    with monkeypatch.context() as patch:
        canonical = history_hash.canonical
        patch.setattr(history_hash, "canonical", lambda message, *ways: canonical(message, is_exact=True))
        said = chat(harness)
    assert normal_form(said[1].text) != said[1].text
    run = ask(harness, *said, user("And?"))
    went_on(harness, run, fed=len("And?") + 4)
    said += [user("And?"), ChatMessage("assistant", finish(run).text.strip())]
    went_on(harness, ask(harness, *said, user("Now?")), fed=len("Now?") + 4)


@pytest.mark.parametrize("seed", range(4))
def test_any_alterations_on_the_way(make_harness: MakeHarness, seed: int) -> None:
    """A client that alters what it sends back, each time in other ways: each turn feeds its delta, and every answer is
    that of a full read."""
    dice = random.Random(seed)
    harness = make_harness()
    harness.engine.answer = markdown_answer
    said: list[ChatMessage] = [ChatMessage("system", "Be brief. ")]
    for number in range(5):
        sent = [_altered(dice, message) for message in said]
        question = user(dice.choice(["Well?", " So? ", "Hm?\n\n"]))
        run = ask(harness, *sent, question)
        if number:
            went_on(harness, run, fed=len(question.text) + 4)
        said = [*(sent if dice.random() < 0.5 else said), question, ChatMessage("assistant", finish(run).text)]


def _altered(dice: random.Random, message: ChatMessage) -> ChatMessage:
    if message.role == "user":
        return message
    if message.role == "system":
        return replace(message, text=dice.choice([message.text, message.text.strip(), f"{message.text}\n"]))
    return replace(message, text=RENDITIONS[dice.choice(list(RENDITIONS))](message.text))


@pytest.mark.parametrize("sent_back", [0, 1])
@pytest.mark.parametrize("key", [None, "one"])
def test_the_sample_that_is_sent_back_exactly_is_gone_on_with(
    make_harness: MakeHarness, sent_back: int, key: str | None
) -> None:
    """Two samples of one question, with one normal form: the newer one must not stand in for the other."""
    harness = make_harness()
    samples = iter(("It is *four* now", "It is _four_ now", "Yes"))
    harness.engine.answer = lambda ledger: (*next(samples).encode(), END)
    runs = [harness.manager.completions.begin(ADA, ChatRequest((user("Two and two?"),), GREEDY, key=key))]
    finish(runs[0])
    runs.append(harness.manager.completions.begin(ADA, ChatRequest((user("Two and two?"),), GREEDY, key=key)))
    texts = [finish(run).text for run in runs]
    assert normal_form(texts[0]) == normal_form(texts[1])
    text = texts[sent_back]
    said = (user("Two and two?"), ChatMessage("assistant", text), user("Sure?"))
    run = harness.manager.completions.begin(ADA, ChatRequest(said, GREEDY, key=key))
    finish(run)
    assert run.plan.notes == ()
    assert harness.texts(run.conversation_id) == ["Two and two?", text, "Sure?", "Yes"]
