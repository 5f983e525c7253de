"""Episodes as raw records: what the lake reads, one JSON line each.

The messages are OpenAI's, so the format is `chat`, or `react_chat` where actions are text. What the
lake has columns for has their names: `task_id`, `model_name`, `reward` (which becomes `score`;
missing where the environment gave none), `tools`. In the style `react` the tools stand in the
system prompt, and the record has none: `tools` would be put before a model a second time.
"""

from __future__ import annotations

import json
import os
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

from orchestration.agent.loop import Episode, Limits
from orchestration.agent.model import Model
from orchestration.printing import note
from udfs.errors import ConfigError

_NAME = re.compile(r"\w[\w.-]*")


def record(episode: Episode, model: Model, limits: Limits) -> dict[str, Any]:
    """An episode as a record."""
    columns = {
        "task_id": episode.task_id,
        "model_name": model.name,
        "reward": episode.reward,
        "tools": list(episode.tools) if episode.tools and episode.style == "tools" else None,
        "messages": episode.messages,
    }
    return {name: value for name, value in columns.items() if value is not None} | {
        "environment": episode.environment,
        "style": episode.style,
        "ended": episode.ended,
        "ended_detail": episode.detail,
        "model_replies": episode.steps,
        "most_replies": limits.steps,
        "seconds": episode.seconds,
        "parameters": dict(model.parameters),
        "episode_id": uuid4().hex,
        "ended_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


class Records:
    """A file of records that appears when its block ends, however it ends.

    Until then it is a hidden file beside its place, which no build lands. Every record is on the
    disk when `add` returns. A block that added nothing leaves no file.

    Args:
        folder: where the file goes; made if it is not there.

    Raises:
        ConfigError: the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        began = datetime.now(UTC)
        self.path = folder / f"{began:%Y%m%d-%H%M%S}-{os.getpid()}.jsonl"
        self._staging = folder / f".{self.path.name}"
        self.count = 0
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.left_behind = sorted(folder.glob(".*.jsonl"))
            self._file = self._staging.open("x", encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"{folder} cannot be written: {error}") from error

    def __enter__(self) -> Self:
        return self

    def add(self, row: dict[str, Any]) -> None:
        """Write one record."""
        self._file.write(json.dumps(row) + "\n")  # ASCII: half a surrogate pair has no UTF-8
        self._file.flush()
        os.fsync(self._file.fileno())
        self.count += 1

    def __exit__(self, kind: type[BaseException] | None, *_more: object) -> None:
        self._file.close()
        if not self.count:
            self._staging.unlink()
            return
        self._staging.rename(self.path)
        if kind is not None:
            note(f"note: what had ended is in {self.path} (episodes: {self.count:,})")


def check_name(name: str) -> str:
    """A name of a folder.

    Raises:
        ConfigError: it could be another folder's.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(f"The name '{name}' is none for a folder. Use letters, digits, . _ -")
    return name
