"""The database schema, as migrations. A released migration is never changed; a new one is added at the end."""

from __future__ import annotations

from collections.abc import Callable

from sqlite_utils import Database, Migrations

MIGRATIONS = Migrations("keepwarm")


def _step(migration: Callable[[Database], None]) -> Callable[[Database], None]:
    MIGRATIONS()(migration)
    return migration


@_step
def users_and_conversations(db: Database) -> None:
    """The totals are columns of the user, so that deleting a conversation does not reduce them."""
    db.execute("""
        CREATE TABLE users (
            id TEXT PRIMARY KEY,
            created_at REAL NOT NULL,
            saved_s_total REAL NOT NULL DEFAULT 0,
            reused_tokens_total INTEGER NOT NULL DEFAULT 0
        )""")
    db.execute("""
        CREATE TABLE conversations (
            id TEXT PRIMARY KEY,
            owner_id TEXT NOT NULL REFERENCES users(id) ON DELETE CASCADE,
            title TEXT NOT NULL,
            created_at REAL NOT NULL,
            updated_at REAL NOT NULL,
            leaf_id INTEGER REFERENCES messages(id) ON DELETE SET NULL,
            settings TEXT NOT NULL
        )""")
    db.execute("CREATE INDEX conversations_by_owner ON conversations(owner_id, updated_at)")


@_step
def message_tree(db: Database) -> None:
    """`token_ids` is little-endian int32 and the last column: reading the other columns never touches its pages.
    AUTOINCREMENT, so that the id of a deleted message is never used again."""
    db.execute("""
        CREATE TABLE messages (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            conversation_id TEXT NOT NULL REFERENCES conversations(id) ON DELETE CASCADE,
            parent_id INTEGER REFERENCES messages(id) ON DELETE CASCADE,
            role TEXT NOT NULL CHECK (role IN ('user', 'assistant')),
            status TEXT NOT NULL,
            finish_reason TEXT,
            note TEXT NOT NULL DEFAULT '',
            created_at REAL NOT NULL,
            last_used_at REAL NOT NULL,
            tokenizer_fingerprint TEXT NOT NULL,
            model_name TEXT NOT NULL,
            ledger_start INTEGER NOT NULL,
            preamble_tokens INTEGER NOT NULL DEFAULT 0,
            system_prompt TEXT,
            text TEXT NOT NULL,
            token_ids BLOB NOT NULL
        )""")
    db.execute("CREATE INDEX messages_by_parent ON messages(conversation_id, parent_id)")
    db.execute("CREATE INDEX messages_by_parent_alone ON messages(parent_id)")  # for the cascade
    db.execute("CREATE INDEX messages_running ON messages(status) WHERE status = 'running'")


@_step
def receipts(db: Database) -> None:
    db.execute("""
        CREATE TABLE receipts (
            message_id INTEGER PRIMARY KEY REFERENCES messages(id) ON DELETE CASCADE,
            fed_tokens INTEGER NOT NULL,
            delta_tokens INTEGER NOT NULL,
            reused_tokens INTEGER NOT NULL,
            sampled_tokens INTEGER NOT NULL,
            tier_before TEXT NOT NULL,
            ttft_s REAL,
            waited_s REAL NOT NULL,
            prefill_s REAL NOT NULL,
            decode_s REAL NOT NULL,
            saved_s REAL NOT NULL,
            miss_reason TEXT,
            miss_detail TEXT NOT NULL
        )""")


@_step
def segments(db: Database) -> None:
    """Saved runs of KV. A row exists only while its file does: the file is renamed into place before the row is added,
    and the row is deleted before the file. `token_ids` is the last column, for the same reason as above. Branches and
    conversations of one owner share a segment by referring to it. Messages are never deleted one by one, so one
    reference per conversation is enough."""
    db.execute("""
        CREATE TABLE segments (
            key TEXT PRIMARY KEY,
            parent_key TEXT NOT NULL,
            owner_id TEXT NOT NULL REFERENCES users(id) ON DELETE CASCADE,
            fingerprint TEXT NOT NULL,
            start_tokens INTEGER NOT NULL,
            tokens INTEGER NOT NULL,
            bytes INTEGER NOT NULL,
            created_at REAL NOT NULL,
            last_used_at REAL NOT NULL,
            token_ids BLOB NOT NULL
        )""")
    db.execute("CREATE INDEX segments_by_parent ON segments(parent_key)")
    db.execute("CREATE INDEX segments_by_owner ON segments(owner_id)")
    db.execute("""
        CREATE TABLE segment_references (
            conversation_id TEXT NOT NULL REFERENCES conversations(id) ON DELETE CASCADE,
            segment_key TEXT NOT NULL REFERENCES segments(key) ON DELETE CASCADE,
            PRIMARY KEY (conversation_id, segment_key)
        ) WITHOUT ROWID""")
    db.execute("CREATE INDEX references_by_segment ON segment_references(segment_key)")


@_step
def restores_on_receipts(db: Database) -> None:
    db.execute("ALTER TABLE receipts ADD COLUMN restored_bytes INTEGER NOT NULL DEFAULT 0")
    db.execute("ALTER TABLE receipts ADD COLUMN restore_s REAL NOT NULL DEFAULT 0")
    db.execute("ALTER TABLE receipts ADD COLUMN choice TEXT NOT NULL DEFAULT ''")


@_step
def pins(db: Database) -> None:
    """Conversations whose KV stays on the device."""
    db.execute("ALTER TABLE conversations ADD COLUMN is_pinned INTEGER NOT NULL DEFAULT 0")


@_step
def message_links(db: Database) -> None:
    """The hash (`link`) by which a resent history is recognised. Not columns of `messages`, where they would come after
    the token ids. `parts` holds the messages of a node that is not a single message with the node's text and role."""
    db.execute("""
        CREATE TABLE message_links (
            message_id INTEGER PRIMARY KEY REFERENCES messages(id) ON DELETE CASCADE,
            owner_id TEXT NOT NULL REFERENCES users(id) ON DELETE CASCADE,
            link TEXT NOT NULL,
            parts TEXT NOT NULL
        )""")
    db.execute("CREATE INDEX links_by_owner ON message_links(owner_id, link)")
    db.execute("ALTER TABLE conversations ADD COLUMN key TEXT")  # the name that an API client gave it
    db.execute("CREATE UNIQUE INDEX conversations_by_key ON conversations(owner_id, key)")


@_step
def api_keys(db: Database) -> None:
    """Keys for API clients. Only the hash of a key is stored. A key owns the conversations that it begins."""
    db.execute("""
        CREATE TABLE api_keys (
            id TEXT PRIMARY KEY,
            name TEXT NOT NULL,
            hash TEXT NOT NULL UNIQUE,
            owner_id TEXT NOT NULL,
            created_at REAL NOT NULL,
            last_used_at REAL,
            revoked_at REAL
        )""")


@_step
def drafts_on_receipts(db: Database) -> None:
    db.execute("ALTER TABLE receipts ADD COLUMN drafted_tokens INTEGER NOT NULL DEFAULT 0")
    db.execute("ALTER TABLE receipts ADD COLUMN accepted_tokens INTEGER NOT NULL DEFAULT 0")


@_step
def read_ahead(db: Database) -> None:
    """`title_by` decides whether the model may replace a title; older titles are left alone."""
    db.execute("ALTER TABLE receipts ADD COLUMN ahead_tokens INTEGER NOT NULL DEFAULT 0")
    db.execute("ALTER TABLE conversations ADD COLUMN title_by TEXT NOT NULL DEFAULT 'person'")


@_step
def shared_beginnings(db: Database) -> None:
    db.execute("ALTER TABLE receipts ADD COLUMN shared_tokens INTEGER NOT NULL DEFAULT 0")
    db.execute("ALTER TABLE receipts ADD COLUMN shared_from TEXT NOT NULL DEFAULT ''")


@_step
def numerics(db: Database) -> None:
    """What a conversation's KV was last computed with, so that a later start can say what was changed. Saved KVs cannot
    tell: those of another precision may be gone by then."""
    db.execute("ALTER TABLE conversations ADD COLUMN numerics TEXT NOT NULL DEFAULT ''")


@_step
def origins(db: Database) -> None:
    """`sessions.types.Origin`. Older conversations are kept, like those of a person."""
    db.execute("ALTER TABLE conversations ADD COLUMN origin TEXT NOT NULL DEFAULT 'page'")


@_step
def last_try(db: Database) -> None:
    """One row, written to find out whether the database can be written to."""
    db.execute("CREATE TABLE last_try (id INTEGER PRIMARY KEY CHECK (id = 1), at REAL NOT NULL)")


@_step
def bin_and_observed_time(db: Database) -> None:
    """Pruned conversations go to a bin, after a time measured by `tables/served_time.py`. Turns are numbered, so that
    the order of use does not depend on a clock either."""
    db.execute("ALTER TABLE conversations ADD COLUMN binned_s REAL")  # observed seconds; NULL: not in the bin
    db.execute("ALTER TABLE conversations ADD COLUMN binned_at REAL")
    db.execute("ALTER TABLE conversations ADD COLUMN turn_number INTEGER NOT NULL DEFAULT 0")
    db.execute("""
        UPDATE conversations SET turn_number = (
            SELECT number FROM (SELECT id, row_number() OVER (ORDER BY updated_at, rowid) AS number FROM conversations)
            AS numbered WHERE numbered.id = conversations.id)""")
    db.execute("CREATE INDEX conversations_by_turn ON conversations(turn_number)")
    db.execute("CREATE INDEX conversations_by_owner_and_turn ON conversations(owner_id, turn_number)")
    db.execute("""
        CREATE TABLE left_alone (
            conversation_id TEXT PRIMARY KEY REFERENCES conversations(id) ON DELETE CASCADE,
            turn_number INTEGER NOT NULL,
            since_s REAL NOT NULL
        ) WITHOUT ROWID""")
    db.execute("""
        CREATE TABLE observed_time (
            id INTEGER PRIMARY KEY CHECK (id = 1),
            wall_at REAL NOT NULL,
            observed_s REAL NOT NULL,
            jumped_s REAL NOT NULL
        )""")


@_step
def losses_of_saved_memory(db: Database) -> None:
    """`kv_losses`: why a conversation's saved memory would be missing at its next turn (`tables/losses.py`).
    `kv_served`: what the servers of this directory computed with; the last row is the last server."""
    db.execute("""
        CREATE TABLE kv_losses (
            conversation_id TEXT PRIMARY KEY REFERENCES conversations(id) ON DELETE CASCADE,
            cause TEXT NOT NULL,
            detail TEXT NOT NULL,
            message_id INTEGER NOT NULL
        ) WITHOUT ROWID""")
    db.execute("CREATE TABLE kv_served (id INTEGER PRIMARY KEY, numerics TEXT NOT NULL UNIQUE, model TEXT NOT NULL)")


@_step
def a_key_has_existed(db: Database) -> None:
    """Remembers that a key was made, even when every row of `api_keys` is gone: deleting the last key must not open the
    server to everyone. A trigger, so that it holds for every way of adding a key."""
    db.execute("CREATE TABLE api_key_history (first_made_at REAL NOT NULL)")
    db.execute("INSERT INTO api_key_history SELECT min(created_at) FROM api_keys HAVING count(*) > 0")
    db.execute("""
        CREATE TRIGGER api_key_was_made AFTER INSERT ON api_keys
        WHEN NOT EXISTS (SELECT 1 FROM api_key_history)
        BEGIN INSERT INTO api_key_history VALUES (new.created_at); END""")


@_step
def logins_on_the_server(db: Database) -> None:
    """Only the SHA-256 of each secret that a browser or a person holds is stored. `spends` is the recovery code or the
    older cookie that a log-in used up: it is marked as spent when the new cookie is seen, because the response that
    carries the cookie may get lost."""
    db.execute("""
        CREATE TABLE logins (
            hash TEXT PRIMARY KEY,
            owner_id TEXT NOT NULL,
            browser_hash TEXT NOT NULL,
            password_mark TEXT NOT NULL,
            is_secure INTEGER NOT NULL,
            created_at REAL NOT NULL,
            expires_at REAL NOT NULL,
            spends TEXT NOT NULL
        )""")
    db.execute("""
        CREATE TABLE browser_owners (
            browser_hash TEXT NOT NULL,
            owner_id TEXT NOT NULL,
            is_secure INTEGER NOT NULL,
            used_at REAL NOT NULL,
            left_at REAL,
            PRIMARY KEY (browser_hash, owner_id)
        ) WITHOUT ROWID""")
    db.execute("CREATE TABLE recovery_codes (hash TEXT PRIMARY KEY, owner_id TEXT NOT NULL, created_at REAL NOT NULL)")
    db.execute("CREATE TABLE spent (what TEXT PRIMARY KEY, at REAL NOT NULL)")


@_step
def losses_by_numerics(db: Database) -> None:
    """A loss concerns what one model and setting saved. Which one it was is not known of older rows: they are taken for
    those of the conversation's last turn."""
    db.execute("ALTER TABLE kv_losses RENAME TO older_losses")
    db.execute("""
        CREATE TABLE kv_losses (
            conversation_id TEXT NOT NULL REFERENCES conversations(id) ON DELETE CASCADE,
            numerics TEXT NOT NULL,
            cause TEXT NOT NULL,
            detail TEXT NOT NULL,
            message_id INTEGER NOT NULL,
            PRIMARY KEY (conversation_id, numerics)
        ) WITHOUT ROWID""")
    db.execute("""
        INSERT INTO kv_losses SELECT c.id, c.numerics, l.cause, l.detail, l.message_id
        FROM older_losses l JOIN conversations c ON c.id = l.conversation_id""")
    db.execute("DROP TABLE older_losses")


@_step
def template_variables(db: Database) -> None:
    """The values of the chat template's variables that a node's ids were rendered with, where they change."""
    db.execute("ALTER TABLE messages ADD COLUMN template_variables TEXT")


@_step
def responses(db: Database) -> None:
    """Answers that clients of the Responses API name: `body` is JSON, what the request said of itself."""
    db.execute("""
        CREATE TABLE responses (
            id TEXT PRIMARY KEY,
            message_id INTEGER NOT NULL REFERENCES messages(id) ON DELETE CASCADE,
            body TEXT NOT NULL
        )""")
    db.execute("CREATE INDEX responses_by_message ON responses(message_id)")


@_step
def reports_of_remote_engines(db: Database) -> None:
    """Whether a remote engine said what it reused."""
    db.execute("ALTER TABLE receipts ADD COLUMN is_reuse_reported INTEGER NOT NULL DEFAULT 1")


@_step
def roots_of_forks(db: Database) -> None:
    """The conversation that a fork's beginning came from at first, "" for one that is no fork."""
    db.execute("ALTER TABLE conversations ADD COLUMN root_id TEXT NOT NULL DEFAULT ''")


@_step
def waits_for_shared_beginnings(db: Database) -> None:
    """How long a turn waited while another one read what both begin with."""
    db.execute("ALTER TABLE receipts ADD COLUMN shared_wait_s REAL NOT NULL DEFAULT 0")


@_step
def where_histories_part(db: Database) -> None:
    """`parting`: the place where a turn's history parts from the one that is kept, as JSON. `tools`: what a
    conversation's first message offered, so that a change can be told by name; NULL where that is not known."""
    db.execute("ALTER TABLE receipts ADD COLUMN parting TEXT NOT NULL DEFAULT ''")
    db.execute("ALTER TABLE message_links ADD COLUMN tools TEXT")


@_step
def continued_answers(db: Database) -> None:
    """The answer that another one goes on from: both are one version of the answer, of which the last part is shown.
    The column lies behind `token_ids`, so the versions of an answer are counted in an index that has all it takes."""
    db.execute("ALTER TABLE messages ADD COLUMN first_part_id INTEGER")
    db.execute("CREATE INDEX messages_by_first_part ON messages(first_part_id) WHERE first_part_id IS NOT NULL")
    db.execute("CREATE INDEX messages_by_version ON messages(parent_id, conversation_id, first_part_id)")


@_step
def added_items(db: Database) -> None:
    """What clients of the Responses API added to a conversation without asking for an answer: JSON of one item each,
    until a turn takes them into the tree. `metadata`: a JSON object that they keep with it, "" for none."""
    db.execute("""
        CREATE TABLE added_items (
            number INTEGER PRIMARY KEY AUTOINCREMENT,
            id TEXT NOT NULL UNIQUE,
            conversation_id TEXT NOT NULL REFERENCES conversations(id) ON DELETE CASCADE,
            body TEXT NOT NULL
        )""")
    db.execute("CREATE INDEX added_items_by_conversation ON added_items(conversation_id)")
    db.execute("ALTER TABLE conversations ADD COLUMN metadata TEXT NOT NULL DEFAULT ''")


@_step
def system_items(db: Database) -> None:
    """What clients of the Responses API said as the system in a conversation, as JSON; "" where none did. Until now
    each answer had what its history began with, in a row without a name of its client's where it had none."""
    db.execute("ALTER TABLE conversations ADD COLUMN system_items TEXT NOT NULL DEFAULT ''")
    db.execute("""
        UPDATE conversations SET system_items = ifnull((
            SELECT json_array(json_extract(r.body, '$.head'), '[]') FROM responses r
            JOIN messages m ON m.id = r.message_id WHERE m.conversation_id = conversations.id
            AND (r.id GLOB 'resp_*' OR r.id GLOB 'unnamed_*') ORDER BY r.message_id DESC LIMIT 1), '')""")
    db.execute("DELETE FROM responses WHERE id GLOB 'unnamed_*'")
