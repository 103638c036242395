"""Which requests should go to the same server of a remote engine: those of one conversation and of its forks."""

from __future__ import annotations

from hashlib import blake2b

from sessions.store.records import Conversation


def affinity_of(conversation: Conversation) -> str:
    """The same for every turn of a conversation, also after a restart, and for all that was forked from it: what they
    have in common is in one place. No id can be found from it: it is sent to engines and routers as a header."""
    root_id = conversation.root_id or conversation.conversation_id
    return blake2b(root_id.encode(), digest_size=12, person=b"affinity").hexdigest()
