"""What a turn cost, and what is said about it. Pure functions from the engine's last event to what is stored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from model_runtime.interface.chat import TurnTemplate
from model_runtime.interface.events import Finished, FinishReason
from sessions.ledger.ledger import Rewrite
from sessions.ledger.partings import other_branch
from sessions.memory.memory_records import Lease, Loss
from sessions.store.tables.losses import PENDING, Cause, SavedLoss
from sessions.store.tables.messages import INTERRUPTED_NOTE
from sessions.text import tokens
from sessions.turns.run import Run
from sessions.types import MessageStatus, MissReason, Parting, Receipt, Tier

_REASONS = {
    Cause.UNSAVED: MissReason.UNSAVED,
    Cause.NOT_SAVED: MissReason.NOT_SAVED,
    Cause.DISK_FULL: MissReason.DISK_FULL,
    Cause.DISK_OFF: MissReason.DISK_OFF,
    Cause.DISK_BUDGET: MissReason.DISK_BUDGET,
    Cause.CLOCK: MissReason.CLOCK,
    Cause.FILES_MISSING: MissReason.FILES_MISSING,
    Cause.CLEARED: MissReason.CLEARED,
    Cause.MOVED: MissReason.MOVED,
    Cause.REFUSED: MissReason.SNAPSHOT_REFUSED,
    Cause.BY_HAND: MissReason.EVICTED,
}


def outcome(run: Run, event: Finished, context_limit_tokens: int) -> tuple[MessageStatus, str]:
    """The answer's status, and its note: a sentence for a person, "" when there is nothing to say."""
    if run.failure is not None:
        return MessageStatus.FAILED, run.failure
    match event.reason:
        case FinishReason.FAILED:
            return MessageStatus.FAILED, event.error or "The model failed on this answer. Regenerate it to try again."
        case FinishReason.LOST:
            return MessageStatus.INTERRUPTED, event.error or INTERRUPTED_NOTE
        case FinishReason.ABORTED if run.stop_asked and not run.interrupted:
            return MessageStatus.STOPPED, "Stopped."
        case FinishReason.ABORTED:
            return MessageStatus.INTERRUPTED, INTERRUPTED_NOTE
        case FinishReason.LENGTH:
            limit = tokens(run.plan.sampling.max_new_tokens).replace(" token", " new token")
            return MessageStatus.COMPLETE, f"The answer reached the limit of {limit}."
        case FinishReason.CONTEXT:
            return MessageStatus.COMPLETE, (
                f"The conversation has reached the model's {context_limit_tokens:,}-token limit. "
                "Start a new one, or edit an earlier message."
            )
    return MessageStatus.COMPLETE, ""


def receipt(run: Run, event: Finished, estimate_read_s: Callable[[int, int], float]) -> Receipt | None:
    """None for an answer that never reached the engine."""
    lease, turn = run.lease, run.plan.turn
    if lease is None:
        return None
    reason, detail = _miss(run, lease, event)
    if event.reread_tokens:
        reason, detail = reason or MissReason.ROPE_CHANGED, f"{detail} {_grown(event)}".strip()
    whole = len(turn.ledger)
    parting, delta_tokens = _parting(run, event, reason), turn.delta_tokens
    if parting is not None and reason is None and run.plan.is_resent:
        reason, detail = MissReason.HISTORY_CHANGED, parting.sentence
        delta_tokens = event.fed_tokens - parting.again_tokens
    restored = run.restored
    ahead_tokens = _ahead_tokens(run, lease, event)
    # What was read ahead was read for this turn all the same: it saved waiting, not reading.
    kept_tokens = event.reused_tokens - ahead_tokens
    saved_s = estimate_read_s(0, whole) - estimate_read_s(kept_tokens, whole) - restored.seconds - run.shared_wait_s
    return Receipt(
        fed_tokens=event.fed_tokens,
        delta_tokens=delta_tokens,
        reused_tokens=event.reused_tokens,
        sampled_tokens=event.sampled_tokens,
        tier_before=_tier(run, lease),
        ttft_s=event.ttft_s if event.ttft_s is None else event.ttft_s + restored.seconds,
        waited_s=run.waited_s,
        prefill_s=event.prefill_s,
        decode_s=event.decode_s,
        # A turn that was stopped before its first token saved no one any time.
        saved_s=max(0.0, saved_s) if event.sampled_tokens else 0.0,
        miss_reason=reason,
        miss_detail=detail,
        restored_bytes=restored.size_bytes,
        restore_s=restored.seconds,
        choice=restored.choice,
        drafted_tokens=event.drafted_tokens,
        accepted_tokens=event.accepted_tokens,
        ahead_tokens=ahead_tokens,
        shared_tokens=_shared_tokens(run, event),
        shared_from=run.restored.shared.conversation_id if _shared_tokens(run, event) and run.restored.shared else "",
        shared_wait_s=run.shared_wait_s,
        parting=parting,
    )


def _parting(run: Run, event: Finished, reason: MissReason | None) -> Parting | None:
    """The planned one, with what it cost after all; None if that is nothing."""
    parting, turn = run.plan.parting, run.plan.turn
    if parting is None:
        return None
    if turn.rewrite is not None:
        again_tokens = event.fed_tokens - turn.delta_tokens if reason is turn.rewrite.reason else 0
    else:  # what is fed last is what stands in no other history
        fresh_tokens = len(turn.ledger) - parting.token - parting.again_tokens
        again_tokens = min(parting.again_tokens, event.fed_tokens - fresh_tokens)
    return replace(parting, again_tokens=again_tokens) if again_tokens > 0 else None


def with_branch(stored: Receipt, run: Run, template: TurnTemplate) -> Receipt:
    """The receipt with the place where the KV's other branch parts from this turn's."""
    if stored.miss_reason is not MissReason.BRANCH_SWITCHED or run.lease is None:
        return stored
    parting = other_branch(run.lease.held_ids, run.plan.turn.ledger, run.plan.outline, template)
    return replace(stored, parting=replace(parting, again_tokens=stored.fed_tokens - stored.delta_tokens))


def engine_receipt(run: Run, event: Finished, estimate_read_s: Callable[[int, int], float]) -> Receipt | None:
    """The receipt of a turn in a remote engine: what it reported, and nothing else. None for an answer that never
    reached it."""
    if run.lease is None:
        return None
    turn, reused = run.plan.turn, event.reused_tokens
    reason, detail = _engine_miss(run, event) if event.is_reuse_reported else (None, "")
    parting, delta_tokens = _parting(run, event, reason), turn.delta_tokens
    if parting is not None and reason is None and event.is_reuse_reported and run.plan.is_resent:
        reason, detail = MissReason.HISTORY_CHANGED, parting.sentence
        delta_tokens = event.fed_tokens - parting.again_tokens
    whole = len(turn.ledger)
    saved_s = estimate_read_s(0, whole) - estimate_read_s(reused, whole) - event.restore_s
    return Receipt(
        fed_tokens=event.fed_tokens,
        delta_tokens=delta_tokens,
        reused_tokens=reused,
        sampled_tokens=event.sampled_tokens,
        tier_before=Tier.ENGINE if reused else Tier.NONE,
        ttft_s=event.ttft_s,
        waited_s=run.waited_s,
        prefill_s=event.prefill_s,
        decode_s=event.decode_s,
        saved_s=max(0.0, saved_s) if event.sampled_tokens and reused else 0.0,
        miss_reason=reason,
        miss_detail=detail,
        is_reuse_reported=event.is_reuse_reported,
        restored_bytes=event.restored_bytes,
        restore_s=event.restore_s,
        choice=event.restore_note,
        parting=parting,
    )


def _engine_miss(run: Run, event: Finished) -> tuple[MissReason | None, str]:
    """Why more was read than the turn added, as far as it is known here: our own changes, else what the engine had."""
    turn = run.plan.turn
    again_tokens = event.fed_tokens - turn.delta_tokens
    if again_tokens <= 0 or not event.sampled_tokens:
        return None, ""
    again = f"so {tokens(again_tokens)} {'was' if again_tokens == 1 else 'were'} read again."
    kept_tokens = len(turn.ledger) - turn.delta_tokens
    had = f"the engine had {event.reused_tokens:,} of {tokens(kept_tokens)}"
    if turn.rewrite is not None:
        return _rewritten(run, turn.rewrite, again)
    if run.plan.change:
        return MissReason.MODEL_CHANGED, f"{_capitalised(run.plan.change)}: {had}, {again}"
    return MissReason.ENGINE_HELD_LESS, f"{_capitalised(had)}, {again}"


def _rewritten(run: Run, rewrite: Rewrite, again: str) -> tuple[MissReason, str]:
    match rewrite.reason:
        case MissReason.SYSTEM_PROMPT_CHANGED:
            return rewrite.reason, f"The system prompt was changed, {again}"
        case MissReason.TEMPLATE_VARIABLES_CHANGED:
            said = "Other values of the chat template's variables change what was written before"
            return rewrite.reason, f"{said}, {again}"
        case MissReason.MODEL_CHANGED:
            return rewrite.reason, f"{_capitalised(run.plan.change or 'the model was changed')}, {again}"
    said = f"The model's chat template rewrote history from token {rewrite.first_token + 1:,} on"
    return MissReason.TEMPLATE_REWROTE_HISTORY, f"{said}, {again}"


def _capitalised(clause: str) -> str:
    return f"{clause[0].upper()}{clause[1:]}"


def _ahead_tokens(run: Run, lease: Lease, event: Finished) -> int:
    if lease.ahead_from is None or run.restored.tokens:  # a restore begins with an empty KV
        return 0
    return max(0, event.reused_tokens - lease.ahead_from)


def _shared_tokens(run: Run, event: Finished) -> int:
    if run.restored.shared is None:
        return 0
    return max(0, min(event.reused_tokens, run.restored.shared.end_tokens) - run.restored.shared.start_tokens)


def _kept_tokens(run: Run, lease: Lease) -> int:
    """What the KV had from before, without what was read ahead or came from another conversation."""
    starts = (lease.ahead_from, run.restored.shared.start_tokens if run.restored.shared else None)
    return min(lease.held_tokens, *(start for start in starts if start is not None), lease.held_tokens)


def _tier(run: Run, lease: Lease) -> Tier:
    if run.restored.tokens and not run.restored.lender_id:
        return run.restored.tier
    return Tier.DEVICE if _kept_tokens(run, lease) else Tier.NONE


def _miss(run: Run, lease: Lease, event: Finished) -> tuple[MissReason | None, str]:
    turn = run.plan.turn
    again_tokens = event.fed_tokens - turn.delta_tokens
    if again_tokens <= 0:
        return None, ""
    again = f"so {tokens(again_tokens)} {'was' if again_tokens == 1 else 'were'} read again."
    reason = _reason(run, lease, event)
    if turn.rewrite is not None and reason is turn.rewrite.reason:
        return _rewritten(run, turn.rewrite, again)
    match reason:
        case MissReason.MODEL_CHANGED:
            return reason, f"{_capitalised(run.plan.change or 'the model was changed')}, {again}"
        case MissReason.UPGRADED:
            return reason, f"{run.plan.change}, {again}"
        case MissReason.SNAPSHOT_REFUSED:
            why = run.restored.refusal or (run.plan.loss.detail if run.plan.loss else "")
            return reason, f"Its memory on disk was refused ({why}), {again}"
        case MissReason.REREAD_CHEAPER:
            return reason, f"Reading was expected to be faster than restoring what is saved, {again}"
        case MissReason.EVICTED:
            return reason, f"Its memory {_how_dropped(lease)}, {again}"
        case MissReason.FILES_MISSING:
            return reason, f"The files of its saved memory were deleted by another program, {again}"
        case MissReason.RESTARTED:
            return reason, f"The server was restarted, {again}"
        case MissReason.EARLIER_FAILURE:
            return reason, f"An earlier answer ended before everything was in memory, {again}"
        case MissReason.ROPE_CHANGED:
            return reason, f"The model has other rotary frequencies for conversations of this length, {again}"
        case MissReason.FORKED:
            return reason, f"It begins like another conversation, whose memory could not be used, {again}"
        case MissReason.BRANCH_SWITCHED:
            return reason, f"Its memory held another branch from token {event.reused_tokens + 1:,} on, {again}"
    assert run.plan.loss is not None, "what is left is about saved memory"
    return reason, f"{_how_not_saved(run.plan.loss)}, {again}"


def _grown(event: Finished) -> str:
    was = "was" if event.reread_tokens == 1 else "were"
    return (
        "Within this answer the conversation passed the length from which the model uses other rotary frequencies, "
        f"so {tokens(event.reread_tokens)} {was} read again."
    )


def _how_not_saved(loss: SavedLoss) -> str:
    """What became of what a conversation saved, or should have saved."""
    match loss.cause:
        case Cause.UNSAVED:
            return "The server ended before its last turn was saved"
        case Cause.NOT_SAVED:
            return f"Its memory could not be saved ({loss.detail})"
        case Cause.DISK_FULL:
            return f"The disk was full when its memory was to be saved ({loss.detail})"
        case Cause.DISK_OFF:
            if loss.detail:
                return "Its saved memory is not read while the server runs with --disk-kv-budget 0"
            return "Its memory was not saved, because the server ran with --disk-kv-budget 0"
        case Cause.DISK_BUDGET:
            return f"Its saved memory was deleted to stay within the disk budget of {loss.detail} (--disk-kv-budget)"
        case Cause.CLOCK:
            return f"Its saved memory was deleted to stay within the disk budget of {loss.detail}"
        case Cause.CLEARED:
            return "Its saved memory was deleted with `keepwarm cache clear`"
        case Cause.MOVED:
            return "It came from another server without its saved memory (`keepwarm import --warm` brings it)"
        case _:
            return "Its saved memory is gone"


def _how_dropped(lease: Lease) -> str:
    match lease.loss:
        case Loss.DISAGREED:
            return "disagreed when it was verified"
        case Loss.ENGINE:
            return "was lost when the model stopped answering and was restarted"
        case Loss.BY_HAND:
            return "was dropped by hand"
        case Loss.FOR_ROOM:
            return "was dropped to make room"
        case _:  # before the server was restarted
            return "was dropped by hand"


def _reason(run: Run, lease: Lease, event: Finished) -> MissReason:
    rewrite = run.plan.turn.rewrite
    if rewrite is not None and not (rewrite.reason is MissReason.MODEL_CHANGED and _is_own_loss(run, lease)):
        return rewrite.reason
    if run.restored.refusal:
        return MissReason.FILES_MISSING if run.restored.is_gone else MissReason.SNAPSHOT_REFUSED
    if run.restored.is_reread_cheaper:
        return MissReason.REREAD_CHEAPER
    if event.is_rope_changed or run.restored.is_rope_changed:
        return MissReason.ROPE_CHANGED
    if _kept_tokens(run, lease) == 0:
        return _reason_of_nothing(run, lease)
    # All that the KV held was of use: it was short because an answer failed or was stopped while it was read.
    return MissReason.EARLIER_FAILURE if event.reused_tokens >= lease.held_tokens else MissReason.BRANCH_SWITCHED


def _is_own_loss(run: Run, lease: Lease) -> bool:
    """Whether something is missing of what this very model and these settings had saved, before another served."""
    return bool(run.restored.refusal) or (lease.is_new and run.plan.loss is not None)


def _reason_of_nothing(run: Run, lease: Lease) -> MissReason:
    """Why the device held nothing, and no lower tier had all of it."""
    loss = run.plan.loss
    if lease.loss is not None:
        # It left the device for room, or was parked, which costs nothing while the disk has it.
        is_disks = lease.loss in (Loss.FOR_ROOM, Loss.BY_HAND) and loss is not None and loss.cause not in PENDING
        return _REASONS[loss.cause] if loss is not None and is_disks else MissReason.EVICTED
    if run.plan.is_fork:
        return MissReason.FORKED
    if loss is not None and lease.is_new:
        return _REASONS[loss.cause]
    if run.plan.change:
        return MissReason.UPGRADED if run.plan.is_upgrade else MissReason.MODEL_CHANGED
    return MissReason.RESTARTED if lease.is_new else MissReason.EARLIER_FAILURE
