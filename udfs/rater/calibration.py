"""How far a rater's scores can be believed, measured against labels; and what follows from it.

Pure functions over arrays of equal length: `scores` (0..5), `successes` (whether the label says
success), `shares` (the label on a scale of 0 to 1), `tasks` (what may not be in two parts).

A calibration turns a score into the probability of success among trajectories of that score. It
is isotonic (Zadrozny and Elkan 2002) over bins: the scores are put in order and into bins of at
least `BIN_LABELS` labels, equal scores together; neighbours whose rates of success fall where
scores rise are pooled; between the bins a straight line is drawn. It never turns two scores
round, so a filter on the probability keeps the same order as one on the score. It is fitted on
`FITTED_SHARE` of the tasks and judged on the others.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from udfs import lake
from udfs.errors import ConfigError
from udfs.rater.rules import FULL_SCORE

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

TABLE = "rating_calibrations"

# The method and its numbers below: what a stored calibration was made by.
METHOD = "isotonic-v1"

# A rate of success over fewer labels than this is mostly chance: its standard error is over 0.1.
BIN_LABELS = 20

# Fewer labels to fit on, to judge on, or of either outcome in a part: nothing is fitted.
LEAST_FITTED = 40
LEAST_HELD_OUT = 15
LEAST_OF_EACH = 3

FITTED_SHARE = 0.7

RELIABILITY_BINS = 10

SCHEMA = pa.schema(
    [
        ("rater_id", pa.string()),
        ("label", pa.string()),
        ("environment", pa.string()),
        ("rater", pa.string()),
        ("rate_model", pa.string()),
        ("method", pa.string()),
        (
            "knots",
            pa.list_(pa.struct([("score", pa.float64()), ("probability", pa.float64())])),
        ),
        ("fitted_labels", pa.int64()),
        ("held_out_labels", pa.int64()),
        ("held_out_ece_before", pa.float64()),
        ("held_out_ece", pa.float64()),
        ("held_out_brier_before", pa.float64()),
        ("held_out_brier", pa.float64()),
        ("held_out_brier_of_mean", pa.float64()),
        ("fitted_at", pa.timestamp("us", tz="UTC")),
    ]
)


class Bin(NamedTuple):
    """One bin of a reliability diagram."""

    labels: int
    probability: float  # the mean of what was said
    rate: float  # how often it came true


@dataclass(frozen=True)
class Calibration:
    """What turns a score into a probability of success, and how well it did where it was judged.

    `…_before` is what the raw score, taken for a probability (score / 5), does on the same part;
    `brier_of_mean` is what the mean rate of the fitted part does for every trajectory alike.
    """

    knots: tuple[tuple[float, float], ...]  # score, probability; scores rising
    fitted_labels: int
    held_out_labels: int
    ece_before: float
    ece: float
    brier_before: float
    brier: float
    brier_of_mean: float


def is_for_fitting(tasks: Sequence[str]) -> Bools:
    """Which labels a calibration is fitted on; the others judge it. A task is in one part only.

    Decided by a hash of the task, so that a new label moves no other one.
    """
    hashes = (hashlib.sha256(f"calibration {task}".encode()).digest()[:8] for task in tasks)
    return np.array([int.from_bytes(h) / 2**64 < FITTED_SHARE for h in hashes], dtype=bool)


def fit_knots(scores: Floats, successes: Bools) -> tuple[tuple[float, float], ...]:
    """The knots of an isotonic calibration, at least one.

    A bin's rate is (successes + 1) / (labels + 2), Laplace's rule: no bin is ever certain.
    """
    blocks: list[list[float]] = []  # labels, successes, sum of scores
    values, places = np.unique(scores, return_inverse=True)
    counts = np.bincount(places)
    goods = np.bincount(places, weights=successes)
    for score, labels, good in zip(values.tolist(), counts.tolist(), goods.tolist(), strict=True):
        block = [float(labels), good, score * labels]
        if blocks and blocks[-1][0] < BIN_LABELS:
            blocks[-1] = _together(blocks[-1], block)
        else:
            blocks.append(block)
    if len(blocks) > 1 and blocks[-1][0] < BIN_LABELS:
        last = blocks.pop()
        blocks[-1] = _together(blocks[-1], last)
    pooled: list[list[float]] = []
    for block in blocks:
        pooled.append(block)
        while len(pooled) > 1 and _rate(pooled[-2]) >= _rate(pooled[-1]):
            last = pooled.pop()
            pooled[-1] = _together(pooled[-1], last)
    return tuple((total / labels, (good + 1) / (labels + 2)) for labels, good, total in pooled)


def _together(a: list[float], b: list[float]) -> list[float]:
    return [x + y for x, y in zip(a, b, strict=True)]


def _rate(block: list[float]) -> float:
    return (block[1] + 1) / (block[0] + 2)


def probabilities(knots: Sequence[tuple[float, float]], scores: Floats) -> Floats:
    """The probability of success at each score; what the macro `interpolated` does in SQL."""
    at, values = zip(*knots, strict=True)
    return np.asarray(np.interp(scores, at, values), dtype=np.float64)


def calibrate(scores: Floats, successes: Bools, tasks: Sequence[str]) -> Calibration | None:
    """Fit on one part of the tasks, judge on the other; None where there are too few labels."""
    fitted = is_for_fitting(tasks)
    parts = ((fitted, LEAST_FITTED), (~fitted, LEAST_HELD_OUT))
    for part, least in parts:
        good = int(successes[part].sum())
        if part.sum() < least or min(good, part.sum() - good) < LEAST_OF_EACH:
            return None
    knots = fit_knots(scores[fitted], successes[fitted])
    outcomes = successes[~fitted].astype(np.float64)
    before = scores[~fitted] / FULL_SCORE
    after = probabilities(knots, scores[~fitted])
    return Calibration(
        knots=knots,
        fitted_labels=int(fitted.sum()),
        held_out_labels=int((~fitted).sum()),
        ece_before=calibration_error(before, outcomes),
        ece=calibration_error(after, outcomes),
        brier_before=brier_score(before, outcomes),
        brier=brier_score(after, outcomes),
        brier_of_mean=brier_score(np.full(len(outcomes), successes[fitted].mean()), outcomes),
    )


def brier_score(said: Floats, outcomes: Floats) -> float:
    """The mean squared difference between probability and outcome (Brier 1950); 0 is best."""
    return float(np.mean((said - outcomes) ** 2))


def reliability(said: Floats, outcomes: Floats) -> list[Bin]:
    """A reliability diagram's bins: ten of equal width over 0..1, those without labels left out."""
    which = np.minimum((said * RELIABILITY_BINS).astype(int), RELIABILITY_BINS - 1)
    return [
        Bin(int(at.sum()), float(said[at].mean()), float(outcomes[at].mean()))
        for at in (which == number for number in range(RELIABILITY_BINS))
        if at.any()
    ]


def calibration_error(said: Floats, outcomes: Floats) -> float:
    """The expected calibration error: the mean gap of the bins, weighted by their labels."""
    bins = reliability(said, outcomes)
    return sum(b.labels * abs(b.probability - b.rate) for b in bins) / len(said)


def calibrations(labelled_ratings: duckdb.DuckDBPyRelation) -> pa.Table | None:
    """The rows of `rating_calibrations`: one for each rater, label and environment.

    Ratings of what a trained rater was trained on are left out. Where nothing has changed since
    the table's last version, there is nothing to write.

    Args:
        labelled_ratings: the model of this name.

    Returns:
        All rows, with the time of fitting kept where a row is as it was; None where all are.
    """
    groups = labelled_ratings.query(
        "labelled_ratings",
        f"""
        select
            rater_id,
            label,
            environment,
            any_value(rater) as rater,
            any_value(rate_model) as rate_model,
            list(rater_score order by content_sha256) as scores,
            list(is_success order by content_sha256) as successes,
            list(task_key order by content_sha256) as tasks,
        from labelled_ratings
        where not is_trained_on
        group by rater_id, label, environment
        having count(*) >= {LEAST_FITTED + LEAST_HELD_OUT}
        order by rater_id, label, environment
        """,
    )
    before = {_key(row): row for row in _stored()}
    now = datetime.now(UTC)
    rows = []
    for group in groups.to_arrow_table().to_pylist():
        found = calibrate(
            np.array(group.pop("scores")), np.array(group.pop("successes")), group.pop("tasks")
        )
        if found is None:
            continue
        row = group | {
            "method": METHOD,
            "knots": [{"score": s, "probability": p} for s, p in found.knots],
            "fitted_labels": found.fitted_labels,
            "held_out_labels": found.held_out_labels,
            "held_out_ece_before": found.ece_before,
            "held_out_ece": found.ece,
            "held_out_brier_before": found.brier_before,
            "held_out_brier": found.brier,
            "held_out_brier_of_mean": found.brier_of_mean,
        }
        fitted_at = before.get(_key(row), {}).get("fitted_at", now)
        rows.append(row | {"fitted_at": fitted_at})
    is_known = lake.open_table(TABLE) is not None
    if is_known and {_key(row) for row in rows} == before.keys():
        return None
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def _stored() -> list[dict[str, Any]]:
    """The rows of the table as it is."""
    table = lake.open_table(TABLE)
    if table is None:
        return []
    rows: list[dict[str, Any]] = pa.table(table.to_pyarrow_table()).to_pylist()
    return rows


def _key(row: Mapping[str, Any]) -> str:
    """All of a calibration but the time of its fitting."""
    return json.dumps({k: v for k, v in row.items() if k != "fitted_at"}, sort_keys=True)


class Estimate(NamedTuple):
    """A number with the interval in which it lies in 95 of 100 bootstraps; null: cannot be said."""

    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Measures:
    """How one rater's scores go with one label; `measure` makes it."""

    labels: int
    tasks: int
    success_rate: float
    mean_score: float
    agreement_at: float  # share of labels where (score >= threshold) is (label is a success)
    exact_agreement: float  # share where score and label are the same whole number of 0..5
    weighted_kappa: float | None
    spearman: Estimate
    kendall: Estimate
    auc: Estimate  # how often a success has the higher score of a random pair
    ece: float  # of score / 5, taken for a probability
    brier: float
    length_bias: float | None
    same_task: float | None  # of two runs of one task, how often the better has the higher score
    same_task_pairs: int


def measure(
    scores: Floats,
    shares: Floats,
    successes: Bools,
    tasks: Sequence[str],
    lengths: Floats,
    *,
    threshold: float,
    bootstraps: int = 500,
) -> Measures:
    """Compare scores with labels.

    Args:
        scores: 0..5, shape (N,), N >= 1.
        shares: the label on a scale of 0..1.
        successes: whether the label says success.
        tasks: the task of each label. Runs of one task go together, so the bootstrap draws tasks.
        lengths: characters that the agent wrote.
        threshold: the score from which on a rater says success, as in a recipe's filter.
        bootstraps: how many; seeded, so the same labels give the same intervals.

    Returns:
        `weighted_kappa` is quadratic, over whole numbers of 0..5 (both rounded); `kendall` is
        tau-b. `length_bias` is the partial rank correlation of score and length given the label:
        above 0, of two runs that are equally good the longer one gets the higher score.
        `same_task` leaves out what runs of one task have in common, above all how hard it is;
        equal scores count half. A measure that needs two different values, and has none, is null.

    Raises:
        ConfigError: the packages of the extra `evaluation` are not installed.
    """
    stats, metrics = _packages()
    whole = np.rint(scores).astype(int)
    labelled = np.rint(shares * FULL_SCORE).astype(int)
    outcomes = successes.astype(np.float64)

    def spearman(at: Any) -> float | None:
        return _correlation(stats.spearmanr, scores[at], shares[at])

    def kendall(at: Any) -> float | None:
        return _correlation(stats.kendalltau, scores[at], shares[at])

    def auc(at: Any) -> float | None:
        good = successes[at]
        if not _differ(good):
            return None
        # By the ranks of the successes (Mann and Whitney); equal scores count half.
        ranks = stats.rankdata(scores[at])[good]
        return float((ranks.mean() - (len(ranks) + 1) / 2) / (len(good) - len(ranks)))

    samples = list(_bootstrap(tasks, bootstraps))
    kappa = None
    if _differ(whole) or _differ(labelled):
        kappa = float(
            metrics.cohen_kappa_score(
                whole, labelled, weights="quadratic", labels=range(int(FULL_SCORE) + 1)
            )
        )
    right, pairs = same_task_order(scores, shares, tasks)
    return Measures(
        labels=len(scores),
        tasks=len(set(tasks)),
        success_rate=float(outcomes.mean()),
        mean_score=float(scores.mean()),
        agreement_at=float(np.mean((scores >= threshold) == successes)),
        exact_agreement=float(np.mean(whole == labelled)),
        weighted_kappa=kappa,
        spearman=_estimate(spearman, samples),
        kendall=_estimate(kendall, samples),
        auc=_estimate(auc, samples),
        ece=calibration_error(scores / FULL_SCORE, outcomes),
        brier=brier_score(scores / FULL_SCORE, outcomes),
        length_bias=_partial(stats.spearmanr, scores, lengths, shares),
        same_task=right / pairs if pairs else None,
        same_task_pairs=pairs,
    )


def spearman_correlation(a: Floats, b: Floats) -> float | None:
    """The rank correlation; None where one of the two does not vary."""
    return _correlation(_packages()[0].spearmanr, a, b)


def _packages() -> tuple[Any, Any]:
    """`scipy.stats` and `sklearn.metrics`; not every install measures raters."""
    try:
        from scipy import stats
        from sklearn import metrics
    except ImportError as error:
        raise ConfigError(
            "Measuring a rater needs scipy and scikit-learn. Run pip install -e '.[evaluation]'."
        ) from error
    return stats, metrics


def _differ(values: npt.NDArray[Any]) -> bool:
    return bool((values != values[:1]).any())


def _correlation(function: Any, a: Floats, b: Floats) -> float | None:
    return float(function(a, b).statistic) if _differ(a) and _differ(b) else None


def _partial(spearman: Any, a: Floats, b: Floats, given: Floats) -> float | None:
    """The rank correlation of `a` and `b` among rows of the same `given`."""
    pairs = ((a, b), (a, given), (b, given))
    ab, ac, bc = (_correlation(spearman, x, y) for x, y in pairs)
    if ab is None:
        return None
    # What does not vary explains nothing.
    ac, bc = ac or 0.0, bc or 0.0
    rest = (1 - ac**2) * (1 - bc**2)
    return float((ab - ac * bc) / np.sqrt(rest)) if rest > 0 else None


def same_task_order(scores: Floats, shares: Floats, tasks: Sequence[str]) -> tuple[float, int]:
    """Pairs of runs of one task with different labels: those in the right order, and all.

    Equal scores count as half in order.
    """
    right, pairs = 0.0, 0
    for rows in _rows_by_task(tasks):
        better = np.sign(shares[rows][:, None] - shares[rows])
        higher = np.sign(scores[rows][:, None] - scores[rows])
        is_better = better > 0
        pairs += int(is_better.sum())
        right += float(((higher[is_better] + 1) / 2).sum())
    return right, pairs


def _rows_by_task(tasks: Sequence[str]) -> list[npt.NDArray[np.int64]]:
    """The row numbers of each task."""
    _, which = np.unique(np.array(tasks), return_inverse=True)
    order = np.argsort(which, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(which[order])) + 1)


def _bootstrap(tasks: Sequence[str], times: int) -> Iterator[npt.NDArray[np.int64]]:
    """Row numbers of samples with replacement, drawn task by task."""
    rows = _rows_by_task(tasks)
    random = np.random.default_rng(0)
    for _ in range(times):
        drawn = random.integers(len(rows), size=len(rows))
        yield np.concatenate([rows[number] for number in drawn])


def _estimate(
    function: Callable[[Any], float | None], samples: Sequence[npt.NDArray[np.int64]]
) -> Estimate:
    value = function(slice(None))
    if value is None:
        return Estimate(None, None, None)
    drawn = [found for found in map(function, samples) if found is not None]
    if not drawn:
        return Estimate(value, None, None)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Estimate(value, float(low), float(high))
