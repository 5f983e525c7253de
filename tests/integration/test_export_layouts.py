"""Exports in every layout: what is in them, who can open them, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from _curation_fixtures import EVERY_SOURCE, RECIPE, Workspace, step, trajectory
from deltalake import DeltaTable, write_deltalake
from typer.testing import CliRunner

from orchestration.cli import app
from orchestration.export import export, origin, writing
from orchestration.export.layouts import LAYOUTS
from udfs.errors import ExportError
from udfs.formats import Options, detect
from udfs.formats.trajectory import Trajectory, content_sha256

TOOLS = json.dumps([{"type": "function", "function": {"name": "look_up", "parameters": {}}}])


def with_true_hash(row: dict[str, Any]) -> dict[str, Any]:
    """The row with the hash that its content has, as the standardizer would have it."""
    return row | {"content_sha256": content_sha256(Trajectory.from_row(row))}


def run(number: int, **fields: Any) -> dict[str, Any]:
    """A run with a call, its result and an answer; in every third the first output is masked."""
    call = {"call_id": "c1", "name": "look_up", "arguments": '{"word":"naïve"}'}
    seen = {"source": "environment", "name": "look_up", "call_id": "c1", "content": "artless"}
    steps = [
        step(
            None,
            input=f"Question {number}?",
            tool_calls=[call],
            observations=[seen],
            is_trainable=number % 3 > 0,
        ),
        step(f"It is artless, for the {number}th time.", observations=[]),
    ]
    row = {
        "source": "ab"[number % 2],
        "license": "MIT",
        "format": "chat",
        "tools": TOOLS if number % 2 else None,
        "system_prompt": "Be brief." if number % 2 else None,
        "steps": steps,
    }
    return with_true_hash(trajectory(number, **(row | fields)))


def react(number: int) -> dict[str, Any]:
    """A run whose actions are text, and whose prompt is ¶25's to the letter."""
    look = step("Thought: I look.\nAction: look[it]", input=f"Question {number}?")
    return with_true_hash(
        trajectory(number, source="c", steps=[look, step("Action: finish[42]", observations=[])])
    )


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A built lake that no test changes, with pairs of its first runs."""
    made = Workspace(tmp_path_factory.mktemp("layouts"))
    unmasked = RECIPE | {"masks_bad_steps": False}
    recipes = {
        "default": unmasked | {"eval_fraction": 0.2},
        "told": unmasked
        | {"redacts_personal_data": True, "metadata_prefix": "source score model_name"},
        "plain": unmasked | {"filter": "source = 'c'"},
    }
    made.write_recipes(
        [recipe | {"recipe": name} for name, recipe in recipes.items()],
        [EVERY_SOURCE | {"recipe": name} for name in recipes],
    )
    told = "Write to ada@some-firm.io. " * 2
    made.write_trajectories(
        [run(number) for number in range(24)]
        + [react(number) for number in range(100, 108)]
        + [run(200, user_query=told, system_prompt=told)]
        + two_runs()
    )
    made.build()
    add_pairs(made, [run(number)["trajectory_id"] for number in range(4)])
    return made


def two_runs() -> list[dict[str, Any]]:
    """A right and a wrong run at one task, of which a build makes a pair."""
    query = "Who wrote it?"
    answers: dict[str, dict[str, Any]] = {
        "Ada wrote it, as the cover says.": {"score": 1.0},
        "Nobody knows who wrote the book.": {"score": 0.0, "rater_score": 1.0},
    }
    return [
        with_true_hash(
            trajectory(
                300 + number,
                **{"source": "d", "format": "chat", "user_query": query} | fields,
                steps=[step(answer, input=query)],
            )
        )
        for number, (answer, fields) in enumerate(answers.items())
    ]


def add_pairs(workspace: Workspace, ids: list[str]) -> None:
    """Add pairs to those that were built: of whole runs, and from a step on."""
    table = DeltaTable(workspace.lake / "preference_pairs")
    schema = table.to_pyarrow_dataset().schema
    pair = dict.fromkeys(schema.names) | {
        "recipe": "default",
        "level": "trajectory",
        "split": "train",
        "source": "b",
        "margin_on": "score",
        "chosen_value": 1.0,
        "rejected_value": 0.0,
        "margin": 1.0,
        "weight": 1.0,
        "prefix_steps": 0,
        "chosen_last_step": 2,
        "rejected_last_step": 2,
    }
    pairs = [
        pair | {"pair_id": "p1", "chosen_id": ids[1], "rejected_id": ids[2]},
        pair | {"pair_id": "p2", "chosen_id": ids[2], "rejected_id": ids[1], "prefix_steps": 1},
        pair | {"pair_id": "p3", "chosen_id": ids[2], "rejected_id": ids[0], "split": "eval"},
        pair | {"pair_id": "p4", "chosen_id": ids[3], "rejected_id": ids[0], "prefix_steps": 1},
        pair | {"pair_id": "p5", "chosen_id": ids[3], "rejected_id": ids[0], "recipe": "told"},
    ]
    write_deltalake(table, pa.Table.from_pylist(pairs, schema), mode="append")


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


def rows_of(folder: Path, split: str = "train") -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for file in sorted((folder / "data").glob(f"{split}-*")):
        if file.suffix == ".parquet":
            rows += pq.read_table(file).to_pylist()
        else:
            rows += [json.loads(line) for line in file.read_text().splitlines()]
    return rows


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def hashes_of(record: dict[str, Any]) -> tuple[str, str]:
    """The format that a record is read as, and the hash of its content."""
    found, _ = detect(record)
    (trajectory,) = found.parse(record, None, Options())
    return found.name, content_sha256(trajectory)


# --- every layout ---------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_is_written_beside_the_others_and_again_the_same(
    workspace: Workspace,
    folder: Path,
    tmp_path: Path,
    point_to: Callable[[Workspace, Path], None],
    layout: str,
) -> None:
    written = export("default", layout, learn_masked=True)
    name = "default" if layout == "sft" else f"default.{layout}"
    assert written.is_new and written.folder == folder / name
    assert not export("default", layout, learn_masked=True).is_new
    manifest = json.loads((written.folder / "manifest.json").read_text())
    assert (manifest["recipe"], manifest["layout"]) == ("default", layout)
    assert {shard["split"] for shard in manifest["shards"]} == {"train", "eval"}
    for shard in manifest["shards"]:
        content = (written.folder / shard["path"]).read_bytes()
        assert (shard["bytes"], shard["sha256"]) == (len(content), sha256(content).hexdigest())
    for split in ("train", "eval"):
        assert len(rows_of(written.folder, split)) == sum(
            shard["rows"] for shard in manifest["shards"] if shard["split"] == split
        )
    point_to(workspace, tmp_path / "elsewhere")
    again = export("default", layout, learn_masked=True)
    assert contents(written.folder) == contents(again.folder)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_datasets_opens_every_layout(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str, streaming: bool
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import datasets

    written = export("default", layout, learn_masked=True).folder
    opened = datasets.load_dataset(
        str(written), streaming=streaming, cache_dir=str(tmp_path / "cache")
    )
    assert set(opened) == {"train", "eval"}
    for split in opened:
        wanted = rows_of(written, split)
        found = list(opened[split])
        assert len(found) == len(wanted)
        # What a record of JSON lines lacks is null here.
        assert [
            {name: value for name, value in row.items() if value is not None} for row in found
        ] == [{name: value for name, value in row.items() if value is not None} for row in wanted]


@pytest.mark.parametrize("layout", ["sft", "prompt_chosen", "sharegpt", "axolotl", "openai"])
def test_layouts_of_the_plan_are_in_its_order(
    workspace: Workspace, folder: Path, layout: str
) -> None:
    export("default")
    written = export("default", layout, learn_masked=True)
    planned = [row["trajectory_id"] for row in rows_of(folder / "default")]
    assert (
        written.manifest["plan_sha256"]
        == (json.loads((folder / "default" / "manifest.json").read_text())["plan_sha256"])
    )
    rows = rows_of(written.folder)
    if layout == "openai":
        assert len(rows) == len(planned)
        return
    in_order = [row["trajectory_id"] for row in rows]
    if layout == "prompt_chosen":
        positions = [row["position"] for row in rows]
        assert positions == sorted(positions) and set(positions) == set(range(len(planned)))
    else:
        assert in_order == planned


def test_large_exports_of_one_file_layouts_stay_one_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = rows_of(export("default", "openai").folder)
    monkeypatch.setattr(writing, "_ROW_GROUP_CHARACTERS", 2_000)
    monkeypatch.setattr(writing, "_SHARD_CHARACTERS", 4_000)
    monkeypatch.setattr(origin, "code_version", lambda: "another")
    cut = export("default", "openai").folder
    assert [path.name for path in sorted((cut / "data").iterdir())] == [
        "eval-00000-of-00001.jsonl",
        "train-00000-of-00001.jsonl",
    ]
    assert rows_of(cut) == whole
    assert len(list((export("default", "prompt_chosen").folder / "data").iterdir())) > 4


# --- masks ----------------------------------------------------------------------------------------


def test_masks_are_carried_into_every_layout_that_can(workspace: Workspace, folder: Path) -> None:
    (masked,) = workspace.query(
        """
        select sum(len(list_filter(agent_flags, lambda flag, i: flag and not loss_flags[i]))) as n
        from training_plan
        join sft_samples using (recipe, trajectory_id, source, split)
        join conversations using (trajectory_id)
        where recipe = 'default'
        """
    )
    assert masked["n"] > 0
    for layout in ("sft", "prompt_chosen", "axolotl", "openai"):
        masks = export("default", layout).manifest["masks"]
        assert masks["masked_outputs"] == masked["n"], layout
        assert masks["learned_all_the_same"] == 0
    for split in ("train", "eval"):
        flags = [row["loss_flags"] for row in rows_of(folder / "default", split)]
        trained = [
            [message["train"] for message in row["messages"]]
            for row in rows_of(folder / "default.axolotl", split)
        ]
        assert trained == flags
        weights = [
            [message.get("weight", 0) == 1 for message in row["messages"]]
            for row in rows_of(folder / "default.openai", split)
        ]
        assert weights == flags
        chosen = len(rows_of(folder / "default.prompt_chosen", split))
        assert chosen == sum(map(sum, flags))


@pytest.mark.parametrize("layout", ["sharegpt", "dpo"])
def test_lost_masks_are_refused_unless_that_is_wanted(folder: Path, layout: str) -> None:
    with pytest.raises(ExportError, match=r"would lose masks: \d+ outputs .*--learn-masked"):
        export("told", layout)
    assert not (folder / f"told.{layout}").exists()
    written = export("told", layout, learn_masked=True)
    masks = written.manifest["masks"]
    assert masks["learned_all_the_same"] == masks["masked_outputs"] > 0
    card = (written.folder / "README.md").read_text()
    assert f"{masks['masked_outputs']:,} outputs here are masked; the trainer does not" in card
    with pytest.raises(ExportError, match="would lose masks"):
        export("told", layout)


def test_a_layout_that_carries_no_masks_is_written_where_there_are_none(folder: Path) -> None:
    assert export("plain", "sharegpt").manifest["masks"]["masked_outputs"] == 0
    # The chosen runs of these pairs are masked in steps that both runs have in common, if at all.
    assert export("default", "dpo").manifest["masks"]["masked_outputs"] == 0
    # A reward model learns no output.
    assert export("told", "reward").manifest["masks"]["learned_all_the_same"] == 0


# --- prefix and redaction -------------------------------------------------------------------------


def test_a_metadata_prefix_begins_the_system_prompt_and_is_not_learned(folder: Path) -> None:
    plain = {row["trajectory_id"]: row for row in rows_of(export("default").folder)}
    told = rows_of(export("told").folder)
    seen = set()
    for row in told:
        before = plain.get(row["trajectory_id"])
        if before is None or "ada@" in json.dumps(before):
            continue
        prefix = f"source: {row['source']}\nscore: 1.0"
        has_system = before["messages"][0]["role"] == "system"
        seen.add(has_system)
        first, *rest = row["messages"]
        assert first["role"] == "system"
        if has_system:
            assert first["content"] == f"{prefix}\n\n{before['messages'][0]['content']}"
            assert (rest, row["loss_flags"]) == (before["messages"][1:], before["loss_flags"])
        else:
            assert first["content"] == prefix
            assert rest == before["messages"]
            assert row["loss_flags"] == [False, *before["loss_flags"]]
    assert seen == {True, False}
    for layout in ("openai", "axolotl", "prompt_chosen"):
        content = json.dumps(rows_of(export("told", layout).folder))
        assert "source: a\\nscore: 1.0" in content, layout


@pytest.mark.parametrize("layout", ["sft", "openai", "sharegpt", "atif", "agentohana", "adp"])
def test_personal_data_is_out_of_what_a_recipe_redacts(folder: Path, layout: str) -> None:
    files = contents(export("told", layout, learn_masked=True).folder)
    if layout == "sft":
        text = json.dumps(rows_of(folder / "told"))
        text += json.dumps(rows_of(folder / "told", "eval"))
    else:
        text = b"".join(files.values()).decode()
    assert "Write to [EMAIL]." in text
    assert "ada@some-firm.io" not in text


# --- reading back ---------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["agentohana", "adp", "atif"])
def test_exported_trajectories_are_read_back_as_they_were(
    workspace: Workspace, folder: Path, layout: str
) -> None:
    written = export("default", layout).folder
    records = [record for split in ("train", "eval") for record in rows_of(written, split)]
    kept = workspace.query(
        """
        select content_sha256
        from curated_trajectories
        where recipe = 'default' and is_kept
        order by content_sha256
        """
    )
    found = [hashes_of(record) for record in records]
    assert {name for name, _ in found} == {layout}
    assert sorted(content for _, content in found) == [row["content_sha256"] for row in kept]


@pytest.mark.parametrize(("layout", "format_name"), [("openai", "chat"), ("sharegpt", "sharegpt")])
def test_exported_conversations_are_read_back_as_they_were(
    workspace: Workspace, folder: Path, layout: str, format_name: str
) -> None:
    written = export("default", layout, learn_masked=True).folder
    records = [record for split in ("train", "eval") for record in rows_of(written, split)]
    # LLaMA-Factory's rows end with an answer, so what came after it is left out.
    can_say_all = "true" if layout == "openai" else "len(steps[-1].observations) = 0"
    kept = {
        row["content_sha256"]
        for row in workspace.query(
            f"""
            select content_sha256
            from curated_trajectories
            join trajectories using (trajectory_id, content_sha256)
            where recipe = 'default' and is_kept and {can_say_all}
            """
        )
    }
    found = [hashes_of(record) for record in records]
    assert {name for name, _ in found} <= {format_name, "react_chat"}
    assert len(kept) > 30 and kept <= {content for _, content in found}


def test_prompts_are_the_history_of_a_step(workspace: Workspace, folder: Path) -> None:
    rows = rows_of(export("plain", "prompt_chosen").folder)
    histories = {
        (row["trajectory_id"], row["step_id"]): (row["history"], row["output"])
        for row in workspace.query(
            """
            select
                trajectory_id, step.step_id, step.output,
                case when step.step_id = 1 then step.input else concat_ws(
                    chr(10), steps[1].input, 'Action: ' || steps[1].output,
                    'Observation: ' || steps[1].next_observation
                ) end as history,
            from (select trajectory_id, steps, unnest(steps) as step from trajectories)
            where len(steps) = 2
            """
        )
    }
    assert rows
    for row in rows:
        assert (row["prompt"], row["chosen"]) == histories[row["trajectory_id"], row["step_id"]]


# --- pairs ----------------------------------------------------------------------------------------


def test_pairs_are_prompts_with_two_ways_on(workspace: Workspace, folder: Path) -> None:
    written = export("default", "dpo")
    rows = {row["pair_id"]: row for row in rows_of(written.folder)}
    messages = {
        row["trajectory_id"]: row["messages"]
        for row in workspace.query("select trajectory_id, messages from conversations")
    }
    whole, later = rows["p1"], rows["p2"]
    assert whole["prompt"] + whole["chosen"] == messages[whole["chosen_id"]]
    assert [message["role"] for message in whole["prompt"]] == ["system", "user"]
    assert whole["rejected"] == messages[whole["rejected_id"]][1:]
    assert [message["role"] for message in later["prompt"]] == ["user", "assistant", "tool"]
    assert [message["role"] for message in later["chosen"]] == ["assistant"]
    assert whole["tools"] == TOOLS and later["tools"] is None
    assert written.manifest["adapted"]["pairs_whose_prompts_differ"]["count"] == 4
    scored = {row["pair_id"]: row for row in rows_of(export("default", "reward").folder)}
    assert scored["p1"]["chosen"] == messages[whole["chosen_id"]]
    assert (scored["p1"]["chosen_value"], scored["p1"]["rejected_value"]) == (1.0, 0.0)


def test_pairs_with_masks_go_to_the_trainer_that_reads_them(folder: Path) -> None:
    theirs = export("told", "dpo", learn_masked=True)
    written = export("told", "pairs")
    assert rows_of(written.folder) == rows_of(theirs.folder)
    assert written.manifest["masks"]["masked_outputs"] > 0
    assert written.manifest["masks"]["learned_all_the_same"] == 0


def test_pairs_that_a_build_made_are_exported(workspace: Workspace, folder: Path) -> None:
    written = export("default", "dpo")
    rows = [row for split in ("train", "eval") for row in rows_of(written.folder, split)]
    (made,) = [row for row in rows if row["source"] == "d"]
    assert [message["content"] for message in made["prompt"]] == ["Who wrote it?"]
    # Not what the environment said when it was over.
    assert [message["content"] for message in made["chosen"]] == [
        "Ada wrote it, as the cover says."
    ]
    assert [message["content"] for message in made["rejected"]] == [
        "Nobody knows who wrote the book."
    ]
    pairs = DeltaTable(workspace.lake / "preference_pairs")
    assert written.manifest["tables"]["preference_pairs"] == pairs.version()
    assert {"curated_trajectories", "conversations"} <= set(written.manifest["tables"])
    counts = written.manifest["counts"].values()
    assert sum(count["pairs"] for count in counts) == len(rows) == 5


def test_no_pairs_and_no_table_of_pairs_say_so(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ExportError, match="'plain' has no preference pairs to train on"):
        export("plain", "dpo")
    monkeypatch.setenv("TRAJLAKE_LAKE", str(tmp_path))
    with pytest.raises(ExportError, match=r"no table of preference pairs at .*Run `dbt build`"):
        export("default", "reward")


# --- LLaMA-Factory's folder -----------------------------------------------------------------------


def test_dataset_info_leads_to_the_files(folder: Path) -> None:
    written = export("plain", "sharegpt").folder
    info = json.loads((written / "dataset_info.json").read_text())
    assert set(info) == {f"plain{'_eval' * (split == 'eval')}" for split in ("train", "eval")} & (
        {"plain"} | ({"plain_eval"} if list((written / "data").glob("eval-*")) else set())
    )
    for entry in info.values():
        lines = (written / entry["file_name"]).read_text().splitlines()
        first = json.loads(lines[0])
        assert {first["conversations"][0][entry["tags"]["role_tag"]]} == {"human"}
        for line in lines:
            turns = json.loads(line)["conversations"]
            assert len(turns) % 2 == 0
            assert all(turn["from"] in ("human", "observation") for turn in turns[::2])
            assert all(turn["from"] in ("gpt", "function_call") for turn in turns[1::2])


# --- the command ----------------------------------------------------------------------------------


def test_the_command_takes_a_layout_and_lists_them(folder: Path) -> None:
    printed = CliRunner().invoke(app, ["export", "default", "--layout", "atif"])
    assert printed.exit_code == 0, printed.output
    assert f"{folder / 'default.atif'} written: " in printed.output
    told = (
        CliRunner()
        .invoke(app, ["export", "default", "--layout", "sharegpt", "--learn-masked"])
        .output
    )
    assert "outputs that the recipe masks will be learned from" in told
    shown = CliRunner().invoke(app, ["export", "--help"]).output
    for layout in LAYOUTS:
        assert layout in shown
    with pytest.raises(ExportError, match=r"no layout 'x'\. Choose from: sft, prompt_chosen"):
        export("default", "x")
