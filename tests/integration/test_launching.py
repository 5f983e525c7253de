"""What `trajlake launch` writes, run: real training on this machine's CPU.

There is no second machine here. A program `ssh` stands in that does what ssh does with its words:
it joins them by blanks and gives them to a shell; one called `rsync` copies. Of Slurm there is only
`scontrol`, which notes what it was told; a job of one node needs nothing else of it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="the training extra is not installed")
pytest.importorskip("bitsandbytes", reason="the training extra is not installed")
pytest.importorskip("mistral_common", reason="the training extra is not installed")

import duckdb
from train_export import react_sample, write_export

from udfs import lake
from udfs.training_tables import RUN_SCHEMA, RUNS

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
STEPS = 12  # 24 rows, 2 a step

PROGRAMS = {
    "ssh": 'shift\nexec bash -c "$*"\n',
    "scontrol": 'echo "$@" >> "$TOLD"\n',
    "rsync": """
relative=; words=()
while [ $# -gt 0 ]; do
    case "$1" in
        --relative) relative=--parents ;;
        --exclude) shift ;;
        -*) ;;
        *) words+=("${1#*box:}") ;;
    esac
    shift
done
to="${words[-1]}"
unset "words[-1]"
for from in "${words[@]}"; do
    [ "${from%/}" = "$from" ] || from="$from."
    cp -r $relative "$from" "$to" || mkdir -p "$to" && cp -r $relative "$from" "$to"
done
""",
}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an export, a lake that knows of no run, and the programs that stand in."""
    samples = [react_sample(i) for i in range(24)]
    write_export(tmp_path / "exports" / "default", samples, [react_sample(99)])
    programs = tmp_path / "programs"
    programs.mkdir()
    for name, script in PROGRAMS.items():
        (programs / name).write_text(f"#!/usr/bin/env bash\n{script}")
        (programs / name).chmod(0o755)
    environment = tmp_path / "environment" / "bin"
    environment.mkdir(parents=True)
    (environment / "activate").write_text(f"PATH={BIN}:$PATH\n")
    for name, value in {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "TOLD": str(tmp_path / "told"),
        "OMP_NUM_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "TRAJLAKE_EXPORTS": str(tmp_path / "exports"),
        "TRAJLAKE_LAKE": str(tmp_path / "lake"),
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("TRAJLAKE_PREPARED", raising=False)
    lake.write(RUNS, RUN_SCHEMA.empty_table().to_reader(), lake.WriteOptions())
    return tmp_path


def launched(home: Path, kind: str, place: dict[str, Any], *more: str) -> Path:
    """The script that the command writes."""
    (home / "launch.yaml").write_text(json.dumps({kind: place}))
    settings = ["model.tiny.vocab_size=1024", "model.tiny.hidden_size=64", "max_length=600", *more]
    out = home / f"{kind}.sh"
    subprocess.run(
        [
            *(str(BIN / "trajlake"), "launch", kind, "--config", "train/configs/tiny.yaml"),
            *("--run", "first", "--gpus", "0", "--places", str(home / "launch.yaml")),
            *("--out", str(out)),
            *(part for each in settings for part in ("--set", each)),
        ],
        cwd=ROOT,
        check=True,
    )
    return out


def manifest_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "manifest.json").read_text())


def test_a_job_of_slurm_is_queued_again_until_its_run_has_finished(home: Path) -> None:
    place = {"folder": str(ROOT), "environment": str(home / "environment")}
    more = [f"output={home}/runs", f"model.path={home}/model", "global_batch_size=2"]
    script = launched(home, "slurm", place, *more)
    run = home / "runs" / "first"
    environment = {
        **os.environ,
        "SLURM_JOB_ID": "42",
        "SLURM_NODEID": "0",
        "TRAJLAKE_PREPARED": str(home / "prepared"),
    }

    # The time limit comes: Slurm tells the script, which is all that it tells.
    job = subprocess.Popen(["bash", str(script)], env=environment, start_new_session=True)
    deadline = time.monotonic() + 120
    while not (run / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(job.pid, signal.SIGTERM)
    assert job.wait(120) == 0

    assert manifest_of(run)["status"] == "stopped"
    assert 0 < manifest_of(run)["step"] < STEPS
    assert (home / "told").read_text() == "requeue 42\n"

    # The same job, started again.
    assert subprocess.run(["bash", str(script)], env=environment).returncode == 0

    assert manifest_of(run)["status"] == "finished"
    assert len(manifest_of(run)["sessions"]) == 2
    assert (home / "told").read_text() == "requeue 42\n"
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, STEPS + 1))


def test_a_run_goes_there_and_comes_home(home: Path) -> None:
    there = home / "it's $(touch hit) there"
    place = {"host": "box", "folder": str(there), "environment": str(home / "environment")}
    script = launched(home, "ssh", place, "max_steps=2")
    # A project here, of which only the code is taken there.
    here = home / "here"
    here.mkdir()
    for name in ("udfs", "train", "orchestration", "pyproject.toml"):
        (here / name).symlink_to(ROOT / name)
    environment = {k: v for k, v in os.environ.items() if k != "TRAJLAKE_EXPORTS"}

    done = subprocess.run(
        ["bash", str(script)], cwd=here, env=environment, capture_output=True, text=True
    )
    logged = (there / "launched" / "first.log").read_text()
    assert done.returncode == 0, done.stderr + logged

    assert manifest_of(here / "runs" / "first")["status"] == "finished"
    assert (here / "runs" / "first" / "adapter" / "adapter_config.json").is_file()
    assert (there / "exports" / "default" / "manifest.json").is_file()
    with duckdb.connect() as connection:
        lake.load_delta_extension(connection)
        rows = connection.execute(f"select run, status from {lake.table_scan(RUNS)}").fetchall()
    assert rows == [("first", "finished")]
    assert not list(home.rglob("hit"))
