"""Calibrations: monotone, fitted and judged on different tasks; measures agree with libraries."""

from __future__ import annotations

import numpy as np
import pytest

from udfs.rater import calibration
from udfs.rater.calibration import BIN_LABELS, calibrate, fit_knots, is_for_fitting, probabilities

metrics = pytest.importorskip("sklearn.metrics", reason="needs the extra `evaluation`")


def labels(n: int, seed: int = 0) -> tuple[calibration.Floats, calibration.Bools, list[str]]:
    """Scores that boast: where a score is s, the chance of success is (s / 5) squared."""
    random = np.random.default_rng(seed)
    scores = np.round(random.uniform(0, 5, n), 1)
    successes = random.uniform(size=n) < (scores / 5) ** 2
    return scores, successes, [f"task {number // 2}" for number in range(n)]


def test_a_calibration_never_turns_two_scores_round() -> None:
    for seed in range(20):
        scores, successes, _ = labels(300, seed)
        found = probabilities(fit_knots(scores, successes), np.linspace(0, 5, 200))
        assert (np.diff(found) >= 0).all()
        assert found.min() > 0 and found.max() < 1


def test_knots_are_isotonic_regression_on_bins() -> None:
    """With as many labels at every score as a bin needs, bins are scores: sklearn's answer."""
    from sklearn.isotonic import IsotonicRegression

    random = np.random.default_rng(1)
    scores = np.repeat(np.arange(6.0), BIN_LABELS)
    successes = random.uniform(size=len(scores)) < np.repeat([0.2, 0.1, 0.5, 0.4, 0.7, 0.9], 20)
    rates = IsotonicRegression().fit_transform(scores, successes)
    blocks = [rates == rate for rate in np.unique(rates)]
    assert 1 < len(blocks) < 6  # some neighbours had to be pooled
    # A rate is pulled a little towards one half, so that no bin is certain.
    wanted = [(scores[b].mean(), (successes[b].sum() + 1) / (b.sum() + 2)) for b in blocks]
    assert np.array(fit_knots(scores, successes)) == pytest.approx(np.array(wanted))


def test_it_is_judged_on_tasks_that_it_was_not_fitted_on_and_helps_there() -> None:
    scores, successes, tasks = labels(2_000)
    fitted = is_for_fitting(tasks)
    assert 0.6 < fitted.mean() < 0.8
    both = {t for t, f in zip(tasks, fitted, strict=True) if f} & {
        t for t, f in zip(tasks, fitted, strict=True) if not f
    }
    assert not both
    found = calibrate(scores, successes, tasks)
    assert found is not None
    assert found.ece_before > 0.12 and found.ece < 0.06
    assert found.brier < found.brier_before and found.brier < found.brier_of_mean
    # The labels that it is judged on have no part in it.
    flipped = np.where(fitted, successes, ~successes)
    again = calibrate(scores, flipped, tasks)
    assert again is not None and again.knots == found.knots and again.brier > found.brier


@pytest.mark.parametrize(
    "successes", [np.full(200, True), np.arange(200) < 2], ids=["one outcome", "hardly two"]
)
def test_nothing_is_fitted_on_labels_that_cannot_tell(successes: calibration.Bools) -> None:
    scores, _, tasks = labels(200)
    assert calibrate(scores, successes, tasks) is None
    assert calibrate(scores[:30], labels(30)[1], tasks[:30]) is None


def test_scores_that_are_all_the_same_give_the_rate_of_success() -> None:
    successes = np.arange(400) % 4 == 0
    (knot,) = fit_knots(np.full(400, 5.0), successes)
    assert knot == (5.0, pytest.approx(101 / 402))


def measured(
    scores: calibration.Floats, shares: calibration.Floats, **given: object
) -> calibration.Measures:
    n = len(scores)
    return calibration.measure(
        scores,
        shares,
        shares >= 0.5,
        given.get("tasks", [str(i) for i in range(n)]),  # type: ignore[arg-type]
        given.get("lengths", np.ones(n)),  # type: ignore[arg-type]
        threshold=4.0,
        bootstraps=50,
    )


def test_measures_agree_with_the_libraries() -> None:
    random = np.random.default_rng(3)
    shares = random.choice([0.0, 0.4, 0.5, 1.0], 400)
    scores = np.clip(np.round(2 * shares + random.normal(2, 1, 400), 1), 0, 5)
    found = measured(scores, shares)
    assert found.auc.value == pytest.approx(metrics.roc_auc_score(shares >= 0.5, scores))
    assert found.auc.low is not None and found.auc.high is not None
    assert found.auc.low < found.auc.value < found.auc.high
    assert found.brier == pytest.approx(metrics.brier_score_loss(shares >= 0.5, scores / 5))


def test_a_perfect_rater_is_perfect_and_a_constant_one_says_nothing() -> None:
    shares = np.arange(100) / 99
    perfect = measured(shares * 5, shares)
    assert (perfect.spearman.value, perfect.kendall.value) == pytest.approx((1.0, 1.0))
    assert (perfect.auc.value, perfect.weighted_kappa) == pytest.approx((1.0, 1.0))
    assert perfect.exact_agreement == 1.0
    constant = measured(np.full(100, 5.0), shares)
    assert constant.spearman.value is None and constant.auc.value == 0.5
    assert constant.agreement_at == 0.5


def test_a_rater_that_likes_long_runs_is_found_out() -> None:
    random = np.random.default_rng(4)
    shares, lengths = random.uniform(size=(2, 500))
    fair, biased = (
        measured(shares * 5, shares, lengths=lengths),
        measured((shares + lengths) * 2.5, shares, lengths=lengths),
    )
    assert fair.length_bias is None or abs(fair.length_bias) < 0.1
    assert biased.length_bias is not None and biased.length_bias > 0.8


def test_runs_of_one_task_are_compared_with_each_other() -> None:
    """A rater that knows which tasks are easy, and nothing of the runs, orders half of pairs."""
    tasks = [str(i // 2) for i in range(200)]
    ease = np.repeat(np.linspace(0, 0.8, 100), 2)
    shares = ease + np.tile([0.0, 0.2], 100)
    knows_tasks = measured(ease * 5, shares, tasks=tasks)
    assert knows_tasks.spearman.value is not None and knows_tasks.spearman.value > 0.9
    assert (knows_tasks.same_task, knows_tasks.same_task_pairs) == (0.5, 100)
    assert measured(shares * 5, shares, tasks=tasks).same_task == 1.0


def test_the_bootstrap_draws_tasks_and_not_runs() -> None:
    """A hundred copies of one run are one piece of evidence."""
    random = np.random.default_rng(5)
    shares = random.uniform(size=40)
    scores = np.clip(5 * shares + random.normal(0, 2, 40), 0, 5)
    once = measured(scores, shares)
    copied = measured(
        np.repeat(scores, 20), np.repeat(shares, 20), tasks=[str(i // 20) for i in range(800)]
    )
    widths = [
        found.spearman.high - found.spearman.low  # type: ignore[operator]
        for found in (once, copied)
    ]
    assert widths[1] > 0.7 * widths[0]
