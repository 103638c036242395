"""How an owner's newest conversations begin, to find the one that a changed history is nearest to."""

from __future__ import annotations

from dataclasses import dataclass

from sessions.store.database import Database

SHOWN_CHARS = 20_000  # of each text
_NEWEST = """
    SELECT c.id, c.leaf_id, substr(m.system_prompt, 1, ?), substr(m.text, 1, ?) FROM (
        SELECT id, leaf_id, turn_number FROM conversations
        WHERE owner_id = ? AND binned_s IS NULL AND leaf_id IS NOT NULL ORDER BY turn_number DESC LIMIT ?) c
    JOIN messages m ON m.id = (
        SELECT r.id FROM messages r WHERE r.conversation_id = c.id AND r.parent_id IS NULL
        ORDER BY r.last_used_at DESC, r.id DESC LIMIT 1)
    WHERE m.tokenizer_fingerprint = ? ORDER BY c.turn_number DESC"""


@dataclass(frozen=True, slots=True)
class Beginning:
    """`text` is that of a conversation's first message. Both texts are cut to `SHOWN_CHARS`. `leaf_id` is its end."""

    conversation_id: str
    leaf_id: int
    system_prompt: str
    text: str


class BeginningTable:
    """Raises `StoreError` when the file fails."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def newest(self, owner_id: str, tokenizer: str, most: int) -> list[Beginning]:
        """Those of at most `most` conversations that were written with this tokenizer, the last used first."""
        with self._database.read() as db:
            rows = db.execute(_NEWEST, [SHOWN_CHARS, SHOWN_CHARS, owner_id, most, tokenizer]).fetchall()
        return [Beginning(str(id_), int(leaf), prompt or "", text) for id_, leaf, prompt, text in rows]
