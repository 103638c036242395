"""A run as Ollama tells it: one JSON object, or one on each line of a stream."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from app.api.answers import Progress, finish_reason, logprob, receipt, refuse_failed
from app.api.ollama.translation import RAW_ARGUMENTS
from app.problems import Problem
from model_runtime.interface.chat import ChatMessage, ToolCall
from model_runtime.interface.events import TokenLogprobs
from sessions.turns.run import Run
from sessions.types import MessageView, RunSnapshot

NS = 1_000_000_000


@dataclass(slots=True)
class OllamaReply:
    """Tells one run as an answer to a chat, or to a prompt: a `Voice`. `model` is the name that was asked for,
    `context` what a prompt's client may send back to go on."""

    run: Run
    model: str
    is_chat: bool
    began_s: float  # of the monotonic clock, when the request came
    ignored: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    context: tuple[int, ...] = ()
    media_type: str = "application/x-ndjson"
    _progress: Progress = field(default_factory=Progress)

    @property
    def keep_alive(self) -> str:
        return _line(self._piece({"content": ""}))  # its clients parse every line

    def whole(self, message: MessageView, said: ChatMessage) -> dict[str, Any]:
        refuse_failed(message)
        found = self.run.logprobs if self.run.plan.sampling.top_logprobs is not None else ()
        delta = {"content": said.text, **({"reasoning_content": said.thoughts} if said.thoughts else {})}
        return {**self._piece(delta, said.tool_calls, found), **self._end(message, said)}

    def opening(self) -> list[str]:
        return []

    def news(self, run: RunSnapshot, shown: tuple[str, str]) -> list[str]:
        return [_line(self._piece(delta, (), found)) for delta, found in self._progress.take(self.run, *shown)]

    def ending(self, message: MessageView, said: ChatMessage) -> list[str]:
        rest = [_line(self._piece(delta, (), found)) for delta, found in self._progress.rest(self.run)]
        if said.tool_calls:
            rest.append(_line(self._piece({"content": ""}, said.tool_calls)))
        return [*rest, _line({**self._piece({"content": ""}), **self._end(message, said)})]

    def failing(self, problem: Problem) -> list[str]:
        return [_line({"error": problem.message})]

    def _piece(
        self, delta: dict[str, str], calls: Sequence[ToolCall] = (), logprobs: Sequence[TokenLogprobs] = ()
    ) -> dict[str, Any]:
        told = {"logprobs": [_token(one) for one in logprobs]} if logprobs else {}
        text, thoughts = delta.get("content", ""), delta.get("reasoning_content", "")
        head = {"model": self.model, "created_at": now(), "done": False}
        if not self.is_chat:
            return {**head, "response": text, **({"thinking": thoughts} if thoughts else {}), **told}
        message: dict[str, Any] = {"role": "assistant", "content": text}
        if thoughts:
            message["thinking"] = thoughts
        if calls:
            message["tool_calls"] = [_call(number, call) for number, call in enumerate(calls)]
        return {**head, "message": message, **told}

    def _end(self, message: MessageView, said: ChatMessage) -> dict[str, Any]:
        cost = message.receipt
        return {
            "done": True,
            "done_reason": "length" if finish_reason(self.run, said) == "length" else "stop",
            "total_duration": round((time.monotonic() - self.began_s) * NS),
            "load_duration": 0,  # the model is always loaded
            "prompt_eval_count": len(self.run.plan.turn.ledger),
            "prompt_eval_duration": round(cost.prefill_s * NS) if cost else 0,
            "eval_count": cost.sampled_tokens if cost else len(self.run.sampled),
            "eval_duration": round(cost.decode_s * NS) if cost else 0,
            **({"context": list(self.context)} if self.context else {}),
            "keepwarm": receipt(self.run, message, self.ignored, self.notes),
        }


def now() -> str:
    """As Ollama writes times."""
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


def _line(body: dict[str, Any]) -> str:
    return json.dumps(body, ensure_ascii=False) + "\n"


def _call(number: int, call: ToolCall) -> dict[str, Any]:
    try:
        arguments = json.loads(call.arguments)
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        arguments = {RAW_ARGUMENTS: call.arguments}
    return {"id": call.call_id, "function": {"index": number, "name": call.name, "arguments": arguments}}


def _token(one: TokenLogprobs) -> dict[str, Any]:
    return {**logprob(one.chosen), "top_logprobs": [logprob(top) for top in one.top]}
