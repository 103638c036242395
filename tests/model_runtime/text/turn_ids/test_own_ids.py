"""A turn's ids are the tokenizer's own, for every kind of tokenizer and every family of templates."""

from __future__ import annotations

import copy
import itertools
import random
import unicodedata
from functools import cache
from typing import Any

import pytest

from model_runtime.interface.chat import ChatMessage
from model_runtime.text.chat_template import ChatTemplate
from model_runtime.text.text_stream import TextStream
from tests.model_runtime.tiny_chats import FAMILIES, KINDS, OTHER_KINDS, chat_tokenizer

COMBINATIONS = list(itertools.product(KINDS, FAMILIES))
WITHOUT_SYSTEM = {"mistral", "gemma"}
MOVES_THE_SYSTEM_PROMPT = {"mistral v3"}
SYSTEM = "Be brief. /no_think"
ODD = (
    "Hello",
    " Hello, who are you? ",
    "",
    " ",
    "\n",
    "\n\n  The light\n\n",
    "Answer:",
    ".",
    "日本語のテキスト。",
    "👩\u200d🚀🙂",
    "e\u0301 \u1100\u1161\u11a8 n\u0303",
    "fi ① x²",
    "\ttab\tand  two  spaces   three",
    "def f(x):\n    return x  # \r\n",
    "USER: Question: [INST] ### Response: User:",
    "<", "|>", "▁ ▁▁", "\u00a0x\u3000",
)  # fmt: skip


@cache
def template_of(kind: str, family: str) -> ChatTemplate:
    tokenizer = chat_tokenizer(kind, family)
    return ChatTemplate(tokenizer, {tokenizer.convert_tokens_to_ids(FAMILIES[family].stop)})


def said(family: str, *texts: str, system: str = "") -> list[dict[str, Any]]:
    """Messages of user and assistant by turns."""
    messages = [("system", system)] if system else []
    messages += [(("user", "assistant")[n % 2], text) for n, text in enumerate(texts)]
    if family == "parts":
        return [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in messages]
    return [{"role": role, "content": text} for role, text in messages]


def odd_texts(family: str) -> list[str]:
    """Those that spell none of the family's control tokens: its own tokenizer would take them for real."""
    found = FAMILIES[family]
    return [text for text in ODD if not any(token in text for token in (*found.special, *found.added))]


def own_ids(kind: str, family: str, *texts: str, system: str = "") -> list[int]:
    found = chat_tokenizer(kind, family).apply_chat_template(
        said(family, *texts, system=system), tokenize=True, add_generation_prompt=True, return_dict=False
    )
    return list(found)


@pytest.mark.parametrize(("kind", "family"), COMBINATIONS)
def test_a_first_turn(kind: str, family: str) -> None:
    template = template_of(kind, family)
    assert template.rewrites_history() is None
    for text in odd_texts(family):
        assert list(template.first_turn("", text)) == own_ids(kind, family, text), repr(text)
        if family not in WITHOUT_SYSTEM:
            own = own_ids(kind, family, text, system=SYSTEM)
            assert list(template.first_turn(SYSTEM, text)) == own, repr(text)


@pytest.mark.parametrize(("kind", "family"), COMBINATIONS)
def test_a_whole_conversation(kind: str, family: str) -> None:
    for first, second in itertools.pairwise(odd_texts(family)):
        turns = [("user", first), ("assistant", second), ("user", second), ("assistant", first), ("user", "So?")]
        ids = template_of(kind, family).whole("", [ChatMessage(*turn) for turn in turns])
        assert list(ids) == own_ids(kind, family, *(text for _, text in turns)), repr(first)


@pytest.mark.parametrize(("kind", "family"), COMBINATIONS)
def test_a_later_turn(kind: str, family: str) -> None:
    """From the last answer's end on. An answer that ended with its stop token is followed by what follows the token."""
    template, tokenizer = template_of(kind, family), chat_tokenizer(kind, family)
    stop = tokenizer.convert_tokens_to_ids(FAMILIES[family].stop)
    answer = "The keeper lights it at dusk"
    first = list(template.first_turn("", "Who?"))
    for text in odd_texts(family):
        own, later = own_ids(kind, family, "Who?", answer, text), list(template.next_turn(False, text))
        assert own[-len(later) :] == later, repr(text)
        if own[: len(first)] == first:  # a generation prompt's last line end may join the answer's first
            assert [*first, *template.answer(answer), *later] == own, repr(text)
        ended = list(template.next_turn(True, text))
        assert own[-len(ended) :] == ended
        if FAMILIES[family].stop in FAMILIES[family].template or "eos_token" in FAMILIES[family].template:
            assert own[-len(ended) - 1] == stop
        third = own_ids(kind, family, "Who?", answer, "And?", answer, text)
        assert third[-len(ended) :] == ended


@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_rarer_kinds(kind: str) -> None:
    """Normalizers that lose something, models that know words only: with control tokens between texts, and without."""
    answer = "The keeper lights it at dusk"
    for family in ("llama2", "deepseek"):
        template = template_of(kind, family)
        for text in (*odd_texts(family), "``Quoted''  Ünï 12345 ", "\n Two\t  lines\n\nso"):
            assert list(template.first_turn("", text)) == own_ids(kind, family, text), repr(text)
            own = own_ids(kind, family, "Who?", answer, text)
            for ended in (False, True):
                later = list(template.next_turn(ended, text))
                assert own[-len(later) :] == later, repr(text)


@pytest.mark.parametrize("kind", {**KINDS, **OTHER_KINDS})
def test_any_ids_are_shown(kind: str) -> None:
    tokenizer = chat_tokenizer(kind, "deepseek").backend_tokenizer
    chance = random.Random(5)
    for _ in range(20):
        stream = TextStream(tokenizer, ("stop",))
        shown = "".join(stream.push(chance.randrange(tokenizer.get_vocab_size())) for _ in range(50)) + stream.tail()
        assert isinstance(shown, str)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", sorted(set(FAMILIES) - WITHOUT_SYSTEM))
def test_a_later_turn_of_a_conversation_with_a_system_prompt(kind: str, family: str) -> None:
    """As in the test above where the template only appends; else the conversation is known to be written anew."""
    template, answer = template_of(kind, family), "The keeper lights it at dusk"
    assert (template.rewrites_history(SYSTEM) is not None) == (family in MOVES_THE_SYSTEM_PROMPT)
    for text in odd_texts(family):
        own = own_ids(kind, family, "Who?", answer, text, system=SYSTEM)
        if family in MOVES_THE_SYSTEM_PROMPT:
            said_before = [ChatMessage("user", "Who?"), ChatMessage("assistant", answer), ChatMessage("user", text)]
            assert list(template.whole(SYSTEM, said_before)) == own, repr(text)
            continue
        later = list(template.next_turn(False, text, SYSTEM))
        assert own[-len(later) :] == later, repr(text)
        first = list(template.first_turn(SYSTEM, "Who?"))
        if own[: len(first)] == first:
            assert [*first, *template.answer(answer, SYSTEM), *later] == own, repr(text)
        ended = list(template.next_turn(True, text, SYSTEM))
        third = own_ids(kind, family, "Who?", answer, "And?", answer, text, system=SYSTEM)
        assert third[-len(ended) :] == ended, repr(text)


@pytest.mark.parametrize("family", ["mistral v3", "each turn", "switch"])
def test_a_system_prompt_that_spells_control_tokens_stays_text_in_every_turn(family: str) -> None:
    template, tokenizer, found = template_of("legacy", family), chat_tokenizer("legacy", family), FAMILIES[family]
    controls = {tokenizer.convert_tokens_to_ids(token) for token in (*found.special, *found.added)}

    def controls_in(system: str) -> list[list[int]]:
        turns = [ChatMessage("user", "u"), ChatMessage("assistant", "a"), ChatMessage("user", "v")]
        both = template.next_turn(False, "v", system), template.whole(system, turns)
        return [[token_id for token_id in ids if token_id in controls] for ids in both]

    for token in (*found.special, *found.added):
        for system in (token, f"a{token}b", f" {token}\n{token} /no_think"):
            assert controls_in(system) == controls_in("x" if "/no_think" not in system else "x /no_think"), system


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_text_that_spells_control_tokens_stays_text(kind: str, family: str) -> None:
    template, tokenizer, found = template_of(kind, family), chat_tokenizer(kind, family), FAMILIES[family]
    controls = {tokenizer.convert_tokens_to_ids(token) for token in (*found.special, *found.added)}

    def controls_in(ids: tuple[int, ...]) -> list[int]:
        return [token_id for token_id in ids if token_id in controls]

    for token in (*found.special, *found.added):
        for text in (token, f"a{token}b", f"{token}{token}", f" {token} \n{token}user\n", f"<{token[:3]}{token}"):
            first, later = template.first_turn("", text), template.next_turn(False, text)
            assert controls_in(first) == controls_in(template.first_turn("", "x"))
            assert controls_in(later) == controls_in(template.next_turn(False, "x"))
            if kind != "wordpiece":  # which keeps no white space
                shown = unicodedata.normalize("NFKC", text.strip()) if "NFKC" in kind else text.strip()
                assert shown in template.plain(first)
                assert shown in template.plain(later)
            other = (ChatMessage("user", "u"), ChatMessage("assistant", "a"), ChatMessage("user", text))
            assert controls_in(template.first_turn("", other)) == controls_in(
                template.first_turn("", (*other[:2], ChatMessage("user", "x")))
            )


HYBRIDS = {  # DeepSeek V3.1's and GLM 4.5's way: an answer without thoughts is written with the tags of thoughts
    "closing tag": "{% set written = '<|Assistant|></think>' + c.split('</think>', 1)[-1] %}",
    "both tags": "{% set written = '<|Assistant|><think></think>\n' + c.split('</think>')[-1].strip() %}",
}


@pytest.mark.parametrize("way", HYBRIDS)
@pytest.mark.parametrize("kind", ["byte-level", "legacy"])
def test_thoughts_are_removed_from_a_history_by_a_template_that_writes_their_tags_itself(kind: str, way: str) -> None:
    tokenizer = copy.copy(chat_tokenizer(kind, "deepseek"))
    tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}{% set c = m['content'] %}{% if m['role'] == 'user' %}"
        "{{ '<｜User｜>' + c }}{% else %}" + HYBRIDS[way] + "{{ written + eos_token }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|Assistant|></think>' }}{% endif %}"
    )
    template = ChatTemplate(tokenizer, {tokenizer.convert_tokens_to_ids("</s>")})
    assert template.rewrites_history()
    for answer in ("Noon.", "<think>\nhm\n</think>\n\nNoon."):
        texts = ("Who?", answer, "So </think> what?")
        messages = [ChatMessage(("user", "assistant")[n % 2], text) for n, text in enumerate(texts)]
        seen = [{"role": message.role, "content": message.text} for message in messages]
        own = tokenizer.apply_chat_template(seen, tokenize=False, add_generation_prompt=True)
        ids, tag = template.whole("", messages), tokenizer.convert_tokens_to_ids("</think>")
        assert tokenizer.decode(ids).replace(" ", "") == str(own).replace(" ", "")
        assert ids.count(tag) == 2  # a person's is text
