"""A run as one of Anthropic's messages: whole, or as a stream of events."""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass, field
from typing import Any

from app.api.answers import receipt, refuse_failed
from app.api.anthropic.messages import RAW_ARGUMENTS
from app.error_shapes import anthropic_error
from app.problems import Problem
from model_runtime.interface.chat import ChatMessage, ToolCall
from model_runtime.interface.events import FinishReason
from sessions.turns.run import Run
from sessions.types import MessageView, RunPhase, RunSnapshot


@dataclass(slots=True)
class MessageReply:
    """Tells one run as a message: a `Voice`. `marks_cache`: what was fed counts as written to a cache entry."""

    run: Run
    model: str
    ignored: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    marks_cache: bool = False
    knows_reuse: bool = True  # before the first token; a remote engine says it at the end, if at all
    reply_id: str = field(default_factory=lambda: f"msg_{uuid.uuid4().hex}")
    media_type: str = "text/event-stream"
    keep_alive: str = field(default_factory=lambda: event("ping"))
    _blocks: int = 0  # that were begun
    _open: str = ""  # the kind of the block that grows
    _told: dict[str, int] = field(default_factory=lambda: {"thinking": 0, "text": 0})  # characters
    _has_begun: bool = False

    def whole(self, message: MessageView, said: ChatMessage) -> dict[str, Any]:
        refuse_failed(message)
        blocks: list[dict[str, Any]] = []
        if said.thoughts:
            blocks.append({"type": "thinking", "thinking": said.thoughts, "signature": ""})
        if said.text or not (blocks or said.tool_calls):
            blocks.append({"type": "text", "text": said.text})
        blocks += [_tool_use(call) for call in said.tool_calls]
        usage = self._usage(self._fed_tokens(message), self._sampled_tokens(message))
        return {**self._head(blocks, usage), **self._end(said), "keepwarm": self._receipt(message)}

    def opening(self) -> list[str]:
        return []  # how much comes from a KV is known when the prompt was read

    def news(self, run: RunSnapshot, shown: tuple[str, str]) -> list[str]:
        found: list[str] = []
        if not self._has_begun and (run.sampled_tokens or run.phase is RunPhase.DONE):
            self._has_begun = True
            fed_tokens = run.total_tokens if self.knows_reuse else len(self.run.plan.turn.ledger)
            head = self._head([], self._usage(fed_tokens, 0))
            found.append(event("message_start", message={**head, "stop_reason": None, "stop_sequence": None}))
        for kind, text in zip(self._told, shown, strict=True):
            if len(text) > self._told[kind]:
                found += self._grow(kind, text[self._told[kind] :])
                self._told[kind] = len(text)
        return found

    def ending(self, message: MessageView, said: ChatMessage) -> list[str]:
        found = [] if self._blocks or said.tool_calls else self._begin("text", {"type": "text", "text": ""})
        found += self._close()
        for call in said.tool_calls:
            found += self._begin("tool_use", {**_tool_use(call), "input": {}})
            delta = {"type": "input_json_delta", "partial_json": json.dumps(_input(call), ensure_ascii=False)}
            found += [event("content_block_delta", index=self._blocks - 1, delta=delta), *self._close()]
        usage = self._usage(self._fed_tokens(message), self._sampled_tokens(message))
        more = {"usage": usage, "keepwarm": self._receipt(message)}
        return [*found, event("message_delta", delta=self._end(said), **more), event("message_stop")]

    def failing(self, problem: Problem) -> list[str]:
        body = anthropic_error(problem)
        return [f"event: error\ndata: {json.dumps(body, ensure_ascii=False)}\n\n"]

    def _grow(self, kind: str, text: str) -> list[str]:
        found: list[str] = []
        if self._open != kind:
            empty = {"thinking": "", "signature": ""} if kind == "thinking" else {"text": ""}
            found = [*self._close(), *self._begin(kind, {"type": kind, **empty})]
        return [
            *found,
            event("content_block_delta", index=self._blocks - 1, delta={"type": f"{kind}_delta", kind: text}),
        ]

    def _begin(self, kind: str, block: dict[str, Any]) -> list[str]:
        self._open, self._blocks = kind, self._blocks + 1
        return [event("content_block_start", index=self._blocks - 1, content_block=block)]

    def _close(self) -> list[str]:
        was_open, self._open = self._open, ""
        return [event("content_block_stop", index=self._blocks - 1)] if was_open else []

    def _end(self, said: ChatMessage) -> dict[str, Any]:
        run = self.run
        stopped_by = run.stop_string if run.stop_string in run.plan.sampling.stop_strings else None
        if said.tool_calls:
            return {"stop_reason": "tool_use", "stop_sequence": None}
        if stopped_by:
            return {"stop_reason": "stop_sequence", "stop_sequence": stopped_by}
        reasons = {
            FinishReason.LENGTH: "max_tokens",
            FinishReason.CONTEXT: "model_context_window_exceeded",
        }
        reason = reasons.get(run.finish_reason, "end_turn") if run.finish_reason else "end_turn"
        return {"stop_reason": reason, "stop_sequence": None}

    def _usage(self, fed_tokens: int, sampled_tokens: int) -> dict[str, int]:
        """Every token of the prompt is in one of the three numbers."""
        return {
            "input_tokens": 0 if self.marks_cache else fed_tokens,
            "cache_creation_input_tokens": fed_tokens if self.marks_cache else 0,
            "cache_read_input_tokens": len(self.run.plan.turn.ledger) - fed_tokens,
            "output_tokens": sampled_tokens,
        }

    def _fed_tokens(self, message: MessageView) -> int:
        reused = message.receipt.reused_tokens if message.receipt else 0
        return len(self.run.plan.turn.ledger) - reused

    def _sampled_tokens(self, message: MessageView) -> int:
        return message.receipt.sampled_tokens if message.receipt else len(self.run.sampled)

    def _receipt(self, message: MessageView) -> dict[str, Any]:
        return receipt(self.run, message, self.ignored, self.notes)

    def _head(self, blocks: list[dict[str, Any]], usage: dict[str, int]) -> dict[str, Any]:
        return {
            "id": self.reply_id,
            "type": "message",
            "role": "assistant",
            "model": self.model,
            "content": blocks,
            "usage": usage,
        }


def event(kind: str, **more: Any) -> str:
    """One server-sent event."""
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **more}, ensure_ascii=False)}\n\n"


def _tool_use(call: ToolCall) -> dict[str, Any]:
    return {"type": "tool_use", "id": call.call_id, "name": call.name, "input": _input(call)}


def _input(call: ToolCall) -> dict[str, Any]:
    try:
        found = json.loads(call.arguments)
    except (ValueError, RecursionError):
        found = None
    return found if isinstance(found, dict) else {RAW_ARGUMENTS: call.arguments}
