"""Every error Trajlake raises itself; each says what was wrong, where, and what to do.

TrajlakeError
├── ConfigError          a setting, source entry, benchmark or recipe that cannot be used
├── RefusedRecord        one raw record that no parser accepts (becomes a quarantine row)
├── LakeError            a Delta table that cannot be read or written as asked
├── WorkerError          a process beside this one that ended before it answered
├── EndpointError        a model endpoint that cannot be asked further (dead key, unknown model)
├── Unanswered           one question that a model gave no usable answer to (see udfs.llm)
├── RatingError          a rater that cannot go on
├── ExportError          an export that cannot be written
├── ReportError          a report that cannot be written
├── EvaluationError      a benchmark that cannot be measured
└── TrainingError        a training run that cannot start or go on
"""

from __future__ import annotations


class TrajlakeError(Exception):
    """The root: catch this to catch everything that Trajlake itself raises."""


class ConfigError(TrajlakeError):
    """A setting, source entry, benchmark or recipe that cannot be used."""


class RefusedRecord(TrajlakeError):
    """One raw record that cannot become trajectories.

    ``reason`` is a short stable code (``unknown_format``, ``invalid_json`` …) that is counted
    and filtered on; ``detail`` is for a reader: what was found, where in the record, what would
    have been accepted.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class LakeError(TrajlakeError):
    """A Delta table that cannot be read or written as asked."""


class WorkerError(TrajlakeError):
    """A process beside this one that ended before it answered."""


class EndpointError(TrajlakeError):
    """A model endpoint that cannot be asked further."""


class RatingError(TrajlakeError):
    """A rater that cannot go on."""


class ExportError(TrajlakeError):
    """An export that cannot be written."""


class ReportError(TrajlakeError):
    """A report that cannot be written."""


class EvaluationError(TrajlakeError):
    """A benchmark that cannot be measured."""


class TrainingError(TrajlakeError):
    """A training run that cannot start or go on."""
