"""Schemas in which what is not named has no place."""

from __future__ import annotations

from typing import Any

import jsonschema_rs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_runtime.interface.grammar import closed

TEXT = {"type": "string"}
A = {"properties": {"a": TEXT}}
CLOSED_A = {"properties": {"a": TEXT}, "additionalProperties": False}
NAMES = st.sampled_from(["a", "b", "properties", "allOf"])
PLAIN = st.recursive(
    st.sampled_from([TEXT, {"type": "integer"}, {"enum": [1, "a"]}, {}]),
    lambda inner: st.one_of(
        st.fixed_dictionaries(
            {"type": st.just("object"), "properties": st.dictionaries(NAMES, inner, max_size=3)},
            optional={"required": st.lists(NAMES, max_size=2, unique=True), "additionalProperties": st.booleans()},
        ),
        st.fixed_dictionaries({"type": st.just("array"), "items": inner}),
        st.fixed_dictionaries({"anyOf": st.lists(inner, min_size=1, max_size=3)}, optional={"properties": st.just({})}),
        st.fixed_dictionaries({"allOf": st.lists(inner, min_size=1, max_size=2)}),
        st.fixed_dictionaries({"not": inner}),
    ),
    max_leaves=6,
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(0, 2) | st.sampled_from(["a", "b", ""]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=6,
)


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        (A, CLOSED_A),
        ({"properties": {}}, {"properties": {}, "additionalProperties": False}),
        ({"type": "array", "items": A}, {"type": "array", "items": CLOSED_A}),
        (
            {"$defs": {"A": A}, "properties": {"x": {"$ref": "#/$defs/A"}}, "required": ["x"]},
            {
                "$defs": {"A": CLOSED_A},
                "properties": {"x": {"$ref": "#/$defs/A"}},
                "required": ["x"],
                "additionalProperties": False,
            },
        ),
        ({"anyOf": [A, {"type": "null"}]}, {"anyOf": [CLOSED_A, {"type": "null"}]}),
        ({"allOf": [A]}, {"allOf": [CLOSED_A]}),
        ({**A, "minProperties": 1}, {**CLOSED_A, "minProperties": 1}),
        ({"anyOf": [A], "description": "b"}, {"anyOf": [CLOSED_A], "description": "b"}),
        ({"properties": {"properties": A}}, {"properties": {"properties": CLOSED_A}, "additionalProperties": False}),
    ],
)
def test_what_lists_its_properties_has_no_others(schema: dict[str, Any], expected: dict[str, Any]) -> None:
    assert closed(schema) == expected


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object"},
        {**A, "additionalProperties": True},
        {**A, "additionalProperties": TEXT},
        {**A, "patternProperties": {"^x": TEXT}},
        {**A, "required": ["b"]},
        {"allOf": [A, {"properties": {"b": TEXT}}]},
        {**A, "anyOf": [{"required": ["a"]}, {"properties": {"b": TEXT}}]},
        {"$ref": "#/$defs/B", **A, "$defs": {"B": {"properties": {"b": TEXT}}}},
        {**A, "if": {"properties": {"a": {"const": "b"}}}, "then": {"required": ["b"]}},
        {"not": A},
        {**A, "unevaluatedProperties": False},
        {"$defs": {"B": A, "A": {"allOf": [{"$ref": "#/$defs/B"}], "required": ["b"]}}, "$ref": "#/$defs/A"},
        {"$defs": {"B": A}, "$ref": "#/$defs/B", "required": ["b"]},
        {"$defs": {"B": A}, "$ref": "#/$defs/B", "minProperties": 2},
        {"$defs": {"B": A}, "$ref": "#/$defs/B", "anyOf": [{"required": ["b"]}]},
        {"$defs": {"B": A}, "$ref": "#/$defs/B", "const": {"b": 1}},
        {"anyOf": [A], "required": ["b"]},
        {"oneOf": [A], "enum": [{"b": "a"}]},
        {**A, "enum": [{"b": "a"}]},
        {**A, "minProperties": 2},
        {**A, "required": ["a"], "dependentRequired": {"a": ["b"]}},
        {"items": A, "contains": {"required": ["b"]}},
        {"const": A},
        {"enum": [A]},
        {"properties": 5, "required": 5, "allOf": 5, "anyOf": {}, "items": [1]},
    ],
)
def test_what_says_something_of_others_stays_as_it_is(schema: dict[str, Any]) -> None:
    assert closed(schema) == schema


@given(PLAIN, JSON)
def test_what_keeps_to_the_closed_schema_keeps_to_the_schema(schema: dict[str, Any], found: Any) -> None:
    if jsonschema_rs.validator_for(closed(schema)).is_valid(found):
        assert jsonschema_rs.validator_for(schema).is_valid(found)


@given(st.dictionaries(st.sampled_from(["properties", "required", "allOf", "anyOf", "$defs", "items", "not"]), JSON))
def test_whatever_a_client_sends_is_looked_at(schema: dict[str, Any]) -> None:
    assert closed(schema).keys() >= schema.keys()
