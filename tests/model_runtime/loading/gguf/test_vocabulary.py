"""The tokenizer is the one that the file describes, and what the file says ends an answer ends it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from gguf import TokenType
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from model_runtime.interface.config import ModelConfig
from model_runtime.interface.errors import ModelLoadError
from model_runtime.loading.gguf.conversion import convert_gguf
from model_runtime.loading.gguf.text_splits import split_rule
from model_runtime.loading.loading import load_model
from tests.model_runtime.loading.gguf.cases import CASES
from tests.model_runtime.tiny_gguf import Value

_CASE = CASES["llama"]
_EOT, _EOM, _USER, _THINK = 200, 201, 300, 301


def converted(directory: Path, keys: dict[str, Value]) -> PreTrainedTokenizerFast:
    """The tokenizer of a tiny file that states these keys, too."""
    model = _CASE.model()
    path = _CASE.write(directory / "model.gguf", model, keys={**_CASE.all_keys(model), **keys})
    convert_gguf(path, directory)
    return AutoTokenizer.from_pretrained(directory)


def byte_level_keys(added: dict[int, tuple[str, TokenType]]) -> dict[str, Value]:
    """The tiny vocabulary with other tokens at some places."""
    keys = _CASE.all_keys(_CASE.model())
    tokens, kinds = list(keys["tokenizer.ggml.tokens"]), list(keys["tokenizer.ggml.token_type"])
    for place, (token, kind) in added.items():
        tokens[place], kinds[place] = token, int(kind)
    merges = [merge for merge in keys["tokenizer.ggml.merges"] if merge.replace(" ", "") in tokens]
    merges = [merge for merge in merges if all(part in tokens for part in merge.split(" "))]
    return {
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.merges": merges,
    }


def test_every_end_that_the_file_names_ends_an_answer(tmp_path: Path, torch_threads: int) -> None:
    model = _CASE.model()
    ends = {"eot": _EOT, "eom": _EOM, "fim_pad": 202, "fim_rep": 203, "fim_sep": 204}
    keys = {f"tokenizer.ggml.{name}_token_id": place for name, place in ends.items()}
    listed: dict[str, Value] = {"tokenizer.ggml.eos_token_ids": [205, 206]}
    path = _CASE.write(tmp_path / "model.gguf", model, keys={**_CASE.all_keys(model), **keys, **listed})
    for quantization in ("none", "nf4"):
        loaded = load_model(ModelConfig(str(path), quantization, cache_dir=tmp_path / "cache", device="cpu"), print)
        assert loaded.stop_token_ids >= {2, *ends.values(), 205, 206}
        assert loaded.tokenizer.eos_token_id == 2


def test_the_recommended_sampling_is_the_default(tmp_path: Path, torch_threads: int) -> None:
    model = _CASE.model()
    keys: dict[str, Value] = {
        "general.sampling.temp": 0.5,
        "general.sampling.top_k": 7,
        "general.sampling.top_p": 0.75,
        "general.sampling.penalty_repeat": 1.25,
        "general.sampling.min_p": 0.25,
    }
    path = _CASE.write(tmp_path / "model.gguf", model, keys={**_CASE.all_keys(model), **keys})
    for quantization in ("none", "nf4"):
        loaded = load_model(ModelConfig(str(path), quantization, cache_dir=tmp_path / "cache", device="cpu"), print)
        found = loaded.default_sampling
        assert (found.temperature, found.top_k, found.top_p, found.repetition_penalty) == (0.5, 7, 0.75, 1.25)
        assert "The file also recommends min_p for sampling, which is not supported." in loaded.notes


def test_control_tokens_of_any_letters_are_one_token(tmp_path: Path) -> None:
    """DeepSeek's have a letter outside the byte-level alphabet; transformers' reader cuts them into pieces."""
    added = {_USER: ("<｜User｜>", TokenType.CONTROL), _THINK: ("<思考>", TokenType.USER_DEFINED)}
    tokenizer = converted(tmp_path, byte_level_keys(added))
    assert tokenizer.encode("<｜User｜>", add_special_tokens=False) == [_USER]
    assert tokenizer.encode("<思考>", add_special_tokens=False) == [_THINK]
    assert tokenizer.decode([_USER]) == "<｜User｜>"
    assert tokenizer.decode([_USER, _THINK], skip_special_tokens=True) == "<思考>"
    assert len(tokenizer) == 512


def test_spaces_that_are_a_token_do_not_take_the_place_of_those_that_merge(tmp_path: Path) -> None:
    keys = byte_level_keys({_USER: ("  ", TokenType.USER_DEFINED), _THINK: ("ĠĠ", TokenType.NORMAL)})
    tokenizer = converted(tmp_path, {**keys, "tokenizer.ggml.merges": ["Ġ Ġ", *keys["tokenizer.ggml.merges"]]})
    assert tokenizer.encode("  ", add_special_tokens=False) == [_USER]
    assert tokenizer.convert_ids_to_tokens([_USER, _THINK]) == ["  ", "ĠĠ"]


@pytest.mark.parametrize(
    ("split", "text", "pieces"),
    [
        ("gpt-2", "it  123", ["it", "Ġ", "Ġ123"]),
        ("smollm", "it  123", ["it", "ĠĠ", "1", "2", "3"]),
        ("starcoder", "x12", ["x", "1", "2"]),
        ("llama-bpe", "it 12345", ["it", "Ġ", "123", "45"]),
        ("qwen2", "it 123", ["it", "Ġ", "1", "2", "3"]),
        ("stablelm2", "it 123", ["it", "Ġ", "1", "2", "3"]),
        ("falcon", "it 12345", ["it", "Ġ", "123", "45"]),
        ("deepseek-coder", "it 12", ["it", "Ġ", "1", "2"]),
        ("bloom", "it is.12", ["it", "Ġis", ".", "12"]),
        ("viking", "it is.12", ["it", "Ġis", ".", "1", "2"]),
        ("deepseek-v3", "it 12345 (so!)\n.a", ["it", "Ġ", "123", "45", "Ġ(", "so", "!)Ċ", ".a"]),
        ("seed-coder", "it's 12 !\n\n", ["it", "'s", "Ġ", "1", "2", "Ġ!", "ĊĊ"]),
        ("minicpm5", "It'S 12345 !\n\n", ["It", "'S", "Ġ", "123", "45", "Ġ!ĊĊ"]),
    ],
)
def test_text_is_split_as_the_file_says(split: str, text: str, pieces: list[str], tmp_path: Path) -> None:
    tokenizer = converted(tmp_path, {"tokenizer.ggml.pre": split})
    found = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)
    assert [piece for piece, _ in found] == pieces


@pytest.mark.parametrize(
    ("split", "text", "pieces"),
    [
        ("deepseek-llm", "It's 12 (so)  x", ["It", "'", "s", "Ġ", "1", "2", "Ġ(", "so", ")", "Ġ", "Ġx"]),
        ("deepseek-llm", "a\r\nb  ", ["a", "č", "Ċ", "b", "ĠĠ"]),
        ("deepseek-llm", "ßა", ["ÃŁ", "áĥĲ"]),  # it knows no case of Georgian letters
        ("glm4", "it 12345", ["it", "Ġ", "123", "45"]),
        ("chatglm-bpe", "It'S", ["It", "'S"]),
        ("hunyuan-dense", "it 12345 (so!)\n.a", ["it", "Ġ", "123", "45", "Ġ(", "so", "!)Ċ", ".a"]),
        ("bailingmoe", "It'S 12 !\n\n \n\n", ["It", "'S", "Ġ", "1", "2", "Ġ!ĊĊ", "ĠĊĊ"]),
        ("ufakzeka", "it's 12", ["it", "'s", "Ġ", "1", "2"]),
        ("ufakzeka", "Ali'nin", ["Ali", "'nin"]),
        ("laguna", "a !\n\n b12\n", ["a", "Ġ!", "ĊĊ", "Ġb", "1", "2", "Ċ"]),
        ("jais-2", "a       b 1234", ["a", "ĠĠĠĠ", "ĠĠ", "Ġb", "Ġ", "123", "4"]),
        ("exaone-moe", "it is so 12/\n\n", ["itĠisĠso", "Ġ", "1", "2", "/Ċ", "Ċ"]),
        ("superbpe", "is it 1234567 so", ["isĠitĠ", "1", "234", "567", "Ġso"]),
        ("mellum2", "it 12", ["it", "Ġ", "1", "2"]),
        ("grok-2", "it 12", ["it", "Ġ", "1", "2"]),
    ],
)
def test_rarer_splits(split: str, text: str, pieces: list[str]) -> None:
    """By hand from the patterns of the models' own tokenizers; llama.cpp gives the same ids."""
    rule = split_rule(split)
    assert rule is not None
    assert [piece for piece, _ in rule.pre_tokenize_str(text)] == pieces


def test_a_word_that_is_a_token_is_not_merged_from_others_where_the_file_says_so(tmp_path: Path) -> None:
    keys = byte_level_keys({_USER: ("qzxj", TokenType.NORMAL)})  # no merge makes it
    for split, whole in (("llama-bpe", True), ("minicpm5", True), ("qwen2", False)):
        directory = tmp_path / split
        directory.mkdir()
        found = converted(directory, {**keys, "tokenizer.ggml.pre": split})
        assert (found.encode("qzxj", add_special_tokens=False) == [_USER]) == whole


def sentencepiece_keys(prefix: bool | None) -> dict[str, Value]:
    """A vocabulary like Llama 2's."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *map(chr, range(97, 123))]
    tokens += ["▁a", "▁ab", "bc"]
    count = len(tokens)
    tokens += [f"<unused{place}>" for place in range(512 - count)]
    kinds = [2, 3, 3, *[6] * 256, *[1] * (count - 259), *[5] * (512 - count)]
    keys: dict[str, Value] = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [-float(place) for place in range(512)],
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.merges": "none",
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }
    return keys if prefix is None else {**keys, "tokenizer.ggml.add_space_prefix": prefix}


@pytest.mark.parametrize("prefix", [None, True, False])
def test_the_space_before_a_text_is_the_file_s(prefix: bool | None, tmp_path: Path) -> None:
    model = _CASE.model()
    stated = {**_CASE.all_keys(model), **sentencepiece_keys(prefix)}
    keys = {key: value for key, value in stated.items() if value != "none"}
    convert_gguf(_CASE.write(tmp_path / "model.gguf", model, keys=keys), tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    tokens = tokenizer.convert_ids_to_tokens(tokenizer.encode("ab bc", add_special_tokens=False))
    assert tokens == (["a", "b", "▁", "bc"] if prefix is False else ["▁ab", "▁", "bc"])
    assert tokenizer.decode(tokenizer.encode("ab bc", add_special_tokens=False)) == "ab bc"


@pytest.mark.parametrize("prefix", [None, True, False])
def test_the_space_stands_before_each_stretch_between_control_tokens(prefix: bool | None, tmp_path: Path) -> None:
    """As in llama.cpp, and in the tokenizers that Llama 2 and Mistral were trained with."""
    model = _CASE.model()
    stated = {**_CASE.all_keys(model), **sentencepiece_keys(prefix)}
    keys = {key: value for key, value in stated.items() if value != "none"}
    convert_gguf(_CASE.write(tmp_path / "model.gguf", model, keys=keys), tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)

    def tokens(text: str) -> list[str]:
        found: list[str] = tokenizer.convert_ids_to_tokens(tokenizer.encode(text, add_special_tokens=False))
        return found

    if prefix is False:
        assert tokens("<s>ab</s> ab</s>") == ["<s>", "a", "b", "</s>", "▁ab", "</s>"]
        return
    assert tokens("<s>ab</s> ab</s>") == ["<s>", "▁ab", "</s>", "▁", "▁ab", "</s>"]
    assert tokens("a<s></s>b c") == ["▁a", "<s>", "</s>", "▁", "b", "▁", "c"]


@pytest.mark.parametrize("kind", [TokenType.NORMAL, TokenType.UNUSED, None])
def test_control_tokens_that_are_not_marked_as_such_are_one_token(kind: TokenType | None, tmp_path: Path) -> None:
    keys = byte_level_keys({_USER: ("<|turn|>", kind or TokenType.NORMAL)})
    keys["tokenizer.chat_template"] = "{{ '<|turn|>' + messages[0].content }}"
    if kind is None:
        keys["tokenizer.ggml.token_type"] = "none"
    model = _CASE.model()
    stated = {key: value for key, value in (_CASE.all_keys(model) | keys).items() if value != "none"}
    convert_gguf(_CASE.write(tmp_path / "model.gguf", model, keys=stated), tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.encode("<|turn|>", add_special_tokens=False) == [_USER]
    assert _USER in tokenizer.all_special_ids
    assert "does not mark <|turn|>" in (tmp_path / "source.json").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"tokenizer.ggml.token_type": [1] * 10}, "token_type has not one entry for each token"),
        ({"tokenizer.ggml.token_type": [9] * 512}, "token_type has 9"),
        ({"tokenizer.ggml.token_type": 1}, "token_type has not one entry"),
        ({"tokenizer.ggml.scores": [0.0] * 3}, "scores has not one entry"),
        ({"tokenizer.ggml.merges": "none"}, "has no tokenizer.ggml.merges"),
        ({"tokenizer.ggml.model": "llama", "tokenizer.ggml.merges": "none"}, "has no tokenizer.ggml.scores"),
        ({"tokenizer.chat_template": 5}, "chat_template is not text"),
        ({"tokenizer.ggml.add_bos_token": "yes"}, "add_bos_token is yes, not true or false"),
        ({"tokenizer.ggml.add_space_prefix": 7}, "add_space_prefix is 7, not true or false"),
    ],
)
def test_a_vocabulary_that_is_not_whole_is_refused_by_name(
    keys: dict[str, Value], sentence: str, tmp_path: Path
) -> None:
    model = _CASE.model()
    stated = {key: value for key, value in (_CASE.all_keys(model) | keys).items() if value != "none"}
    with pytest.raises(ModelLoadError, match=sentence):
        convert_gguf(_CASE.write(tmp_path / "model.gguf", model, keys=stated), tmp_path)


def test_named_templates_are_mentioned(tmp_path: Path) -> None:
    converted(tmp_path, {"tokenizer.chat_template.rag": "{{ messages }}", "tokenizer.chat_template.tool_use": "x"})
    assert "chat templates named rag, tool_use are not used" in (tmp_path / "source.json").read_text(encoding="utf-8")


def test_a_token_that_is_not_one_of_its_own_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="eos_token_id says that there is no such token"):
        converted(tmp_path, {"tokenizer.ggml.eos_token_id": 0xFFFFFFFF})


def test_a_file_that_does_not_say_how_it_splits_says_so(tmp_path: Path) -> None:
    converted(tmp_path, {"tokenizer.ggml.pre": "default"})
    notes = json.loads((tmp_path / "source.json").read_text())["notes"]
    assert notes == ["The file does not say how its tokenizer splits text; GPT-2's rule is used."]
