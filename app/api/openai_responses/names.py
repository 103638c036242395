"""What names of responses and conversations look like."""

from __future__ import annotations

import re
from typing import Any

from app.api.translation.unsupported import unsupported

RESPONSE = "resp_"
LOGPROBS = "message.output_text.logprobs"  # of `include`
CONVERSATION = "conv_"
_CONVERSATION_ID = re.compile(rf"(?:{CONVERSATION})?([0-9a-f]{{32}})")


def conversation_id_of(asked: str | dict[str, Any]) -> str:
    """The own id of the conversation that a client names: as /v1/conversations made it, or as `keepwarm.session_id`."""
    name = asked.get("id") if isinstance(asked, dict) and set(asked) == {"id"} else asked
    found = _CONVERSATION_ID.fullmatch(name) if isinstance(name, str) else None
    if found is None:
        raise unsupported("conversation", "conversation must be an id of /v1/conversations, or an object with its id.")
    return found.group(1)
