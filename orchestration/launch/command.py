"""`trajlake launch`: one subcommand a kind of place."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from orchestration.launch import render
from orchestration.launch.settings import Places, read_places
from orchestration.printing import note
from udfs.errors import ConfigError
from udfs.folders import atomic_file

Config = Annotated[
    Path, typer.Option(help="The run's YAML file, as `train.sft` or `train.dpo` takes it.")
]
Run = Annotated[str, typer.Option(help="The run's name: what is launched again goes on with it.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override one setting; may be repeated."),
]
Nodes = Annotated[int, typer.Option(min=1, help="Machines.")]
Gpus = Annotated[int, typer.Option(min=0, help="GPUs of a machine; 0: train on its CPU.")]
AccelerateConfig = Annotated[
    str | None,
    typer.Option(help="accelerate's file there, such as train/accelerate/fsdp2.yaml."),
]
PlacesFile = Annotated[Path, typer.Option("--places", help="What is where, and how reached.")]
Out = Annotated[Path | None, typer.Option(help="A file to write; by itself, it is printed.")]

_PLACES = Path("launch.yaml")

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Write what trains on another machine: nothing is started.",
)


@app.command()
def ssh(
    config: Config,
    run: Run,
    overrides: Overrides = None,
    gpus: Gpus = 1,
    accelerate_config: AccelerateConfig = None,
    places: PlacesFile = _PLACES,
    out: Out = None,
) -> None:
    """A script to run here, which trains on a machine that ssh reaches and brings the run home."""
    training = render.Training(config, run, tuple(overrides or ()), 1, gpus, accelerate_config)
    _write(render.ssh, training, places, "ssh", out)


@app.command()
def slurm(
    config: Config,
    run: Run,
    overrides: Overrides = None,
    nodes: Nodes = 1,
    gpus: Gpus = 1,
    accelerate_config: AccelerateConfig = None,
    places: PlacesFile = _PLACES,
    out: Out = None,
) -> None:
    """A script for sbatch, which queues itself again until the run has finished."""
    training = render.Training(config, run, tuple(overrides or ()), nodes, gpus, accelerate_config)
    _write(render.slurm, training, places, "slurm", out)


@app.command()
def kubernetes(
    config: Config,
    run: Run,
    overrides: Overrides = None,
    nodes: Nodes = 1,
    gpus: Gpus = 1,
    accelerate_config: AccelerateConfig = None,
    places: PlacesFile = _PLACES,
    out: Out = None,
) -> None:
    """A Job and its Service for `kubectl apply`, with a pod a node."""
    training = render.Training(config, run, tuple(overrides or ()), nodes, gpus, accelerate_config)
    _write(render.kubernetes, training, places, "kubernetes", out)


def _write(
    made: Callable[[render.Training, Any], str],
    training: render.Training,
    file: Path,
    kind: str,
    out: Path | None,
) -> None:
    text = made(training, _place(read_places(file), kind, file)) + "\n"
    if out is None:
        sys.stdout.write(text)
        return
    with atomic_file(out) as staging:
        staging.write_text(text, encoding="utf-8")
    note(f"written: {out}")


def _place(places: Places, kind: str, file: Path) -> Any:
    found = getattr(places, kind)
    if found is None:
        raise ConfigError(
            f"{file} has no entry `{kind}`. orchestration/launch/example.yaml shows one."
        )
    return found
