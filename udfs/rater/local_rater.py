"""The rater `local`: a model trained here on labels (`python -m train.rater`), in a folder.

    <folder>/
    ├── manifest.json     what it was trained on, how it did on held-out tasks, the model's hash
    ├── model.json        kind `features`: the weights of a logistic regression
    ├── model/            kind `text`: a transformers model (safetensors) and its tokenizer
    ├── trained_on.txt    hashes of the contents and tasks it has learned from
    └── report.svg        its scores beside the labels of held-out tasks

Nothing in it is code, and nothing is unpickled. `features` needs no package beside the base
install. A score is 5 × the label that the model expects, on a scale of 0 to 1: both kinds give a
number between 0 and 1, so no score is ever clamped.

The environment's score is not read, nor what the environment said last, where its verdict may
stand (`udfs.rater.features`).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import orjson
import pyarrow as pa

from udfs.errors import ConfigError, RatingError
from udfs.llm import Journal
from udfs.rater.calibration import Floats
from udfs.rater.features import FEATURES_VERSION, NAMES, features
from udfs.rater.ledger import Identity, Unrated, record_batch
from udfs.rater.rules import FULL_SCORE

_READ_ROWS = 256
_COMMIT_ROWS = 20_000

# So many features are named in an explanation, for a score and against it.
_NAMED = 3


class Expected(NamedTuple):
    """The label that a model expects, 0 to 1, and why."""

    share: float
    reasons: str
    shown_share: float = 1.0  # how much of the trajectory the model read


class Model(Protocol):
    """What a folder holds."""

    def expect(self, trajectories: Sequence[Mapping[str, Any]]) -> list[Expected]:
        """The expected label of each trajectory (`steps`, `user_query`)."""
        ...


class FeatureModel:
    """A logistic regression on standardised features; numpy is all it needs.

    Args:
        content: as `model.json`: `features_version`, `names`, `lowest`, `highest`, `mean`,
            `scale`, `weights`, `intercept`.

    Raises:
        RatingError: it was trained on other features than this version computes.
    """

    def __init__(self, content: Mapping[str, Any]) -> None:
        if content["features_version"] != FEATURES_VERSION or tuple(content["names"]) != NAMES:
            raise RatingError(
                f"The rater reads {content['features_version']}, and this version of Trajlake "
                f"computes {FEATURES_VERSION}. Train it again by `python -m train.rater`."
            )
        self._lowest, self._highest, self._mean, self._scale, self._weights = (
            np.array(content[name], dtype=np.float64)
            for name in ("lowest", "highest", "mean", "scale", "weights")
        )
        self._intercept = float(content["intercept"])

    def expect(self, trajectories: Sequence[Mapping[str, Any]]) -> list[Expected]:
        """See `Model`."""
        parts = self._parts(feature_values(trajectories))
        shares = self._logistic(parts)
        return [Expected(float(s), _reasons(p)) for s, p in zip(shares, parts, strict=True)]

    def shares(self, values: Floats) -> Floats:
        """The expected label of rows of features, shape (rows, features) → (rows,)."""
        return self._logistic(self._parts(values))

    def _parts(self, values: Floats) -> Floats:
        # A weight says how the label moves within the values that the training saw, and nothing
        # about others: a question of a thousand words counts as one of the longest seen, or its
        # length alone would decide. The range, and not so many deviations, because that leaves
        # every trajectory of the training as it was fitted, rare features included.
        seen = np.clip(values, self._lowest, self._highest)
        parts: Floats = (seen - self._mean) / self._scale * self._weights
        return parts

    def _logistic(self, parts: Floats) -> Floats:
        shares: Floats = 1 / (1 + np.exp(-(parts.sum(axis=1) + self._intercept)))
        return shares


def feature_values(trajectories: Sequence[Mapping[str, Any]]) -> Floats:
    """The features of trajectories (`steps`, `user_query`), shape (rows, features)."""
    found = [features(t["steps"] or [], t["user_query"]) for t in trajectories]
    rows = [[row[name] for name in NAMES] for row in found]
    return np.array(rows, dtype=np.float64).reshape(-1, len(NAMES))


def _reasons(parts: Floats) -> str:
    """The features that move one score most, with what each adds to its log-odds."""
    order = np.argsort(parts)
    most = [i for i in order[::-1][:_NAMED] if parts[i] > 0]
    least = [i for i in order[:_NAMED] if parts[i] < 0]
    return "\n".join(
        f"{word}: " + ", ".join(f"{NAMES[i]} ({parts[i]:+.2f})" for i in found)
        for word, found in (("for", most), ("against", least))
        if found
    )


class LocalRater:
    """A trained model as a rater of the ledger.

    Args:
        folder: what `train.rater` wrote; the var `rater_model`.

    Raises:
        ConfigError: there is no trained rater.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._manifest = read_manifest(folder)
        sha256 = self._manifest["model_sha256"]
        self.identity = Identity(
            rater="local",
            rate_model=f"{folder.name}@{sha256[:8]}",
            rate_parameters="{}",
            prompt_version=self._manifest["reads"],
            decided_by=f"local {self._manifest['reads']} {sha256}",
        )

    def rate(self, unrated: Unrated, journal: Journal) -> Iterator[pa.RecordBatch]:
        """Rate by the model. Nothing is journaled: what is lost costs nothing to make again.

        Raises:
            RatingError: the model is not the one that the manifest describes, or cannot be used.
        """
        model = load_model(self._folder)
        trained_on = read_trained_on(self._folder)
        rows: list[dict[str, Any]] = []
        for batch in unrated.batches(_READ_ROWS):
            given = batch.to_pylist()
            for trajectory, expected in zip(given, model.expect(given), strict=True):
                is_trained_on = bool(trained_on & identities(trajectory))
                rows.append(self._row(trajectory, expected, is_trained_on))
            if len(rows) >= _COMMIT_ROWS:
                yield record_batch(rows)
                rows = []
        if rows:
            yield record_batch(rows)

    def _row(
        self, trajectory: Mapping[str, Any], expected: Expected, is_trained_on: bool
    ) -> dict[str, Any]:
        lines = [f"expects {self._manifest['label']} at {expected.share:.2f} of 0 to 1"]
        if is_trained_on:
            lines.append("has learned from a run of this task, so this proves nothing about it")
        return self.identity.row(
            trajectory["content_sha256"],
            trajectory["attempt"],
            status="ok",
            rater_score=round(FULL_SCORE * expected.share, 3),
            shown_share=expected.shown_share,
            long_rule=None if expected.shown_share == 1.0 else "middle out",
            explanation="\n".join(filter(None, [*lines, expected.reasons])),
            raw_response=json.dumps(
                {"expected": round(expected.share, 6), "is_trained_on": is_trained_on}
            ),
        )


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a trained rater.

    Raises:
        ConfigError: there is none.
    """
    try:
        manifest: dict[str, Any] = orjson.loads((folder / "manifest.json").read_bytes())
    except (OSError, orjson.JSONDecodeError) as error:
        raise ConfigError(
            f"rater 'local' finds no trained rater at {folder} ({error}). Train one by "
            "`python -m train.rater`, and set the var rater_model to its folder."
        ) from error
    return manifest


def load_model(folder: Path) -> Model:
    """The model of a trained rater.

    Raises:
        RatingError: it is not the one that the manifest describes, or a package is missing.
    """
    manifest = read_manifest(folder)
    if model_sha256(folder) != manifest["model_sha256"]:
        raise RatingError(
            f"The model in {folder} is not the one that its manifest.json describes. Train it "
            "again: ratings are filed under what rated."
        )
    if manifest["kind"] == "features":
        return FeatureModel(orjson.loads((folder / "model.json").read_bytes()))
    try:
        from udfs.rater.text_model import TextModel
    except ImportError as error:
        raise RatingError(
            f"The rater in {folder} reads text and needs torch and transformers ({error}). "
            "Run pip install -e '.[train]', or train one of the kind `features`."
        ) from error
    return TextModel.load(folder / "model", manifest["max_length"])


def model_sha256(folder: Path) -> str:
    """Over the model's files, their names included; the manifest and the report are none."""
    files = [folder / "model.json", *sorted((folder / "model").rglob("*"))]
    found = hashlib.sha256()
    for file in files:
        if file.is_file():
            found.update(f"{file.relative_to(folder)} {file.stat().st_size}\n".encode())
            with file.open("rb") as content:
                found.update(hashlib.file_digest(content, "sha256").digest())
    return found.hexdigest()


def identities(trajectory: Mapping[str, Any]) -> set[str]:
    """What a trajectory is known by among those that a rater has learned from.

    Its content, and the task that its query names (as the model `task_keys` has it): another run
    of a task that was learned from is no proof either.
    """
    query = re.sub(r"\s+", " ", (trajectory["user_query"] or "").lower(), flags=re.ASCII).strip(" ")
    found = {trajectory["content_sha256"]}
    if query:
        md5 = hashlib.md5(query.encode(), usedforsecurity=False).hexdigest()
        task = hashlib.md5(f"query {md5}".encode(), usedforsecurity=False).hexdigest()
        found.add(task)
    return found


def read_trained_on(folder: Path) -> frozenset[str]:
    """The hashes of what a rater has learned from."""
    return frozenset((folder / "trained_on.txt").read_text("utf-8").split())
