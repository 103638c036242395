"""Fills a model on a CPU with a checkpoint's 16- and 32-bit numbers, one tensor at a time, quantised to NF4 on the way,
experts included.

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
from model_runtime.weights.coded.four_bits import CodedFourBits
from model_runtime.weights.coded.nf4 import RUN, quantise_nf4
from model_runtime.weights.kept.nf4_file import Nf4File, Numbers
from model_runtime.weights.native_experts import PROJECTIONS, NativeExperts, can_be_native
from model_runtime.weights.native_matrix import COLUMNS, NativeEmbedding, NativeLinear, NativeMatrix
from model_runtime.weights.stored_weights import MappedTensors, numbers_in

Progress = Callable[[int], None]
_OF_LLAMA = (".mlp.", "gate_proj", "up_proj", "down_proj")
# Families whose files have a matrix for each expert, which transformers joins: how the files call what the model calls
# `.mlp.`, and the matrices for gate, up and down.
_MIXTURES = {
    "mixtral": (".block_sparse_moe.", "w1", "w3", "w2"),
    "olmoe": _OF_LLAMA,
    "qwen2_moe": _OF_LLAMA,
    "qwen3_moe": _OF_LLAMA,
}


class StreamedCheckpoint:
    """A checkpoint's files, and the weightless model that they are for. `kernels` quantise to NF4; None keeps all
    numbers, as float32."""

    def __init__(self, model: PreTrainedModel, files: Iterable[Path], kernels: ctypes.CDLL | None) -> None:
        self._model, self._kernels = model, kernels
        self._files = [MappedTensors(file) for file in files]
        self._mixture = _MIXTURES.get(model.config.model_type)
        block = ".mlp." if self._mixture is None else self._mixture[0]
        # By the model's names, which differ in this alone: the file, and the name there.
        self._of = {name.replace(block, ".mlp."): (file, name) for file in self._files for name in file.names}
        self._experts = self._layers_of_experts()
        self._quantised = set(_quantised(model)) if kernels is not None else set[str]()
        self._read_bytes = 0
        self._kept: Nf4File | None = None

    def _layers_of_experts(self) -> list[str]:
        """The modules whose experts are joined here."""
        if self._mixture is None:
            return []
        return [name for name, module in self._model.named_modules() if can_be_native(module)]

    @property
    def can_be_streamed(self) -> bool:
        """Whether the files have exactly the model's tensors, in its names and shapes and as plain numbers, and nothing
        that transformers would change on the way, but for joining experts."""
        wanted = {name: tensor.shape for name, tensor in self._model.state_dict().items()}
        for tied in self._model.all_tied_weights_keys:
            wanted.pop(tied, None)
        for name in self._experts:
            count, rows, hidden = wanted.pop(f"{name}.gate_up_proj")
            inner = wanted.pop(f"{name}.down_proj")[-1]
            shapes = (torch.Size([rows // 2, hidden]),) * 2 + (torch.Size([hidden, inner]),)
            if self._kernels is not None and (hidden % RUN or inner % RUN):
                return False
            for expert in range(count):
                wanted |= dict(zip(self._parts(name, expert), shapes, strict=True))
        is_changed = self._mixture is None and get_model_conversion_mapping(self._model, add_legacy=False)
        if wanted.keys() != self._of.keys() or is_changed:
            return False
        numbers = all(f.is_of_numbers(own) and f.shape(own) == wanted[name] for name, (f, own) in self._of.items())
        return numbers and all(_fits(self._model.get_submodule(name)) for name in self._quantised)

    def _parts(self, name: str, expert: int) -> list[str]:
        """The names of an expert's gate, up and down."""
        assert self._mixture is not None
        return [f"{name}.{expert}.{part}.weight" for part in self._mixture[1:]]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(file.nbytes for file in self._files)

    def matrices(self) -> dict[str, Numbers]:
        """What `fill` quantises, by the model's names, with gate and up of an expert joined."""
        if self._kernels is None:
            return {}

        def numbers(*names: str) -> Numbers:
            shapes = [self._of[name][0].shape(self._of[name][1]) for name in names]
            shape = (sum(one[0] for one in shapes), shapes[0][1])
            return Numbers(shape, lambda: _joined([self._tensor(name) for name in names]))

        found = {name: numbers(f"{name}.weight") for name in sorted(self._quantised)}
        for name in self._experts:
            for expert in range(self._model.get_submodule(name).num_experts):
                gate, up, down = self._parts(name, expert)
                for projection, parts in zip(PROJECTIONS, ((gate, up), (down,)), strict=True):
                    found[_of_expert(name, expert, projection)] = numbers(*parts)
        return found

    def use_kept(self, kept: Nf4File | None) -> None:
        """Takes the `matrices` from there instead of quantising them; None: quantises them."""
        self._kept = kept

    def let_go(self) -> None:
        """Takes what was read of the files out of this process's memory."""
        for file in (*self._files, *((self._kept,) if self._kept is not None else ())):
            file.let_go()

    def fill(self, progress: Progress) -> PreTrainedModel:
        """The model with its weights. `progress` is called with the bytes that were read so far."""
        model, left = self._model, set(self._of)
        for name in sorted(self._quantised):
            left -= {f"{name}.weight", f"{name}.bias"}
            model.set_submodule(name, self._four_bits(name, progress))
            self.let_go()  # of what was kept
            heap.give_back()  # what the next one needs would not fit into the holes between tiles
        for name in self._experts:
            experts = model.get_submodule(name)
            left -= {part for expert in range(experts.num_experts) for part in self._parts(name, expert)}
            self._join(name, experts, progress)
            heap.give_back()
        tables = self._tables() if self._kernels is not None else set[str]()
        for name in left:
            # Tables stay where they are until the kernels have them in their own order.
            view = self._read(name, progress)
            self._set(name, view if name in tables else numbers_in(view, torch.float32, self.let_go))
        if tables and self._kernels is not None:
            model.tie_weights()
            self._place_ends(self._kernels)
            for name in tables & {name for name, _ in model.named_parameters()}:
                self._set(name, numbers_in(model.get_parameter(name).detach(), torch.float32, self.let_go))
        ends = (model.get_input_embeddings(), model.get_output_embeddings())
        if not any(isinstance(end, (NativeLinear, NativeEmbedding)) for end in ends):
            model.tie_weights()
        self.let_go()
        if self._kernels is not None and has_common_layout(model):
            check_decoder_shapes(model)
        return model

    def _four_bits(self, name: str, progress: Progress) -> NativeLinear:
        assert self._kernels is not None
        coded = self._coded(name, [f"{name}.weight"], progress)
        bias = numbers_in(self._read(f"{name}.bias", progress), torch.float32) if f"{name}.bias" in self._of else None
        return NativeLinear(NativeMatrix(coded, bias, self._kernels))

    def _coded(self, name: str, parts: list[str], progress: Progress) -> CodedFourBits:
        """One of `matrices`, made of these tensors."""
        tensors = [self._read(part, progress) for part in parts]  # views: nothing is read yet
        return quantise_nf4(_joined(tensors), self.let_go) if self._kept is None else self._kept.coded(name)

    def _join(self, name: str, experts: Any, progress: Progress) -> None:
        """Reads the experts of a layer, one after the other."""
        matrices: dict[str, list[NativeMatrix]] = {projection: [] for projection in PROJECTIONS}
        if self._kernels is None:
            for projection in PROJECTIONS:
                empty = torch.empty(getattr(experts, projection).shape, dtype=torch.float32)
                setattr(experts, projection, nn.Parameter(empty, requires_grad=False))
        for expert in range(experts.num_experts):
            gate, up, down = self._parts(name, expert)
            for projection, parts in zip(PROJECTIONS, ([gate, up], [down]), strict=True):
                if self._kernels is None:
                    numbers = _joined([self._read(part, progress) for part in parts])
                    getattr(experts, projection).data[expert] = numbers
                else:
                    coded = self._coded(_of_expert(name, expert, projection), parts, progress)
                    matrices[projection].append(NativeMatrix(coded, None, self._kernels))
            self.let_go()
        if self._kernels is not None:
            self._model.set_submodule(name, NativeExperts(experts, matrices))

    def _place_ends(self, kernels: ctypes.CDLL) -> None:
        """Puts head and embeddings on native matrices where these can stand for them, at their own 16 or 32 bits."""
        embedding, head = self._model.get_input_embeddings(), self._model.get_output_embeddings()
        if type(head) is not nn.Linear or head.in_features % COLUMNS:
            return
        is_tied = head.weight is getattr(embedding, "weight", None) and head.bias is None
        matrix = NativeMatrix(
            head.weight.detach(), None if head.bias is None else head.bias.detach(), kernels, self.let_go
        )
        self._model.set_output_embeddings(NativeLinear(matrix))
        factor = getattr(embedding, "embed_scale", None)
        if type(embedding) is nn.Embedding or isinstance(factor, torch.Tensor):
            table = matrix if is_tied else NativeMatrix(embedding.weight.detach(), None, kernels, self.let_go)
            self._model.set_input_embeddings(
                NativeEmbedding(table, is_shared=is_tied, factor=1.0 if factor is None else float(factor))
            )

    def _tables(self) -> set[str]:
        ends = {id(self._model.get_input_embeddings()), id(self._model.get_output_embeddings())}
        named = (f"{name}.weight" for name, module in self._model.named_modules() if id(module) in ends)
        return {name for name in named if name in self._of}

    def _tensor(self, name: str) -> torch.Tensor:
        file, own = self._of[name]
        return file.tensor(own)

    def _read(self, name: str, progress: Progress) -> torch.Tensor:
        tensor = self._tensor(name)
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


def _quantised(model: PreTrainedModel) -> Iterable[str]:
    """The layers that transformers has bitsandbytes quantise."""
    kept = [*get_keys_to_not_convert(model), *(model._keep_in_fp32_modules or ())]
    for name, module in model.named_modules():
        if (type(module) is nn.Linear or isinstance(module, Conv1D)) and should_convert_module(name, kept):
            yield name


def _joined(parts: list[torch.Tensor]) -> torch.Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _of_expert(name: str, expert: int, projection: str) -> str:
    return f"{name}.{expert}.{projection}"


def _fits(module: Any) -> bool:
    """Whether bitsandbytes' blocks end with the layer's rows."""
    return type(module) is nn.Linear and module.in_features % RUN == 0
