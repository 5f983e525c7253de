"""Is everything in order here? `trajlake doctor` looks, says so, and says what to do where not.

Every check is a function below `CHECKS` that gives one finding or several. It changes nothing: no
file is written but an empty one in the lake, which is gone at once, and without `--online` nothing
is sent anywhere. Keys and addresses are never printed.
"""

from __future__ import annotations

import csv
import fcntl
import json
import os
import shutil
import sys
import tempfile
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Literal

import duckdb
import typer
import yaml
from packaging.markers import Marker
from packaging.requirements import Requirement
from rich.console import Console

from orchestration.printing import AsJson, print_json, size_text, table, text
from orchestration.rate import rater_settings
from udfs import lake
from udfs.errors import ConfigError, LakeError, TrajlakeError
from udfs.landing.files import RawFile, list_files
from udfs.llm.journal import journal_path
from udfs.locks import lock_holder
from udfs.rater import configured_raters
from udfs.rater.committee import Seat, Settings, seats
from udfs.recipes import checked_filter
from udfs.settings import (
    check_folder,
    database_file,
    exports_folder,
    lake_root,
    prepared_folder,
    raw_folder,
    worker_count,
)
from udfs.sources import SOURCES_FILE, declared_sources
from udfs.views import UnreadableDatabase, open_database

_ROOT = Path(__file__).parents[1]
_SEEDS = _ROOT / "dbt_project" / "seeds"

# How long an endpoint may take for its list of models.
_ANSWER_WITHIN_S = 10.0

Status = Literal["ok", "note", "problem"]


@dataclass(frozen=True)
class Finding:
    """What a check found: `note` is nothing to mend, but good to know."""

    check: str
    status: Status
    found: str
    remedy: str | None = None


def doctor_command(
    online: Annotated[
        bool, typer.Option("--online", help="Ask the endpoint for its models, too.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check the environment, the settings and the lake, and say what to do.

    The exit code is 1 where there is a problem.
    """
    checks = [*CHECKS.items(), *([("endpoint online", _online)] if online else [])]
    findings = [finding for name, check in checks for finding in _look(name, check)]
    problems = sum(finding.status == "problem" for finding in findings)
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        _print(Console(), findings, problems)
    raise typer.Exit(1 if problems else 0)


def _look(name: str, check: Callable[[], Iterator[Found]]) -> Iterator[Finding]:
    """Run a check; an error of ours is a finding like any other."""
    try:
        for found in check():
            yield Finding(name, *found)
    except TrajlakeError as error:
        yield Finding(name, "problem", str(error))


Found = tuple[Status, str] | tuple[Status, str, str]


def _python() -> Iterator[Found]:
    project = tomllib.loads((_ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    running = ".".join(map(str, sys.version_info[:3]))
    if Requirement(f"python{project['requires-python']}").specifier.contains(running):
        yield "ok", f"{running}, at {sys.executable}"
    else:
        yield (
            "problem",
            f"Python {running} is not {project['requires-python']}",
            "Set up again with another: `make PYTHON=python3.12 build`.",
        )


def _folder() -> Iterator[Found]:
    check_folder()
    yield "ok", str(Path.cwd())


def _packages() -> Iterator[Found]:
    project = tomllib.loads((_ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    is_sound = True
    for line in project["dependencies"]:
        wanted = Requirement(line)
        installed = _version(wanted.name)
        if installed is None or not wanted.specifier.contains(installed, prereleases=True):
            is_sound = False
            yield (
                "problem",
                f"{wanted.name} {installed or 'is not installed'}; wanted: {wanted.specifier}",
                "Run `make build`, or pip install -r requirements/build.lock.",
            )
    locked = _locked(_ROOT / "requirements" / "build.lock")
    other = [
        f"{name} {installed} (locked {at})"
        for name, at in locked.items()
        if (installed := _version(name)) not in (None, at)
    ]
    if other:
        yield (
            "note",
            f"{len(other)} of {len(locked)} packages are not as locked: {', '.join(other[:5])}"
            + (" …" if len(other) > 5 else ""),
            "To have what the tests ran with: pip install -r requirements/build.lock.",
        )
    elif is_sound:
        yield "ok", f"{len(locked)} packages, as locked"


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _locked(file: Path) -> dict[str, str]:
    """Package → version of a lock, as far as it holds for this system."""
    found = {}
    for line in file.read_text("utf-8").splitlines():
        pinned, _, marker = line.partition(" ; ")
        name, is_pin, at = pinned.partition("==")
        if is_pin and not line.startswith((" ", "#")) and (not marker or Marker(marker).evaluate()):
            found[name.partition("[")[0]] = at.strip()
    return found


def _delta_extension() -> Iterator[Found]:
    try:
        with duckdb.connect() as connection:
            lake.load_delta_extension(connection)
    except (duckdb.Error, ImportError) as error:
        yield (
            "problem",
            f"DuckDB {duckdb.__version__} cannot load it: {str(error).splitlines()[0]}",
            "Install duckdb and duckdb-extension-delta of one version: `make build`.",
        )
        return
    yield "ok", f"loads in DuckDB {duckdb.__version__}"


def _raw() -> Iterator[Found]:
    folder = raw_folder()
    if not folder.is_dir():
        yield (
            "problem",
            f"{folder} does not exist",
            "Create it with one folder a source, or point TRAJLAKE_RAW at your logs.",
        )
        return
    files = list_files(folder)
    if not files:
        yield "problem", f"{folder} has no file", "Put one folder a source into it."
        return
    unreadable = [file.name for file in files if not os.access(file.path, os.R_OK)]
    if unreadable:
        yield (
            "problem",
            f"{len(unreadable):,} files cannot be read, the first is {unreadable[0]}",
            "Change their rights, or mend the links that lead nowhere.",
        )
    unsupported = Counter(file.ending for file in files if not file.is_supported)
    if unsupported:
        endings = ", ".join(f"{n:,} {end or 'without one'}" for end, n in unsupported.items())
        yield (
            "note",
            f"files with endings that nothing reads: {endings}",
            "They go to quarantine. docs/adding-a-source.md has the endings that are read.",
        )
    sources = len({file.source for file in files})
    size = size_text(sum(file.size for file in files))
    yield "ok", f"{len(files):,} files of {sources:,} sources, {size}, at {folder}"


def _sources() -> Iterator[Found]:
    try:
        declared = declared_sources()
    except (yaml.YAMLError, AttributeError, KeyError, TypeError) as error:
        yield (
            "problem",
            f"{SOURCES_FILE} cannot be read: {error}",
            "Mend it; docs/adding-a-source.md shows an entry.",
        )
        return
    present = {file.source for file in _raw_files()}
    alone = sorted(declared.keys() - present)
    others = sorted(present - declared.keys())
    for name in alone:
        # One that looks like a folder without an entry was most likely meant to be its entry.
        if alike := get_close_matches(name, others, n=1, cutoff=0.8):
            yield (
                "problem",
                f"an entry for '{name}', and a folder '{alike[0]}' without one",
                f"If they are one source, give them one name in {SOURCES_FILE.name}.",
            )
    yield "ok", f"{len(declared):,} entries, all can be used"
    if others:
        yield (
            "note",
            f"no entry for {', '.join(others)}: no licence, environment or task type is known",
            f"Add one where that is needed: {SOURCES_FILE.relative_to(_ROOT)}.",
        )


def _raw_files() -> list[RawFile]:
    return list_files(raw_folder()) if raw_folder().is_dir() else []


def _recipes() -> Iterator[Found]:
    recipes = _seed("recipes")
    names = [row.get("recipe") or "" for row in recipes]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        yield (
            "problem",
            f"recipes.csv has {', '.join(twice)} more than once",
            "Give every recipe a name of its own.",
        )
    for row in recipes:
        for column, value in row.items():
            if column == "filter" or (column.endswith("_filter") and value):
                try:
                    checked_filter(row.get("recipe"), column, value)
                except ConfigError as error:
                    yield "problem", str(error)
    known = {file.source for file in _raw_files()} | declared_sources().keys() | {"*"}
    for row in _seed("recipe_sources"):
        recipe, source = row.get("recipe") or "", row.get("source") or ""
        if recipe not in names:
            yield (
                "problem",
                f"recipe_sources.csv names a recipe '{recipe}' that recipes.csv does not have",
                f"There are {', '.join(names)}.",
            )
        if source not in known:
            alike = get_close_matches(source, sorted(known), n=1)
            yield (
                "note",
                f"recipe_sources.csv: recipe '{recipe}' names a source '{source}' that is not here",
                f"Did you mean '{alike[0]}'?" if alike else "It has no effect until it is.",
            )
    yield "ok", f"{len(recipes)}: {', '.join(names)}"


def _seed(name: str) -> list[dict[str, str]]:
    """The rows of a seed.

    Raises:
        ConfigError: there is no such file.
    """
    path = _SEEDS / f"{name}.csv"
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}). Restore it.") from error


def _lake() -> Iterator[Found]:
    root = lake_root()
    if "://" in root:
        try:
            names = lake.table_names()
        except duckdb.Error as error:
            raise LakeError(f"{root} cannot be listed: {str(error).splitlines()[0]}") from error
        yield "ok", f"{len(names)} tables at {root}; whether it can be written is seen by a build"
        return
    folder = _nearest(Path(root))
    if not folder.is_dir():
        yield "problem", f"{folder} is no folder", "Set TRAJLAKE_LAKE to one."
        return
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        yield (
            "problem",
            f"{folder} cannot be written ({error.strerror})",
            "Change its rights, or set TRAJLAKE_LAKE to another folder.",
        )
        return
    if not Path(root).is_dir():
        yield "note", f"{root} is not there yet; `dbt build` makes it"
        return
    yield "ok", f"{len(lake.table_names())} tables at {root}"


def _nearest(path: Path) -> Path:
    """A path, or the nearest one above it that exists."""
    return next(each for each in (path, *path.parents) if each.exists())


def _database() -> Iterator[Found]:
    database = database_file()
    if not database.exists():
        yield "note", f"{database} is not there yet; `dbt build` makes it"
        return
    holder = lock_holder(database)
    if holder and holder.writes:
        yield (
            "note",
            f"{holder} has {database} open to write, most likely a build",
            "Another build has to wait; `trajlake` commands need not.",
        )
    elif holder:
        yield (
            "problem",
            f"{holder} reads {database}, and no build can start meanwhile",
            "Close it there, and read by `trajlake sql`, which holds nothing.",
        )
    try:
        with open_database() as connection:
            views = dict(
                connection.execute(
                    "select view_name, sql from duckdb_views() where not internal"
                ).fetchall()
            )
    except UnreadableDatabase as error:
        yield (
            "problem",
            str(error),
            "Run `dbt build`, which makes the views anew; a broken file may be deleted before.",
        )
        return
    tables = set(lake.table_names())
    missing = [name for name, sql in views.items() if "delta_scan(" in sql and name not in tables]
    if missing:
        yield (
            "problem",
            f"views of tables that are not in the lake: {', '.join(sorted(missing))}",
            "Run `dbt build`, which makes them; the last one did not come to its end.",
        )
    elif not holder:
        yield "ok", f"{len(views)} views in {database}"


def _disk() -> Iterator[Found]:
    """Whether the lake can become as large as the raw files, which it keeps byte for byte."""
    if "://" in lake_root():
        yield "note", "the lake is an object store, whose room is not known here"
        return
    folder = _nearest(Path(lake_root()))
    free = shutil.disk_usage(folder).free
    raw = sum(file.size for file in _raw_files())
    said = f"{size_text(free)} free at {folder}; the raw files are {size_text(raw)}"
    if free < raw:
        yield "problem", said, "Make room, or set TRAJLAKE_LAKE to a larger disk."
    else:
        yield "ok", said


def _settings() -> Iterator[Found]:
    """The settings that a build reads first, and fails on."""
    workers = worker_count()
    raters = json.loads(configured_raters(json.dumps(rater_settings({}))))
    names = ", ".join(each["judge"] or each["rate_model"] for each in raters)
    yield "ok", f"{workers} workers; rated by {names}"


def _endpoint() -> Iterator[Found]:
    """Keys and addresses, by name and never by value."""
    asking = {seat.settings.key_variable for seat in _asking()}
    for name in sorted(asking | {"OPENAI_API_KEY"}):
        if os.environ.get(name):
            yield "ok", f"{name} is set"
        elif name in asking:
            yield (
                "problem",
                f"{name} is not set, and a rater of dbt_project.yml needs it",
                f"Set {name}; where the endpoint asks for none, any text will do.",
            )
        else:
            yield "note", f"{name} is not set; only raters that ask a model need one"
    if "OPENAI_BASE_URL" not in os.environ:
        yield "note", "OPENAI_BASE_URL is not set: OpenAI itself"
    elif not _is_url(os.environ["OPENAI_BASE_URL"]):
        yield (
            "problem",
            "OPENAI_BASE_URL is set, and is no URL",
            "Set it to one such as http://localhost:8000/v1, or unset it for OpenAI itself.",
        )
    else:
        yield "ok", "OPENAI_BASE_URL is set"


def _is_url(text: str) -> bool:
    return text.startswith(("http://", "https://"))


def _asking() -> list[Seat]:
    """The configured raters that ask an endpoint."""
    given = Settings.of(rater_settings({}))
    return [seat for seat in seats(given) if seat.settings.rater == "openai"]


def _online() -> Iterator[Found]:
    """Whether endpoints answer, and to the key: the list of models is asked for, which is free."""
    import openai

    places = {(seat.settings.base_url, seat.settings.key_variable) for seat in _asking()}
    for base_url, key_variable in sorted(places or {(None, "OPENAI_API_KEY")}, key=str):
        where = "the rater's base_url" if base_url else "OPENAI_BASE_URL"
        key = os.environ.get(key_variable)
        address = base_url or os.environ.get("OPENAI_BASE_URL")
        if not key:
            yield "note", f"not asked, because {key_variable} is not set"
            continue
        if address is not None and not _is_url(address):
            yield "problem", f"{where} is no URL", "Set it to one such as http://localhost:8000/v1."
            continue
        try:
            client = openai.OpenAI(
                api_key=key, base_url=address, max_retries=0, timeout=_ANSWER_WITHIN_S
            )
            with client:
                models = len(client.models.list().data)
        except openai.APIStatusError as error:
            if error.status_code in (401, 403):
                yield (
                    "problem",
                    f"the endpoint refuses the key in {key_variable} ({error.status_code})",
                    f"Set {key_variable} to one that is valid there.",
                )
            else:
                yield "note", f"the endpoint answers, with {error.status_code} to a list of models"
        except openai.APIConnectionError as error:
            yield (
                "problem",
                # By its kind alone: the text could name the address.
                f"the endpoint cannot be reached ({type(error.__cause__ or error).__name__})",
                f"Check {where} and the network.",
            )
        else:
            yield "ok", f"the endpoint answers, and has {models:,} models"


def _leftovers() -> Iterator[Found]:
    """What killed runs left behind. Nothing of it does harm."""
    is_clean = True
    for journal in sorted(journal_path("ratings").parent.glob("*.jsonl")):
        if journal.stat().st_size and not _is_locked(journal):
            is_clean = False
            yield (
                "note",
                f"{journal} holds answers that are not in the lake",
                "The next `dbt build` that rates moves them there.",
            )
    for partial in sorted((exports_folder() / ".versions").glob("*/partial")):
        if not _is_locked(partial.with_name("lock")):
            is_clean = False
            yield (
                "note",
                f"{partial} is an export that was cut off",
                f"`trajlake export {partial.parent.name}` clears it away.",
            )
    for chunks in sorted(prepared_folder().glob(".*-chunks")):
        if not _is_locked(chunks.with_name(".lock")):
            is_clean = False
            yield (
                "note",
                f"{chunks} is of rows that were not prepared to their end",
                "Preparing the same again goes on there; else it may be deleted.",
            )
    log = database_file().with_name(f"{database_file().name}.wal")
    if log.exists() and database_file().exists() and not lock_holder(database_file()):
        is_clean = False
        yield "note", f"{log} is of a build that was killed", "The next `dbt build` clears it away."
    for spill in sorted(Path(tempfile.gettempdir()).glob("trajlake-*")):
        number = spill.name.rpartition("-")[2]
        if number.isdecimal() and not Path(f"/proc/{number}").exists() and Path("/proc").exists():
            is_clean = False
            yield "note", f"{spill} is of a query that was killed", "It may be deleted."
    if is_clean:
        yield "ok", "none"


def _is_locked(path: Path) -> bool:
    """Whether someone holds a file by `flock`, as exports and journals do."""
    if not path.exists():
        return False
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


def _training() -> Iterator[Found]:
    wanted = ("torch", "transformers", "accelerate", "peft", "bitsandbytes")
    found = {name: _version(name) for name in wanted}
    missing = [name for name, at in found.items() if at is None]
    if missing:
        yield (
            "note",
            f"not installed: {', '.join(missing)}",
            "Only training needs them: `make train`, or the README on torch's builds.",
        )
    else:
        yield "ok", ", ".join(f"{name} {at}" for name, at in found.items())


CHECKS: Mapping[str, Callable[[], Iterator[Found]]] = {
    "python": _python,
    "folder": _folder,
    "packages": _packages,
    "delta extension": _delta_extension,
    "raw files": _raw,
    "sources.yml": _sources,
    "recipes": _recipes,
    "settings": _settings,
    "lake": _lake,
    "database": _database,
    "disk": _disk,
    "endpoint": _endpoint,
    "leftovers": _leftovers,
    "training": _training,
}


def _print(console: Console, findings: list[Finding], problems: int) -> None:
    shown = table("What was looked at")
    shown.add_column("check", no_wrap=True)
    shown.add_column("", no_wrap=True)
    shown.add_column("found", overflow="fold")
    words = {"ok": "[green]OK[/]", "note": "[blue]note[/]", "problem": "[bold red]problem[/]"}
    for finding in findings:
        found = text(finding.found)
        if finding.remedy:
            found.append(f"\n→ {finding.remedy}")
        shown.add_row(finding.check, words[finding.status], found)
    console.print(shown)
    counted = f"{problems} problem." if problems == 1 else f"{problems} problems."
    console.print(counted if problems else "Nothing is wrong.")
