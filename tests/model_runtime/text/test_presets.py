"""Formats for models without a chat template: the texts they write, the ids, and where an answer ends."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from tokenizers import Tokenizer, processors
from transformers import PreTrainedTokenizerFast

from model_runtime.interface.chat import ChatMessage
from model_runtime.interface.config import CHAT_PRESETS, ChatPresetName, ModelConfig
from model_runtime.interface.errors import ModelLoadError
from model_runtime.interface.events import FinishReason
from model_runtime.interface.sampling_params import SamplingParams
from model_runtime.loading.loaded import LoadedModel
from model_runtime.loading.loading import load_model
from model_runtime.text.chat_template import ChatTemplate
from model_runtime.text.presets import PRESETS, choose_template, known_preset
from tests.conftest import TinyDir
from tests.model_runtime.harness import WatchedEngine, loaded_tiny
from tests.model_runtime.tiny_models import BEGIN_TOKEN, END_TOKEN, tiny_tokenizer

TURNS = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "Why?"},
]
SYSTEM = {"role": "system", "content": "Be kind."}
VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions."
)
ALPACA = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
WRITTEN: dict[ChatPresetName, tuple[str, str]] = {
    "question-answer": (
        "Question: Hi\n\nAnswer: Hello\n\nQuestion: Why?\n\nAnswer:",
        "Be kind.\n\nQuestion: Hi\n\nAnswer:",
    ),
    "chatml": (
        (
            "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n"
            "<|im_start|>assistant\n"
        ),
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    ),
    "llama2": (
        f"[INST] Hi [/INST] Hello {END_TOKEN}{BEGIN_TOKEN}[INST] Why? [/INST]",
        "[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\nHi [/INST]",
    ),
    "mistral": (f"[INST] Hi [/INST] Hello{END_TOKEN}[INST] Why? [/INST]", "[INST] Be kind.\n\nHi [/INST]"),
    "vicuna": (
        f"{VICUNA} USER: Hi ASSISTANT: Hello{END_TOKEN}USER: Why? ASSISTANT:",
        "Be kind. USER: Hi ASSISTANT:",
    ),
    "alpaca": (
        f"{ALPACA}\n\n### Instruction:\nHi\n\n### Response:Hello\n\n### Instruction:\nWhy?\n\n### Response:",
        "Be kind.\n\n### Instruction:\nHi\n\n### Response:",
    ),
    "zephyr": (
        f"<|user|>\nHi{END_TOKEN}\n<|assistant|>\nHello{END_TOKEN}\n<|user|>\nWhy?{END_TOKEN}\n<|assistant|>\n",
        f"<|system|>\nBe kind.{END_TOKEN}\n<|user|>\nHi{END_TOKEN}\n<|assistant|>\n",
    ),
    "starchat": (
        "<|user|>\nHi<|end|>\n<|assistant|>\nHello<|end|>\n<|user|>\nWhy?<|end|>\n<|assistant|>\n",
        "<|system|>\nBe kind.<|end|>\n<|user|>\nHi<|end|>\n<|assistant|>\n",
    ),
    "tulu": (
        f"<|user|>\nHi\n<|assistant|>\nHello{END_TOKEN}\n<|user|>\nWhy?\n<|assistant|>\n",
        "<|system|>\nBe kind.\n<|user|>\nHi\n<|assistant|>\n",
    ),
    "openassistant": (
        f"<|prompter|>Hi{END_TOKEN}<|assistant|>Hello{END_TOKEN}<|prompter|>Why?{END_TOKEN}<|assistant|>",
        f"<|system|>Be kind.{END_TOKEN}<|prompter|>Hi{END_TOKEN}<|assistant|>",
    ),
    "user-assistant": (
        "User: Hi\n\nAssistant: Hello\n\nUser: Why?\n\nAssistant:",
        "Be kind.\n\nUser: Hi\n\nAssistant:",
    ),
}


def without_template(begins_with_bos: bool = False) -> PreTrainedTokenizerFast:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    if begins_with_bos:
        backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        backend.post_processor = processors.TemplateProcessing(
            single=f"{BEGIN_TOKEN} $A", special_tokens=[(BEGIN_TOKEN, tokenizer.bos_token_id)]
        )
        return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=BEGIN_TOKEN, eos_token=END_TOKEN)
    return tokenizer


def test_every_name_has_a_preset() -> None:
    assert set(PRESETS) == set(CHAT_PRESETS) == set(WRITTEN)


@pytest.mark.parametrize("name", CHAT_PRESETS)
@pytest.mark.parametrize("begins_with_bos", [False, True], ids=["plain", "bos"])
def test_a_preset_writes_its_format(name: ChatPresetName, begins_with_bos: bool) -> None:
    tokenizer = without_template(begins_with_bos)
    chosen = choose_template(tokenizer, "somebodys-model", name)
    assert chosen.notes[0] == f"This model has no chat template: the preset {name} is used (--chat-preset)."
    begin = BEGIN_TOKEN if begins_with_bos else ""
    two_turns, with_system = WRITTEN[name]
    for messages, text in ((TURNS, two_turns), ([SYSTEM, TURNS[0]], with_system)):
        rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert rendered == begin + text
    template = ChatTemplate(tokenizer, {tokenizer.eos_token_id})
    turns = [ChatMessage(turn["role"], turn["content"]) for turn in TURNS]
    assert tokenizer.decode(template.whole("", turns), skip_special_tokens=False) == begin + two_turns


@pytest.mark.parametrize("begins_with_bos", [False, True], ids=["plain", "bos"])
def test_the_classic_prompt_has_the_ids_of_its_tokenizer(begins_with_bos: bool) -> None:
    tokenizer = without_template(begins_with_bos)
    choose_template(tokenizer, "bigcode/octocoder", None)
    question = "Please write a function in Python that performs bubble sort."
    expected = tokenizer(f"Question: {question}\n\nAnswer:")["input_ids"]
    messages = [{"role": "user", "content": question}]
    found = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert found == expected


@pytest.mark.parametrize(
    ("model", "preset"),
    [
        ("bigcode/octocoder", "question-answer"),
        ("/models/OctoGeeX", "question-answer"),
        ("HuggingFaceH4/starchat-beta", "starchat"),
        ("lmsys/vicuna-7b-v1.5", "vicuna"),
        ("WizardLM/WizardCoder-15B-V1.0", "alpaca"),
        ("meta-llama/Llama-2-13b-chat-hf", "llama2"),
        ("tiiuae/falcon-7b-instruct", "user-assistant"),
        ("mosaicml/mpt-7b-chat", "chatml"),
        ("OpenAssistant/oasst-sft-4-pythia-12b-epoch-3.5", "openassistant"),
        ("mistralai/Mistral-7B-Instruct-v0.1", "mistral"),
        ("bigcode/starcoder", None),
        ("meta-llama/Llama-2-7b-hf", None),
        ("tiiuae/falcon-7b", None),
        ("vicuna-makers/some-base", None),
    ],
)
def test_what_a_model_card_says_is_known_by_the_models_name(model: str, preset: str | None) -> None:
    assert known_preset(model) == preset


def test_markers_that_the_vocabulary_lacks_are_said(tiny_dir: TinyDir) -> None:
    chosen = choose_template(without_template(), "base", "starchat")
    assert chosen.notes[1].startswith("This model's vocabulary has no <|system|>, <|user|>, <|assistant|>, <|end|>:")
    assert len(choose_template(without_template(), "base", "chatml").notes) == 1
    headless = without_template()
    headless.eos_token = None
    with pytest.raises(ModelLoadError, match="zephyr ends answers with the model's end token, which this model lacks"):
        choose_template(headless, "base", "zephyr")


def copied(source: Path, target: Path, template: bool) -> Path:
    shutil.copytree(source, target)
    if not template:
        (target / "chat_template.jinja").unlink(missing_ok=True)
        settings = json.loads((target / "tokenizer_config.json").read_text())
        settings.pop("chat_template", None)
        (target / "tokenizer_config.json").write_text(json.dumps(settings))
    return target


def load(directory: Path, preset: ChatPresetName | None = None) -> LoadedModel:
    config = ModelConfig(str(directory), "none", cache_dir=directory / "cache", device="cpu", chat_preset=preset)
    return load_model(config, print)


def test_which_template_is_used_is_said_at_the_start(tiny_dir: TinyDir, tmp_path: Path) -> None:
    source = tiny_dir("gptbigcode")
    own = load(copied(source, tmp_path / "own", True))
    assert (own.notes, own.stop_strings) == ((), ())
    replaced = load(tmp_path / "own", "vicuna")
    assert replaced.notes == ("The preset vicuna is used in place of the model's own chat template (--chat-preset).",)
    assert replaced.tokenizer_fingerprint != own.tokenizer_fingerprint
    card = load(copied(source, tmp_path / "octocoder", False))
    assert card.notes == (
        (
            "This model has no chat template: the preset question-answer is used, the format of its model card. "
            "--chat-preset chooses another."
        ),
    )
    assert card.stop_strings == ("\n\nQuestion:", "\nQuestion:")
    asked = load(tmp_path / "octocoder", "user-assistant")
    assert asked.notes == ("This model has no chat template: the preset user-assistant is used (--chat-preset).",)


def test_a_model_without_a_format_is_refused_before_its_weights_are_read(tiny_dir: TinyDir, tmp_path: Path) -> None:
    base = copied(tiny_dir("llama"), tmp_path / "base", False)
    (base / "model.safetensors").unlink()
    with pytest.raises(
        ModelLoadError, match=r"base has no chat template.*Name a format with --chat-preset \(question-"
    ):
        load(base)


def test_an_answer_ends_where_the_model_goes_on_with_the_next_question(tiny_dir: TinyDir) -> None:
    """Also for a request that names stop strings of its own."""
    loaded = loaded_tiny(tiny_dir("llama"))
    sampling = SamplingParams(temperature=0, max_new_tokens=24)
    ledger = loaded.tokenizer("The lamp has changed.")["input_ids"]

    def answer(stop_strings: tuple[str, ...], asked: tuple[str, ...]) -> tuple[str, FinishReason]:
        watched = WatchedEngine(replace(loaded, stop_strings=stop_strings))
        try:
            one = watched.submit(watched.engine.new_kv(), ledger, replace(sampling, stop_strings=asked))
            finished = one.wait()
            return one.text + finished.text_tail, finished.reason
        finally:
            watched.close()

    whole, reason = answer((), ())
    assert reason is FinishReason.LENGTH
    stop = whole[len(whole) // 2 :][:3]
    assert answer((stop,), ("never written",)) == (whole[: whole.index(stop)], FinishReason.STOP_STRING)
