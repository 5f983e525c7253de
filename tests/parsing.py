"""What dbt has read of the project, kept from test to test."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_KEPT: dict[tuple[str, str], bytes] = {}


@contextmanager
def shared_parsing(target: Path, database: str, variables: str) -> Iterator[None]:
    """Spare a dbt command the five seconds of a core that reading the whole project takes.

    dbt keeps in its target folder what it has read, and reads only files that have changed, but
    everything where the vars or a variable of its profile are others. Every test has a target
    folder of its own; what one leaves there is given to the next with the same vars.

    Args:
        target: the folder that the command has as its target.
        database: `TRAJLAKE_DB` of the command. Tests that share have to name it by the same text,
            though it is a file of each one's own.
        variables: the command's vars.
    """
    file = target / "partial_parse.msgpack"
    if known := _KEPT.get((database, variables)):
        target.mkdir(exist_ok=True)
        file.write_bytes(known)
    yield
    if file.exists():
        _KEPT.setdefault((database, variables), file.read_bytes())
