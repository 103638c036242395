"""Answers the sidebars: lists, memory, renaming, deleting, pinning, dropping, stopping, counting tokens."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from app import units
from app.access.public_link import Share
from app.page import memory_panel, settings, sidebar
from app.page.asked import Asked as Request
from app.page.asked import BadRequest, conversation_id, flag, line, text, whole, word
from app.page.news.rows import SentLists
from app.page.news.sections import news
from app.problems import sentence
from app.process_memory import ProcessMeter
from sessions.errors import ContextFull, ConversationNotFound, MessageRefused
from sessions.types import MemoryRow

if TYPE_CHECKING:
    from sessions.manager import SessionManager

Reply = dict[str, Any]
MOST_TAKEN_CHARACTERS = 10_000  # ids of conversations in other tabs
FIRST_ROWS = 200  # of the list: what a screen shows several times over, sent before all the others
MOST_MEMORY_ROWS = 1000  # that the memory panel shows at once


class Panels:
    """Answers the queries of the page's script; errors become `{"error": sentence}`."""

    def __init__(self, manager: SessionManager, share: Share, process: ProcessMeter) -> None:
        self._manager = manager
        self._share = share
        self._process = process
        self._sent = SentLists()
        self._place = units.tier_words(manager.info.device)
        self._answers: dict[str, Callable[[str, Request], Reply]] = {
            "pulse": self._pulse,
            "new": self._new,
            "settings": self._settings,
            "save_settings": self._save_settings,
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
            with units.in_zone(word(request, "zone")):
                return self._answers[name](owner_id, request)
        except Exception as error:
            return {"error": sentence(error, name), "trouble": self._trouble()}

    def _pulse(self, owner_id: str, request: Request) -> Reply:
        """What changed without the page's own actions, since the reply whose tokens the page sends along. Usually
        nothing: a page that is left alone asks again and again."""
        now = time.time()
        here = self._here(owner_id, conversation_id(request))
        wanted = min(MOST_MEMORY_ROWS, max(0, whole(request, "memory_rows")))
        view = self._manager.memory_view(owner_id, wanted + 1 if wanted else 0)
        has_more = wanted < len(view.rows) and wanted < MOST_MEMORY_ROWS
        view = replace(view, rows=view.rows[:wanted])
        memory = memory_panel.draw(view, now, here, self._place)
        process = self._process.read(self._manager.info, view)
        sections = {
            **memory,
            "more": has_more,
            "open": _open(here),
            "process": memory_panel.draw_process(process),
            "share": self._share.sentence(),
            "trouble": self._trouble(),
        }
        coarse = {"plot": memory_panel.plot_worth(memory["plot"], now), "process": memory_panel.process_worth(process)}
        reply = news(sections, word(request, "have"), coarse)
        changes = self._list_changes(owner_id, request, now)
        return reply if changes is None else reply | {"list": changes}

    def _list_changes(self, owner_id: str, request: Request, now: float) -> Reply | None:
        """What the page's list lacks. A page that has none gets the newest ones first, as a "part", and asks again for
        the "whole" list."""
        search, known = line(request, "search"), word(request, "list")
        # Headings change with the day, which begins at a quarter of an hour of the reader's clock.
        version = (self._manager.list_version(), search, word(request, "zone"), int(now // sidebar.QUARTER_S))
        if known and self._sent.is_newest(owner_id, known, version):
            return None
        if not (known or search or flag(request, "whole")):
            newest = self._manager.list_conversations(owner_id, most=FIRST_ROWS + 1)
            if len(newest) > FIRST_ROWS:
                shown = sidebar.without_one_offs(newest[:FIRST_ROWS])
                return {"token": "", "all": sidebar.rows(sidebar.draw(shown, now)), "part": True}
        found = self._manager.list_conversations(owner_id, search)
        rows = sidebar.rows(sidebar.draw(found if search else sidebar.without_one_offs(found), now))
        return self._sent.news(owner_id, rows, known, version)

    def _here(self, owner_id: str, where: str) -> MemoryRow | None:
        try:
            return self._manager.memory_row(owner_id, where)
        except ConversationNotFound:
            return None

    def _trouble(self) -> str:
        """What keeps the server from working normally, shown to every visitor; usually ""."""
        storage, engine = self._manager.storage, self._manager.engine_trouble
        reasons = (*storage.reasons, engine) if engine else storage.reasons
        if storage.can_store:
            return " ".join(reasons)
        return " ".join(("New messages cannot be stored now, so none are answered.", *reasons))

    def _new(self, owner_id: str, request: Request) -> Reply:
        """An empty conversation, none of those that other tabs have open."""
        taken = word(request, "taken")[:MOST_TAKEN_CHARACTERS].split(",")
        return {"conversation_id": self._manager.create_conversation(owner_id, taken=taken).conversation_id}

    def _settings(self, owner_id: str, request: Request) -> Reply:
        view = self._manager.view(owner_id, conversation_id(request))
        return {"values": settings.to_form(view.settings, view.context_limit_tokens)}

    def _save_settings(self, owner_id: str, request: Request) -> Reply:
        """Saves all fields or none. "errors" says what is wrong, by field."""
        where = conversation_id(request)
        form = {field.name: text(request, field.name) for field in settings.FIELDS}
        view = self._manager.view(owner_id, where)
        try:
            chosen = settings.from_form(form, view.settings, view.context_limit_tokens)
            self._manager.update_settings(owner_id, where, chosen)
        except settings.SettingsRefused as refused:
            return {"errors": refused.errors}
        except (ContextFull, MessageRefused) as error:  # both are about the system prompt
            return {"errors": {"system_prompt": str(error)}}
        return {}

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


def _open(here: MemoryRow | None) -> Reply | None:
    """What tells the page that the open conversation was continued elsewhere. Its list may be searched, and lack it."""
    if here is None:
        return None
    return {"id": here.conversation_id, "updated_at": here.updated_at, "is_running": here.is_running}
