"""A run as an OpenAI response: whole, or as a stream of chunks that ends with the usage and the receipt."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from app.problems import Problem
from model_runtime.interface.chat import ChatMessage
from model_runtime.interface.events import FinishReason, TokenLogprob, TokenLogprobs
from sessions.store.tables.messages import INTERRUPTED_NOTE
from sessions.turns.run import Run
from sessions.types import MessageStatus, MessageView, Parting, Receipt, RunSnapshot, Tier

DONE = "data: [DONE]\n\n"
KEEP_ALIVE = ": waiting\n\n"  # a comment, among server-sent events


@dataclass(slots=True)
class Reply:
    """Tells one run as a chat completion: a `Voice`. `include_usage` is about streams."""

    run: Run
    model: str
    created: int  # seconds since the epoch
    ignored: tuple[str, ...] = ()  # fields of the request that changed nothing
    notes: tuple[str, ...] = ()  # sentences about how it was honoured
    include_usage: bool = False
    # Random: a counter would reveal how many requests others send.
    completion_id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    media_type: str = "text/event-stream"
    keep_alive: str = KEEP_ALIVE
    _progress: Progress = field(default_factory=lambda: Progress())

    def whole(self, message: MessageView, said: ChatMessage) -> dict[str, Any]:
        """The response of a request that does not stream. Raises `Problem` for an answer that failed."""
        refuse_failed(message)
        choice = {
            "index": 0,
            "message": {
                "role": "assistant",
                "content": said.text or (None if said.tool_calls else ""),
                "refusal": None,
            },
            "logprobs": _logprobs(self.run.logprobs) if self._wants_logprobs else None,
            "finish_reason": finish_reason(self.run, said),
        }
        if said.thoughts:
            choice["message"]["reasoning_content"] = said.thoughts  # type: ignore[index]
        if said.tool_calls:
            choice["message"]["tool_calls"] = tool_calls(said)  # type: ignore[index]
        head = self._head("chat.completion")
        return {**head, "choices": [choice], "usage": usage(self.run, message), "keepwarm": self._receipt(message)}

    def opening(self) -> list[str]:
        return [self._chunk({"role": "assistant", "content": ""})]

    def news(self, run: RunSnapshot, shown: tuple[str, str]) -> list[str]:
        return [self._chunk(delta, logprobs=found) for delta, found in self._progress.take(self.run, *shown)]

    def ending(self, message: MessageView, said: ChatMessage) -> list[str]:
        finish = finish_reason(self.run, said)
        ending = [self._chunk(delta, logprobs=found) for delta, found in self._progress.rest(self.run)]
        if said.tool_calls:
            ending.append(self._chunk({"tool_calls": tool_calls(said, with_index=True)}))
        if self.include_usage:
            head, receipt = self._head("chat.completion.chunk"), self._receipt(message)
            last = event({**head, "choices": [], "usage": usage(self.run, message), "keepwarm": receipt})
            return [*ending, self._chunk({}, finish), last, DONE]
        return [*ending, self._chunk({}, finish, keepwarm=self._receipt(message)), DONE]

    def failing(self, problem: Problem) -> list[str]:
        return [event(problem.body()), DONE]

    def _chunk(
        self, delta: dict[str, Any], finish: str | None = None, logprobs: Sequence[TokenLogprobs] = (), **more: Any
    ) -> str:
        """A chunk with one choice."""
        found = _logprobs(logprobs) if logprobs else None
        choice = {"index": 0, "delta": delta, "logprobs": found, "finish_reason": finish}
        return event({**self._head("chat.completion.chunk"), "choices": [choice], **more})

    @property
    def _wants_logprobs(self) -> bool:
        return self.run.plan.sampling.top_logprobs is not None

    def _receipt(self, message: MessageView) -> dict[str, Any]:
        return receipt(self.run, message, self.ignored, self.notes)

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": self.completion_id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": None,
        }


def event(body: dict[str, Any]) -> str:
    """One server-sent event."""
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"


def refuse_failed(message: MessageView) -> None:
    """Raises `Problem` if the answer failed or was interrupted."""
    if message.status is MessageStatus.FAILED:
        raise Problem(500, message.note, "generation_failed")
    if message.status is MessageStatus.INTERRUPTED:
        ends = message.note == INTERRUPTED_NOTE
        sentence = "The server is shutting down; this answer was cut short." if ends else message.note
        raise Problem(503, sentence, "interrupted", retry_after_s=5)


def finish_reason(run: Run, said: ChatMessage) -> str:
    if said.tool_calls:
        return "tool_calls"
    return "length" if run.finish_reason in (FinishReason.LENGTH, FinishReason.CONTEXT) else "stop"


def tool_calls(said: ChatMessage, with_index: bool = False) -> list[dict[str, Any]]:
    return [
        {
            **({"index": number} if with_index else {}),
            "id": call.call_id,
            "type": "function",
            "function": {"name": call.name, "arguments": call.arguments},
        }
        for number, call in enumerate(said.tool_calls)
    ]


def usage(run: Run, message: MessageView) -> dict[str, Any]:
    """Token counts. `cached_tokens` came from a KV and were not computed for this request; null where a remote engine
    does not report them."""
    prompt_tokens = len(run.plan.turn.ledger)
    sampled_tokens = message.receipt.sampled_tokens if message.receipt else len(run.sampled)
    cached_tokens = _reported(message.receipt, message.receipt.reused_tokens) if message.receipt else 0
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": sampled_tokens,
        "total_tokens": prompt_tokens + sampled_tokens,
        "prompt_tokens_details": {"cached_tokens": cached_tokens},
    }


def receipt(run: Run, message: MessageView, ignored: Sequence[str] = (), notes: Sequence[str] = ()) -> dict[str, Any]:
    """What the turn cost, in the page's terms, and how the request was honoured."""
    found = message.receipt or _NOTHING
    return {
        "session_id": run.conversation_id,
        "fed": _reported(found, found.fed_tokens),
        "reused": _reported(found, found.reused_tokens),
        "tier_before": found.tier_before.value,
        "ttft_ms": None if found.ttft_s is None else round((found.ttft_s + found.waited_s) * 1000, 1),
        "waited_ms": round(found.waited_s * 1000, 1),
        "saved_ms": round(found.saved_s * 1000, 1),
        "copied": found.shared_tokens,
        "copied_from": found.shared_from or None,
        "shared_wait_ms": round(found.shared_wait_s * 1000, 1),
        "miss_reason": None if found.miss_reason is None else found.miss_reason.value,
        "miss_detail": found.miss_detail or None,
        "parting": _parting(found.parting),
        "stored": message.is_stored,
        "ignored": list(ignored),
        "notes": [*notes, *run.plan.notes],
    }


def _parting(found: Parting | None) -> dict[str, Any] | None:
    if found is None:
        return None
    return {
        "token": found.token + 1,
        "of": found.of_tokens,
        "section": found.section.value,
        "tool": found.name or None,
        "message": found.number or None,
        "role": found.role or None,
        "before": found.before,
        "after": found.after,
        "is_date": found.is_date,
        "read_again": found.again_tokens,
        "place": found.place,
    }


def _reported(found: Receipt, count: int) -> int | None:
    return count if found.is_reuse_reported else None


_NOTHING = Receipt(0, 0, 0, 0, Tier.NONE, None, 0.0, 0.0, 0.0, 0.0)


@dataclass(slots=True)
class Progress:
    """How much of a run a stream has sent."""

    chars: dict[str, int] = field(default_factory=lambda: {"reasoning_content": 0, "content": 0})
    logprobs: int = 0

    def take(self, run: Run, thoughts: str, content: str) -> list[tuple[dict[str, str], list[TokenLogprobs]]]:
        """What is new of the run's thoughts and content, as deltas; the first has the log-probabilities of both."""
        deltas: list[tuple[dict[str, str], list[TokenLogprobs]]] = []
        for name, shown in (("reasoning_content", thoughts), ("content", content)):
            if len(shown) > self.chars[name]:
                deltas.append(({name: shown[self.chars[name] :]}, [] if deltas else self._news(run)))
                self.chars[name] = len(shown)
        return deltas

    def rest(self, run: Run) -> list[tuple[dict[str, str], list[TokenLogprobs]]]:
        """The log-probabilities that no text has brought."""
        news = self._news(run)
        return [({"content": ""}, news)] if news else []

    def _news(self, run: Run) -> list[TokenLogprobs]:
        news = run.logprobs[self.logprobs :]
        self.logprobs += len(news)
        return news


def _logprobs(found: Sequence[TokenLogprobs]) -> dict[str, Any]:
    return {
        "content": [{**logprob(one.chosen), "top_logprobs": [logprob(top) for top in one.top]} for one in found],
        "refusal": None,
    }


def logprob(one: TokenLogprob) -> dict[str, Any]:
    """One token's log-probability, in OpenAI's shape."""
    in_bytes = None if "�" in one.text else list(one.text.encode("utf-8", "replace"))
    return {"token": one.text, "logprob": max(one.logprob, -9999.0), "bytes": in_bytes}
