"""A prompt that is no chat: a text, or token ids, which the model goes on with. Pure functions.

Such a prompt is recognised by the history links of nodes: each has the kind, the length and the hash of all that its
path says, or of all its ids. A link of a node that a longer prompt begins with has the hash of that prompt's beginning.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Literal

from model_runtime.interface.chat import RawCodec
from sessions.ledger.ledger import Turn, common_prefix, fold
from sessions.store.records import Node, NodeIds, pack

Kind = Literal["text", "ids"]
ASKED, ANSWERED = "?", "!"


@dataclass(frozen=True, slots=True)
class RawPrompt:
    """`said` is a text or ids."""

    said: str | tuple[int, ...]

    @property
    def kind(self) -> Kind:
        return "text" if isinstance(self.said, str) else "ids"

    @property
    def size(self) -> int:
        """In characters, or ids."""
        return len(self.said)

    @property
    def link(self) -> str:
        """That of a node that asks exactly this."""
        return _link(self.kind, ASKED, self.size, blake2b(self._bytes(0, self.size), digest_size=20).hexdigest())

    def answered(self, text: str, token_ids: Sequence[int]) -> str:
        """The link of the answer `text`, whose ids these are, without what ended it."""
        said = self.said + text if isinstance(self.said, str) else (*self.said, *token_ids)
        whole = RawPrompt(said)
        return whole.link.replace(ASKED, ANSWERED, 1)

    def beginnings_among(self, links: Iterable[str]) -> list[str]:
        """Those of the links that stand for this prompt, or for an answered beginning of it, the longest first."""
        by_size: dict[int, set[str]] = {}
        for link in links:
            size = size_of(link)
            if size <= self.size:
                by_size.setdefault(size, set()).add(link)
        found: list[str] = []
        hashed, start = blake2b(digest_size=20), 0
        for size in sorted(by_size):
            hashed.update(self._bytes(start, size))
            start = size
            digest = hashed.hexdigest()
            ends = (ANSWERED, ASKED) if size == self.size else (ANSWERED,)
            found += [link for end in ends if (link := _link(self.kind, end, size, digest)) in by_size[size]]
        return found[::-1]

    def after(self, size: int) -> str | tuple[int, ...]:
        """What follows the first `size` characters or ids."""
        return self.said[size:]

    def _bytes(self, start: int, end: int) -> bytes:
        part = self.said[start:end]
        return part.encode() if isinstance(part, str) else pack(part)


def first_link(kind: Kind) -> str:
    """Where links of this kind begin in their order."""
    return f"{kind}:"


def size_of(link: str) -> int:
    """In characters, or ids."""
    return int(link.split(":")[1])


def raw_turn(path: Sequence[Node], current: tuple[int, ...], prompt: RawPrompt, known: int, codec: RawCodec) -> Turn:
    """The turn that goes on with the prompt, whose first `known` characters or ids are those of `path`. The path's own
    ids stay; what ended its answer is left out, because the prompt goes on there."""
    held = fold(path)
    if path and path[-1].role == "user":
        return Turn(held, None, NodeIds(len(held), ()), _delta(current, held))
    kept = held[:-1] if path and path[-1].ended_with_stop_token else held
    rest = prompt.after(known)
    added = codec.ids(rest, is_beginning=not path) if isinstance(rest, str) else rest
    ledger = kept + added
    return Turn(ledger, NodeIds(len(kept), added), NodeIds(len(ledger), ()), _delta(current, ledger))


def _delta(current: tuple[int, ...], ledger: tuple[int, ...]) -> int:
    """How many ids a warm KV lacks: it holds `current` without the pending id."""
    return len(ledger) - common_prefix(current[:-1], ledger[:-1])


def _link(kind: Kind, end: str, size: int, digest: str) -> str:
    return f"{first_link(kind)}{size}:{end}{digest}"
