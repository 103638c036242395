"""Parts of a reply that are sent only when they differ from what the page has.

The page returns a short token for each part that it has. Nothing is remembered for it here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any


def token_of(value: object) -> str:
    """Short, and equal only for equal JSON."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=9).hexdigest()


def news(sections: Mapping[str, Any], known: str, coarse: Mapping[str, object] = {}) -> dict[str, Any]:
    """The sections that differ from those with the tokens in `known`, and as "have" the tokens of all, if one differs.

    `coarse`: for a section that changes all the time, the value whose change is worth sending it.
    """
    tokens = {name: token_of(coarse.get(name, value)) for name, value in sections.items()}
    before = dict(part.split(":", 1) for part in known.split(",") if ":" in part)
    changed = {name: sections[name] for name, token in tokens.items() if before.get(name) != token}
    if not changed:
        return {}
    return changed | {"have": ",".join(f"{name}:{token}" for name, token in tokens.items())}
