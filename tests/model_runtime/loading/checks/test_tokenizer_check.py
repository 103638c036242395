"""Damaged tokenizers, and tokens without an embedding, are refused at load with sentences that say what to do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from model_runtime.interface.errors import ModelLoadError
from model_runtime.loading.checks.tokenizer_check import check_producible
from model_runtime.loading.tokenizer import load_tokenizer
from tests.model_runtime.tiny_models import VOCABULARY_TOKENS, tiny_tokenizer

WHOLE, CONFIG = "tokenizer.json", "tokenizer_config.json"
Damage = Callable[[Path], None]


def raw(name: str, content: bytes) -> Damage:
    def damage(directory: Path) -> None:
        (directory / name).write_bytes(content)

    return damage


def as_folder(name: str) -> Damage:
    def damage(directory: Path) -> None:
        (directory / name).unlink()
        (directory / name).mkdir()

    return damage


def cut(name: str) -> Damage:
    def damage(directory: Path) -> None:
        content = (directory / name).read_bytes()
        (directory / name).write_bytes(content[: len(content) // 2])

    return damage


def edited(name: str, edit: Callable[[dict[str, Any]], object]) -> Damage:
    def damage(directory: Path) -> None:
        content = json.loads((directory / name).read_text(encoding="utf-8"))
        edit(content)
        (directory / name).write_text(json.dumps(content), encoding="utf-8")

    return damage


def two_files(vocabulary: bytes, merges: bytes) -> Damage:
    """The older form, without a tokenizer.json."""

    def damage(directory: Path) -> None:
        (directory / WHOLE).unlink()
        content = json.loads((directory / CONFIG).read_text(encoding="utf-8"))
        content["tokenizer_class"] = "GPT2Tokenizer"
        (directory / CONFIG).write_text(json.dumps(content), encoding="utf-8")
        (directory / "vocab.json").write_bytes(vocabulary)
        (directory / "merges.txt").write_bytes(merges)

    return damage


VOCABULARY = json.dumps({"a": 0, "b": 1, "ab": 2}).encode()
MERGES = b"#version: 0.2\na b\n"
DAMAGES: dict[str, tuple[Damage, str]] = {
    "empty": (raw(WHOLE, b""), f"{WHOLE} is damaged: it is empty"),
    "cut off": (cut(WHOLE), f"{WHOLE} is damaged: it is not JSON"),
    "zeros": (raw(WHOLE, bytes(1000)), f"{WHOLE} is damaged: it is not JSON"),
    "not utf-8": (raw(WHOLE, b'{"a": "\xff\xfe"}'), f"{WHOLE} is damaged: it is not text in UTF-8"),
    "a page of a proxy": (raw(WHOLE, b"<html>Log in</html>"), f"{WHOLE} is damaged: it is not JSON"),
    "a pointer of Git LFS": (raw(WHOLE, b"version https://git-lfs.github.com/spec/v1\n"), "it is not JSON"),
    "a list": (raw(WHOLE, b"[]"), f"{WHOLE} is damaged: it is a list instead of an object"),
    "an empty object": (raw(WHOLE, b"{}"), f"{WHOLE} is damaged: it has no list of added tokens"),
    "nested": (raw(WHOLE, b"[" * 200_000 + b"]" * 200_000), f"{WHOLE} is damaged: it is nested too deeply"),
    "no model": (edited(WHOLE, lambda d: d.pop("model")), f"{WHOLE} is damaged: no tokenizer"),
    "no vocabulary": (edited(WHOLE, lambda d: d["model"].pop("vocab")), f"{WHOLE} is damaged: no tokenizer"),
    "a vocabulary of lists": (edited(WHOLE, lambda d: d["model"].update(vocab=[1])), f"{WHOLE} is damaged: no tok"),
    "negative ids": (edited(WHOLE, lambda d: d["model"]["vocab"].update(a=-5)), f"{WHOLE} is damaged: no tokenizer"),
    "merges of what is not there": (
        edited(WHOLE, lambda d: d["model"].update(merges=["zzz yyy"])),
        f"{WHOLE} is damaged: no tokenizer",
    ),
    "an unknown model": (edited(WHOLE, lambda d: d["model"].update(type="Nonsense")), f"{WHOLE} is damaged: no tok"),
    "an unknown decoder": (edited(WHOLE, lambda d: d.update(decoder={"type": "X"})), f"{WHOLE} is damaged: no tok"),
    "no added tokens": (edited(WHOLE, lambda d: d.pop("added_tokens")), "it has no list of added tokens"),
    "added tokens as text": (
        edited(WHOLE, lambda d: d.update(added_tokens="x")),
        f"{WHOLE} is damaged: it has no list",
    ),
    "an added token without text": (
        edited(WHOLE, lambda d: d["added_tokens"][0].pop("content")),
        f"{WHOLE} is damaged: no tokenizer",
    ),
    "a folder": (as_folder(WHOLE), f"{WHOLE} is not a file"),
    "config: empty": (raw(CONFIG, b""), f"{CONFIG} is damaged: it is empty"),
    "config: cut off": (cut(CONFIG), f"{CONFIG} is damaged: it is not JSON"),
    "config: a list": (raw(CONFIG, b"[]"), f"{CONFIG} is damaged: it is a list instead"),
    "config: a class that is a number": (
        edited(CONFIG, lambda d: d.update(tokenizer_class=5)),
        f"{CONFIG} is damaged: its tokenizer_class is a number",
    ),
    "config: a template that is a number": (
        edited(CONFIG, lambda d: d.update(chat_template=5)),
        f"{CONFIG} is damaged: its chat_template is a number",
    ),
    "config: added tokens as a list": (
        edited(CONFIG, lambda d: d.update(added_tokens_decoder=[1])),
        f"{CONFIG} is damaged: its added_tokens_decoder is a list",
    ),
    "config: an added token without text": (
        edited(CONFIG, lambda d: d.update(added_tokens_decoder={"5": {}})),
        f"{CONFIG} is damaged: its added token '5' has no number or no text",
    ),
    "config: an added token without a number": (
        edited(CONFIG, lambda d: d.update(added_tokens_decoder={"x": {"content": "a"}})),
        f"{CONFIG} is damaged: its added token 'x' has no number or no text",
    ),
    "config: an end that is a list": (
        edited(CONFIG, lambda d: d.update(eos_token=["a"])),
        f"{CONFIG} is damaged: its eos_token is a list",
    ),
    "map: not an object": (raw("special_tokens_map.json", b"5"), "special_tokens_map.json is damaged: it is a number"),
    "added: cut off": (raw("added_tokens.json", b'{"a": '), "added_tokens.json is damaged: it is not JSON"),
    "vocab: empty": (two_files(b"", MERGES), "vocab.json is damaged: it is empty"),
    "vocab: a list": (two_files(b"[]", MERGES), "vocab.json is damaged: it is a list"),
    "merges: one word a line": (two_files(VOCABULARY, b"#version: 0.2\nab\n"), "merges.txt is damaged: line 2 is not"),
    "merges: not utf-8": (two_files(VOCABULARY, b"\xff\xfe\n"), "merges.txt is damaged: it is not text in UTF-8"),
    "merges: of what is not there": (two_files(VOCABULARY, b"x y\n"), "one of them is damaged"),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("whole") / "tiny"
    tiny_tokenizer().save_pretrained(directory)
    return directory


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_damaged_file_is_named(saved: Path, tmp_path: Path, damage: str) -> None:
    directory = tmp_path / "tiny"
    shutil.copytree(saved, directory)
    apply, words = DAMAGES[damage]
    apply(directory)
    with pytest.raises(ModelLoadError) as refused:
        load_tokenizer(directory)
    sentence = str(refused.value)
    assert sentence.startswith("tiny cannot be loaded: ")
    assert words in sentence
    assert sentence.endswith("Download the model again, or restore that file.")


def test_an_undamaged_one_is_loaded(saved: Path) -> None:
    assert load_tokenizer(saved).get_vocab() == tiny_tokenizer().get_vocab()


def added(content: str, is_special: bool, template: str = "") -> PreTrainedTokenizerFast:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([AddedToken(content, special=is_special)])
    assert tokenizer.get_vocab()[content] == VOCABULARY_TOKENS
    tokenizer.chat_template += template
    return tokenizer


@pytest.mark.parametrize(
    ("tokenizer", "is_refused"),
    [
        (added("zebrafinch", False), True),  # can be typed
        (added("zebrafinch", True), False),  # a control token, which no text becomes
        (added("<zebra>", False), False),
        (added("<zebra>", False, "<zebra>"), True),  # the template writes it
        (added("[PAD]", True), False),  # of many fine-tuned models
        (added("zebrafinch", True, "zebrafinch"), True),
    ],
)
def test_a_token_that_has_no_embedding_is_refused_if_it_can_occur(
    tokenizer: PreTrainedTokenizerFast, is_refused: bool
) -> None:
    check_producible(tokenizer, VOCABULARY_TOKENS + 1, "tiny")
    if not is_refused:
        check_producible(tokenizer, VOCABULARY_TOKENS, "tiny")
        return
    with pytest.raises(ModelLoadError) as refused:
        check_producible(tokenizer, VOCABULARY_TOKENS, "tiny")
    assert "zebra" in str(refused.value)
    assert f"with the id {VOCABULARY_TOKENS}, but the model has only {VOCABULARY_TOKENS} embeddings" in str(
        refused.value
    )


def test_a_word_of_the_vocabulary_without_an_embedding_is_refused() -> None:
    with pytest.raises(ModelLoadError, match=f"with the id 4[0-9]+, but the model has only {VOCABULARY_TOKENS - 100}"):
        check_producible(tiny_tokenizer(), VOCABULARY_TOKENS - 100, "tiny")
