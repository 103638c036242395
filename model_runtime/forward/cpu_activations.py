"""The precision of activations in our own CPU kernels: float32, or whole numbers with a scale for 32 columns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from model_runtime.interface.config import CpuActivations
from model_runtime.interface.errors import ModelLoadError
from model_runtime.weights.native_experts import NativeExperts
from model_runtime.weights.native_matrix import NativeLinear, NativeMatrix

INT8, INT16, FLOAT32 = "int8", "int16", "float32"
SAMPLE = (
    "The harbour office opened at six, but the ferry had been late every day that week. Anna counted the crates twice, "
    "wrote 47 in her book, and asked the driver whether the rest would come by rail."
)
MOST_LOSS = 0.01  # nats a token; see decision 42
# Standard deviations of the logits: half of what the check of the kernels allows (INTEGER_GAPS).
MOST_GAPS = {INT8: 0.15, INT16: 0.005}
SMALL_BYTES = 192 * 1024**2  # weights that are fewer are fast enough in float32
_BYTES, _WORDS = {INT8: 1, INT16: 2}, {INT8: "bytes", INT16: "16 bits"}
_SAMPLE_TOKENS, _FIRST_TOKENS, _PIECE = 48, 8, 4


@dataclass(frozen=True, slots=True)
class Activations:
    """What a model's matrices multiply by: `kind` is "int8", "int16", "float32", or "" for a model that leaves no
    choice. `note` says what is rounded, and why that was chosen; "" if nothing is rounded and nothing was measured.
    `has_level_units`: levels that are no whole numbers (NF4, FP4) are multiplied as such."""

    kind: str
    note: str = ""
    has_level_units: bool = False


def use_activations(
    model: PreTrainedModel,
    asked: CpuActivations,
    sample_ids: Sequence[int] = (),
    runs_whole: Callable[[PreTrainedModel], bool] = lambda _: False,
) -> Activations:
    """Sets what the layers on native matrices multiply by. "auto" is the fewest bytes with which a model loses at
    most `MOST_LOSS` on the sample and moves by at most `MOST_GAPS`, if `runs_whole` says that its steps run in our own
    kernels from end to end and it is large enough to gain by it. Raises `ModelLoadError` for a model that cannot do
    what was asked for."""
    matrices = _matrices(model)
    if not matrices:
        if asked != "auto":
            raise ModelLoadError(
                "Only Keepwarm's own CPU kernels leave a choice of --cpu-activations, and this model does not run in "
                "them. Leave it out."
            )
        return Activations("")
    if asked == FLOAT32:
        return Activations(FLOAT32)
    if asked == "auto" and not (_could_gain(matrices, sample_ids) and runs_whole(model)):
        return Activations(FLOAT32)
    if asked == "auto":
        return _measured(model, matrices, sample_ids[:_SAMPLE_TOKENS])
    if not _take(matrices, asked):
        codes = "codes with a scale" if asked == INT8 else "whole numbers as codes, with a scale"
        raise ModelLoadError(
            f"No weights of this model have {codes}: its activations stay float32. Leave --cpu-activations out."
        )
    return Activations(asked, f"{_rounded(asked)}, which is faster and not exact.", _has_level_units(matrices))


def _take(matrices: Sequence[NativeMatrix], kind: str) -> bool:
    """Whether any matrix takes activations of this kind; those that can do so from now on."""
    taken = [matrix.take_bytes(_BYTES[kind]) for matrix in matrices]
    return any(taken)


def _rounded(kind: str) -> str:
    return f"Activations are rounded to {_WORDS[kind]} with a scale for 32 numbers"


def _has_level_units(matrices: Sequence[NativeMatrix]) -> bool:
    return any(matrix.has_level_unit for matrix in matrices)


def _could_gain(matrices: Sequence[NativeMatrix], sample_ids: Sequence[int]) -> bool:
    is_large = sum(matrix.nbytes for matrix in matrices) >= SMALL_BYTES
    has_products = bool(matrices[0].kernels.keepwarm_has_byte_products())
    return is_large and has_products and len(sample_ids) > _FIRST_TOKENS


def _measured(model: PreTrainedModel, matrices: Sequence[NativeMatrix], sample_ids: Sequence[int]) -> Activations:
    """The fewest bytes that cost little enough."""
    refused = ""
    for kind in (INT8, INT16):
        if _take(matrices, kind):
            loss, gap = rounding_loss(model, sample_ids), _gap_anywhere(model)
            if loss <= MOST_LOSS and gap <= MOST_GAPS[kind]:
                why = f" {refused[0].upper()}{refused[1:]}." if refused else ""
                note = f"{_rounded(kind)}: faster, and {_said(loss)}.{why}"
                return Activations(kind, note, _has_level_units(matrices))
            refused = refused or _refused(kind, loss, gap)
    for matrix in matrices:
        matrix.struct.takes_bytes = 0
    return Activations(FLOAT32, f"Activations stay float32: {refused}." if refused else "")


def _refused(kind: str, loss: float, gap: float) -> str:
    if loss <= MOST_LOSS:
        moved = f"{_WORDS[kind]} would move logits behind arbitrary tokens by {gap:.2g} standard deviations"
        return f"{moved}, and {MOST_GAPS[kind]:g} are allowed"
    return f"as {_WORDS[kind]}, faster, and {_said(loss)}, and {MOST_LOSS:g} are allowed"


def _said(loss: float) -> str:
    return f"{loss:.2g} nats a token off on a sample of text"


@torch.inference_mode()
def rounding_loss(model: PreTrainedModel, ids: Sequence[int]) -> float:
    """How far what a model expects after each of `ids` moves when its activations are rounded: the mean
    Kullback-Leibler divergence in nats a token, behind the first few."""
    tokens = torch.tensor([list(ids)])
    with float_activations(model):
        exact = model.model(tokens, use_cache=False).last_hidden_state[0, _FIRST_TOKENS:]
    rounded = model.model(tokens, use_cache=False).last_hidden_state[0, _FIRST_TOKENS:]
    head, total = model.get_output_embeddings(), 0.0
    rows = int(exact.shape[0])
    for start in range(0, rows, _PIECE):  # a large vocabulary's logits take much memory
        with float_activations(model):
            expected = functional.log_softmax(head(exact[start : start + _PIECE]).double(), -1)
        found = functional.log_softmax(head(rounded[start : start + _PIECE]).double(), -1)
        total += float(functional.kl_div(found, expected, reduction="sum", log_target=True))
    return total / rows


@torch.inference_mode()
def _gap_anywhere(model: PreTrainedModel) -> float:
    """What the check of the kernels will find: the root mean square that rounding changes in the logits behind two
    runs of arbitrary tokens, in standard deviations."""
    vocabulary = int(model.config.get_text_config().vocab_size)
    runs = [[(7 * i + 3) % vocabulary for i in range(40)], [(11 * i + 5) % vocabulary for i in range(9)]]

    def logits() -> torch.Tensor:
        last = [model.model(torch.tensor([ids]), use_cache=False).last_hidden_state[0, -1:] for ids in runs]
        found: torch.Tensor = model.get_output_embeddings()(torch.cat(last))
        return found

    with float_activations(model):
        expected = logits()
    return float(((logits() - expected) / expected.std()).square().mean().sqrt())


@contextmanager
def float_activations(model: nn.Module) -> Iterator[None]:
    """Within it all layers multiply by float32."""
    taking = [(matrix, matrix.struct.takes_bytes) for matrix in _matrices(model)]
    for matrix, _ in taking:
        matrix.struct.takes_bytes = 0
    try:
        yield
    finally:
        for matrix, count in taking:
            matrix.struct.takes_bytes = count


def has_integer_activations(model: nn.Module) -> bool:
    """Whether any layer multiplies by whole numbers."""
    return activation_bits(model) > 0


def activation_bits(model: nn.Module) -> int:
    """The bits of the whole numbers that layers multiply by, 8 or 16; 0 where all multiply by float32."""
    return 8 * max((matrix.struct.takes_bytes for matrix in _matrices(model)), default=0)


def _matrices(model: nn.Module) -> list[NativeMatrix]:
    matrices: list[NativeMatrix] = []
    for module in model.modules():
        if isinstance(module, NativeExperts):
            matrices += module.every_matrix()
        elif isinstance(module, NativeLinear) and module.matrix is not None:
            matrices.append(module.matrix)
    return matrices
