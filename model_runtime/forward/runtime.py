"""Chooses where an engine's KVs are stored and what runs its forwards: slabs with SDPA or our own CPU kernels, or one
arena with the variable-length kernel."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from transformers import PreTrainedModel

from model_runtime.architecture.layer_settings import values_of
from model_runtime.forward.arena.arena import Arena
from model_runtime.forward.arena.host_pool import HostPool
from model_runtime.forward.arena.transfers import ArenaTransfers
from model_runtime.forward.arena.varlen import VarlenKernel
from model_runtime.forward.arena.varlen_choice import choose_varlen
from model_runtime.forward.attention_kernel import kernel_name
from model_runtime.forward.cpu_activations import activation_bits, float_activations, has_integer_activations
from model_runtime.forward.device_memory import give_back_unused
from model_runtime.forward.gpu.arena_forward import ArenaForward
from model_runtime.forward.gpu.self_check import SelfCheck
from model_runtime.forward.native_forward import (
    EXACT_GAP,
    HALF_GAP,
    INTEGER_GAPS,
    NativeForward,
    continued,
    gap_to,
    rounding_gap,
    runs_natively,
)
from model_runtime.forward.picked_ids import PickedIds
from model_runtime.forward.probing.record import record_layers
from model_runtime.forward.transformers_forward import Feed, PackedForward
from model_runtime.interface.config import EngineConfig, KvDtype
from model_runtime.interface.errors import ModelLoadError
from model_runtime.interface.segments import SegmentIdentity
from model_runtime.kv.geometry import KVGeometry
from model_runtime.kv.segment import KVSegment, copy_in, copy_out
from model_runtime.kv.slab import KVSlab
from model_runtime.weights.quantization import dtype_name

logger = logging.getLogger(__name__)


class Forward(Protocol):
    """Appends tokens of many conversations to their KVs and returns logits; see `PackedForward.run`."""

    def run(self, feeds: Sequence[Feed], abort_if: Callable[[], bool] = ...) -> torch.Tensor: ...


@dataclass(frozen=True, slots=True)
class KVPlace:
    """Allocates KVs. `bytes_for(tokens)` bounds the bytes that a KV of `tokens` tokens holds at any moment.
    `capacity_tokens` is what all KVs together can hold; None if memory is allocated as needed."""

    new_kv: Callable[[], KVSlab]
    bytes_for: Callable[[int], int]
    capacity_tokens: int | None = None


class Transfers(Protocol):
    """Copies rows between the device and host memory; see `ArenaTransfers`. Engine thread."""

    def begin_out(
        self, kv: KVSlab, identity: SegmentIdentity, before: Sequence[int] | None = None
    ) -> Callable[[], KVSegment]: ...

    def copy_in(self, kv: KVSlab, segment: KVSegment) -> None: ...


class SlabTransfers:
    """Copies that are complete when they return."""

    def __init__(self, geometry: KVGeometry) -> None:
        self._geometry = geometry

    def begin_out(
        self, kv: KVSlab, identity: SegmentIdentity, before: Sequence[int] | None = None
    ) -> Callable[[], KVSegment]:
        segment = copy_out(kv, self._geometry, identity, before)
        return lambda: segment

    def copy_in(self, kv: KVSlab, segment: KVSegment) -> None:
        copy_in(kv, self._geometry, segment)


@dataclass(frozen=True, slots=True)
class DeviceRuntime:
    """Everything that depends on the device. `geometry` is the shape of rows. `kernel` is the name shown to the user.
    `run_ahead` starts a decode step before the host knows its tokens (`ArenaForward.run_ahead`). `record_waiting`
    records graphs while the engine is idle (`ArenaForward.record_waiting`). `arena` is None with slabs. `host_pool`
    provides memory for fast copies to this device."""

    geometry: KVGeometry
    place: KVPlace
    forward: Forward
    transfers: Transfers
    kernel: str
    run_ahead: Callable[[Sequence[KVSlab], PickedIds], bool] | None = None
    record_waiting: Callable[[Callable[[], bool]], None] | None = None
    arena: Arena | None = None
    host_pool: HostPool | None = None

    def close(self) -> None:
        """Frees the arena and the host pool. After the last step, on any thread."""
        self.give_up()
        if self.host_pool is not None:
            self.host_pool.close()

    def give_up(self) -> None:
        """Frees the arena but keeps the host pool. A hanging step may still be running; it stops at its next layer."""
        if isinstance(self.forward, ArenaForward):
            self.forward.close()
        if self.arena is not None:
            self.arena.close()
            give_back_unused()


def open_runtime(
    model: PreTrainedModel,
    geometry: KVGeometry,
    config: EngineConfig,
    context_limit_tokens: int,
    host_pool: HostPool | None = None,
) -> DeviceRuntime:
    """Opens slabs, or an arena if `config.kv_arena_bytes` is set and the device has a kernel for it. `host_pool` is an
    existing one to reuse. Raises `ModelLoadError` when there is no memory for the arena, and for a precision of rows
    that is not supported."""
    if config.kv_arena_bytes is None:
        return open_slabs(model, geometry, config.kv_dtype)
    _refuse_other_dtype(geometry, config.kv_dtype)
    kernel = varlen_for(model, geometry)
    if kernel.waits and geometry.device.type == "cuda":
        logger.warning("no flash kernel for dtype=%s: one slab per conversation", geometry.dtype)
        return open_slabs(model, geometry, config.kv_dtype)
    try:
        runtime = open_arena(model, geometry, kernel, config, context_limit_tokens, host_pool)
        if runtime is not None:
            return runtime
        logger.warning("the arena's forward disagrees with torch's attention on this device: one slab per conversation")
        give_back_unused()
        return open_slabs(model, geometry, config.kv_dtype)
    except (torch.OutOfMemoryError, ValueError) as error:
        raise ModelLoadError(
            f"A KV budget of {config.kv_arena_bytes:,} bytes does not fit on {geometry.device} beside the model. "
            "Choose another --device-kv-budget, or a smaller model."
        ) from error


def open_slabs(model: PreTrainedModel, geometry: KVGeometry, kv_dtype: KvDtype = "auto") -> DeviceRuntime:
    """One slab per conversation, with our own CPU kernels if they support this model, else torch's choice of SDPA
    kernel. `geometry` is that of the model's own layers. Raises `ModelLoadError` for a precision of rows that is not
    supported."""
    if runs_natively(model):
        with float_activations(model):
            exact = NativeForward(model)
            own = None
            if gap_to(exact, model, geometry, geometry) <= EXACT_GAP:
                own = _own_geometry(exact, model, geometry, kv_dtype)
        if own is not None:
            native = _with_activations(model, exact, own)
            return _slab_runtime(own, native, f"{native.kernel_name}, {dtype_name(own.dtype)} KV")
        logger.warning("our own kernels disagree with torch's on this processor: using torch's")
    _refuse_other_dtype(geometry, kv_dtype)
    packed = PackedForward(model)
    if has_integer_activations(model):
        with float_activations(model):
            expected = continued(packed, _vocabulary(model), geometry)
        _check_rounding(model, continued(packed, _vocabulary(model), geometry), expected)
    return _slab_runtime(geometry, packed, kernel_name(geometry, _heads(model)))


def _with_activations(model: PreTrainedModel, exact: NativeForward, own: KVGeometry) -> NativeForward:
    """The forward with the activations that the model's matrices take; `exact` has float32, and was compared with the
    model's own layers: rounding to bytes would hide a small mistake. Raises `ModelLoadError` if it costs too much."""
    if not has_integer_activations(model):
        return exact
    native = NativeForward(model)
    _check_rounding(model, continued(native, _vocabulary(model), own), continued(exact, _vocabulary(model), own))
    return native


def _check_rounding(model: PreTrainedModel, found: torch.Tensor, expected: torch.Tensor) -> None:
    gap, bits = rounding_gap(found, expected), activation_bits(model)
    if not gap <= INTEGER_GAPS[bits]:
        raise ModelLoadError(
            f"Activations of {bits} bits change this model's logits by {gap:.2g} standard deviations "
            f"({INTEGER_GAPS[bits]:g} allowed). Start with --cpu-activations float32."
        )


def _vocabulary(model: PreTrainedModel) -> int:
    return int(model.config.get_text_config().vocab_size)


def _slab_runtime(geometry: KVGeometry, forward: Forward, kernel: str) -> DeviceRuntime:
    place = KVPlace(lambda: KVSlab(geometry), geometry.bytes_for)
    return DeviceRuntime(geometry, place, forward, SlabTransfers(geometry), kernel)


def _own_geometry(native: NativeForward, model: PreTrainedModel, geometry: KVGeometry, asked: KvDtype) -> KVGeometry:
    """float16 rows, or float32 if that was asked for or this model's keys and values do not fit into float16."""
    half = replace(geometry, dtype=torch.float16)
    if asked == "float32":
        return geometry
    gap = gap_to(native, model, geometry, half)
    if gap <= HALF_GAP:
        return half
    if asked == "float16":
        raise ModelLoadError(
            f"This model's keys and values cannot be kept in float16: its logits differ by {gap:.2g} standard "
            f"deviations ({HALF_GAP:g} allowed). Start with --kv-dtype float32."
        )
    logger.warning("float16 rows change this model's logits by %.2g standard deviations: using float32", gap)
    return geometry


def _refuse_other_dtype(geometry: KVGeometry, asked: KvDtype) -> None:
    own = dtype_name(geometry.dtype)
    if asked not in ("auto", own):
        raise ModelLoadError(
            f"This model keeps its keys and values in {own} on {geometry.device}; only Keepwarm's own CPU kernels "
            "leave a choice. Start with --kv-dtype auto."
        )


def varlen_for(model: PreTrainedModel, geometry: KVGeometry) -> VarlenKernel:
    """The flash kernel if this device has one that agrees with the reference for this model, else the reference. Flash
    requires keys and values of the same width."""
    shape = geometry.layers[0]
    is_uniform = all((s.key_dim, s.value_dim) == (shape.key_dim, shape.key_dim) for s in geometry.layers)
    dtype = geometry.dtype if is_uniform else torch.float32
    options = record_layers(model).options
    return choose_varlen(geometry.device, dtype, _heads(model), shape.kv_heads, shape.key_dim, options)


def open_arena(
    model: PreTrainedModel,
    geometry: KVGeometry,
    kernel: VarlenKernel,
    config: EngineConfig,
    context_limit_tokens: int,
    host_pool: HostPool | None = None,
) -> DeviceRuntime | None:
    """An arena of `config.kv_arena_bytes` for all conversations, plus its reserve. None if its forward disagrees with
    slabs; steps that are wrong only when recorded are not recorded. Raises `ValueError` when nothing fits into the
    arena, and what torch raises when there is no memory for it."""
    arena = Arena(geometry, (config.kv_arena_bytes or 0) // geometry.bytes_per_token, context_limit_tokens)
    forward = ArenaForward(model, arena, kernel)
    check = SelfCheck(model, geometry, min(context_limit_tokens, arena.capacity_tokens))
    is_right = check.passes(forward)
    if not is_right and forward.few_rows is not None:
        logger.warning("our own forward of few rows disagrees with the model's layers: using these for few rows too")
        forward.few_rows = None
        is_right = check.passes(forward)
    if not is_right:
        forward.close()
        return None
    # A recording would keep the rotary frequencies of the conversations that it was made with.
    if config.record_steps and not _waits(forward) and geometry.short_rope_tokens is None:
        _record(forward, check)
    name = _kernel_name(forward)
    logger.info("arena tokens=%d kernel=%s", arena.capacity_tokens, name)
    pool = host_pool or HostPool(config.pinned_host_bytes, geometry.device)
    place = KVPlace(arena.new_kv, arena.bytes_for, arena.capacity_tokens)
    transfers = ArenaTransfers(arena, pool)
    record_waiting = forward.record_waiting if forward.recorded_turns is not None else None
    return DeviceRuntime(geometry, place, forward, transfers, name, forward.run_ahead, record_waiting, arena, pool)


def _record(forward: ArenaForward, check: SelfCheck) -> None:
    """Turns on recording of steps and turns, unless recording changes their results."""
    forward.record_steps()
    if not check.decodes_right(forward):
        logger.warning("recorded decode steps disagree with the same steps launched one by one: none is recorded")
        forward.recorded_steps = None
    forward.record_turns()
    if not check.reads_turns_right(forward):
        logger.warning("recorded short turns disagree with the same turns launched one by one: none is recorded")
        forward.recorded_turns = None


def _waits(forward: ArenaForward) -> bool:
    """Whether the host waits during a step, so that CUDA cannot record it."""
    return forward.device.type == "cuda" and (forward.kernel.waits or waits_for_the_device(forward.model))


def _kernel_name(forward: ArenaForward) -> str:
    """The name that is shown to the user."""
    is_cuda = forward.device.type == "cuda"
    name = f"{forward.kernel.name} ({forward.device.type.upper()})"
    if is_cuda and forward.few_rows is not None:
        name += ", Keepwarm's own forward of few rows"
    elif forward.has_own_products:
        name += ", Keepwarm's own 4-bit products of few rows"
    recorded = [r.what for r in (forward.recorded_steps, forward.recorded_turns) if r is not None and r.refusal is None]
    return f"{name}, {' and '.join(recorded)} as CUDA graphs" if is_cuda and recorded else name


def waits_for_the_device(model: PreTrainedModel) -> bool:
    """Whether a layer makes the host wait, so that a step cannot be recorded: bitsandbytes' int8 layers ask the device
    for outliers (`outliers.any()` in its backends/cuda/ops.py) unless their threshold is 0."""
    return any(
        type(module).__name__ == "Linear8bitLt" and getattr(getattr(module, "state", None), "threshold", 0.0) > 0
        for module in model.modules()
    )


def _heads(model: PreTrainedModel) -> int:
    """Of the layer that has the most."""
    return max(int(heads) for heads in values_of(model.config.get_text_config(), "num_attention_heads"))
