"""Everything that an engine can do wrong: the message is kept, the answer so far too, and a sentence says what
happened. No try ever makes a second message."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest

from model_runtime.remote import connection, generation, servers
from model_runtime.remote import server as remote_server
from sessions.types import MessageStatus
from tests.model_runtime.remote.scripted_server import ScriptedServer
from tests.sessions.remote.conftest import Open, Start
from tests.sessions.session_harness import ADA, SessionHarness, finish, until

# httpx leaves the idle connections to a server that was killed to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")


@pytest.fixture(autouse=True)
def little_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "BUSY_PATIENCE_S", 0.5)
    monkeypatch.setattr(generation, "AWAY_PATIENCE_S", 0.3)
    monkeypatch.setattr(generation, "FIRST_PAUSE_S", 0.02)


def breaks(tokens: int) -> Callable[[ScriptedServer], None]:
    def change(server: ScriptedServer) -> None:
        server.breaks_after = tokens

    return change


def sends(content: bytes) -> Callable[[ScriptedServer], None]:
    def change(server: ScriptedServer) -> None:
        server.sends_instead = content

    return change


def refuses(
    status: int, body: bytes = b'{"error": {"message": "too  many\\nrequests"}}'
) -> Callable[[ScriptedServer], None]:
    def change(server: ScriptedServer) -> None:
        server.refuse = [(status, {}, body)] * 100

    return change


def answers(ids: list[int]) -> Callable[[ScriptedServer], None]:
    def change(server: ScriptedServer) -> None:
        server.answer = lambda ledger: ids

    return change


def hangs(server: ScriptedServer) -> None:
    server.first_delay_s = 1.2


def stays_open(content: bytes, after: int = 0) -> Callable[[ScriptedServer], None]:
    def change(server: ScriptedServer) -> None:
        server.stays_open_with, server.stays_open_after = content, after

    return change


def drips(server: ScriptedServer) -> None:
    server.drips = "answers"


@dataclass(frozen=True)
class Fault:
    change: Callable[[ScriptedServer], object]
    status: MessageStatus
    says: str
    tokens: int = 0


EVENT = b'data: {"content": "x", "tokens": [50], "stop": false}\n\n'
FAULTS = {
    "killed": Fault(ScriptedServer.kill, MessageStatus.FAILED, "cannot be reached (connection refused)"),
    "broken before the first token": Fault(breaks(0), MessageStatus.FAILED, "broke the connection"),
    "broken in the middle": Fault(breaks(3), MessageStatus.INTERRUPTED, "broke the connection", 3),
    "silent": Fault(hangs, MessageStatus.FAILED, "has not answered for 1 seconds"),
    "byte by byte": Fault(drips, MessageStatus.FAILED, "for 1 seconds without a token"),
    "comments alone": Fault(stays_open(b": keep-alive\n\n"), MessageStatus.FAILED, "for 1 seconds without a token"),
    "comments in the middle": Fault(
        stays_open(b": keep-alive\n\n", 3), MessageStatus.INTERRUPTED, "for 1 seconds without a token", 3
    ),
    "empty lines, byte by byte": Fault(
        stays_open(b"\n", 2), MessageStatus.INTERRUPTED, "for 1 seconds without a token", 2
    ),
    "events without news": Fault(
        stays_open(b'data: {"content": "", "stop": false}\n\n', 1),
        MessageStatus.INTERRUPTED,
        "for 1 seconds without a token",
        1,
    ),
    "progress that stands still": Fault(
        stays_open(b'data: {"prompt_progress": {"cache": 0, "processed": 5}, "tokens": [0]}\n\n'),
        MessageStatus.FAILED,
        "for 1 seconds without a token or a report of progress",
    ),
    "429": Fault(refuses(429), MessageStatus.FAILED, 'has no room now (HTTP 429: "too many requests")'),
    "503 without a body": Fault(refuses(503, b""), MessageStatus.FAILED, "has no room now (HTTP 503)"),
    "500": Fault(refuses(500), MessageStatus.FAILED, "failed (HTTP 500"),
    "400": Fault(refuses(400), MessageStatus.FAILED, "refused the request (HTTP 400"),
    "a key that was taken away": Fault(refuses(401), MessageStatus.FAILED, "does not accept the key"),
    "no JSON": Fault(sends(b"data: {nonsense\n\n"), MessageStatus.FAILED, "is not JSON"),
    "no object": Fault(sends(b"data: [1]\n\n"), MessageStatus.FAILED, "not a JSON object"),
    "no events": Fault(sends(b"<html>hello</html>\n"), MessageStatus.FAILED, "something else than events"),
    "nothing": Fault(sends(b""), MessageStatus.FAILED, "ended the stream before"),
    "an end without a token": Fault(
        sends(b'data: {"content": "", "tokens": [], "stop": true, "stop_type": "eos"}\n\n'),
        MessageStatus.FAILED,
        "ended the answer without a token",
    ),
    "a page": Fault(sends(b"<!doctype html><title>Welcome</title>"), MessageStatus.FAILED, "ended the stream before"),
    "half an event": Fault(sends(EVENT + b'data: {"content": "x", "tok'), MessageStatus.INTERRUPTED, "ended the", 1),
    "an event twice": Fault(
        sends(2 * b'data: {"content": "x", "tokens": [50], "tokens_predicted": 1, "stop": false}\n\n'),
        MessageStatus.INTERRUPTED,
        "sent ids twice",
        1,
    ),
    "an end without an end": Fault(sends(EVENT * 2), MessageStatus.INTERRUPTED, "ended the stream before", 2),
    "an error in the stream": Fault(
        sends(EVENT + b'data: {"error": {"message": "slot failed"}}\n\n'), MessageStatus.INTERRUPTED, "slot failed", 1
    ),
    "an old error in the stream": Fault(sends(b'error: {"message": "oh"}\n\n'), MessageStatus.FAILED, '"oh"'),
    "text without ids": Fault(
        sends(b'data: {"content": "hello", "stop": false}\n\n'), MessageStatus.FAILED, "text without token ids"
    ),
    "ids that are none": Fault(
        sends(EVENT + b'data: {"content": "x", "tokens": ["50"]}\n\n'), MessageStatus.INTERRUPTED, "no token ids", 1
    ),
    "an id beyond the vocabulary": Fault(
        answers([50, 51, 99_999]), MessageStatus.INTERRUPTED, "99,999 is not in the vocabulary", 2
    ),
    "nested beyond measure": Fault(sends(b"data: " + b"[" * 100_000 + b"\n\n"), MessageStatus.FAILED, "is not JSON"),
}


def check(harness: SessionHarness, conversation: str, text: str, fault: Fault) -> None:
    """One turn with the fault, then one without."""
    before = harness.texts(conversation)
    message = harness.say(conversation, text)
    assert message.status is fault.status
    assert fault.says in message.note
    assert "kept" in message.note
    path = harness.path(conversation)
    assert [node.text for node in path[:-1]] == [*before, text], "the message is there, once"
    assert len(path[-1].answer_ids) == fault.tokens
    assert message.can_continue is (fault.status is MessageStatus.INTERRUPTED)
    assert message.sibling_count == 1


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault(name: str, start: Start, open_on: Open) -> None:
    server = start()
    harness = open_on(server, silence_s=1.0 if "for 1 seconds" in FAULTS[name].says else 300.0)
    conversation = harness.conversation()
    harness.say(conversation, "Before.")
    FAULTS[name].change(server)
    check(harness, conversation, "During.", FAULTS[name])
    server.close()
    again = start(port=server.port)
    message = finish(harness.manager.regenerate(ADA, conversation))
    assert message.status is MessageStatus.COMPLETE, message.note
    assert tuple(again.asked[-1]["prompt"]) == prompt(harness, conversation)
    assert harness.texts(conversation)[2] == "During."


def prompt(harness: SessionHarness, conversation: str) -> tuple[int, ...]:
    path = harness.path(conversation)
    return harness.ledger(conversation)[: -len(path[-1].answer_ids)]


def test_an_interrupted_answer_goes_on_from_its_ids(server: ScriptedServer, open_on: Open) -> None:
    harness = open_on(server)
    conversation = harness.conversation()
    server.breaks_after = 4
    harness.say(conversation, "Count.")
    server.breaks_after = None
    kept = harness.path(conversation)[-1].answer_ids
    message = finish(harness.manager.continue_answer(ADA, conversation))
    assert message.status is MessageStatus.COMPLETE
    assert harness.path(conversation)[-1].answer_ids[:4] == kept


def test_room_that_comes_is_waited_for(server: ScriptedServer, open_on: Open) -> None:
    harness = open_on(server)
    conversation = harness.conversation()
    server.refuse = [(429, {"retry-after": "0.05"}, b""), (503, {}, b"busy")]
    assert harness.say(conversation, "One.").status is MessageStatus.COMPLETE
    assert len(harness.path(conversation)) == 2
    assert len(server.asked) == 1 + 3


@pytest.mark.parametrize("after", ["3600", "Fri, 31 Dec 9999 23:59:59 GMT"])
def test_a_server_that_says_to_come_back_too_late_is_not_waited_for(
    server: ScriptedServer, open_on: Open, after: str
) -> None:
    harness = open_on(server)
    server.refuse = [(429, {"retry-after": after}, b"")]
    assert harness.say(harness.conversation(), "One.").status is MessageStatus.FAILED


@pytest.mark.parametrize("after", ["soon", "-1", "nan", "Mon, 32 Foo 2026", "Thu, 01 Jan 1970 00:00:00 GMT"])
def test_what_does_not_say_when_to_come_back_is_no_reason_to_wait(
    server: ScriptedServer, open_on: Open, after: str
) -> None:
    harness = open_on(server)
    server.refuse = [(503, {"retry-after": after}, b"")]
    assert harness.say(harness.conversation(), "One.").status is MessageStatus.COMPLETE


def test_a_server_that_says_byte_by_byte_what_it_serves_is_in_trouble(
    server: ScriptedServer, open_on: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "ASK_S", 0.3)
    monkeypatch.setattr(servers, "CHECK_EVERY_S", 0.1)
    harness = open_on(server)
    server.drips = "questions"
    until(lambda: not harness.manager.is_well)
    assert "has not answered" in harness.manager.engine_trouble
    server.drips = ""
    until(lambda: harness.manager.is_well)


def test_another_model_at_the_same_address_is_never_believed(start: Start, open_on: Open) -> None:
    server = start()
    harness = open_on(server)
    conversation = harness.conversation()
    harness.say(conversation, "One.")
    server.close()
    other = start(port=server.port, model="Other-7B")
    message = harness.say(conversation, "Two.")
    assert message.status is MessageStatus.FAILED
    assert "now serves another model" in message.note
    assert harness.path(conversation)[-1].answer_ids == ()
    assert not harness.manager.is_well
    asked = len(other.asked)
    message = finish(harness.manager.regenerate(ADA, conversation))
    assert (message.status, harness.path(conversation)[-1].answer_ids) == (MessageStatus.FAILED, ())
    assert all(body["n_predict"] == 1 for body in other.asked[asked:]), "only what finds out what it speaks"
    assert "Other-7B" in harness.manager.engine_trouble
    other.close()
    start(port=server.port)
    assert finish(harness.manager.regenerate(ADA, conversation)).status is MessageStatus.COMPLETE
    assert harness.manager.is_well


def test_a_model_that_changes_behind_the_last_question_is_noticed(server: ScriptedServer, open_on: Open) -> None:
    harness = open_on(server)
    before = server.questions

    def answer(ledger: tuple[int, ...]) -> list[int]:
        until(lambda: server.questions > before)
        server.model = "Other-7B"
        return [50, 51, server.end_id]

    server.answer = answer
    message = harness.say(harness.conversation(), "One.")
    assert message.status is MessageStatus.INTERRUPTED
    assert "the model Other-7B wrote it" in message.note


def test_health_notices_without_a_turn(start: Start, open_on: Open) -> None:
    server = start()
    harness = open_on(server)
    assert harness.manager.is_well
    server.kill()
    until(lambda: not harness.manager.is_well)
    assert "cannot be reached" in harness.manager.engine_trouble
    assert [one.address for one in harness.manager.servers] == [server.address]
    start(port=server.port)
    until(lambda: harness.manager.is_well)
    assert harness.say(harness.conversation(), "One.").status is MessageStatus.COMPLETE


def test_a_stop_is_a_stop_and_no_fault(server: ScriptedServer, open_on: Open) -> None:
    harness = open_on(server)
    server.answer, server.token_delay_s = lambda ledger: [50] * 200, 0.02
    conversation = harness.conversation()
    run = harness.manager.send(ADA, conversation, "Count.")
    until(lambda: run.snapshot().sampled_tokens > 2)
    harness.manager.stop(ADA, conversation)
    message = finish(run)
    assert (message.status, message.note) == (MessageStatus.STOPPED, "Stopped.")
    until(lambda: server.given_up == 1)
    assert harness.manager.is_well


def test_the_manager_ends_in_time_with_a_silent_engine(server: ScriptedServer, open_on: Open) -> None:
    harness = open_on(server)
    server.first_delay_s = 1.0
    conversation = harness.conversation()
    run = harness.manager.send(ADA, conversation, "Count.")
    until(lambda: len(server.asked) == 2)
    harness.manager.close()
    assert finish(run).status is MessageStatus.INTERRUPTED


def test_an_engine_that_freezes_in_the_middle_is_noticed_and_waited_for(
    server: ScriptedServer, open_on: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a process that was stopped: its connections stay, and nothing comes."""
    monkeypatch.setattr(remote_server, "QUIET_S", 0.3)
    monkeypatch.setattr(connection, "ASK_S", 0.2)
    monkeypatch.setattr(servers, "CHECK_EVERY_S", 0.1)
    harness = open_on(server)
    server.answer, server.token_delay_s = lambda ledger: [*[50] * 30, server.end_id], 0.01
    run = harness.manager.send(ADA, harness.conversation(), "Count.")
    until(lambda: run.snapshot().sampled_tokens > 2)
    server.is_frozen.set()
    until(lambda: not harness.manager.is_well)
    assert "has not answered" in harness.manager.engine_trouble
    server.is_frozen.clear()
    assert finish(run).status is MessageStatus.COMPLETE
    until(lambda: harness.manager.is_well)


def spoken_on(harness: SessionHarness, servers: Sequence[ScriptedServer], least: int) -> list[str]:
    """At least so many conversations with one turn each, and so many that every server answers some: where one goes
    is a hash of its random id. An empty one would be given out again."""
    found: list[str] = []
    greeted = [len(server.asked) for server in servers]
    while len(found) < least or any(len(one.asked) == asked for one, asked in zip(servers, greeted, strict=True)):
        found.append(harness.conversation())
        harness.say(found[-1], "Before.")
        assert len(found) < 100, "all of them go to one server"
    return found


def test_two_engines_one_killed_both_killed_and_one_back(
    start: Start, open_on: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With turns at once in eight conversations: every message is there once, and what could be answered was."""
    monkeypatch.setattr(servers, "CHECK_EVERY_S", 0.05)
    first, second = start(), start()
    harness = open_on(first, second)
    conversations, said = spoken_on(harness, (first, second), 8), ["Before."]

    def turn(status: MessageStatus) -> None:
        said.append(f"Turn {len(said)}.")
        runs = [harness.manager.send(ADA, one, said[-1]) for one in conversations]
        notes = [(message.status, message.note) for message in map(finish, runs)]
        assert {found for found, _ in notes} == {status}, notes
        for one in conversations:
            assert [node.text for node in harness.path(one)[::2]] == said

    turn(MessageStatus.COMPLETE)
    first.kill()
    turn(MessageStatus.COMPLETE)
    until(lambda: [bool(one.trouble) for one in harness.manager.servers] == [True, False])
    assert harness.manager.is_well
    second.kill()
    turn(MessageStatus.FAILED)
    until(lambda: not harness.manager.is_well)
    again = start(port=first.port)
    until(lambda: harness.manager.is_well)
    turn(MessageStatus.COMPLETE)
    assert len(again.asked) == 1 + len(conversations), "the greeting and one answer each"


def test_the_killed_one_of_two_in_the_middle_of_answers(start: Start, open_on: Open) -> None:
    """What was written stays and goes on elsewhere, from its ids."""
    first, second = start(), start()
    harness = open_on(first, second)
    conversations = spoken_on(harness, (first, second), 4)
    for server in (first, second):
        server.answer = lambda ledger: [*[50] * 30, first.end_id]
    first.stays_open_with, first.stays_open_after = b": still there\n\n", 3
    runs = [harness.manager.send(ADA, one, "Count.") for one in conversations]
    until(lambda: all(run.snapshot().sampled_tokens >= 3 for run in runs))
    first.kill()
    found = [finish(run) for run in runs]
    lost = [one for one, message in zip(conversations, found, strict=True) if message.status != "complete"]
    assert {message.status for message in found} == {MessageStatus.INTERRUPTED, MessageStatus.COMPLETE}
    for one in lost:
        kept = harness.path(one)[-1].answer_ids
        assert kept == (50, 50, 50)
        assert finish(harness.manager.continue_answer(ADA, one)).status is MessageStatus.COMPLETE
        assert harness.path(one)[-1].answer_ids[: len(kept)] == kept
        assert len(harness.path(one)) == 4
