"""Families whose attention is replaced: cached and packed, their logits are those of one full read by transformers."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from model_runtime.forward.attention import ATTENTION_NAME
from model_runtime.forward.classic.bloom import bloom_slopes
from model_runtime.forward.classic.mpt import mpt_slopes
from model_runtime.forward.classic.replacements import REPLACEMENTS, replace_attention
from model_runtime.forward.probe import probe_packing
from model_runtime.forward.transformers_forward import Feed, PackedForward
from model_runtime.kv.slab import KVSlab
from tests.model_runtime.harness import full_read, loaded_tiny
from tests.model_runtime.tiny_classic import CONFIGS, tiny_classic

LARGEST_GAP = 1e-5  # in standard deviations of the logits
# Transformers adds ALiBi by the key's position, not its distance, which rounds float32 scores at 2,000 tokens by 6e-5.
LARGEST_FAR_GAP = 1e-4
LONG = ("falcon-yarn", "falcon-linear", "falcon-alibi", "falcon-alibi-groups", "bloom", "mpt", "gpt-neo")


def largest_gap(directory: Path, ends: Sequence[Sequence[int]], context_tokens: int = 512) -> float:
    """The largest difference, in standard deviations, between the last logits of each step and those of full reads.
    Conversation n is fed up to `ends[n][step]` at each step, together with the others; an end that is no further than
    the last one is cropped to, and its last token fed again."""
    randomness = random.Random(9)
    ledgers = [[randomness.randrange(3, 512) for _ in range(max(places))] for places in ends]
    reference, model = loaded_tiny(directory).model, loaded_tiny(directory).model
    geometry = probe_packing(model, torch.float32, context_tokens, step_tokens=64)
    forward, slabs = PackedForward(model), [KVSlab(geometry) for _ in ends]
    reads = [full_read(reference, ledger) for ledger in ledgers]
    gaps = []
    for step in range(len(ends[0])):
        feeds = []
        for slab, ledger, places in zip(slabs, ledgers, ends, strict=True):
            slab.crop(min(slab.length_tokens, places[step] - 1))
            feeds.append(Feed(slab, ledger[slab.length_tokens : places[step]], 1))
        found = forward.run(feeds)
        for logits, read, places in zip(found, reads, ends, strict=True):
            gaps.append(float((logits - read[places[step] - 1]).abs().max() / read.std()))
    return max(gaps)


@pytest.mark.parametrize("name", CONFIGS)
def test_two_conversations_in_one_forward_equal_their_full_reads(name: str, tmp_path: Path) -> None:
    """Reads, turns, single tokens and crops side by side, and past the window of the layers that have one."""
    first, second = (5, 60, 61, 62, 40, 41, 90), (1, 2, 33, 34, 35, 20, 21)
    assert largest_gap(tiny_classic(name, tmp_path / name), (first, second)) <= LARGEST_GAP


@pytest.mark.parametrize("name", LONG)
def test_far_positions_equal_a_full_read(name: str, tmp_path: Path) -> None:
    """Beyond 2,048 tokens, where Falcon rounds its ALiBi."""
    limit = "max_seq_len" if name.startswith("mpt") else "max_position_embeddings"
    changes = {} if name == "bloom" else {limit: 4096}
    directory = tiny_classic(name, tmp_path / name, **changes)
    assert largest_gap(directory, ((1900, 2100, 2101, 2102), (7, 300, 301, 302)), 4096) <= LARGEST_FAR_GAP


def test_a_replaced_module_computes_what_it_did_until_it_is_asked(tmp_path: Path) -> None:
    for name in CONFIGS:
        directory = tiny_classic(name, tmp_path / name)
        model = loaded_tiny(directory).model
        names = [key for key, _ in model.named_parameters()]
        before = full_read(model, range(3, 60))
        replace_attention(model)
        replace_attention(model)
        assert torch.equal(full_read(model, range(3, 60)), before)
        model.set_attn_implementation(ATTENTION_NAME)
        with pytest.raises(ValueError, match="without a batch"):
            full_read(model, range(3, 60))
        model.set_attn_implementation("sdpa")  # whatever the modules' own is
        assert torch.equal(full_read(model, range(3, 60)), before)
        assert [key for key, _ in model.named_parameters()] == names
        assert not any(type(module) in REPLACEMENTS for module in model.modules())


@pytest.mark.parametrize("heads", range(1, 41))
def test_slopes_are_the_published_ones(heads: int) -> None:
    """Press et al. 2021: a power of two of heads has the slopes 2^(-8 i / heads). BLOOM takes the missing ones from
    every other slope of twice as many heads; MPT takes all of them from there, the second ones first."""

    def powers(count: int) -> list[float]:
        return [2 ** (-8 * (i + 1) / count) for i in range(count)]

    below = 1 << (heads.bit_length() - 1)
    above = below if below == heads else 2 * below
    of_bloom = torch.tensor([*powers(below), *powers(2 * below)[::2]][:heads])
    of_mpt = torch.tensor(powers(heads) if above == heads else [*powers(above)[1::2], *powers(above)[::2]][:heads])
    torch.testing.assert_close(bloom_slopes(heads, torch.device("cpu")), of_bloom)
    torch.testing.assert_close(mpt_slopes(heads, torch.device("cpu")), of_mpt)
