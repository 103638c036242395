"""A large text is tokenised without delaying other threads, with the ids it always had."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, pre_tokenizers

from model_runtime.text.chat_template import ChatTemplate
from model_runtime.text.encoding import ShortestEncoding, ids_of, text_of
from sessions.text import clean_message, first_title
from tests.model_runtime import tiny_tokenizers
from tests.model_runtime.tiny_models import tiny_tokenizer

LONGEST_PAUSE_S = 0.5  # on a quiet machine 0.2: the list of three million ids
LARGEST_SHARE = 0.25  # of the time that it takes, where the machine is busy; `encode` itself keeps all of it
CHINESE = "".join(map(chr, random.Random(5).choices(range(0x4E00, 0x9FFF), k=1_000_000)))
BIG = {"Chinese": CHINESE, "emoji": "😀" * 750_000, "spaces": " a" * 1_500_000, "controls": "\x01\r" * 1_500_000}
FAMILIES = {"chat": lambda: tiny_tokenizer().backend_tokenizer, **tiny_tokenizers.FAMILIES}


class Ticking:
    """A thread that wants to run every few milliseconds, and what it had to wait at most."""

    longest_s = 0.0

    def __enter__(self) -> Ticking:
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._tick)
        self._thread.start()
        return self

    def _tick(self) -> None:
        last = time.perf_counter()
        while not self._ended.wait(0.002):
            now = time.perf_counter()
            self.longest_s, last = max(self.longest_s, now - last), now

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()


def pauses(work: Callable[[], object]) -> tuple[float, float]:
    """(longest pause, duration) in seconds."""
    began = time.perf_counter()
    with Ticking() as ticking:
        work()
    return ticking.longest_s, time.perf_counter() - began


@pytest.fixture(scope="module")
def template() -> ChatTemplate:
    return ChatTemplate(tiny_tokenizer(), {0})


@pytest.mark.alone
def test_no_thread_waits_while_three_megabytes_are_tokenised(template: ChatTemplate) -> None:
    for work in (lambda: template.count(CHINESE), lambda: template.first_turn("", CHINESE)):
        longest_s, took_s = pauses(work)
        assert longest_s < max(LONGEST_PAUSE_S, LARGEST_SHARE * took_s), f"{longest_s:.2f} of {took_s:.2f} s"


@pytest.mark.alone
def test_no_thread_waits_while_a_million_ids_become_text(template: ChatTemplate) -> None:
    ids = list(range(3, 500)) * 2_000
    longest_s, _ = pauses(lambda: template.plain(ids))
    assert longest_s < LONGEST_PAUSE_S


@pytest.mark.alone
@pytest.mark.parametrize("what", BIG)
def test_no_thread_waits_while_three_megabytes_are_cleaned(what: str) -> None:
    longest_s, _ = pauses(lambda: (clean_message(BIG[what], 1 << 30), first_title(BIG[what])))
    assert longest_s < LONGEST_PAUSE_S


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=20, deadline=None)
@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=30), st.sampled_from([1, 30, 400]))
def test_the_ids_are_those_of_encode(family: str, piece: str, times: int) -> None:
    tokenizer, text = _of(family), piece * times
    expected = list(tokenizer.encode(text, add_special_tokens=False).ids)
    assert ids_of(tokenizer, text) == expected
    assert text_of(tokenizer, expected) == tokenizer.decode(expected, skip_special_tokens=True)


def test_bytes_without_a_token_are_not_counted() -> None:
    """SmolLM2's vocabulary lacks 21 bytes, which its tokenizer leaves out."""
    description = json.loads(_of("chat").to_str())
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str("é\x06a")[0][0]
    for letter in letters[:-1]:  # of é and of \x06, not of a
        del description["model"]["vocab"][letter]
    merges = description["model"]["merges"]
    lost = set(letters[:-1])
    description["model"]["merges"] = [m for m in merges if not lost & set("".join(m))]
    vocabulary = description["model"]["vocab"]
    description["model"]["vocab"] = {token: i for token, i in vocabulary.items() if not lost & set(token)}
    tokenizer = Tokenizer.from_str(json.dumps(description))
    for text in ("é" * 5_000, "\x06" * 5_000, "aé\x06" * 900):
        assert ShortestEncoding(tokenizer).least_tokens(text) <= len(ids_of(tokenizer, text))
    assert ShortestEncoding(tokenizer).least_tokens("a" * 5_000) > 100


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=40, deadline=None)
@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]) | st.sampled_from(" the light"), max_size=200))
def test_no_text_has_fewer_tokens_than_are_promised(family: str, text: str) -> None:
    assert ShortestEncoding(_of(family)).least_tokens(text) <= len(ids_of(_of(family), text))


def test_the_promise_is_worth_something_for_byte_level_tokenizers() -> None:
    tokenizer = _of("chat")
    assert ShortestEncoding(tokenizer).least_tokens(CHINESE) > 100_000
    assert ShortestEncoding(_of("unigram")).least_tokens(CHINESE) == 0


def test_a_title_is_the_first_line_that_says_something() -> None:
    assert first_title("\n \r\n\t\n  The light \nhouse") == "The light"
    assert first_title(" \n\n ") == ""
    assert first_title("a" * 3_000_000).startswith("aaa")


_made: dict[str, object] = {}


def _of(family: str):  # type: ignore[no-untyped-def]
    if family not in _made:
        _made[family] = FAMILIES[family]()
    return _made[family]
