"""Translates a client's request into a `ChatRequest`. Refuses what cannot be honoured instead of ignoring it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from app.api.fields.other_fields import ignored_fields
from app.api.requests import ChatCompletionRequest
from app.api.translation.formats import callable_tools, format_of
from app.api.translation.messages import messages_of, unread_parts
from app.api.translation.sampling import limits_of, sampling_of
from app.api.translation.template_variables import template_variables
from app.api.translation.tool_choice import choice_of
from app.api.translation.tools import loosened, looser_note, tools_of
from app.api.translation.unsupported import unsupported
from app.model_names import ModelNames
from app.problems import Problem
from model_runtime.interface.chat import TurnTemplate
from model_runtime.interface.grammar import Grammar
from model_runtime.interface.protocol import ModelInfo
from model_runtime.interface.sampling_params import SamplingParams
from sessions.text import clean_exactly
from sessions.turns.planned_turn import ChatRequest


@dataclass(frozen=True, slots=True)
class Translated:
    """`ignored` names what in the request changes nothing; `notes` are sentences about how it is honoured."""

    request: ChatRequest
    ignored: tuple[str, ...]
    notes: tuple[str, ...] = ()


def chat_request(
    body: ChatCompletionRequest,
    info: ModelInfo,
    names: ModelNames,
    template: TurnTemplate,
    grammar_refusal: Callable[[Grammar], str],
) -> Translated:
    """The request for the session manager. `grammar_refusal` says why a grammar cannot be kept to. Raises `Problem`, or
    `ValueError` with a sentence."""
    refuse_other_model(body.model, info.name, names)
    ignored = ignored_fields(body)
    _refuse_unsupported(body)
    variables, without_effect = template_variables(body, template)
    tools = tools_of(body, template, info.context_limit_tokens)
    sampling, notes = with_format(sampling_of(body, info), body, template, tools.definitions, grammar_refusal)
    request = ChatRequest(
        messages=messages_of(body.messages),
        sampling=sampling,
        tools=tools.definitions,
        has_no_limit=not limits_of(body),
        template_variables=variables,
        key=None if body.prompt_cache_key is None else clean_exactly(body.prompt_cache_key),
        has_one_call=body.parallel_tool_calls is False,
    )
    unread = unread_parts(body.messages, template.has_thoughts)
    if request.has_one_call and tools.definitions and not template.parts_calls:
        ignored += ("parallel_tool_calls",)
    ignored += (*without_effect, *unread, *(("tools",) if tools.are_left_out else ()))
    return Translated(request, ignored, (*tools.notes, *notes))


def with_format(
    sampling: SamplingParams,
    body: ChatCompletionRequest,
    template: TurnTemplate,
    tools: tuple[str, ...],
    grammar_refusal: Callable[[Grammar], str],
) -> tuple[SamplingParams, tuple[str, ...]]:
    """(the settings with the format that the request asks for, sentences about how it is kept to). Raises `Problem`.

    Parameters of tools say more than can be enforced: what cannot be is left to the model, unless it is `strict`."""
    asked_format = format_of(body, template, tools)
    if asked_format is None:
        return sampling, ()
    field, grammar = asked_format
    if not (refusal := grammar_refusal(grammar)):
        return replace(sampling, grammar=grammar), ()

    def refusal_of(some: tuple[str, ...], lenient: tuple[str, ...]) -> str:
        return grammar_refusal(Grammar("lark", template.call_grammar(some, lenient)))

    held = callable_tools(choice_of(body.tool_choice, body.tools or ()), tools)
    looser, lenient, names = loosened(held, refusal_of)
    asked_format = format_of(body, template, looser, lenient) if names else None
    if asked_format is None or grammar_refusal(asked_format[1]):
        raise unsupported(field, f"{field}: {refusal}")
    return replace(sampling, grammar=asked_format[1]), (looser_note(names),)


def refuse_other_model(asked: str | None, own: str, names: ModelNames, may_lack: bool = False) -> None:
    """Raises `Problem` unless the served model is meant."""
    if names.serves(asked, own) or (asked is None and may_lack):
        return
    if not asked:
        raise Problem(400, f"model is missing: send {own!r}.", "invalid_value", "model")
    raise Problem(404, f"The model {asked[:200]!r} is not served here; {own!r} is.", "model_not_found", "model")


def _refuse_unsupported(body: ChatCompletionRequest) -> None:
    is_begun = body.messages[-1].role == "assistant"
    if body.continue_final_message and not is_begun:
        raise unsupported("continue_final_message", "continue_final_message needs an assistant's message last.")
    if body.continue_final_message is False and is_begun:
        raise unsupported(
            "continue_final_message",
            "The last message is the assistant's, and is gone on with: continue_final_message cannot be false.",
        )
    if body.add_generation_prompt is not None and body.add_generation_prompt is is_begun:
        wanted = "false" if is_begun else "true"
        raise unsupported("add_generation_prompt", f"add_generation_prompt must be {wanted} for these messages.")
    if body.n not in (None, 1):
        raise unsupported("n", "One answer is written for each request: n must be 1.")
    if body.modalities not in (None, ["text"]):
        raise unsupported("modalities", "Only text is supported.")
    if body.audio is not None:
        raise unsupported("audio", "Sound is not supported.")
    if body.functions:
        raise unsupported("functions", "Functions are not supported: send them as tools.")
    if body.function_call not in (None, "none", "auto"):
        raise unsupported("function_call", "A function call is not supported: use tools and tool_choice.")
    if body.web_search_options is not None:
        raise unsupported("web_search_options", "Web search is not supported.")
    if body.top_logprobs and not body.logprobs:
        raise unsupported("top_logprobs", "top_logprobs needs logprobs to be true.")
    if body.stream_options is not None and not body.stream:
        raise unsupported("stream_options", "stream_options needs stream to be true.")
