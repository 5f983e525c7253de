"""A model folder behind an OpenAI-compatible endpoint on this machine.

    python -m train.serve runs/<run>
    python -m train.serve runs/<run>/merged --port 8001
    python -m train.serve runs/<run> -- --max-model-len 8192     # further arguments of the server

vLLM serves where it is installed, else `transformers serve`. The address is printed when the model
answers; Ctrl-C or SIGTERM goes on to the server and ends both. Only this machine can reach it
unless `--host` says otherwise: the endpoint asks nobody for a key.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import IO

import httpx2

from udfs.errors import TrainingError

_PAUSE_S = 0.2
_PATIENCE_S = 15.0  # for a server that was told to end
_SHOWN_BYTES = 4000


@dataclass(frozen=True)
class Served:
    """A model that answers: its endpoint, its name there, and the server's process."""

    base_url: str
    model: str
    process: subprocess.Popen[bytes]


def model_folder(path: Path) -> Path:
    """The model in a folder that is one, or in that of a run.

    Raises:
        TrainingError: there is none; says what to do.
    """
    if (path / "adapter_config.json").exists():
        raise TrainingError(
            f"{path} is an adapter without its base model. Merge them: "
            f"python -m train.merge --run {path.parent}"
        )
    for folder in (path, path / "merged", path / "model"):
        weights = [*folder.glob("*.safetensors"), *folder.glob("*.bin")]
        if weights and (folder / "config.json").exists():
            return folder
    if (path / "adapter").is_dir():
        raise TrainingError(
            f"{path} has an adapter and no whole model yet. Make one: "
            f"python -m train.merge --run {path}"
        )
    raise TrainingError(
        f"{path} is no model: it has no config.json beside weights. Give a folder that "
        "`python -m train.merge` wrote, another one that transformers loads, or a finished run."
    )


@contextmanager
def serving(
    path: Path,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    more: Sequence[str] = (),
    log: IO[bytes] | None = None,
) -> Iterator[Served]:
    """Serve a model within a block, from the moment it answers.

    Args:
        path: a model's folder, or a run's.
        host: the address to listen at.
        port: the port; 0: a free one.
        more: further arguments of the server.
        log: where the server's output goes; null: nowhere, but its end is told if it fails.

    Raises:
        TrainingError: there is no model, no server is installed, or the server ended.
    """
    folder = model_folder(path)
    port = port or _free_port(host)
    command = [*_server(), str(folder), "--host", host, "--port", str(port), *more]
    with tempfile.TemporaryFile() as said:
        # A session of its own: Ctrl-C reaches it through us, once.
        process = subprocess.Popen(
            command, stdout=log or said, stderr=log or said, start_new_session=True
        )
        try:
            shown = f"[{host}]" if ":" in host else host
            _wait_until_ready(process, f"http://{shown}:{port}", said)
            yield Served(f"http://{shown}:{port}/v1", str(folder), process)
        finally:
            _end(process)


def _server() -> list[str]:
    """The command of the server that is installed."""
    if find_spec("vllm"):
        return [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve"]
    if find_spec("transformers") and find_spec("fastapi") and find_spec("uvicorn"):
        return [sys.executable, "-m", "transformers.cli.transformers", "serve"]
    raise TrainingError(
        "no server is installed. Install transformers' own (pip install -e '.[serve]'), or vLLM "
        "on a machine with a GPU (pip install vllm)."
    )


def _free_port(host: str) -> int:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as free:
        free.bind((host, 0))
        return int(free.getsockname()[1])


def _wait_until_ready(process: subprocess.Popen[bytes], address: str, said: IO[bytes]) -> None:
    """Until the server answers; loading a large model takes minutes, so there is no limit."""
    with httpx2.Client(timeout=5.0, trust_env=False) as client:
        while process.poll() is None:
            try:
                if client.get(f"{address}/health").is_success:
                    return
            except httpx2.TransportError:
                pass  # not listening yet
            time.sleep(_PAUSE_S)
    said.seek(max(said.seek(0, os.SEEK_END) - _SHOWN_BYTES, 0))
    last = said.read().decode(errors="replace").strip()
    raise TrainingError(
        f"the server ended with status {process.returncode} before it answered at {address}. "
        f"What it said last:\n{last or '(see above)'}"
    )


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the server, with all that it started."""
    process.terminate()
    try:
        process.wait(_PATIENCE_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; the exit status."""
    parser = argparse.ArgumentParser(
        prog="train.serve", description="Serve a model, OpenAI-compatible."
    )
    parser.add_argument("path", type=Path, help="a model's folder, or a run's")
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen at")
    parser.add_argument("--port", type=int, default=8000, help="the port; 0: a free one")
    parser.add_argument("more", nargs="*", help="behind --: further arguments of the server")
    options = parser.parse_args(arguments)

    def stop(number: int, _frame: FrameType | None) -> None:
        raise _Stopped

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    try:
        with serving(
            options.path,
            host=options.host,
            port=options.port,
            more=options.more,
            log=sys.stderr.buffer,
        ) as served:
            print(f"{served.base_url} serves the model {served.model}", flush=True)
            return served.process.wait()
    except _Stopped:
        return 0
    except TrainingError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


class _Stopped(BaseException):
    """SIGTERM or Ctrl-C came."""


if __name__ == "__main__":
    sys.exit(main())
