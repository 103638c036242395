"""Finds the conversation that a request with its whole history belongs to.

The owner's conversation with the longest known beginning is continued in place, as long as that costs it next to
nothing; else the beginning is copied into a conversation of its own (a fork), so that a side request, or an edit far
above, never takes the KV that its parent's next turn needs. A key is the client's hint: where its conversation is free
and has some of the history, the request goes there, and a changed message becomes a sibling.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from model_runtime.interface.chat import TurnTemplate
from sessions.errors import ConversationBusy, ConversationNotFound, ShuttingDown
from sessions.ledger.excerpt import likeness
from sessions.ledger.ledger import common_prefix, fold
from sessions.ledger.partings import History, kept_history
from sessions.ledger.raw_prompt import RawPrompt, first_link, size_of
from sessions.ledger.resent_history import ResentHistory
from sessions.store.records import Conversation, Node
from sessions.store.store import Store
from sessions.store.tables.beginnings import SHOWN_CHARS
from sessions.store.tables.history_hashes import Found
from sessions.turns.run import Run, RunTable

ATTEMPTS = 4
MOST_DISPLACED_TOKENS = 256  # of a conversation's end that may be cropped for a request that continues further up
MOST_CANDIDATES = 8
MOST_COMPARED = 12  # conversations that an unknown history is compared with
MOST_RAW_LINKS = 2_000  # of an owner, that a raw prompt is compared with


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a request goes. `known` of its history hashes lead to the end of `path`, which is copied when `is_fork`.
    `conversation` None: into a new one, which gets the `key`. `begun` is the stored answer that is gone on with.
    `root_id` as in `Conversation`, of the new one. `near_id` is the conversation that has the path."""

    conversation: Conversation | None
    path: tuple[Node, ...]
    known: int
    is_fork: bool = False
    begun: Node | None = None
    key: str | None = None
    root_id: str = ""
    near_id: str = ""


NO_PLACEMENT = Placement(None, (), 0)


class Placements:
    """Any thread. What another tokenizer than `tokenizer` (its fingerprint) wrote is ignored, however deep: its ids
    mean something else, and the request brings all the texts. So after a change of models and back, this model's own
    part of the history is found again."""

    def __init__(self, store: Store, runs: RunTable, tokenizer: str) -> None:
        self._store = store
        self._runs = runs
        self._tokenizer = tokenizer
        self.matches_prefixes = True  # benchmarks.api turns it off

    def find(self, owner_id: str, history: ResentHistory, key: str | None, may_stay: bool) -> Placement:
        """`may_stay` false: in a conversation of its own, which no other request can claim first. Of several stored
        paths with the same hash, one that says the history's answers exactly goes before newer ones."""
        named_id = self._store.with_key(owner_id, key) if key is not None else None
        if named_id is not None:
            named = self._in_named(owner_id, history, named_id) if may_stay else None
            return named or self._anywhere(owner_id, history, may_stay)
        return replace(self._anywhere(owner_id, history, may_stay and key is None), key=key)

    def in_conversation(self, owner_id: str, history: ResentHistory, conversation_id: str) -> Placement:
        """In this conversation and no other, whatever that costs its memory. Raises `ConversationNotFound`, and
        `ConversationBusy` while it is answering."""
        conversation = self._store.conversation(owner_id, conversation_id)
        if self._runs.is_busy(conversation_id):
            raise ConversationBusy("An answer is being written in this conversation. Wait for it to end.")
        known, found = self._deepest(owner_id, history, conversation_id)
        path = self._first_path(found, history)
        return _placed(Placement(conversation, path, known if path else 0), history)

    def find_raw(self, owner_id: str, prompt: RawPrompt, may_stay: bool) -> Placement:
        """Where a prompt without chat goes: behind the longest stored answer that it begins with. `known` is how many
        of its characters or ids lead there."""
        stored = self._store.history_hashes.beginning_with(owner_id, first_link(prompt.kind), MOST_RAW_LINKS)
        links = prompt.beginnings_among(stored)
        place, found = self._store.history_hashes.deepest(owner_id, links, None, self._tokenizer)
        return self._best(owner_id, self._paths(found), size_of(links[place]), may_stay) if found else NO_PLACEMENT

    def nearest(
        self, owner_id: str, history: ResentHistory, placement: Placement, template: TurnTemplate
    ) -> History | None:
        """The owner's history that one which is not known to its last question may be an altered form of."""
        if placement.known and placement.known >= len(history.hashes) - 1:
            return None
        try:
            if placement.path:
                near_id = placement.near_id or (
                    placement.conversation.conversation_id if placement.conversation else ""
                )
                leaf_id = self._store.conversation(owner_id, near_id).leaf_id
            else:
                near_id, leaf_id = self._most_alike_to(owner_id, history.system_prompt, history.exchanges[0].text)
            path = self._store.messages.path(leaf_id)
        except ConversationNotFound:  # deleted meanwhile
            return None
        is_readable = bool(path) and path[0].tokenizer_fingerprint == self._tokenizer
        return kept_history(path, template, near_id) if is_readable else None

    def nearest_raw(self, owner_id: str, text: str) -> tuple[str, tuple[Node, ...]]:
        """The path of the owner's prompt without a chat that an unknown one may be an altered form of, and its
        conversation; () for none."""
        near_id, leaf_id = self._most_alike_to(owner_id, "", text)
        path = self._store.messages.path(leaf_id)
        is_raw = bool(path) and path[0].history_hash.startswith(first_link("text"))
        return near_id, path if is_raw else ()

    def _most_alike_to(self, owner_id: str, prompt: str, question: str) -> tuple[str, int | None]:
        """The newest conversation that begins most alike, and its end."""
        found = self._store.beginnings.newest(owner_id, self._tokenizer, MOST_COMPARED)
        prompt, question = prompt[:SHOWN_CHARS], question[:SHOWN_CHARS]
        alike = [(likeness(one.system_prompt, prompt) + 4 * likeness(one.text, question), one) for one in found]
        most, nearest = max(alike, key=lambda one: one[0], default=(0, None))
        return (nearest.conversation_id, nearest.leaf_id) if most and nearest is not None else ("", None)

    def begin(
        self, find: Callable[[bool], Placement], begin: Callable[[str, Placement], Run], is_named: bool = False
    ) -> Run:
        """Begins a turn at the place that was found, inside the claim of its conversation (whose id `begin` gets).
        `find` is asked again when another request was quicker, unless the place `is_named`: what was read of it holds
        no more. Raises `ConversationBusy`."""
        for attempt in range(1, ATTEMPTS + 1):
            placement = find(attempt < ATTEMPTS)
            conversation_id = placement.conversation.conversation_id if placement.conversation else uuid.uuid4().hex
            try:
                with self._runs.claim(conversation_id):
                    if self.is_as_it_was(placement):
                        return begin(conversation_id, placement)
            except ShuttingDown:
                raise
            except ConversationBusy:  # another request was quicker: the next attempt finds another place
                if is_named:
                    raise
                continue
        raise ConversationBusy("This conversation is being changed by other requests. Try again in a moment.")

    def is_as_it_was(self, placement: Placement) -> bool:
        """Asked inside the claim: another request may have continued or deleted it since it was found."""
        if placement.conversation is None:
            return True
        try:
            now = self._store.conversation(placement.conversation.owner_id, placement.conversation.conversation_id)
        except ConversationNotFound:
            return False
        return now.leaf_id == placement.conversation.leaf_id

    def _in_named(self, owner_id: str, history: ResentHistory, named_id: str) -> Placement | None:
        """In the key's conversation; None while it is answering, where items wait for a response of their own, and
        where it has nothing of the history."""
        if self._runs.is_busy(named_id) or self._store.added_items.has_any(named_id):
            return None
        named = self._store.conversation(owner_id, named_id)
        known, found = self._deepest(owner_id, history, named_id)
        path = self._first_path(found, history)
        return _placed(Placement(named, path, known), history) if path else None

    def _anywhere(self, owner_id: str, history: ResentHistory, may_stay: bool) -> Placement:
        """In place in the first conversation that loses next to nothing by it, else on a fork of the newest one."""
        if not self.matches_prefixes:
            return NO_PLACEMENT
        known, found = self._deepest(owner_id, history)
        return _placed(self._best(owner_id, self._exact_paths(found, history), known, may_stay), history)

    def _first_path(self, found: Sequence[Found], history: ResentHistory) -> tuple[Node, ...]:
        return next((path for _, path in self._exact_paths(found, history)), ())

    def _exact_paths(self, found: Sequence[Found], history: ResentHistory) -> Iterator[tuple[Found, tuple[Node, ...]]]:
        """The paths that say the history's answers exactly; if there are none, those that say them otherwise."""
        others: list[tuple[Found, tuple[Node, ...]]] = []
        has_exact = False
        for one, path in self._paths(found):
            if len(found) == 1 or not history.altered_in(path):
                has_exact = True
                yield one, path
            else:
                others.append((one, path))
        if not has_exact:
            yield from others

    def _paths(self, found: Sequence[Found]) -> Iterator[tuple[Found, tuple[Node, ...]]]:
        """The newest first, each read when it is asked for."""
        for one in found[:MOST_CANDIDATES]:
            if path := self._store.messages.path(one.message_id):  # else deleted meanwhile
                yield one, path

    def _best(
        self, owner_id: str, candidates: Iterable[tuple[Found, tuple[Node, ...]]], known: int, may_stay: bool
    ) -> Placement:
        fork = NO_PLACEMENT
        for one, path in candidates:
            conversation = self._store.conversation(owner_id, one.conversation_id)
            if may_stay and conversation.key is None and self._costs_nothing(conversation, path):
                return Placement(conversation, path, known)
            if not fork.path:
                root_id = conversation.root_id or conversation.conversation_id
                fork = Placement(None, path, known, is_fork=True, root_id=root_id, near_id=one.conversation_id)
        return fork

    def _deepest(
        self, owner_id: str, history: ResentHistory, conversation_id: str | None = None
    ) -> tuple[int, Sequence[Found]]:
        """How many of the history's hashes are known, and the nodes with the last of these. One more than there are: a
        stored answer is what the new one begins with."""
        count = len(history.hashes)
        backwards = [*((history.begun_hash,) if history.begun_hash else ()), *history.hashes[::-1]]
        place, found = self._store.history_hashes.deepest(owner_id, backwards, conversation_id, self._tokenizer)
        known = len(backwards) - place if found else 0
        if known >= count - 1 and known:
            return known, found
        place, older = self._store.history_hashes.deepest(
            owner_id, history.older_hashes()[::-1], conversation_id, self._tokenizer
        )
        return (count - place, older) if older and count - place > known else (known, found)

    def _costs_nothing(self, conversation: Conversation, path: tuple[Node, ...]) -> bool:
        """Whether the conversation can go on after `path` without losing more KV than is read again in a moment: its
        own next turn might want it."""
        conversation_id = conversation.conversation_id
        if self._runs.is_busy(conversation_id) or self._store.added_items.has_any(conversation_id):
            return False  # what was added to it comes first
        held = fold(self._store.messages.path(conversation.leaf_id))
        return len(held) - common_prefix(held, fold(path)) <= MOST_DISPLACED_TOKENS


def _placed(placement: Placement, history: ResentHistory) -> Placement:
    """The placement, whose path may end with a stored answer to go on with: the new one goes beside it."""
    if placement.known <= len(history.hashes):
        return placement
    return replace(placement, path=placement.path[:-1], known=placement.known - 1, begun=placement.path[-1])
