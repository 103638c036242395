"""Turns a path of messages into the exact ids of the next turn. Pure functions; the only place that decides ids.

A path's ledger is a fold: `ledger = ledger[:node.ledger_start] + node.token_ids`. A node normally starts where the
ledger ends. It starts earlier when the history is rewritten: the system prompt was changed, the ids belong to another
tokenizer, or the chat template itself rewrites earlier turns. Nodes above it keep their ids for other branches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from model_runtime.interface.chat import ChatMessage, TurnTemplate, UserInput
from sessions.store.records import Node, NodeIds
from sessions.types import MissReason


@dataclass(frozen=True, slots=True)
class Rewrite:
    """Why a ledger was rewritten, and the first position at which it differs."""

    reason: MissReason
    first_token: int


@dataclass(frozen=True, slots=True)
class Turn:
    """The ids of a turn before the model runs.

    `ledger` goes to the engine. `user` are the ids of the new user node, None if the turn only adds an answer. `answer`
    are the ids that the answer's node begins with; the last `answer_prefix_tokens` of the ledger belong to the answer
    itself (when it is continued). With a warm KV the engine feeds exactly `delta_tokens`, unless there is a `rewrite`.
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
    """The length of the longest common prefix of two sequences of one type. Slices are compared, which is faster than
    ids one by one."""
    limit = min(len(left), len(right))
    if left[:limit] == right[:limit]:
        return limit
    same, differs = 0, limit  # the first `same` are equal, the first `differs` are not
    while differs - same > 1:
        middle = (same + differs) // 2
        if left[same:middle] == right[same:middle]:
            same = middle
        else:
            differs = middle
    return same


def system_prompt_of(path: Sequence[Node]) -> str:
    """The system prompt that the path's ledger holds."""
    return next((n.ids.system_prompt for n in reversed(path) if n.ids.system_prompt is not None), "")


def variables_of(path: Sequence[Node]) -> str:
    """The values of the template's variables that the end of the path was rendered with."""
    return next((n.ids.template_variables for n in reversed(path) if n.ids.template_variables is not None), "")


def changed_variables(path: Sequence[Node], template: TurnTemplate) -> str | None:
    """What a node below `path` records: the template's values, None where they are those above it."""
    return None if variables_of(path) == template.bound else template.bound


def user_turn(
    path: Sequence[Node],
    text: UserInput,
    current: tuple[int, ...],
    system_prompt: str,
    template: TurnTemplate,
    fingerprint: str,
    tools: Sequence[str] = (),
) -> Turn:
    """The turn of a new message below `path` (which ends with an answer, or is empty).

    `current` is the ledger of the conversation's current path, which a warm KV holds except for the last id; it differs
    from the ledger of `path` when an earlier message is edited.
    """
    if not path:
        ids = template.first_turn(system_prompt, text, tools)
        root = NodeIds(0, ids, system_prompt=system_prompt, template_variables=changed_variables((), template))
        return _with_user(ids, root, _delta(current, ids))
    variables = changed_variables(path, template)
    held = fold(path)
    added = template.next_turn(path[-1].ended_with_stop_token, text, system_prompt, tools)
    rewrite_reason = _rewrite_reason(path, system_prompt, fingerprint, template, tools)
    if rewrite_reason is None and not template.rewrites_history(system_prompt, tools):
        ledger = held + added
        return _with_user(ledger, NodeIds(len(held), added, template_variables=variables), _delta(current, ledger))
    ledger = _rewritten(path, held, rewrite_reason, system_prompt, template, tools)
    own = _own_path(path, system_prompt, template, fingerprint, tools)
    if ledger:
        ledger = ledger + added
    elif own:
        after = _rendered_after(path, own, system_prompt, template, tools)
        ledger = after + template.next_turn(False, text, system_prompt, tools)
    else:
        ledger = template.whole(system_prompt, [*_messages(path), *_said(text)], tools)
    start = common_prefix(held, ledger)
    if start == len(held):
        node = NodeIds(start, ledger[start:], template_variables=variables)
        return _with_user(ledger, node, _delta(current, ledger))
    rewrite = Rewrite(rewrite_reason or MissReason.TEMPLATE_REWROTE_HISTORY, start)
    # After a change of prompt or tokenizer the node starts at 0, so that the whole ledger belongs to the new one.
    start = 0 if rewrite_reason else start
    prompt = system_prompt if rewrite_reason else None
    node = NodeIds(start, ledger[start:], system_prompt=prompt, template_variables=variables)
    return _with_user(ledger, node, 1 + len(added), rewrite)


def new_answer(
    path: Sequence[Node],
    current: tuple[int, ...],
    system_prompt: str,
    template: TurnTemplate,
    fingerprint: str,
    tools: Sequence[str] = (),
) -> Turn:
    """The turn of another answer to the user message at the end of `path`."""
    held = fold(path)
    reason = _rewrite_reason(path, system_prompt, fingerprint, template, tools)
    if reason is None:
        return Turn(held, None, NodeIds(len(held), ()), _delta(current, held))
    ledger = _rewritten(path, held, reason, system_prompt, template, tools)
    ledger = ledger or _whole(path, system_prompt, template, fingerprint, tools)
    rewrite = Rewrite(reason, common_prefix(held, ledger))
    answer = NodeIds(0, ledger, len(ledger), system_prompt, changed_variables(path, template))
    return Turn(ledger, None, answer, 1, rewrite=rewrite)


def continued_answer(path: Sequence[Node], current: tuple[int, ...], template: TurnTemplate, fingerprint: str) -> Turn:
    """The turn that continues the answer at the end of `path`, under the system prompt that it was begun with."""
    held, answer = fold(path), path[-1]
    if answer.tokenizer_fingerprint == fingerprint:
        return Turn(held, None, answer.ids, _delta(current, held), len(answer.answer_ids))
    prompt = system_prompt_of(path)
    preamble = _whole(path[:-1], prompt, template, fingerprint)
    prefix = template.answer(answer.text, prompt)
    ledger = preamble + prefix
    rewrite = Rewrite(MissReason.MODEL_CHANGED, common_prefix(held, ledger))
    node = NodeIds(0, ledger, len(preamble), prompt, changed_variables(path[:-1], template))
    return Turn(ledger, None, node, 1, len(prefix), rewrite)


def with_beginning(turn: Turn, prefix: tuple[int, ...], current: tuple[int, ...]) -> Turn:
    """The same turn, whose answer begins with the ids `prefix`."""
    ledger, answer = turn.ledger + prefix, turn.answer
    return replace(
        turn,
        ledger=ledger,
        answer=replace(answer, token_ids=answer.token_ids + prefix),
        delta_tokens=turn.delta_tokens + len(prefix) if turn.rewrite else _delta(current, ledger),
        answer_prefix_tokens=len(prefix),
    )


def _with_user(ledger: tuple[int, ...], user: NodeIds, delta_tokens: int, rewrite: Rewrite | None = None) -> Turn:
    return Turn(ledger, user, NodeIds(len(ledger), ()), delta_tokens, rewrite=rewrite)


def _delta(current: tuple[int, ...], ledger: tuple[int, ...]) -> int:
    """How many ids a warm KV lacks: it holds `current` without the pending id, and the engine always feeds the last
    id."""
    return len(ledger) - common_prefix(current[:-1], ledger[:-1])


def _rewrite_reason(
    path: Sequence[Node], system_prompt: str, fingerprint: str, template: TurnTemplate, tools: Sequence[str]
) -> MissReason | None:
    if path[-1].tokenizer_fingerprint != fingerprint:
        return MissReason.MODEL_CHANGED
    if system_prompt_of(path) != system_prompt:
        return MissReason.SYSTEM_PROMPT_CHANGED
    if _is_written_otherwise(path, system_prompt, template, tools):
        return MissReason.TEMPLATE_VARIABLES_CHANGED
    return None


def _beginnings_template(path: Sequence[Node], template: TurnTemplate) -> TurnTemplate:
    """The template with the values of its variables that the path's ledger begins with."""
    start = max(n for n, node in enumerate(path) if node.ids.ledger_start == 0)
    return template.with_variables(variables_of(path[: start + 1]))


def _is_written_otherwise(
    path: Sequence[Node], system_prompt: str, template: TurnTemplate, tools: Sequence[str]
) -> bool:
    """Whether the template would write the path's turns otherwise with the values that its variables have now."""
    before = _beginnings_template(path, template)
    if before.bound == template.bound:
        return False
    return before.history_frame(system_prompt, tools) != template.history_frame(system_prompt, tools)


def _rewritten(
    path: Sequence[Node],
    held: tuple[int, ...],
    reason: MissReason | None,
    system_prompt: str,
    template: TurnTemplate,
    tools: Sequence[str],
) -> tuple[int, ...]:
    """`held` under another system prompt: the first turn is rendered again, everything after it keeps the ids that were
    sampled. () if those ids cannot be kept and all texts have to be rendered again."""
    held_prompt, held_template = system_prompt_of(path), _beginnings_template(path, template)
    rewrites = held_template.rewrites_history(held_prompt, tools) or template.rewrites_history(system_prompt, tools)
    if reason is MissReason.MODEL_CHANGED or rewrites:
        return ()
    later = (
        held_template.next_turn(False, "", held_prompt, tools),
        template.next_turn(False, "", system_prompt, tools),
    )
    before = held_template.first_turn(held_prompt, path[0].input, tools)
    if held[: len(before)] != before or (len(path) > 2 and later[0] != later[1]):  # it reads the prompt in every turn
        return ()
    return template.first_turn(system_prompt, path[0].input, tools) + held[len(before) :]


def _own_path(
    path: Sequence[Node], system_prompt: str, template: TurnTemplate, fingerprint: str, tools: Sequence[str]
) -> tuple[Node, ...]:
    """The longest beginning of a path that was written with this tokenizer and system prompt, before another tokenizer
    continued it: its ids were sampled, and its saved KV matches them. () if all texts have to be rendered again."""
    if template.rewrites_history(system_prompt, tools):
        return ()
    for count in range(len(path), 0, -1):
        last = path[count - 1]
        if last.role == "assistant" and last.tokenizer_fingerprint == fingerprint:
            own = tuple(path[:count])
            is_alike = system_prompt_of(own) == system_prompt
            return own if is_alike and not _is_written_otherwise(own, system_prompt, template, tools) else ()
    return ()


def _rendered_after(
    path: Sequence[Node], own: Sequence[Node], system_prompt: str, template: TurnTemplate, tools: Sequence[str]
) -> tuple[int, ...]:
    """The ids of `own`, which `path` begins with, followed by the rendered texts of the rest."""
    ids, has_ended = fold(own), own[-1].ended_with_stop_token
    for node in path[len(own) :]:
        if node.role == "assistant":
            ids += template.answer(node.text, system_prompt, tools)
        else:
            ids += template.next_turn(has_ended, node.input, system_prompt, tools)
        has_ended = False  # a rendered text has no stop token
    return ids


def _whole(
    path: Sequence[Node], system_prompt: str, template: TurnTemplate, fingerprint: str, tools: Sequence[str] = ()
) -> tuple[int, ...]:
    """The rewritten ledger of a path that ends with a user's message."""
    own = _own_path(path, system_prompt, template, fingerprint, tools)
    if own:
        return _rendered_after(path, own, system_prompt, template, tools)
    return template.whole(system_prompt, _messages(path), tools)


def _messages(path: Sequence[Node]) -> list[ChatMessage]:
    return [m for node in path for m in (node.messages if node.role == "user" else (_answer(node),))]


def _answer(node: Node) -> ChatMessage:
    """Its calls are part of its text."""
    return ChatMessage("assistant", node.text)


def _said(text: UserInput) -> list[ChatMessage]:
    return [ChatMessage("user", text)] if isinstance(text, str) else list(text)
