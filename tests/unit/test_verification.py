"""Verification: calls against tools, and errors in observations, on literal runs."""

from __future__ import annotations

import json
import time
from typing import Any

import pyarrow as pa
import pytest

from udfs.rater.evidence import error_class
from udfs.rater.verification import VERIFICATION, verify, verify_trajectories
from udfs.schema import STEP

WEATHER = {
    "name": "weather",
    "parameters": {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "unit": {"type": "string", "enum": ["C", "F"]},
            "days": {"type": "array", "items": {"type": "integer", "minimum": 1}},
            "postcode": {"type": "string", "pattern": "^[0-9]{5}$"},
        },
        "required": ["city"],
    },
}


def step(
    *calls: tuple[str | None, str | None],
    observation: str | None = None,
    source: str = "environment",
    step_id: int = 1,
    **fields: Any,
) -> dict[str, Any]:
    seen = [] if observation is None else [{"source": source, "content": observation}]
    return {
        "step_id": step_id,
        "input": None,
        "output": None,
        "tool_calls": [{"name": name, "arguments": arguments} for name, arguments in calls],
        "observations": seen,
    } | fields


def failures(tools: Any, name: str | None, arguments: Any) -> list[str]:
    """What is found wrong with one call."""
    text = arguments if isinstance(arguments, str | None) else json.dumps(arguments)
    found = verify(json.dumps(tools), [step((name, text))])
    assert found["format_ok"] is (not found["failures"])
    return [failure["failure"] for failure in found["failures"]]


@pytest.mark.parametrize(
    "tool",
    [
        pytest.param({"type": "function", "function": WEATHER}, id="OpenAI"),
        pytest.param(WEATHER, id="without its frame: ToolBench, ShareGPT"),
        pytest.param({"name": "weather", "input_schema": WEATHER["parameters"]}, id="Anthropic"),
        pytest.param({"name": "weather", "inputSchema": WEATHER["parameters"]}, id="MCP"),
        pytest.param(
            {
                "name": "weather",
                "parameters": {
                    "city": {"type": "str", "required": True},
                    "unit": {"type": "str, optional", "enum": ["C", "F"]},
                    "days": {"type": "List[int]"},
                },
            },
            id="xLAM, with Python's types",
        ),
        pytest.param(
            {
                "name": "weather",
                "parameters": {
                    "type": "dict",
                    "properties": {
                        "city": {"type": "String"},
                        "unit": {"type": "string", "enum": ["C", "F"]},
                        "days": {"type": "tuple", "items": {"type": "integer"}},
                    },
                    "required": ["city"],
                },
            },
            id="BFCL",
        ),
        pytest.param(
            {
                "name": "weather",
                "parameters": [
                    {"name": "city", "type": "STRING", "required": True},
                    {"name": "unit", "type": "STRING", "enum": ["C", "F"]},
                    {"name": "days", "type": "ARRAY"},
                ],
            },
            id="RapidAPI's list",
        ),
    ],
)
def test_tools_in_the_shapes_of_their_sources(tool: Any) -> None:
    assert failures([tool], "weather", {"city": "Rome", "unit": "C", "days": [1, 2]}) == []
    assert failures([tool], "wether", {"city": "Rome"}) == ["unknown_tool"]
    assert failures([tool], "weather", '{"city": "Rome"') == ["malformed_call"]
    assert failures([tool], "weather", '["Rome"]') == ["malformed_call"]
    assert failures([tool], "weather", {"unit": "C"}) == ["missing_argument"]
    assert failures([tool], "weather", {"city": "Rome", "town": "Rome"}) == ["unknown_argument"]
    assert failures([tool], "weather", {"city": 7}) == ["schema_violation"]
    assert failures([tool], "weather", {"city": "Rome", "unit": "K"}) == ["schema_violation"]
    assert sorted(failures([tool], "weather", {"town": "Rome", "unit": 7})) == [
        "missing_argument",
        "schema_violation",
        "schema_violation",
        "unknown_argument",
    ]


def test_values_inside_arguments() -> None:
    assert failures([WEATHER], "weather", {"city": "Rome", "days": [1, 0]}) == ["schema_violation"]
    assert failures([WEATHER], "weather", {"city": "Rome", "postcode": "00184"}) == []
    assert failures([WEATHER], "weather", {"city": "Rome", "postcode": "x"}) == ["schema_violation"]


@pytest.mark.parametrize("arguments", [None, "", "  ", "{}"])
def test_no_arguments_are_an_empty_object(arguments: str | None) -> None:
    assert failures([{"name": "now"}], "now", arguments) == []
    assert failures([WEATHER], "weather", arguments) == ["missing_argument"]


def test_a_name_alone_is_checked_by_its_name() -> None:
    assert failures(["now"], "now", {"any": "thing"}) == []
    assert failures([{"name": "now", "parameters": {}}], "now", {"any": "thing"}) == []
    assert failures(["now"], "then", {}) == ["unknown_tool"]
    assert failures(["now"], None, {}) == ["unknown_tool"]


def test_a_function_without_parameters_takes_none() -> None:
    tool = {"name": "now", "parameters": {"type": "object", "properties": {}}}
    assert failures([tool], "now", {}) == []
    assert failures([tool], "now", {"zone": "CET"}) == ["unknown_argument"]
    tool["parameters"]["additionalProperties"] = True
    assert failures([tool], "now", {"zone": "CET"}) == []


@pytest.mark.parametrize(
    "schema",
    [{"additionalProperties": {"type": "string"}}, {"$defs": {"place": {"type": "string"}}}],
)
def test_a_schema_of_subschemas_only_declares_no_arguments(schema: Any) -> None:
    assert failures([{"name": "f", "parameters": schema}], "f", {"city": "Rome"}) == []


def test_arguments_declared_in_parts_of_a_schema() -> None:
    tool = {
        "name": "find",
        "parameters": {
            "properties": {"what": {"type": "string"}},
            "anyOf": [
                {"properties": {"near": {"$ref": "#/$defs/place"}}, "required": ["near"]},
                {"properties": {"id": {"type": "integer"}}, "required": ["id"]},
            ],
            "$defs": {"place": {"type": "array", "items": {"type": "number"}, "minItems": 2}},
        },
    }
    assert failures([tool], "find", {"near": [1.5, 2]}) == []
    assert failures([tool], "find", {"id": 3}) == []
    assert failures([tool], "find", {"near": [1.5]}) == ["schema_violation"]


@pytest.mark.parametrize(
    "schema",
    [
        pytest.param({"type": "date"}, id="a type that JSON does not have"),
        pytest.param({"type": "the city's name"}, id="a description for a type"),
        pytest.param({"type": 7}, id="a number for a type"),
        pytest.param({"type": "Union[str, int]"}, id="Python's union"),
        pytest.param({"type": "any"}, id="any"),
        pytest.param({"enum": "Rome, Paris"}, id="an enum that is no list"),
        pytest.param({"pattern": "(?<=x)Rome"}, id="a pattern that RE2 cannot run"),
        pytest.param({"pattern": "("}, id="a pattern that is none"),
        pytest.param({"format": "date"}, id="formats are notes"),
    ],
)
def test_what_cannot_be_understood_is_not_held_against_a_call(schema: Any) -> None:
    tool = {"name": "weather", "parameters": {"properties": {"city": schema}}}
    assert failures([tool], "weather", {"city": "Rome"}) == []
    assert failures([tool], "weather", {"town": "Rome"}) == ["unknown_argument"]


@pytest.mark.parametrize(
    "schema",
    [
        pytest.param({"minimum": "0"}, id="a bound that is no number"),
        pytest.param({"$ref": "#/definitions/none"}, id="a reference to nothing"),
        pytest.param({"$ref": "http://127.0.0.1:9/schema.json"}, id="a reference elsewhere"),
        pytest.param({"$ref": "#"}, id="a reference to itself"),
    ],
)
def test_a_schema_that_cannot_be_used_leaves_the_call_unchecked(schema: Any) -> None:
    tool = {"name": "f", "parameters": {"properties": {"n": schema}, "$ref": schema.get("$ref")}}
    if "$ref" not in schema:
        del tool["parameters"]["$ref"]
    found = verify(json.dumps([tool]), [step(("f", '{"n": 1}'))])
    assert (found["calls"], found["calls_checked"], found["format_ok"]) == (1, 0, None)
    both = verify(json.dumps([tool, WEATHER]), [step(("f", '{"n": 1}'), ("weather", "{}"))])
    assert (both["calls_checked"], both["format_ok"]) == (1, False)


def test_a_pattern_by_a_stranger_takes_no_time() -> None:
    tool = {"name": "f", "parameters": {"properties": {"x": {"pattern": "^(a+)+$"}}}}
    started = time.monotonic()
    assert failures([tool], "f", {"x": "a" * 40 + "!"}) == ["schema_violation"]
    assert time.monotonic() - started < 1.0


@pytest.mark.parametrize("tools", [None, "", "no JSON", "{}", "[]", "[7]", '"weather"'])
def test_nothing_is_checked_without_tools(tools: str | None) -> None:
    found = verify(tools, [step(("weather", "{broken"))])
    assert (found["calls"], found["calls_checked"], found["format_ok"]) == (1, 0, None)
    assert found["failures"] == [] and found["first_failed_step"] is None


def test_a_run_without_structured_calls_is_not_checked() -> None:
    run = [step(output="Action: weather\nAction Input: {}")]
    assert verify(json.dumps([WEATHER]), run)["format_ok"] is None


def test_a_call_that_ends_the_run_needs_no_entry() -> None:
    """ToolBench's Finish, OpenHands' finish, SWE-agent's submit."""
    found = verify(json.dumps([WEATHER]), [step(("weather", '{"city": "Rome"}'), ("Finish", "{}"))])
    assert (found["calls"], found["calls_checked"], found["format_ok"]) == (2, 1, True)


def test_the_evidence_names_step_and_call() -> None:
    run = [
        step(("weather", '{"city": "Rome"}'), step_id=1),
        step(
            ("weather", '{"city": "Rome"}'),
            ("weather", '{"city": 7}'),
            observation="Error: city not found",
            step_id=2,
        ),
    ]
    assert verify(json.dumps([WEATHER]), run) == {
        "calls": 3,
        "calls_checked": 3,
        "format_ok": False,
        "first_failed_step": 2,
        "failures": [
            {
                "step_id": 2,
                "call_number": 2,
                "name": "weather",
                "failure": "schema_violation",
                "detail": "city: '7' is not of type \"string\"",
            }
        ],
        "error_observations": 1,
        "error_classes": ["not_found"],
        "errors": [{"step_id": 2, "error_class": "not_found", "detail": "'Error: city not found'"}],
    }


@pytest.mark.parametrize(
    ("observation", "expected"),
    [
        # ToolBench (arXiv 2307.16789): the errors of its environment, of RapidAPI behind it.
        ('{"error": "No such function name: login", "response": ""}', "unknown_tool"),
        ('{"error": "Timeout error...HTTPConnectionPool(host=\'x\')", "response": ""}', "timeout"),
        ('{"error": "Unauthorized error...", "response": "x"}', "permission"),
        ('{"error": "Unsubscribed error...", "response": "x"}', "permission"),
        ('{"error": "Too many requests error...", "response": "x"}', "rate_limit"),
        ('{"error": "Rate limit per minute error...", "response": "x"}', "rate_limit"),
        ('{"error": "API not working error...", "response": "x"}', "http_error"),
        ('{"error": "request invalid, data error", "response": ""}', "http_error"),
        ('{"error": "Message error...", "response": "x"}', "other"),
        ('{"error": "", "response": "sunny"}', None),
        # ToolAlpaca's simulator (arXiv 2306.05301).
        ('Parameter type error: "sex", expected one of [m, f].', "invalid_arguments"),
        ("Status Code: 400. Response: {}", "invalid_arguments"),
        ("Status Code: 401. Response: {}", "permission"),
        ("Status Code: 404. Response: {}", "not_found"),
        ("Status Code: 429. Response: {}", "rate_limit"),
        ("Status Code: 503. Response: {}", "http_error"),
        ("Status Code: 504. Response: {}", "timeout"),
        ("Status Code: 200. Response: {}", None),
        # tau-bench (arXiv 2406.12045).
        ("Error: user not found", "not_found"),
        ("Error: non-pending order cannot be cancelled", "other"),
        # LangChain.
        ("search2 is not a valid tool, try one of [search].", "unknown_tool"),
        ("1 validation error for SearchInput", "invalid_arguments"),
        # HotpotQA's environment, ALFWorld, ScienceWorld.
        ("Invalid action: think[x]", "invalid_action"),
        ("Nothing happens.", "invalid_action"),
        ("No known action matches that input.", "invalid_action"),
        # Shells and interpreters, as SWE-agent and CodeAct show them.
        ("Traceback (most recent call last):\n  File", "program_error"),
        ("bash: pyton: command not found", "program_error"),
        ("cat: notes.txt: No such file or directory", "program_error"),
        ("bash: ./run.sh: Permission denied", "permission"),
        ("Command timed out after 30 seconds", "timeout"),
        # No errors: an empty result, and texts that speak of errors.
        ("Could not find [X]. Similar: [Y]", "nothing_found"),
        ("No results found", "nothing_found"),
        ("Timeout is a 1993 film about an error in a bank's permission system.", None),
        ("The HTTP status code 404 means that a page was not found.", None),
        ("Terror struck the city.", None),
    ],
)
def test_error_classes(observation: str, expected: str | None) -> None:
    assert error_class(observation) == expected


def test_an_empty_result_is_no_error() -> None:
    found = verify(None, [step(("find", "{}"), observation="No results found")])
    assert (found["error_observations"], found["error_classes"], found["errors"]) == (0, [], [])


def test_a_persons_words_are_not_searched_for_errors() -> None:
    found = verify(None, [step(output="And?", observation="Error: I forgot.", source="user")])
    assert found["error_observations"] == 0
    acted = verify(None, [step(output="Action: look", observation="Error: dark.", source="user")])
    assert acted["error_classes"] == ["other"]


def test_rows_of_arrow() -> None:
    """Whole steps as the lake has them, and null steps."""
    full = dict.fromkeys(field.name for field in STEP) | step(("weather", '{"town": "Rome"}'))
    found = verify_trajectories(
        pa.array([json.dumps([WEATHER]), None], pa.string()),
        pa.array([[full], None], pa.list_(STEP)),
    )
    assert found.type == VERIFICATION
    assert found.field("format_ok").to_pylist() == [False, None]
    assert found.field("calls").to_pylist() == [1, 0]
