"""What the centre of the page can do: open a conversation, send, regenerate, edit, continue, switch, follow a run.

Every method takes the owner, who comes from the signed cookie, never from what the browser sent. Generation does not
live here: a run belongs to the session manager, and the page follows it with short requests. A stream for every tab
would use up the six connections a browser opens to one host; the seventh tab would hang.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from app import cache_panel, problems, thread
from sessions.errors import ConversationNotFound
from sessions.types import RunPhase

if TYPE_CHECKING:
    from sessions.manager import SessionManager

FOLLOW_WAIT_S = 0.08
Request = Mapping[str, Any]


class Chat:
    """Turns a request of the page's script into a drawing of the conversation."""

    def __init__(self, manager: SessionManager) -> None:
        self._manager = manager
        self._actions: dict[str, Callable[[str, Request], None]] = {
            "open": self._open,
            "send": self._send,
            "regenerate": self._regenerate,
            "edit": self._edit,
            "continue": self._continue,
            "switch": self._switch,
        }

    def act(self, owner_id: str, request: Request) -> tuple[thread.Drawing | None, dict[str, Any]]:
        """(drawing, reply). Without a drawing nothing on the page changes but the reply's "error" sentence."""
        name = str(request.get("action", ""))
        reply: dict[str, Any] = {"seq": request.get("seq")}
        try:
            if name == "follow":
                return self._follow(owner_id, request, reply)
            self._actions[name](owner_id, request)
            drawing = self.draw(owner_id, _conversation(request), _shown(request))
        except ConversationNotFound as error:
            reply |= {"error": str(error), "gone": True}
            return None, reply
        except Exception as error:
            reply["error"] = problems.sentence(error, name)
            return None, reply
        return drawing, reply | drawing.state

    def draw(self, owner_id: str, conversation_id: str, shown: int = thread.SHOWN_MESSAGES) -> thread.Drawing:
        """The conversation now, its running answer included."""
        run = self._manager.active_run(owner_id, conversation_id)
        view = self._manager.view(owner_id, conversation_id)
        return thread.draw(view, run.snapshot() if run is not None else None, shown)

    def _follow(
        self, owner_id: str, request: Request, reply: dict[str, Any]
    ) -> tuple[thread.Drawing | None, dict[str, Any]]:
        """News of a run since the version the page has. Ends with the whole conversation when the run has ended."""
        conversation_id = _conversation(request)
        run = self._manager.active_run(owner_id, conversation_id)
        version = _integer(request, "version")
        snapshot = run.wait(version, FOLLOW_WAIT_S) if run is not None else None
        if request.get("memory"):  # the panel beside a run is pushed with it; the page asks about once a second
            reply["memory"] = cache_panel.draw(self._manager.memory(owner_id))
        if snapshot is None or snapshot.phase is RunPhase.DONE:
            drawing = self.draw(owner_id, conversation_id, _shown(request))
            return drawing, reply | drawing.state
        reply |= {"conversation_id": conversation_id, "run": thread.run_state(snapshot)}
        if snapshot.version == version:
            return None, reply
        return thread.Drawing([], [thread.answer_row(snapshot.text)], {}), reply | {"live": True}

    def _open(self, owner_id: str, request: Request) -> None:
        """The drawing follows every action; a saved KV begins to come back, for a message will probably follow."""
        self._manager.prepare(owner_id, _conversation(request))

    def _send(self, owner_id: str, request: Request) -> None:
        self._manager.send(owner_id, _conversation(request), _text(request))

    def _regenerate(self, owner_id: str, request: Request) -> None:
        self._manager.regenerate(owner_id, _conversation(request))

    def _edit(self, owner_id: str, request: Request) -> None:
        self._manager.edit(owner_id, _conversation(request), _integer(request, "message_id"), _text(request))

    def _continue(self, owner_id: str, request: Request) -> None:
        self._manager.continue_answer(owner_id, _conversation(request))

    def _switch(self, owner_id: str, request: Request) -> None:
        step = 1 if _integer(request, "step") > 0 else -1
        self._manager.switch_sibling(owner_id, _conversation(request), _integer(request, "message_id"), step)


def _conversation(request: Request) -> str:
    return str(request.get("conversation_id", ""))


def _text(request: Request) -> str:
    return str(request.get("text", ""))


def _shown(request: Request) -> int:
    return max(1, _integer(request, "shown", thread.SHOWN_MESSAGES))


def _integer(request: Request, name: str, default: int = 0) -> int:
    try:
        return int(request.get(name, default))
    except (TypeError, ValueError):
        return default
