"""What the centre of the page can do: open a conversation, send, regenerate, edit, continue, switch, follow a run.

Every method takes the owner, who comes from the signed cookie, never from what the browser sent. Generation does not
live here: a run belongs to the session manager, and the page follows it with short requests. A stream for every tab
would use up the six connections a browser opens to one host; the seventh tab would hang.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from app import cache_panel, problems, thread
from app.markdown.growing import Answers
from sessions.errors import ConversationNotFound
from sessions.types import RunPhase

if TYPE_CHECKING:
    from sessions.manager import SessionManager

FOLLOW_WAIT_S = 0.08
Request = Mapping[str, Any]


class Chat:
    """Turns a request of the page's script into JSON that the script draws."""

    def __init__(self, manager: SessionManager) -> None:
        self._manager = manager
        self._answers = Answers()
        self._actions: dict[str, Callable[[str, Request], None]] = {
            "open": self._open,
            "send": self._send,
            "regenerate": self._regenerate,
            "edit": self._edit,
            "continue": self._continue,
            "switch": self._switch,
        }

    def act(self, owner_id: str, request: Request) -> dict[str, Any]:
        """The conversation after what was asked, or what is new of its run, or an "error" sentence."""
        name = str(request.get("action", ""))
        reply: dict[str, Any] = {"seq": request.get("seq")}
        try:
            if name == "follow":
                return reply | self._follow(owner_id, request)
            self._actions[name](owner_id, request)
            return reply | self.draw(owner_id, _conversation(request), _shown(request))
        except ConversationNotFound as error:
            return reply | {"error": str(error), "gone": True}
        except Exception as error:
            return reply | {"error": problems.sentence(error, name)}

    def draw(self, owner_id: str, conversation_id: str, shown: int = thread.SHOWN_MESSAGES) -> dict[str, Any]:
        """The conversation now, its running answer included."""
        run = self._manager.active_run(owner_id, conversation_id)
        view = self._manager.view(owner_id, conversation_id)
        return thread.draw(view, run.snapshot() if run is not None else None, self._answers, shown)

    def _follow(self, owner_id: str, request: Request) -> dict[str, Any]:
        """News of a run since the version the page has. Ends with the whole conversation when the run has ended."""
        conversation_id = _conversation(request)
        run = self._manager.active_run(owner_id, conversation_id)
        version = _integer(request, "version")
        snapshot = run.wait(version, FOLLOW_WAIT_S) if run is not None else None
        reply: dict[str, Any] = {}
        if request.get("memory"):  # the panel beside a run is pushed with it; the page asks about once a second
            reply["memory"] = cache_panel.draw(self._manager.memory(owner_id))
        if snapshot is None or snapshot.phase is RunPhase.DONE:
            return reply | self.draw(owner_id, conversation_id, _shown(request))
        reply |= {"conversation_id": conversation_id, "run": thread.run_state(snapshot)}
        if snapshot.version != version:
            blocks = self._answers.growing(conversation_id, snapshot.text)
            reply["answer"] = thread.news(blocks, _known(request))
        return reply

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


def _known(request: Request) -> frozenset[str]:
    """The keys of the blocks that the page has."""
    known = request.get("known")
    return frozenset(key for key in known if isinstance(key, str)) if isinstance(known, list) else frozenset()


def _integer(request: Request, name: str, default: int = 0) -> int:
    try:
        return int(request.get(name, default))
    except (TypeError, ValueError):
        return default
