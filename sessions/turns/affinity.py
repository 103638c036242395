"""Which requests should go to the same server of a remote engine: those of one conversation."""

from __future__ import annotations

from hashlib import blake2b


def affinity_of(conversation_id: str) -> str:
    """The same for every turn of a conversation, also after a restart. Its id cannot be found from it: it is sent to
    engines and routers as a header."""
    return blake2b(conversation_id.encode(), digest_size=12, person=b"affinity").hexdigest()
