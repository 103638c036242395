"""The parts of a model that no text reaches: its eyes and ears."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from model_runtime.forward.attention import ATTENTION_NAME, carrying
from model_runtime.forward.probing.record import RecordingBatch


@torch.inference_mode()
def unread_parts(model: PreTrainedModel) -> list[str]:
    """The names of the parts of a model on the meta device that a text does not reach, such as its eyes. None if that
    needs numbers. The model is left with the packed attention set."""
    called: set[torch.nn.Module] = set()
    for module in model.modules():
        module.register_forward_pre_hook(lambda module, _: called.add(module))
    try:
        model.eval().set_attn_implementation(ATTENTION_NAME)
        with carrying(RecordingBatch()):
            model(input_ids=torch.tensor([[1, 2]], device="meta"), use_cache=False)
    except (ValueError, RuntimeError, TypeError, KeyError, AttributeError, IndexError):
        return []
    unread: list[str] = []
    for name, module in model.named_modules():
        is_within = any(name.startswith(f"{other}.") for other in unread)
        is_layer = any(part.isdigit() for part in name.split("."))
        if (
            not (is_within or is_layer or called.intersection(module.modules()))
            and next(module.parameters(), None) is not None
        ):
            unread.append(name)
    return unread
