"""The standardizer's formats: which there are, and which one a record has.

A format is a module here with a `FORMAT`; to add one, write the module and add it to `FORMATS`.
`udfs.formats.arrow` applies them to batches of raw records.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from udfs.errors import ConfigError, RefusedRecord
from udfs.formats import (
    adp,
    agentohana,
    anthropic,
    api_bank,
    api_bank_task,
    atif,
    chat,
    chat_step,
    form_answer,
    function_calls,
    instruction,
    mapped,
    messages_display,
    mind2web,
    mind2web_step,
    model_read,
    openassistant,
    openhands,
    react_chat,
    react_text,
    role_text,
    screen_lists,
    screen_script,
    screen_step,
    sharegpt,
    step_dicts,
    swe_agent,
    toolalpaca,
    toolalpaca_eval,
    toolbench,
    toolbench_answer,
    web_program,
    web_states,
    weblinx,
    weblinx_step,
    xlam,
)
from udfs.formats.trajectory import Format, Options, Trajectory
from udfs.formats.turns import TEXT_FIELDS, turns_in
from udfs.formats.turns import to_messages as _to_messages

__all__ = [
    "FORMATS",
    "TOLD_FORMATS",
    "Options",
    "Trajectory",
    "detect",
    "format_named",
    "to_messages",
    "to_source",
]

FORMATS: tuple[Format, ...] = (
    react_text.FORMAT,
    react_chat.FORMAT,
    toolalpaca.FORMAT,
    toolalpaca_eval.FORMAT,
    toolbench.FORMAT,
    toolbench_answer.FORMAT,
    agentohana.FORMAT,
    xlam.FORMAT,
    adp.FORMAT,
    atif.FORMAT,
    openassistant.FORMAT,
    api_bank.FORMAT,
    api_bank_task.FORMAT,
    function_calls.FORMAT,
    instruction.FORMAT,
    anthropic.FORMAT,
    sharegpt.FORMAT,
    chat.FORMAT,
    messages_display.FORMAT,
    chat_step.FORMAT,
    screen_step.FORMAT,
    web_states.FORMAT,
    weblinx.FORMAT,
    weblinx_step.FORMAT,
    mind2web.FORMAT,
    mind2web_step.FORMAT,
    step_dicts.FORMAT,
    swe_agent.FORMAT,
    role_text.FORMAT,
    openhands.FORMAT,
    web_program.FORMAT,
    screen_script.FORMAT,
    screen_lists.FORMAT,
    form_answer.FORMAT,
)

# Formats that no record is seen to have: a mapping, or what a model read, says how it is read.
TOLD_FORMATS: tuple[Format, ...] = (mapped.FORMAT, model_read.FORMAT)

_BY_NAME = {each.name: each for each in (*FORMATS, *TOLD_FORMATS)}
_SHOWN_KEYS = 20


def format_named(name: str) -> Format:
    """The format of a name.

    Raises:
        ConfigError: there is none; the message lists those that exist.
    """
    if name not in _BY_NAME:
        raise ConfigError(
            f"There is no format '{name}'. Formats: {', '.join(each.name for each in FORMATS)}. "
            "Correct the `format` of the source's entry, or leave it out to have the format "
            "detected."
        )
    return _BY_NAME[name]


def detect(record: Any) -> tuple[Format, float]:
    """The format of a decoded record, from the record alone, and the confidence (0..1).

    Raises:
        RefusedRecord: `unknown_format`, with what the record looks like, the nearest format and
            why it does not fit; `ambiguous_format`, where several fit.
    """
    fitting = [
        (each, confidence)
        for each in _possible(_keys(record))
        if (confidence := each.matches(record))
    ]
    if len(fitting) > 1:
        refined = {name for each, _ in fitting for name in each.refines}
        fitting = [(each, confidence) for each, confidence in fitting if each.name not in refined]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise RefusedRecord(
            "ambiguous_format",
            f"It is {_describe(record)}. It fits "
            + " and ".join(f"{each.name} ({confidence:g})" for each, confidence in fitting)
            + ". Declare the `format` in the source's entry.",
        )
    why = next(
        (f"Nearest is {each.name}, but {why}." for each in FORMATS if (why := each.near(record))),
        f"None of the formats is near: {', '.join(f.name for f in FORMATS)}.",
    )
    raise RefusedRecord("unknown_format", f"It is {_describe(record)}. {why}")


@lru_cache(maxsize=1_024)
def _possible(keys: frozenset[str]) -> tuple[Format, ...]:
    """The formats that a record with these keys may have; most records share their keys."""
    return tuple(each for each in FORMATS if each.keys <= keys)


def _keys(record: Any) -> frozenset[str]:
    """The record's keys, and those of the first object in each of its lists."""
    keys: set[str] = set(record) if isinstance(record, dict) else set()
    for value in record.values() if isinstance(record, dict) else (record,):
        if isinstance(value, list) and value and isinstance(value[0], dict):
            keys.update(value[0])
    for name in TEXT_FIELDS & keys:
        if isinstance(record, dict) and isinstance(text := record.get(name), str):
            turns = turns_in(text)
            if turns and isinstance(turns[0], dict):
                keys.update(turns[0])
    return frozenset(keys)


def _describe(record: Any) -> str:
    match record:
        case dict():
            keys = [f"{key:.60}" for key in record]
            more = len(keys) - _SHOWN_KEYS
            return f"an object with the keys {', '.join(keys[:_SHOWN_KEYS]) or '(none)'}" + (
                f" and {more} more" if more > 0 else ""
            )
        case list() if record and isinstance(record[0], dict):
            return f"a list of {len(record)}; the first item is {_describe(record[0])}"
        case list():
            return f"a list of {len(record)}"
        case str():
            return f"a text that begins {record[:60]!r}"
        case _:
            return f"the bare value {record!r:.60}"


def to_source(format_name: str, row: Mapping[str, Any]) -> Any:
    """Rebuild the conversation of a row of `trajectories` in the shape its source had.

    Returns:
        A list of turns for `chat` and `react_chat`, a text for `react_text` and
        `messages_display`, texts and mask for `toolalpaca`; equal to what the raw record held.

    Raises:
        ConfigError: there is no such format.
    """
    return format_named(format_name).to_source(Trajectory.from_row(row))


def to_messages(format_name: str, row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rebuild a row of a chat format as the source's role/content turns, one by one.

    Raises:
        ConfigError: there is no such format, or it is none of turns.
    """
    if format_name == messages_display.FORMAT.name:
        return _to_messages(Trajectory.from_row(row), chat.DIALECT)
    messages = to_source(format_name, row)
    if format_name not in (chat.FORMAT.name, react_chat.FORMAT.name):
        raise ConfigError(f"Format '{format_name}' has no turns; use `to_source`.")
    return list(messages)
