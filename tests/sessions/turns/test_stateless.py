"""Requests that resend their history find their conversation, and cost no other conversation its memory."""

from __future__ import annotations

import threading

import pytest

from model_runtime.interface.chat import ChatMessage, ToolCall
from model_runtime.interface.errors import TemplateRefused
from model_runtime.interface.sampling_params import SamplingParams
from sessions.errors import ContextFull, MessageRefused
from sessions.turns.placement import MOST_DISPLACED_TOKENS
from sessions.turns.planned_turn import ChatRequest
from sessions.turns.run import Run
from sessions.types import MessageView, MissReason
from tests.sessions.conftest import MakeHarness
from tests.sessions.scripted_engine import ByteTemplate, ScriptedEngine
from tests.sessions.session_harness import ADA, SessionHarness, finish, until

GREEDY = SamplingParams(temperature=0, max_new_tokens=64)
SYSTEM = ChatMessage("system", "Be brief.")


def user(text: str) -> ChatMessage:
    return ChatMessage("user", text)


def assistant(text: str) -> ChatMessage:
    return ChatMessage("assistant", text)


class Client:
    """Resends its history every time, as stateless clients do."""

    def __init__(
        self, harness: SessionHarness, key: str | None = None, owner: str = ADA, system: tuple[ChatMessage, ...] = ()
    ) -> None:
        self.harness, self.key, self.owner = harness, key, owner
        self.messages: list[ChatMessage] = list(system)
        self.run: Run | None = None

    def ask(self, text: str) -> MessageView:
        self.messages.append(user(text))
        self.run = self.harness.manager.completions.begin(
            self.owner, ChatRequest(tuple(self.messages), GREEDY, key=self.key)
        )
        answer = finish(self.run)
        self.messages.append(assistant(answer.text))
        return answer

    @property
    def conversation_id(self) -> str:
        assert self.run is not None
        return self.run.conversation_id


def begin(harness: SessionHarness, *messages: ChatMessage, key: str | None = None, tools: tuple[str, ...] = ()) -> Run:
    return harness.manager.completions.begin(ADA, ChatRequest(messages, GREEDY, tools, key))


@pytest.mark.parametrize("key", [None, "chat-1"])
def test_ten_turns_are_fed_only_what_is_new(harness: SessionHarness, key: str | None) -> None:
    client = Client(harness, key, system=(SYSTEM,))
    total = 0
    for number in range(10):
        receipt = harness.receipt(client.ask(f"Question {number}"))
        assert receipt.reused_tokens == max(0, total - 1)
        assert receipt.miss_reason is None
        total = receipt.reused_tokens + receipt.fed_tokens + receipt.sampled_tokens
    assert len(harness.manager.list_conversations(ADA)) == 1
    assert len(harness.path(client.conversation_id)) == 20
    assert harness.expected_text(client.conversation_id) == client.messages[-1].text
    assert harness.manager.view(ADA, client.conversation_id).settings.system_prompt == "Be brief."


def test_a_changed_message_becomes_a_sibling_under_its_key(harness: SessionHarness) -> None:
    client = Client(harness, "chat")
    for text in ("One", "Two", "Three"):
        client.ask(text)
    client.messages = [*client.messages[:2], user("Two, but different"), assistant("Imported.")]
    receipt = harness.receipt(client.ask("Go on"))
    view = harness.manager.view(ADA, client.conversation_id)
    assert [m.text for m in view.messages][2:5] == ["Two, but different", "Imported.", "Go on"]
    assert (view.messages[2].sibling_number, view.messages[2].sibling_count) == (2, 2)
    assert receipt.reused_tokens >= len(harness.path(client.conversation_id)[0].ids.token_ids)
    assert receipt.miss_reason is None


def test_an_edit_far_above_lands_on_a_fork_and_the_parent_stays_warm(harness: SessionHarness) -> None:
    client = Client(harness)
    for number in range(6):
        client.ask(f"Question {number} " + "x" * 100)
    parent, kept = client.conversation_id, list(client.messages)
    client.messages = [*kept[:4], user("Edited")]
    edited = begin(harness, *client.messages)
    finish(edited)
    assert edited.conversation_id != parent
    assert harness.texts(edited.conversation_id)[:4] == [m.text for m in kept[:4]]
    client.messages = kept
    receipt = harness.receipt(client.ask("And on we go"))
    assert client.conversation_id == parent
    assert (receipt.fed_tokens, receipt.miss_reason) == (receipt.delta_tokens, None)


def test_side_requests_never_cost_their_parent_its_memory(harness: SessionHarness) -> None:
    """A title from the text of the chat, tags behind the whole history, a question about its beginning alone."""
    client = Client(harness)
    for number in range(5):
        receipt = harness.receipt(client.ask(f"Question {number} " + "y" * 200))
        if number:
            assert (receipt.fed_tokens - receipt.delta_tokens, receipt.miss_reason) in ((0, None), (-1, None))
        said = client.messages
        finish(begin(harness, user("Task: a title for: " + " ".join(m.text for m in said))))
        finish(begin(harness, *said, user("Three tags for this chat, please.")))
        finish(begin(harness, *said[:2], user("What was this about?")))


def test_a_parent_that_is_answering_is_left_alone(make_harness: MakeHarness) -> None:
    harness = make_harness(engine=ScriptedEngine(token_delay_s=0.01))
    client = Client(harness)
    client.ask("Hello")
    running = begin(harness, *client.messages, user("Tell me more"))
    side = begin(harness, *client.messages, user("A title?"))
    assert side.conversation_id != running.conversation_id
    finish(side)
    finish(running)
    assert harness.texts(running.conversation_id)[2] == "Tell me more"


def test_a_request_beside_one_that_is_answering_lands_on_a_fork(make_harness: MakeHarness) -> None:
    harness = make_harness(engine=ScriptedEngine(token_delay_s=0.01))
    client = Client(harness, "k")
    client.ask("Hello")
    running = begin(harness, *client.messages, user("Go on"), key="k")
    beside = begin(harness, *client.messages, user("Meanwhile"), key="k")
    assert (running.conversation_id, beside.plan.is_fork) == (client.conversation_id, True)
    finish(beside)
    finish(running)
    after = begin(harness, *client.messages, user("Go on"), assistant(harness.texts(running.conversation_id)[-1]),
                  user("And?"), key="k")  # fmt: skip
    assert after.conversation_id == client.conversation_id
    assert harness.receipt(finish(after)).miss_reason is None


def test_an_unrelated_history_under_the_same_key_leaves_the_keys_conversation_alone(harness: SessionHarness) -> None:
    client = Client(harness, "k")
    client.ask("Hello")
    other = Client(harness, "k")
    for number in range(3):
        receipt = harness.receipt(other.ask(f"About something else {number}"))
        assert receipt.miss_reason is None
        assert other.conversation_id != client.conversation_id
    assert len(harness.manager.list_conversations(ADA)) == 2
    before = client.conversation_id
    receipt = harness.receipt(client.ask("Still there?"))
    assert (client.conversation_id, receipt.fed_tokens) == (before, receipt.delta_tokens)


def test_sixteen_first_requests_with_one_key_are_sixteen_answers(harness: SessionHarness) -> None:
    outcomes: list[str] = []

    def ask(number: int) -> None:
        said = finish(begin(harness, user(f"Hello from {number % 4}"), key="k"))
        outcomes.append(said.status.value)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert outcomes == ["complete"] * 16
    assert harness.store.with_key(ADA, "k") is not None


def test_an_unknown_history_is_imported_once(harness: SessionHarness) -> None:
    said = (SYSTEM, user("Hi"), assistant("Hello."), user("How are you?"), assistant(""), user("Well?"))
    first = harness.receipt(finish(run := begin(harness, *said)))
    assert first.reused_tokens == 0
    assert first.miss_reason is None
    assert [(m.role, m.text) for m in harness.manager.view(ADA, run.conversation_id).messages][:5] == [
        (m.role, m.text) for m in said[1:]
    ]
    answer = harness.texts(run.conversation_id)[-1]
    second = begin(harness, *said, assistant(answer), user("Good"))
    receipt = harness.receipt(finish(second))
    assert second.conversation_id == run.conversation_id
    assert receipt.reused_tokens == first.fed_tokens + first.sampled_tokens - 1


@pytest.mark.parametrize("changed", ["Question 1 ", "question 1", "Question 1\n"])
def test_an_answer_or_question_that_differs_by_a_letter_is_another(harness: SessionHarness, changed: str) -> None:
    client = Client(harness)
    client.ask("Question 0")
    client.ask("Question 1")
    run = begin(harness, *client.messages[:2], user(changed), client.messages[3], user("Next"))
    finish(run)
    texts = harness.texts(run.conversation_id)
    assert texts[2] == changed
    edited = assistant(client.messages[1].text + "!")
    run = begin(harness, client.messages[0], edited, user("Next"))
    finish(run)
    assert harness.texts(run.conversation_id)[1] == edited.text


def test_the_same_question_once_more_is_a_sibling_answer(harness: SessionHarness) -> None:
    first = begin(harness, user("Hello"))
    finish(first)
    again = begin(harness, user("Hello"))
    answer = finish(again)
    assert again.conversation_id == first.conversation_id
    assert (answer.sibling_number, answer.sibling_count) == (2, 2)
    assert harness.receipt(answer).fed_tokens == 1


def test_a_fork_that_finds_no_memory_says_so(make_harness: MakeHarness) -> None:
    harness = make_harness()
    client = Client(harness)
    client.ask("Question " + "z" * 2 * MOST_DISPLACED_TOKENS)
    client.ask("Question " + "z" * 2 * MOST_DISPLACED_TOKENS)
    harness.manager.drop_kv(ADA, client.conversation_id)
    run = begin(harness, *client.messages[:2], user("Edited"))
    receipt = harness.receipt(finish(run))
    assert receipt.miss_reason is MissReason.FORKED
    assert receipt.reused_tokens == 0


def test_no_owner_continues_a_strangers_conversation(harness: SessionHarness) -> None:
    client = Client(harness)
    client.ask("Hello")
    theirs = harness.manager.completions.begin("bob", ChatRequest((*client.messages, user("Again")), GREEDY))
    receipt = harness.receipt(finish(theirs))
    assert receipt.reused_tokens == 0
    assert theirs.conversation_id != client.conversation_id
    named = harness.manager.completions.begin("bob", ChatRequest((user("x"),), GREEDY, key="k"))
    finish(named)
    mine = begin(harness, user("x"), key="k")
    finish(mine)
    assert mine.conversation_id != named.conversation_id


def test_a_conversation_of_the_page_can_be_continued(harness: SessionHarness) -> None:
    conversation = harness.conversation()
    answer = harness.say(conversation, "Hello")
    run = begin(harness, user("Hello"), assistant(answer.text), user("And now?"))
    receipt = harness.receipt(finish(run))
    assert run.conversation_id == conversation
    assert receipt.fed_tokens == receipt.delta_tokens
    assert harness.say(conversation, "From the page again").receipt.miss_reason is None  # type: ignore[union-attr]


def test_restart_between_turns(make_harness: MakeHarness) -> None:
    harness = make_harness(disk_kv_budget_bytes=2**26)
    harness.engine.fed_token_delay_s = 0.001
    client = Client(harness)
    first = harness.receipt(client.ask("Hello " + "h" * 200))
    harness.saved(client.conversation_id)
    harness.close()
    client.harness = again = make_harness(disk_kv_budget_bytes=2**26, engine=ScriptedEngine(fed_token_delay_s=0.001))
    receipt = again.receipt(client.ask("Still there?"))
    assert receipt.reused_tokens == first.fed_tokens + first.sampled_tokens - 1
    assert receipt.tier_before.value == "disk"


def test_other_roles_and_orders_are_one_node(make_harness: MakeHarness) -> None:
    harness = make_harness(template=ByteTemplate(takes_tools=True))
    tools = ('{"type": "function", "function": {"name": "f"}}',)
    call = ToolCall("abc", "f", '{"x": 1}')
    said = (
        SYSTEM,
        ChatMessage("developer", "And polite."),
        assistant("Welcome."),
        user("Hi"),
        user("there"),
        ChatMessage("assistant", "", (call,)),
        ChatMessage("tool", "42", tool_call_id="abc"),
    )
    run = begin(harness, *said, tools=tools)
    answer = finish(run)
    assert len(harness.path(run.conversation_id)) == 4
    assert harness.path(run.conversation_id)[0].messages == said[2:5]
    again = begin(harness, *said, assistant(answer.text), user("Thanks"), tools=tools)
    receipt = harness.receipt(finish(again))
    assert again.conversation_id == run.conversation_id
    assert receipt.fed_tokens == receipt.delta_tokens
    without = begin(harness, *said, assistant(answer.text), user("Thanks"))
    assert without.conversation_id != run.conversation_id
    finish(without)


@pytest.mark.parametrize(
    ("messages", "sentence"),
    [
        ((), "no messages"),
        ((SYSTEM,), "only system messages"),
        ((assistant("b"),), "no question"),
        ((ChatMessage("robot", "a"),), "unknown role 'robot'"),
        ((user("a" * 5 * 2**20),), "at most 4.0 MiB"),
    ],
)
def test_what_cannot_be_answered_is_refused(
    harness: SessionHarness, messages: tuple[ChatMessage, ...], sentence: str
) -> None:
    with pytest.raises(MessageRefused, match=sentence):
        begin(harness, *messages)
    assert harness.manager.list_conversations(ADA) == []


def test_too_long_a_history_is_refused_and_nothing_is_stored(harness: SessionHarness) -> None:
    many = tuple(user("hello") if n % 2 == 0 else assistant("hello") for n in range(10_001))
    with pytest.raises(ContextFull, match="Leave some of them out"):
        begin(harness, *many)
    with pytest.raises(TemplateRefused, match="no place for tools"):
        begin(harness, user("a"), tools=('{"type": "function", "function": {"name": "f"}}',))
    assert harness.manager.list_conversations(ADA) == []


def test_a_stopped_answer_is_continued_as_far_as_it_was_told(make_harness: MakeHarness) -> None:
    harness = make_harness(engine=ScriptedEngine(token_delay_s=0.01))
    run = begin(harness, user("Hello"))
    until(lambda: run.snapshot().sampled_tokens > 3)
    harness.manager.stop_run(run)
    told = finish(run).text
    receipt = harness.receipt(finish(begin(harness, user("Hello"), assistant(told), user("Go on"))))
    assert receipt.miss_reason is None
    assert receipt.fed_tokens == receipt.delta_tokens


def test_line_ends_and_odd_characters_survive(harness: SessionHarness) -> None:
    client = Client(harness)
    client.ask("a\r\nb\x00c\ud800")
    assert harness.texts(client.conversation_id)[0] == "a\r\nbc�"
    client.ask("more")
    assert len(harness.path(client.conversation_id)) == 4
