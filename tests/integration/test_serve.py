"""`python -m train.serve` as it is launched: a tiny model behind transformers' own server."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the training extra is not installed")
pytest.importorskip("mistral_common", reason="the training extra is not installed")
pytest.importorskip("fastapi", reason="the extra serve is not installed")
pytest.importorskip("uvicorn", reason="the extra serve is not installed")

import httpx2
from transformers import AutoTokenizer

from orchestration.agent.environment import Chat, Task
from orchestration.agent.loop import Limits, play
from orchestration.agent.model import Model
from orchestration.agent.styles import STYLES
from train.config import TinyModel
from train.merge import prepare_tokenizer
from train.serve import serving
from train.tiny import make_tiny_model
from udfs.errors import TrainingError

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with a tokenizer as `train.merge` leaves it."""
    folder = tmp_path_factory.mktemp("served") / "tiny"
    make_tiny_model(folder, TinyModel(vocab_size=1024, hidden_size=32, layers=1))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prepare_tokenizer(tokenizer)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def served(tiny: Path) -> Iterator[tuple[str, str, subprocess.Popen[str]]]:
    """The address and the model's name that the command prints, and the command."""
    command = [sys.executable, "-m", "train.serve", str(tiny), "--port", "0"]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout
        found = re.fullmatch(r"(\S+) serves the model (.+)\n", process.stdout.readline())
        assert found
        yield found[1], found[2], process
        process.kill()


def test_the_model_answers_the_agent_with_tools_and_without(
    served: tuple[str, str, subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, name, _ = served
    monkeypatch.setenv("OPENAI_BASE_URL", address)
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    model = Model(name, {"max_tokens": 4, "temperature": 0}, timeout_s=60.0)
    tool = {"type": "function", "function": {"name": "lookup", "parameters": {"type": "object"}}}
    for tools in ([], [tool]):
        reply = model.ask([{"role": "user", "content": "Hello?"}], tools)
        assert reply.message["role"] == "assistant" and reply.is_cut
    # A call that is none in the history is no error of the server's.
    call = {"id": "1", "type": "function", "function": {"name": "lookup", "arguments": "{oh"}}
    said = {"role": "assistant", "content": None, "tool_calls": [call]}
    told = {"role": "tool", "tool_call_id": "1", "content": "What?"}
    assert model.ask([{"role": "user", "content": "Hello?"}, said, told], [tool]).is_cut
    for style in ("tools", "react"):
        episode = play(
            Task("a", lambda: Chat("Hello?")), model, STYLES[style], Limits(2, 60.0, 60.0)
        )
        assert (episode.ended, episode.steps) == ("step_limit", 2), episode.detail


def test_a_signal_ends_the_server_with_the_command(
    served: tuple[str, str, subprocess.Popen[str]],
) -> None:
    address, _, process = served
    assert address.startswith("http://127.0.0.1:")
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    with pytest.raises(httpx2.ConnectError):
        httpx2.get(f"{address}/models", trust_env=False)


def test_a_server_that_cannot_start_says_why(tiny: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text("{}")
    (broken / "model.safetensors").write_bytes(b"")
    with pytest.raises(TrainingError, match="the server ended with status"), serving(broken):
        pass
