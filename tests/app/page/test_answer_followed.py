"""Whatever ends or begins while a page is drawn: an answer that is shown as being written is followed to its end."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from app.page.chat import Chat
from sessions.turns.run import Run
from tests.polling import until
from tests.sessions.scripted_engine import ScriptedEngine, chat_answer
from tests.sessions.session_harness import ADA, SessionHarness


class Held:
    """A server whose engine waits in the middle of every answer until it is let go."""

    def __init__(self, data_dir: Path) -> None:
        self.go, self.is_half = threading.Event(), threading.Event()
        self.harness = SessionHarness(data_dir, engine=ScriptedEngine(answer=chat_answer))
        self.harness.engine.on_step = self._step
        self.chat = Chat(self.harness.manager)

    def _step(self) -> None:
        if any(len(generation.sampled) >= 2 for generation in self.harness.engine.running):
            self.is_half.set()
            assert self.go.wait(10)

    def let_end(self, conversation_id: str) -> None:
        self.go.set()
        until(lambda: self.harness.manager.runs.active(conversation_id) is None)

    def ask(self, conversation_id: str, action: str, **fields: object) -> dict[str, Any]:
        return self.chat.act(ADA, {"action": action, "conversation_id": conversation_id, **fields})


@pytest.fixture
def held(tmp_path: Path) -> Iterator[Held]:
    held = Held(tmp_path / "data")
    yield held
    held.go.set()
    held.harness.close()


def followed(held: Held, conversation_id: str, reply: dict[str, Any]) -> list[Any]:
    """What the page shows once it has followed the reply's run: without a run it asks nothing more."""
    messages = reply["messages"]
    while reply["run"] is not None:
        reply = held.ask(conversation_id, "follow", version=reply["run"]["version"])
        messages = reply.get("messages", messages)
    return messages  # type: ignore[no-any-return]


@pytest.mark.parametrize("step", ["active_run", "view"])
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("action", ["open", "follow"])
def test_an_answer_that_ends_while_it_is_drawn_is_shown_whole(
    held: Held, monkeypatch: pytest.MonkeyPatch, step: str, when: str, action: str
) -> None:
    manager, c = held.harness.manager, held.harness.conversation()
    run = manager.send(ADA, c, "hello")
    assert held.is_half.wait(10)
    real: Callable[..., Any] = getattr(manager, step)

    def ends(*args: object) -> Any:
        if when == "before":
            held.let_end(c)
        found = real(*args)
        if when == "after":
            held.let_end(c)
        return found

    monkeypatch.setattr(manager, step, ends)
    reply = held.ask(c, action, version=run.snapshot().version)
    monkeypatch.undo()
    held.go.set()
    last = followed(held, c, {"messages": [], **reply})[-1]
    assert (last["status"], last["text"]) == ("complete", manager.view(ADA, c).messages[-1].text)
    assert last["receipt"]


def test_an_answer_that_is_drawn_just_before_it_begins_is_followed(held: Held, monkeypatch: pytest.MonkeyPatch) -> None:
    manager, c = held.harness.manager, held.harness.conversation()
    add, drawn = manager.runs.add, []

    def look_first(run: Run) -> None:
        drawn.append(held.ask(c, "open"))
        add(run)

    monkeypatch.setattr(manager.runs, "add", look_first)
    held.go.set()
    manager.send(ADA, c, "hello")
    assert drawn[0]["messages"][-1]["status"] == "running"
    last = followed(held, c, drawn[0])[-1]
    assert (last["status"], last["text"]) == ("complete", manager.view(ADA, c).messages[-1].text)
