"""One generation inside the engine, from its first id to its last token."""

from __future__ import annotations

import time
from collections import abc
from collections.abc import Callable, Container
from itertools import islice

import torch
from tokenizers import Tokenizer

from model_runtime.decoding.lookup import Drafter, StepWorth
from model_runtime.decoding.sampling import Sampler, are_numbers, logprobs_of
from model_runtime.engine.work import Work
from model_runtime.forward.picked_ids import PickedIds
from model_runtime.interface.errors import NotNumbers
from model_runtime.interface.events import (
    Finished,
    FinishReason,
    Listener,
    TokenDelta,
    TokenLogprobs,
)
from model_runtime.interface.protocol import GenerationRequest
from model_runtime.kv.slab import KVSlab
from model_runtime.text.text_stream import TextStream
from model_runtime.text.token_part import ids_of_part


class RunningGeneration(Work):
    """One answer while it is generated: what is still to be read, what was sampled, and when. `stop_strings` are the
    model's own and end it besides those of the request."""

    def __init__(
        self,
        request: GenerationRequest,
        slab: KVSlab,
        listener: Listener,
        tokenizer: Tokenizer,
        stop_strings: tuple[str, ...] = (),
    ) -> None:
        super().__init__(request.ledger, slab, listener)
        self.request = request
        self._first_token_at: float | None = None
        self._sampled: list[int] = []
        self._drafter: Drafter | None = None
        self._draft: list[int] = []
        self._drafted_tokens = 0
        self._accepted_tokens = 0
        self._reread_tokens = 0
        self._tokenizer = tokenizer
        ledger, sampling = request.ledger, request.sampling
        self._sampler = Sampler(sampling, ledger, slab.device)
        self._prefix = ledger[len(ledger) - request.answer_prefix_tokens :]
        self._text = TextStream(tokenizer, (*sampling.stop_strings, *stop_strings), self._prefix)
        self._room_tokens = 0
        self._cut_tokens = 0
        self._part_ids: tuple[int, ...] = ()

    def begin(self, context_limit_tokens: int) -> None:
        """Reserves room for the longest answer. The last id is always fed, because its logits are needed."""
        self._room_tokens = min(len(self.ledger) + self.request.sampling.max_new_tokens, context_limit_tokens)
        self._crop_and_reserve(self.ledger[:-1], self._room_tokens)

    @property
    def is_idle(self) -> bool:
        return self.request.is_idle

    @property
    def has_sampled(self) -> bool:
        return bool(self._sampled)

    @property
    def is_decoding(self) -> bool:
        """Not while it is read again with other frequencies."""
        return bool(self._sampled) and not (self._reread_tokens and len(self._unfed) > 1)

    @property
    def fairness_key(self) -> str:
        return self.request.fairness_key

    def draft(self, context_limit_tokens: int, worth: StepWorth | None) -> None:
        """While decoding: drafts what follows the pending token, for the next forward to check. A draft never exceeds
        the answer's limit or the context's, so the KV never outgrows its reservation; nor the length up to which its
        rotary frequencies are right."""
        if self._text.stopped:
            return
        if self._drafter is None:
            self._drafter = Drafter([*self.request.ledger, *self._sampled])
        of_answer = self.request.sampling.max_new_tokens - len(self._sampled) - 1
        of_context = context_limit_tokens - self.slab.length_tokens - 2
        room_tokens = self.slab.short_room_tokens
        of_rope = of_context if room_tokens is None else room_tokens - 1
        self._draft = self._drafter.draft(min(of_answer, of_context, of_rope), worth)

    @property
    def has_draft(self) -> bool:
        return bool(self._draft)

    def drop_draft(self) -> None:
        """Discards the draft: the next step does not check it."""
        self._draft = []

    @property
    def ends_with_next(self) -> bool:
        """Whether the next token is the last one, whatever it is."""
        return len(self._sampled) + 1 >= self.request.sampling.max_new_tokens

    def next_ids(self, tokens: int) -> list[int]:
        """The next `tokens` ids to feed, followed by the draft."""
        return [*self._unfed[:tokens], *self._draft]

    def logit_rows(self, tokens: int) -> int:
        """How many rows of logits a step that feeds `tokens` ids must return: one per token that may be sampled."""
        is_sampling = tokens == len(self._unfed) and not self._text.stopped
        return 1 + len(self._draft) if is_sampling else 0

    def pick(self, logits: torch.Tensor) -> torch.Tensor:
        """Chooses ids on the device for the first of the rows that `sample` receives next: int64 `(ids,)`, possibly
        empty. Does not wait for the device."""
        if self._sampler.is_greedy:
            return logits.argmax(dim=-1)
        if self.request.sampling.top_logprobs is not None:
            return logits.new_empty(0, dtype=torch.int64)  # log-probabilities need the logits before these are changed
        return self._sampler.pick(logits[0])[None]

    def sample(
        self,
        logits: torch.Tensor,
        picked: abc.Sequence[int],
        are_numbers: abc.Sequence[bool],
        stop_token_ids: Container[int],
        context_limit_tokens: int,
    ) -> None:
        """Samples a token from float32 `logits (1 + drafted, vocabulary)`, and a further one for as long as the draft
        matches; crops the KV rows of the rest of the draft, and finishes when the answer ends. `picked` are the ids
        that `pick` chose. Raises `NotNumbers` at a row with NaN or infinity, and crops the KV rows it came from.

        Every token is the sampler's own draw from the model's logits after exactly the tokens before it. So the answer
        equals the one without a draft; with a seed it is identical.
        """
        draft, self._draft = self._draft, []
        kv_tokens = self.slab.length_tokens - len(draft)
        reason, sampled = None, []
        try:
            ids = [*picked, *(None,) * (len(logits) - len(picked))]
            for row, own_id, guess, is_number in zip(logits, ids, [*draft, None], are_numbers, strict=True):
                if not is_number:
                    raise NotNumbers
                token_id, told = self._choose(row, own_id)
                sampled.append(token_id)
                reason = self._take(token_id, told, stop_token_ids)
                if reason is None and kv_tokens + len(sampled) >= context_limit_tokens:
                    reason = FinishReason.CONTEXT
                if reason is not None or token_id != guess:
                    break
        except NotNumbers:
            self.slab.crop_to_numbers(kv_tokens + len(sampled) - 1)
            raise
        finally:
            self.slab.crop(kv_tokens + max(0, len(sampled) - 1))
        self._drafted_tokens += len(draft)
        self._accepted_tokens += len(sampled) - 1
        if self._drafter is not None:
            self._drafter.sampled(sampled)
        self._unfed.append(sampled[-1])
        if reason is FinishReason.STOP_STRING:
            self._cut_stop_string()
        elif reason is not None:
            self.finish(reason)
        elif self.slab.short_room_tokens == 0:
            self._read_again()

    def _read_again(self) -> None:
        """The next row needs long RoPE's long frequencies, so do all before it: they are dropped and fed once more, as
        transformers' `generate` does (Phi-3's `prepare_inputs_for_generation`)."""
        self._unfed = [*self.ledger, *self._sampled]
        self.slab.use_rope_for(len(self._unfed))
        self._reread_tokens = len(self._unfed) - 1

    def _cut_stop_string(self) -> None:
        """Ends the answer's ids where its text ends, and its KV one id before that, as after every answer.

        Where the stop string begins inside a token, the token's text before it gets ids of its own: the next turn must
        see what was shown, no less and no more. All of them but the last are fed before the answer finishes. Only a
        vocabulary that cannot write that text keeps the whole token.
        """
        end = self._text.end
        whole = end.whole_tokens
        if end.part:
            own_ids = ids_of_part(self._tokenizer, [*self._prefix, *self._sampled[:whole]], end.part)
            self._part_ids = tuple(self._sampled[whole : end.cut_tokens]) if own_ids is None else own_ids
        self._cut_tokens = len(self._sampled) - whole
        kept_tokens = len(self.ledger) + whole
        self.slab.crop(kept_tokens if self._part_ids else kept_tokens - 1)
        unfed = list(self._part_ids[:-1])
        has_room = kept_tokens + len(self._part_ids) <= self._room_tokens and self.slab.holds_with_rope(len(unfed))
        self._unfed = unfed if has_room else []
        if not self._unfed:
            self.finish(FinishReason.STOP_STRING)

    def fed(self, tokens: int) -> None:
        """Also finishes once all but the last id of an answer that a stop string ended is fed."""
        super().fed(tokens)
        if self._text.stopped and not self._unfed:
            self.finish(FinishReason.STOP_STRING)

    def _choose(self, logits: torch.Tensor, picked: int | None) -> tuple[int, TokenLogprobs | None]:
        wanted = self.request.sampling.top_logprobs
        logprobs = None if wanted is None else torch.log_softmax(logits, dim=-1)  # before the sampler changes them
        token_id = self._sampler.choose(logits) if picked is None else picked
        if picked is not None:
            self._sampler.took(picked)
        if wanted is None or logprobs is None:
            return token_id, None
        return token_id, logprobs_of(logprobs, token_id, wanted, self._token_text)

    def _take(self, token_id: int, told: TokenLogprobs | None, stop_token_ids: Container[int]) -> FinishReason | None:
        """Counts and emits one token. Returns why the answer ends with it, or None."""
        self._sampled.append(token_id)
        if self._first_token_at is None:
            self._first_token_at = time.perf_counter()
        if token_id in stop_token_ids:
            # It is not part of the text, so its probability is not reported.
            self._emit(TokenDelta(token_id, ""))
            return FinishReason.STOP
        self._emit(TokenDelta(token_id, self._text.push(token_id), told))
        if self._text.stopped:
            return FinishReason.STOP_STRING
        is_last = len(self._sampled) >= self.request.sampling.max_new_tokens
        return FinishReason.LENGTH if is_last else None

    def _summary(self, reason: FinishReason, error: str | None) -> Finished:
        now = time.perf_counter()
        first = self._first_token_at
        is_complete = self._cut_tokens > 0  # whatever became of its last rows
        return Finished(
            reason=FinishReason.STOP_STRING if is_complete else reason,
            fed_tokens=self._fed_tokens,
            reused_tokens=self._reused_tokens,
            sampled_tokens=len(self._sampled),
            ttft_s=None if first is None else first - self._submitted_at,
            prefill_s=(first or now) - self._submitted_at,
            decode_s=0.0 if first is None else now - first,
            text_tail=self._text.tail(),
            drafted_tokens=self._drafted_tokens,
            accepted_tokens=self._accepted_tokens,
            error=None if is_complete else error,
            cut_tokens=self._cut_tokens,
            part_ids=self._part_ids,
            is_rope_changed=self._is_rope_changed,
            reread_tokens=self._reread_tokens,
        )

    def _token_text(self, token_id: int) -> str:
        return str(self._tokenizer.decode([token_id], skip_special_tokens=False))


def sample_together(
    rows: abc.Sequence[tuple[RunningGeneration, torch.Tensor]],
    stop_token_ids: Container[int],
    context_limit_tokens: int,
    on_error: Callable[[RunningGeneration, Exception], None],
    on_picked: Callable[[abc.Sequence[RunningGeneration], PickedIds], None] = lambda sequences, picked_ids: None,
) -> None:
    """Samples the next tokens of all generations from their rows of a step's logits; generations without rows are
    skipped. The host waits for the device once, for all ids that the device could choose. `on_picked` is called before
    that wait if every generation has one row and the device chose all ids: the logits are then no longer needed."""
    picked_ids: list[tuple[RunningGeneration, torch.Tensor, torch.Tensor]] = []
    numbers: list[torch.Tensor] = []
    for sequence, logits in rows:
        if len(logits):
            try:
                is_number = are_numbers(logits)  # before the sampler changes them
                picked_ids.append((sequence, logits, sequence.pick(logits)))
                numbers.append(is_number)
            except Exception as error:
                on_error(sequence, error)
    if not picked_ids:
        return
    try:
        chosen = PickedIds(torch.cat([pick for _, _, pick in picked_ids]), torch.cat(numbers))
        if all(len(logits) == len(pick) == 1 for _, logits, pick in picked_ids):
            on_picked([sequence for sequence, _, _ in picked_ids], chosen)
        ids, flags = iter(chosen.on_host), iter(chosen.are_numbers)
    except Exception as error:
        for sequence, _, _ in picked_ids:
            on_error(sequence, error)
        return
    for sequence, logits, pick in picked_ids:
        own_ids, own_flags = list(islice(ids, len(pick))), list(islice(flags, len(logits)))
        try:
            sequence.sample(logits, own_ids, own_flags, stop_token_ids, context_limit_tokens)
        except Exception as error:
            on_error(sequence, error)
