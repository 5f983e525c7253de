"""What tests share: the project, the records of others beside it, and a lake of one's own."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
from parsing import shared_parsing

PROJECT = Path(__file__).resolve().parent.parent
SHARED = PROJECT.parent / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """Records and figures by others; they lie beside the project and are no part of it."""
    if not SHARED.is_dir():
        pytest.skip("needs ../shared (records and figures by others), which is not there")
    return SHARED


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model of random weights and a real tokenizer."""
    from train.config import TinyModel
    from train.tiny import make_tiny_model

    folder = tmp_path_factory.mktemp("model") / "tiny"
    make_tiny_model(folder, TinyModel(hidden_size=64))
    return folder


@pytest.fixture
def workplace(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """Empty folders for raw files, benchmarks, lake and exports, which the settings point at."""
    here = tmp_path_factory.getbasetemp() / "workplace"  # the same in all tests: `shared_parsing`
    here.unlink(missing_ok=True)
    here.symlink_to(tmp_path)
    raw = tmp_path / "raw"
    raw.mkdir()
    monkeypatch.setenv("TRAJLAKE_RAW", str(raw))
    benchmarks = tmp_path / "benchmarks"
    benchmarks.mkdir()
    monkeypatch.setenv("TRAJLAKE_BENCHMARKS", str(benchmarks))
    monkeypatch.setenv("TRAJLAKE_LAKE", str(tmp_path / "lake"))
    monkeypatch.setenv("TRAJLAKE_EXPORTS", str(tmp_path / "exports"))
    monkeypatch.setenv("TRAJLAKE_DB", str(here / "trajlake.duckdb"))
    monkeypatch.setenv("DBT_TARGET_PATH", str(tmp_path / "target"))
    monkeypatch.setenv("DBT_LOG_PATH", str(tmp_path / "logs"))
    monkeypatch.chdir(PROJECT)
    return tmp_path


@pytest.fixture
def run(workplace: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs a command in the project's root, as a person would; a failure shows its output."""

    def run_command(*command: str, ok: bool = True) -> subprocess.CompletedProcess[str]:
        is_dbt = Path(command[0]).name == "dbt"
        given = command[command.index("--vars") + 1] if "--vars" in command else "{}"
        parsing = shared_parsing(workplace / "target", os.environ["TRAJLAKE_DB"], given)
        with parsing if is_dbt else nullcontext():
            done = subprocess.run(command, text=True, capture_output=True, env=dict(os.environ))
        if ok and done.returncode:
            pytest.fail(
                f"{' '.join(command)} exited {done.returncode}:\n{done.stdout}{done.stderr}"
            )
        return done

    return run_command
