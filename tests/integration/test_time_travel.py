"""An old export made again, two exports compared, and a trajectory explained, on real builds."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from _curation_fixtures import EVERY_SOURCE, RECIPE, Workspace, step, trajectory
from deltalake import DeltaTable, write_deltalake
from typer.testing import CliRunner

from orchestration.cli import app
from udfs.lake import load_delta_extension

# Markup, a terminal's command to clear the screen, a change of direction, a tag character.
HOSTILE = "[bold red]pwned[/] \x1b[2J\x07 \u202egnp.exe\u202c \U000e0041 [link=file:///]"

RAW = pa.schema(
    [
        ("raw_record_id", pa.string()),
        ("source", pa.string()),
        ("raw_file", pa.string()),
        ("raw_position", pa.int64()),
        ("raw_offset", pa.int64()),
        ("raw_bytes", pa.int64()),
        ("raw_sha256", pa.string()),
        ("file_sha256", pa.string()),
        ("landed_at", pa.timestamp("us", tz="UTC")),
        ("raw", pa.binary()),
        ("landing_error", pa.string()),
    ]
)


def run_of(number: int, file: str = "runs.jsonl", **fields: Any) -> dict[str, Any]:
    """A run with an answer, in a raw file; source a or b unless said otherwise."""
    steps = [step("Action: look up", input=f"Question {number}?"), step(f"It is {number}.")]
    return trajectory(
        number,
        **{
            "source": "ab"[number % 2],
            "raw_file": file,
            "raw_position": number,
            "steps": steps,
        }
        | fields,
    )


def sha(number: int) -> str:
    identity: str = run_of(number)["trajectory_id"]
    return identity


def write(workspace: Workspace, rows: list[dict[str, Any]]) -> None:
    """Write what curation starts from, raw records with their bytes included."""
    refused = {"raw_record_id": "refused", "source": "a", "reason": "bad", "detail": "no reason"}
    workspace.write_trajectories(rows)
    records = [
        {
            "raw_record_id": row["raw_record_id"],
            "source": row["source"],
            "raw_file": row["raw_file"],
            "raw_position": row["raw_position"],
            "raw": f'{{"q": "{row["user_query"]}"}}\x00\xff'.encode("latin-1", "replace"),
        }
        for row in rows
    ]
    place = {"raw_file": "runs.jsonl", "raw_position": 999}
    tables = {
        "raw_records": pa.Table.from_pylist(records, RAW),
        "quarantine": pa.Table.from_pylist([refused | place]),
    }
    with duckdb.connect(workspace.environment["TRAJLAKE_DB"]) as connection:
        load_delta_extension(connection)
        for name, table in tables.items():
            path = workspace.lake / name
            write_deltalake(path, table, mode="overwrite", schema_mode="overwrite")
            connection.execute(
                f"create or replace view {name} as select * from delta_scan('{path}')"
            )


@dataclass
class Past:
    """A lake with two exports of a recipe, and the bytes of the first."""

    workspace: Workspace
    first: dict[str, bytes]


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def trajlake(workspace: Workspace, *arguments: str, **environment: str) -> Any:
    """Run a command in the project's root, as a person would."""
    return subprocess.run(
        [sys.executable, "-c", "from orchestration.cli import main; main()", *arguments],
        cwd=workspace.project,
        env={**workspace.environment, "COLUMNS": "120", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def past(tmp_path_factory: pytest.TempPathFactory) -> Past:
    """Two builds with an export each. Between them, of everything that can change, something."""
    workspace = Workspace(tmp_path_factory.mktemp("past"))
    rows = {number: run_of(number) for number in range(30)}
    rows |= {n: run_of(n, file="c.jsonl", source="c") for n in (50, 51)}
    rows[5] |= {"rater_score": 3.5}
    rows[11] |= {"user_query": HOSTILE}
    write(workspace, list(rows.values()))
    workspace.build()
    exported = trajlake(workspace, "export", "default")
    assert exported.returncode == 0, exported.stderr
    first = contents(workspace.exports / "default")

    workspace.write_recipes(
        [RECIPE, RECIPE | {"recipe": "strict", "filter": "rater_score >= 4.5"}],
        [
            EVERY_SOURCE,
            EVERY_SOURCE | {"source": "b", "max_repeats": 2},
            EVERY_SOURCE | {"recipe": "strict"},
        ],
    )
    rows[5] |= {"rater_score": 4.2}
    rows[6] |= {"rater_score": 3.8}
    del rows[8]
    rows[10] |= {"content_sha256": rows[12]["content_sha256"], "rater_score": 4.0}
    rows[12] |= {"score": 2.0}
    rows[14] |= {"steps": rows[14]["steps"] + [step("More.") | {"step_id": 3}]}
    rows[14] |= {"content_sha256": "grown"}
    rows[40] = run_of(40, file="new.jsonl")
    rows[42] = run_of(42)
    write(workspace, list(rows.values()))
    workspace.build(variables={"exclude_sources": ["c"]})
    for recipe in ("default", "strict"):
        exported = trajlake(workspace, "export", recipe)
        assert exported.returncode == 0, exported.stderr
    return Past(workspace, first)


@pytest.fixture
def here(past: Past, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workspace]:
    """The settings and the folder of this process are the lake's."""
    for name in ("TRAJLAKE_LAKE", "TRAJLAKE_DB", "TRAJLAKE_EXPORTS"):
        monkeypatch.setenv(name, past.workspace.environment[name])
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.chdir(past.workspace.project)
    yield past.workspace


def asked(*command: str) -> Any:
    """What a command prints with --json."""
    done = CliRunner().invoke(app, [*command, "--json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.output)


def shown(*command: str) -> str:
    """What a command prints for a person."""
    done = CliRunner().invoke(app, command, color=True)
    assert done.exit_code == 0, done.output
    return done.output


def changes(*command: str) -> dict[str, dict[str, Any]]:
    return {row["trajectory_id"]: row for row in asked("diff", *command)["trajectories"]}


def test_a_replay_gives_the_same_bytes_after_the_lake_has_moved_on(
    past: Past, tmp_path: Path
) -> None:
    before = {path: path.stat().st_mtime_ns for path in past.workspace.lake.rglob("*")}
    done = trajlake(
        past.workspace, "replay", "default@previous", "--to", str(tmp_path / "then"), "--json"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    said = json.loads(done.stdout)
    assert said["is_same"] and said["is_same_manifest"] and not said["notes"]
    assert contents(tmp_path / "then" / "exports" / "default") == past.first
    assert {path: path.stat().st_mtime_ns for path in past.workspace.lake.rglob("*")} == before
    rebuilt = {path.name for path in (tmp_path / "then" / "lake").iterdir() if path.is_dir()}
    assert rebuilt == {"curated_trajectories", "sft_samples", "source_quotas", "training_plan"}


def test_dbt_build_with_pinned_versions_gives_the_same_bytes(past: Past, tmp_path: Path) -> None:
    """Without the command, by what it says it would run: vars, an empty lake, an export there."""
    workspace = past.workspace
    folder = tmp_path / "by hand"
    told = trajlake(workspace, "replay", "default@previous", "--to", str(folder), "--dry-run")
    assert told.returncode == 0 and not folder.exists()
    python = shlex.quote(sys.executable)
    main = "from orchestration.cli import main; main()"
    script = told.stdout.replace("\ntrajlake ", f"\n{python} -c {shlex.quote(main)} ")
    done = subprocess.run(
        ["bash", "-euc", script],
        cwd=workspace.project,
        env={
            **workspace.environment,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert contents(folder / "exports" / "default") == past.first
    assert not (folder / "lake" / "ratings").exists()


def test_a_changed_past_is_told(past: Past) -> None:
    """Somebody has edited a rating in a file of the lake."""
    manifest = json.loads(past.first["manifest.json"])
    table = DeltaTable(past.workspace.lake / "ratings", version=manifest["tables"]["ratings"])
    (file,) = (Path(uri) for uri in table.file_uris())
    before = file.read_bytes()
    rows = pq.read_table(file).to_pylist()
    for row in rows[:3]:
        row["rater_score"] = 0.5
    pq.write_table(pa.Table.from_pylist(rows, pq.read_schema(file)), file)
    try:
        done = trajlake(past.workspace, "replay", "default@previous")
    finally:
        file.write_bytes(before)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "default@previous is not the same:" in done.stdout
    assert "data/train-00000-of-00001.parquet: sha256" in done.stdout
    assert "curated_trajectories: 3 rows are only in the version of then, 3 only in" in done.stdout


def test_a_vacuumed_version_is_told_before_anything_is_built(past: Past, here: Workspace) -> None:
    version = json.loads(past.first["manifest.json"])["tables"]["verifications"]
    table = DeltaTable(here.lake / "verifications", version=version)
    (file,) = (Path(uri) for uri in table.file_uris())
    file.rename(file.with_suffix(".away"))
    try:
        done = trajlake(here, "replay", "default@previous")
    finally:
        file.with_suffix(".away").rename(file)
    assert done.returncode == 1
    assert f"Version {version} of" in done.stderr and "files are gone" in done.stderr


def test_a_replay_needs_an_export_and_an_empty_folder(here: Workspace, tmp_path: Path) -> None:
    done = trajlake(here, "replay", "nothing")
    assert done.returncode == 1 and "there are: default, default@previous, strict" in done.stderr
    (tmp_path / "mine.txt").write_text("mine")
    done = trajlake(here, "replay", "default", "--to", str(tmp_path))
    assert done.returncode == 1 and "is not empty" in done.stderr
    done = trajlake(here, "replay", "strict@previous")
    assert done.returncode == 1 and "no export of 'strict' before the current one" in done.stderr


def test_diff_says_what_came_and_what_went_and_why(here: Workspace) -> None:
    found = changes("default@previous", "default")
    assert {sha(n): found[sha(n)]["change"] for n in (5, 40, 42)} == {
        sha(5): "added",
        sha(40): "added",
        sha(42): "added",
    }
    assert (found[sha(5)]["cause"], found[sha(5)]["why"]) == (
        "measures",
        "rater_score 3.5 → 4.2",
    )
    assert found[sha(5)]["then"]["reason"] == "filtered"
    assert found[sha(5)]["now"]["reason"] == "kept"
    assert (found[sha(40)]["cause"], found[sha(40)]["why"]) == (
        "new_raw_file",
        "new raw file new.jsonl",
    )
    assert found[sha(42)]["cause"] == "new_record"
    gone = {n: found[sha(n)] for n in (6, 8, 10, 50, 51)}
    assert {row["change"] for row in gone.values()} == {"removed"}
    assert gone[6]["why"] == "rater_score 5.0 → 3.8"
    assert gone[8]["cause"] == "gone"
    assert gone[10]["why"] == f"is the same as {sha(12)}"
    assert gone[50]["cause"] == gone[51]["cause"] == "source_excluded"


def test_diff_says_what_weighs_otherwise(here: Workspace) -> None:
    found = changes("default@previous", "default")
    grown = found[sha(14)]
    assert grown["change"] == "re-weighted"
    assert "it has another content" in grown["why"]
    assert "trained steps [1, 2] → [1, 2, 3]" in grown["why"]
    rarer = [
        row for row in found.values() if row["change"] == "re-weighted" and row["source"] == "b"
    ]
    assert rarer and {row["cause"] for row in rarer} == {"times"}
    assert rarer[0]["then"]["times"] == 3 and rarer[0]["now"]["times"] == 2
    assert "sources.b.max_repeats none → 2" in rarer[0]["why"]


def test_diff_adds_up_and_tells_settings_first(here: Workspace) -> None:
    told = asked("diff", "default@previous", "default")
    settings = {each["setting"]: (each["then"], each["now"]) for each in told["settings"]}
    assert settings["excluded_sources"] == ([], ["c"])
    assert settings["sources.b.max_repeats"] == ("none", 2)
    totals = told["totals"]
    for kind in ("added", "removed", "re-weighted"):
        assert totals[kind] == sum(row["change"] == kind for row in told["trajectories"])
        counted = [row["trajectories"] for row in told["summary"] if row["change"] == kind]
        assert totals[kind] == sum(counted)
    now = json.loads((here.exports / "default" / "manifest.json").read_text())
    assert sum(count["trajectories"] for count in now["counts"].values()) == (
        totals["added"] + totals["re-weighted"] + totals["unchanged"]
    )
    printed = shown("diff", "default@previous", "default")
    assert printed.index("Settings that differ") < printed.index("By cause and source")
    assert "rater_score 5.0 → 3.8" in printed


def test_diff_compares_two_recipes_and_one_export_with_itself(here: Workspace) -> None:
    found = changes("default", "strict")
    assert (found[sha(5)]["change"], found[sha(5)]["cause"]) == ("removed", "filter")
    assert found[sha(5)]["why"] == "filter rater_score >= 4.0 → rater_score >= 4.5"
    assert changes("default", str(here.exports / "default")) == {}


def test_diff_refuses_an_export_of_another_lake(here: Workspace, tmp_path: Path) -> None:
    manifest = json.loads((here.exports / "default" / "manifest.json").read_text())
    manifest["counts"]["train"]["positions"] += 1
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    done = trajlake(here, "diff", str(tmp_path), "default")
    assert done.returncode == 1 and "is an export of another lake" in done.stderr


def test_explain_tells_of_a_kept_and_of_a_dropped_trajectory(here: Workspace) -> None:
    kept = asked("explain", sha(5)[:12])
    assert kept["trajectory"]["trajectory_id"] == sha(5)
    assert kept["raw_records"][0]["raw_file"] == "runs.jsonl"
    assert [rating["rater_score"] for rating in kept["ratings"]] == [4.2]
    assert set(kept["missing"]) <= {"preference_pairs", "training_lineage"}
    verdicts = {row["recipe"]: (row["reason"], row["reason_detail"]) for row in kept["recipes"]}
    assert verdicts == {
        "default": ("kept", None),
        "strict": ("filtered", "rater_score >= 4.5"),
    }
    (plan,) = kept["plan"]
    assert (plan["recipe"], plan["positions"]) == ("default", len(plan["first_positions"]))
    assert [row["export"] for row in kept["exports"]] == ["default"]
    dropped = asked("explain", "runs.jsonl:6")
    assert dropped["trajectory"]["trajectory_id"] == sha(6)
    assert not dropped["plan"]
    assert [row["export"] for row in dropped["exports"]] == ["default@previous"]
    copy = asked("explain", sha(10))
    assert [row["trajectory_id"] for row in copy["same_content"]] == [sha(12)]
    page = shown("explain", sha(6))
    assert "default: filtered: rater_score >= 4.0" in page
    assert "none recorded" in page


def test_explain_says_what_it_cannot_find(here: Workspace) -> None:
    done = trajlake(here, "explain", "")
    assert done.returncode == 1 and "Several trajectories are called" in done.stderr
    done = trajlake(here, "explain", "runs.jsonl:999")
    assert done.returncode == 1 and "in quarantine: bad: no reason" in done.stderr
    done = trajlake(here, "explain", "zz")
    assert done.returncode == 1 and "No trajectory of" in done.stderr


def test_explain_tells_which_tables_a_lake_has_not(here: Workspace) -> None:
    away = here.lake.parent / "personal_data"
    os.rename(here.lake / "personal_data", away)
    try:
        told = asked("explain", sha(6))
    finally:
        os.rename(away, here.lake / "personal_data")
    assert told["missing"]["personal_data"] == "this lake has no table personal_data"
    assert "training_lineage" in told["missing"]
    assert told["ratings"]


def test_hostile_text_is_shown_and_does_nothing(here: Workspace) -> None:
    page = shown("explain", sha(11))
    assert "[bold red]pwned[/]" in page and "[link=file:///]" in page
    assert "\\x1b[2J\\x07" in page and "\\u202egnp.exe\\u202c" in page
    for character in ("\x1b[2J", "\x07", "\u202e", "\u202c", "\U000e0041", "\x00"):
        assert character not in page
