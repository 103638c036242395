"""Checks that cached equals uncached on this device: in float32 as the reference, then in production precision."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import torch
from transformers import PreTrainedModel

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.profiled import attention_kernels, kernels_of
from benchmarks.gpu.shapes import build
from benchmarks.gpu.talk import some_ids
from model_runtime.forward.arena.varlen import VarlenKernel
from model_runtime.forward.arena.varlen_choice import agrees, flash_kernels
from model_runtime.forward.arena.varlen_reference import REFERENCE
from model_runtime.forward.attention_options import AttentionOptions
from model_runtime.forward.gpu.arena_forward import ArenaForward
from model_runtime.forward.probe import probe_packing
from model_runtime.forward.runtime import DeviceRuntime, open_arena, open_slabs, varlen_for
from model_runtime.forward.transformers_forward import Feed
from model_runtime.interface.config import EngineConfig
from model_runtime.interface.segments import identify
from model_runtime.kv.geometry import KVGeometry
from model_runtime.kv.segment import read, write
from model_runtime.kv.slab import KVSlab
from model_runtime.loading.loaded import LoadedModel

REFERENCE_LIMIT = 1e-4  # largest difference of logits in float32 with one kernel for prefill and decode
NLL_LIMIT = 0.005
# Random weights give flat logits, so bfloat16's rounding error is measured in their standard deviations, as a root mean
# square (the largest of a hundred thousand is five times that, of a larger vocabulary more).
PRODUCTION_LIMIT = 0.05
STEPS, TINY_STEPS = 100, 20
TURN_TOKENS = 30


def kernels(bench: Bench) -> None:
    """Compares every flash kernel of this build with the reference, for the heads of several models."""
    if bench.device.type != "cuda":
        options = list(_options(6, bench.device).values())
        bench.check("reference_kernel", agrees(REFERENCE, bench.device, torch.float32, 6, 2, 16, options))
        bench.note("flash_kernels", ", ".join(kernel.name for kernel in flash_kernels()) + " (not run: no GPU)")
        return
    for kernel in flash_kernels():
        for heads, kv_heads, dim in ((9, 3, 64), (32, 8, 128), (48, 1, 128)):
            name = f"{kernel.name} {heads}/{kv_heads}x{dim}"
            try:
                bench.check(name, agrees(kernel, bench.device, bench.dtype, heads, kv_heads, dim))
            except Exception as error:
                bench.check(name, False, f"{type(error).__name__}: {error}")
        for option, used in _options(32, bench.device).items():
            name = f"{kernel.name} {option}"
            if refused := kernel.refused(used):
                bench.note(name, f"refuses {refused}")
                continue
            try:
                bench.check(name, agrees(kernel, bench.device, bench.dtype, 32, 8, 128, [used]))
            except Exception as error:
                bench.check(name, False, f"{type(error).__name__}: {error}")


def _options(heads: int, device: torch.device) -> dict[str, AttentionOptions]:
    """The options of attention that need more than a window. The flash kernels have no soft-capping."""
    slopes = torch.tensor([2.0 ** (-8 * (n + 1) / heads) for n in range(heads)], device=device)
    sinks = torch.linspace(-2, 3, heads, device=device)
    return {
        "chunks": AttentionOptions(chunk=16),
        "sinks": AttentionOptions(sinks=sinks),
        "sinks and a window": AttentionOptions(sinks=sinks, window=16),
        "ALiBi": AttentionOptions(slopes=slopes),
    }


def exactness(bench: Bench, given: LoadedModel | None = None) -> None:
    """Compares packed with alone, cached with one read, and KVs before and after pinned memory and a file."""
    if given is not None:
        _production(bench, given, "given")
        return
    exact = build(bench, "smollm2_135m", "none", torch.float32)
    geometry = probe_packing(exact.model, torch.float32, 4096, step_tokens=256)
    _checked(bench, "float32 slabs", exact, open_slabs(exact.model, geometry), geometry, REFERENCE_LIMIT)
    config = EngineConfig(kv_arena_bytes=8192 * geometry.bytes_per_token, pinned_host_bytes=1 << 28)
    arena = _arena(exact, geometry, REFERENCE, config)
    _checked(bench, "float32 arena", exact, arena, geometry, REFERENCE_LIMIT)
    arena.close()
    del exact, arena
    bench.clean()
    for shape, precision in (
        *(("smollm2_135m", precision) for precision in ("none", "nf4", "int8")),
        # These have the widths that our own forward of few rows supports.
        *(("llama32_1b", "nf4"), ("llama32_1b", "fp4"), ("qwen3_06b", "nf4")),
        # Their attention is replaced; MPT's ALiBi goes to the kernel's slopes.
        *(("mpt_1b", "none"), ("falcon_7b", "nf4")),
    ):
        _production(bench, build(bench, shape, precision), f"{shape} {precision}")
        bench.clean()


def _production(bench: Bench, loaded: LoadedModel, name: str) -> None:
    geometry = probe_packing(loaded.model, loaded.kv_dtype, 4096, step_tokens=256)
    kernel = varlen_for(loaded.model, geometry)
    config = EngineConfig(kv_arena_bytes=8192 * geometry.bytes_per_token, pinned_host_bytes=1 << 28)
    runtime = _arena(loaded, geometry, kernel, config)
    limit = REFERENCE_LIMIT if loaded.kv_dtype == torch.float32 and name.endswith("none") else PRODUCTION_LIMIT
    _checked(bench, f"{name} {geometry.dtype}".replace("torch.", ""), loaded, runtime, geometry, limit)
    ran = attention_kernels(kernels_of(bench, lambda: _Reader(runtime, loaded).read([some_ids(loaded, 64)])))
    bench.note(f"attention_kernel_{name}", f"{runtime.kernel}: {', '.join(ran[:3]) or 'none by that name'}")
    if bench.device.type == "cuda":
        bench.check(f"{name}: flash ran", any("flash" in one.lower() for one in ran))
    runtime.close()


def _arena(loaded: LoadedModel, geometry: KVGeometry, kernel: VarlenKernel, config: EngineConfig) -> DeviceRuntime:
    runtime = open_arena(loaded.model, geometry, kernel, config, 4096)
    if runtime is None:
        raise RuntimeError(f"{kernel.name} over an arena does not compute what slabs do")
    return runtime


@dataclass
class _Reader:
    """Feeds ids to KVs of a runtime and returns logits of all rows that were fed."""

    runtime: DeviceRuntime
    loaded: LoadedModel

    def read(self, parts: Sequence[Sequence[int]], kvs: Sequence[KVSlab] | None = None) -> list[torch.Tensor]:
        """Logits `(ids, vocabulary)` of each part, all in one packed forward; in new KVs if none are given."""
        used = kvs or [self.runtime.place.new_kv() for _ in parts]
        logits = self.runtime.forward.run([Feed(kv, ids, len(ids)) for kv, ids in zip(used, parts, strict=True)])
        ends = list(accumulate(len(ids) for ids in parts))
        pieces = [logits[end - len(ids) : end].clone() for end, ids in zip(ends, parts, strict=True)]
        if kvs is None:
            for kv in used:
                kv.free()
        return pieces

    def step(self, kvs: Sequence[KVSlab], ids: Sequence[int]) -> list[torch.Tensor]:
        """A decode step with one token per KV, replayed if the runtime records steps."""
        return self.read([[one] for one in ids], kvs)


def _checked(
    bench: Bench, name: str, loaded: LoadedModel, runtime: DeviceRuntime, geometry: KVGeometry, limit: float
) -> None:
    print(f" {name}: {runtime.kernel}")
    reader, count = _Reader(runtime, loaded), TINY_STEPS if bench.is_tiny else STEPS
    ledgers = [some_ids(loaded, tokens, seed) for seed, tokens in ((1, 300), (2, 140), (3, 171))]
    whole = [_own_attention(loaded.model, ledger) for ledger in ledgers]
    spread = float(whole[0].std())

    def gap(found: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> float:
        differences = [a - b for a, b in zip(found, expected, strict=True)]
        if limit == REFERENCE_LIMIT:
            return max(float(difference.abs().max()) for difference in differences)
        return max(float(difference.square().mean().sqrt()) for difference in differences) / spread

    def compare(what: str, found: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> None:
        worst = gap(found, expected)
        bench.check(f"{name}: {what}", worst <= limit, f"(difference {worst:.2g}, allowed {limit:g})")

    alone = [reader.read([ledger])[0] for ledger in ledgers]
    compare("alone equals the model's own attention", alone, whole)
    compare("packed equals alone", reader.read(ledgers), alone)

    # All conversations together: the beginnings, a long turn, a short turn, then token by token.
    kvs = [runtime.place.new_kv() for _ in ledgers]
    reader.read([ledger[:20] for ledger in ledgers], kvs)
    reader.read([ledger[20 : -count - 15] for ledger in ledgers], kvs)
    reader.read([ledger[-count - 15 : -count - 1] for ledger in ledgers], kvs)
    steps = [reader.step(kvs, [ledger[place] for ledger in ledgers]) for place in range(-count - 1, -1)]
    cached = [torch.cat([step[number] for step in steps]) for number in range(len(ledgers))]
    ends = [logits[-count - 1 : -1] for logits in whole]
    compare("cached equals one read", cached, ends)
    nll = [_nll(logits, ledger[-count:]) for logits, ledger in zip(cached, ledgers, strict=True)]
    expected_nll = [_nll(logits, ledger[-count:]) for logits, ledger in zip(ends, ledgers, strict=True)]
    nll_gap = abs(sum(nll) - sum(expected_nll)) / len(ledgers)
    bench.check(f"{name}: NLL", nll_gap <= NLL_LIMIT, f"(gap {nll_gap:.2g}, allowed {NLL_LIMIT})")

    _through_tiers(bench, name, reader, kvs[0], geometry, ledgers[0])
    for kv in kvs:
        kv.free()

    if runtime.record_waiting is not None:
        launched, replayed, all_rows, expected = _short_turn(reader, runtime.record_waiting)
        compare("a short turn launched equals one read", [launched], [expected[-1:]])
        compare("and replayed", [replayed], [expected[-1:]])
        compare("and with the logits of all its rows", [all_rows], [expected])
        turns = forward.recorded_turns if isinstance(forward := runtime.forward, ArenaForward) else None
        is_off = turns is None or turns.refusal is not None
        bench.note(f"{name}: short turns", "launched kernel by kernel" if is_off else "replayed")


def _short_turn(reader: _Reader, record_waiting: Callable[[Callable[[], bool]], None]) -> list[torch.Tensor]:
    """Logits of a turn after a history that is long enough to be cut into pieces: the last row launched, the last row
    replayed after recording, all rows as when drafts are checked, and all rows from one read."""
    ledger = some_ids(reader.loaded, 900, 4)
    kv, turn = reader.runtime.place.new_kv(), ledger[-TURN_TOKENS:]
    reader.read([ledger[:-TURN_TOKENS]], [kv])
    found = []
    for wanted in (1, 1, TURN_TOKENS):
        found.append(reader.runtime.forward.run([Feed(kv, turn, wanted)]).clone())
        kv.crop(len(ledger) - TURN_TOKENS)
        record_waiting(lambda: False)
    kv.free()
    return [*found, _own_attention(reader.loaded.model, ledger)[-TURN_TOKENS:]]


def _through_tiers(
    bench: Bench, name: str, reader: _Reader, kv: KVSlab, geometry: KVGeometry, ledger: Sequence[int]
) -> None:
    """Checks that rows and next logits are bitwise equal after pinned host memory and after a file."""
    transfers = reader.runtime.transfers
    identity = identify(None, kv.token_ids, reader.loaded.fingerprint)
    segment = transfers.begin_out(kv, identity)()
    before = reader.step([kv], [ledger[-1]])[0]
    kv.crop(len(identity.token_ids))
    with tempfile.TemporaryDirectory() as folder:
        write(segment, geometry, Path(folder) / "segment")
        from_file = read(identity, geometry, Path(folder) / "segment")
    for way, one in (("pinned host memory", segment), ("a file", from_file)):
        back = reader.runtime.place.new_kv()
        transfers.copy_in(back, one)
        after = reader.step([back], [ledger[-1]])[0]
        length = len(identity.token_ids)
        same_rows = all(
            torch.equal(ours[:, :length], theirs[:, :length])
            for ours, theirs in zip((*kv.keys, *kv.values), (*back.keys, *back.values), strict=True)
        )
        bench.check(f"{name}: back from {way}, bitwise", same_rows and torch.equal(before, after))
        back.free()


@torch.inference_mode()
def _own_attention(model: PreTrainedModel, ledger: Sequence[int]) -> torch.Tensor:
    """float32 logits `(tokens, vocabulary)` of one uncached read through transformers' own attention."""
    packed = str(model.config._attn_implementation)  # noqa: SLF001 - transformers has no public name for it
    model.set_attn_implementation("sdpa")
    try:
        device = next(model.parameters()).device
        logits: torch.Tensor = model(torch.tensor([list(ledger)], device=device), use_cache=False).logits
        return logits[0].float()
    finally:
        model.set_attn_implementation(packed)


def _nll(logits: torch.Tensor, following: Sequence[int]) -> float:
    wanted = torch.tensor(list(following), device=logits.device)
    return float(torch.nn.functional.cross_entropy(logits, wanted))
