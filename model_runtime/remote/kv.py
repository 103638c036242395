"""What is known of a conversation's keys and values in a remote engine: how many tokens it was last seen to have."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(eq=False, slots=True)
class RemoteKV:
    """Implements `model_runtime.interface.protocol.KV` without a byte. The engine may drop its rows at any time and
    says so only with the next answer."""

    length_tokens: int = 0

    @property
    def allocated_bytes(self) -> int:
        return 0

    @property
    def is_long_rope(self) -> bool:
        """The engine keeps its rows right by itself."""
        return False
