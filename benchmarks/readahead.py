"""What does reading ahead save, to the first token?

The real session manager over the real engine, as the page drives it: the draft so far every 250 ms, at five characters
a second, then the send. Typed: a 40-token message behind a first turn. Pasted: 2,000 tokens at once, and a question
typed below them. Each alternates with the same kind of message sent without having been read ahead.

    python -m benchmarks.readahead [--model embedded] [--repeats 3]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.driver import load, prose_ids, start
from benchmarks.report import device_name, finish, median, table
from model_runtime.chat_template import ChatTemplate
from model_runtime.loaded import LoadedModel
from model_runtime.loading import unload
from model_runtime.types import SamplingParams
from sessions.config import SessionConfig
from sessions.manager import SessionManager
from sessions.store import Store
from sessions.types import ConversationSettings, Receipt, RunPhase

OWNER = "benchmark"
CHARACTERS_PER_S = 5
PAGE_SENDS_EVERY_S = 0.25
MESSAGE_TOKENS, PASTE_TOKENS = 40, 2000
QUESTION = "\n\nWhat is the main point of all this?"
BUDGET_BYTES = 2 * 1024**3
SETTINGS = ConversationSettings(SamplingParams(temperature=0, max_new_tokens=8))


@dataclass(frozen=True, slots=True)
class Sent:
    """`ttft_s` as a subscriber sees it, from the call of `send` on."""

    ttft_s: float
    receipt: Receipt


class Person:
    """Types into a conversation, and waits for answers."""

    def __init__(self, manager: SessionManager) -> None:
        self._manager = manager
        self.conversation_id = ""

    def open(self, first: str = "") -> None:
        """A new conversation, with a first turn behind it."""
        self.conversation_id = self._manager.create_conversation(OWNER, SETTINGS).conversation_id
        if first:
            self.send(first)
            time.sleep(1.0)  # a person reads the answer; meanwhile the glue is read, and a title looked for

    def type(self, text: str, before: str = "") -> None:
        """Five characters a second behind what is there already."""
        begun, sent_at = time.perf_counter(), 0.0
        while (count := int((time.perf_counter() - begun) * CHARACTERS_PER_S)) < len(text):
            if time.perf_counter() - sent_at >= PAGE_SENDS_EVERY_S:
                sent_at = time.perf_counter()
                self._manager.read_ahead(OWNER, self.conversation_id, before + text[:count])
            time.sleep(0.01)

    def paste(self, text: str) -> None:
        self._manager.read_ahead(OWNER, self.conversation_id, text)

    def send(self, text: str) -> Sent:
        begun = time.perf_counter()
        run = self._manager.send(OWNER, self.conversation_id, text)
        snapshot, ttft_s = run.snapshot(), 0.0
        while snapshot.phase is not RunPhase.DONE:
            snapshot = run.wait(snapshot.version, 1.0)
            if not ttft_s and snapshot.sampled_tokens:
                ttft_s = time.perf_counter() - begun
        if snapshot.message is None or snapshot.message.receipt is None:
            raise SystemExit(f"The answer failed: {snapshot.message}")
        return Sent(ttft_s, snapshot.message.receipt)


def prose(loaded: LoadedModel, tokens: int, number: int) -> str:
    """So many tokens of English, other ones for every number."""
    return str(loaded.tokenizer.decode(prose_ids(loaded, tokens + 7 * number)[7 * number :])).strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()

    loaded = load(options.model)
    engine = start(loaded, 8192)
    sent: dict[str, list[Sent]] = {"typed": [], "typed plain": [], "pasted": [], "pasted plain": []}
    with tempfile.TemporaryDirectory() as directory:
        store = Store(Path(directory))
        template = ChatTemplate(loaded.tokenizer, loaded.stop_token_ids)
        manager = SessionManager(store, engine, template, SessionConfig(BUDGET_BYTES))
        manager.start()
        person = Person(manager)
        for number in range(options.repeats):
            for kind in ("typed plain", "typed"):
                person.open("Tell me about caches in three sentences.")
                text = prose(loaded, MESSAGE_TOKENS, number)
                if kind == "typed":
                    person.type(text)
                sent[kind].append(person.send(text))
        for number in range(min(2, options.repeats)):
            for kind in ("pasted plain", "pasted"):
                person.open()
                # Its own beginning, so that nothing can be taken from another conversation.
                paste = f"Text {2 * number + (kind == 'pasted')}. {prose(loaded, PASTE_TOKENS, number)}"
                if kind == "pasted":
                    person.paste(paste)
                    person.type(QUESTION, before=paste)
                sent[kind].append(person.send(paste + QUESTION))
        manager.close()
        engine.close()
        store.close()

    ttft_s = {kind: median([one.ttft_s for one in ones]) for kind, ones in sent.items()}
    rows = [
        (kind, ttft_s[kind], ones[-1].receipt.delta_tokens, ones[-1].receipt.ahead_tokens, ones[-1].receipt.fed_tokens)
        for kind, ones in sent.items()
    ]
    table(("message", "first token s", "added", "read ahead", "read on sending"), rows)
    figures = {
        "typed_ttft_reduction": 1 - ttft_s["typed"] / ttft_s["typed plain"],
        "pasted_ttft_reduction": 1 - ttft_s["pasted"] / ttft_s["pasted plain"],
        "typed_ttft_s": ttft_s["typed"],
        "typed_plain_ttft_s": ttft_s["typed plain"],
        "pasted_ttft_s": ttft_s["pasted"],
        "pasted_plain_ttft_s": ttft_s["pasted plain"],
    }
    finish("readahead", figures, device_name(str(loaded.model.device)), f"{loaded.name}, {loaded.quantization}")
    unload(loaded)


if __name__ == "__main__":
    main()
