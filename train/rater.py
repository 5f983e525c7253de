"""Train a rater on labels, and say how it does on tasks that it has not seen.

    python -m train.rater --label f1
    python -m train.rater --label f1 --kind text --base models/a-small-encoder --epochs 3

Reads the lake that `dbt build` made (`labels`, `trajectories`, `task_keys`), and writes a folder
for the var `rater_model` (`udfs/rater/local_rater.py` says what is in it):

    dbt build --vars '{rater: local, rater_model: raters/f1-features}'

The kind `features` is a logistic regression on what `udfs/rater/features.py` counts; it needs the
extra `evaluation`, and no GPU. The kind `text` is a transformers model with a regression head
(¶29, claim 5 of US 2025/0259054); it needs the extra `train` too.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import duckdb
import numpy as np
import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from orchestration.export import code_version
from udfs.errors import TrainingError, TrajlakeError
from udfs.folders import atomic_folder
from udfs.rater import rules
from udfs.rater.calibration import (
    Bools,
    Floats,
    calibrate,
    measure,
    same_task_order,
    spearman_correlation,
)
from udfs.rater.diagrams import Drawn, draw
from udfs.rater.features import FEATURES_VERSION, NAMES
from udfs.rater.local_rater import (
    FeatureModel,
    Model,
    feature_values,
    identities,
    model_sha256,
)
from udfs.rater.rules import FULL_SCORE
from udfs.views import open_lake

# A recipe's usual filter, `rater_score >= 4.0`, for the agreement that is reported.
_THRESHOLD = 4.0

# Fewer labelled trajectories teach nothing that would hold.
_LEAST = 60

# Strengths of the penalty that are tried, from strong to weak: scikit-learn's C.
_PENALTIES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
_INNER_FOLDS = 5

# What a text model begins from where none is named: random weights, which know nothing.
_TINY_BASE = Path("runs/tiny-model")


@dataclass(frozen=True)
class Labelled:
    """Labelled trajectories, one for each content; arrays of equal length."""

    trajectories: Sequence[Mapping[str, Any]]  # content_sha256, user_query, steps
    places: Sequence[str]  # environment, or source
    tasks: Sequence[str]
    shares: Floats  # the label, 0 to 1
    successes: Bools

    def __len__(self) -> int:
        return len(self.trajectories)

    def __getitem__(self, at: Bools) -> Labelled:
        rows = np.flatnonzero(at)
        return Labelled(
            [self.trajectories[row] for row in rows],
            [self.places[row] for row in rows],
            [self.tasks[row] for row in rows],
            self.shares[rows],
            self.successes[rows],
        )


def read_labelled(label: str, sources: Sequence[str]) -> Labelled:
    """The trajectories of the lake that have a label.

    Raises:
        LakeError: there is no lake.
        TrainingError: too few have the label.
    """
    with open_lake() as connection:
        try:
            rows = (
                connection.execute(
                    """
                    with valued as (
                        select
                            content_sha256,
                            avg((value - lowest) / (highest - lowest)) as share,
                            avg(value) >= any_value(success_at) as is_success
                        from labels
                        inner join label_kinds using (label)
                        where label = $label and value is not null
                        group by content_sha256
                    )

                    select distinct on (content_sha256)
                        content_sha256,
                        trajectories.user_query,
                        trajectories.steps,
                        coalesce(trajectories.environment, trajectories.source) as place,
                        task_key,
                        share,
                        is_success
                    from valued
                    inner join trajectories using (content_sha256)
                    inner join task_keys using (trajectory_id)
                    where len($sources) = 0 or list_contains($sources, trajectories.source)
                    order by content_sha256, trajectory_id
                    """,
                    {"label": label, "sources": list(sources)},
                )
                .to_arrow_table()
                .to_pylist()
            )
        except duckdb.CatalogException as error:
            raise TrainingError("The lake has no labels yet. Run `dbt build`.") from error
    if len(rows) < _LEAST:
        raise TrainingError(
            f"{len(rows)} trajectories have a value of the label '{label}'"
            f"{' in ' + ', '.join(sources) if sources else ''}; a rater needs {_LEAST} or more. "
            "docs/calibration.md says where labels come from."
        )
    return Labelled(
        rows,
        [row["place"] for row in rows],
        [row["task_key"] for row in rows],
        np.array([row["share"] for row in rows], dtype=np.float64),
        np.array([row["is_success"] for row in rows], dtype=bool),
    )


def folds(tasks: Sequence[str], count: int, seed: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """A fold for each row, by a hash of its task, so that a task is in one fold."""
    hashes = (hashlib.sha256(f"{seed} {task}".encode()).digest()[:8] for task in tasks)
    return np.array([int.from_bytes(found) % count for found in hashes])


def fit_features(values: Floats, shares: Floats, tasks: Sequence[str]) -> dict[str, Any]:
    """Fit the logistic regression; gives the content of `model.json`.

    A label between 0 and 1 counts as that much of a success and the rest of a failure. The
    penalty is the one that says most of folds left out, split by task.
    """
    mean, scale = values.mean(axis=0), values.std(axis=0)
    scale[scale == 0] = 1.0
    scaled = (values - mean) / scale
    fold = folds(tasks, _INNER_FOLDS, seed=0)

    def loss(penalty: float) -> float:
        total = 0.0
        for number in np.unique(fold):
            out = fold == number
            said = _logistic(scaled[~out], shares[~out], penalty).predict_proba(scaled[out])
            likely = shares[out] * np.log(said[:, 1]) + (1 - shares[out]) * np.log(said[:, 0])
            total -= float(likely.sum())
        return total

    best = min(_PENALTIES, key=loss)
    model = _logistic(scaled, shares, best)
    return {
        "features_version": FEATURES_VERSION,
        "names": list(NAMES),
        "lowest": values.min(axis=0).tolist(),
        "highest": values.max(axis=0).tolist(),
        "mean": mean.tolist(),
        "scale": scale.tolist(),
        "weights": model.coef_[0].tolist(),
        "intercept": float(model.intercept_[0]),
        "penalty": best,
    }


def _logistic(values: Floats, shares: Floats, penalty: float) -> Any:
    from sklearn.linear_model import LogisticRegression

    outcomes = np.repeat([1, 0], len(shares))
    weights = np.concatenate([shares, 1 - shares])
    model = LogisticRegression(C=penalty, solver="newton-cholesky")
    return model.fit(np.tile(values, (2, 1)), outcomes, sample_weight=weights)


def rule_scores(data: Labelled) -> Floats:
    """What the rules say of every row without the environment's score."""
    return np.array(
        [rules.rate_steps(t["steps"] or [], None).rater_score for t in data.trajectories]
    )


def output_lengths(data: Labelled) -> Floats:
    """Characters that the agent wrote in every row."""
    return np.array(
        [float(sum(len(s["output"] or "") for s in t["steps"] or [])) for t in data.trajectories]
    )


def cross_validate(data: Labelled, repeats: int, count: int) -> dict[str, Any]:
    """Rank correlations with the label on tasks left out, by place, over repeated folds.

    And how often, of two runs of one task, the better has the higher score. Every row is scored
    by a model that has seen no run of its task. The spread is over the repeats, that is over ways
    to split.
    """
    values = feature_values(data.trajectories)
    baseline, shorter = rule_scores(data), -output_lengths(data)
    found: dict[str, list[float]] = {}
    in_order: list[float] = []
    places = {"all": np.full(len(data), True)}
    if len(names := sorted(set(data.places))) > 1:
        places |= {name: np.array([place == name for place in data.places]) for name in names}
    for repeat in range(repeats):
        fold = folds(data.tasks, count, seed=repeat + 1)
        scores = np.zeros(len(data))
        for number in np.unique(fold):
            out = fold == number
            tasks = [task for task, is_out in zip(data.tasks, out, strict=True) if not is_out]
            content = fit_features(values[~out], data.shares[~out], tasks)
            scores[out] = FeatureModel(content).shares(values[out])
        for place, at in places.items():
            correlation = spearman_correlation(scores[at], data.shares[at])
            if correlation is not None:
                found.setdefault(place, []).append(correlation)
        in_order.append(same_task_order(scores, data.shares, data.tasks)[0])
    ruled, pairs = same_task_order(baseline, data.shares, data.tasks)
    same_task = {
        "pairs": pairs,
        "features": float(np.mean(in_order)) / pairs if pairs else None,
        "rules": ruled / pairs if pairs else None,
    }
    correlations = {
        place: {
            "labels": int(at.sum()),
            "features": [float(np.mean(found[place])), float(np.std(found[place]))],
            "rules": spearman_correlation(baseline[at], data.shares[at]),
            "shorter": spearman_correlation(shorter[at], data.shares[at]),
        }
        for place, at in places.items()
        if place in found
    }
    return {"correlations": correlations, "same_task": same_task}


@dataclass(frozen=True)
class TextSettings:
    """How a text model is trained; lengths in tokens, sizes in trajectories."""

    base: str
    epochs: int
    learning_rate: float
    batch_size: int
    max_length: int
    seed: int


def fit_text(data: Labelled, settings: TextSettings, say: Callable[[str], None]) -> Any:
    """Train a regression head and the model below it; gives a `udfs.rater.text_model.TextModel`.

    The loss is the cross-entropy of the head's logistic and the label (0 to 1), whose minimum is
    the expected label.
    """
    import torch

    from train.config import TinyModel
    from train.tiny import make_tiny_model
    from udfs.rater.text_model import TextModel

    torch.manual_seed(settings.seed)
    if settings.base == str(_TINY_BASE):
        make_tiny_model(_TINY_BASE, TinyModel())
    model = TextModel.load(settings.base, settings.max_length)
    ids = [tokens for tokens, _ in model.encoded(data.trajectories)]
    labels = torch.tensor(data.shares, dtype=torch.float32, device=model.model.device)
    optimiser = torch.optim.AdamW(model.model.parameters(), lr=settings.learning_rate)
    steps = settings.epochs * -(-len(data) // settings.batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, settings.learning_rate, steps)
    model.model.train()
    for epoch in range(settings.epochs):
        order = torch.randperm(len(data)).tolist()
        total = 0.0
        for start in range(0, len(order), settings.batch_size):
            rows = order[start : start + settings.batch_size]
            loss = torch.nn.functional.binary_cross_entropy_with_logits(
                model.logits(ids, rows), labels[rows]
            )
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.model.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            optimiser.zero_grad(set_to_none=True)
            total += loss.item() * len(rows)
        say(f"epoch {epoch + 1}/{settings.epochs}  loss {total / len(order):.4f}")
    return model


def main(
    label: Annotated[str, typer.Option(help="The label to learn.")] = "success",
    kind: Annotated[
        Literal["features", "text"], typer.Option(help="What the model reads.")
    ] = "features",
    source: Annotated[
        list[str] | None, typer.Option(help="Only this source; may be given again.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="The folder to write; else raters/<label>-<kind>.")
    ] = None,
    held_out: Annotated[
        int, typer.Option(help="One task in so many is held out for the report.", min=2)
    ] = 4,
    seed: Annotated[int, typer.Option(help="Decides which tasks are held out.")] = 0,
    repeats: Annotated[
        int, typer.Option(help="Cross-validations, each split otherwise; features only.", min=0)
    ] = 5,
    base: Annotated[
        str, typer.Option(help="text: a model folder or hub name; else a tiny random one.")
    ] = str(_TINY_BASE),
    epochs: Annotated[int, typer.Option(help="text: passes over the data.", min=1)] = 3,
    learning_rate: Annotated[float, typer.Option(help="text: at its height.")] = 3e-4,
    batch_size: Annotated[int, typer.Option(help="text: trajectories a step.", min=1)] = 16,
    max_length: Annotated[int, typer.Option(help="text: tokens read.", min=32)] = 512,
) -> None:
    """Train a rater on the labels of the lake, and report on tasks that are held out."""
    console = Console()
    data = read_labelled(label, source or [])
    is_out = folds(data.tasks, held_out, seed) == 0
    taught, judged = data[~is_out], data[is_out]
    if not len(judged) or not len(taught):
        raise TrainingError(
            f"All {len(data)} trajectories are runs of too few tasks to hold one out of "
            f"{held_out}. Label runs of other tasks, or give another --seed."
        )
    console.print(
        f"{len(taught):,} trajectories of {len(set(taught.tasks)):,} tasks to learn from, "
        f"{len(judged):,} of {len(set(judged.tasks)):,} held out"
    )
    target = output or Path("raters") / f"{label}-{kind}"
    with atomic_folder(target) as folder:
        manifest: dict[str, Any] = {"kind": kind, "label": label}
        model: Model
        if kind == "features":
            content = fit_features(feature_values(taught.trajectories), taught.shares, taught.tasks)
            (folder / "model.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
            model = FeatureModel(content)
            manifest["reads"] = FEATURES_VERSION
        else:
            from udfs.rater.text_model import TEXT_VERSION

            settings = TextSettings(base, epochs, learning_rate, batch_size, max_length, seed)
            model = text_model = fit_text(taught, settings, console.print)
            text_model.model.save_pretrained(folder / "model")
            text_model.tokenizer.save_pretrained(folder / "model")
            manifest |= {"reads": TEXT_VERSION, "max_length": max_length}
            manifest["trained_with"] = asdict(settings)
        scores = {
            "trained": np.array([e.share for e in model.expect(judged.trajectories)]) * FULL_SCORE,
            "rules": rule_scores(judged),
        }
        trained_on = set[str]()
        for trajectory, task in zip(taught.trajectories, taught.tasks, strict=True):
            # Of what it is known by, the task only where it is the query that names it.
            trained_on |= identities(trajectory) & {trajectory["content_sha256"], task}
        (folder / "trained_on.txt").write_text("\n".join(sorted(trained_on)) + "\n")
        manifest |= {
            "model_sha256": model_sha256(folder),
            "score": f"{FULL_SCORE:g} x the expected label, 0 to 1",
            "trained_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "code_version": code_version(),
            "trained": {
                "trajectories": len(taught),
                "tasks": len(set(taught.tasks)),
                "places": sorted(set(taught.places)),
                "mean_label": float(taught.shares.mean()),
            },
            "held_out": {
                "one_task_in": held_out,
                "seed": seed,
                "measures": {name: _measures(judged, s) for name, s in scores.items()},
            },
        }
        if kind == "features" and repeats:
            manifest["cross_validated"] = cross_validate(data, repeats, held_out)
        drawn = (
            Drawn(
                f"{label}, held-out tasks: {name}",
                found,
                judged.successes,
                judged.tasks,
                output_lengths(judged),
                calibrate(found, judged.successes, judged.tasks),
            )
            for name, found in scores.items()
        )
        (folder / "report.svg").write_text(draw(list(drawn)) + "\n", encoding="utf-8")
        (folder / "manifest.json").write_text(
            json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )
    console.print(_held_out_table(manifest))
    if "cross_validated" in manifest:
        _print_cross_validated(console, manifest["cross_validated"], label)
    console.print(Text(f"wrote {target}; its plots: {target / 'report.svg'}"), soft_wrap=True)
    console.print(
        Text(f"use it: dbt build --vars '{{rater: local, rater_model: {target}}}'"), soft_wrap=True
    )


def _measures(data: Labelled, scores: Floats) -> dict[str, Any]:
    found = measure(
        scores,
        data.shares,
        data.successes,
        data.tasks,
        output_lengths(data),
        threshold=_THRESHOLD,
    )
    return asdict(found)


def _table(title: str, first: str, columns: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, collapse_padding=True)
    table.add_column(first)
    for name in columns:
        table.add_column(name, justify="right")
    return table


def _held_out_table(manifest: Mapping[str, Any]) -> Table:
    measures = manifest["held_out"]["measures"]
    table = _table(
        f"{manifest['label']} on held-out tasks ({measures['trained']['labels']:,} trajectories)",
        "rater",
        ("Spearman", "95%", "AUC", "same task", "Brier", "length"),
    )
    for name, found in measures.items():
        value, low, high = found["spearman"]
        table.add_row(
            "rules, without the reward" if name == "rules" else name,
            _number(value),
            f"{_number(low)} – {_number(high)}",
            _number(found["auc"][0]),
            _number(found["same_task"]),
            f"{found['brier']:.3f}",
            _number(found["length_bias"]),
        )
    return table


def _print_cross_validated(console: Console, found: Mapping[str, Any], label: str) -> None:
    table = _table(
        f"Rank correlation with {label}, every task scored by a model that has not seen it",
        "where",
        ("labels", "trained", "spread", "rules", "the shorter"),
    )
    for place, row in found["correlations"].items():
        mean, spread = row["features"]
        table.add_row(
            Text(place),
            f"{row['labels']:,}",
            _number(mean),
            f"± {spread:.2f}",
            _number(row["rules"]),
            _number(row["shorter"]),
        )
    console.print(table)
    if pairs := found["same_task"]["pairs"]:
        console.print(
            f"Of two runs of one task ({pairs:,} pairs), the better has the higher score: trained "
            f"{found['same_task']['features']:.0%}, rules {found['same_task']['rules']:.0%}",
            soft_wrap=True,
        )


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    try:
        app()
    except TrajlakeError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
