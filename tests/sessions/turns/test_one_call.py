"""An answer that may have one call ends after it, in its text, its ids and its KV."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from model_runtime.interface.chat import ChatMessage
from model_runtime.interface.events import FinishReason
from model_runtime.interface.sampling_params import SamplingParams
from sessions.turns.planned_turn import ChatRequest
from sessions.types import MessageStatus
from tests.polling import until
from tests.sessions.byte_template import END, ByteTemplate
from tests.sessions.byte_template import TOOL as TOOL_MARK
from tests.sessions.scripted_engine import ScriptedEngine
from tests.sessions.session_harness import ADA, SessionHarness, finish

TOOL = '{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}'
CALL = '<tool_call>{{"name": "f", "arguments": {{"n": {}}}}}</tool_call>'


def test_the_second_call_is_neither_kept_nor_saved(tmp_path: Path) -> None:
    said = f"Both. {CALL.format(1)}\n{CALL.format(2)}"
    engine = ScriptedEngine(
        answer=lambda ledger: (*b"Done.", END) if ledger.count(TOOL_MARK) else (*said.encode(), END)
    )
    harness = SessionHarness(tmp_path, engine, ByteTemplate(takes_tools=True), disk_kv_budget_bytes=1 << 24)
    try:
        asked = ChatMessage("user", "Call")
        request = ChatRequest((asked,), SamplingParams(temperature=0.0), (TOOL,), has_one_call=True)
        run = harness.manager.completions.begin(ADA, request)
        answer = finish(run)
        assert answer.text == f"Both. {CALL.format(1)}"
        assert (run.finish_reason, answer.status) == (FinishReason.STOP_STRING, MessageStatus.COMPLETE)
        assert bytes(harness.path(run.conversation_id)[-1].answer_ids).decode() == answer.text
        until(lambda: saved_tokens(harness, run.conversation_id) > 0)
        assert saved_tokens(harness, run.conversation_id) <= len(harness.ledger(run.conversation_id))
        message = harness.manager.completions.message(run, answer.text)
        (call,) = message.tool_calls
        result = ChatMessage("tool", "18", tool_call_id=call.call_id)
        after = harness.manager.completions.begin(ADA, replace(request, messages=(asked, message, result)))
        receipt = finish(after).receipt
        assert receipt is not None
        assert (after.conversation_id, receipt.miss_reason) == (run.conversation_id, None)
        assert receipt.fed_tokens <= len("18") + 5
        assert harness.manager.verify(ADA, run.conversation_id).wait(10) is not None
        assert harness.manager.memory_view(ADA).rows[0].check.agrees  # type: ignore[union-attr]
    finally:
        harness.close()


def saved_tokens(harness: SessionHarness, conversation_id: str) -> int:
    return next(
        row.disk_tokens for row in harness.manager.memory_view(ADA).rows if row.conversation_id == conversation_id
    )
