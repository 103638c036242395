"""The saved KVs: the segments in host memory, on disk and waiting to be written, as one set."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator, Sequence

from model_runtime.interface.errors import ModelRuntimeError
from model_runtime.interface.protocol import KV, Engine, Segment
from model_runtime.interface.segments import SegmentIdentity
from sessions.config import MIB
from sessions.memory.saved.chains import Chain, cut, longest_chain
from sessions.memory.saved.disk import Disk
from sessions.memory.saved.host import Host
from sessions.memory.saved.in_flight import InFlight
from sessions.types import Tier

log = logging.getLogger(__name__)

SEGMENT_BYTES = 32 * MIB  # size of a file; a restore can be stopped between two
STAGED_BYTES = 128 * MIB  # the most that is staged in memory at once


class SavedKVs:
    """Any thread except the engine's."""

    def __init__(self, engine: Engine, host: Host, disk: Disk) -> None:
        self.host = host
        self.disk = disk
        self.staged = InFlight()
        self.host_speed = host.speed
        self.disk_speed = disk.speed
        self._engine = engine
        self.limit_tokens = max(1, SEGMENT_BYTES // max(1, engine.segment_bytes(1)))

    @property
    def is_on(self) -> bool:
        return self.disk.budget_bytes > 0 or self.host.budget_bytes > 0

    @contextlib.contextmanager
    def using(self, conversation_id: str) -> Iterator[None]:
        """Inside, none of the conversation's segments is evicted to make room."""
        with self.host.using(conversation_id), self.disk.using(conversation_id):
            yield

    def chain(
        self,
        owner_id: str,
        conversation_id: str,
        ids: tuple[int, ...],
        limit_tokens: int | None = None,
        is_long_rope: bool = False,
    ) -> Chain:
        """The conversation's segments, in any tier, that hold most of `ids`, of one set of rotary frequencies."""
        in_memory = [*self.staged.of_conversation(conversation_id), *self.host.of_conversation(conversation_id)]
        if not in_memory:
            return self.disk.chain(owner_id, conversation_id, ids, limit_tokens, is_long_rope)
        rows = {s.key: s for s in self.disk.of_conversation(conversation_id)} | {s.key: s for s in in_memory}
        fingerprint = self.disk.fingerprint(owner_id, is_long_rope)
        return longest_chain(ids, rows.values(), fingerprint, self._ids_of, limit_tokens)

    def _ids_of(self, key: str) -> tuple[int, ...]:
        segment = self.host.get(key) or self.staged.get(key)
        return segment.identity.token_ids if segment is not None else self.disk.token_ids(key)

    def load(self, identity: SegmentIdentity) -> Segment:
        """Gets a segment from memory, or reads it from disk and checks it. Raises `SegmentRefused`."""
        return self.host.get(identity.key) or self.staged.get(identity.key) or self.disk.load(identity)

    def staged_together(self, identities: Iterable[SegmentIdentity]) -> list[list[SegmentIdentity]]:
        """Groups consecutive segments into runs that are staged at once."""
        runs: list[list[SegmentIdentity]] = []
        room_bytes = 0
        for identity in identities:
            size_bytes = self._engine.segment_bytes(len(identity.token_ids))
            if not runs or size_bytes > room_bytes:
                runs.append([])
                room_bytes = STAGED_BYTES
            runs[-1].append(identity)
            room_bytes -= size_bytes
        return runs

    def took(self, identities: Sequence[SegmentIdentity], tier: Tier, seconds: float) -> None:
        """Updates the measured speed of a tier after a restore of these segments. `seconds` excludes waiting for the
        engine's steps, which does not depend on the tier and which reading would have had to do as well. If the disk
        was needed too, the part from host memory is assumed to have taken its expected time."""
        if tier is Tier.HOST:
            self.host_speed.observe(self._bytes_of(identities), len(identities), seconds)
            return
        in_host = [i for i in identities if self.host.get(i.key) is not None]
        seconds -= self.host_speed.estimate_s(self._bytes_of(in_host), len(in_host))
        on_disk = [i for i in identities if self.host.get(i.key) is None]
        self.disk_speed.observe(self._bytes_of(on_disk), len(on_disk), max(0.0, seconds))

    def _bytes_of(self, identities: Iterable[SegmentIdentity]) -> int:
        return sum(self._engine.segment_bytes(len(identity.token_ids)) for identity in identities)

    def brought_back(self, conversation_id: str, chain: Chain, whole: bool) -> None:
        """Ends a restore. If the device now holds the whole chain, host memory drops its copy."""
        if whole:
            self.host.release(conversation_id, [identity.key for identity in chain.whole])
        self.disk.used_now(chain)

    def tier_of(self, chain: Chain) -> Tier:
        """The tier that a chain is restored from: DISK if any of it is on disk."""
        in_host = all(self.host.get(identity.key) is not None for identity in chain.identities)
        return Tier.HOST if in_host and chain.identities else Tier.DISK

    def declined(self, tier: Tier) -> None:
        """Records that a restore from this tier was not worth it."""
        (self.host_speed if tier is Tier.HOST else self.disk_speed).declined()

    def restore_s(self, chain: Chain) -> float:
        """The expected seconds to restore a whole chain."""
        host_bytes = disk_bytes = files = 0
        for identity in chain.identities:
            count_bytes = self._engine.segment_bytes(len(identity.token_ids))
            if self.host.get(identity.key) is not None:
                host_bytes += count_bytes
            else:
                disk_bytes, files = disk_bytes + count_bytes, files + 1
        in_host = len(chain.identities) - files
        return self.host_speed.estimate_s(host_bytes, in_host) + self.disk_speed.estimate_s(disk_bytes, files)

    def take(self, owner_id: str, conversation_id: str, kv: KV, ids: tuple[int, ...]) -> bool:
        """Copies a KV into host memory, all of it or nothing, cut into the same segments as on disk. False if it does
        not fit or the KV changed meanwhile. The caller frees the KV."""
        is_long, disk = kv.is_long_rope, self.disk
        chain = disk.chain(owner_id, conversation_id, ids, is_long_rope=is_long) if disk.budget_bytes else Chain()
        parent = chain.whole[-1] if chain.whole else None
        rest = cut(ids, parent, len(ids), self.limit_tokens, disk.fingerprint(owner_id, is_long))
        missing = [i for i in (*chain.whole, *rest) if not self.host.adopt(conversation_id, i.key)]
        sizes = [self._engine.segment_bytes(len(i.token_ids)) for i in missing]
        if not self.host.reserve(owner_id, conversation_id, sum(sizes)):
            return False
        put: list[str] = []
        try:
            for identity, size_bytes in zip(missing, sizes, strict=True):
                segment = self._engine.stage(kv, identity, before=ids[: identity.start_tokens])
                self.host.put(owner_id, conversation_id, segment, size_bytes)
                put.append(identity.key)
        except Exception as error:
            self.host.release(conversation_id, put)
            self.host.cancel(sum(sizes[len(put) :]))
            if isinstance(error, (ValueError, ModelRuntimeError)):
                log.info("kv_not_taken conversation=%s why=%s", conversation_id, error)
                return False
            raise
        return True

    def write_through(self, owner_id: str, conversation_id: str) -> bool:
        """Saves to disk the segments of a conversation that only host memory holds. False if some could not be saved.
        Raises `SegmentNotSaved` if there is no room."""
        on_disk = {s.key for s in self.disk.of_conversation(conversation_id)}
        for saved in self.host.of_conversation(conversation_id):
            segment = self.host.get(saved.key)
            if saved.key in on_disk or segment is None:
                continue
            if saved.parent_key and saved.parent_key not in on_disk:
                return False
            if not self.disk.adopt(owner_id, conversation_id, segment.identity) and not self.disk.save(
                owner_id, conversation_id, segment
            ):
                return False
            on_disk.add(saved.key)
        return True
