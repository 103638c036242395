"""Twenty turns of every kind, the same for every engine: what is asked, and the ledgers that come of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from model_runtime.interface.chat import ChatMessage, ToolCall
from model_runtime.interface.sampling_params import SamplingParams
from sessions.errors import ContextFull
from sessions.turns.run import Run
from sessions.turns.stateless import ChatRequest
from tests.sessions.session_harness import ADA, SessionHarness, finish

TOOL = '{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}'


@dataclass
class Talk:
    """`sent` are the ledgers that the engine got, `ledgers` those of the conversations after each turn; `answers` has
    the sampled ids by what was sent; `refused` says why the last message was not taken."""

    sent: list[tuple[int, ...]] = field(default_factory=list)
    ledgers: list[tuple[int, ...]] = field(default_factory=list)
    answers: dict[tuple[int, ...], tuple[int, ...]] = field(default_factory=dict)
    refused: str = ""


def talk(harness: SessionHarness, sampling: SamplingParams, takes_tools: bool, timeout_s: float = 20.0) -> Talk:
    """Chats, edits, regenerates, continues, branches, resends histories, calls tools, and fills the context."""
    said, manager = Talk(), harness.manager

    def ended(run: Run) -> str:
        message = finish(run, timeout_s)
        assert message.status == "complete", message.note
        ledger = harness.ledger(run.conversation_id)
        sent = run.plan.turn.ledger
        assert ledger[: len(sent)] == sent
        said.sent.append(sent)
        said.answers[sent] = ledger[len(sent) :]
        said.ledgers.append(ledger)
        return message.text

    own = harness.conversation(temperature=0.0, repetition_penalty=1.0, max_new_tokens=sampling.max_new_tokens)
    ended(manager.send(ADA, own, "Name three fruits."))
    ended(manager.send(ADA, own, "Tell me a long story about é."))  # what real models do not end after a few words
    ended(manager.regenerate(ADA, own))
    ended(manager.continue_answer(ADA, own))
    ended(manager.send(ADA, own, "Go on."))
    ended(manager.edit(ADA, own, harness.path(own)[2].message_id, "And two vegetables?"))
    ended(manager.send(ADA, own, "Tell me a long story about each of them."))
    ended(manager.continue_answer(ADA, own))
    ended(manager.continue_answer(ADA, own))
    manager.switch_sibling(ADA, own, harness.path(own)[2].message_id, -1)
    ended(manager.send(ADA, own, "Where were we?"))
    ended(manager.edit(ADA, own, harness.path(own)[0].message_id, "Name one fruit."))
    ended(manager.regenerate(ADA, own))

    def resent(*messages: ChatMessage, tools: tuple[str, ...] = ()) -> ChatMessage:
        return ChatMessage("assistant", ended(manager.completions.begin(ADA, ChatRequest(messages, sampling, tools))))

    history = [ChatMessage("user", "A program asks.")]
    for text in ("It asks again.", "And again."):
        history += [resent(*history), ChatMessage("user", text)]
    resent(*history)
    resent(*history[:2], ChatMessage("user", "It branches off."))
    if takes_tools:
        call = ChatMessage("assistant", "", (ToolCall("1", "weather", "{}"),))
        history = [ChatMessage("user", "How is the weather?"), call, ChatMessage("tool", "Rain.", tool_call_id="1")]
        history += [resent(*history, tools=(TOOL,)), ChatMessage("user", "Thanks.")]
        resent(*history, tools=(TOOL,))
    try:
        while True:
            ended(manager.send(ADA, own, "This fills the context, word for word. " * 3))
    except ContextFull as full:
        said.refused = str(full)
    return said


def rest_of_answer(said: Talk, ledger: tuple[int, ...]) -> list[int]:
    """What was said after these ids, also if they end within an answer: so far a server may have come."""
    for sent, answer in said.answers.items():
        whole = (*sent, *answer)
        if len(sent) <= len(ledger) < len(whole) and whole[: len(ledger)] == ledger:
            return list(whole[len(ledger) :])
    return []
