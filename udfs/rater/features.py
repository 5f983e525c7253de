"""Features of a trajectory that a trained rater reads: numbers, no model and no network.

MAG-V (Sengupta et al. 2024) verifies trajectories with classical models on such features and
beats a judge that is a language model. These are about form, effort, faults, and how far the
answer is backed by what the environment said; `NAMES` lists them in order.

What the environment said last is never read: many logs end with a verdict ("Episode finished,
reward = True"), which is the label itself. The environment's score and `other_information` are
not read either. So a rater that is trained here says what it would say of a run whose outcome
nobody knows.

| group    | features |
|----------|----------|
| effort   | `steps`, `calls`, `thought_words`, `output_words`, `observation_words`: totals, or means a step where the name says so |
| faults   | one count for each fault of the rules, the points lost to them, `is_loop`, `is_unfinished` |
| actions  | how alike consecutive actions are, how much of an action's words are the question's |
| question | length, what it asks for (yes or no, who, when …), whether it offers a choice |
| answer   | length, form (yes or no, number, name, sentence), whether it fits what was asked, words of giving up |
| backing  | share of the answer's words in observations, in the last observation before it, in thoughts, in the question |
| doubt    | thoughts that say that something was not found, is assumed or is unclear |
"""  # noqa: E501

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

from udfs.rater import rules
from udfs.rater.evidence import Action, Step, actions_of

# Any change of a feature, or of how a model reads them, is another rater and needs a new training:
# count this up. The rules' deductions are among the features.
FEATURES_VERSION = f"features-v2+{rules.RULES_VERSION}"

_WORD = re.compile(r"\w+(?:['’]\w+)?")

# Words that say nothing about a text's subject.
_STOP_WORDS = frozenset(
    re.findall(
        r"\w+",
        """a an and are as at be by did do does for from had has have he her his i in is it its of
        on or she that the their they this to was we were what when where which who whom whose
        why how will with you your""",
    )
)

_ASKS = {
    "yes_no": r"\A(?:is|are|was|were|do|does|did|can|could|has|have|had|will|would|should|am)\b",
    "who": r"\bwho(?:m|se)?\b",
    "when": r"\bwhen\b|\bwhat (?:year|date|day|month)\b|\bwhich year\b",
    "where": r"\bwhere\b|\b(?:what|which) (?:city|country|state|county|town|place)\b",
    "how_many": r"\bhow (?:many|much|long|old|far|big|tall|large)\b",
    "which": r"\bwhich\b",
    "what": r"\bwhat\b",
    "choice": r"\bor\b",
    "both": r"\bboth\b|\bsame\b|\bcommon\b",
    "compare": r"\b(?:more|less|older|younger|larger|earlier|later|first|most|longer)\b",
}
_ASK_PATTERNS = {name: re.compile(pattern, re.IGNORECASE) for name, pattern in _ASKS.items()}

_GIVES_UP = re.compile(
    r"\b(?:unknown|unable|cannot|can't|could not|couldn't|not (?:found|known|available|provided|"
    r"specified|sure|possible|enough)|no (?:information|answer|results?)|n/a|none|sorry|"
    r"insufficient|give up)\b",
    re.IGNORECASE,
)
_DOUBT = {
    "not_found": r"\bnot (?:provide|contain|mention|give|specify|find|include|able|available)"
    r"|\bno (?:information|results?)\b|\bn't (?:provide|mention|find)",
    "retry": r"\bdifferent (?:search|approach|query|source)|\btry (?:again|another|a)\b|\bstill\b",
    "guess": r"\b(?:assum|likely|probably|perhaps|maybe|might|seems?\b|appears?\b|possibl|guess)",
}
_DOUBT_PATTERNS = {name: re.compile(pattern, re.IGNORECASE) for name, pattern in _DOUBT.items()}

_YES_NO = frozenset({"yes", "no"})
_DATE = re.compile(
    r"\b(?:1[0-9]|20)\d\d\b|\b(?:january|february|march|april|may|june|july|august|"
    r"september|october|november|december)\b",
    re.IGNORECASE,
)
_FAULTS = tuple(rules.STEP_POINTS)

# A line of the rules' explanation: "step 2: nothing_found (-0.2): …", "loop (-1.0): …".
_DEDUCTION = re.compile(r"^(?:step \d+: )?(\w+) \(-", re.MULTILINE)


def features(steps: Sequence[Step], user_query: str | None) -> dict[str, float]:
    """The features of one trajectory, by name; finite numbers throughout.

    Args:
        steps: its steps, as in `udfs.schema.STEP`.
        user_query: the task in the user's words; without it the first step's input.
    """
    found: dict[str, float] = {}
    question = user_query or (steps[0]["input"] if steps else "") or ""
    thoughts = [_thought(step) for step in steps]
    outputs = [step["output"] or "" for step in steps]
    acted = [actions_of(step) or [] for step in steps]
    # Not the last step's: the environment's verdict may stand there.
    seen = [_observed(step) for step in steps[:-1]]

    found["steps"] = len(steps)
    found["calls"] = sum(a.is_call for actions in acted for a in actions)
    found["thought_words"] = _log(sum(map(_count, thoughts)))
    found["thought_words_per_step"] = sum(map(_count, thoughts)) / max(1, len(steps))
    found["last_thought_words"] = _log(_count(thoughts[-1]) if steps else 0)
    found["longest_thought_words"] = _log(max(map(_count, thoughts), default=0))
    found["output_words"] = _log(sum(map(_count, outputs)))
    found["observation_words"] = _log(sum(map(_count, seen)))
    found["observation_words_per_step"] = _log(sum(map(_count, seen)) / max(1, len(seen)))
    found["last_observation_words"] = _log(_count(seen[-1]) if seen else 0)
    found["empty_observations"] = sum(not text.strip() for text in seen)
    found["cut_observations"] = sum(text.rstrip().endswith(("...", "…")) for text in seen)

    deducted = _deductions(steps)
    for fault in _FAULTS:
        found[fault] = deducted.get(fault, 0)
    found["fault_points"] = sum(
        points * deducted.get(name, 0) for name, points in rules.STEP_POINTS.items()
    )
    found["is_loop"] = deducted.get("loop", 0)
    found["is_unfinished"] = deducted.get("unfinished", 0)

    asked = _content_words(question)
    # Of all steps but the last, which ends the run.
    calls = [
        _words(f"{a.name} {a.argument}") for actions in acted[:-1] for a in actions if a.is_call
    ]
    found["likeness_of_actions"] = _mean([_jaccard(a, b) for a, b in pairwise(calls)])
    found["question_in_actions"] = _share(asked, set().union(*calls) if calls else set())
    found["words_per_action"] = _mean([len(words) for words in calls])

    found["question_words"] = _count(question)
    for name, pattern in _ASK_PATTERNS.items():
        found[f"asks_{name}"] = bool(pattern.search(question))

    answer = _answer(steps, acted)
    words = _words(answer)
    content = _content_words(answer)
    found["answer_words"] = _count(answer)
    found["answer_characters"] = _log(len(answer))
    found["answer_is_yes_no"] = bool(words) and len(words) <= 2 and bool(words & _YES_NO)
    found["answer_is_number"] = bool(re.search(r"\d", answer))
    found["answer_is_date"] = bool(_DATE.search(answer))
    found["answer_is_name"] = answer[:1].isupper()
    found["answer_is_list"] = bool(re.search(r",| and |;", answer))
    found["answer_is_sentence"] = answer.rstrip().endswith(".") or _count(answer) > 8
    found["answer_gives_up"] = bool(_GIVES_UP.search(answer))
    found["answer_is_empty"] = not answer.strip()
    found["answer_fits_yes_no"] = found["answer_is_yes_no"] == found["asks_yes_no"]

    read = set().union(*map(_words, seen)) if seen else set()
    everything = " ".join(seen).lower()
    found["answer_in_observations"] = _share(content, read)
    found["answer_in_last_observation"] = _share(content, _words(seen[-1]) if seen else set())
    found["answer_verbatim_in_observations"] = (
        bool(answer.strip()) and answer.strip().lower() in everything
    )
    found["observations_with_answer"] = sum(
        bool(content) and content <= _words(text) for text in seen
    )
    found["answer_in_last_thought"] = _share(content, _words(thoughts[-1]) if steps else set())
    found["answer_in_earlier_thoughts"] = _share(
        content, set().union(*map(_words, thoughts[:-1])) if len(steps) > 1 else set()
    )
    found["answer_in_question"] = _share(content, _words(question))
    found["question_in_observations"] = _share(asked, read)
    found["question_in_last_thought"] = _share(asked, _words(thoughts[-1]) if steps else set())

    for name, pattern in _DOUBT_PATTERNS.items():
        found[f"doubt_{name}"] = sum(bool(pattern.search(text)) for text in thoughts)
        found[f"last_doubt_{name}"] = bool(steps) and bool(pattern.search(thoughts[-1]))
    return {name: float(value) for name, value in found.items()}


def _deductions(steps: Sequence[Step]) -> Counter[str]:
    """How often the rules take points off, by what for; the environment's score is not given."""
    explanation = rules.rate_steps(steps, None).explanation
    return Counter(_DEDUCTION.findall(explanation))


def _thought(step: Step) -> str:
    return step["thought"] or ""


def _observed(step: Step) -> str:
    return "\n".join(o["content"] or "" for o in step["observations"] or [])


def _answer(steps: Sequence[Step], acted: Sequence[Sequence[Action]]) -> str:
    """What the agent ended with: the argument of its last action, or its last words."""
    if not steps:
        return ""
    last = acted[-1]
    if last:
        return last[-1].argument if last[-1].is_call else last[-1].name
    return steps[-1]["output"] or ""


def _count(text: str) -> int:
    return len(text.split())


def _words(text: str) -> set[str]:
    return set(_WORD.findall(text.lower()))


def _content_words(text: str) -> set[str]:
    return _words(text) - _STOP_WORDS


def _share(part: set[str], whole: set[str]) -> float:
    """The share of `part` that is in `whole`; 0 where there is nothing to look for."""
    return len(part & whole) / len(part) if part else 0.0


def _jaccard(a: set[str], b: set[str]) -> float:
    return len(a & b) / len(a | b) if a | b else 1.0


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _log(count: float) -> float:
    """Long texts differ by their magnitude, not by their last word."""
    return math.log1p(count)


# The features in their order.
NAMES: tuple[str, ...] = tuple(features([], None))
