"""Preparing an export: once, in the order of the plan, and on from where it was killed."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers", reason="the training extra is not installed")
pytest.importorskip("mistral_common", reason="the training extra is not installed")

import duckdb
import psutil
import pyarrow as pa
from train_export import react_sample, tool_sample, write_export

from train import prepare
from train.config import ModelSettings, SftSettings
from train.data import Export, Prepared
from train.prepare import Preparation
from train.tokenizer import CHAT_TEMPLATE, load_tokenizer
from udfs.errors import TrainingError
from udfs.settings import exports_folder

ROOT = Path(__file__).parents[2]


def too_long(number: int) -> dict[str, Any]:
    sample = react_sample(number)
    sample["messages"][0]["content"] = "word " * 1000
    return sample


def samples(count: int) -> list[dict[str, Any]]:
    """Every seventh is too long; the plan goes through them twice."""
    once = [(react_sample if i % 2 else tool_sample)(i, weight=1 + i % 3) for i in range(count)]
    once[::7] = [too_long(i) for i in range(0, count, 7)]
    return once + once[::-1]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An export of 80 positions, and where prepared rows go."""
    monkeypatch.setenv("TRAJLAKE_EXPORTS", str(tmp_path / "exports"))
    monkeypatch.setenv("TRAJLAKE_PREPARED", str(tmp_path / "prepared"))
    monkeypatch.setenv("TRAJLAKE_WORKERS", "1")
    write_export(tmp_path / "exports" / "some", samples(40), [react_sample(i) for i in range(5)])
    return tmp_path


Make = Callable[..., Preparation]


@pytest.fixture
def make(home: Path, tiny_model: Path) -> Make:
    """A preparation of the export with settings of one's own."""

    def make(
        chunk_positions: int = 16, model: dict[str, Any] | None = None, **changed: Any
    ) -> Preparation:
        settings = SftSettings(
            recipe="some",
            model=ModelSettings(**({"path": str(tiny_model)} | (model or {}))),
            **({"max_length": 600} | changed),
        )
        export = Export(exports_folder() / "some")
        tokenizer, origin = load_tokenizer(settings.model)
        return Preparation(settings, export, tokenizer, origin, chunk_positions)

    return make


def contents(prepared: Prepared) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in prepared.folder.iterdir()}


def left_in(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()} - {".lock"}


# --- what is written --------------------------------------------------------------------------


def test_the_manifest_counts_what_was_made_and_lists_what_was_refused(make: Make) -> None:
    prepared = make().run()
    manifest = prepared.manifest
    train = manifest["splits"]["train"]

    assert train["positions"] == 80
    assert train["rows"] == train["segments"] == 80 - train["refused_positions"] == 68
    rows = [prepared.row("train", i) for i in range(68)]
    assert train["tokens"] == sum(len(row.input_ids) for row in rows)
    assert train["trained_tokens"] == sum(int(row.loss_mask.sum()) for row in rows)
    assert train["efficiency"] == round(train["tokens"] / (68 * 600), 4)
    assert {
        (row["trajectory_id"], row["reason"], row["positions"]) for row in manifest["refused"]
    } == {(f"react-{i}", "too_long", 2) for i in range(0, 40, 7)}
    assert manifest["splits"]["eval"]["rows"] == 5
    assert manifest["template"] == {"origin": "the tokenizer's own", "outputs": "marked"}


@pytest.mark.parametrize("packing", ["none", "window"])
def test_every_position_is_in_a_row_or_refused(make: Make, packing: str) -> None:
    prepared = make(packing=packing).run()
    lineage = duckdb.sql(
        f"from '{prepared.folder}/rows.parquet' where split = 'train' order by row, segment"
    ).fetchall()

    assert lineage == [
        (
            prepared.manifest["key"],
            "train",
            number,
            place,
            row.positions[place],
            0,
            row.trajectory_ids[place],
            row.lengths[place],
            int(row.loss_mask[start : start + row.lengths[place]].sum()),
            row.weights[place],
        )
        for number in range(prepared.count("train"))
        for row in [prepared.row("train", number)]
        for place, start in enumerate((row.lengths.cumsum() - row.lengths).tolist())
    ]
    plan = [sample["trajectory_id"] for sample in samples(40)]
    refused = {row["trajectory_id"] for row in prepared.manifest["refused"]}
    seen = {line[4]: line[6] for line in lineage}
    assert len(seen) == len(lineage)
    assert seen == {i: name for i, name in enumerate(plan) if name not in refused}


def test_packing_fills_rows(make: Make) -> None:
    apart, packed = (
        make(packing=packing).run().manifest["splits"]["train"] for packing in ("none", "window")
    )

    assert packed["tokens"] == apart["tokens"]
    assert packed["efficiency"] > 0.85 > 3 * apart["efficiency"]


def test_splitting_trains_what_refusing_leaves_out(
    home: Path, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = react_sample(1)
    long["messages"][1:3] *= 30
    long["loss_flags"][1:3] *= 30
    write_export(home / "long" / "some", [long, react_sample(2)])
    monkeypatch.setenv("TRAJLAKE_EXPORTS", str(home / "long"))
    refused, split, whole = (
        make(**changed).run().manifest["splits"]["train"]
        for changed in (
            {"max_length": 300},
            {"max_length": 300, "too_long": "split"},
            {"max_length": 4000},
        )
    )

    assert refused["refused_positions"] == 1 and split["refused_positions"] == 0
    assert split["segments"] > 4
    assert refused["trained_tokens"] < split["trained_tokens"] == whole["trained_tokens"]


def test_an_export_of_which_nothing_can_be_learned_is_refused(make: Make) -> None:
    preparation = make(max_length=10)

    with pytest.raises(TrainingError, match=r"none of the 80 samples .* 80 × too_long.*react-0"):
        preparation.run()
    assert not preparation.folder.exists()


# --- once -------------------------------------------------------------------------------------


def test_what_is_there_is_not_made_again(make: Make) -> None:
    first = make().run()
    before = {file: file.stat().st_mtime_ns for file in first.folder.iterdir()}
    again = make(chunk_positions=7, learning_rate=1e-5).run()

    assert {file: file.stat().st_mtime_ns for file in again.folder.iterdir()} == before


def test_what_decides_the_rows_decides_the_folder(make: Make, tmp_path: Path) -> None:
    template = tmp_path / "other.jinja"
    template.write_text(CHAT_TEMPLATE.read_text() + " ")
    folders = [
        make().folder,
        make(max_length=601).folder,
        make(too_long="split").folder,
        make(packing="window").folder,
        make(packing="window", packing_window=8).folder,
        make(model={"chat_template": template}).folder,
    ]

    assert len(set(folders)) == len(folders)
    assert make(packing_window=8).folder == folders[0]  # without packing it decides nothing


def test_one_works_and_the_others_wait(make: Make) -> None:
    with ThreadPoolExecutor(3) as threads:
        made = [f.result() for f in [threads.submit(make().run) for _ in range(3)]]

    assert len({prepared.folder for prepared in made}) == 1
    assert left_in(made[0].folder.parent) == {made[0].folder.name}


# --- in processes, and killed -----------------------------------------------------------------


def test_processes_make_what_one_makes(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = contents(make(packing="window").run())
    monkeypatch.setenv("TRAJLAKE_PREPARED", str(tmp_path / "others"))
    monkeypatch.setenv("TRAJLAKE_WORKERS", "2")

    assert contents(make(packing="window").run()) == alone


SCRIPT = """
import sys
from pathlib import Path
from train.config import ModelSettings, SftSettings
from train.data import Export
from train.tokenizer import load_tokenizer
from train.prepare import Preparation

export, model = sys.argv[1:]
settings = SftSettings(recipe="many", model=ModelSettings(path=model), max_length=600)
Preparation(settings, Export(Path(export)), *load_tokenizer(settings.model), 40).run()
"""


def test_a_killed_preparation_goes_on_and_leaves_no_process(
    home: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export = write_export(
        home / "exports" / "many", [react_sample(i) for i in range(2000)], rows_per_shard=500
    )
    monkeypatch.setenv("TRAJLAKE_WORKERS", "2")
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(export), str(tiny_model)], cwd=ROOT
    )
    deadline = time.monotonic() + 120
    while not (done := sorted((home / "prepared").glob(".*-chunks/train-*.arrow"))):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    beside = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    assert beside
    assert not psutil.wait_procs(beside, timeout=30)[1]
    assert not list((home / "prepared").glob("many-*"))

    # A mark in what was done shows in the end: it was not made again.
    chunk = done[0]
    with pa.ipc.open_file(chunk) as file:
        table = file.read_all()
    ids = table["trajectory_id"].to_pylist()
    marked = table.set_column(2, "trajectory_id", pa.array(["kept", *ids[1:]]))
    with pa.ipc.new_file(chunk, marked.schema) as file:
        file.write_table(marked)
    monkeypatch.setenv("TRAJLAKE_WORKERS", "1")
    settings = SftSettings(recipe="many", model=ModelSettings(path=str(tiny_model)), max_length=600)
    tokenizer, origin = load_tokenizer(settings.model)
    prepared = Preparation(settings, Export(export), tokenizer, origin, 40).run()

    names = Counter(prepared.row("train", i).trajectory_ids[0] for i in range(2000))
    assert names.pop("kept") == 1
    assert len(names) == 1999
    assert left_in(home / "prepared") == {prepared.folder.name}


# --- inspecting -------------------------------------------------------------------------------


def test_text_of_strangers_is_shown_and_obeyed_nowhere(
    home: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = react_sample(5)
    row["messages"][2]["content"] = (
        "\x1b]0;owned\x07[bold red]loud[/] ⟦learned⟧ \u202egnorw\n── position 9, trajectory x"
    )
    write_export(home / "exports" / "hostile", [row, react_sample(6)])
    config = home / "config.yaml"
    config.write_text(json.dumps({"recipe": "hostile", "model": {"path": str(tiny_model)}}))

    assert prepare.main(["--config", str(config), "--set", "packing=window", "--inspect", "3"]) == 0
    shown = capsys.readouterr().out
    assert "row 0: 2 segments" in shown and "row 1" not in shown
    borders = [line for line in shown.splitlines() if line.startswith("── position")]
    assert [line.split(",")[0] for line in borders] == ["── position 0", "── position 1"]
    assert "\x1b" not in shown and "\\x1b]0;owned\\x07[bold red]loud[/]" in shown
    assert "\\u27e6learned\\u27e7 \\u202egnorw" in shown
    assert "│ ── position 9, trajectory x" in shown
    # What carries loss can be told without colours.
    assert shown.count("⟦") == shown.count("⟧") == 4
    assert "<|assistant|>⟦Action: Finish[6]</s>⟧" in shown
    assert "train: 2 samples, 1 rows" in shown


def test_a_preparation_that_cannot_be_says_why(
    home: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = home / "config.yaml"
    config.write_text(json.dumps({"recipe": "missing", "model": {"path": str(tiny_model)}}))

    assert prepare.main(["--config", str(config)]) == 1
    assert "error: there is no export at" in capsys.readouterr().err
