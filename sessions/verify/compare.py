"""Compares the copies of a conversation's memory with a fresh read, deletes the wrong ones, and says what was found.

It has no thread and reserves no device memory: the verifier does both, and `keepwarm doctor` needs neither.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

from model_runtime.interface.errors import SegmentRefused
from model_runtime.interface.findings import Comparison, Verification
from model_runtime.interface.protocol import KV, Engine, Segment
from model_runtime.interface.segments import SegmentIdentity
from sessions.memory.memory_records import Check
from sessions.memory.saved.chains import Chain, longest_chain
from sessions.memory.saved.disk import Disk
from sessions.memory.saved.host import Host
from sessions.memory.saved.saved_kvs import SavedKVs
from sessions.text import tokens

log = logging.getLogger(__name__)


class SavedCopy:
    """A chain's segments in one place ("on disk"), fetched one at a time. A segment that is refused or missing ends the
    iteration; `refusal` then says why it was refused. `discard` deletes a segment and everything behind it."""

    def __init__(
        self,
        place: str,
        chain: Chain,
        fetch: Callable[[SegmentIdentity], Segment | None],
        discard: Callable[[SegmentIdentity, SegmentRefused | str], None],
    ) -> None:
        self.place = place
        self.chain = chain
        self.refusal = ""
        self._why: SegmentRefused | str = "it disagreed when it was verified"
        self.bad: SegmentIdentity | None = None
        self._fetch = fetch
        self._discard = discard

    def __iter__(self) -> Iterator[Segment]:
        for identity in self.chain.identities:
            try:
                segment = self._fetch(identity)
            except SegmentRefused as error:
                self.bad, self.refusal, self._why = identity, str(error), error
                return
            if segment is None:
                return
            yield segment

    def judge(self, comparison: Comparison, logits_agree: bool) -> None:
        """Deletes what cannot be trusted. `logits_agree` is about this copy, or True."""
        position = comparison.first_bad_token
        if position is None and not logits_agree:  # each row passed alone, but together they do not
            position = 0
        if position is not None:
            self.bad = next(i for i in self.chain.identities if i.end_tokens > position)
        if self.bad is not None:
            self._discard(self.bad, self._why)

    @property
    def trouble(self) -> str:
        """What is wrong with the copy, as a clause; "" for nothing."""
        if self.refusal:
            return f"its copy {self.place} was refused and deleted: {self.refusal}"
        if self.bad is not None:
            return f"its copy {self.place} was wrong from token {self.bad.start_tokens + 1:,} on and was deleted"
        return ""


def saved_with_long_rope(place: Disk | SavedKVs, owner_id: str, conversation_id: str, ids: tuple[int, ...]) -> bool:
    """Whether more of these ids is saved with the long frequencies of long RoPE than with the short ones."""
    short, long = (
        place.chain(owner_id, conversation_id, ids, is_long_rope=is_long).useful_tokens for is_long in (False, True)
    )
    return long > short


def disk_copy(disk: Disk, owner_id: str, conversation_id: str, ids: tuple[int, ...], is_long_rope: bool) -> SavedCopy:
    """The copy of these ids on disk, with one set of rotary frequencies."""
    chain = disk.chain(owner_id, conversation_id, ids, is_long_rope=is_long_rope)
    return SavedCopy("on disk", chain, disk.load, disk.discard)


def host_copy(
    host: Host, disk: Disk, owner_id: str, conversation_id: str, ids: tuple[int, ...], is_long_rope: bool
) -> SavedCopy:
    """The copy of these ids in host memory."""

    def ids_of(key: str) -> tuple[int, ...]:
        segment = host.get(key)
        return segment.identity.token_ids if segment is not None else ()

    def discard(bad: SegmentIdentity, why: SegmentRefused | str) -> None:
        host.discard([i.key for i in chain.identities if i.start_tokens >= bad.start_tokens])

    rows = host.of_conversation(conversation_id)
    chain = longest_chain(ids, rows, disk.fingerprint(owner_id, is_long_rope), ids_of)
    return SavedCopy("in host memory", chain, lambda identity: host.get(identity.key), discard)


def check(
    engine: Engine,
    conversation_id: str,
    ledger: tuple[int, ...],
    saved: Sequence[SavedCopy],
    held: KV | None,
    scratch: KV,
    must_stop: Callable[[], bool],
    is_long_rope: bool,
) -> Check | None:
    """Reads `ledger` again into `scratch`, and compares `held` (on the device) and the saved copies with it. A saved
    copy that disagrees or is refused is deleted. None when `must_stop` stopped it. Raises `ModelRuntimeError`."""
    copies: list[KV | Iterable[Segment]] = [*saved]
    if held is not None:
        copies.append(held)
    found = engine.verify(scratch, ledger, copies, must_stop, is_long_rope)
    if found is None:
        return None
    for number, copy in enumerate(saved):
        copy.judge(found.copies[number], number + 1 < len(copies) or found.logits_agree)
    device_is_bad = held is not None and not (found.copies[-1].agrees and found.logits_agree)
    troubles = [copy.trouble for copy in saved if copy.trouble]
    log.info(
        "kv_verified conversation=%s tokens=%d logit_difference=%.3g nll_gap=%.3g agrees=%s refusals=%d",
        *(conversation_id, found.tokens, found.logit_difference, found.nll_gap, found.agrees, len(troubles)),
    )
    return Check(
        at=time.time(),
        sentence=_sentence(found, troubles, held is not None, device_is_bad),
        agrees=not (device_is_bad or troubles),
        tokens=found.tokens,
        logit_difference=found.logit_difference,
        nll_gap=found.nll_gap,
        device_is_bad=device_is_bad,
    )


def _sentence(found: Verification, troubles: list[str], is_held: bool, device_is_bad: bool) -> str:
    numbers = f"largest logit difference {found.logit_difference:.2g}, NLL gap {abs(found.nll_gap):.2g}"
    clauses = [*troubles]
    if device_is_bad:
        first = found.copies[-1].first_bad_token
        where = "" if first is None else f" from token {first + 1:,} on"
        clauses.insert(0, f"its memory on the device was wrong{where} and was dropped")
    elif is_held and troubles:
        clauses.append("its copy on the device is correct")
    return f"{'; '.join(clauses) or 'its memory is correct'} ({tokens(found.tokens)} read again, {numbers})"
