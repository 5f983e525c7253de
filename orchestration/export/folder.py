"""The folder of an export: written aside, and put in place in one step when it is complete."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from udfs.errors import ExportError
from udfs.settings import exports_folder


@contextmanager
def alone(name: str) -> Iterator[Path]:
    """The folder of an export's versions, for one at a time; a killed one lets go of it."""
    home = exports_folder() / ".versions" / name
    home.mkdir(parents=True, exist_ok=True)
    with (home / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ExportError(
                f"Another export of '{name}' is running. Wait until it has ended."
            ) from None
        yield home


def check_link(link: Path) -> None:
    """Check that an export may take its place.

    Raises:
        ExportError: something else lies there.
    """
    if link.exists() and not link.is_symlink():
        raise ExportError(
            f"{link} is no export: `trajlake export` makes a symbolic link there. Move it away, or "
            "set TRAJLAKE_EXPORTS to another folder."
        )


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """An export's manifest; None where there is no export or a file of it is gone or cut off."""
    try:
        manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_bytes())
        sizes = [(folder / shard["path"]).stat().st_size for shard in manifest["shards"]]
    except FileNotFoundError:
        return None
    return manifest if sizes == [shard["bytes"] for shard in manifest["shards"]] else None


def new_partial(home: Path) -> Path:
    """An empty folder for a new version; what an export that was cut off left there is gone."""
    partial = home / "partial"
    shutil.rmtree(partial, ignore_errors=True)
    (partial / "data").mkdir(parents=True)
    return partial


def publish(partial: Path, target: Path, link: Path) -> None:
    """Let `link` point to a finished folder, in one step; keep that and the one before it."""
    before = link.resolve() if link.is_symlink() else None
    sync(partial / "data")
    sync(partial)
    shutil.rmtree(target, ignore_errors=True)  # the same export, from an earlier time
    partial.rename(target)
    sync(target.parent)
    new_link = target.parent / "link"
    new_link.unlink(missing_ok=True)
    new_link.symlink_to(target.relative_to(link.parent))
    new_link.replace(link)
    sync(link.parent)
    for folder in target.parent.iterdir():
        if folder.is_dir() and folder not in (target, before):
            shutil.rmtree(folder)


def write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    sync(path)


def sync(path: Path) -> None:
    """Have a file or folder on disk before what comes next relies on it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
