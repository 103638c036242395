"""No key is dropped in silence: each is used, known to be irrelevant, or refused with its name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from gguf import GGMLQuantizationType
from gguf.constants import Keys

from model_runtime.interface.errors import ModelLoadError
from model_runtime.loading.checks.gguf_header import GgufHeader, Items, TensorInfo, Value
from model_runtime.loading.gguf.families import FAMILIES, settings_of
from model_runtime.loading.gguf.general_keys import check_general_keys, recommended_sampling
from model_runtime.loading.gguf.metadata import Metadata
from model_runtime.loading.gguf.vocabulary import check_vocabulary_keys, token_ids
from tests.model_runtime.loading.gguf.cases import CASES, SAID_ANYWAY, Case

_ODD: tuple[Value, ...] = (7, 0.37, True, "strange", Items(3, (1, 2, 3)))
# What may change nothing, and why.
_IRRELEVANT_TO_ALL = {
    *("tensor_data_layout", "pooling_type"),  # of other programs, of other tasks
    *("rope.scaling.finetuned", "rope.scaling.original_context_length"),  # a remark; only of YaRN and long RoPE
    *("rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow"),  # only of YaRN
    "vocab_size",  # compared with the embeddings by the conversion
}
_BUILDS_THE_TOKENIZER = {
    *("add_bos_token", "add_eos_token", "add_space_prefix", "tokens", "token_type", "scores", "merges"),
}
_OTHER_TASKS = {
    *("seperator_token_id", "mask_token_id", "prefix_token_id", "suffix_token_id", "middle_token_id"),
    *("fim_pre_token_id", "fim_suf_token_id", "fim_mid_token_id"),
}
_IRRELEVANT_OTHERS = {
    *(f"tokenizer.ggml.{key}" for key in (*_BUILDS_THE_TOKENIZER, *_OTHER_TASKS)),
    *("tokenizer.chat_template", "tokenizer.chat_templates", "tokenizer.chat_template.tool_use"),
    *("tokenizer.huggingface.json", "split.no", "split.count", "split.tensors.count"),
    *("imatrix.chunk_count", "imatrix.chunk_size", "imatrix.datasets"),
}
_OTHER_NORM = "attention.layer_norm_epsilon"  # of models whose norms are all root mean squares
_WITH_LAYER_NORMS = ("starcoder2", "stablelm", "nemotron", "falcon", "bloom", "gpt2")
_WITHOUT_ROPE = ("gpt2", "bloom")


def constants(owner: type) -> Iterator[str]:
    """All keys of gguf's table, with placeholders."""
    for name, value in vars(owner).items():
        if isinstance(value, str) and not name.startswith("_"):
            yield value
        elif isinstance(value, type):
            yield from constants(value)


ALL_KEYS = sorted(set(constants(Keys)))
OWN_KEYS = [key.removeprefix("{arch}.").format(dense="dense_2") for key in ALL_KEYS if key.startswith("{arch}.")]
OTHER_KEYS = [key.format(id=0, name="tool_use") for key in ALL_KEYS if not key.startswith("{arch}.")]


def header_of(case: Case) -> GgufHeader:
    """The header that a file of the case has, without a file."""
    model = case.model()
    metadata: dict[str, Value] = {"general.architecture": case.architecture}
    for key, value in case.all_keys(model).items():
        metadata[key] = (
            Items(len(value), tuple(v for v in value if not isinstance(v, str))) if isinstance(value, list) else value
        )
    tensors = {
        name: TensorInfo(name, weights.shape, GGMLQuantizationType.F32, 0)
        for name, weights in case.all_tensors(model).items()
        if not name.startswith("rope_")
    }
    return GgufHeader(metadata, tensors, 0)


@pytest.fixture(scope="module")
def headers() -> dict[str, GgufHeader]:
    """One of each architecture."""
    return {case.architecture: header_of(case) for case in reversed(CASES.values())}


def meaning(header: GgufHeader) -> object:
    """Everything that the keys decide before a tensor is read."""
    check_general_keys("file", header)
    check_vocabulary_keys("file", header)
    metadata = Metadata(Path("file"), header)
    metadata.ignore("vocab_size")
    return settings_of(metadata), token_ids(header), recommended_sampling(header)


def outcomes(header: GgufHeader, key: str) -> set[str]:
    """What happens with odd values of the key."""
    usual, found = meaning(header), set()
    for value in _ODD:
        if header.metadata.get(key) == value:
            continue
        changed = GgufHeader({**header.metadata, key: value}, header.tensors, 0)
        try:
            found.add("used" if meaning(changed) != usual else "ignored")
        except ModelLoadError as error:
            # a size that contradicts another one of the file may be reported as the other
            is_named = key in str(error) or (key in header.metadata and f"{header.architecture}." in str(error))
            found.add("refused" if is_named else f"refused without its name: {error}")
    return found


@pytest.mark.parametrize("architecture", FAMILIES)
def test_no_key_of_an_architecture_is_dropped(architecture: str, headers: dict[str, GgufHeader]) -> None:
    found = {key: outcomes(headers[architecture], f"{architecture}.{key}") for key in OWN_KEYS}
    assert set().union(*found.values()) == {"used", "ignored", "refused"}
    dropped = {key for key, what in found.items() if what == {"ignored"}}
    assert dropped <= _IRRELEVANT_TO_ALL | ({_OTHER_NORM} if architecture not in _WITH_LAYER_NORMS else set())
    if architecture in _WITHOUT_ROPE:
        assert not any(key.startswith("rope.") for key in dropped)


@pytest.mark.parametrize("key", OTHER_KEYS)
def test_no_other_key_is_dropped(key: str, headers: dict[str, GgufHeader]) -> None:
    is_description = key.startswith("general.") and not key.startswith("general.sampling.")
    if outcomes(headers["llama"], key) == {"ignored"}:
        assert is_description or key in _IRRELEVANT_OTHERS


@pytest.mark.parametrize("architecture", FAMILIES)
@pytest.mark.parametrize(
    ("key", "value"), [("leading_dense_block_count", 0), ("nextn_predict_layers", 0), ("residual_scale", 1.0)]
)
def test_a_key_that_says_nothing_changes_nothing(
    architecture: str, key: str, value: Value, headers: dict[str, GgufHeader]
) -> None:
    header = headers[architecture]
    changed = GgufHeader({**header.metadata, f"{architecture}.{key}": value}, header.tensors, 0)
    assert meaning(changed) == meaning(header)


@pytest.mark.parametrize("key", ["llama.new_thing", "general.new_thing", "tokenizer.ggml.new_thing", "new.thing"])
def test_an_unknown_key_is_refused_by_name(key: str, headers: dict[str, GgufHeader]) -> None:
    assert outcomes(headers["llama"], key) == {"refused"}


@pytest.mark.parametrize("name", [name for name in CASES if name != "phi3 long"])
def test_every_key_of_a_case_is_used(name: str) -> None:
    case = CASES[name]
    header = header_of(case)
    for key in case.keys.keys() - {*SAID_ANYWAY}:
        rest = {full: value for full, value in header.metadata.items() if full != f"{case.architecture}.{key}"}
        try:
            changed = meaning(GgufHeader(rest, header.tensors, 0)) != meaning(header)
        except ModelLoadError:
            continue
        assert changed, key
