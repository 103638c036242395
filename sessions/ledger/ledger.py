"""From a path of messages to the exact ids of the next turn. Pure functions; the only place that decides ids.

A path's ledger is a fold: `ledger = ledger[:node.ledger_start] + node.token_ids`. A node normally starts where the
ledger ends. It starts earlier when history has to be written anew: the system prompt was changed, the ids belong to
another tokenizer, or the chat template itself rewrites earlier turns. Nodes above it keep their ids for other branches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from model_runtime.interface.chat import TurnTemplate, UserInput
from sessions.store.records import Node, NodeIds
from sessions.types import MissReason


@dataclass(frozen=True, slots=True)
class Rewrite:
    """Why a ledger was written anew, and the first position at which it differs."""

    reason: MissReason
    first_token: int


@dataclass(frozen=True, slots=True)
class Turn:
    """All that is known of a turn before the model runs.

    `ledger` goes to the engine. `user` are the ids of the new user node, None when an answer alone is added. `answer`
    are the ids the answer's node begins with; the last `answer_prefix_tokens` of the ledger belong to the answer
    itself (it is continued). A warm KV makes the engine feed exactly `delta_tokens`, unless there is a `rewrite`.
    """

    ledger: tuple[int, ...]
    user: NodeIds | None
    answer: NodeIds
    delta_tokens: int
    answer_prefix_tokens: int = 0
    rewrite: Rewrite | None = None


def fold(path: Sequence[Node]) -> tuple[int, ...]:
    """The ledger of a path from root to leaf."""
    ledger: list[int] = []
    for node in path:
        del ledger[node.ids.ledger_start :]
        ledger += node.ids.token_ids
    return tuple(ledger)


def common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    """How many ids both begin with."""
    limit = min(len(left), len(right))
    if left[:limit] == right[:limit]:
        return limit
    return next(i for i in range(limit) if left[i] != right[i])


def system_prompt_of(path: Sequence[Node]) -> str:
    """The system prompt that the path's ledger holds."""
    return next((n.ids.system_prompt for n in reversed(path) if n.ids.system_prompt is not None), "")


def user_turn(
    path: Sequence[Node],
    text: UserInput,
    current: tuple[int, ...],
    system_prompt: str,
    template: TurnTemplate,
    fingerprint: str,
    tools: Sequence[str] = (),
) -> Turn:
    """A new message below `path` (which ends with an answer, or is empty).

    `current` is the ledger of the conversation's current path, which a warm KV holds but for its last id; it differs
    from the path's own when an earlier message is edited.
    """
    if not path:
        ids = template.first_turn(system_prompt, text, tools)
        return _with_user(ids, NodeIds(0, ids, system_prompt=system_prompt), _delta(current, ids))
    held = fold(path)
    added = template.next_turn(path[-1].ended_with_stop_token, text)
    rewrite_reason = _stale(path, system_prompt, fingerprint)
    if rewrite_reason is None and not template.rewrites_history:
        ledger = held + added
        return _with_user(ledger, NodeIds(len(held), added), _delta(current, ledger))
    ledger = _rewritten(path, held, rewrite_reason, system_prompt, template)
    own = _own_path(path, system_prompt, template, fingerprint)
    if ledger:
        ledger = ledger + added
    elif own:
        ledger = _anew(path, own, template) + template.next_turn(False, text)
    else:
        ledger = template.whole(system_prompt, [*_texts(path), *_said(text)], tools)
    start = common_prefix(held, ledger)
    if start == len(held):
        return _with_user(ledger, NodeIds(start, ledger[start:]), _delta(current, ledger))
    rewrite = Rewrite(rewrite_reason or MissReason.TEMPLATE_REWROTE_HISTORY, start)
    # A changed prompt or tokenizer starts over at 0, so that the whole ledger belongs to one of each.
    start = 0 if rewrite_reason else start
    node = NodeIds(start, ledger[start:], system_prompt=system_prompt if rewrite_reason else None)
    return _with_user(ledger, node, 1 + len(added), rewrite)


def new_answer(
    path: Sequence[Node], current: tuple[int, ...], system_prompt: str, template: TurnTemplate, fingerprint: str
) -> Turn:
    """Another answer to the user message at the end of `path`."""
    held = fold(path)
    reason = _stale(path, system_prompt, fingerprint)
    if reason is None:
        return Turn(held, None, NodeIds(len(held), ()), _delta(current, held))
    ledger = _rewritten(path, held, reason, system_prompt, template)
    ledger = ledger or _whole(path, system_prompt, template, fingerprint)
    rewrite = Rewrite(reason, common_prefix(held, ledger))
    return Turn(ledger, None, NodeIds(0, ledger, len(ledger), system_prompt), 1, rewrite=rewrite)


def continued_answer(path: Sequence[Node], current: tuple[int, ...], template: TurnTemplate, fingerprint: str) -> Turn:
    """The answer at the end of `path` goes on, under the system prompt it was begun with."""
    held, answer = fold(path), path[-1]
    if answer.tokenizer_fingerprint == fingerprint:
        return Turn(held, None, answer.ids, _delta(current, held), len(answer.answer_ids))
    prompt = system_prompt_of(path)
    preamble = _whole(path[:-1], prompt, template, fingerprint)
    prefix = template.answer(answer.text)
    ledger = preamble + prefix
    rewrite = Rewrite(MissReason.MODEL_CHANGED, common_prefix(held, ledger))
    return Turn(ledger, None, NodeIds(0, ledger, len(preamble), prompt), 1, len(prefix), rewrite)


def _with_user(ledger: tuple[int, ...], user: NodeIds, delta_tokens: int, rewrite: Rewrite | None = None) -> Turn:
    return Turn(ledger, user, NodeIds(len(ledger), ()), delta_tokens, rewrite=rewrite)


def _delta(current: tuple[int, ...], ledger: tuple[int, ...]) -> int:
    """What a warm KV lacks: it holds `current` but for the pending id, and the engine always feeds the last id."""
    return len(ledger) - common_prefix(current[:-1], ledger[:-1])


def _stale(path: Sequence[Node], system_prompt: str, fingerprint: str) -> MissReason | None:
    if path[-1].tokenizer_fingerprint != fingerprint:
        return MissReason.MODEL_CHANGED
    if system_prompt_of(path) != system_prompt:
        return MissReason.SYSTEM_PROMPT_CHANGED
    return None


def _rewritten(
    path: Sequence[Node], held: tuple[int, ...], reason: MissReason | None, system_prompt: str, template: TurnTemplate
) -> tuple[int, ...]:
    """`held` under another system prompt: its first turn rendered anew, everything after it the very ids that were
    sampled. () when those ids cannot be kept, and the texts have to be rendered as a whole."""
    before = template.first_turn(system_prompt_of(path), path[0].input)
    if reason is MissReason.MODEL_CHANGED or template.rewrites_history or held[: len(before)] != before:
        return ()
    return template.first_turn(system_prompt, path[0].input) + held[len(before) :]


def _own_path(path: Sequence[Node], system_prompt: str, template: TurnTemplate, fingerprint: str) -> tuple[Node, ...]:
    """The longest beginning of a path that this tokenizer wrote under this system prompt, before another one went on:
    its ids were sampled, and are what is saved. () where the texts have to be rendered as a whole."""
    if template.rewrites_history:
        return ()
    for count in range(len(path), 0, -1):
        last = path[count - 1]
        if last.role == "assistant" and last.tokenizer_fingerprint == fingerprint:
            own = tuple(path[:count])
            return own if system_prompt_of(own) == system_prompt else ()
    return ()


def _anew(path: Sequence[Node], own: Sequence[Node], template: TurnTemplate) -> tuple[int, ...]:
    """The ids of `own`, which `path` begins with, and the texts of the rest behind them."""
    ids, has_ended = fold(own), own[-1].ended_with_stop_token
    for node in path[len(own) :]:
        ids += template.answer(node.text) if node.role == "assistant" else template.next_turn(has_ended, node.input)
        has_ended = False  # a text has no stop token
    return ids


def _whole(path: Sequence[Node], system_prompt: str, template: TurnTemplate, fingerprint: str) -> tuple[int, ...]:
    """A path that ends with a question, written anew."""
    own = _own_path(path, system_prompt, template, fingerprint)
    return _anew(path, own, template) if own else template.whole(system_prompt, _texts(path))


def _texts(path: Sequence[Node]) -> list[tuple[str, str]]:
    return [(m.role, m.text) for node in path for m in (node.messages if node.role == "user" else (node,))]


def _said(text: UserInput) -> list[tuple[str, str]]:
    return [("user", text)] if isinstance(text, str) else [(message.role, message.text) for message in text]
