"""Fills a model on a CPU with a checkpoint's 16- and 32-bit numbers, one tensor at a time, quantised to NF4 on the way.

transformers maps all files while it loads, and has every number that is not quantised as float32: a bfloat16 checkpoint
took 4.4 times its NF4 weights at the peak. Here a tensor's pages are given back while it is read.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.base import get_keys_to_not_convert
from transformers.quantizers.quantizers_utils import should_convert_module

from model_runtime.architecture.decoder_layout import has_common_layout
from model_runtime.architecture.shape_check import check_decoder_shapes
from model_runtime.native import heap
from model_runtime.weights.coded.nf4 import RUN, quantise_nf4
from model_runtime.weights.native_matrix import NativeLinear, NativeMatrix
from model_runtime.weights.own_four_bits import replace_ends
from model_runtime.weights.stored_weights import MappedTensors, numbers_in

Progress = Callable[[int], None]


class StreamedCheckpoint:
    """A checkpoint's files, and the weightless model that they are for. `kernels` quantise to NF4; None keeps all
    numbers, as float32."""

    def __init__(self, model: PreTrainedModel, files: Iterable[Path], kernels: ctypes.CDLL | None) -> None:
        self._model, self._kernels = model, kernels
        self._files = [MappedTensors(file) for file in files]
        self._of = {name: file for file in self._files for name in file.names}
        self._quantised = set(_quantised(model)) if kernels is not None else set[str]()
        self._read_bytes = 0

    @property
    def can_be_streamed(self) -> bool:
        """Whether the files have exactly the model's tensors, in its names and shapes and as plain numbers, and nothing
        that transformers would change on the way."""
        wanted = {name: tensor.shape for name, tensor in self._model.state_dict().items()}
        for tied in self._model.all_tied_weights_keys:
            wanted.pop(tied, None)
        if wanted.keys() != self._of.keys() or get_model_conversion_mapping(self._model, add_legacy=False):
            return False
        numbers = all(file.is_of_numbers(name) and file.shape(name) == wanted[name] for name, file in self._of.items())
        return numbers and all(_fits(self._model.get_submodule(name)) for name in self._quantised)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(file.nbytes for file in self._files)

    def fill(self, progress: Progress) -> PreTrainedModel:
        """The model with its weights. `progress` is called with the bytes that were read so far."""
        model, left = self._model, set(self._of)
        for name in sorted(self._quantised):
            left -= {f"{name}.weight", f"{name}.bias"}
            model.set_submodule(name, self._four_bits(name, progress))
            heap.give_back()  # what the next one needs would not fit into the holes between tiles
        tables = self._tables() if self._kernels is not None else set[str]()
        for name in left:
            # Tables stay where they are until the kernels have them in their own order.
            view = self._read(name, progress)
            self._set(name, view if name in tables else numbers_in(view, torch.float32, self._let_go))
        if tables and self._kernels is not None:
            model.tie_weights()
            replace_ends(model, self._kernels, self._let_go)
            for name in tables & {name for name, _ in model.named_parameters()}:
                self._set(name, numbers_in(model.get_parameter(name).detach(), torch.float32, self._let_go))
        if isinstance(model.get_input_embeddings().weight, nn.Parameter):
            model.tie_weights()
        self._let_go()
        if self._kernels is not None and has_common_layout(model):
            check_decoder_shapes(model)
        return model

    def _four_bits(self, name: str, progress: Progress) -> NativeLinear:
        assert self._kernels is not None
        coded = quantise_nf4(self._read(f"{name}.weight", progress), self._let_go)
        bias = numbers_in(self._read(f"{name}.bias", progress), torch.float32) if f"{name}.bias" in self._of else None
        return NativeLinear(NativeMatrix(coded, bias, self._kernels))

    def _tables(self) -> set[str]:
        ends = {id(self._model.get_input_embeddings()), id(self._model.get_output_embeddings())}
        named = (f"{name}.weight" for name, module in self._model.named_modules() if id(module) in ends)
        return {name for name in named if name in self._of}

    def _read(self, name: str, progress: Progress) -> torch.Tensor:
        tensor = self._of[name].tensor(name)
        self._read_bytes += tensor.nbytes
        progress(self._read_bytes)
        return tensor

    def _set(self, name: str, numbers: torch.Tensor) -> None:
        module, _, attribute = name.rpartition(".")
        owner = self._model.get_submodule(module)
        if attribute in owner._buffers:
            owner._buffers[attribute] = numbers
        else:
            setattr(owner, attribute, nn.Parameter(numbers, requires_grad=False))

    def _let_go(self) -> None:
        for file in self._files:
            file.let_go()


def _quantised(model: PreTrainedModel) -> Iterable[str]:
    """The layers that transformers has bitsandbytes quantise."""
    kept = [*get_keys_to_not_convert(model), *(model._keep_in_fp32_modules or ())]
    for name, module in model.named_modules():
        if (type(module) is nn.Linear or isinstance(module, Conv1D)) and should_convert_module(name, kept):
            yield name


def _fits(module: Any) -> bool:
    """Whether bitsandbytes' blocks end with the layer's rows."""
    return type(module) is nn.Linear and module.in_features % RUN == 0
