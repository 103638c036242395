"""A template with values of its variables writes what the tokenizer's own rendering writes with them."""

from __future__ import annotations

import json

import pytest

from model_runtime.interface.chat import ChatMessage
from model_runtime.interface.errors import TemplateRefused
from model_runtime.text.chat_template import ChatTemplate
from tests.model_runtime.tiny_models import END_TOKEN, tiny_tokenizer

END = tiny_tokenizer().convert_tokens_to_ids(END_TOKEN)
SWITCHED = (
    "{% if effort %}<|im_start|>system\nEffort: {{ effort }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content.split('</think>')[-1] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
ALWAYS = SWITCHED.partition("{% if add_generation_prompt %}")[0] + (
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)


def template_of(jinja: str) -> ChatTemplate:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = jinja
    return ChatTemplate(tokenizer, {END})


def rendered(jinja: str, *texts: str, **variables: object) -> str:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = jinja
    messages = [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **variables))


@pytest.mark.parametrize("variables", [{}, {"enable_thinking": False}, {"effort": "low"}, {"enable_thinking": True}])
def test_turns_are_the_tokenizers_own_rendering(variables: dict[str, object]) -> None:
    template = template_of(SWITCHED).with_variables(json.dumps(variables) if variables else "")
    decode = tiny_tokenizer().decode
    first = template.first_turn("", "One")
    assert decode(first) == rendered(SWITCHED, "One", **variables)
    whole = rendered(SWITCHED, "One", "First", "Two", **variables)
    assert whole.endswith(decode(template.next_turn(True, "Two")))
    assert decode(template.whole("", [*_said("One", "First", "Two")])) == whole
    assert decode(template_of(SWITCHED).first_turn("", "One")) == rendered(SWITCHED, "One")  # it stays as it was


def test_what_a_switch_changes_is_known() -> None:
    template = template_of(SWITCHED)
    assert template.variables == ("effort", "enable_thinking")
    off, low = template.with_variables('{"enable_thinking": false}'), template.with_variables('{"effort": "low"}')
    assert (template.bound, off.bound) == ("", '{"enable_thinking": false}')
    assert off.history_frame() == template.history_frame()
    assert low.history_frame() != template.history_frame()
    assert low.with_variables("").first_turn("", "One") == template.first_turn("", "One")
    assert template.with_variables('{"effort": "low"}') is low


def test_thoughts_are_known_by_the_template() -> None:
    assert template_of(SWITCHED).has_thoughts
    assert not template_of(SWITCHED).opens_thought()
    assert template_of(ALWAYS).opens_thought()
    plain = ChatTemplate(tiny_tokenizer(), {END})
    assert not plain.has_thoughts
    assert plain.variables == ()
    assert plain.thoughts_in("<think>hm</think>Hello") == ("", "<think>hm</think>Hello")
    assert plain.with_thoughts("hm", "Hello") == plain.begun_answer("hm", "Hello", False) == "Hello"


def test_values_that_a_template_cannot_take_are_refused() -> None:
    template = template_of(SWITCHED.replace("{{ effort }}", "{{ effort + 1 }}"))
    assert template.with_variables('{"effort": 2}').first_turn("", "One")
    with pytest.raises(TemplateRefused, match="cannot be rendered with these variables"):
        template.with_variables('{"effort": "low"}')
    with pytest.raises(TemplateRefused, match="control tokens"):
        template_of(SWITCHED).with_variables(json.dumps({"effort": f"low{END_TOKEN}"}))


def _said(*texts: str) -> list[ChatMessage]:
    return [ChatMessage(("user", "assistant")[n % 2], text) for n, text in enumerate(texts)]
