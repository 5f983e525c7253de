"""Replay: an old export made again from the versions of the tables that it was made from.

    trajlake replay exports/default/manifest.json

The tables that curation begins with (trajectories, ratings, flags, recipe settings …) are pinned
to the versions that the manifest names (`udfs.pinning`). dbt builds what follows from them into a
scratch lake, with the vars of then, and exports it. The lake itself is only read. The same code
has to give the same bytes.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import duckdb
import typer
from rich.console import Console

from orchestration.export import code_version, export
from orchestration.manifests import Exported, find_export
from orchestration.printing import AsJson, line, print_json
from udfs import lake
from udfs.errors import ConfigError, ExportError
from udfs.lake import INPUTS, VARS, Pins, in_memory, path_scan
from udfs.pinning import pins_of, recorded_at
from udfs.settings import database_file, lake_root

_RESOURCES = ("--resource-type", "model", "--resource-type", "seed")

# Of what dbt prints when it fails, so much is shown.
_LINES = 25


@dataclass(frozen=True)
class Replay:
    """What came of a replay.

    Args:
        folder: where it is: `lake`, `exports`, dbt's `target` and `logs`; None where it is gone.
        manifest: of the export that was made.
        differences: the files of the export that are not the same, with what is wrong with them.
        reasons: what is known of why.
        notes: what is to be known whether it is the same or not.
    """

    of: Exported
    folder: Path | None
    manifest: Mapping[str, Any]
    differences: Sequence[str]
    reasons: Sequence[str]
    notes: Sequence[str]

    @property
    def is_same(self) -> bool:
        """Whether the training data are the same byte for byte."""
        return not self.differences


def replay_command(
    of: Annotated[
        str,
        typer.Argument(
            metavar="EXPORT",
            help="A manifest.json, the folder of an export, a recipe, or `recipe@previous`.",
        ),
    ],
    to: Annotated[
        Path | None,
        typer.Option(help="An empty folder for what is built; kept. Without it, a temporary one."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the commands that do the same, and run none.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Make an old export again from the versions it was made from, and compare the bytes."""
    exported = find_export(of)
    if dry_run:
        print(_script(_plan(exported), to or Path("replay")))
        return
    done = replay(exported, to)
    if as_json:
        print_json(_as_json(done))
    else:
        _print(done)
    if not done.is_same:
        raise typer.Exit(1)


def replay(of: Exported, to: Path | None = None) -> Replay:
    """Build what an export was made from again, export it, and compare.

    Args:
        of: the export; only its manifest is needed.
        to: an empty folder. Without it a temporary one, which is kept only if something differs.

    Raises:
        ConfigError: the command does not run where it has to, or the folder is not empty.
        LakeError: a version that the manifest names is not there any more.
        ExportError: dbt cannot build it.
    """
    if to is not None and to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise ConfigError(f"{to} is not empty. Give an empty folder, or one that is not there.")
    plan = _plan(of)
    folder = Path(tempfile.mkdtemp(prefix="trajlake-replay-")) if to is None else to.resolve()
    settings = _settings(folder)
    plan.pins.write(folder / "lake")
    _dbt(plan.build, plan.made_with, settings)
    with _environment(settings):
        made = export(of.recipe, **_options(of))
    differences = _differences(of, made.manifest, made.folder)
    reasons = _reasons(plan, made.manifest, folder) if differences else []
    if to is None and not differences:
        shutil.rmtree(folder)
    kept = folder if folder.exists() else None
    return Replay(of, kept, made.manifest, differences, reasons, _notes(plan))


@dataclass(frozen=True)
class _Plan:
    """What is to be done for a replay.

    Args:
        made_with: the dbt vars of then, as commits recorded them.
        models: what dbt builds, by name.
        unnamed: what of these the manifest does not name.
    """

    of: Exported
    pins: Pins
    made_with: Mapping[str, Any]
    models: Sequence[str]
    unnamed: Sequence[str]

    @property
    def build(self) -> list[str]:
        """The arguments of dbt, but for the vars."""
        return ["build", *_RESOURCES, "--select", *self.models]


def _plan(of: Exported) -> _Plan:
    """Look up what there is to do, without doing anything.

    Raises:
        ConfigError: the command does not run where it has to.
        LakeError: a version that the manifest names is not there any more.
        ExportError: this code has nothing to build it with.
    """
    root = lake_root()
    if lake.pins().lake:
        raise ConfigError(
            f"{root} is a lake of pinned versions itself. Set TRAJLAKE_LAKE to {lake.pins().lake}."
        )
    project = Path("dbt_project.yml").resolve()
    if not project.is_file():
        raise ConfigError(f"There is no {project}. Run `trajlake` in the project's root.")
    pins = pins_of(of.tables, root)
    recorded = (recorded_at(f"{root}/{name}", v, VARS) for name, v in pins.replays.items())
    made_with = next((found for found in recorded if found), {})
    models, unnamed = _models(pins, made_with)
    return _Plan(of, pins, made_with, models, unnamed)


def _settings(folder: Path) -> dict[str, str]:
    """The environment in which all is below a folder. Views name their database, so it is called
    as ever: else their checksums would differ from those of then."""
    return {
        "TRAJLAKE_LAKE": str(folder / "lake"),
        "TRAJLAKE_EXPORTS": str(folder / "exports"),
        "TRAJLAKE_DB": str(folder / database_file().name),
        "DBT_TARGET_PATH": str(folder / "target"),
        "DBT_LOG_PATH": str(folder / "logs"),
    }


def _options(of: Exported) -> dict[str, Any]:
    """How the export was asked for, beside the recipe."""
    return {key: value for key, value in of.manifest.items() if key in ("layout", "learn_masked")}


def _script(plan: _Plan, folder: Path) -> str:
    """The commands that do what a replay does, for a shell in the project's root."""
    pinned = {"pinned_versions": str(plan.of.file.resolve()), "pinned_lake": plan.pins.lake}
    variables = json.dumps({**pinned, **plan.made_with})
    options = []
    for name, value in _options(plan.of).items():
        if value:
            options += [f"--{name.replace('_', '-')}", *([value] if value is not True else [])]
    commands = (
        *(f"export {k}={shlex.quote(v)}" for k, v in _settings(folder.resolve()).items()),
        shlex.join(["dbt", *plan.build, "--vars", variables]),
        shlex.join(["trajlake", "export", plan.of.recipe, *options]),
    )
    return "\n".join(commands)


def _models(pins: Pins, made_with: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """The tables to build again and all that they read, up to what is pinned; and of these, what
    is neither a view nor pinned.

    Raises:
        ExportError: this code needs the result of a Python model that the export did not have.
    """
    keys = ["unique_id", "name", "depends_on", "language", "config.materialized"]
    command = ["ls", "--quiet", *_RESOURCES, "--output", "json", "--output-keys", *keys]
    with tempfile.TemporaryDirectory(prefix="trajlake-replay-") as folder:
        listed = _dbt(command, made_with, _settings(Path(folder)))
    lines = (each for each in listed.splitlines() if each.startswith("{"))
    nodes = {node["unique_id"]: node for node in map(json.loads, lines)}
    named = {node["name"]: key for key, node in nodes.items()}
    if gone := sorted(pins.replays.keys() - named.keys()):
        raise ExportError(
            f"This code has no model {', '.join(gone)}, which the export was made from. Check out "
            "the code that made it."
        )
    pending = [named[name] for name in pins.replays]
    found: dict[str, None] = {}
    for key in pending:
        if key in found or key not in nodes:
            continue
        found[key] = None
        if nodes[key]["name"] not in pins.versions:
            pending += nodes[key]["depends_on"]["nodes"]
    known = pins.versions.keys() | pins.replays.keys()
    unnamed = [
        nodes[key]
        for key in found
        if nodes[key]["name"] not in known and nodes[key]["config.materialized"] != "view"
    ]
    if python := [node["name"] for node in unnamed if node["language"] == "python"]:
        raise ExportError(
            f"This code makes curation from {', '.join(python)} too, which the export was not made "
            "from, and which is no SQL. Check out the code that made it."
        )
    return [nodes[key]["name"] for key in found], [node["name"] for node in unnamed]


def _dbt(command: Sequence[str], made_with: Mapping[str, Any], settings: Mapping[str, str]) -> str:
    """Run dbt on the scratch lake, and give what it printed.

    Raises:
        ExportError: it failed.
    """
    program = Path(sys.executable).with_name("dbt")
    done = subprocess.run(
        [str(program), *command, *(("--vars", json.dumps(made_with)) if made_with else ())],
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        said = "\n".join((done.stdout + done.stderr).strip().splitlines()[-_LINES:])
        raise ExportError(
            f"dbt could not build what the export was made from; its lake and logs are in "
            f"{Path(settings['DBT_LOG_PATH']).parent}. It says:\n{said}"
        )
    return done.stdout


@contextmanager
def _environment(settings: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _differences(of: Exported, now: Mapping[str, Any], folder: Path) -> list[str]:
    """The files that are not the same, in words: data by the manifest's checksums, and what lies
    beside them, such as the dataset card, where the export itself is there.

    `manifest.json` is not compared here: it names the code, which may be another one.
    """
    then_files = {shard["path"]: shard["sha256"] for shard in of.manifest["shards"]}
    now_files = {shard["path"]: shard["sha256"] for shard in now["shards"]}
    found = [
        f"{path}: sha256 {then_files.get(path, 'none')} then, {now_files.get(path, 'none')} now"
        for path in sorted(then_files.keys() | now_files.keys())
        if then_files.get(path) != now_files.get(path)
    ]
    for file in sorted(of.file.parent.iterdir()) if (of.file.parent / "data").is_dir() else ():
        if file.is_file() and file.name != of.file.name:
            made = folder / file.name
            is_same = made.is_file() and made.read_bytes() == file.read_bytes()
            found += [] if is_same else [f"{file.name}: other bytes"]
    return found


def _notes(plan: _Plan) -> list[str]:
    notes = []
    then, now = plan.of.manifest["code_version"], code_version()
    if then != now:
        notes.append(f"the code differs: {then} then, {now} now")
    if not plan.made_with:
        notes.append(
            "the export is from before commits recorded the rater's vars: the project's own are "
            "used (give others in dbt_project.yml)"
        )
    if plan.unnamed:
        notes.append(
            f"the manifest does not name {', '.join(plan.unnamed)}, which this code reads: built "
            "anew from what is pinned"
        )
    return notes


def _reasons(plan: _Plan, now: Mapping[str, Any], folder: Path) -> list[str]:
    """What is known of why a replay is not the same."""
    of, pins = plan.of, plan.pins
    reasons = []
    if of.manifest["written_by"] != now["written_by"]:
        reasons.append(
            f"the files were written by {of.manifest['written_by']}, and by {now['written_by']} "
            "now, which may write the same rows in other bytes"
        )
    if of.manifest["plan_sha256"] == now["plan_sha256"]:
        reasons.append("the order of training is the same; what differs is in the samples")
    for name in pins.replays:
        then_path, now_path = f"{pins.lake}/{name}", f"{folder}/lake/{name}"
        version = of.tables[name]
        made_of_then = recorded_at(then_path, version, INPUTS)
        made_of_now = recorded_at(now_path, version, INPUTS)
        for each in sorted(made_of_then.keys() | made_of_now.keys()):
            there, here = made_of_then.get(each), made_of_now.get(each)
            if there == here:
                continue
            if isinstance(there, int) and isinstance(here, int):
                reasons.append(
                    f"{name} was made from version {there} of {each}, and other tables from "
                    f"version {here}: builds of then mixed the two, a replay has one"
                )
            else:
                reasons.append(f"{name} is made through {each}, which is not what it was then")
        reasons += _other_rows(name, version, then_path, now_path, of.recipe)
    return reasons


def _other_rows(name: str, version: int, then_path: str, now_path: str, recipe: str) -> list[str]:
    """How many rows of a recipe are only in one of two versions of a table, in words."""
    scans = [
        f"select * from {path_scan(path, version)} where recipe = $recipe"
        for path in (then_path, now_path)
    ]
    with in_memory() as connection:
        try:
            only_then, only_now = (
                connection.execute(
                    f"select count(*) from (({one}) except all ({other}))", {"recipe": recipe}
                ).fetchall()[0][0]
                for one, other in (scans, reversed(scans))
            )
        except duckdb.Error as error:
            return [f"the rows of {name} cannot be compared: {str(error).splitlines()[0]}"]
    if not (only_then or only_now):
        return []
    return [
        f"{name}: {only_then:,} rows are only in the version of then, {only_now:,} only in this"
    ]


def _as_json(done: Replay) -> dict[str, Any]:
    return {
        "export": done.of.name,
        "recipe": done.of.recipe,
        "manifest": str(done.of.file),
        "is_same": done.is_same,
        "is_same_manifest": done.manifest == done.of.manifest,
        "shards": len(done.manifest["shards"]),
        "differences": list(done.differences),
        "reasons": list(done.reasons),
        "notes": list(done.notes),
        "folder": str(done.folder) if done.folder else None,
    }


def _print(done: Replay) -> None:
    console = Console(highlight=False, soft_wrap=True)
    shards = done.manifest["shards"]
    size = sum(shard["bytes"] for shard in shards) / 1e6
    if done.is_same:
        whole = "manifest included" if done.manifest == done.of.manifest else "but for the manifest"
        said = f"{done.of.name} is the same, byte for byte"
        files = f"{len(shards)} files, {size:,.1f} MB, {whole}"
        console.print(line(f"{said}: {files}"), style="green")
    else:
        console.print(line(f"{done.of.name} is not the same:"), style="red")
        for text in done.differences:
            console.print(line(f"  {text}"))
        console.print("What is known of why:" if done.reasons else "Why is not known.")
        for text in done.reasons:
            console.print(line(f"  {text}"))
    for text in done.notes:
        console.print(line(f"note: {text}"))
    if done.folder:
        console.print(line(f"what was built is in {done.folder}"))
