"""Which of transformers' modules are replaced, and by what: one table for all families."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.models.bloom.modeling_bloom import BloomAttention
from transformers.models.codegen.modeling_codegen import CodeGenAttention
from transformers.models.falcon.modeling_falcon import FalconAttention
from transformers.models.gpt_neo.modeling_gpt_neo import GPTNeoSelfAttention
from transformers.models.gpt_neox_japanese.modeling_gpt_neox_japanese import GPTNeoXJapaneseAttention
from transformers.models.gptj.modeling_gptj import GPTJAttention
from transformers.models.mpt.modeling_mpt import MptAttention, MptModel
from transformers.models.openai.modeling_openai import Attention as GPTAttention
from transformers.models.xglm.modeling_xglm import XGLMAttention

from model_runtime.forward.classic.bloom import OwnBloomAttention
from model_runtime.forward.classic.falcon import OwnFalconAttention
from model_runtime.forward.classic.gpt_neo import OwnGPTNeoAttention
from model_runtime.forward.classic.gpt_neox_japanese import OwnGPTNeoXJapaneseAttention
from model_runtime.forward.classic.gptj import OwnCodeGenAttention, OwnGPTJAttention
from model_runtime.forward.classic.mpt import OwnMptAttention, OwnMptModel
from model_runtime.forward.classic.openai_gpt import OwnGPTAttention
from model_runtime.forward.classic.own_attention import OWN_PREFIX, OwnAttention
from model_runtime.forward.classic.xglm import OwnXGLMAttention

REPLACEMENTS: Mapping[type[nn.Module], type[nn.Module]] = {
    BloomAttention: OwnBloomAttention,
    CodeGenAttention: OwnCodeGenAttention,
    FalconAttention: OwnFalconAttention,
    GPTAttention: OwnGPTAttention,
    GPTJAttention: OwnGPTJAttention,
    GPTNeoSelfAttention: OwnGPTNeoAttention,
    GPTNeoXJapaneseAttention: OwnGPTNeoXJapaneseAttention,
    MptAttention: OwnMptAttention,
    MptModel: OwnMptModel,
    XGLMAttention: OwnXGLMAttention,
}


def replace_attention(model: PreTrainedModel) -> None:
    """Makes every module in the table one of ours, with the same weights and, until the model is set to Keepwarm's
    attention, with the same results. Does nothing to other models, or the second time."""
    layers = 0
    for module in model.modules():
        replacement = REPLACEMENTS.get(type(module))
        if replacement is None:
            continue
        module.__class__ = replacement
        if isinstance(module, OwnAttention):
            module.model_config = model.config
            if getattr(module, "layer_idx", None) is None:  # GPT-Neo and the first GPT have none
                module.layer_idx = layers
            layers += 1
    if layers:
        model.set_attn_implementation = partial(_set_attention, model.config, str(model.config._attn_implementation))


def _set_attention(config: Any, stock: str, attn_implementation: str) -> None:
    """What `set_attn_implementation` does for a replaced model. Transformers' own only logs that such a model has no
    choice. A name that is not Keepwarm's brings back `stock`, the one attention that the original modules compute."""
    config._attn_implementation = attn_implementation if attn_implementation.startswith(OWN_PREFIX) else stock
