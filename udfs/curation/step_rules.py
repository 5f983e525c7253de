"""Step rules: which steps of a run are bad, and which are worth learning all the same.

A run with full reward can hold steps that nobody should learn (¶27 of the specification), and a
run that failed can hold many that are worth it. AgentRefine (arXiv 2501.01702) and STeP (arXiv
2505.20023) train on runs with errors and their corrections, with the erring steps masked from the
loss while they stay in the context; EEF (arXiv 2504.13145) takes good actions out of failed runs
and leaves out those that may harm. The rules here say which steps are which. They see form, not
sense: a needless search is a good step to them.

| flag                | when                                                       | masks          |
|---------------------|------------------------------------------------------------|----------------|
| `invalid_action`    | the environment does not know the action, a label has no action behind it, or a click has no such target on the page | yes |
| `empty_output`      | neither text nor a call                                    | yes            |
| `repeated_action`   | the same action again with nothing new seen or tried in between, and nothing new came of it | yes |
| `loop`              | a cycle of one to four actions with the same observations, three times or more; from the second time on | yes |
| `malformed_call`    | arguments that are no JSON object, or a call without a name | yes           |
| `unknown_tool`      | a call of a function that is not among the tools           | yes            |
| `schema_violation`  | arguments that do not fit the function's schema            | yes            |
| `error_observation` | what came back reports an error                            | where the class is `invalid_action`, `invalid_arguments` or `unknown_tool` |
| `unfinished`        | the run ends without an answer; on its last step           | no             |
| `self_correction`   | after an error of the agent's own, or with a tool that failed, another action that the environment takes | no: it is good |

**What masks.** A rule masks where the fault is in what the agent put out. A timeout, a missing
permission, a rate limit and a failing service are the environment's; the action may be the one
that a good agent takes. `not_found` and `program_error` are answers: one looks up what may not be
there, and runs a test that should fail. `other` does not say whose fault it is, so it is held
against nobody. Giving up can be right, and the last step of a run that was cut off can be as good
as any: `unfinished` is about the run.

The **first error step** is the first one that a rule masks.
"""  # noqa: E501

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa

from udfs.rater.evidence import (
    ENDING_ACTIONS,
    Action,
    Ending,
    Step,
    actions_of,
    contents,
    ending_of,
    error_class,
    is_broken_json,
    is_off_page,
    quoted,
    replies_to,
    shown,
    unlabelled,
)

# Any change of a rule, or of what masks, changes flags: count this up.
_VERSION = "1"

# Error classes that are the agent's own fault. See above.
AGENT_ERRORS = frozenset({"invalid_action", "invalid_arguments", "unknown_tool"})

# Of these, those in which the environment does not know the action.
_NOT_KNOWN = frozenset({"invalid_action", "unknown_tool"})

_SCHEMA_FAILURES = frozenset({"missing_argument", "unknown_argument", "schema_violation"})

# Errors that may be gone a moment later: to try once more is sensible.
_PASSING = frozenset({"timeout", "rate_limit", "http_error"})

# A loop: OpenHands' stuck detector (openhands/controller/stuck.py) takes an action that brings an
# error three times, or two actions in turn three times, for one. Longer cycles are rare.
LOOP_TIMES = 3
LOOP_LENGTHS = range(1, 5)

# Flags that are no fault.
_GOOD = frozenset({"self_correction"})

# Flags after which another action is a correction, where they mask.
_ERRORS = frozenset(
    {"invalid_action", "malformed_call", "unknown_tool", "schema_violation", "error_observation"}
)

# A thought by its label, in a text without an answer by its label.
_THOUGHT_ALONE = re.compile(r"\A\s*thought(?: \d+)?[ \t]*:(?!.*\banswer[ \t]*:)", re.I | re.S)

STEP_FLAG = pa.struct(
    [
        ("step_id", pa.int32()),
        ("flag", pa.string()),
        ("detail", pa.string()),  # of an error_observation "<error class>: <its beginning>"
    ]
)

STEP_FLAGS = pa.struct(
    [
        ("step_count", pa.int32()),
        ("unmasked_steps", pa.list_(pa.int32())),
        ("trainable_steps", pa.list_(pa.int32())),
        ("sound_steps", pa.list_(pa.int32())),
        ("flags", pa.list_(STEP_FLAG)),
        ("flag_names", pa.list_(pa.string())),
        ("flagged_step_count", pa.int32()),
        ("first_error_step", pa.int32()),
        ("repeated_step_count", pa.int32()),
        ("self_correction_count", pa.int32()),
        ("has_loop", pa.bool_()),
        ("is_finished", pa.bool_()),
    ]
)


class Flag(NamedTuple):
    """One finding about one step."""

    step_id: int
    flag: str
    detail: str
    masks: bool = True


# What was done in a step, to compare by: names and arguments.
Done = tuple[tuple[str, str], ...]

# Items of `verifications.failures` and `verifications.errors`.
Found = Mapping[str, Any]


class Run:
    """A run as the rules look at it.

    Attributes:
        steps: as in `udfs.schema.STEP`.
        failures: of its calls, as in `udfs.rater.verification.FAILURE`.
        errors: of its observations, as in `udfs.rater.verification.OBSERVED_ERROR`.
        score: the environment's.
        actions: per step what the agent did; none where the log does not show it.
        done: the same to compare by; empty where it is nothing, or not known.
        replies: per step what the environment said to it.
        user_spoke: per step whether a user's word came between it and the step before.
        ending: whether it came to its end.
    """

    __slots__ = (
        "actions",
        "done",
        "ending",
        "errors",
        "failures",
        "replies",
        "score",
        "steps",
        "user_spoke",
    )

    def __init__(
        self,
        steps: Sequence[Step],
        failures: Sequence[Found] = (),
        errors: Sequence[Found] = (),
        score: float | None = None,
    ) -> None:
        self.steps = steps
        self.failures = failures
        self.errors = errors
        self.score = score
        self.actions = [actions_of(step) for step in steps]
        self.done = [_done(*each) for each in zip(steps, self.actions, strict=True)]
        self.replies = [replies_to(steps, self.actions, i) for i in range(len(steps))]
        self.user_spoke = [self._user_spoke_before(i) for i in range(len(steps))]
        self.ending = how_it_ended(self)

    def _user_spoke_before(self, i: int) -> bool:
        """In some chats the environment speaks as the user: what is a reply is no user's word."""
        given = self.steps[i]["input"]
        if i == 0:
            return given is not None
        said = contents(self.steps[i - 1], "user")
        if given is not None:
            said.append(given)
        return bool(said) and any(unlabelled(text) not in self.replies[i - 1] for text in said)


def invalid_actions(run: Run) -> Iterator[Flag]:
    """Actions that the environment does not know, and labels without an action behind them.

    AgentBench's finish reasons Invalid Action and Invalid Format (arXiv 2308.03688). A step of
    thought alone is no such thing: ReAct (arXiv 2210.03629) lets the agent think between actions.
    """
    for error in run.errors:
        if error["error_class"] in _NOT_KNOWN:
            yield Flag(error["step_id"], "invalid_action", error["detail"])
    for i, actions in enumerate(run.actions):
        if actions == [] and (run.steps[i]["output"] or "").strip():
            yield Flag(run.steps[i]["step_id"], "invalid_action", "names no action")
        for action in actions or ():
            is_click = len(action.name) == 5 and action.name.lower() == "click"
            if is_click and is_off_page(action, _page(run, i)):
                detail = f"{quoted(shown([action]))} is not on the page shown"
                yield Flag(run.steps[i]["step_id"], "invalid_action", detail)


def empty_outputs(run: Run) -> Iterator[Flag]:
    """Steps in which the agent neither says nor calls anything.

    OpenHands' stuck detector (openhands/controller/stuck.py) knows them as empty responses. A
    step whose call the log leaves out is none: the environment's answer shows that there was one.
    """
    for i, actions in enumerate(run.actions):
        if actions == [] and not (run.steps[i]["output"] or "").strip():
            yield Flag(run.steps[i]["step_id"], "empty_output", "no text, no call")


def repeated_actions(run: Run) -> Iterator[Flag]:
    """The same action again, with nothing new in between, and nothing new came of it.

    MAST's step repetition (arXiv 2503.13657, FM-1.3), as far as it can be seen. Something new is
    an observation not seen before, a user's word, and an untried action that brings another
    observation than the last: a program that fails as before, after an edit, is no repetition.
    A call that timed out may be tried once more. Without a reply nothing is known.
    """
    if len(set(run.done)) == len(run.done):
        return
    passing = {e["step_id"] for e in run.errors if e["error_class"] in _PASSING}
    seen: set[str] = set()
    last: dict[Done, int] = {}  # how much was known when it was last done
    others = 0
    before: list[str] = []
    for i, (step, action, replies) in enumerate(zip(run.steps, run.done, run.replies, strict=True)):
        others += run.user_spoke[i]
        known = len(seen) + others
        seen.update(replies)
        if action not in last and replies != before:
            others += 1
        if action and replies:
            is_news = last.get(action) != known or len(seen) + others != known
            if not is_news and step["step_id"] not in passing:
                detail = f"{quoted(shown(run.actions[i] or []))} again brought nothing new"
                yield Flag(step["step_id"], "repeated_action", detail)
            last[action] = len(seen) + others
        before = replies or before


def loops(run: Run) -> Iterator[Flag]:
    """A cycle of one to four actions that brings the same observations three times or more.

    The first time is no loop yet and is not flagged. Sources: OpenHands' stuck detector, and
    MAST's step repetition (arXiv 2503.13657, FM-1.3). A user's word ends a cycle.
    """
    if len(set(run.done)) == len(run.done):
        return
    turns = [
        (action, tuple(replies)) if action and replies else None
        for action, replies in zip(run.done, run.replies, strict=True)
    ]
    found: dict[int, int] = {}
    for length in LOOP_LENGTHS:
        same = 0
        for i in range(length, len(turns)):
            is_same = bool(turns[i] and turns[i] == turns[i - length] and not run.user_spoke[i])
            same = same + 1 if is_same else 0
            if same >= length * (LOOP_TIMES - 1):
                for j in range(i - same + 1, i + 1):
                    found.setdefault(j, length)
    for i, length in found.items():
        what = "an action" if length == 1 else f"{length} actions"
        detail = f"{what} and what came back, {LOOP_TIMES} times or more"
        yield Flag(run.steps[i]["step_id"], "loop", detail)


def malformed_calls(run: Run) -> Iterator[Flag]:
    """Calls whose arguments are no JSON object, and calls without a name.

    APIGen's format check (arXiv 2406.18518, §3.2), as `verifications` has it. Where no tools are
    known nothing is verified, so broken JSON is looked for here too.
    """
    verified = {f["step_id"] for f in run.failures if f["failure"] == "malformed_call"}
    for failure in run.failures:
        if failure["failure"] == "malformed_call":
            yield Flag(failure["step_id"], "malformed_call", failure["detail"])
    for step in run.steps:
        for call in step["tool_calls"] or ():
            if not call["name"]:
                yield Flag(step["step_id"], "malformed_call", "a call without a name")
            elif step["step_id"] not in verified and is_broken_json(call["arguments"] or ""):
                detail = f"{quoted(call['name'])}: no JSON: {quoted(call['arguments'])}"
                yield Flag(step["step_id"], "malformed_call", detail)


def unknown_tools(run: Run) -> Iterator[Flag]:
    """Calls of a function that is not among the tools: ToolScan (arXiv 2411.13547)."""
    for failure in run.failures:
        if failure["failure"] == "unknown_tool":
            yield Flag(failure["step_id"], "unknown_tool", failure["detail"])


def schema_violations(run: Run) -> Iterator[Flag]:
    """Arguments that are missing, not declared, or break their schema.

    APIGen's format check (arXiv 2406.18518, §3.2); the names are ToolScan's (arXiv 2411.13547).
    """
    for failure in run.failures:
        if failure["failure"] in _SCHEMA_FAILURES:
            detail = f"{failure['failure']}: {quoted(failure['name'])}: {failure['detail']}"
            yield Flag(failure["step_id"], "schema_violation", detail)


def error_observations(run: Run) -> Iterator[Flag]:
    """Steps to which the environment answers with an error, by its class; the agent's own first.

    The classes are those of `udfs.rater.evidence`, as `verifications` has found them.
    """
    for error in sorted(run.errors, key=lambda error: error["error_class"] not in AGENT_ERRORS):
        yield Flag(
            error["step_id"],
            "error_observation",
            f"{error['error_class']}: {error['detail']}",
            masks=error["error_class"] in AGENT_ERRORS,
        )


def how_it_ended(run: Run) -> Ending:
    """Whether a run came to its end, as far as its log tells.

    Beside what `udfs.rater.evidence.ending_of` sees, a run is not finished that ends

    * with a thought by its label, and neither an action nor an answer,
    * with a call that nothing answered, where tools answered earlier calls by their ids:
      AgentBench's Context Limit and Task Limit Exceeded (arXiv 2308.03688), MAST's premature
      termination (arXiv 2503.13657, FM-3.1),
    * with an error as the answer to its last action.

    A reward above 0 outweighs all of these. Null is not false: many logs end with the agent's
    last action, because the environment needs no more words (ALFWorld, WebShop, screens), and a
    sample of one call has no reply at all.
    """
    if not run.steps:
        return Ending(None, "no steps")
    last, actions, replies = run.steps[-1], run.actions[-1], run.replies[-1]
    ending = ending_of(last, actions, replies, run.score)
    if (run.score is not None and run.score > 0.0) or contents(last, "agent"):
        return ending
    if ending.is_finished and any(error["step_id"] == last["step_id"] for error in run.errors):
        return Ending(False, "the last action was answered by an error")
    if not last["tool_calls"] and _is_thought_alone(last, actions):
        return Ending(False, "the last step is a thought alone")
    if ending.is_finished is None and last["tool_calls"] and any(map(_is_answered, run.steps)):
        return Ending(False, "the last call was never answered")
    return ending


def unfinished(run: Run) -> Iterator[Flag]:
    """The last step of a run that did not come to its end; see `how_it_ended`."""
    if run.ending.is_finished is False:
        yield Flag(run.steps[-1]["step_id"], "unfinished", run.ending.reason, masks=False)


def self_corrections(run: Run, own: frozenset[int]) -> Iterator[Flag]:
    """After an error, another action than those that failed, and the environment takes it.

    This is what AgentRefine (arXiv 2501.01702) trains for and STeP (arXiv 2505.20023) has a
    teacher write, and the recovery that EEF (arXiv 2504.13145) finds worth keeping in failed runs.
    After an error that was not the agent's own only the same tool counts, since another one may
    just be the next thing to do. To go back to what was done before corrects nothing, nor does an
    answer that ends the run, and after a user's word the correction is the user's.

    Args:
        run: the run.
        own: the ids of steps with an error that is the agent's own.
    """
    erring = own.union(error["step_id"] for error in run.errors)
    if not erring:
        return
    done: set[Done] = set()
    failed: set[Done] = set()
    is_own = False
    for i, step in enumerate(run.steps):
        action, replies = run.done[i], run.replies[i]
        if run.user_spoke[i]:
            failed.clear()
        if not action:
            continue
        is_untried = action not in done
        done.add(action)
        if step["step_id"] in erring:
            is_own = step["step_id"] in own or (is_own and bool(failed))
            failed.add(action)
            continue
        is_ending = any(name.lower() in ENDING_ACTIONS for name, _ in action)
        if not failed or not replies or is_ending:
            continue
        names = {name for other in failed for name, _ in other}
        if is_untried and (is_own or any(name in names for name, _ in action)):
            if any(map(error_class, replies)):
                continue  # no error is left here but that nothing was found: no success
            detail = f"{quoted(shown(run.actions[i] or []))} after an error"
            yield Flag(step["step_id"], "self_correction", detail, masks=False)
        failed.clear()


# All but `self_corrections`, which builds on what these find.
RULES: tuple[Callable[[Run], Iterator[Flag]], ...] = (
    invalid_actions,
    empty_outputs,
    repeated_actions,
    loops,
    malformed_calls,
    unknown_tools,
    schema_violations,
    error_observations,
    unfinished,
)


def step_rules_version() -> str:
    """A short text that changes whenever a rule does; the verifier has its own."""
    return f"step_rules={_VERSION}"


def flag_steps(
    steps: pa.Array, failures: pa.Array, errors: pa.Array, score: pa.Array
) -> pa.StructArray:
    """Flag the steps of trajectories.

    Args:
        steps: lists of `udfs.schema.STEP`, shape (n,); null counts as none.
        failures: lists of `udfs.rater.verification.FAILURE`, shape (n,); null counts as none.
        errors: lists of `udfs.rater.verification.OBSERVED_ERROR`, shape (n,); likewise.
        score: DOUBLE, the environment's; null where none is known.

    Returns:
        Structs of type `STEP_FLAGS`, shape (n,), none null.
    """
    columns = (steps.to_pylist(), failures.to_pylist(), errors.to_pylist(), score.to_pylist())
    return pa.array(
        [
            flags_of(Run(some or [], failed or [], erred or [], reward))
            for some, failed, erred, reward in zip(*columns, strict=True)
        ],
        STEP_FLAGS,
    )


def flags_of(run: Run) -> dict[str, Any]:
    """What the rules say of one run: the fields of `STEP_FLAGS`."""
    found = [flag for rule in RULES for flag in rule(run)]
    if found:
        own = frozenset(flag.step_id for flag in found if flag.flag in _ERRORS and flag.masks)
        found += self_corrections(run, own)
        found.sort(key=lambda flag: flag.step_id)  # within a step in the order of the rules
    masked = {flag.step_id for flag in found if flag.masks}
    first_error = min(masked, default=None)
    unmasked = [s["step_id"] for s in run.steps if s["is_trainable"] and says_something(s)]
    trainable = [step_id for step_id in unmasked if step_id not in masked]
    return {
        "step_count": len(run.steps),
        "unmasked_steps": unmasked,
        "trainable_steps": trainable,
        "sound_steps": [s for s in trainable if first_error is None or s < first_error],
        "flags": [{"step_id": f.step_id, "flag": f.flag, "detail": f.detail} for f in found],
        "flag_names": sorted({flag.flag for flag in found}),
        "flagged_step_count": len({f.step_id for f in found if f.flag not in _GOOD}),
        "first_error_step": first_error,
        "repeated_step_count": len({f.step_id for f in found if f.flag == "repeated_action"}),
        "self_correction_count": sum(flag.flag == "self_correction" for flag in found),
        "has_loop": any(flag.flag == "loop" for flag in found),
        "is_finished": run.ending.is_finished,
    }


def says_something(step: Step) -> bool:
    """Whether a step gives the agent's message any text or call, as messages are made in SQL."""
    return bool(
        step["tool_calls"]
        or (step["output"] or "").strip(" \t\n\f\r")  # RE2's \s, which the macro uses
        or any(
            o["source"] == "agent" and o["content"] is not None for o in step["observations"] or ()
        )
    )


def _done(step: Step, actions: list[Action] | None) -> Done:
    """White space in arguments does not matter; 1 and "1" are not the same there."""
    if step["tool_calls"]:
        return tuple(
            (call["name"] or "", "".join((call["arguments"] or "").split()))
            for call in step["tool_calls"]
        )
    return tuple((action.name, action.argument) for action in actions or ())


def _page(run: Run, i: int) -> str:
    """What the agent saw before step i."""
    return "\n".join([*(run.replies[i - 1] if i else []), run.steps[i]["input"] or ""])


def _is_thought_alone(step: Step, actions: list[Action] | None) -> bool:
    is_plain = bool(actions) and not any(action.is_call for action in actions or ())
    return is_plain and bool(_THOUGHT_ALONE.match(step["output"] or ""))


def _is_answered(step: Step) -> bool:
    """Whether a tool answered a call of a step by its id."""
    return any(o["source"] == "environment" and o["call_id"] for o in step["observations"] or ())
