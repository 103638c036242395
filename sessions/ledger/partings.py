"""Where two histories of one owner part: which token, in which section, with which words, and what stands in both.

Pure functions. The work is linear in what is compared: texts by slices, messages by a set of what each says."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from model_runtime.interface.chat import ChatMessage, TurnTemplate
from sessions.ledger import history_hash
from sessions.ledger.excerpt import excerpt, fresh_part
from sessions.ledger.ledger import Turn, common_prefix, fold, system_prompt_of
from sessions.store.records import Node
from sessions.types import MissReason, Parting, Section

LEAST_AGAIN_TOKENS = 16  # less is what every prompt ends with
_WINDOW_TOKENS = 48  # of ids, around a difference that no text shows
_MOST_COUNTED_CHARS = 4_000  # longer texts' tokens are estimated
Piece = tuple[tuple[ChatMessage, ...], int]  # the messages of a node, and how many ids it has
Key = tuple[str, str, tuple[tuple[str, str], ...]]


@dataclass(frozen=True, slots=True)
class History:
    """What a prompt says and its ids. `tools` are JSON texts, None where they are not known. `conversation_id` is that
    of a kept one."""

    system_prompt: str
    tools: tuple[str, ...] | None
    messages: tuple[ChatMessage, ...]
    ids: tuple[int, ...]
    conversation_id: str = ""


def kept_history(path: Sequence[Node], template: TurnTemplate, conversation_id: str) -> History:
    """The history of a stored path."""
    tools = next((node.tools for node in path if node.tools is not None), None)
    texts = None if tools is None else tuple(json.loads(tools)) if tools else ()
    messages = tuple(message for node in path for message in messages_of(node, bool(tools), template))
    return History(system_prompt_of(path), texts, messages, fold(path), conversation_id)


def messages_of(node: Node, has_tools: bool, template: TurnTemplate) -> tuple[ChatMessage, ...]:
    """A node's messages, with an answer's calls apart from its text."""
    if node.role != "assistant":
        return node.messages
    return (history_hash.answer_message(node.text, has_tools, "", template),)


def parting(kept: History, sent: History, pieces: Sequence[Piece], template: TurnTemplate) -> Parting | None:
    """Where `sent` (whose nodes are the `pieces`) parts from what is kept; None where nothing that stands in both is
    behind that place."""
    token = common_prefix(kept.ids, sent.ids)
    if token in (len(kept.ids), len(sent.ids)):
        return None
    again_tokens = _again_tokens(kept, sent, pieces, token, template)
    if again_tokens < LEAST_AGAIN_TOKENS:
        return None
    place = partial(Parting, token, len(sent.ids), again_tokens=again_tokens, kept_id=kept.conversation_id)
    return _by_text(kept, sent, pieces, token, place, template)


def raw_parting(
    path: Sequence[Node], kept_id: str, text: str, ledger: tuple[int, ...], template: TurnTemplate
) -> Parting | None:
    """Where a prompt without a chat parts from the path of another one, which is stored in the conversation `kept_id`;
    None as in `parting`."""
    kept, said = fold(path), "".join(node.text for node in path)
    token = common_prefix(kept, ledger)
    if token in (len(kept), len(ledger)):
        return None
    fresh_tokens = _count(fresh_part(said, text), template, len(ledger) / (len(text) + 1))
    again_tokens = len(ledger) - token - fresh_tokens
    if again_tokens < LEAST_AGAIN_TOKENS:
        return None
    place = partial(Parting, token, len(ledger), again_tokens=again_tokens, kept_id=kept_id)
    return _in_text(place, said, text, section=Section.PROMPT)


def rewritten(path: Sequence[Node], turn: Turn, system_prompt: str, template: TurnTemplate) -> Parting | None:
    """Where a turn's ledger parts from its path's, which it rewrites; None where another tokenizer wrote that."""
    if turn.rewrite is None or turn.rewrite.reason is MissReason.MODEL_CHANGED:
        return None
    held, token = fold(path), turn.rewrite.first_token
    place = partial(Parting, token, len(turn.ledger))
    if turn.rewrite.reason is MissReason.SYSTEM_PROMPT_CHANGED:
        return _in_text(place, system_prompt_of(path), system_prompt, section=Section.SYSTEM)
    if turn.rewrite.reason is MissReason.TEMPLATE_REWROTE_HISTORY:
        return other_branch(held, turn.ledger, outline(path), template)
    return _by_ids(held, turn.ledger, token, place, template)


def other_branch(
    held: tuple[int, ...], ledger: tuple[int, ...], nodes: Sequence[tuple[int, str]], template: TurnTemplate
) -> Parting:
    """Where the ids that a KV held part from a turn's, whose `nodes` begin at these places."""
    token = common_prefix(held, ledger)
    place = partial(Parting, token, len(ledger))
    number = sum(start <= token for start, _ in nodes)
    if not number or (number == 1 and nodes[0][1] != "user"):
        return _by_ids(held, ledger, token, place, template)
    place = partial(place, number=number, role=nodes[number - 1][1])
    return _by_ids(held, ledger, token, place, template, Section.MESSAGE, nodes[number - 1][0])


def outline(path: Sequence[Node]) -> tuple[tuple[int, str], ...]:
    """(where its ids begin, its role) of each message; () where one of them has the whole ledger written anew."""
    if any(node.ids.ledger_start == 0 for node in path[1:]):
        return ()
    return tuple((node.ids.ledger_start, message.role) for node in path for message in node.messages)


def _by_text(
    kept: History,
    sent: History,
    pieces: Sequence[Piece],
    token: int,
    place: Callable[..., Parting],
    template: TurnTemplate,
) -> Parting:
    """The first text that differs, of those whose ids may begin to differ at `token`: in the node that has it, and in
    the one before, because what closes a message is written with the next one."""
    piece, start = 0, pieces[0][1]
    while start <= token and piece < len(pieces) - 1:
        piece += 1
        start += pieces[piece][1]
    if piece <= 1:
        in_tools = kept.tools is not None and sent.tools is not None and kept.tools != sent.tools
        in_system = kept.system_prompt != sent.system_prompt
        if in_system and in_tools:  # templates have them in either order
            before = template.plain(sent.ids[max(0, token - _WINDOW_TOKENS) : token])[-_WINDOW_TOKENS // 4 :].strip()
            in_system = not before or before in sent.system_prompt
        if in_system:
            return _in_text(place, kept.system_prompt, sent.system_prompt, section=Section.SYSTEM)
        if in_tools:
            return _in_tools(place, kept.tools or (), sent.tools or ())
    first = sum(len(messages) for messages, _ in pieces[: max(0, piece - 1)])
    end = sum(len(messages) for messages, _ in pieces[: piece + 1])
    for number, (old, new) in enumerate(zip(kept.messages[:end], sent.messages[:end], strict=False), start=1):
        if number > first and _key(old) != _key(new):
            role = new.role if new.role == old.role else f"{new.role}, before: {old.role}"
            where = {"section": Section.MESSAGE, "number": number, "role": role}
            return _in_text(place, _whole_text(old), _whole_text(new), **where)
    number = end - len(pieces[piece][0]) + 1  # the same text in other tokens
    place = partial(place, number=number, role=sent.messages[number - 1].role)
    return _by_ids(kept.ids, sent.ids, token, place, template, Section.MESSAGE)


def _in_tools(place: Callable[..., Parting], kept: Sequence[str], sent: Sequence[str]) -> Parting:
    for old, new in zip(kept, sent, strict=False):
        if old != new:
            names = _tool_name(old), _tool_name(new)
            if names[0] == names[1]:
                return _in_text(place, old, new, section=Section.TOOLS, name=names[1])
            return place(section=Section.TOOLS, before=names[0], after=names[1])
    if len(sent) > len(kept):
        return place(section=Section.TOOLS, after=_tool_name(sent[len(kept)]))
    return place(section=Section.TOOLS, before=_tool_name(kept[len(sent)]))


def _in_text(place: Callable[..., Parting], kept: str, sent: str, **where: object) -> Parting:
    words = excerpt(kept, sent)
    return place(before=words.before, after=words.after, is_date=words.is_date, **where)


def _by_ids(
    kept: tuple[int, ...],
    sent: tuple[int, ...],
    token: int,
    place: Callable[..., Parting],
    template: TurnTemplate,
    section: Section = Section.TEMPLATE,
    first: int = 0,
) -> Parting:
    """With the words that the ids spell there, from position `first` on."""
    start = max(first, token - _WINDOW_TOKENS // 4)
    texts = [template.plain(ids[start : token + _WINDOW_TOKENS]) for ids in (kept, sent)]
    return _in_text(place, *texts, section=section)


def _again_tokens(kept: History, sent: History, pieces: Sequence[Piece], token: int, template: TurnTemplate) -> int:
    """How many ids of `sent` from position `token` on write what stands in `kept`, too."""
    known = {_key(message) for message in kept.messages}
    chars = sum(len(_whole_text(message)) for message in sent.messages) + len(sent.system_prompt) + 1
    count = partial(_count, template=template, tokens_per_char=len(sent.ids) / chars)
    total, start, place = 0, 0, 0
    for messages, size in pieces:
        beyond = max(0, start + size - max(start, token))
        fresh = 0
        for new in messages:
            if _key(new) not in known:
                old = kept.messages[place] if place < len(kept.messages) else None
                is_alike = old is not None and old.role == new.role
                fresh += count(fresh_part(_whole_text(old) if old and is_alike else "", _whole_text(new)))
            place += 1
        if start == 0:
            fresh += count(fresh_part(kept.system_prompt, sent.system_prompt))
            fresh += sum(count(text) for text in _changed_tools(kept.tools, sent.tools))
        total += max(0, beyond - fresh)
        start += size
    return total


def _changed_tools(kept: Sequence[str] | None, sent: Sequence[str] | None) -> list[str]:
    if kept is None or sent is None or kept == sent:
        return []
    known, by_name = set(kept), {_tool_name(tool): tool for tool in kept}
    return [fresh_part(by_name.get(_tool_name(tool), ""), tool) for tool in sent if tool not in known]


def _count(text: str, template: TurnTemplate, tokens_per_char: float) -> int:
    if len(text) > _MOST_COUNTED_CHARS:
        return round(len(text) * tokens_per_char)
    return template.count(text) if text else 0


def _key(message: ChatMessage) -> Key:
    """What a message says, for comparing: without ids of calls and thoughts."""
    same = history_hash.canonical(message)
    return same.role, same.text, tuple((call.name, call.arguments) for call in same.tool_calls)


def _whole_text(message: ChatMessage) -> str:
    calls = "".join(f" {call.name} {call.arguments}" for call in message.tool_calls)
    return f"{message.text}{calls}" if calls else message.text


def _tool_name(tool: str) -> str:
    try:
        found = json.loads(tool)
        return str(found.get("function", found).get("name", ""))
    except (ValueError, AttributeError, RecursionError):
        return ""
