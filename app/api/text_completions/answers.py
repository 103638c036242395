"""A run as a text completion: whole, or as a stream of chunks."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from app.api.answers import DONE, KEEP_ALIVE, Progress, event, finish_reason, receipt, refuse_failed, usage
from app.problems import Problem
from model_runtime.interface.chat import ChatMessage
from model_runtime.interface.events import TokenLogprobs
from sessions.turns.run import Run
from sessions.types import MessageView, RunSnapshot


@dataclass(slots=True)
class TextReply:
    """Tells one run as a text completion: a `Voice`."""

    run: Run
    model: str
    created: int
    ignored: tuple[str, ...] = ()
    include_usage: bool = False
    completion_id: str = field(default_factory=lambda: f"cmpl-{uuid.uuid4().hex}")
    media_type: str = "text/event-stream"
    keep_alive: str = KEEP_ALIVE
    _progress: Progress = field(default_factory=Progress)
    _told_chars: int = 0  # of the tokens whose log-probabilities were sent

    def whole(self, message: MessageView, said: ChatMessage) -> dict[str, Any]:
        refuse_failed(message)
        found = self.run.logprobs if self.run.plan.sampling.top_logprobs is not None else None
        choice = self._choice(said.text, found, finish_reason(self.run, said))
        return {**self._head(), "choices": [choice], "usage": usage(self.run, message), **self._receipt(message)}

    def opening(self) -> list[str]:
        return []

    def news(self, run: RunSnapshot, shown: tuple[str, str]) -> list[str]:
        return [self._chunk(delta["content"], found) for delta, found in self._progress.take(self.run, "", shown[1])]

    def ending(self, message: MessageView, said: ChatMessage) -> list[str]:
        rest = [self._chunk("", found) for _, found in self._progress.rest(self.run)]
        end = {**self._head(), "choices": [self._choice("", None, finish_reason(self.run, said))]}
        if not self.include_usage:
            return [*rest, event({**end, **self._receipt(message)}), DONE]
        last = {**self._head(), "choices": [], "usage": usage(self.run, message), **self._receipt(message)}
        return [*rest, event(end), event(last), DONE]

    def failing(self, problem: Problem) -> list[str]:
        return [event(problem.body()), DONE]

    def _chunk(self, text: str, found: Sequence[TokenLogprobs]) -> str:
        return event({**self._head(), "choices": [self._choice(text, found or None, None)]})

    def _choice(self, text: str, found: Sequence[TokenLogprobs] | None, finish: str | None) -> dict[str, Any]:
        told = None if found is None else self._logprobs(found)
        return {"index": 0, "text": text, "logprobs": told, "finish_reason": finish}

    def _logprobs(self, found: Sequence[TokenLogprobs]) -> dict[str, Any]:
        offsets = []
        for one in found:
            offsets.append(self._told_chars)
            self._told_chars += len(one.chosen.text)
        return {
            "tokens": [one.chosen.text for one in found],
            "token_logprobs": [max(one.chosen.logprob, -9999.0) for one in found],
            "top_logprobs": [{top.text: max(top.logprob, -9999.0) for top in one.top} for one in found],
            "text_offset": offsets,
        }

    def _receipt(self, message: MessageView) -> dict[str, Any]:
        return {"keepwarm": receipt(self.run, message, self.ignored)}

    def _head(self) -> dict[str, Any]:
        return {
            "id": self.completion_id,
            "object": "text_completion",
            "created": self.created,
            "model": self.model,
            "system_fingerprint": None,
        }
