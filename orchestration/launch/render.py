"""From what is to be trained, and where, to a script or a manifest.

Every value is quoted for what reads it: shell words by `shlex` (twice where a shell starts another
one), YAML by its library. A launch is checked before it is written: its configuration is read as
training reads it.
"""

from __future__ import annotations

import hashlib
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from orchestration.launch.settings import Kubernetes, Place, Slurm, Ssh
from train.config import Settings, load_settings
from udfs.errors import ConfigError
from udfs.settings import exports_folder

_TEMPLATES = Environment(
    loader=PackageLoader("orchestration", "launch"),
    undefined=StrictUndefined,
    keep_trailing_newline=False,
    autoescape=False,  # scripts; values are quoted one by one
)
_TEMPLATES.filters["quoted"] = lambda value: shlex.quote(str(value))


@dataclass(frozen=True)
class Training:
    """What is to be trained, on how much. `config` is a file here.

    Raises:
        TrainingError: the configuration cannot be used.
        ConfigError: the launch cannot.
    """

    config: Path
    run: str
    overrides: tuple[str, ...] = ()
    nodes: int = 1
    gpus: int = 1  # of a node; 0: train on its CPU
    accelerate_config: str | None = None  # of `accelerate`, such as train/accelerate/fsdp2.yaml

    def __post_init__(self) -> None:
        for value in (str(self.config), self.accelerate_config or "", *self.overrides):
            if not value.isprintable():
                raise ConfigError(
                    f"{value!r} has a character that is not printable, such as a line break. "
                    "Take it out."
                )
        if self.nodes > 1 and not self.gpus:
            raise ConfigError(
                "Several nodes without GPUs are not launched from here: accelerate needs MPI for "
                "that. Set --gpus, or --nodes 1."
            )
        _ = self.settings

    @property
    def settings(self) -> Settings:
        """What the run is trained with."""
        return load_settings(self.config, self._overrides())

    @property
    def output(self) -> str:
        """The folder of runs, there and here."""
        output = self.settings.output
        if output.is_absolute() or ".." in output.parts:
            raise ConfigError(
                f"output is {output}, which would be another folder there. Set one below the "
                "project's, as in --set output=runs."
            )
        return output.as_posix()

    def command(self, config: str, port: int) -> str:
        """The command of one node, as shell that reads NODE_RANK and MAIN_ADDRESS.

        Args:
            config: where the configuration is there.
            port: at which the nodes find each other.
        """
        words = ["accelerate", "launch"]
        if self.accelerate_config:
            words += ["--config_file", self.accelerate_config]
        elif self.gpus * self.nodes > 1:
            words += ["--multi_gpu"]
        if not self.gpus:
            words += ["--cpu"]
        words += ["--num_processes", str(max(self.gpus, 1) * self.nodes)]
        words += ["--num_machines", str(self.nodes)]
        meeting = ""
        if self.nodes > 1:
            meeting = (
                f' --machine_rank "$NODE_RANK" --main_process_ip "$MAIN_ADDRESS" '
                f"--main_process_port {port}"
            )
        job = ["-m", f"train.{self.settings.objective}", "--config", config]
        for each in self._overrides():
            job += ["--set", each]
        return f"{shlex.join(words)}{meeting} {shlex.join([*job, '--go-on'])}"

    def _overrides(self) -> list[str]:
        world_size = max(self.gpus, 1) * self.nodes
        return [*self.overrides, f"run={self.run}", f"world_size={world_size}"]


def ssh(training: Training, place: Ssh) -> str:
    """A script to run here: takes all there, trains, and brings the run home.

    Raises:
        ConfigError: there is no export, or it asks for several nodes.
    """
    if training.nodes != 1:
        raise ConfigError("ssh launches on one machine. Leave --nodes out, or launch by slurm.")
    settings = training.settings
    export = exports_folder() / settings.export_name
    if not (export / "manifest.json").is_file():
        layout = "" if settings.objective == "sft" else " --layout pairs"
        raise ConfigError(
            f"There is no export at {export}. Write it by `trajlake export "
            f"{settings.recipe}{layout}`."
        )
    launched = f"launched/{training.run}"
    config, script, log, lock, pid = (
        f"{launched}{end}" for end in (".yaml", ".sh", ".log", ".lock", ".pid")
    )
    folder = shlex.quote(place.folder)

    def there(path: str) -> str:
        # With --protect-args no shell there reads the path.
        return f"{place.host}:{place.folder}/{path}"

    needed = shlex.join(["launched", f"exports/{settings.export_name}"])
    return _TEMPLATES.get_template("ssh.sh.jinja").render(
        training=training,
        place=place,
        node=_node(training, place, config),
        there=there,
        export_here=f"{export}/",
        config_there=config,
        script_there=f"{place.folder}/{script}",
        pid_there=pid,
        log=f"{place.folder}/{log}",
        make_folders=f"mkdir -p {folder} && cd {folder} && mkdir -p {needed}",
        start=f"cd {folder} && setsid --wait flock {shlex.quote(lock)} bash {shlex.quote(script)} "
        f">> {shlex.quote(log)} 2>&1 < /dev/null",
        stop=f"cd {folder} && kill $(cat {shlex.quote(pid)})",
    )


def slurm(training: Training, place: Slurm) -> str:
    """A script for sbatch, which queues itself again until the run has finished."""
    fields: dict[str, Any] = {
        "job-name": training.run,
        "nodes": training.nodes,
        "ntasks-per-node": 1,
        "gpus-per-node": training.gpus or None,
        "cpus-per-task": place.cpus_per_node,
        "mem": place.memory,
        "time": place.time,
        "partition": place.partition,
        "account": place.account,
        "qos": place.qos,
        "signal": f"B:TERM@{place.grace_seconds}",
        "output": f"{training.run}-%j.log",
    }
    options = [f"--{name}={value}" for name, value in fields.items() if value is not None]
    return _TEMPLATES.get_template("slurm.sh.jinja").render(
        training=training,
        options=[*options, "--requeue", "--open-mode=append", *place.options],
        node=_node(training, place, str(training.config)),
    )


def kubernetes(training: Training, place: Kubernetes) -> str:
    """As YAML, a Job with a pod a node, the Service by which they find each other, and a ConfigMap
    with what they run: there, other than in a command, Kubernetes puts nothing in for `$(…)`."""
    name = _label(training.run)
    script = "\n".join(
        [
            "stopped=0",
            _node(training, place, str(training.config)),
            'NODE_RANK=$JOB_COMPLETION_INDEX MAIN_ADDRESS="$MAIN_HOST"',
            "train",
            "status=$?",
            # A pod that was told to go has not finished: the Job starts another.
            '[ "$stopped" = 1 ] && exit 143',
            'exit "$status"',
        ]
    )
    labels = {"app.kubernetes.io/name": "trajlake", "app.kubernetes.io/instance": name}
    resources = {
        place.gpu: training.gpus or None,
        "cpu": place.cpus,
        "memory": place.memory,
    }
    limits = {key: str(value) for key, value in resources.items() if value is not None}
    container: dict[str, Any] = {
        "name": "train",
        "image": place.image,
        "command": ["bash", "/launch/node.sh"],
        "env": [{"name": "MAIN_HOST", "value": f"{name}-0.{name}"}],
        "resources": {"limits": limits},
        "volumeMounts": [
            {"name": "project", "mountPath": place.mount},
            {"name": "shm", "mountPath": "/dev/shm"},
            {"name": "launch", "mountPath": "/launch"},
        ],
    }
    if place.secret:
        container["envFrom"] = [{"secretRef": {"name": place.secret}}]
    pod: dict[str, Any] = {
        "restartPolicy": "Never",
        "subdomain": name,
        "terminationGracePeriodSeconds": place.grace_seconds,
        "containers": [container],
        "volumes": [
            {"name": "project", "persistentVolumeClaim": {"claimName": place.claim}},
            {
                "name": "shm",
                "emptyDir": {"medium": "Memory", "sizeLimit": place.shared_memory},
            },
            {"name": "launch", "configMap": {"name": name}},
        ],
    }
    if place.node_selector:
        pod["nodeSelector"] = dict(place.node_selector)
    metadata = {"name": name, "namespace": place.namespace, "labels": labels}
    config_map = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata,
        "data": {"node.sh": f"{script}\n"},
    }
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata,
        "spec": {
            "clusterIP": "None",
            # Before any is ready: the first waits for the others.
            "publishNotReadyAddresses": True,
            "selector": labels,
            "ports": [{"name": "rendezvous", "port": place.port}],
        },
    }
    job = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": metadata,
        "spec": {
            "completionMode": "Indexed",
            "completions": training.nodes,
            "parallelism": training.nodes,
            "backoffLimit": place.retries * training.nodes,
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    }
    found = [config_map, service, job]
    text: str = yaml.dump_all(found, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    return text


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]
    """Writes texts of several lines as blocks, and nothing as an alias."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    return dumper.represent_scalar(
        "tag:yaml.org,2002:str", value, style="|" if "\n" in value else None
    )


_Dumper.add_representer(str, _text)


def _node(training: Training, place: Place, config: str) -> str:
    return _TEMPLATES.get_template("node.sh.jinja").render(
        place=place, command=training.command(config, place.port)
    )


def _label(run: str) -> str:
    """A run's name as Kubernetes takes one; two runs never get the same by cutting."""
    label = re.sub(r"[^a-z0-9]+", "-", run.lower()).strip("-")
    if label == run and len(run) <= 40:
        return label
    return f"{label[:40]}-{hashlib.sha256(run.encode()).hexdigest()[:8]}".strip("-")
