"""What is read of a draft is a true beginning of the message's ids, and where it is not, the engine crops it."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from model_runtime.loading.loaded import LoadedModel
from model_runtime.text.chat_template import ChatTemplate
from tests.model_runtime.tiny_chats import FAMILIES, KINDS, chat_tokenizer
from tests.model_runtime.tiny_models import END_TOKEN, tiny_tokenizer

TEXTS = (
    "The harbour wakes before the town does; antidisestablishmentarianism, too.  Two  spaces.\n\n- a list\n",
    "def warm(cache):\n    return cache.length_tokens  # 1,234 tokens\n",
    "Ärger über 日本語のテキスト ohne Ende: https://example.org/a/path?with=parameters&more=1",
    "🙂🙂 emoji, dashes… <|im_end|> stays text 3.14159",
)
TINY = tiny_tokenizer()
TINY_TEMPLATE = ChatTemplate(TINY, {TINY.convert_tokens_to_ids(END_TOKEN)})


@pytest.fixture(scope="module")
def template(loaded_embedded: LoadedModel) -> ChatTemplate:
    return ChatTemplate(loaded_embedded.tokenizer, loaded_embedded.stop_token_ids)


def read_of(template: ChatTemplate, draft: str) -> tuple[int, ...]:
    ids = template.next_turn(True, draft)
    return ids[: len(ids) - template.unstable_tokens(draft)]


@pytest.mark.parametrize("text", TEXTS)
def test_every_stable_draft_begins_the_message(template: ChatTemplate, text: str) -> None:
    sent = template.next_turn(True, text)
    for length in range(len(text) + 1):
        read = read_of(template, text[:length])
        assert read == sent[: len(read)], text[:length]


@pytest.mark.parametrize("text", TEXTS[:2])
def test_little_is_left_to_be_read(template: ChatTemplate, text: str) -> None:
    closing = template.unstable_tokens("")
    for length in range(1, len(text) + 1):
        left = len(template.next_turn(True, text[:length])) - len(read_of(template, text[:length]))
        assert left - closing <= 12  # the longest word, with a margin


def test_an_empty_draft_leaves_what_every_message_begins_with(template: ChatTemplate) -> None:
    start = read_of(template, "")
    assert start
    assert all(template.next_turn(True, text)[: len(start)] == start for text in TEXTS)


@given(st.text(max_size=50))
@example("a" * 40)
@example(" ")
def test_the_end_of_any_draft_is_part_of_its_turn(draft: str) -> None:
    assert 0 < TINY_TEMPLATE.unstable_tokens(draft) <= len(TINY_TEMPLATE.first_turn("", draft)) + 1


@pytest.mark.parametrize("family", ["chatml", "llama2", "mistral", "octocoder", "phi", "falcon", "alpaca"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_was_typed_begins_the_message_for_every_kind_of_tokenizer(kind: str, family: str) -> None:
    tokenizer = chat_tokenizer(kind, family)
    template = ChatTemplate(tokenizer, {tokenizer.convert_tokens_to_ids(FAMILIES[family].stop)})
    for text in (
        "The light.  Two\n\nlines; ",
        "\n the  keeper",
        "Ärger 日本語 https://a.org/b",
        "e\u0301 👩\u200d🚀 - x\n",
    ):
        for turn in (lambda typed: template.first_turn("", typed), lambda typed: template.next_turn(True, typed)):
            sent = turn(text)
            for length in range(len(text) + 1):
                ids = turn(text[:length])
                read = ids[: len(ids) - template.unstable_tokens(text[:length])]
                assert read == sent[: len(read)], text[:length]
