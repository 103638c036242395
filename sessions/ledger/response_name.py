"""The name that a client's answer gets, in the transaction that begins it: it is never stored without its name."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from model_runtime.interface.chat import ChatMessage, TurnTemplate
from sessions.store import message_json
from sessions.text import clean_exactly


@dataclass(frozen=True, slots=True)
class ResponseName:
    """`head` and `body` are kept with the answer, as in `KnownHistory` and `NamedResponse`."""

    response_id: str
    head: tuple[ChatMessage, ...]
    body: dict[str, Any]

    def row(self, text: str, is_thought_open: bool, prompt_tokens: int, template: TurnTemplate) -> tuple[str, str]:
        """The name, and what is kept with it as JSON, for an answer that begins with `text`, behind so many tokens."""
        begun = template.growing_thoughts_in(text, is_thought_open) if text else ("", "")
        asked = {"prompt_tokens": prompt_tokens, "begun_chars": [len(part) for part in begun]}
        kept = {"body": self.body, "head": message_json.dump(self.head), "asked": asked}
        return self.response_id, clean_exactly(json.dumps(kept, ensure_ascii=False))
