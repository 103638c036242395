"""Measures at start-up what saving KVs at 8 bits costs this model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tokenizers import Tokenizer

from model_runtime.forward.runtime import Forward, KVPlace
from model_runtime.forward.transformers_forward import Feed
from model_runtime.interface.findings import Int8Drift
from model_runtime.interface.numerics import with_long_rope
from model_runtime.interface.segments import identify
from model_runtime.kv.saved_rows import SavedRows
from model_runtime.kv.segment import copy_in, copy_out
from model_runtime.kv.slab import KVSlab

HISTORY_TOKENS = 384
PROBE_TOKENS = 96

PROSE = """The night ferry leaves the harbour a little after nine, when the last lorries have been lashed to the deck
and the café on the upper floor has put its chairs on the tables. For the first hour the lights of the coast keep it
company. A retired engineer who makes the crossing every month says that he can tell the weather of the morning from
how the hull answers the first long swell beyond the breakwater: a slow nod means rain, two short ones mean a clear
sky. Nobody has ever checked. Below, in the engine room, the temperature of the oil is written into a book every
thirty minutes, although a computer has recorded it every second for the last twelve years. The chief explains that a
number somebody has to walk to is a number somebody looks at. On a winter crossing in the year the computer was new,
the screen showed a steady seventy-one degrees while the hand that wrote the book had begun to write seventy-four,
then seventy-eight. The sensor had come loose. They stopped the starboard engine, drifted for forty minutes within
sight of a lighthouse, and arrived late with nothing worse than cold soup. Since then two people must agree before a
reading is believed, and the young officers learn to estimate a temperature with the back of the hand before they are
shown the screen. By five in the morning the first passengers come up for coffee. The sea is grey and then, quite
suddenly, it is blue. Gulls arrive long before the land does. The engineer stands at the rail and counts the swells,
and when the pilot boat comes out to meet them he nods, once, slowly, and goes to find his coat. It will rain before
noon, he tells the woman next to him, and she asks him how he knows. He thinks about it for a while, as if it were a
question that deserved more than a joke. Then he says that he does not know; he has only been wrong often enough to
notice when he is right."""


def measure_drift(
    forward: Forward, place: KVPlace, rows: SavedRows, tokenizer: Tokenizer, limit_tokens: int
) -> Int8Drift | None:
    """Reads a history, rounds its rows to 8 bits, and lets both KVs predict what follows, teacher-forced. None if rows
    are saved exactly. Call before another thread uses the forward."""
    if not rows.is_int8:
        return None
    geometry = rows.geometry
    ids = tokenizer.encode(PROSE, add_special_tokens=False).ids[: min(limit_tokens - 1, HISTORY_TOKENS + PROBE_TOKENS)]
    history = max(1, len(ids) - min(PROBE_TOKENS, len(ids) // 3))
    exact, passed = place.new_kv(), place.new_kv()
    for slab in (exact, passed):
        slab.use_rope_for(len(ids))
        slab.ensure_room(len(ids))
    forward.run([Feed(exact, ids[:history], 1)])
    identity = identify(None, ids[:history], with_long_rope("drift") if exact.is_long_rope else "drift")
    copy_in(passed, geometry, rows.unpacked(rows.packed(copy_out(exact, geometry, identity))))
    truth = torch.tensor(ids[history + 1 :])
    found = [_follow(forward, slab, ids[history:-1]) for slab in (exact, passed)]
    nll = [float(torch.nn.functional.cross_entropy(logits, truth)) for logits in found]
    agree = float((found[0].argmax(1) == found[1].argmax(1)).float().mean())
    for slab in (exact, passed):
        slab.free()
    smaller = geometry.bytes_per_token * history / rows.bytes_for(history)
    return Int8Drift("int8", smaller, history, len(truth), nll[0], nll[1], agree)


def _follow(forward: Forward, slab: KVSlab, ids: Sequence[int]) -> torch.Tensor:
    return forward.run([Feed(slab, ids, len(ids))]).float().cpu()
