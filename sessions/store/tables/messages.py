"""The messages of all conversations: one tree per conversation, whose paths are ledgers.

Invariant: a path alternates between user nodes and answers, and every user node has at least one answer below it, so a
conversation's leaf is always an answer. Nothing in the tree is overwritten except the answer that is running.

An answer that goes on from another is a node of its own beside it, which begins with its ids. Both are parts of one
version: the earlier part is shown only if the later one failed, or if something was built upon it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import sqlite_utils

from model_runtime.interface.events import FinishReason
from sessions.errors import ConversationNotFound
from sessions.store import message_json
from sessions.store.database import BUSY_TIMEOUT_S, Database
from sessions.store.records import NewMessages, Node, NodeIds, pack, unpack
from sessions.store.tables.added_items import take_in
from sessions.store.tables.history_hashes import insert_history_hash
from sessions.store.tables.losses import Cause, turn_begins, turn_ends
from sessions.store.tables.responses import insert_response
from sessions.types import SYSTEM_ROLES, MessageStatus, MessageView, MissReason, Parting, Receipt, Section, Tier

# Numbers the turns of all conversations: a conversation's last number tells the order of use, whatever the clock did.
NEXT_TURN = "(SELECT coalesce(max(turn_number), 0) + 1 FROM conversations)"
INTERRUPTED_NOTE = "The server stopped while this answer was being written. Continue it, or regenerate it."

_PATH = """
    WITH RECURSIVE path(id, parent_id, depth) AS (
        SELECT id, parent_id, 0 FROM messages WHERE id = :leaf
        UNION ALL
        SELECT m.id, m.parent_id, depth + 1 FROM messages m JOIN path p ON m.id = p.parent_id
    ) """
# Whether `s` is a version of its own, and not a part that was gone on from. Its place is that of its first part.
_IS_VERSION = """ (NOT EXISTS (SELECT 1 FROM messages later WHERE later.first_part_id = coalesce(s.first_part_id, s.id)
        AND later.id > s.id AND later.status != 'failed')
    OR EXISTS (SELECT 1 FROM messages below WHERE below.parent_id = s.id)) """
_VERSIONS = (
    " FROM messages s WHERE s.conversation_id = m.conversation_id AND s.parent_id IS m.parent_id AND" + _IS_VERSION
)
_SIBLINGS = (
    f" (SELECT count(*) {_VERSIONS}) AS sibling_count,"
    f" (SELECT count(*) {_VERSIONS} AND (coalesce(s.first_part_id, s.id), s.id)"
    " <= (coalesce(m.first_part_id, m.id), m.id)) AS sibling_number "
)
# What a person changes meanwhile stays.
_SETTINGS_OF_A_TURN = """UPDATE conversations SET
    settings = json_set(settings, '$.system_prompt', ?, '$.template_variables', ?) WHERE id = ?"""
_SHARED = "(SELECT o.title FROM conversations o WHERE o.id = r.shared_from) AS shared_title"
_KEPT_GONE = (  # an id that is "" is the receipt's own conversation's
    "CASE WHEN r.parting = '' OR ifnull(json_extract(r.parting, '$.kept_id'), '') = '' THEN 0"
    " ELSE NOT EXISTS (SELECT 1 FROM conversations o WHERE o.id = json_extract(r.parting, '$.kept_id')) END"
    " AS is_kept_gone"
)
_VERSIONS_OF = (
    "SELECT s.id, coalesce(s.first_part_id, s.id) AS first FROM messages s WHERE s.parent_id IS ?"  # noqa: S608
    f" AND s.conversation_id = ? AND {_IS_VERSION} ORDER BY first, s.id"
)
_OWN = "m.id, m.first_part_id, m.role, m.text, m.status, m.finish_reason, m.note"
_PARTS = "CASE m.role WHEN 'user' THEN (SELECT l.parts FROM message_links l WHERE l.message_id = m.id) END AS parts"
_VIEW = f" SELECT {_OWN}, {_PARTS}, r.*, {_SHARED}, {_KEPT_GONE}, {_SIBLINGS} FROM "  # noqa: S608
_VIEW_OF_PATH = (
    _PATH + _VIEW + "path JOIN messages m ON m.id = path.id LEFT JOIN receipts r ON r.message_id = m.id"
    " ORDER BY path.depth DESC"
)
_VIEW_OF_ONE = _VIEW + "messages m LEFT JOIN receipts r ON r.message_id = m.id WHERE m.id = ?"
_NODE = (
    "SELECT m.id, m.parent_id, m.role, m.text, m.status, m.finish_reason, m.ledger_start, m.token_ids,"
    " m.preamble_tokens, m.system_prompt, m.template_variables, m.tokenizer_fingerprint, m.model_name,"
    " l.link, l.parts, l.tools FROM "
)
_LINKED = " LEFT JOIN message_links l ON l.message_id = m.id "
_NODES_OF_PATH = f"{_PATH}{_NODE}path JOIN messages m ON m.id = path.id{_LINKED}ORDER BY path.depth DESC"
_PARENT = "(SELECT parent_id FROM messages WHERE id = :leaf)"
_LAST_NODES = f"{_NODE}messages m{_LINKED}WHERE m.id IN (:leaf, {_PARENT}) ORDER BY m.id"
_TURN_TAKEN = f"""
    UPDATE conversations SET leaf_id = ?, updated_at = ?, numerics = ?, turn_number = {NEXT_TURN},
        origin = CASE WHEN ? THEN 'page' WHEN leaf_id IS NULL OR origin = 'page' THEN origin ELSE 'program' END,
        title_by = CASE title WHEN '' THEN 'first words' ELSE title_by END,
        title = CASE title WHEN '' THEN ? ELSE title END WHERE id = ?"""  # noqa: S608
_GOES_ON = """
    UPDATE messages SET first_part_id = (SELECT coalesce(first_part_id, id) FROM messages WHERE id = ?) WHERE id = ?"""
_RECEIPT_FIELDS = tuple(Receipt.__dataclass_fields__)


class MessageTable:
    """Every method is one transaction and raises `StoreError` when the file fails."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def path(self, leaf_id: int | None) -> tuple[Node, ...]:
        """The nodes from the root to `leaf_id`, ids included; () for None."""
        if leaf_id is None:
            return ()
        with self._database.read() as db:
            # Every turn begins here, and sqlite-utils' dictionaries take longer than the query.
            return tuple(map(_node, db.execute(_NODES_OF_PATH, {"leaf": leaf_id})))

    def last_nodes(self, leaf_id: int) -> tuple[Node, ...]:
        """The end of the path to `leaf_id`: that node, and before it the one above it, if there is one."""
        with self._database.read() as db:
            return tuple(map(_node, db.execute(_LAST_NODES, {"leaf": leaf_id})))

    def views(self, leaf_id: int | None) -> tuple[MessageView, ...]:
        """The messages from the root to `leaf_id`, as the page shows them. Decodes no token ids."""
        if leaf_id is None:
            return ()
        with self._database.read() as db:
            return tuple(_view(row) for row in db.query(_VIEW_OF_PATH, {"leaf": leaf_id}))

    def view(self, message_id: int) -> MessageView:
        """One message. Raises `ConversationNotFound` if it was deleted."""
        with self._database.read() as db:
            row = next(db.query(_VIEW_OF_ONE, [message_id]), None)
        if row is None:
            raise ConversationNotFound("This message was deleted.")
        return _view(row)

    def parent_of(self, conversation_id: str, message_id: int, role: str) -> int | None:
        """The parent of a message. Raises `ConversationNotFound` unless it is in this conversation and has this
        role."""
        with self._database.read() as db:
            row = _member(db, conversation_id, message_id)
        if row["role"] != role:
            raise ConversationNotFound(f"This is not a message of the {role}.")
        return row["parent_id"]  # type: ignore[no-any-return]

    def begin_turn(self, new: NewMessages, unsaved_cause: Cause = Cause.UNSAVED) -> int:
        """Stores the messages of a turn. The answer is running, and becomes the conversation's leaf. Returns the
        answer's id. Raises `ConversationBusy` unless `new.taken_in` are all added items that wait."""
        now, conversation_id, parent_id = time.time(), new.conversation_id, new.parent_id
        common = {
            "conversation_id": conversation_id,
            "created_at": now,
            "last_used_at": now,
            "tokenizer_fingerprint": new.tokenizer_fingerprint,
            "model_name": new.model_name,
        }
        with self._database.write() as db:
            take_in(db, conversation_id, new.taken_in)
            common["last_used_at"] = _later(db, conversation_id)
            for node in new.history:
                parent_id = _insert_known(db, common, parent_id, node)
            if new.user is not None:
                parent_id = _insert(db, common, parent_id, "user", MessageStatus.COMPLETE, *new.user)
                insert_history_hash(
                    db, parent_id, conversation_id, new.user_history_hash, new.user_parts, new.user_tools
                )
            answer_id = _insert(db, common, parent_id, "assistant", MessageStatus.RUNNING, *new.answer)
            if new.settings is not None:
                own = [new.settings.system_prompt, new.settings.template_variables]
                db.execute(_SETTINGS_OF_A_TURN, [*own, conversation_id])
            if new.system_items is not None:
                sql = "UPDATE conversations SET system_items = ? WHERE id = ?"
                db.execute(sql, [new.system_items, conversation_id])
            if new.response is not None:
                insert_response(db, *new.response, answer_id)
            if new.continued_id is not None:
                db.execute(_GOES_ON, [new.continued_id, answer_id])
            db.execute(
                _TURN_TAKEN,
                [answer_id, now, new.numerics, new.is_by_person, new.first_title, conversation_id],
            )
            turn_begins(db, conversation_id, new.numerics, answer_id, unsaved_cause)
        return answer_id

    def checkpoint(
        self, message_id: int, text: str, token_ids: Sequence[int], patience_s: float = BUSY_TIMEOUT_S
    ) -> None:
        """Stores what a running answer has so far. `token_ids` are all ids of the node."""
        with self._database.write(patience_s) as db:
            db.execute(
                "UPDATE messages SET text = ?, token_ids = ? WHERE id = ? AND status = 'running'",
                [text, pack(token_ids), message_id],
            )

    def finish_answer(
        self,
        message_id: int,
        text: str,
        token_ids: Sequence[int],
        status: MessageStatus,
        finish_reason: FinishReason,
        note: str,
        receipt: Receipt | None,
        history_hash: str = "",
        unsaved_cause: Cause = Cause.UNSAVED,
        patience_s: float = BUSY_TIMEOUT_S,
    ) -> None:
        """Stores the answer, its ids, its history hash, its receipt and the owner's totals. Does nothing if the answer
        is not running: it was deleted, or is already stored."""
        with self._database.write(patience_s) as db:
            cursor = db.execute(
                "UPDATE messages SET text = ?, token_ids = ?, status = ?, finish_reason = ?, note = ?"
                " WHERE id = ? AND status = 'running'",
                [text, pack(token_ids), status, finish_reason, note, message_id],
            )
            if not cursor.rowcount:
                return
            turn_ends(db, message_id, unsaved_cause)
            if history_hash:
                sql = "SELECT conversation_id FROM messages WHERE id = ?"
                if found := db.execute(sql, [message_id]).fetchone():
                    insert_history_hash(db, message_id, str(found[0]), history_hash, "")
            if receipt is not None:
                db["receipts"].insert({"message_id": message_id, **_stored(receipt)})
                db.execute(
                    "UPDATE users SET saved_s_total = saved_s_total + ?, reused_tokens_total = reused_tokens_total + ?"
                    " WHERE id = (SELECT c.owner_id FROM messages m JOIN conversations c ON c.id = m.conversation_id"
                    " WHERE m.id = ?)",
                    [receipt.saved_s, receipt.reused_tokens - receipt.ahead_tokens, message_id],
                )

    def interrupt_running(self) -> int:
        """Marks the answers that an earlier process left running as interrupted; their stored part stays. Returns how
        many there were."""
        with self._database.write() as db:
            cursor = db.execute(
                "UPDATE messages SET status = 'interrupted', note = ? WHERE status = 'running'", [INTERRUPTED_NOTE]
            )
            return int(cursor.rowcount)

    def switch(self, conversation_id: str, message_id: int, step: int) -> None:
        """Makes the sibling `step` places from `message_id` current, with the path below it that was used last. Stops
        at the first and the last sibling. Raises `ConversationNotFound` for a message of another conversation."""
        with self._database.write() as db:
            member = _member(db, conversation_id, message_id)
            versions = list(db.execute(_VERSIONS_OF, [member["parent_id"], conversation_id]))
            # A page may still show a part that was gone on from elsewhere.
            places = [n for n, (other, first) in enumerate(versions) if member["first"] == first or message_id == other]
            place = next((n for n in places if versions[n][0] == message_id), places[-1])
            chosen = int(versions[min(max(place + step, 0), len(versions) - 1)][0])
            now = _later(db, conversation_id)
            db.execute("UPDATE messages SET last_used_at = ? WHERE id = ?", [now, chosen])
            db.execute("UPDATE conversations SET leaf_id = ? WHERE id = ?", [_leaf_below(db, chosen), conversation_id])


def _later(db: sqlite_utils.Database, conversation_id: str) -> float:
    """Now, or just after the conversation's last use: the clock may have been set back since."""
    sql = "SELECT max(last_used_at) FROM messages WHERE conversation_id = ?"
    return max(time.time(), (db.execute(sql, [conversation_id]).fetchone()[0] or 0.0) + 1e-3)


def _member(db: sqlite_utils.Database, conversation_id: str, message_id: int) -> dict[str, Any]:
    row: dict[str, Any] | None = None
    if isinstance(message_id, int) and 0 < message_id < 2**63:
        sql = (
            "SELECT parent_id, role, coalesce(first_part_id, id) AS first FROM messages"
            " WHERE id = ? AND conversation_id = ?"
        )
        row = next(db.query(sql, [message_id, conversation_id]), None)
    if row is None:
        raise ConversationNotFound("This message does not exist in this conversation.")
    return row


def _leaf_below(db: sqlite_utils.Database, message_id: int) -> int:
    sql = "SELECT id FROM messages WHERE parent_id = ? ORDER BY last_used_at DESC, id DESC LIMIT 1"
    while child := db.execute(sql, [message_id]).fetchone():
        message_id = int(child[0])
    return message_id


def _insert(
    db: sqlite_utils.Database,
    common: dict[str, Any],
    parent_id: int | None,
    role: str,
    status: MessageStatus,
    text: str,
    ids: NodeIds,
) -> int:
    own = {
        "parent_id": parent_id,
        "role": role,
        "status": status,
        "text": text,
        "ledger_start": ids.ledger_start,
        "preamble_tokens": ids.preamble_tokens,
        "system_prompt": ids.system_prompt,
        "template_variables": ids.template_variables,
        "token_ids": pack(ids.token_ids),
    }
    row = {
        **common,
        **own,
    }  # sqlite-utils would first ask what the table looks like, which takes longer than the insert
    sql = f"INSERT INTO messages ({', '.join(row)}) VALUES ({', '.join('?' * len(row))})"  # noqa: S608
    return int(db.execute(sql, list(row.values())).lastrowid)


def _insert_known(db: sqlite_utils.Database, common: dict[str, Any], parent_id: int | None, node: Node) -> int:
    """Inserts a node of an earlier history: a copy from another conversation, or messages that a client sent."""
    origin = {
        "tokenizer_fingerprint": node.tokenizer_fingerprint,
        "model_name": node.model_name,
        "finish_reason": node.finish_reason,
    }
    message_id = _insert(db, {**common, **origin}, parent_id, node.role, node.status, node.text, node.ids)
    insert_history_hash(db, message_id, common["conversation_id"], node.history_hash, node.parts, node.tools)
    return message_id


def _node(row: Sequence[Any]) -> Node:
    (
        message_id, parent_id, role, text, status, reason, start, token_ids, preamble_tokens, system_prompt,
        variables, tokenizer, model, link, parts, tools,
    ) = row  # fmt: skip
    return Node(
        message_id,
        parent_id,
        role,
        text,
        MessageStatus(status),
        FinishReason(reason) if reason else None,
        NodeIds(start, unpack(token_ids), preamble_tokens, system_prompt, variables),
        tokenizer,
        model,
        link or "",
        parts or "",
        tools,
    )


def _view(row: dict[str, Any]) -> MessageView:
    status = MessageStatus(row["status"])
    unfinished = status in (MessageStatus.STOPPED, MessageStatus.INTERRUPTED)
    system_text, text = _apart(row["parts"], row["text"]) if row["parts"] else ("", row["text"])
    return MessageView(
        message_id=row["id"],
        role=row["role"],
        text=text,
        status=status,
        sibling_number=row["sibling_number"],
        sibling_count=row["sibling_count"],
        receipt=_receipt(row) if row["message_id"] is not None else None,
        note=row["note"],
        can_continue=unfinished or row["finish_reason"] == FinishReason.LENGTH,
        first_part_id=row["first_part_id"] or row["id"],
        system_text=system_text,
    )


def _apart(parts: str, text: str) -> tuple[str, str]:
    """(what a program said in a node as the system, the rest of its text)."""
    messages = message_json.load(parts)
    system = [one.text for one in messages if one.role in SYSTEM_ROLES]
    if not system:
        return "", text
    return "\n\n".join(system), "\n\n".join(one.text for one in messages if one.role not in SYSTEM_ROLES)


def _stored(receipt: Receipt) -> dict[str, Any]:
    fields = {name: value for name, value in asdict(receipt).items() if name != "shared_title"}
    if receipt.parting is not None:
        del fields["parting"]["is_kept_gone"]
        if receipt.miss_reason is MissReason.HISTORY_CHANGED:
            fields["miss_detail"] = ""  # it quotes another conversation, which may be deleted
    return {**fields, "parting": json.dumps(fields["parting"]) if receipt.parting else ""}


def _receipt(row: dict[str, Any]) -> Receipt:
    fields = {name: row[name] for name in _RECEIPT_FIELDS}
    fields["shared_title"] = fields["shared_title"] or ""
    fields["tier_before"] = Tier(fields["tier_before"])
    fields["is_reuse_reported"] = bool(fields["is_reuse_reported"])
    fields["miss_reason"] = MissReason(fields["miss_reason"]) if fields["miss_reason"] else None
    parting = _parting(fields["parting"], bool(row["is_kept_gone"])) if fields["parting"] else None
    if parting is not None and fields["miss_reason"] is MissReason.HISTORY_CHANGED:
        fields["miss_detail"] = parting.sentence
    return Receipt(**{**fields, "parting": parting})


def _parting(stored: str, is_kept_gone: bool) -> Parting:
    found = json.loads(stored)
    if is_kept_gone:
        found["before"] = ""
    return Parting(**{**found, "section": Section(found["section"]), "is_kept_gone": is_kept_gone})
