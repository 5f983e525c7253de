"""What changed below the raw folder since the last look, by names, sizes and times of files.

The cursor is what the sensor keeps between two looks: JSON with a fingerprint for each source, not
for each file, so that it stays small.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter

from udfs.landing.files import RawFile


@dataclass(frozen=True)
class Source:
    """The files of a source as they are now."""

    files: int
    size: int  # bytes
    fingerprint: str  # another one where a file came, went, grew, shrank or was written


@dataclass(frozen=True)
class Look:
    """What a look at the raw folder gave.

    `changed` has the sources to build, and `key` the name of this change: null unless there is
    something new that has lain still since the look before. `cursor` is for the next look.
    """

    cursor: str
    key: str | None
    changed: tuple[str, ...]
    waits: bool  # something is new, and may still be being copied


def sources(files: Iterable[RawFile]) -> dict[str, Source]:
    """Each source's files in brief, from those that `udfs.landing.files.list_files` has found."""
    found = {}
    by_source = sorted(files, key=attrgetter("source", "name"))
    for name, group in groupby(by_source, key=attrgetter("source")):
        listed = [(file.name, file.size, file.modified_us) for file in group]
        found[name] = Source(
            files=len(listed),
            size=sum(size for _, size, _ in listed),
            fingerprint=hashlib.sha256(json.dumps(listed).encode()).hexdigest()[:16],
        )
    return found


def look(now: dict[str, Source], cursor: str | None) -> Look:
    """Compare what is there with what was there at the last look.

    A change is told once, at the first look that finds the same as the look before: files that are
    still being copied are waited for. Files that went away are a change that needs no build.
    """
    before = json.loads(cursor) if cursor else {"built": {}, "seen": None, "told": 0}
    seen = {name: source.fingerprint for name, source in now.items()}
    changed = tuple(name for name in seen if seen[name] != before["built"].get(name))
    is_still = seen == before["seen"]
    told = before["told"]
    key = None
    if changed and is_still:
        # A number makes the key of a change that comes a second time another one.
        state = json.dumps([told, seen], sort_keys=True).encode()
        key = f"raw-{told}-{hashlib.sha256(state).hexdigest()[:16]}"
        told += 1
    built = seen if key or not changed else before["built"]
    return Look(
        cursor=json.dumps({"built": built, "seen": seen, "told": told}, sort_keys=True),
        key=key,
        changed=changed if key else (),
        waits=bool(changed) and not is_still,
    )
