"""The centre of the page: opens a conversation, sends, regenerates, edits, continues, switches, follows a run.

Every method takes the owner, which comes from the signed cookie and never from the request's fields. Generation happens
elsewhere: a run belongs to the session manager, and the page follows it with short requests. One stream per tab would
use up the six connections that a browser opens to one host; the seventh tab would hang.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from app import units
from app.page import memory_panel, thread
from app.page.asked import Asked as Request
from app.page.asked import BadRequest, conversation_id, flag, line, text, whole, word
from app.page.markdown.answers import AnswerDrawer
from app.problems import sentence
from sessions.errors import ConversationNotFound
from sessions.text_search import folded, holds
from sessions.types import RunPhase

if TYPE_CHECKING:
    from sessions.manager import SessionManager

FOLLOW_WAIT_S = 0.08


class Chat:
    """Turns a request of the page's script into JSON that the script draws."""

    def __init__(self, manager: SessionManager) -> None:
        self._manager = manager
        self._answers = AnswerDrawer(manager.prompt_end)
        self._place = units.tier_words(manager.info.device)
        self._actions: dict[str, Callable[[str, Request], None]] = {
            "open": self._open,
            "send": self._send,
            "regenerate": self._regenerate,
            "edit": self._edit,
            "continue": self._continue,
            "switch": self._switch,
        }

    def act(self, owner_id: str, request: Request) -> dict[str, Any]:
        """Performs a request. Returns the conversation after it, what is new in its run, or an "error" sentence."""
        name = "act"
        try:
            name = word(request, "action")
            if name == "follow":
                return self._follow(owner_id, request)
            if name not in self._actions:
                raise BadRequest
            self._actions[name](owner_id, request)
            return self.draw(owner_id, conversation_id(request), _shown(request), line(request, "find"), _have(request))
        except ConversationNotFound as error:
            return {"error": str(error), "gone": not self._exists(owner_id, request)}
        except Exception as error:
            return {"error": sentence(error, name)}

    def _exists(self, owner_id: str, request: Request) -> bool:
        """Whether only a message of the conversation is missing, not all of it."""
        try:
            self._manager.active_run(owner_id, conversation_id(request))
        except ConversationNotFound:
            return False
        return True

    def draw(
        self,
        owner_id: str,
        conversation_id: str,
        shown: int = thread.SHOWN_MESSAGES,
        find: str = "",
        have: frozenset[str] = frozenset(),
    ) -> dict[str, Any]:
        """The conversation as it is now, including its running answer. With `find`, as many messages as it takes to
        show the last one that contains this text, and its place among them as "found". `have`: see `thread.draw`."""
        run = self._manager.active_run(owner_id, conversation_id)
        # Before the messages are read: an answer that ends in between is shown complete, and followed once more.
        snapshot = run.snapshot() if run is not None else None
        view = self._manager.view(owner_id, conversation_id)
        needle = folded(find.strip())
        places = [
            n for n, one in enumerate(view.messages) if needle and holds(f"{one.system_text}\n{one.text}", needle)
        ]
        if places:
            shown = max(shown, len(view.messages) - places[-1] + 1)
        drawn = thread.draw(view, snapshot, self._answers, shown, self._place, have)
        if places:
            drawn |= {"found": places[-1] - drawn["hidden"], "shown": shown}
        return drawn

    def _follow(self, owner_id: str, request: Request) -> dict[str, Any]:
        """What is new in a run since the version that the page has; the whole conversation once the run has ended."""
        where = conversation_id(request)
        run = self._manager.active_run(owner_id, where)
        version = whole(request, "version")
        snapshot = run.wait(version, FOLLOW_WAIT_S) if run is not None else None
        reply: dict[str, Any] = {}
        if flag(request, "memory"):  # during a run the page asks for the memory panel about once a second
            view = self._manager.memory_view(owner_id, most_rows=0)
            reply["memory"] = memory_panel.draw(view, None, self._manager.memory_row(owner_id, where), self._place)
        if snapshot is None or snapshot.phase is RunPhase.DONE:
            return reply | self.draw(owner_id, where, _shown(request), have=_have(request))
        reply |= {"conversation_id": where, "run": thread.run_state(snapshot)}
        if snapshot.version != version:
            reply["answer"] = thread.news(self._answers.growing(where, snapshot.text), _known(request))
        return reply

    def _open(self, owner_id: str, request: Request) -> None:
        """Starts to restore a saved KV, because a message will probably follow. `act` draws after every action."""
        self._manager.prepare(owner_id, conversation_id(request))

    def _send(self, owner_id: str, request: Request) -> None:
        self._manager.send(owner_id, conversation_id(request), text(request, "text"))

    def _regenerate(self, owner_id: str, request: Request) -> None:
        self._manager.regenerate(owner_id, conversation_id(request))

    def _edit(self, owner_id: str, request: Request) -> None:
        self._manager.edit(owner_id, conversation_id(request), whole(request, "message_id"), text(request, "text"))

    def _continue(self, owner_id: str, request: Request) -> None:
        self._manager.continue_answer(owner_id, conversation_id(request))

    def _switch(self, owner_id: str, request: Request) -> None:
        step = 1 if whole(request, "step") > 0 else -1
        self._manager.switch_sibling(owner_id, conversation_id(request), whole(request, "message_id"), step)


def _shown(request: Request) -> int:
    return max(1, whole(request, "shown", thread.SHOWN_MESSAGES))


def _have(request: Request) -> frozenset[str]:
    """The tokens of the messages that the page has, in one string."""
    return frozenset(word(request, "have").split(","))


def _known(request: Request) -> frozenset[str]:
    """The keys of the blocks that the page has. They come as one string: a question carries only plain values."""
    return frozenset(word(request, "known").split(","))
