"""Loads a model's weights at the bits that its files, the user's setting and this machine allow, and says which."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from transformers import PreTrainedModel

from model_runtime.forward.few_rows.coded.device_layers import device_layers
from model_runtime.loading.checkpoint import format_of, load_checkpoint
from model_runtime.loading.model_cache import Source, half_checkpoint, kept_nf4, read_source
from model_runtime.loading.progress import shown
from model_runtime.weights.bits_label import bits_label, gguf_label
from model_runtime.weights.build import build_dequantised, build_native, build_packed, dequantised_types
from model_runtime.weights.checkpoint_formats.stored_format import StoredFormat
from model_runtime.weights.coded.codebooks import CODEBOOKS, held_bytes
from model_runtime.weights.coded.coded_rows import BLOCK
from model_runtime.weights.kernel_choice import kernel_plan, own_kernels
from model_runtime.weights.linear_int4 import KernelPlan
from model_runtime.weights.own_layers.device_layers import has_layers_to_keep, keep_bits
from model_runtime.weights.own_layers.formats import own_format
from model_runtime.weights.own_layers.replacement import dequantise_stored, has_coded_layers, use_own_kernels
from model_runtime.weights.quantization import Precision, dtype_name
from model_runtime.weights.stored_weights import weights_file_bytes

Say = Callable[[str], None]
Notes = tuple[str, ...]
_BITSANDBYTES = ("nf4", "int8")
_OWN = "own float32"  # in fingerprints


@dataclass(frozen=True, slots=True)
class LoadedWeights:
    """A model with its weights. `directory` has their files, `quantization` is the label for people, `kernel` what the
    numbers of a KV depend on beside it, `notes` are sentences for the start."""

    model: PreTrainedModel
    directory: Path
    quantization: str
    kernel: str
    notes: Notes


def load_weights(
    directory: Path, is_gguf: bool, precision: Precision, device: str, cache_dir: Path, say: Say
) -> LoadedWeights:
    """`directory` is a checkpoint, or what was made of a GGUF file if `is_gguf`."""
    notes: Notes = (precision.note,) if precision.note else ()
    if not is_gguf:
        return _from_checkpoint(directory, precision, device, cache_dir, say, notes)
    source = read_source(directory)
    notes += source.notes
    if precision.mode in _BITSANDBYTES:
        half = half_checkpoint(directory, say)
        return _from_checkpoint(half, precision, device, cache_dir, say, notes)
    if precision.mode == "shipped" and device == "cpu":
        plan, sentence = kernel_plan(cache_dir, say)
        if plan.kernels is not None:
            return _native(directory, source, plan, sentence, notes, say)
        if source.has_blocks and not {"Q4_0", "Q4_1"}.isdisjoint(source.matrix_types):
            return _packed(directory, source, plan, sentence, notes, say)
    return _on_any_device(directory, source, precision, device, notes, say)


def _on_any_device(
    directory: Path, source: Source, precision: Precision, device: str, notes: Notes, say: Say
) -> LoadedWeights:
    """De-quantised, but for the layers that keep their bits in our own kernels on a GPU."""
    dtype = dtype_name(precision.compute_dtype)
    is_shipped = precision.mode == "shipped"
    maker = device_layers(torch.device(device), precision.compute_dtype) if is_shipped else None
    with shown(f"Loading the {source.bits_name} weights", weights_file_bytes(directory), say) as progress:
        model = build_dequantised(directory, precision.compute_dtype, device, progress, maker)
    if maker is None or not maker.made:
        if is_shipped:
            notes += (f"The {source.bits_name} weights run de-quantised in {dtype} on {device}.",)
        notes += () if maker is None else maker.notes
        return LoadedWeights(model, directory, f"{dtype} (from {source.bits_name})", dtype, notes)
    label = gguf_label(model, source.bits_name, dtype)
    return LoadedWeights(model, directory, label, f"coded {dtype}", (*notes, *maker.notes))


def _native(directory: Path, source: Source, plan: KernelPlan, sentence: str, notes: Notes, say: Say) -> LoadedWeights:
    assert plan.kernels is not None
    with shown(f"Loading the {source.bits_name} weights", weights_file_bytes(directory), say) as progress:
        model = build_native(directory, plan.kernels, progress)
    label = gguf_label(model, source.bits_name)
    notes += _lost_types(directory, model)
    for kind in sorted(CODEBOOKS.keys() & source.matrix_types):
        bits = held_bytes(kind, BLOCK) * 8 / BLOCK
        notes += (f"Weights of {kind} are held in {bits:.1f} bits, with the values they were shipped with.",)
    if not label.startswith("float32"):
        notes += (sentence,)
    elif source.bits_name != "F32":
        notes += (f"The layers' {source.bits_name} weights run de-quantised in float32.",)
    return LoadedWeights(model, directory, label, _OWN, notes)


def _packed(directory: Path, source: Source, plan: KernelPlan, sentence: str, notes: Notes, say: Say) -> LoadedWeights:
    with shown(f"Loading the {source.bits_name} weights", weights_file_bytes(directory), say) as progress:
        model = build_packed(directory, plan, progress)
    label = f"4-bit ({source.bits_name} as shipped)" if plan.packed else f"{source.bits_name} de-quantised"
    kernel = f"int4 packed={plan.packed} above={dtype_name(plan.gemm_dtype)}"
    return LoadedWeights(model, directory, label, kernel, (*notes, *_lost_types(directory, model), sentence))


def _lost_types(directory: Path, model: PreTrainedModel) -> Notes:
    counts = dequantised_types(directory, model)
    return tuple(f"{count} tensors of type {kind} run de-quantised." for kind, count in sorted(counts.items()))


def _from_checkpoint(
    directory: Path, precision: Precision, device: str, cache_dir: Path, say: Say, notes: Notes
) -> LoadedWeights:
    stored = format_of(directory)
    kernels: ctypes.CDLL | None = None
    if device == "cpu" and precision.mode == "nf4":
        kernels, _ = own_kernels(cache_dir, say)
    keep = partial(kept_nf4, directory, cache_dir=cache_dir, say=say)
    model, unused = load_checkpoint(directory, precision, device, stored, kernels, say, keep)
    kernel = dtype_name(precision.compute_dtype)
    path = stored.path_on(device) if stored is not None and precision.mode == "shipped" else None
    notes += (path,) if path else ()
    if kernels is not None and not has_coded_layers(model):
        kernel = _OWN
    elif device == "cpu" and precision.mode != "none" and has_coded_layers(model):
        kernels, why_not = own_kernels(cache_dir, say)
        if kernels is not None:
            use_own_kernels(model, kernels)
            kernel = _OWN
        else:
            notes += (f"{_runs_instead(stored)}: our own, faster kernels cannot run here ({why_not}).",)
            if stored is not None and stored.is_own_on(device, dequantises=False):
                precision = replace(precision, mode="none")
    elif stored is not None and precision.mode == "shipped" and has_layers_to_keep(model):
        precision, kernel, said = _kept_on_a_gpu(model, stored, precision, device)
        notes += said
    dequantise_stored(model, precision.compute_dtype, device)
    is_own = stored is not None and stored.is_own_on(device, precision.mode == "none")
    own = own_format(stored) if stored is not None and is_own else None
    note = own.note(stored.settings) if stored is not None and own is not None else None
    notes += (note,) if note else ()
    return LoadedWeights(model, directory, bits_label(model, precision, stored), kernel, (*notes, *unused))


def _kept_on_a_gpu(
    model: PreTrainedModel, stored: StoredFormat, precision: Precision, device: str
) -> tuple[Precision, str, Notes]:
    """Makes the layers that keep their bits. How the model runs then, its kernel, and notes."""
    dtype = dtype_name(precision.compute_dtype)
    maker = device_layers(torch.device(device), precision.compute_dtype)
    if maker is not None:
        keep_bits(model, maker, stored.name)
        if maker.made:
            return precision, f"coded {dtype}", maker.notes
    if stored.is_fp8:  # each is de-quantised when it runs
        return precision, dtype, () if maker is None else maker.notes
    notes = (f"The {stored.name} weights run de-quantised in {dtype} on {device}.",)
    return replace(precision, mode="none"), dtype, notes + (() if maker is None else maker.notes)


def _runs_instead(stored: StoredFormat | None) -> str:
    if stored is not None and stored.is_own_on("cpu", dequantises=False):
        return f"The {stored.name} weights run de-quantised"
    if stored is not None and stored.is_fp8:
        return "torch de-quantises the FP8 layers as they run"
    return "bitsandbytes runs the 4-bit and 8-bit weights"
