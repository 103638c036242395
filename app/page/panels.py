"""Answers the sidebars: lists, memory, renaming, deleting, pinning, dropping, stopping, counting tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from app import units
from app.access.public_link import Share
from app.page import memory_panel, sidebar
from app.page.asked import Asked as Request
from app.page.asked import BadRequest, conversation_id, flag, line, text, word
from app.problems import sentence
from app.process_memory import ProcessMeter

if TYPE_CHECKING:
    from sessions.manager import SessionManager

Reply = dict[str, Any]


class Panels:
    """Answers the queries of the page's script; errors become `{"error": sentence}`."""

    def __init__(self, manager: SessionManager, share: Share, process: ProcessMeter) -> None:
        self._manager = manager
        self._share = share
        self._process = process
        self._answers: dict[str, Callable[[str, Request], Reply]] = {
            "pulse": self._pulse,
            "new": self._new,
            "rename": self._rename,
            "delete": self._delete,
            "pin": self._pin,
            "unpin": self._unpin,
            "park": self._park,
            "warm": self._warm,
            "verify": self._verify,
            "drop": self._drop,
            "stop": self._stop,
            "count": self._count,
        }

    def ask(self, owner_id: str, request: Request) -> Reply:
        """The reply, or an "error" sentence."""
        name = "ask"
        try:
            name = word(request, "ask")
            if name not in self._answers:
                raise BadRequest
            return self._answers[name](owner_id, request)
        except Exception as error:
            return {"error": sentence(error, name), "trouble": self._trouble()}

    def _pulse(self, owner_id: str, request: Request) -> Reply:
        """Everything that changes without the page's own actions. A visible page asks every second or two."""
        search = line(request, "search")
        found = self._manager.list_conversations(owner_id, search)
        view = self._manager.memory_view(owner_id)
        return {
            "conversations": sidebar.draw(found if search else sidebar.without_one_offs(found)),
            "memory": memory_panel.draw(view),
            "process": memory_panel.draw_process(self._process.read(self._manager.info, view)),
            "share": self._share.sentence(),
            "trouble": self._trouble(),
        }

    def _trouble(self) -> str:
        """What keeps the server from working normally, shown to every visitor; usually ""."""
        storage, engine = self._manager.storage, self._manager.engine_trouble
        reasons = (*storage.reasons, engine) if engine else storage.reasons
        if storage.can_store:
            return " ".join(reasons)
        return " ".join(("New messages cannot be stored now, so none are answered.", *reasons))

    def _new(self, owner_id: str, request: Request) -> Reply:
        return {"conversation_id": self._manager.create_conversation(owner_id).conversation_id}

    def _rename(self, owner_id: str, request: Request) -> Reply:
        self._manager.rename(owner_id, conversation_id(request), line(request, "title"))
        return {}

    def _delete(self, owner_id: str, request: Request) -> Reply:
        self._manager.delete(owner_id, conversation_id(request))
        return {}

    def _pin(self, owner_id: str, request: Request) -> Reply:
        self._manager.pin(owner_id, conversation_id(request))
        return {}

    def _unpin(self, owner_id: str, request: Request) -> Reply:
        self._manager.unpin(owner_id, conversation_id(request))
        return {}

    def _park(self, owner_id: str, request: Request) -> Reply:
        self._manager.park(owner_id, conversation_id(request), "host" if word(request, "tier") == "host" else "disk")
        return {}

    def _warm(self, owner_id: str, request: Request) -> Reply:
        if self._manager.warm(owner_id, conversation_id(request)):
            return {}
        return {"error": "There is not enough free memory on the device for it now. Its next message brings it back."}

    def _verify(self, owner_id: str, request: Request) -> Reply:
        """Starts a verification. The rows of the memory panel show its progress and result."""
        self._manager.verify(owner_id, conversation_id(request))
        return {}

    def _drop(self, owner_id: str, request: Request) -> Reply:
        self._manager.drop_kv(owner_id, conversation_id(request))
        return {}

    def _stop(self, owner_id: str, request: Request) -> Reply:
        self._manager.stop(owner_id, conversation_id(request))
        return {}

    def _count(self, owner_id: str, request: Request) -> Reply:
        """A draft's token count; with "ahead" the draft is also read while no request is waiting."""
        draft = text(request, "draft")
        draft_tokens, free_tokens = self._manager.count_tokens(owner_id, conversation_id(request), draft)
        fits = draft_tokens <= free_tokens
        if flag(request, "ahead") and fits:
            self._manager.read_ahead(owner_id, conversation_id(request), draft)
        label = f"{units.tokens(draft_tokens)} {'token' if draft_tokens == 1 else 'tokens'}"
        if not fits:
            label += f", {units.tokens(max(0, free_tokens))} fit"
        return {"draft_tokens": draft_tokens, "fits": fits, "label": label}
