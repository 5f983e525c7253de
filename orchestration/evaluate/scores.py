"""How answers are scored: exact match and F1 as HotpotQA defines them, success by step budget."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)

# An answer that is one of these is right or wrong as a whole.
_CLOSED = {"yes", "no", "noanswer"}


def normalised_answer(text: str) -> str:
    """Lower case, without punctuation and articles, one space between words.

    Source: HotpotQA's official evaluation (hotpot_evaluate_v1.py), which has it from SQuAD's.
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def exact_match(answer: str, gold: str) -> float:
    """1.0 where both are the same when normalised, else 0.0."""
    return float(normalised_answer(answer) == normalised_answer(gold))


def f1(answer: str, gold: str) -> float:
    """The harmonic mean of precision and recall over words, 0.0 to 1.0.

    Words count as often as they stand there. `yes`, `no` and `noanswer` have no partial match.

    Source: HotpotQA's official evaluation (hotpot_evaluate_v1.py).
    """
    said, wanted = normalised_answer(answer), normalised_answer(gold)
    if said != wanted and (said in _CLOSED or wanted in _CLOSED):
        return 0.0
    common = sum((Counter(said.split()) & Counter(wanted.split())).values())
    if not common:
        return 0.0
    precision, recall = common / len(said.split()), common / len(wanted.split())
    return 2 * precision * recall / (precision + recall)


@dataclass(frozen=True)
class Attempt:
    """One task: whether it was solved, and in how many steps."""

    is_solved: bool
    steps: int


def success_by_budget(attempts: Sequence[Attempt], budget: int) -> list[float]:
    """The share of tasks solved within 1, 2, … `budget` steps; shape (budget,).

    All from one run with the whole budget. A model that is told of a smaller one may hurry, so
    reruns for each budget can give other numbers.
    """
    return [
        sum(each.is_solved and each.steps <= steps for each in attempts) / len(attempts)
        for steps in range(1, budget + 1)
    ]
