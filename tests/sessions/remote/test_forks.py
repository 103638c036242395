"""A fork goes where its parent is."""

from __future__ import annotations

from model_runtime.interface.chat import ChatMessage
from model_runtime.interface.sampling_params import SamplingParams
from sessions.turns.stateless import ChatRequest
from tests.sessions.remote.conftest import Open, Start
from tests.sessions.session_harness import ADA, SessionHarness, finish


def asked(harness: SessionHarness, *texts: str) -> tuple[str, str]:
    """(conversation, answer) of a request with its whole history, in which users and answers take turns."""
    messages = tuple(ChatMessage("assistant" if n % 2 else "user", text) for n, text in enumerate(texts))
    run = harness.manager.completions.begin(ADA, ChatRequest(messages, SamplingParams(temperature=0.0)))
    return run.conversation_id, finish(run).text


def test_forks_share_their_parents_header_and_server(start: Start, open_on: Open) -> None:
    servers = [start(context_tokens=8192) for _ in range(3)]
    harness = open_on(*servers)
    long = "Tell me of kettles. " * 60
    parent, one = asked(harness, long)
    _, two = asked(harness, long, one, "More " * 200)
    child, three = asked(harness, long, one, "Something else " * 100)
    grandchild, _ = asked(harness, long, one, "Something else " * 100, three, "On " * 200)
    other_branch, _ = asked(harness, long, one, "Something else " * 100, three, "Off " * 200)
    assert len({parent, child, other_branch}) == 3
    assert grandchild == child
    roots = {harness.store.conversation(ADA, one).root_id for one in (child, other_branch)}
    assert roots == {parent}
    values = {h["x-session-id"] for server in servers for h in server.headers if "x-session-id" in h}
    assert len(values) == 1
    assert sum(bool(server.headers[1:]) for server in servers) == 1, "all at one server"
    assert two
    stranger, _ = asked(harness, "Hello.")
    assert harness.store.conversation(ADA, stranger).root_id == ""


def test_a_fork_reuses_its_parents_beginning(start: Start, open_on: Open) -> None:
    harness = open_on(start(context_tokens=8192), start(context_tokens=8192))
    long = "Tell me of kettles. " * 60
    _, one = asked(harness, long)
    asked(harness, long, one, "More " * 200)
    messages = [ChatMessage("user", long), ChatMessage("assistant", one), ChatMessage("user", "Something else " * 100)]
    run = harness.manager.completions.begin(ADA, ChatRequest(tuple(messages), SamplingParams(temperature=0.0)))
    receipt = harness.receipt(finish(run))
    assert run.plan.is_fork
    assert receipt.reused_tokens > 500
