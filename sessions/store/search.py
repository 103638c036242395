"""The query that finds conversations by a text in their title or messages."""

from __future__ import annotations

from sessions.text_search import folded

SEARCH_LIMIT_CHARS = 200  # SQLite refuses very long LIKE patterns
# SQLite's LIKE knows the case of ASCII letters only, and is quick; a text in which there are others (it has more bytes
# than characters) is folded.
_HOLDS = r"""CASE WHEN length(CAST(t.text AS BLOB)) > length(t.text) THEN holds(t.text, :needle)
    ELSE t.text LIKE :like ESCAPE '\' END"""
FOUND = f"""
    WITH c AS MATERIALIZED (
        SELECT c.*, c.rowid, coalesce(m.ledger_start + length(m.token_ids) / 4, 0) AS ledger_tokens,
            holds(c.title, :needle) AS is_titled,
            (SELECT excerpt(t.text, :needle) FROM messages t WHERE t.conversation_id = c.id AND {_HOLDS} LIMIT 1)
            AS found
        FROM conversations c LEFT JOIN messages m ON m.id = c.leaf_id WHERE c.binned_s IS NULL AND c.owner_id = :owner
    )
    SELECT * FROM c WHERE (is_titled OR found IS NOT NULL)"""  # noqa: S608


def search_parameters(search: str) -> dict[str, str]:
    """What `FOUND` is asked for, beside its owner."""
    needle = folded(search[:SEARCH_LIMIT_CHARS])
    escaped = needle.replace("\\", "\\\\").replace("%", r"\%").replace("_", r"\_")
    return {"needle": needle, "like": f"%{escaped}%"}
