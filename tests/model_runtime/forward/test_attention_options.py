"""Every option of attention equals its formula, row by row, in slabs and in an arena; the rest is refused by name."""

from __future__ import annotations

import itertools
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from model_runtime.forward import dense_attention as dense
from model_runtime.forward.arena.arena import Arena
from model_runtime.forward.arena.step_inputs import StepUpload, rows_for
from model_runtime.forward.arena.varlen_choice import agrees, flash_kernels
from model_runtime.forward.arena.varlen_reference import REFERENCE
from model_runtime.forward.attention import PackedBatch, Span, carrying, packed_attention
from model_runtime.forward.attention_options import PLAIN, AttentionOptions
from model_runtime.forward.gpu.arena_forward import ArenaBatch
from model_runtime.kv.geometry import KVGeometry, LayerShape
from model_runtime.kv.slab import KVSlab

HEADS, KV_HEADS, DIM, VALUE_DIM = 6, 2, 8, 12
GEOMETRY = KVGeometry((LayerShape(KV_HEADS, DIM, VALUE_DIM),), torch.float32, torch.device("cpu"), 16)
SINKS = torch.linspace(-2, 3, HEADS)
SLOPES = torch.tensor([2.0 ** -(n + 1) for n in range(HEADS)])
KEY_BIASES = torch.linspace(-3, 3, HEADS * 100).view(100, HEADS).t()
CASES = {
    "plain": PLAIN,
    "scale": AttentionOptions(scale=0.9),
    "window": AttentionOptions(window=7),
    "chunk": AttentionOptions(chunk=8),
    "window and chunk": AttentionOptions(window=5, chunk=8),
    "softcap": AttentionOptions(scale=3.0, softcap=2.0),
    "softcap and window": AttentionOptions(scale=3.0, softcap=2.0, window=7),
    "sinks": AttentionOptions(sinks=SINKS),
    "sinks and window": AttentionOptions(sinks=SINKS, window=7),
    "sinks and chunk": AttentionOptions(sinks=SINKS, chunk=8),
    "slopes": AttentionOptions(slopes=SLOPES),
    "slopes and window": AttentionOptions(slopes=SLOPES, window=7),
    "key biases": AttentionOptions(key_biases=KEY_BIASES),
    "all": AttentionOptions(0.7, 9, 16, 1.5, SINKS, SLOPES),
}
# Turns of two conversations: how many tokens each gets in a forward.
TURNS = [(5, 1), (1, 1), (30, 3), (1, 21), (17, 17), (1, 1)]


def formula(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, position: int, head: int, o: AttentionOptions
) -> torch.Tensor:
    """The attention of one head's query `(DIM,)` at `position` against all keys of its conversation `(n, DIM)`."""
    places = torch.arange(len(keys))
    scores = keys.double() @ query.double() * (DIM**-0.5 if o.scale is None else o.scale)
    if o.softcap is not None:
        scores = o.softcap * torch.tanh(scores / o.softcap)
    if o.slopes is not None:
        scores = scores + o.slopes[head].double() * (places - position)
    if o.key_biases is not None:
        scores = scores + o.key_biases[head, : len(keys)].double()
    is_hidden = places > position
    if o.window is not None:
        is_hidden |= places <= position - o.window
    if o.chunk is not None:
        is_hidden |= places // o.chunk != position // o.chunk
    scores = scores.masked_fill(is_hidden, -torch.inf)
    if o.sinks is not None:
        scores = torch.cat([scores, o.sinks[head : head + 1].double()])
    return (torch.softmax(scores, 0)[: len(keys)] @ values.double()).float()


class Slabs:
    """Two conversations in slabs."""

    def __init__(self) -> None:
        self.slabs = [KVSlab(GEOMETRY), KVSlab(GEOMETRY)]

    def batch(self, turn: tuple[int, int]) -> PackedBatch:
        spans, start = [], 0
        for slab, tokens in zip(self.slabs, turn, strict=True):
            slab.ensure_room(slab.length_tokens + tokens)
            spans.append(Span(slab, start, tokens, slab.length_tokens))
            start += tokens
        return PackedBatch(spans)

    def appended(self, turn: tuple[int, int]) -> None:
        for slab, tokens in zip(self.slabs, turn, strict=True):
            slab.appended([0] * tokens)


class InArena(Slabs):
    """Two conversations in one arena, through the reference of the variable-length kernel."""

    def __init__(self) -> None:
        self.arena = Arena(GEOMETRY, 400, 400)
        self.slabs = [self.arena.new_kv(), self.arena.new_kv()]  # type: ignore[list-item]

    def batch(self, turn: tuple[int, int]) -> Any:
        for slab, tokens in zip(self.slabs, turn, strict=True):
            slab.ensure_room(slab.length_tokens + tokens)
        rows = rows_for(self.arena, [(kv, [0] * tokens, 1) for kv, tokens in zip(self.slabs, turn, strict=True)])  # type: ignore[misc]
        upload = StepUpload(GEOMETRY.device, len(rows.numbers))
        upload.send(rows)
        return ArenaBatch(self.arena, REFERENCE, upload.tensors(rows))


@pytest.mark.parametrize("place", [Slabs, InArena])
@pytest.mark.parametrize("name", CASES)
def test_an_option_equals_its_formula_turn_after_turn(
    name: str, place: type[Slabs], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dense, "_MOST_SCORES", 300)  # so that long reads take several blocks of rows
    torch.manual_seed(6)
    options, both = CASES[name], place()
    keys = [torch.empty(0, KV_HEADS, DIM), torch.empty(0, KV_HEADS, DIM)]
    values = [torch.empty(0, KV_HEADS, VALUE_DIM), torch.empty(0, KV_HEADS, VALUE_DIM)]
    for turn in TURNS:
        total = sum(turn)
        query, key = torch.randn(1, HEADS, total, DIM), torch.randn(1, KV_HEADS, total, DIM)
        value = torch.randn(1, KV_HEADS, total, VALUE_DIM)
        found = both.batch(turn).attend(0, query, key, value, options)
        both.appended(turn)
        row = 0
        for n, tokens in enumerate(turn):
            new = slice(row, row + tokens)
            keys[n] = torch.cat([keys[n], key[0, :, new].transpose(0, 1)])
            values[n] = torch.cat([values[n], value[0, :, new].transpose(0, 1)])
            for place_, head in itertools.product(range(tokens), range(HEADS)):
                shared, position = head // (HEADS // KV_HEADS), len(keys[n]) - tokens + place_
                expected = formula(
                    query[0, head, row + place_], keys[n][:, shared], values[n][:, shared], position, head, options
                )
                torch.testing.assert_close(found[0, row + place_, head], expected, atol=2e-5, rtol=0)
            row += tokens


@pytest.mark.parametrize("name", CASES)
def test_an_option_that_is_dropped_changes_the_result(name: str) -> None:
    """So that the comparison above cannot pass without it."""
    torch.manual_seed(7)
    query, keys = torch.randn(HEADS, 40, DIM), torch.randn(KV_HEADS, 40, DIM)
    values = torch.randn(KV_HEADS, 40, VALUE_DIM)
    options = CASES[name]
    found = dense.dense_attention(query, keys, values, options)
    for option in options.used:
        without = dense.dense_attention(query, keys, values, replace(options, **{option: None}))
        assert float((found - without).abs().max()) > 0.01, option


@pytest.mark.parametrize("name", ["softcap", "sinks", "slopes", "sinks and chunk", "slopes and window"])
def test_a_kernel_earns_an_option_by_comparison(name: str) -> None:
    cpu = torch.device("cpu")
    assert agrees(REFERENCE, cpu, torch.float32, HEADS, KV_HEADS, DIM, [CASES[name]])

    def with_wrong_options(*arguments: Any, **named: Any) -> Any:
        assert REFERENCE.call_with_lse is not None
        if named.get("alibi_slopes") is not None:
            named["alibi_slopes"] = named["alibi_slopes"] * 1.5
        if named.get("softcap") is not None:
            named["softcap"] = named["softcap"] * 1.5
        output, lse = REFERENCE.call_with_lse(*arguments, **named)
        return output, lse * 0.5

    wrong = replace(REFERENCE, call=lambda *a, **n: with_wrong_options(*a, **n)[0], call_with_lse=with_wrong_options)
    assert not agrees(wrong, cpu, torch.float32, HEADS, KV_HEADS, DIM, [CASES[name]])


@pytest.mark.parametrize("option", ["softcap", "slopes", "sinks"])
def test_a_kernel_refuses_an_option_by_its_name(option: str) -> None:
    plain = replace(REFERENCE, call_with_lse=None, named=frozenset())
    with pytest.raises(ValueError, match=option):
        agrees(plain, torch.device("cpu"), torch.float32, HEADS, KV_HEADS, DIM, [CASES[option]])


def test_the_flash_operator_takes_slopes_and_the_public_function_refuses_them() -> None:
    kernels = {kernel.name: kernel for kernel in flash_kernels()}
    assert kernels["flash aten varlen"].refused(CASES["slopes"]) is None
    assert kernels["flash aten varlen"].refused(CASES["softcap"]) == "softcap"
    for name, kernel in kernels.items():
        if name != "flash aten varlen":
            assert kernel.refused(CASES["slopes"]) is not None


@pytest.mark.parametrize(
    ("more", "said"), [({"position_bias": torch.zeros(1)}, "position_bias"), ({"is_causal": False}, "looks ahead")]
)
def test_an_unknown_argument_is_refused_by_its_name(more: dict[str, Any], said: str) -> None:
    layer: Any = SimpleNamespace(layer_idx=0)
    query, key = torch.zeros(1, HEADS, 1, DIM), torch.zeros(1, KV_HEADS, 1, DIM)
    with carrying(Slabs().batch((1, 0))), pytest.raises(ValueError, match=said):
        packed_attention(layer, query, key, key, None, **more)
    with pytest.raises(ValueError, match="without a batch"):
        packed_attention(layer, query, key, key, None)
