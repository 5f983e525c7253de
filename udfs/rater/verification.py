"""Verification: what can be refuted about a trajectory without asking a judge.

The first two stages of APIGen (arXiv 2406.18518, §3.2), on trajectories instead of single calls:

* **format check**: every called function is in `tools`, its arguments are a JSON object, and
  they fit the function's JSON Schema;
* **execution evidence**: observations that report an error, by class (`udfs.rater.evidence`).

| failure            | when                                                                 |
|--------------------|----------------------------------------------------------------------|
| `unknown_tool`     | `tools` has no function of that name, or the call has no name        |
| `malformed_call`   | the arguments are not a JSON object                                  |
| `missing_argument` | a required argument is not given                                     |
| `unknown_argument` | an argument that the function does not declare                       |
| `schema_violation` | an argument breaks its schema (type, enum, bounds, pattern, …)       |

The names of the first four follow ToolScan (arXiv 2411.13547). JSON Schema allows arguments that
it does not declare; like APIGen's and BFCL's checkers, this one does not, unless
`additionalProperties` says so.

Tools in the wild are seldom valid JSON Schema. What cannot be understood is not held against a
call: a type that is no JSON type (`date`, `City name`), a keyword that is not in `_KEYWORDS`, a
reference to another document, a pattern that RE2 cannot run. Nothing is ever fetched. BFCL's and
Python's names for types (`dict`, `float`, `List[int]`, `str, optional`) are understood.

Null is not false: without tools, or without a structured call, nothing was checked. Calls that
stand only in the agent's text count where the parser made calls of them. A call that ends the run
(`Finish`, `submit`, …) is the protocol's and needs no entry in `tools`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import orjson
import pyarrow as pa
import pyarrow.compute as pc
from jsonschema import Draft202012Validator, ValidationError, validators
from referencing import Registry

from udfs.rater.evidence import (
    ENDING_ACTIONS,
    EVIDENCE_VERSION,
    NOTHING_FOUND,
    Step,
    actions_of,
    error_class,
    quoted,
    replies_to,
)

_VERSION = "1"

FAILURE = pa.struct(
    [
        ("step_id", pa.int32()),
        ("call_number", pa.int32()),  # 1-based within the step
        ("name", pa.string()),  # as the call has it
        ("failure", pa.string()),
        ("detail", pa.string()),
    ]
)

OBSERVED_ERROR = pa.struct(
    [
        ("step_id", pa.int32()),  # the step whose action it answers
        ("error_class", pa.string()),
        ("detail", pa.string()),  # the observation's beginning
    ]
)

VERIFICATION = pa.struct(
    [
        ("calls", pa.int32()),  # structured calls
        ("calls_checked", pa.int32()),  # of these, compared with the function's whole entry
        ("format_ok", pa.bool_()),  # null where no call could be compared with any tools
        ("first_failed_step", pa.int32()),
        ("failures", pa.list_(FAILURE)),
        ("error_observations", pa.int32()),
        ("error_classes", pa.list_(pa.string())),  # each once, in order of the alphabet
        ("errors", pa.list_(OBSERVED_ERROR)),
    ]
)

# Names of types beside JSON Schema's own: BFCL's, Python's, Java's; compared in lower case.
_TYPES = {
    "object": ("object", "dict", "dictionary", "map", "hashmap", "mapping", "json"),
    "array": ("array", "list", "tuple", "set", "arraylist"),
    "string": ("string", "str", "char", "text"),
    "number": ("number", "float", "double", "decimal"),
    "integer": ("integer", "int", "long", "short", "bigint"),
    "boolean": ("boolean", "bool"),
    "null": ("null", "none"),
}
_JSON_TYPE = {name: json_type for json_type, names in _TYPES.items() for name in names}

# "list", "List[int]", "str, optional": the part that says what kind of value it is.
_TYPE_NAME = re.compile(r"\s*(\w+)\s*(?:\[.*\])?\s*(?:,\s*optional\s*)?", re.IGNORECASE)
_OPTIONAL = re.compile(r",\s*optional\b|\Aoptional\b", re.IGNORECASE)

# JSON Schema's keywords that are looked at as the library does. The others are left out because
# they mean nothing here, or because one by a stranger can cost more time than any check is worth.
_KEYWORDS = (
    *("$ref", "allOf", "anyOf", "oneOf", "not", "if", "const", "properties", "items"),
    *("prefixItems", "minItems", "maxItems", "minLength", "maxLength", "minProperties"),
    *("maxProperties", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
    "multipleOf",
)


# Keywords whose value is an object, as a parameter's is in data without the frame.
_SUBSCHEMAS = frozenset({"properties", "additionalProperties", "patternProperties", "not", "if"})


class Problem(NamedTuple):
    """What is wrong with one call: a failure of the table above, and what it is about."""

    failure: str
    detail: str


def verify_trajectories(tools: pa.Array, steps: pa.Array) -> pa.StructArray:
    """Verify trajectories.

    Args:
        tools: JSON texts, shape (n,): a list of functions, or null.
        steps: lists of `udfs.schema.STEP`, shape (n,); null counts as none.

    Returns:
        Structs of type `VERIFICATION`, shape (n,), none null.
    """
    rows = zip(tools.to_pylist(), steps.to_pylist(), strict=True)
    return pa.array([verify(text, some or []) for text, some in rows], VERIFICATION)


def verifier_version() -> str:
    """A short text that changes whenever a check or an error class does."""
    return f"verification={_VERSION},evidence={EVIDENCE_VERSION}"


def verify(tools: str | None, steps: Sequence[Step]) -> dict[str, Any]:
    """Verify one trajectory: the fields of `VERIFICATION`."""
    functions = _functions(tools) if tools else None
    calls = checked = 0
    failures: list[dict[str, Any]] = []
    for step in steps:
        for number, call in enumerate(step["tool_calls"] or [], start=1):
            calls += 1
            if functions is None:
                continue
            name = call["name"] or ""
            problems = check_call(functions, name, call["arguments"])
            checked += problems is not None
            place = {"step_id": step["step_id"], "call_number": number, "name": call["name"]}
            failures += [place | problem._asdict() for problem in problems or []]
    errors = list(_errors(steps))
    is_checkable = functions is not None and calls > 0
    return {
        "calls": calls,
        "calls_checked": checked,
        "format_ok": not failures if is_checkable and (checked or failures) else None,
        "first_failed_step": min((f["step_id"] for f in failures), default=None),
        "failures": failures,
        "error_observations": len(errors),
        "error_classes": sorted({error["error_class"] for error in errors}),
        "errors": errors,
    }


def _errors(steps: Sequence[Step]) -> Iterator[dict[str, Any]]:
    actions = [actions_of(step) for step in steps]
    for i, step in enumerate(steps):
        for reply in replies_to(steps, actions, i):
            found = error_class(reply)
            if found and found != NOTHING_FOUND:
                yield {
                    "step_id": step["step_id"],
                    "error_class": found,
                    "detail": quoted(reply, 200),
                }


def check_call(
    functions: Mapping[str, _Function], name: str, arguments: str | None
) -> list[Problem] | None:
    """What is wrong with a call; None where there is nothing that it could be compared with."""
    function = functions.get(name)
    if function is None:
        if name.lower() in ENDING_ACTIONS:
            return None
        known = ", ".join(sorted(functions)) or "none"
        return [Problem("unknown_tool", f"{quoted(name)} is not among the tools: {known[:200]}")]
    try:
        given = orjson.loads(arguments) if arguments and arguments.strip() else {}
    except orjson.JSONDecodeError as error:
        return [Problem("malformed_call", f"no JSON ({error}): {quoted(arguments or '')}")]
    if not isinstance(given, dict):
        return [Problem("malformed_call", f"not a JSON object: {quoted(arguments or '')}")]
    return function.problems(given)


class _Function:
    """A function that an agent may call, with its arguments' schema made ready."""

    def __init__(self, schema: Any) -> None:
        schema = _schema(schema)
        declared = schema.get("properties")
        # Where parts of the schema declare arguments too, only they know them all.
        is_plain = not schema.keys() & {"$ref", "allOf", "anyOf", "oneOf", "if"}
        if isinstance(declared, dict) and is_plain:
            schema = {"additionalProperties": False, **schema}
        self._validator = _Validator(schema, registry=Registry())  # fetches nothing

    def problems(self, arguments: Mapping[str, Any]) -> list[Problem] | None:
        try:
            return [_problem(error) for error in self._validator.iter_errors(arguments)]
        except Exception:  # a schema by a stranger, broken in whatever way: nothing is known
            return None


def _problem(error: Any) -> Problem:
    if not error.absolute_path and error.validator in ("required", "additionalProperties"):
        is_missing = error.validator == "required"
        return Problem("missing_argument" if is_missing else "unknown_argument", error.message)
    place = ".".join(str(part) for part in error.absolute_path)
    return Problem("schema_violation", f"{place}: {error.message}" if place else error.message)


@lru_cache(maxsize=256)
def _functions(tools: str) -> dict[str, _Function] | None:
    """The functions of a `tools` text by name; None where it is no list of functions.

    Understood are OpenAI's `{"function": {"name", "parameters"}}`, the same without its frame
    (xLAM, ToolBench, ShareGPT), Anthropic's `input_schema`, MCP's `inputSchema`, and a
    name alone.
    """
    try:
        entries = orjson.loads(tools)
    except orjson.JSONDecodeError:
        return None
    functions: dict[str, _Function] = {}
    for entry in entries if isinstance(entries, list) else []:
        if isinstance(entry, str):
            entry = {"name": entry}
        if isinstance(entry, dict) and isinstance(entry.get("function"), dict):
            entry = entry["function"]
        name = entry.get("name") if isinstance(entry, dict) else None
        if isinstance(name, str):
            keys = ("parameters", "input_schema", "inputSchema")
            given = (entry[key] for key in keys if entry.get(key))
            functions.setdefault(name, _Function(next(given, {})))
    return functions or None


def _schema(given: Any) -> dict[str, Any]:
    """A function's parameters as a JSON Schema of one object.

    APIGen's and xLAM's data leave the frame out (`{"city": {"type": "str", "required": true}}`);
    OpenAPI's lists name the parameters inside (`[{"name": "city", …}]`).
    """
    if isinstance(given, list):
        given = {p["name"]: p for p in given if isinstance(p, dict) and "name" in p}
    if not isinstance(given, dict):
        return {}
    is_map = given and not any(
        not isinstance(value, dict) or name in _SUBSCHEMAS or name.startswith("$")
        for name, value in given.items()
    )
    if not is_map:
        return given
    required = [name for name, parameter in given.items() if parameter.get("required") is True]
    return {"type": "object", "properties": given, "required": required}


def _type(validator: Any, types: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
    names = types if isinstance(types, list) else [types]
    known = [_json_type(name) for name in names]
    is_fitting = any(t is None or validator.is_type(instance, t) for t in known)
    if not is_fitting:
        yield ValidationError(f"{quoted(_json(instance))} is not of type {_json(types)}")


def _json_type(name: Any) -> str | None:
    """JSON's name for a type; None where it is none that is known, so that anything fits."""
    found = _TYPE_NAME.fullmatch(name) if isinstance(name, str) else None
    return _JSON_TYPE.get(found.group(1).lower()) if found else None


def _required(validator: Any, names: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
    # `true` beside a type is an older way to say it, about the parameter itself.
    if isinstance(names, list) and isinstance(instance, dict):
        missing = [name for name in names if isinstance(name, str) and name not in instance]
        if missing:
            yield ValidationError(f"missing: {', '.join(missing)}")


def _enum(validator: Any, values: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
    if isinstance(values, list) and instance not in values:
        yield ValidationError(f"{quoted(_json(instance))} is not one of {_json(values)[:200]}")


def _pattern(validator: Any, pattern: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
    """Patterns by strangers run in RE2, which takes linear time; what it cannot run is left out."""
    if not (isinstance(pattern, str) and isinstance(instance, str)):
        return
    try:
        is_matching = pc.match_substring_regex(pa.scalar(instance), pattern).as_py()
    except pa.ArrowInvalid:
        return
    if not is_matching:
        yield ValidationError(f"{quoted(instance)} does not match {quoted(pattern)}")


def _additional(
    validator: Any, allowed: Any, instance: Any, schema: Any
) -> Iterator[ValidationError]:
    declared = schema.get("properties", {})
    if not isinstance(instance, dict) or schema.get("patternProperties"):
        return
    others = [name for name in instance if name not in declared]
    if allowed is False and others:
        names = ", ".join(others)
        yield ValidationError(f"not declared: {quoted(names)}")
    if isinstance(allowed, dict):
        for name in others:
            yield from validator.descend(instance[name], allowed, path=name)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


_Validator: Any = validators.create(
    meta_schema={},
    validators={name: Draft202012Validator.VALIDATORS[name] for name in _KEYWORDS}
    | {
        "type": _type,
        "required": _required,
        "enum": _enum,
        "pattern": _pattern,
        "additionalProperties": _additional,
    },
    type_checker=Draft202012Validator.TYPE_CHECKER,
)
