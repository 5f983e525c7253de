"""Exports as a trainer finds them: complete or not there, and the same from the same inputs."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from _curation_fixtures import EVERY_SOURCE, PROJECT, RECIPE, Workspace, step, trajectory
from deltalake import DeltaTable
from typer.testing import CliRunner

from orchestration.cli import app
from orchestration.export import export, origin, writing
from udfs.errors import ExportError


def conversation(number: int, **fields: Any) -> dict[str, Any]:
    """A run with a tool call, so that every column of an export is in use."""
    call = {"call_id": "c1", "name": "look_up", "arguments": '{"word": "naïve"}'}
    seen = {"source": "environment", "name": "look_up", "call_id": "c1", "content": "artless"}
    return trajectory(
        number,
        source="ab"[number % 2],
        license="MIT" if number % 2 else None,
        format="chat",
        tools='[{"type": "function"}]',
        steps=[
            step(None, input=f"Question {number}?", tool_calls=[call], observations=[seen]),
            step("It is artless. " * (number % 7), observations=[]),
        ],
        **fields,
    )


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A built lake that no test changes."""
    made = Workspace(tmp_path_factory.mktemp("export"))
    made.write_recipes(
        [RECIPE, RECIPE | {"recipe": "nothing", "filter": "rater_score > 5"}],
        [EVERY_SOURCE | {"recipe": name} for name in ("default", "nothing")],
    )
    made.write_trajectories([conversation(number) for number in range(60)])
    made.build()
    return made


@pytest.fixture(autouse=True)
def the_code_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Work on the project while its tests run is no new version of an export."""
    monkeypatch.setattr(origin, "code_version", lambda: "0.1.0")


@pytest.fixture
def point_to(monkeypatch: pytest.MonkeyPatch) -> Callable[[Workspace, Path], None]:
    """Has the settings of this process name a lake and an exports folder."""

    def point(workspace: Workspace, folder: Path) -> None:
        monkeypatch.setenv("TRAJLAKE_LAKE", str(workspace.lake))
        monkeypatch.setenv("TRAJLAKE_EXPORTS", str(folder))

    return point


@pytest.fixture
def folder(
    workspace: Workspace, tmp_path: Path, point_to: Callable[[Workspace, Path], None]
) -> Path:
    """The empty exports folder of a test on the module's lake."""
    point_to(workspace, tmp_path / "exports")
    return tmp_path / "exports"


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def rows_of(folder: Path, split: str) -> list[dict[str, Any]]:
    files = sorted((folder / "data").glob(f"{split}-*.parquet"))
    rows: list[dict[str, Any]] = pa.concat_tables([pq.read_table(f) for f in files]).to_pylist()
    return rows


def test_an_export_is_the_plan_with_its_samples_in_order(
    workspace: Workspace, folder: Path
) -> None:
    written = export("default")
    assert written.is_new and written.folder == folder / "default"
    for split in ("train", "eval"):
        assert rows_of(written.folder, split) == workspace.query(
            f"""
            select position, epoch, trajectory_id, source, messages, tools, loss_flags, weight
            from training_plan
            join sft_samples using (recipe, trajectory_id, source, split)
            join conversations using (trajectory_id)
            where recipe = 'default' and split = '{split}'
            order by position
            """
        )
    call = rows_of(written.folder, "train")[0]["messages"][1]["tool_calls"][0]
    assert call["function"] == {"name": "look_up", "arguments": '{"word": "naïve"}'}


def test_the_manifest_says_what_is_in_an_export_and_what_it_is_from(
    workspace: Workspace, folder: Path
) -> None:
    export("default")
    manifest = json.loads((folder / "default" / "manifest.json").read_text())
    assert manifest["recipe"] == "default"
    assert manifest["settings"]["sources"] == {
        "*": {"weight": 1.0, "max_repeats": 3, "is_general": False}
    }
    for shard in manifest["shards"]:
        content = (folder / "default" / shard["path"]).read_bytes()
        assert (shard["bytes"], shard["sha256"]) == (len(content), sha256(content).hexdigest())
        assert shard["rows"] == pq.read_metadata(folder / "default" / shard["path"]).num_rows
    # Every table that the plan goes back to, among them those that an export reads.
    assert {
        "raw_records",
        "trajectories",
        "conversations",
        "verifications",
        "ratings",
        "trajectory_flags",
        "near_duplicates",
        "personal_data",
        "recipe_settings",
        "quota_settings",
        "curated_trajectories",
        "sft_samples",
        "source_quotas",
        "training_plan",
    } <= set(manifest["tables"])
    for name, version in manifest["tables"].items():
        assert version == DeltaTable(workspace.lake / name).version(), name
    (kept,) = workspace.query(
        "select count(*) as n from curated_trajectories where recipe = 'default' and is_kept"
    )
    assert manifest["licenses"] == {"MIT": 30, "unknown": 30}
    assert sum(count["trajectories"] for count in manifest["counts"].values()) == kept["n"]
    train = manifest["counts"]["train"]
    assert (
        train["positions"] == 3 * train["trajectories"] == len(rows_of(folder / "default", "train"))
    )
    assert sum(count["positions"] for count in train["sources"].values()) == train["positions"]


@pytest.mark.parametrize("streaming", [False, True])
def test_datasets_opens_an_export(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, streaming: bool
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import datasets

    export("default")
    opened = datasets.load_dataset(
        str(folder / "default"), streaming=streaming, cache_dir=str(tmp_path / "cache")
    )
    assert set(opened) == {"train", "eval"}
    for split in opened:
        wanted = rows_of(folder / "default", split)
        assert [row["position"] for row in opened[split]] == list(range(len(wanted)))
        first = next(iter(opened[split]))
        assert first["messages"] == wanted[0]["messages"]
        assert first["loss_flags"] == wanted[0]["loss_flags"]


def test_the_same_inputs_give_the_same_bytes(
    workspace: Workspace,
    folder: Path,
    tmp_path: Path,
    point_to: Callable[[Workspace, Path], None],
) -> None:
    export("default")
    point_to(workspace, tmp_path / "elsewhere")
    export("default")
    assert contents(folder / "default") == contents(tmp_path / "elsewhere" / "default")
    for name, content in contents(folder / "default").items():
        assert str(tmp_path).encode() not in content, name


def test_an_export_that_is_up_to_date_is_left_as_it_is(folder: Path) -> None:
    export("default")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.parquet")}
    assert not export("default").is_new
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.parquet")} == before


def test_an_export_with_a_file_gone_is_written_again(folder: Path) -> None:
    export("default")
    before = contents(folder / "default")
    next((folder / "default" / "data").glob("train-*")).unlink()
    assert export("default").is_new
    assert contents(folder / "default") == before


def test_large_exports_are_cut_into_shards_and_row_groups_by_size(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export("default")
    whole = rows_of(folder / "default", "train")
    before = contents(folder / "default")
    monkeypatch.setattr(writing, "_ROW_GROUP_CHARACTERS", 4_000)
    monkeypatch.setattr(writing, "_SHARD_CHARACTERS", 16_000)
    monkeypatch.setattr(origin, "code_version", lambda: "another")
    export("default")
    assert rows_of(folder / "default", "train") == whole
    files = sorted(path.name for path in (folder / "default" / "data").glob("train-*"))
    assert len(files) > 3
    assert files[0] == f"train-00000-of-{len(files):05d}.parquet"
    groups = [pq.read_metadata(folder / "default" / "data" / name).num_row_groups for name in files]
    assert max(groups) in (4, 5)
    assert contents(folder / "default").keys() != before.keys()


@pytest.fixture
def changing(tmp_path: Path, point_to: Callable[[Workspace, Path], None]) -> Workspace:
    """A built lake of the test's own."""
    made = Workspace(tmp_path)
    made.write_trajectories([conversation(number) for number in range(20)])
    made.build()
    point_to(made, made.exports)
    return made


@pytest.mark.parametrize("point", ["_row_groups", "_licenses", "card", "publish"])
def test_a_killed_export_leaves_the_one_before_it(
    workspace: Workspace, folder: Path, point: str
) -> None:
    """Killed at its beginning, with shards written, and with all but the link in place."""
    export("default")
    before = contents(folder / "default")
    killed = subprocess.run(
        [
            sys.executable,
            "-c",
            "import os, signal; from orchestration.export import origin, writing\n"
            "origin.code_version = lambda: 'another'\n"
            f"writing.{point} = lambda *a: os.kill(os.getpid(), signal.SIGKILL)\n"
            "writing.export('default')",
        ],
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    assert (folder / ".versions" / "default" / "partial").exists()
    assert contents(folder / "default") == before
    assert not export("default").is_new


def test_what_a_killed_export_left_is_cleared_by_the_next(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export("default")
    partial = folder / ".versions" / "default" / "partial"
    (partial / "data").mkdir(parents=True)
    (partial / "data" / "0.parquet").write_bytes(b"half a file")
    monkeypatch.setattr(origin, "code_version", lambda: "another")
    assert export("default").is_new
    assert not partial.exists()
    assert not list(folder.rglob("0.parquet"))


def test_the_export_before_the_last_is_kept_and_older_ones_go(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    for code in ("first", "second", "third"):
        monkeypatch.setattr(origin, "code_version", lambda code=code: code)
        seen.append(export("default").folder.resolve())
    kept = {path for path in (folder / ".versions" / "default").iterdir() if path.is_dir()}
    assert kept == set(seen[1:])
    assert (folder / "default").resolve() == seen[-1]


def test_a_build_under_way_does_not_mix_two_states(changing: Workspace) -> None:
    export("default")
    before = contents(changing.exports / "default")
    changing.write_trajectories([conversation(number) for number in range(25)])
    changing.run("conversations", "rated_trajectories", "task_keys", "curation", "sft_samples")
    assert not export("default").is_new  # the plan is still the old one, and so is all it names
    assert contents(changing.exports / "default") == before
    changing.build()
    assert export("default").is_new
    manifest = json.loads((changing.exports / "default" / "manifest.json").read_text())
    assert manifest["tables"]["trajectories"] == 1
    assert sum(count["trajectories"] for count in manifest["counts"].values()) == 25


def test_samples_of_older_verdicts_than_the_plans_are_refused(changing: Workspace) -> None:
    changing.write_trajectories([conversation(number) for number in range(25)])
    changing.run(
        *("conversations", "rated_trajectories", "task_keys", "curation"),
        *("source_quotas", "training_plan"),
    )
    with pytest.raises(ExportError, match=r"versions 1 and 0 of .* at once"):
        export("default")


def test_tables_that_added_nothing_keep_no_layout_from_being_written(changing: Workspace) -> None:
    """Without a benchmark, `benchmark_checks` stays what it was when new runs come in."""
    changing.write_trajectories([conversation(number) for number in range(25)])
    changing.build()
    for layout in ("sft", "agentohana", "atif"):
        manifest = export("default", layout).manifest
        assert manifest["tables"]["trajectories"] == 1
        assert manifest["tables"]["benchmark_checks"] == 0


def test_a_folder_of_somebody_else_is_not_touched(folder: Path) -> None:
    (folder / "default").mkdir(parents=True)
    (folder / "default" / "notes.txt").write_text("mine")
    with pytest.raises(ExportError, match="Move it away, or set TRAJLAKE_EXPORTS"):
        export("default")
    assert (folder / "default" / "notes.txt").read_text() == "mine"


def test_two_exports_of_a_recipe_do_not_run_at_once(folder: Path) -> None:
    home = folder / ".versions" / "default"
    home.mkdir(parents=True)
    with (home / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ExportError, match="Another export of 'default' is running"):
            export("default")
    assert export("default").is_new


def test_an_unknown_recipe_and_one_that_keeps_nothing_say_so(folder: Path) -> None:
    with pytest.raises(ExportError, match="no recipe 'x' in the lake; there are: default, nothing"):
        export("x")
    with pytest.raises(ExportError, match=r"nothing to train on.*filtered 60"):
        export("nothing")
    assert not (folder / "nothing").exists()


def test_a_lake_without_a_plan_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRAJLAKE_LAKE", str(tmp_path))
    with pytest.raises(ExportError, match=r"no training plan at .*Run `dbt build`"):
        export("default")


def test_the_command_says_what_it_wrote(folder: Path) -> None:
    printed = CliRunner().invoke(app, ["export", "default"])
    assert printed.exit_code == 0, printed.output
    assert f"{folder / 'default'} written: " in printed.output
    assert "is up to date" in CliRunner().invoke(app, ["export"]).output
