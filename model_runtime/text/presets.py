"""Chat templates for models that bring none: base models, and chat models from before tokenizers carried templates."""

from __future__ import annotations

import re
from dataclasses import dataclass

from transformers import PreTrainedTokenizerFast

from model_runtime.interface.config import CHAT_PRESETS, ChatPresetName
from model_runtime.interface.errors import ModelLoadError


@dataclass(frozen=True, slots=True)
class ChatPreset:
    """A format of prompts. `template` is Jinja as transformers reads it, without the token that begins a text.
    `stop_strings` are what a model writes when it goes on with the next person's part, with the format's line ends
    before it, so that an answer ends where the next turn's ids begin; `markers` are control tokens of the format,
    which a vocabulary may lack."""

    template: str
    stop_strings: tuple[str, ...] = ()
    markers: tuple[str, ...] = ()


def _roles(system: str, user: str, assistant: str, prompt: str) -> str:
    """A template that writes each message by its role. Each argument is a Jinja expression; `text` is the message."""
    return (
        "{% for message in messages %}{% set text = message['content'] %}"
        "{% if message['role'] == 'system' %}{{ " + system + " }}"
        "{% elif message['role'] == 'user' %}{{ " + user + " }}"
        "{% elif message['role'] == 'assistant' %}{{ " + assistant + " }}"
        "{% else %}{{ raise_exception('This format has no role ' + message['role']) }}{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}{{ " + prompt + " }}{% endif %}"
    )


def _tagged(end: str) -> str:
    """`<|role|>`, a line break, the text and `end` for every role."""
    return _roles(
        f"'<|system|>\\n' + text + {end} + '\\n'",
        f"'<|user|>\\n' + text + {end} + '\\n'",
        f"'<|assistant|>\\n' + text + {end} + '\\n'",
        "'<|assistant|>\\n'",
    )


_VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user\\'s questions."
)
_ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\\n\\n"
)
_INST = (
    "{% if messages[0]['role'] == 'system' %}{% set first = SYSTEM %}{% set messages = messages[1:] %}"
    "{% else %}{% set first = '' %}{% endif %}"
    "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('In this format, user and assistant take turns') }}{% endif %}"
    "{% if message['role'] == 'user' %}"
    "{% if not loop.first %}{{ BEGIN }}{% endif %}"
    "{{ '[INST] ' + (first if loop.first else '') + message['content'] | trim + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'] | trim + END }}{% endif %}{% endfor %}"
)

PRESETS: dict[ChatPresetName, ChatPreset] = {
    # bigcode/octocoder: "Question: ...\n\nAnswer:"
    "question-answer": ChatPreset(
        _roles(
            "text + '\\n\\n'", "'Question: ' + text + '\\n\\n'", "'Answer: ' + (text | trim) + '\\n\\n'", "'Answer:'"
        ),
        ("\n\nQuestion:", "\nQuestion:"),
    ),
    "chatml": ChatPreset(
        "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] "
        "+ '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
        ("<|im_end|>", "<|im_start|>"),
        ("<|im_start|>", "<|im_end|>"),
    ),
    # meta-llama/Llama-2-7b-chat-hf; a later turn begins with its own bos.
    "llama2": ChatPreset(
        _INST.replace("SYSTEM", "'<<SYS>>\\n' + messages[0]['content'] + '\\n<</SYS>>\\n\\n'")
        .replace("BEGIN", "bos_token")
        .replace("END", "' ' + eos_token"),
        ("[INST]",),
    ),
    "mistral": ChatPreset(
        _INST.replace("SYSTEM", "messages[0]['content'] + '\\n\\n'").replace("BEGIN", "''").replace("END", "eos_token"),
        ("[INST]",),
    ),
    # lmsys/vicuna v1.1 and later (FastChat's "vicuna_v1.1")
    "vicuna": ChatPreset(
        "{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] }}{% set messages = messages[1:] %}"
        "{% else %}{{ '" + _VICUNA + "' }}{% endif %}"
        "{% for message in messages %}"
        "{% if message['role'] == 'user' %}{{ (' ' if loop.first else '') + 'USER: ' + message['content'] }}"
        "{% elif message['role'] == 'assistant' %}{{ ' ASSISTANT: ' + (message['content'] | trim) + eos_token }}"
        "{% else %}{{ raise_exception('This format has no role ' + message['role']) }}{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}{{ ' ASSISTANT:' }}{% endif %}",
        ("\nUSER:", " USER:"),
    ),
    # tatsu-lab/stanford_alpaca, also WizardCoder
    "alpaca": ChatPreset(
        "{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] + '\\n\\n' }}"
        "{% set messages = messages[1:] %}{% else %}{{ '" + _ALPACA + "' }}{% endif %}"
        "{% for message in messages %}"
        "{% if message['role'] == 'user' %}{{ '### Instruction:\\n' + message['content'] + '\\n\\n' }}"
        "{% elif message['role'] == 'assistant' %}{{ '### Response:' + message['content'] + '\\n\\n' }}"
        "{% else %}{{ raise_exception('This format has no role ' + message['role']) }}{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}{{ '### Response:' }}{% endif %}",
        ("\n\n### Instruction:", "\n### Instruction:"),
    ),
    # HuggingFaceH4/zephyr-7b-beta
    "zephyr": ChatPreset(_tagged("eos_token"), ("<|user|>",)),
    # HuggingFaceH4/starchat-beta
    "starchat": ChatPreset(
        _tagged("'<|end|>'"), ("<|end|>", "<|user|>"), ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
    ),
    # allenai/tulu-2
    "tulu": ChatPreset(
        _roles(
            "'<|system|>\\n' + text + '\\n'",
            "'<|user|>\\n' + text + '\\n'",
            "'<|assistant|>\\n' + text + eos_token + '\\n'",
            "'<|assistant|>\\n'",
        ),
        ("<|user|>",),
    ),
    # OpenAssistant's models on Pythia and Falcon
    "openassistant": ChatPreset(
        _roles(
            "'<|system|>' + text + eos_token",
            "'<|prompter|>' + text + eos_token",
            "'<|assistant|>' + text + eos_token",
            "'<|assistant|>'",
        ),
        ("<|prompter|>",),
        ("<|prompter|>", "<|assistant|>"),
    ),
    # tiiuae/falcon-7b-instruct
    "user-assistant": ChatPreset(
        _roles(
            "text + '\\n\\n'", "'User: ' + text + '\\n\\n'", "'Assistant: ' + (text | trim) + '\\n\\n'", "'Assistant:'"
        ),
        ("\n\nUser:", "\nUser:"),
    ),
}
# Models without a template of their own, whose card says how they were trained.
_KNOWN: tuple[tuple[str, ChatPresetName], ...] = (
    (r"octo(coder|geex)", "question-answer"),
    (r"starchat", "starchat"),
    (r"vicuna", "vicuna"),
    (r"wizardcoder|alpaca", "alpaca"),
    (r"zephyr", "zephyr"),
    (r"tulu", "tulu"),
    (r"oasst|openassistant", "openassistant"),
    (r"mpt-.*chat", "chatml"),
    (r"falcon-.*instruct", "user-assistant"),
    (r"llama-?2-.*chat", "llama2"),
    (r"(mistral|mixtral)-.*instruct", "mistral"),
)


@dataclass(frozen=True, slots=True)
class ChosenTemplate:
    """Where a model's chat template is from. `preset` is None for its own; `notes` are sentences for the start."""

    preset: ChatPreset | None
    notes: tuple[str, ...] = ()

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """Texts that end every answer."""
        return self.preset.stop_strings if self.preset else ()


def choose_template(tokenizer: PreTrainedTokenizerFast, model: str, asked: ChatPresetName | None) -> ChosenTemplate:
    """The model's own chat template, or a preset, which is then set in the tokenizer. Raises `ModelLoadError` for a
    model without a template whose format is neither asked for nor known."""
    has_own = bool(tokenizer.chat_template)
    known = None if has_own or asked else known_preset(model)
    name = asked or known
    if name is None:
        if has_own:
            return ChosenTemplate(None)
        raise ModelLoadError(
            f"{model} has no chat template, so how it writes a conversation is not known. Name a format with "
            f"--chat-preset ({', '.join(CHAT_PRESETS)}), or choose an instruction-tuned model."
        )
    if known:
        said = (
            f"This model has no chat template: the preset {name} is used, the format of its model card. --chat-preset "
            "chooses another."
        )
    elif has_own:
        said = f"The preset {name} is used in place of the model's own chat template (--chat-preset)."
    else:
        said = f"This model has no chat template: the preset {name} is used (--chat-preset)."
    preset = PRESETS[name]
    tokenizer.chat_template = ("{{ bos_token }}" if _begins_with_bos(tokenizer) else "") + preset.template
    return ChosenTemplate(preset, (said, *_lacking(tokenizer, name, preset)))


def known_preset(model: str) -> ChatPresetName | None:
    """The format that the card of a published model names, by the last part of its name."""
    name = re.split(r"[/\\]", model)[-1].lower()
    return next((preset for pattern, preset in _KNOWN if re.search(pattern, name)), None)


def _lacking(tokenizer: PreTrainedTokenizerFast, name: str, preset: ChatPreset) -> tuple[str, ...]:
    """What the vocabulary lacks for this preset, as a sentence."""
    vocabulary = tokenizer.get_vocab()
    missing = [marker for marker in preset.markers if marker not in vocabulary]
    if "eos_token" in preset.template and not tokenizer.eos_token:
        raise ModelLoadError(f"The preset {name} ends answers with the model's end token, which this model lacks.")
    if not missing:
        return ()
    return (f"This model's vocabulary has no {', '.join(missing)}: the preset {name} writes them as plain text.",)


def _begins_with_bos(tokenizer: PreTrainedTokenizerFast) -> bool:
    """Whether the tokenizer itself begins a text with its bos token."""
    ids = tokenizer("x")["input_ids"]
    return tokenizer.bos_token_id is not None and ids[:1] == [tokenizer.bos_token_id]
