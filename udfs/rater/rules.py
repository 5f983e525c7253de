"""The `rules` rater: a deterministic score from 0 to 5 out of what a trajectory itself shows.

A judge reads a trajectory for accuracy and efficiency (FIG. 4, ¶26); a reward alone misses bad
steps on the way to a good end (¶27). This rater begins at 5 points and takes points off for what
can be seen without a model. It needs no network and no key, and its explanation names every
deduction with its step. It is no judge: it cannot tell a clever step from a dull one.

| what                  | points    | when                                                       |
|-----------------------|-----------|------------------------------------------------------------|
| `empty_action`        | 0.7       | a step with neither text nor a call, or a label with no action behind it |
| `invalid_action`      | 0.7       | the environment does not know the action, the arguments are broken JSON, or a click has no such target on the page |
| `repeated_action`     | 0.5       | the same action brought the same observation as before      |
| `rejected_call`       | 0.5       | the environment refused the arguments                       |
| `failed_call`         | 0.3       | the call failed, for whatever reason                        |
| `nothing_found`       | 0.2       | a look-up brought nothing                                   |
| `program_error`       | 0.1       | code that the agent ran ended in an error                   |
| `loop`                | 1.0       | once, where one action brought one observation three times or more |
| `unfinished`          | 1.5       | the last observation was never answered, or the agent gave up |
| `environment_score`   | up to 2.5 | 2.5 × (1 − score), where the environment's score lies in 0..1 |

One step loses points once, for its worst fault; all steps together lose at most 3 points. An
unknown environment score costs nothing.
"""  # noqa: E501

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import pyarrow as pa

from udfs.rater.evidence import (
    NOTHING_FOUND,
    Action,
    Step,
    actions_of,
    ending_of,
    error_class,
    folded,
    is_broken_json,
    is_off_page,
    quoted,
    replies_to,
    shown,
)

# Any change of a rule, a weight or a pattern is another rater: count this up.
RULES_VERSION = "rules-v2"

# What one step can lose. A step that the environment could not use at all weighs most; a refused
# call at least meant something; a failure may be the environment's own; a search that misses and
# a program that breaks are part of honest work.
STEP_POINTS = {
    "empty_action": 0.7,
    "invalid_action": 0.7,
    "repeated_action": 0.5,
    "rejected_call": 0.5,
    "failed_call": 0.3,
    "nothing_found": 0.2,
    "program_error": 0.1,
}

# So that a long run that reached its goal is not worth less than a short one that did not.
MAX_STEP_POINTS = 3.0

# Doing a thing twice can be a check; three times with nothing new is being stuck.
LOOP_TIMES = 3
LOOP_POINTS = 1.0

UNFINISHED_POINTS = 1.5

# Half of the scale: a run that missed its goal is worth half at most, however tidy it was.
ENVIRONMENT_SCORE_POINTS = 2.5

FULL_SCORE = 5.0

# The fault that an error in an observation is.
_FAULT_OF_ERROR = {
    "unknown_tool": "invalid_action",
    "invalid_action": "invalid_action",
    "invalid_arguments": "rejected_call",
    "not_found": "nothing_found",
    NOTHING_FOUND: "nothing_found",
    "program_error": "program_error",
    "timeout": "failed_call",
    "permission": "failed_call",
    "rate_limit": "failed_call",
    "http_error": "failed_call",
    "other": "failed_call",
}


class Verdict(NamedTuple):
    """A score, 0 to 5 with one decimal, and the reasons for it, one a line."""

    rater_score: float
    explanation: str


def rate_steps(steps: Sequence[Step], score: float | None) -> Verdict:
    """Rate one trajectory.

    Args:
        steps: its steps, as in `udfs.schema.STEP`.
        score: the environment's score on its own scale; None where none is known.
    """
    if not steps:
        return Verdict(0.0, f"{RULES_VERSION}: 0.0 of 5\nno steps: nothing to rate")
    actions = [actions_of(step) for step in steps]
    replies = [replies_to(steps, actions, i) for i in range(len(steps))]
    lines: list[str] = []

    lost = 0.0
    seen: Counter[tuple[str, str]] = Counter()
    for i, step in enumerate(steps):
        page = "\n".join([*(replies[i - 1] if i else []), step["input"] or ""])
        fault = _worst_fault(step, actions[i], replies[i], page, seen)
        if fault:
            name, reason = fault
            lost += STEP_POINTS[name]
            lines.append(f"step {i + 1}: {name} (-{STEP_POINTS[name]}): {reason}")
    if lost > MAX_STEP_POINTS:
        lines.append(f"steps together: -{MAX_STEP_POINTS} at most, instead of -{lost:.1f}")
        lost = MAX_STEP_POINTS

    times = max(seen.values(), default=0)
    if times >= LOOP_TIMES:
        lost += LOOP_POINTS
        lines.append(f"loop (-{LOOP_POINTS}): one action brought one observation {times} times")

    ending = ending_of(steps[-1], actions[-1], replies[-1], score)
    if ending.is_finished is False:
        lost += UNFINISHED_POINTS
        lines.append(f"step {len(steps)}: unfinished (-{UNFINISHED_POINTS}): {ending.reason}")

    if score is None:
        lines.append("environment_score: unknown, not used")
    elif not 0.0 <= score <= 1.0:
        lines.append(f"environment_score: {score:g} is not on a scale of 0 to 1, not used")
    elif score < 1.0:
        points = ENVIRONMENT_SCORE_POINTS * (1.0 - score)
        lost += points
        lines.append(f"environment_score (-{points:.2f}): {score:g} of 1")

    rated = round(max(0.0, FULL_SCORE - lost), 1)
    return Verdict(rated, "\n".join([f"{RULES_VERSION}: {rated} of 5", *lines]))


def rate_batch(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Rate trajectories in Arrow.

    Args:
        batch: N rows with `steps` (LIST of `udfs.schema.STEP`) and `score` (DOUBLE); null steps
            count as none.

    Returns:
        N rows in the same order: `rater_score` DOUBLE, `explanation` VARCHAR, neither null.
    """
    rows = zip(batch.column("steps").to_pylist(), batch.column("score").to_pylist(), strict=True)
    verdicts = [rate_steps(steps or [], score) for steps, score in rows]
    return pa.RecordBatch.from_arrays(
        [
            pa.array([v.rater_score for v in verdicts], pa.float64()),
            pa.array([v.explanation for v in verdicts], pa.string()),
        ],
        names=["rater_score", "explanation"],
    )


def _worst_fault(
    step: Step,
    actions: list[Action] | None,
    replies: list[str],
    page: str,
    seen: Counter[tuple[str, str]],
) -> tuple[str, str] | None:
    """The fault of a step that weighs most, with its reason; counts the step in `seen`."""
    faults = [*_action_faults(step, actions, page), *_reply_faults(replies)]
    if actions and replies:
        key = (folded(shown(actions)), folded("\n".join(replies)))
        seen[key] += 1
        if seen[key] > 1:
            faults.append(
                (
                    "repeated_action",
                    f"{quoted(shown(actions))} again brought the same observation",
                )
            )
    return max(faults, key=lambda fault: STEP_POINTS[fault[0]], default=None)


def _action_faults(
    step: Step, actions: list[Action] | None, page: str
) -> Iterator[tuple[str, str]]:
    if actions is None:
        return
    if not actions:
        yield "empty_action", "no text, no call" if not step["output"] else "names no action"
    for action in actions:
        if not action.name:
            yield "empty_action", "a call without a name"
        if is_off_page(action, page):
            yield "invalid_action", f"{quoted(shown([action]))} is not on the page shown"
    for call in step["tool_calls"] or []:
        if is_broken_json(call["arguments"] or ""):
            yield "invalid_action", f"arguments of {call['name']} are no JSON"


def _reply_faults(replies: list[str]) -> Iterator[tuple[str, str]]:
    for reply in replies:
        error = error_class(reply)
        if error:
            yield _FAULT_OF_ERROR[error], f"observation {quoted(reply)}"
