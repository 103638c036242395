"""Chooses small segments to join into one large file. A pure function.

A turn adds a segment or two, so a long conversation of short turns is spread over hundreds of files, and a restore
opens each of them. Names form a hash chain: segments after a joined one would have to be rewritten, so only the ends of
chains are joined, up to the size of one restore step.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from sessions.store.tables.segments import SavedSegment

MIN_FILES = 4  # joining fewer would rewrite files too often for what it saves


def find_run(saved: Iterable[SavedSegment], limit_tokens: int) -> tuple[SavedSegment, ...]:
    """The longest run of segments that may become one: each is the only child of the one before, the last has no
    children, and the same conversations refer to all of them. () if no run has `MIN_FILES`."""
    by_key = {segment.key: segment for segment in saved}
    children: dict[str, list[SavedSegment]] = defaultdict(list)
    for segment in by_key.values():
        children[segment.parent_key].append(segment)
    best: tuple[SavedSegment, ...] = ()
    for leaf in by_key.values():
        if children[leaf.key]:
            continue
        run, tokens, at = [leaf], leaf.tokens, leaf
        while (above := by_key.get(at.parent_key)) is not None:
            same_conversations = set(above.conversation_ids) == set(leaf.conversation_ids)
            if len(children[above.key]) > 1 or not same_conversations or tokens + above.tokens > limit_tokens:
                break
            run.insert(0, above)
            tokens, at = tokens + above.tokens, above
        if len(run) >= max(MIN_FILES, len(best) + 1):
            best = tuple(run)
    return best
