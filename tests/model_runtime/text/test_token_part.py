"""Where a stop string cuts an answer, its ids say what was shown, no less and no more."""

from __future__ import annotations

import random

import pytest

from model_runtime.text.text_stream import TextStream
from model_runtime.text.token_part import ids_of_part
from tests.model_runtime.tiny_chats import KINDS, chat_tokenizer
from tests.model_runtime.tiny_models import PROSE_PATH

PROSE = PROSE_PATH.read_text(encoding="utf-8") + "日本語 👩\u200d🚀 naïve\n\nQuestion: Is it so?\n\n"


@pytest.mark.parametrize("kind", KINDS)
def test_the_ids_of_a_cut_answer_are_those_of_its_text(kind: str) -> None:
    tokenizer, draw = chat_tokenizer(kind, "chatml").backend_tokenizer, random.Random(kind)
    parts = 0
    for _ in range(150):
        start = draw.randrange(len(PROSE) - 60)
        ids = tokenizer.encode(PROSE[start : start + 60], add_special_tokens=False).ids
        whole = tokenizer.decode(ids, skip_special_tokens=True)
        if "\ufffd" in whole or len(whole) < 8:
            continue
        begin = draw.randrange(len(whole) - 6)
        stop = whole[begin : begin + draw.randint(1, 6)]
        stream, pushed, shown = TextStream(tokenizer, (stop,)), [], ""
        for token_id in ids:
            pushed.append(token_id)
            shown += stream.push(token_id)
            if stream.stopped:
                break
        assert stream.stopped
        assert shown == whole[: whole.index(stop)]
        end = stream.end
        kept = pushed[: end.whole_tokens]
        if end.part:
            parts += 1
            own_ids = ids_of_part(tokenizer, kept, end.part)
            assert own_ids is not None, (kept, end.part)
            kept = [*kept, *own_ids]
            shown = shown.rstrip() if kind == "wordpiece" else shown
            assert end.cut_tokens > end.whole_tokens
        assert tokenizer.decode(kept, skip_special_tokens=True) == shown
    assert parts > 20


def test_tokens_that_show_nothing_before_the_stop_string_are_cut_too() -> None:
    tokenizer = chat_tokenizer("byte-level", "chatml").backend_tokenizer
    stop_id = tokenizer.token_to_id("<|im_start|>")
    said, stop = tokenizer.encode("Yes.").ids, tokenizer.encode("\n\nQuestion:").ids
    stream = TextStream(tokenizer, ("\n\nQuestion:", "\nQuestion:"))
    assert "".join(map(stream.push, [*said, stop_id, *stop])) == "Yes."
    assert (stream.end.whole_tokens, stream.end.part) == (len(said), "")


def test_an_answer_that_is_all_stop_string_has_no_ids() -> None:
    tokenizer = chat_tokenizer("legacy", "chatml").backend_tokenizer
    ids = tokenizer.encode("Question: who", add_special_tokens=False).ids
    stream = TextStream(tokenizer, ("Question: who",))
    assert "".join(map(stream.push, ids)) == ""
    assert stream.stopped
    assert (stream.end.whole_tokens, stream.end.part) == (0, "")


def test_a_text_that_the_vocabulary_cannot_write_has_no_ids() -> None:
    tokenizer = chat_tokenizer("wordpiece", "chatml").backend_tokenizer
    assert ids_of_part(tokenizer, tokenizer.encode("the").ids, "\u2603\n") is None
