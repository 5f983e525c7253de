"""Where training runs: `launch.yaml`, with an entry for each kind of place.

Values are data, wherever they end up: none may hold a control character, so none can end a line of
a script. `setup` is the exception, which is shell by its purpose.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
)

from udfs.errors import ConfigError


def _in_one_line(value: str) -> str:
    if not value.isprintable():
        raise ValueError("it has a character that is not printable, such as a line break")
    return value


Line = Annotated[str, Field(min_length=1), AfterValidator(_in_one_line)]
# What a line of #SBATCH takes without quotes.
Word = Annotated[str, Field(pattern=r"^[\w.,:=@%/+*-]+$")]
# A host, or user@host; never an option of ssh.
Host = Annotated[str, Field(pattern=r"^\w[\w.@:%-]*$")]
# An object of Kubernetes.
Label = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Place(_Settings):
    """What every place has. Paths are those there."""

    folder: Line  # the project's checkout there, absolute; on a cluster, one that all nodes share
    environment: Line = ".venv"  # the Python environment with the extra `train`
    setup: list[Line] = []  # lines of shell before anything else, such as `module load cuda/12.8`
    port: PositiveInt = 29500  # at which the nodes of a run find each other


class Ssh(Place):
    """One machine that is reached by ssh."""

    host: Host


class Slurm(Place):
    """A cluster under Slurm."""

    time: Word = "1-00:00:00"  # a job's time limit; the run is queued again until it has finished
    grace_seconds: PositiveInt = 180  # before the limit, for the step in hand and a checkpoint
    cpus_per_node: PositiveInt | None = None
    memory: Word | None = None
    partition: Word | None = None
    account: Word | None = None
    qos: Word | None = None
    options: list[Word] = []  # further options of sbatch, as in `--constraint=h100`


class Kubernetes(Place):
    """A cluster under Kubernetes. `folder` is on the claim, which is mounted at `mount`."""

    image: Line
    claim: Label  # a PersistentVolumeClaim that all pods may write to
    mount: Line
    namespace: Label = "default"
    gpu: Line = "nvidia.com/gpu"  # the resource's name
    cpus: Line | None = None
    memory: Line | None = None
    shared_memory: Line = "16Gi"  # of /dev/shm, which NCCL uses
    grace_seconds: PositiveInt = 180  # for the step in hand and a checkpoint
    retries: NonNegativeInt = 6
    secret: Label | None = None  # a Secret whose keys become environment variables
    node_selector: dict[str, Line] = {}


class Places(_Settings):
    """`launch.yaml`."""

    ssh: Ssh | None = None
    slurm: Slurm | None = None
    kubernetes: Kubernetes | None = None


def read_places(file: Path) -> Places:
    """Read `launch.yaml`.

    Raises:
        ConfigError: it cannot be read, a key does not exist, or a value does not fit.
    """
    try:
        content: Any = yaml.safe_load(file.read_text("utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            f"There is no {file}, which says where training runs. Copy "
            "orchestration/launch/example.yaml there and change it, or give another --places."
        ) from None
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"{file} cannot be read: {error}. Mend it.") from error
    try:
        return Places.model_validate(content or {})
    except ValidationError as error:
        problems = [
            f"{file}: {'.'.join(map(str, each['loc']))}: {each['msg']} (found {each['input']!r})"
            for each in error.errors()
        ]
        raise ConfigError("\n".join(problems)) from None
