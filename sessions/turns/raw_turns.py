"""Requests whose prompt is no chat: a text, or token ids, that the model goes on with, without a template around it.

A prompt that begins with an earlier one and its answer continues that conversation, with the ids that were sampled.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from model_runtime.interface.chat import TurnTemplate
from model_runtime.interface.protocol import Engine
from model_runtime.interface.sampling_params import SamplingParams
from sessions.config import SessionConfig
from sessions.errors import ConversationBusy, MessageRefused
from sessions.ledger.ledger import fold
from sessions.ledger.partings import raw_parting
from sessions.ledger.raw_prompt import RawPrompt, raw_turn
from sessions.store.records import Conversation
from sessions.store.store import Store
from sessions.text import clean_exactly, refuse_if_huge
from sessions.turns.placement import Placement, Placements
from sessions.turns.run import Run
from sessions.turns.turn import NewTurn, Turns
from sessions.types import ConversationSettings


@dataclass(frozen=True, slots=True)
class RawRequest:
    """`prompt` is a text, or ids. An answer that `has_no_limit` may fill the context, whatever
    `sampling.max_new_tokens` says."""

    prompt: str | tuple[int, ...]
    sampling: SamplingParams
    has_no_limit: bool = False


class RawTurns:
    """Any thread."""

    def __init__(
        self,
        store: Store,
        engine: Engine,
        template: TurnTemplate,
        config: SessionConfig,
        turns: Turns,
        placements: Placements,
    ) -> None:
        self._store = store
        self._engine = engine
        self._template = template
        self._config = config
        self._turns = turns
        self._placements = placements

    def begin(self, owner_id: str, request: RawRequest) -> Run:
        """Commits what is new and starts the answer. Nothing is stored when a `SessionError` is raised."""
        prompt = RawPrompt(self._cleaned(request.prompt))
        self._turns.store_kept()
        return self._placements.begin(
            lambda may_stay: self._placements.find_raw(owner_id, prompt, may_stay),
            lambda conversation_id, placement: self._begin(owner_id, conversation_id, request, prompt, placement),
        )

    def _cleaned(self, prompt: str | tuple[int, ...]) -> str | tuple[int, ...]:
        if isinstance(prompt, str):
            refuse_if_huge(prompt, self._config.max_message_bytes, "This prompt")
            self._turns.limits.refuse_hopeless(prompt)
            return clean_exactly(prompt)
        vocabulary = self._engine.info.vocabulary_tokens
        for token_id in prompt:
            if token_id < 0 or (vocabulary and token_id >= vocabulary):
                raise MessageRefused(
                    f"The prompt has the id {token_id}; this model has ids from 0 to {vocabulary - 1:,}."
                )
        self._turns.limits.check_history(len(prompt))
        return prompt

    def _begin(
        self, owner_id: str, conversation_id: str, request: RawRequest, prompt: RawPrompt, placement: Placement
    ) -> Run:
        current = fold(placement.path)
        if placement.conversation is not None:
            current = fold(self._store.messages.path(placement.conversation.leaf_id))
        turn = raw_turn(placement.path, current, prompt, placement.known, self._template.raw)
        if not turn.ledger:
            raise MessageRefused("The prompt is empty, and this model has no token that begins a text.")
        rest, text = prompt.after(placement.known), None
        if turn.user is not None:
            text = rest if isinstance(rest, str) else self._template.raw.text(rest)
        if request.has_no_limit:
            most = self._turns.most_new_tokens(owner_id, conversation_id, turn)
            request = replace(request, sampling=replace(request.sampling, max_new_tokens=most))
        self._turns.limits.promise_bytes(turn, request.sampling.max_new_tokens, text)
        parting = None
        if not placement.path and isinstance(prompt.said, str):
            near_id, near = self._placements.nearest_raw(owner_id, prompt.said)
            parting = raw_parting(near, near_id, prompt.said, turn.ledger, self._template) if near else None
        conversation = self._conversation(owner_id, conversation_id, request, placement)
        try:
            return self._turns.begin(
                NewTurn(
                    conversation=conversation,
                    path=() if placement.is_fork else placement.path,
                    turn=turn,
                    sampling=request.sampling,
                    user_text=text,
                    history=placement.path if placement.is_fork else (),
                    history_hash=prompt.link,
                    is_fork=placement.is_fork,
                    is_by_person=False,
                    raw=prompt,
                    parting=parting,
                )
            )
        except Exception:  # a pin leaves no room, or the file failed
            if placement.conversation is None and self._store.conversation(owner_id, conversation_id).leaf_id is None:
                self._store.delete(conversation_id)
            raise

    def _conversation(
        self, owner_id: str, conversation_id: str, request: RawRequest, placement: Placement
    ) -> Conversation:
        if placement.conversation is None:
            settings = ConversationSettings(request.sampling.lasting(self._engine.info.default_sampling))
            if not self._store.add_conversation(owner_id, conversation_id, settings, None, placement.root_id):
                raise ConversationBusy("This conversation was begun by another request. Try again.")
        return self._store.conversation(owner_id, conversation_id)
