"""`react_text`: a whole run as one ReAct text, in one of a record's fields.

Source: FIG. 3A of the specification (HotpotQA, Yang et al. 2018), with the log's own labels. A
thought is a step of its own, and `Model Action 1: ` is written `Action: `, as the figure does:

    {"question": "Which is older?", "reward": 1.0, "prompt":
     "Question: Which is older? Follow Action(param) format.\\nThought: I search both.\\n
      Model Action 1: Search[A]\\nEnv Observation 1: A was founded in 1844."}

Source: FireAct's runs of Llama models (Chen et al. 2023), with ReAct's plain labels (Yao et al.
2023). One step is what the model wrote up to the next observation, verbatim:

    {"reward": true, "traj": "### Instruction:\\nWhich is older?\\n\\n### Response:\\n
      Thought: I search both.\\nAction: search[A]\\nObservation: A was founded in 1844.\\n"}

What stands before the first thought or action is the input of step 1. `thought_as_step` in a
source's entry overrides what the dialect does with thoughts. An action stays text in `output`;
`tool_calls` is for calls that the source gives as structure.

`to_source` writes the text again. Where it would not be the same to the letter (unusual spacing,
numbered labels), the text also stays in `other_information` (layout, `text`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from udfs.errors import RefusedRecord
from udfs.formats.trajectory import (
    Format,
    Observation,
    Options,
    Step,
    Trajectory,
    assemble,
)

# A label at the start of a line, a space before it allowed: the label as it stands, and its kind.
# Searched in a text that has a line break put before it: a pattern that begins with a letter is
# found several times faster than one that begins with `^`.
LABEL = re.compile(
    r"\n( ?(Thought|Action|Observation|Model Action|Env Observation|Question)(?: ?\d+)?: ?)"
)
_THOUGHT, _OBSERVATION, _QUESTION = "Thought", "Observation", "Question"
_ACTION, _LOGGED_ACTION, _LOGGED_OBSERVATION = "Action", "Model Action", "Env Observation"
_OBSERVATIONS = {_OBSERVATION, _LOGGED_OBSERVATION}
_MODELS = {_THOUGHT, _ACTION, _LOGGED_ACTION}
_ASKED = "Question: "
# The header of instruction-tuned models' prompts (Alpaca's): what is asked stands between these.
_INSTRUCTION, _RESPONSE = "### Instruction:", "### Response:"

# The value of `dialect` in the layout for FIG. 3A's labels; missing for the plain ones.
_LOG = "log"


def thought_of(output: str) -> str | None:
    """The thoughts within a model's text, without their labels; None where none is marked."""
    if _THOUGHT not in output:
        return None
    parts = LABEL.split("\n" + output)
    thoughts = [
        body.strip()
        for kind, body in zip(parts[2::3], parts[3::3], strict=True)
        if kind == _THOUGHT
    ]
    return "\n".join(thoughts) if thoughts else None


def matches(record: Any) -> float:
    """1.0 for FIG. 3A's labels or behind an instruction header, 0.9 for ReAct's plain labels."""
    runs = _runs(record)
    if len(runs) != 1:
        return 0.0
    ((field, kinds),) = runs
    return 1.0 if _LOGGED_ACTION in kinds or _INSTRUCTION in record[field] else 0.9


def near(record: Any) -> str | None:
    """Labels without observations, or several runs."""
    runs = _runs(record)
    if runs:
        return f"several fields hold a labelled run: {', '.join(name for name, _ in runs):.200}"
    for name, kinds in _labelled_fields(record):
        if kinds & _MODELS:
            return f"`{name:.60}` has thoughts or actions, but no observation"
    return None


def parse(record: Any, raw_key: str | None, options: Options) -> list[Trajectory]:
    """One trajectory.

    Raises:
        RefusedRecord: `no_steps`, where no one text field has labelled actions and observations;
            `several_questions`, where another question follows in the text, so that it holds
            several episodes, as a prompt with examples does.
    """
    fields = [(name, kinds) for name, kinds in _labelled_fields(record) if kinds & _MODELS]
    if len(fields) != 1:
        names = ", ".join(name for name, _ in fields) or "none"
        raise RefusedRecord(
            "no_steps",
            "Exactly one text field has to hold `Thought:` or `Action:` at the start of lines; "
            f"here: {names:.200}.",
        )
    ((field, kinds),) = fields
    text = record[field]
    is_log = _LOGGED_ACTION in kinds
    layout: dict[str, Any] = {"field": field}
    if is_log:
        layout["dialect"] = _LOG
    if text.endswith("\n"):
        layout["end"] = "\n"
    before, segments = _split(text.removesuffix("\n"))
    if is_log:
        before = before.removeprefix(_ASKED)
    thought_as_step = is_log if options.thought_as_step is None else options.thought_as_step
    _, _, instruction = before.rpartition(_INSTRUCTION)
    trajectory = assemble(
        record,
        raw_key,
        _steps(before or None, segments, thought_as_step),
        steps_field=field,
        layout=layout,
        user_query=instruction.partition(_RESPONSE)[0].strip() or None,
    )
    if to_source(trajectory) != text:
        layout["text"] = text
    return [trajectory]


def to_source(trajectory: Trajectory) -> str:
    """The text that was in the record's field."""
    layout = trajectory.layout
    if "text" in layout:
        return str(layout["text"])
    is_log = layout.get("dialect") == _LOG
    parts = []
    actions = 0
    for step in trajectory.steps:
        if step.input is not None:
            parts.append((_ASKED if is_log else "") + step.input)
        output = step.output or ""
        if is_log and output.startswith(f"{_ACTION}: "):
            actions += 1
            output = f"Model Action {actions}{output.removeprefix(_ACTION)}"
        parts.append(output)
        label = f"{_LOGGED_OBSERVATION} {actions}" if is_log else _OBSERVATION
        parts.extend(f"{label}: {seen.content}" for seen in step.observations)
    return "\n".join(parts) + str(layout.get("end", ""))


def _runs(record: Any) -> list[tuple[str, set[str]]]:
    """Text fields with labels of the model and of observations, and which kinds of label."""
    return [
        (name, kinds)
        for name, kinds in _labelled_fields(record)
        if kinds & _MODELS and kinds & _OBSERVATIONS
    ]


def _labelled_fields(record: Any) -> Iterator[tuple[str, set[str]]]:
    """Text fields with labels at the start of lines, and which kinds of label they have."""
    if isinstance(record, dict):
        for name, value in record.items():
            # A quick look first: most texts of most records have none.
            if isinstance(value, str) and ("Action" in value or "Thought" in value):
                yield name, {kind for _, kind in LABEL.findall("\n" + value)}


def _split(text: str) -> tuple[str, list[tuple[str, str, str]]]:
    """What stands before the model's first label, and from there on each label's kind, the label
    itself and what follows it."""
    before, *parts = LABEL.split("\n" + text)
    segments = list(zip(parts[1::3], parts[::3], parts[2::3], strict=True))
    # Observations and questions before the model's first words are part of what it was given.
    given = 0
    while given < len(segments) and segments[given][0] not in _MODELS:
        given += 1
    before += "".join(f"\n{label}{body}" for _, label, body in segments[:given])
    return before[1:], segments[given:]


def _steps(
    first_input: str | None, segments: list[tuple[str, str, str]], thought_as_step: bool
) -> list[Step]:
    steps: list[Step] = []
    outputs: list[str] = []
    thoughts: list[str] = []

    def close() -> None:
        if outputs:
            thought = "\n".join(thoughts) if thoughts else None
            steps.append(Step(None if steps else first_input, thought, "\n".join(outputs), [], []))
            outputs.clear()
            thoughts.clear()

    for kind, label, body in segments:
        if kind in _MODELS:
            outputs.append(f"{_ACTION}: {body}" if kind == _LOGGED_ACTION else label + body)
            if kind == _THOUGHT:
                thoughts.append(body.strip())
                if thought_as_step:
                    close()
        elif kind in _OBSERVATIONS:
            close()
            steps[-1].observations.append(Observation("environment", None, None, body))
        else:
            raise RefusedRecord(
                "several_questions",
                f"After step {len(steps)} another question follows: {body[:80]!r}. The text holds "
                "several episodes, and which of them is the run is not said.",
            )
    close()
    return steps


FORMAT = Format(
    name="react_text", version="1", matches=matches, near=near, parse=parse, to_source=to_source
)
