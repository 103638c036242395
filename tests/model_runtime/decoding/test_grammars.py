"""Answers keep to their grammar whatever the model would rather say: with drafts, beside each other, sampled or not."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import torch

from model_runtime.decoding.grammars import Grammars
from model_runtime.interface.config import EngineConfig, PromptLookup
from model_runtime.interface.errors import GrammarFailed
from model_runtime.interface.events import FinishReason
from model_runtime.interface.grammar import Grammar
from model_runtime.interface.sampling_params import SamplingParams
from model_runtime.text.tool_calls import ToolFormat
from tests.model_runtime.harness import TINY, Answer, WatchedEngine, loaded_tiny

STOP = 2
PROMPT = [5, 6, 7, 8] * 10
SHORT = {"type": "string", "maxLength": 8}
SCHEMAS: list[dict[str, Any]] = [
    {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"], "additionalProperties": False},
    {"type": "array", "items": {"enum": ["x", 1, None]}, "minItems": 1, "maxItems": 3},
    {"enum": ["one", "two", {"three": [4]}]},
    {
        "type": "object",
        "properties": {"name": SHORT, "age": {"type": "integer", "minimum": 0, "maximum": 150}},
        "required": ["name", "age"],
        "additionalProperties": False,
    },
    {"$defs": {"b": {"const": "é\n\"'"}}, "type": "array", "items": {"$ref": "#/$defs/b"}, "maxItems": 2},
    {"anyOf": [{"type": "null"}, {"type": "object", "additionalProperties": False}]},
]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return TINY["llama"](tmp_path_factory.mktemp("grammars") / "llama")


@pytest.fixture
def engine(directory: Path) -> Iterator[WatchedEngine]:
    yield from started(directory, "auto")


def started(directory: Path, lookup: PromptLookup) -> Iterator[WatchedEngine]:
    model = replace(loaded_tiny(directory), stop_token_ids=frozenset({STOP}))
    engine = WatchedEngine(model, EngineConfig(prefill_chunk_tokens=32, prompt_lookup=lookup))
    yield engine
    engine.close()


def ask(engine: WatchedEngine, grammar: Grammar, **settings: Any) -> Answer:
    sampling = SamplingParams(**{"temperature": 1.5, "top_k": 0, "top_p": 1.0, "max_new_tokens": 300, **settings})
    return engine.submit(engine.engine.new_kv(), PROMPT, replace(sampling, grammar=grammar))


def said(answer: Answer) -> str:
    finished = answer.wait()
    assert finished.reason is FinishReason.STOP, finished
    return answer.text + finished.text_tail


def of_schema(schema: dict[str, Any]) -> Grammar:
    return Grammar("json_schema", json.dumps(schema))


@pytest.mark.parametrize("number", range(len(SCHEMAS)))
def test_every_answer_is_valid(engine: WatchedEngine, number: int) -> None:
    schema = SCHEMAS[number]
    answers = [ask(engine, of_schema(schema), seed=seed) for seed in range(3)]
    answers.append(ask(engine, of_schema(schema), temperature=0))
    for answer in answers:
        jsonschema_rs.validate(schema, json.loads(said(answer)))


def test_several_streams_keep_to_their_own(engine: WatchedEngine) -> None:
    free = engine.submit(engine.engine.new_kv(), PROMPT, SamplingParams(0, max_new_tokens=60))
    answers = [(schema, ask(engine, of_schema(schema), seed=n)) for n, schema in enumerate(SCHEMAS[:3])]
    pattern = ask(engine, Grammar("regex", "[ab]{3,5}"), seed=1)
    for schema, answer in answers:
        jsonschema_rs.validate(schema, json.loads(said(answer)))
    assert re.fullmatch("[ab]{3,5}", said(pattern))
    alone = engine.submit(engine.engine.new_kv(), PROMPT, SamplingParams(0, max_new_tokens=60))
    free.wait()
    alone.wait()
    assert free.token_ids == alone.token_ids


def test_drafts_change_no_answer(directory: Path) -> None:
    found = []
    for lookup in ("on", "off"):
        for engine in started(directory, lookup):  # type: ignore[arg-type]
            grammar = Grammar("lark", 'start: "[" ("ab, " | "cd, "){15,20} "]"')
            answers = [ask(engine, grammar, temperature=t, seed=3, max_new_tokens=200) for t in (0, 1.5)]
            finished = [answer.wait() for answer in answers]
            found.append([answer.token_ids for answer in answers])
            if lookup == "on":
                assert sum(one.drafted_tokens for one in finished) > 0
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("grammar", "pattern"),
    [
        (Grammar("gbnf", 'root ::= "yes" | "no"'), "yes|no"),
        (Grammar("lark", 'start: "a" /[0-9]{2}/'), "a[0-9]{2}"),
        (Grammar("regex", "(é|日){2}"), "(é|日){2}"),
    ],
)
def test_patterns_and_grammars(engine: WatchedEngine, grammar: Grammar, pattern: str) -> None:
    for seed in range(3):
        assert re.fullmatch(pattern, said(ask(engine, grammar, seed=seed)))


@pytest.mark.parametrize(
    "tool_format", [ToolFormat("<tool_call>", "</tool_call>", "arguments"), ToolFormat("", "", "parameters")]
)
def test_a_forced_call_is_read_as_one(engine: WatchedEngine, tool_format: ToolFormat) -> None:
    city = {"type": "object", "properties": {"c": {"$ref": "#/$defs/x"}}, "required": ["c"], "$defs": {"x": SHORT}}
    parameters: list[dict[str, Any] | None] = [city | {"additionalProperties": False}, None]
    names = ["weather", 'q"uo\\te']
    tools = [
        json.dumps({"type": "function", "function": {"name": name, **({"parameters": p} if p else {})}})
        for name, p in zip(names, parameters, strict=True)
    ]
    for seed in range(4):
        offered = tools[:1] if seed % 2 else tools
        grammar = Grammar("lark", tool_format.grammar(offered))
        assert engine.engine.grammar_refusal(grammar) == ""
        answer = ask(engine, grammar, seed=seed)
        tail = answer.wait().text_tail
        content, (call,) = tool_format.read(answer.text + tail)
        assert content == ""
        assert call.name in names[: len(offered)]
        if call.name == "weather":
            jsonschema_rs.validate(city, json.loads(call.arguments))
        else:
            assert json.loads(call.arguments) == {}


@pytest.mark.parametrize("parameters", [None, {}, {"type": "object", "properties": {}}])
def test_a_function_without_parameters_is_called_without_arguments(
    engine: WatchedEngine, parameters: dict[str, Any] | None
) -> None:
    tool = json.dumps({"type": "function", "function": {"name": "now", "parameters": parameters}})
    tool_format = ToolFormat("<tool_call>", "</tool_call>", "arguments")
    for seed in range(3):
        answer = ask(engine, Grammar("lark", tool_format.grammar([tool])), seed=seed)
        tail = answer.wait().text_tail
        _, (call,) = tool_format.read(answer.text + tail)
        assert (call.name, json.loads(call.arguments)) == ("now", {})


@pytest.mark.parametrize(
    ("grammar", "reason"),
    [
        (of_schema({"type": "objekt"}), "objekt"),
        (of_schema({"type": "object", "properties": {"a": {"not": {"type": "string"}}}}), "not"),
        (of_schema({"$ref": "#/$defs/missing"}), "missing"),
        (Grammar("json_schema", "[1]"), "must be an object"),
        (Grammar("regex", "(a"), "regex"),
        (Grammar("lark", "start: missing"), "missing"),
        (Grammar("gbnf", "root ::= ("), ""),
        (Grammar("json_schema", json.dumps({"type": "object"})[:-1] + ', "x": ' + "[" * 400 + "]" * 400 + "}"), None),
    ],
)
def test_what_cannot_be_kept_to_is_a_sentence(engine: WatchedEngine, grammar: Grammar, reason: str | None) -> None:
    said_why = engine.engine.grammar_refusal(grammar)
    if reason is not None:
        assert said_why.startswith("It cannot be kept to: ")
        assert reason in said_why
        with pytest.raises(GrammarFailed, match="cannot keep to the format"):
            ask(engine, grammar)
    assert said(ask(engine, Grammar("regex", "a"))) == "a"


def test_a_model_that_cannot_end_an_answer_says_so(directory: Path) -> None:
    tokenizer = loaded_tiny(directory).tokenizer.backend_tokenizer
    assert "no token that ends" in Grammars(tokenizer, (), 64).refusal_of(Grammar("regex", "a"))


def test_a_mask_forbids_everything_else(directory: Path) -> None:
    loaded = loaded_tiny(directory)
    width = loaded.model.config.vocab_size
    grammars = Grammars(loaded.tokenizer.backend_tokenizer, {STOP}, width)
    constraint = grammars.constraint(Grammar("regex", "a"), torch.device("cpu"))
    logits = torch.zeros(width)
    constraint.mask(logits)
    allowed = torch.nonzero(logits == 0).flatten().tolist()
    assert [loaded.tokenizer.decode([one]) for one in allowed] == ["a"]
    constraint.took(allowed[0])
    logits = torch.zeros(width)
    constraint.mask(logits)
    assert torch.nonzero(logits == 0).flatten().tolist() == [STOP]
    with pytest.raises(GrammarFailed):
        constraint.took(allowed[0])


@pytest.mark.parametrize("settings", [{"ignore_eos": True}, {"min_new_tokens": 3}])
def test_a_format_and_a_least_length_exclude_each_other(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="exclude each other"):
        SamplingParams(grammar=Grammar("regex", "a"), **settings)
