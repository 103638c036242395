"""The precision of activations in our own CPU kernels: float32, or signed bytes with a scale for 32 columns."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from model_runtime.interface.config import CpuActivations
from model_runtime.interface.errors import ModelLoadError
from model_runtime.weights.native_matrix import NativeLinear, NativeMatrix

INT8, FLOAT32 = "int8", "float32"


def use_activations(model: nn.Module, asked: CpuActivations) -> str:
    """Sets what the layers on native matrices multiply by. Returns "int8" or "float32", or "" for a model that has no
    such layer. "auto" is float32. Raises `ModelLoadError` for a model that cannot do what was asked for."""
    matrices = _matrices(model)
    if not matrices:
        if asked != "auto":
            raise ModelLoadError(
                "Only Keepwarm's own CPU kernels leave a choice of --cpu-activations, and this model does not run in "
                "them. Leave it out."
            )
        return ""
    if asked != INT8:
        return FLOAT32
    taken = [matrix.take_bytes() for matrix in matrices]
    if not any(taken):
        raise ModelLoadError(
            "No weights of this model, but perhaps its experts', are whole numbers with a scale: its activations stay "
            "float32. Leave --cpu-activations out."
        )
    return INT8


@contextmanager
def float_activations(model: nn.Module) -> Iterator[None]:
    """Within it all layers multiply by float32."""
    taking = [matrix for matrix in _matrices(model) if matrix.struct.takes_bytes]
    for matrix in taking:
        matrix.struct.takes_bytes = 0
    try:
        yield
    finally:
        for matrix in taking:
            matrix.struct.takes_bytes = 1


def has_integer_activations(model: nn.Module) -> bool:
    """Whether any layer multiplies by bytes."""
    return any(matrix.struct.takes_bytes for matrix in _matrices(model))


def _matrices(model: nn.Module) -> list[NativeMatrix]:
    return [
        module.matrix for module in model.modules() if isinstance(module, NativeLinear) and module.matrix is not None
    ]
