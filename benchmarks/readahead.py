"""How much time to the first token does reading ahead save?

The real session manager over the real engine, driven like the page does: a draft 30 ms after each key, at least 100 ms
apart; five characters per second; then Enter, 200 ms after the last character like any other key. Typed: a 40-token
message after a first turn. At once: the same with Enter at the moment of the last character, as if the end had been
pasted. Pasted: 2,000 tokens at once, and a question typed below them. Each alternates with the same kind of message
sent without reading ahead. `busy_cores` is the CPU use of all threads of this process while the message is typed.

    python -m benchmarks.readahead [--model embedded] [--repeats 3]
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.driver import load, prose_ids, start
from benchmarks.report import device_name, finish, median, table
from model_runtime.interface.sampling_params import SamplingParams
from model_runtime.loading.loaded import LoadedModel
from model_runtime.loading.loading import unload
from model_runtime.text.chat_template import ChatTemplate
from sessions.config import SessionConfig
from sessions.manager import SessionManager
from sessions.store.store import Store
from sessions.types import ConversationSettings, Receipt, RunPhase

OWNER = "benchmark"
KEY_S = 0.2
PAGE_SENDS_AFTER_S, PAGE_SENDS_EVERY_S = 0.03, 0.1  # as app/page/assets/composer.js does
MESSAGE_TOKENS, PASTE_TOKENS = 40, 2000
QUESTION = "\n\nWhat is the main point of all this?"
BUDGET_BYTES = 2 * 1024**3
SETTINGS = ConversationSettings(SamplingParams(temperature=0, max_new_tokens=8))


@dataclass(frozen=True, slots=True)
class Sent:
    """A sent message. `ttft_s` is the time from the call of `send` until a subscriber sees the first token."""

    ttft_s: float
    receipt: Receipt


class Person:
    """A simulated user, who types into a conversation and waits for answers."""

    def __init__(self, manager: SessionManager) -> None:
        self._manager = manager
        self.conversation_id = ""

    def open(self, first: str = "") -> None:
        """Opens a new conversation, with a first turn if `first` is given."""
        self.conversation_id = self._manager.create_conversation(OWNER, SETTINGS).conversation_id
        if first:
            self.send(first)
            time.sleep(1.0)  # the user reads; the engine reads the next turn's start and makes a title

    def type(self, text: str, before: str = "", enter_after_s: float = KEY_S) -> float:
        """Types five characters per second after `before`, until Enter is due. Returns the busy cores."""
        begun, computed_s = time.perf_counter(), time.process_time()
        enter_s = len(text) * KEY_S + enter_after_s
        seen, sent_s, due_s = 0, -math.inf, math.inf
        while (now_s := time.perf_counter() - begun) < enter_s:
            count = min(len(text), int(now_s / KEY_S))
            if count > seen:
                seen, due_s = count, min(due_s, max(now_s + PAGE_SENDS_AFTER_S, sent_s + PAGE_SENDS_EVERY_S))
            if now_s >= due_s:
                sent_s, due_s = now_s, math.inf
                self._manager.read_ahead(OWNER, self.conversation_id, before + text[:count])
            time.sleep(0.005)
        return (time.process_time() - computed_s) / enter_s

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
    """About `tokens` tokens of English, different for every `number`."""
    return str(loaded.tokenizer.decode(prose_ids(loaded, tokens + 7 * number)[7 * number :])).strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()

    loaded = load(options.model)
    engine = start(loaded, 8192)
    kinds = ("typed plain", "typed", "at once", "pasted plain", "pasted")
    sent: dict[str, list[Sent]] = {kind: [] for kind in kinds}
    busy_cores: list[float] = []
    with tempfile.TemporaryDirectory() as directory:
        store = Store(Path(directory))
        template = ChatTemplate(loaded.tokenizer, loaded.stop_token_ids)
        manager = SessionManager(store, engine, template, SessionConfig(BUDGET_BYTES))
        manager.start()
        person = Person(manager)
        for number in range(options.repeats):
            for kind in kinds[:3]:
                person.open("Tell me about caches in three sentences.")
                text = prose(loaded, MESSAGE_TOKENS, number)
                if kind != "typed plain":
                    busy_cores.append(person.type(text, enter_after_s=KEY_S if kind == "typed" else 0.0))
                sent[kind].append(person.send(text))
        for number in range(min(2, options.repeats)):
            for kind in kinds[3:]:
                person.open()
                # A unique beginning, so that nothing can be reused from another conversation.
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
        "at_once_ttft_reduction": 1 - ttft_s["at once"] / ttft_s["typed plain"],
        "pasted_ttft_reduction": 1 - ttft_s["pasted"] / ttft_s["pasted plain"],
        "typed_ttft_s": ttft_s["typed"],
        "at_once_ttft_s": ttft_s["at once"],
        "typed_plain_ttft_s": ttft_s["typed plain"],
        "pasted_ttft_s": ttft_s["pasted"],
        "pasted_plain_ttft_s": ttft_s["pasted plain"],
        "busy_cores": median(busy_cores),
    }
    finish("readahead", figures, device_name(str(loaded.model.device)), f"{loaded.name}, {loaded.quantization}")
    unload(loaded)


if __name__ == "__main__":
    main()
