"""The ids of a turn: after any sequence of turns, a path's fold equals a rendering of all its texts."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from model_runtime.interface.chat import ChatMessage
from model_runtime.interface.events import FinishReason
from sessions.ledger.ledger import Turn, common_prefix, continued_answer, fold, new_answer, system_prompt_of, user_turn
from sessions.store.records import Node, NodeIds
from sessions.types import MessageStatus, MissReason
from tests.sessions.byte_template import (
    ASSISTANT,
    END,
    USER,
    ByteTemplate,
    EveryTurnTemplate,
    ForgetfulTemplate,
    LastTurnTemplate,
    said,
)

TEMPLATE = ByteTemplate()


def node(role: str, text: str, ids: NodeIds, fingerprint: str = "bytes") -> Node:
    return Node(0, None, role, text, MessageStatus.COMPLETE, FinishReason.STOP, ids, fingerprint, "Model")


def grown(path: tuple[Node, ...], text: str, turn: Turn, answer: str, fingerprint: str = "bytes") -> tuple[Node, ...]:
    """The path after `turn` was answered completely."""
    assert turn.user is not None
    sampled = (*answer.encode(), END)
    said = NodeIds(turn.answer.ledger_start, turn.answer.token_ids + sampled)
    return (*path, node("user", text, turn.user, fingerprint), node("assistant", answer, said, fingerprint))


def ask(path: tuple[Node, ...], text: str, prompt: str = "", template: ByteTemplate = TEMPLATE) -> Turn:
    return user_turn(path, text, fold(path), prompt, template, "bytes")


def two_turns(prompt: str = "Old.", template: ByteTemplate = TEMPLATE) -> tuple[Node, ...]:
    path = grown((), "One", ask((), "One", prompt, template), "First")
    return grown(path, "Two", ask(path, "Two", prompt, template), "Second")


@given(st.lists(st.integers(0, 2)), st.lists(st.integers(0, 2)))
def test_common_prefix(left: list[int], right: list[int]) -> None:
    length = common_prefix(left, right)
    assert left[:length] == right[:length]
    assert length == min(len(left), len(right)) or left[length] != right[length]


@given(st.lists(st.tuples(st.text(min_size=1), st.text(), st.sampled_from(["", "A", "B"])), min_size=1, max_size=6))
def test_the_fold_is_the_whole_rendering(turns: list[tuple[str, str, str]]) -> None:
    """Also when the system prompt changes between the turns."""
    path: tuple[Node, ...] = ()
    for text, answer, prompt in turns:
        turn = ask(path, text, prompt)
        texts = said(*((n.role, n.text) for n in path))
        assert turn.ledger == TEMPLATE.whole(prompt, [*texts, *said(("user", text))])
        assert turn.delta_tokens <= len(turn.ledger)
        path = grown(path, text, turn, answer)
        assert fold(path)[: len(turn.ledger)] == turn.ledger
        assert system_prompt_of(path) == prompt


def test_a_plain_turn_adds_the_pending_id_and_the_rendered_message() -> None:
    path = two_turns()
    turn = ask(path, "Three", "Old.")
    assert turn.user == NodeIds(len(fold(path)), (USER, *b"Three", END, ASSISTANT))
    assert turn.delta_tokens == 1 + len(turn.user.token_ids)
    assert turn.rewrite is None


def test_a_regenerated_answer_adds_one_id() -> None:
    path = two_turns()
    turn = new_answer(path[:-1], fold(path), "Old.", TEMPLATE, "bytes")
    assert (turn.ledger, turn.delta_tokens, turn.user) == (fold(path[:-1]), 1, None)


def test_a_continued_answer_begins_with_its_own_ids() -> None:
    path = two_turns()
    stopped = replace(path[-1].ids, token_ids=path[-1].ids.token_ids[:3])
    path = (*path[:-1], replace(path[-1], ids=stopped, finish_reason=FinishReason.LENGTH))
    turn = continued_answer(path, fold(path), TEMPLATE, "bytes")
    assert (turn.answer, turn.answer_prefix_tokens, turn.delta_tokens) == (stopped, 3, 1)


def test_sampled_ids_survive_a_changed_system_prompt() -> None:
    """They may differ from the ids of the text: here the answer was sampled with ids that no tokenizer would
    produce."""
    path = two_turns()
    odd = NodeIds(path[1].ids.ledger_start, (300, 301, END))
    shifted = replace(path[2].ids, ledger_start=path[1].ids.ledger_start + 3)
    answer = replace(path[3].ids, ledger_start=shifted.ledger_start + len(shifted.token_ids))
    path = (path[0], replace(path[1], ids=odd), replace(path[2], ids=shifted), replace(path[3], ids=answer))
    turn = ask(path, "Three", "New.")
    first = TEMPLATE.first_turn("New.", "One")
    assert turn.ledger[: len(first) + 3] == (*first, 300, 301, END)
    assert turn.rewrite is not None
    assert turn.rewrite.reason is MissReason.SYSTEM_PROMPT_CHANGED
    assert turn.user is not None
    assert turn.user.ledger_start == 0


def test_a_first_turn_that_is_not_found_again_is_rendered_whole() -> None:
    path = two_turns()
    path = (replace(path[0], text="Changed by hand in the database"), *path[1:])
    turn = ask(path, "Three", "New.")
    assert turn.ledger == TEMPLATE.whole("New.", said(*((n.role, n.text) for n in path), ("user", "Three")))


def test_a_forgetful_template_crops_to_the_first_difference() -> None:
    template = ForgetfulTemplate()
    path = grown((), "One", ask((), "One", template=template), "<think>hm</think>Yes")
    turn = ask(path, "Two", template=template)
    assert turn.rewrite is not None
    assert turn.rewrite.first_token == len(template.first_turn("", "One")) == turn.user.ledger_start  # type: ignore[union-attr]
    after = grown(path, "Two", turn, "No")
    assert (
        fold(after)[: len(turn.ledger)]
        == turn.ledger
        == template.whole("", said(("user", "One"), ("assistant", "Yes"), ("user", "Two")))
    )
    assert turn.delta_tokens == 1 + len(template.next_turn(True, "Two"))


def test_a_template_that_writes_the_system_prompt_in_every_turn_gets_it() -> None:
    template = EveryTurnTemplate()
    path = two_turns("Old.", template)
    texts = said(*((n.role, n.text) for n in path), ("user", "Three"))
    turn = ask(path, "Three", "Old.", template)
    assert (turn.ledger, turn.rewrite) == (template.whole("Old.", texts), None)
    turn = ask(path, "Three", "New.", template)
    assert turn.ledger == template.whole("New.", texts)
    again = new_answer(path[:-1], fold(path), "New.", template, "bytes")
    assert again.ledger == template.whole("New.", texts[:3])


def test_a_template_that_moves_the_system_prompt_rewrites_history_where_there_is_one() -> None:
    template = LastTurnTemplate()
    assert ask(two_turns("", template), "Three", "", template).rewrite is None
    path = two_turns("Old.", template)
    turn = ask(path, "Three", "Old.", template)
    assert turn.ledger == template.whole("Old.", said(*((n.role, n.text) for n in path), ("user", "Three")))
    assert turn.rewrite is not None
    assert turn.rewrite.reason is MissReason.TEMPLATE_REWROTE_HISTORY
    # From no prompt to one, and back: all is rendered again.
    for before, after in (("", "New."), ("Old.", "")):
        path = two_turns(before, template)
        texts = said(*((n.role, n.text) for n in path), ("user", "Three"))
        assert ask(path, "Three", after, template).ledger == template.whole(after, texts)


def test_a_rewritten_history_keeps_the_ids_of_calls_and_the_tools() -> None:
    template, tools = LastTurnTemplate(takes_tools=True), ('{"name": "look"}',)
    path = two_turns("Old.", template)
    result = (ChatMessage("tool", "Sunny", tool_call_id="call42"), ChatMessage("user", "So?"))
    turn = user_turn(path, result, fold(path), "Old.", template, "bytes", tools)
    assert turn.ledger == template.whole("Old.", [*said(*((n.role, n.text) for n in path)), *result], tools)
    assert b"call42" in bytes(i for i in turn.ledger if i < 256)
