"""Which small segments are worth joining into one large file. A pure function.

A turn adds a segment or two, so a long conversation of short turns lies in hundreds of files, and a restore opens
each. Names are a hash chain: what stands behind a joined segment would have to be written anew, so only ends are
joined, up to the size that one restore step may have.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from sessions.store.tables.segments import SavedSegment

FEWEST = 4  # so many files become one: fewer would be rewritten too often for what it saves


def find_run(saved: Iterable[SavedSegment], limit_tokens: int) -> tuple[SavedSegment, ...]:
    """The longest run of segments that may become one: each the only child of the one before, the last without
    children, all referred to by the same conversations. () when no run has `FEWEST`."""
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
            same_users = set(above.conversation_ids) == set(leaf.conversation_ids)
            if len(children[above.key]) > 1 or not same_users or tokens + above.tokens > limit_tokens:
                break
            run.insert(0, above)
            tokens, at = tokens + above.tokens, above
        if len(run) >= max(FEWEST, len(best) + 1):
            best = tuple(run)
    return best
