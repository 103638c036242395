"""One answer as ids arrive: its text, where it ends, and which ids belong to it. The same rules as for a model that
runs here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any

from tokenizers import Tokenizer

from model_runtime.interface.events import FinishReason, TokenDelta, TokenLogprob, TokenLogprobs
from model_runtime.interface.protocol import GenerationRequest
from model_runtime.interface.sampling_params import SEEDS
from model_runtime.remote.dialects.dialect import IdLogprobs, Piece, Wanted
from model_runtime.remote.trouble import Garbage, LeftOut
from model_runtime.text.text_stream import TextStream
from model_runtime.text.token_part import ids_of_part

_NO_CHARACTER = "\ufffd"


@dataclass(frozen=True, slots=True)
class AnswerRules:
    """What is the same for all answers of an engine. `stop_token_ids` and `stop_strings` are the model's own."""

    tokenizer: Tokenizer
    stop_token_ids: frozenset[int]
    stop_strings: tuple[str, ...]
    vocabulary_tokens: int
    context_limit_tokens: int


class Answer:
    """Takes ids one after the other. `ids` are all that arrived, `asked_from` of them before a server was asked last;
    the last `cut_tokens` of them do not belong to it, and `part_ids` stand in their place."""

    def __init__(self, request: GenerationRequest, rules: AnswerRules) -> None:
        ledger, sampling = request.ledger, request.sampling
        self.ids: list[int] = []
        self.cut_tokens = 0
        self.part_ids: tuple[int, ...] = ()
        self.asked_from = 0
        self._request = request
        self._rules = rules
        self._wanted = sampling.top_logprobs
        self._max_new_tokens = sampling.max_new_tokens
        self._room_tokens = rules.context_limit_tokens - len(ledger)
        self._salt = _salt(request.fairness_key)
        self._own_ends = frozenset() if sampling.ignore_eos else rules.stop_token_ids
        self._asked_ends = frozenset(sampling.stop_token_ids) - self._own_ends
        self._prefix = ledger[len(ledger) - request.answer_prefix_tokens :]
        self._text = TextStream(rules.tokenizer, (*sampling.stop_strings, *rules.stop_strings), self._prefix)

    def ask(self, most_tokens: int | None = None, **more: Any) -> Wanted:
        """What to ask a server for after the ids so far: all the rest, or so many ids in one event."""
        ends = tuple(sorted(self._own_ends | self._asked_ends))
        own = tuple(sorted(self._rules.stop_token_ids))
        self.asked_from = len(self.ids)
        ledger, rest, sampling = self._request.ledger, self.new_tokens - len(self.ids), self._request.sampling
        if sampling.seed is not None:  # one that begins again would draw the same numbers again
            sampling = replace(sampling, seed=(sampling.seed + len(self.ids)) % SEEDS)
        ledger = (*ledger, *self.ids) if self.ids else ledger
        count = rest if most_tokens is None else min(rest, most_tokens)
        return Wanted(ledger, sampling, count, ends, own, self._salt, **more)

    @property
    def since_asked(self) -> Sequence[int]:
        """The ids that came since a server was asked last."""
        return self.ids[self.asked_from :] if self.asked_from else self.ids

    @property
    def new_tokens(self) -> int:
        """How many ids it may have at most."""
        return max(1, min(self._max_new_tokens, self._room_tokens))

    def whole(self, piece: Piece) -> Piece:
        """The piece with the ids that the server left out, which only write a character together: they are the
        vocabulary's for that text, as many as the server counted, with the same last one. Raises `LeftOut` if there are
        none or the text has U+FFFD, which may stand for any bytes, and `Garbage` for a server that read another
        prompt."""
        ledger, left_out = self._request.ledger, piece.left_out_tokens
        prompt_tokens = len(ledger) + self.asked_from
        if piece.prompt_tokens not in (None, prompt_tokens):
            raise Garbage(f"it read {piece.prompt_tokens:,} tokens where {prompt_tokens:,} were sent")
        if not left_out:
            return piece
        count, last = left_out + len(piece.token_ids), piece.token_ids[-1:]
        ids = None if _NO_CHARACTER in piece.text else self._ids_of(piece.text, count, last)
        if ids is None:
            raise LeftOut(f"it left out the ids of {left_out:,} tokens", count)
        return replace(piece, token_ids=ids, logprobs=(*(None,) * left_out, *piece.logprobs) if piece.logprobs else ())

    def _ids_of(self, text: str, count: int, last: tuple[int, ...]) -> tuple[int, ...] | None:
        before = (*self._request.ledger, *self.ids)
        return ids_of_part(self._rules.tokenizer, before, text, lambda ids: len(ids) == count and ids[-1:] == last)

    def take(self, token_id: int, logprobs: IdLogprobs | None) -> tuple[TokenDelta, FinishReason | None]:
        """The event of an id, and why the answer ends with it, or None. Raises `Garbage` for an id that the vocabulary
        does not have."""
        if not 0 <= token_id < self._rules.vocabulary_tokens:
            raise Garbage(f"the id {token_id:,} is not in the vocabulary")
        self.ids.append(token_id)
        if token_id in self._own_ends:
            return TokenDelta(token_id, ""), FinishReason.STOP
        if token_id in self._asked_ends:
            self.cut_tokens = 1
            return TokenDelta(token_id, ""), FinishReason.STOP_STRING
        event = TokenDelta(token_id, self._text.push(token_id), self._told(logprobs))
        if self._text.stopped:
            self._cut_stop_string()
            return event, FinishReason.STOP_STRING
        if len(self.ids) >= self.new_tokens:
            is_full = self._room_tokens < self._max_new_tokens
            return event, FinishReason.CONTEXT if is_full else FinishReason.LENGTH
        return event, None

    def end_unasked(self) -> FinishReason:
        """The server stopped at a token that ends answers for it and not for the chat template: it is cut, if it came
        at all, so that the next turn closes the answer as the template does."""
        if self.ids and self._is_invisible(self.ids[-1]):
            self.cut_tokens = 1
        return FinishReason.STOP_STRING

    def tail(self) -> str:
        """The text that was held back and belongs to the answer after all."""
        return self._text.tail()

    @property
    def stop_string(self) -> str:
        """The one that ended it, "" if none did."""
        return self._text.stop_string

    def _is_invisible(self, token_id: int) -> bool:
        return not str(self._rules.tokenizer.decode([token_id], skip_special_tokens=True))

    def _cut_stop_string(self) -> None:
        """Where the stop string begins inside a token, the token's text before it gets ids of its own: the next turn
        must see what was shown, no less and no more. Only a vocabulary that cannot write that text keeps the token."""
        end = self._text.end
        whole = end.whole_tokens
        if end.part:
            before: Sequence[int] = [*self._prefix, *self.ids[:whole]]
            own_ids = ids_of_part(self._rules.tokenizer, before, end.part)
            self.part_ids = tuple(self.ids[whole : end.cut_tokens]) if own_ids is None else own_ids
        self.cut_tokens = len(self.ids) - whole

    def _told(self, found: IdLogprobs | None) -> TokenLogprobs | None:
        if self._wanted is None or found is None:
            return None
        return TokenLogprobs(self._one(found.chosen), tuple(self._one(other) for other in found.top[: self._wanted]))

    def _one(self, pair: tuple[int, float]) -> TokenLogprob:
        return TokenLogprob(str(self._rules.tokenizer.decode([pair[0]], skip_special_tokens=False)), pair[1])


def _salt(owner: str) -> str:
    """The same for all that belongs to one owner, who cannot be found from it; "" for none."""
    return blake2b(owner.encode(), digest_size=16, person=b"cache salt").hexdigest() if owner else ""
