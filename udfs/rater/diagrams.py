"""Plots of how a rater's scores go with labels, as one SVG drawing; needs matplotlib."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from udfs.errors import ConfigError
from udfs.rater.calibration import (
    Bools,
    Calibration,
    Floats,
    is_for_fitting,
    probabilities,
    reliability,
)
from udfs.rater.rules import FULL_SCORE

_RAW, _CALIBRATED, _GOOD, _BAD = "#b45309", "#1d4ed8", "#15803d", "#9ca3af"


@dataclass(frozen=True)
class Drawn:
    """What one row of plots shows: arrays as in `udfs.rater.calibration`."""

    title: str
    scores: Floats
    successes: Bools
    tasks: Sequence[str]
    lengths: Floats
    calibration: Calibration | None


def draw(rows: Sequence[Drawn]) -> str:
    """An SVG drawing with three plots for each row.

    Left, the reliability diagram on the tasks that a calibration was not fitted on (on all, where
    there is none): how often a label says success, over what the score said; a dot's area is its
    number of labels. Middle, the scores of successes and of the others. Right, score over length.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    try:
        import matplotlib
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError("Plots need matplotlib. Run pip install -e '.[evaluation]'.") from error
    # Text stays text, and the same numbers give the same file.
    style: Any = {"svg.fonttype": "none", "svg.hashsalt": "trajlake", "font.size": 9}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(11, 3.3 * len(rows)), layout="constrained")
        FigureCanvasSVG(figure)
        for row, axes in zip(rows, figure.subplots(len(rows), 3, squeeze=False), strict=True):
            _reliability(axes[0], row)
            _distribution(axes[1], row)
            _length(axes[2], row)
            for ax in axes:
                ax.spines[["top", "right"]].set_visible(False)
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    drawing = file.getvalue()
    return drawing[drawing.index("<svg") :]


def _reliability(ax: Any, row: Drawn) -> None:
    part = ~is_for_fitting(row.tasks) if row.calibration else np.full(len(row.scores), True)
    outcomes = row.successes[part].astype(np.float64)
    said = [("score / 5", row.scores[part] / FULL_SCORE, _RAW)]
    if row.calibration:
        calibrated = probabilities(row.calibration.knots, row.scores[part])
        said.append(("calibrated", calibrated, _CALIBRATED))
    ax.plot([0, 1], [0, 1], color="#d1d5db", linewidth=1)
    for name, values, color in said:
        bins = reliability(values, outcomes)
        ax.plot([b.probability for b in bins], [b.rate for b in bins], color=color, linewidth=1)
        ax.scatter(
            [b.probability for b in bins],
            [b.rate for b in bins],
            s=[12 + 200 * b.labels / len(outcomes) for b in bins],
            color=color,
            alpha=0.7,
            label=name,
        )
    ax.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), ylabel="share of successes")
    ax.set_xlabel(f"what was said ({int(part.sum()):,} labels)")
    ax.set_title(row.title, loc="left", fontsize=10, fontweight="bold")
    legend = ax.legend(frameon=False, loc="upper left")
    for handle in legend.legend_handles:
        handle.set_sizes([30])


def _distribution(ax: Any, row: Drawn) -> None:
    for name, at, color in (("success", row.successes, _GOOD), ("other", ~row.successes, _BAD)):
        if at.any():
            shares = np.full(int(at.sum()), 1 / at.sum())
            ax.hist(
                row.scores[at],
                bins=np.linspace(0, FULL_SCORE, 26),
                weights=shares,
                color=color,
                alpha=0.6,
                label=f"{name} ({int(at.sum()):,})",
            )
    ax.set(xlabel="score", ylabel="share of trajectories", xlim=(-0.1, FULL_SCORE + 0.1))
    ax.legend(frameon=False, loc="upper left")


def _length(ax: Any, row: Drawn) -> None:
    for name, at, color in (("success", row.successes, _GOOD), ("other", ~row.successes, _BAD)):
        ax.scatter(
            row.lengths[at] + 1,
            row.scores[at],
            s=6,
            color=color,
            alpha=0.5,
            linewidths=0,
            label=name,
        )
    ax.set(xscale="log", ylim=(-0.1, FULL_SCORE + 0.1))
    ax.set(xlabel="characters that the agent wrote", ylabel="score")
