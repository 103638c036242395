"""A run as a response of OpenAI's Responses API: whole, or as a stream of numbered events."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from app.api.answers import KEEP_ALIVE, Progress, receipt, refuse_failed
from app.api.openai_responses import output
from app.api.openai_responses.output import ItemIds
from app.problems import Problem
from model_runtime.interface.chat import ChatMessage
from model_runtime.interface.events import TokenLogprobs
from sessions.turns.run import Run
from sessions.types import MessageView, RunSnapshot


@dataclass(slots=True)
class ResponseReply:
    """Tells one run as a response: a `Voice`. `response` has no output yet; `count` counts the tokens of thoughts."""

    run: Run
    response: dict[str, Any]
    count: Callable[[str], int]
    ignored: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    media_type: str = "text/event-stream"
    keep_alive: str = KEEP_ALIVE
    _number: int = 0  # of the next event
    _progress: Progress = field(default_factory=Progress)
    _open: str = ""  # the item that grows: "reasoning" or "message"
    _text: str = ""  # of that item
    _items: list[dict[str, Any]] = field(default_factory=list)  # that are complete
    _logprobs: list[TokenLogprobs] = field(default_factory=list)

    @property
    def _ids(self) -> ItemIds:
        return ItemIds(str(self.response["id"]))

    def whole(self, message: MessageView, said: ChatMessage) -> dict[str, Any]:
        refuse_failed(message)
        found = self.run.logprobs if self.run.plan.sampling.top_logprobs is not None else None
        return self._ended(message, said, output.items(self._ids, said, found))

    def opening(self) -> list[str]:
        return [self._event(kind, response=self.response) for kind in ("response.created", "response.in_progress")]

    def news(self, run: RunSnapshot, shown: tuple[str, str]) -> list[str]:
        found: list[str] = []
        for delta, logprobs in self._progress.take(self.run, *shown):
            for name, text in delta.items():
                found += self._grow("message" if name == "content" else "reasoning", text, logprobs)
        return found

    def ending(self, message: MessageView, said: ChatMessage) -> list[str]:
        found: list[str] = []
        rest = [one for _, more in self._progress.rest(self.run) for one in more]
        if rest or not (self._open == "message" or said.tool_calls):
            found += self._grow("message", "", rest)
        found += self._close()
        for number, call in enumerate(said.tool_calls):
            begun = output.call_item(self._ids, number, call, "in_progress")
            item, place = output.call_item(self._ids, number, call), len(self._items)
            where = {"item_id": item["id"], "output_index": place}
            kind = "response.function_call_arguments"
            found += [
                self._event("response.output_item.added", output_index=place, item=begun),
                self._event(f"{kind}.delta", **where, delta=call.arguments),
                self._event(f"{kind}.done", **where, name=call.name, arguments=call.arguments),
                self._event("response.output_item.done", output_index=place, item=item),
            ]
            self._items.append(item)
        response = self._ended(message, said, self._items)
        kind = "response.completed" if response["status"] == "completed" else "response.incomplete"
        return [*found, self._event(kind, response=response)]

    def failing(self, problem: Problem) -> list[str]:
        error = {"code": problem.code or "server_error", "message": problem.message}
        response = {**self.response, "status": "failed", "error": error, "output": self._items}
        return [self._event("response.failed", response=response)]

    def _grow(self, kind: str, text: str, logprobs: list[TokenLogprobs]) -> list[str]:
        found = [] if self._open == kind else [*self._close(), *self._begin(kind)]
        self._text += text
        self._logprobs += logprobs
        told = {"logprobs": output.logprobs_of(logprobs)} if kind == "message" else {}
        if text or logprobs:
            found.append(self._event(f"{_TEXT[kind]}.delta", **self._part_place(kind), delta=text, **told))
        return found

    def _begin(self, kind: str) -> list[str]:
        self._open, self._text, self._logprobs = kind, "", []
        return [
            self._event(
                "response.output_item.added", output_index=len(self._items), item=self._item(kind, "in_progress")
            ),
            self._event("response.content_part.added", **self._part_place(kind), part=self._part(kind)),
        ]

    def _close(self) -> list[str]:
        kind = self._open
        if not kind:
            return []
        place, part, item = self._part_place(kind), self._part(kind), self._item(kind, "completed")
        told = {"logprobs": part["logprobs"]} if kind == "message" else {}
        found = [
            self._event(f"{_TEXT[kind]}.done", **place, text=self._text, **told),
            self._event("response.content_part.done", **place, part=part),
            self._event("response.output_item.done", output_index=place["output_index"], item=item),
        ]
        self._items.append(item)
        self._open = ""
        return found

    def _part(self, kind: str) -> dict[str, Any]:
        if kind == "message":
            return output.text_part(self._text, self._logprobs)
        return {"type": "reasoning_text", "text": self._text}

    def _item(self, kind: str, status: str) -> dict[str, Any]:
        if kind == "message":
            return output.message_item(self._ids, [self._part(kind)] if status == "completed" else [], status)
        return output.reasoning_item(self._ids, self._text, status)

    def _part_place(self, kind: str) -> dict[str, Any]:
        item_id = self._ids.message if kind == "message" else self._ids.reasoning
        return {"item_id": item_id, "output_index": len(self._items), "content_index": 0}

    def _ended(self, message: MessageView, said: ChatMessage, found: list[dict[str, Any]]) -> dict[str, Any]:
        kept = receipt(self.run, message, self.ignored, self.notes)
        sampled = message.receipt.sampled_tokens if message.receipt else len(self.run.sampled)
        prompt = len(self.run.plan.turn.ledger)
        usage = output.usage_of(prompt, message.receipt, sampled, self.count(said.thoughts))
        response = output.ended(self.response, message, self.run.finish_reason, found)
        return {**response, "usage": usage, "keepwarm": kept}

    def _event(self, kind: str, **more: Any) -> str:
        body = {"type": kind, "sequence_number": self._number, **more}
        self._number += 1
        return f"event: {kind}\ndata: {json.dumps(body, ensure_ascii=False)}\n\n"


_TEXT = {"message": "response.output_text", "reasoning": "response.reasoning_text"}
