"""What a request that brings its whole history becomes, before anything is stored: the ids of its turn, and nodes for
what the database does not know. Reads the database, and changes nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

from model_runtime.interface.chat import ChatMessage, TurnTemplate
from model_runtime.interface.protocol import Engine
from model_runtime.interface.sampling_params import SamplingParams
from sessions.errors import MessageRefused
from sessions.ledger.ledger import (
    Turn,
    changed_variables,
    fold,
    new_answer,
    system_prompt_of,
    user_turn,
    variables_of,
    with_beginning,
)
from sessions.ledger.partings import History, parting
from sessions.ledger.resent_history import Exchange, ResentHistory, is_said_exactly
from sessions.ledger.response_name import ResponseName
from sessions.ledger.system_items import SystemItems
from sessions.store.records import Node, NodeIds
from sessions.store.store import Store
from sessions.turns.limits import TurnLimits
from sessions.turns.placement import Placement
from sessions.types import MessageStatus, Parting


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """`tools` are JSON texts, a function each. `key` is the client's name for the conversation. An answer that
    `has_no_limit` may fill the context, whatever `sampling.max_new_tokens` says. `template_variables` are values of the
    chat template's own variables: a JSON object, "" for none. A last message from the assistant is what the answer
    begins with. An answer that `has_one_call` ends after its first call.
    `conversation_id` names the one conversation that it belongs to; "" for any. `leaf_id` is its last message when its
    history was read, and `taken_in` are the ids of the items added to it then, which are among the messages. The answer
    gets the `name`. A conversation that it names, or that has none yet, has these `system_items` from then on."""

    messages: tuple[ChatMessage, ...]
    sampling: SamplingParams
    tools: tuple[str, ...] = ()
    key: str | None = None
    has_no_limit: bool = False
    template_variables: str = ""
    has_one_call: bool = False
    conversation_id: str = ""
    leaf_id: int | None = None
    taken_in: tuple[str, ...] = ()
    name: ResponseName | None = None
    system_items: SystemItems | None = None


@dataclass(frozen=True, slots=True)
class PlannedTurn:
    """`turn` below `above`, of which the last nodes are `imported`. `text` is the question's, None where it is stored
    already. The answer begins with `prefix_text`."""

    placement: Placement
    turn: Turn
    above: tuple[Node, ...]
    imported: tuple[Node, ...]
    text: str | None
    prefix_text: str
    is_thought_open: bool


class Planner:
    """Any thread."""

    def __init__(self, store: Store, engine: Engine, limits: TurnLimits) -> None:
        self._store = store
        self._engine = engine
        self._limits = limits

    def plan(
        self,
        request: ChatRequest,
        history: ResentHistory,
        placement: Placement,
        template: TurnTemplate,
        must_fit: bool = True,
    ) -> PlannedTurn:
        """Raises `ContextFull` as soon as it `must_fit` and does not."""
        placement = _begun_exactly(_asked_anew(placement, history, template), history, template)
        imported = self._imported(request, history, placement, template, must_fit)
        above = (*placement.path, *imported)
        current: tuple[int, ...] = fold(placement.path)
        if placement.conversation is not None:
            current = fold(self._store.messages.path(placement.conversation.leaf_id))
        last, is_asked_again = history.exchanges[-1], placement.known == len(history.hashes)
        fingerprint, prompt = self._engine.info.tokenizer_fingerprint, history.system_prompt
        if is_asked_again:
            turn = new_answer(above, current, prompt, template, fingerprint, request.tools)
        else:
            turn = user_turn(above, last.input, current, prompt, template, fingerprint, request.tools)
        is_open, prefix_text = template.opens_thought(prompt, request.tools), ""
        _refuse_format(request, history, is_open)
        if history.beginning is not None:
            begun, beginning = placement.begun, history.beginning
            prefix_text = begun.text if begun else template.begun_answer(beginning.thoughts, beginning.text, is_open)
            ids = _answer_ids(begun) if begun else template.answer(prefix_text, prompt, request.tools)
            turn = with_beginning(turn, ids, current)
        text = None if is_asked_again else last.text
        return PlannedTurn(placement, turn, above, imported, text, prefix_text, is_open)

    def _imported(
        self, request: ChatRequest, history: ResentHistory, placement: Placement, template: TurnTemplate, must_fit: bool
    ) -> tuple[Node, ...]:
        """Nodes for what the client knows and the database does not, up to the last question. Raises
        `ContextFull` as soon as they are too many."""
        nodes: list[Node] = []
        ledger_tokens = len(fold(placement.path))
        for place in range(placement.known, len(history.hashes) - 1):
            exchange, above = history.exchanges[place // 2], nodes[-1] if nodes else None
            above = above or (placement.path[-1] if placement.path else None)
            is_answer = bool(place % 2)
            if is_answer:
                ids = template.answer(_answer_text(exchange, template), history.system_prompt, request.tools)
            else:
                ids = _asked_ids(request, history, exchange, above, template)
            root_prompt = history.system_prompt if above is None else None
            variables = changed_variables((*placement.path, *nodes), template)
            nodes.append(
                Node(
                    message_id=0,
                    parent_id=None,
                    role="assistant" if is_answer else "user",
                    text=_answer_text(exchange, template) if is_answer else exchange.text,
                    status=MessageStatus.COMPLETE,
                    finish_reason=None,
                    ids=NodeIds(ledger_tokens, ids, system_prompt=root_prompt, template_variables=variables),
                    tokenizer_fingerprint=self._engine.info.tokenizer_fingerprint,
                    model_name=self._engine.info.name,
                    history_hash=history.hashes[place],
                    parts=exchange.answer_parts if is_answer else exchange.parts,
                    tools=tools_json(request.tools) if above is None else None,
                )
            )
            ledger_tokens += len(ids)
            if must_fit:
                self._limits.check_history(ledger_tokens)
        return tuple(nodes)


def tools_json(tools: Sequence[str]) -> str:
    """As `Node.tools` has them."""
    return json.dumps(tools, ensure_ascii=False) if tools else ""


def parting_of(
    planned: PlannedTurn, request: ChatRequest, history: ResentHistory, kept: History, template: TurnTemplate
) -> Parting | None:
    """Where a planned turn's history parts from the nearest one that is kept."""
    turn = planned.turn
    sizes = [len(node.ids.token_ids) for node in planned.above]
    sizes += [len(turn.user.token_ids)] if turn.user is not None else []
    said: list[tuple[ChatMessage, ...]] = []
    for exchange in history.exchanges:
        said += [exchange.asked, *([(exchange.answer,)] if exchange.answer else [])]
    if turn.rewrite is not None or sum(sizes) != len(turn.ledger) - turn.answer_prefix_tokens:
        return None
    messages = tuple(message for group in said for message in group)
    sent = History(history.system_prompt, request.tools, messages, turn.ledger)
    return parting(kept, sent, tuple(zip(said, sizes, strict=True)), template)


def _refuse_format(request: ChatRequest, history: ResentHistory, is_thought_open: bool) -> None:
    """Raises `MessageRefused` where an answer in a format could not begin with it."""
    if request.sampling.grammar is None or request.sampling.grammar.has_text:
        return
    if is_thought_open:
        raise MessageRefused(
            "This model begins every answer with a thought, which a format excludes. Send enable_thinking: false, or "
            "leave the format out."
        )
    if history.beginning is not None:
        raise MessageRefused("An answer that is gone on with cannot keep to a format. Leave one of the two out.")


def _asked_anew(placement: Placement, history: ResentHistory, template: TurnTemplate) -> Placement:
    """A question that was rendered with other values of the template's variables is asked once more beside itself: its
    ids end with their generation prompt."""
    path = placement.path
    is_asked_again = path and placement.known == len(history.hashes)
    if not is_asked_again or variables_of(path) == template.bound:
        return placement
    return replace(placement, path=path[:-1], known=placement.known - 1, begun=None)


def _begun_exactly(placement: Placement, history: ResentHistory, template: TurnTemplate) -> Placement:
    """An answer is gone on with as the client has it, character by character: it puts the rest behind that."""
    begun, beginning = placement.begun, history.beginning
    if begun is None or beginning is None or is_said_exactly(beginning.text, begun, template):
        return placement
    return replace(placement, begun=None)


def with_kept_prompt(history: ResentHistory, path: Sequence[Node]) -> ResentHistory:
    """The history with the system prompt of the path that it was recognised in, which may have other white space."""
    kept = system_prompt_of(path)
    is_same = kept != history.system_prompt and kept.split() == history.system_prompt.split()
    return replace(history, system_prompt=kept) if path and is_same else history


def _asked_ids(
    request: ChatRequest, history: ResentHistory, exchange: Exchange, above: Node | None, template: TurnTemplate
) -> tuple[int, ...]:
    prompt = history.system_prompt
    if above is None:
        return template.first_turn(prompt, exchange.input, request.tools)
    return template.next_turn(above.ended_with_stop_token, exchange.input, prompt, request.tools)


def _answer_text(exchange: Exchange, template: TurnTemplate) -> str:
    answer = exchange.answer
    assert answer is not None, "only the last exchange has no answer"
    return template.with_thoughts(answer.thoughts, template.with_calls(answer.text, answer.tool_calls))


def _answer_ids(node: Node) -> tuple[int, ...]:
    """The ids of a stored answer, without what ended it."""
    return node.answer_ids[:-1] if node.ended_with_stop_token else node.answer_ids
