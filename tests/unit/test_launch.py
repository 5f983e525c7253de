"""What `trajlake launch` writes: right for what reads it, whatever the values are."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from train_export import react_sample, write_export

from orchestration.launch import Training, kubernetes, read_places, slurm, ssh
from orchestration.launch.settings import Kubernetes, Slurm, Ssh
from udfs.errors import ConfigError, TrainingError

CONFIG = Path("train/configs/tiny.yaml")
EXAMPLE = Path("orchestration/launch/example.yaml")
HOSTILE = "a 'b' \"c\" $(touch hit) `touch hit` ; touch hit # \\ %d {{ x }} é"

SLURM = Slurm(folder="/shared/x")
KUBERNETES = Kubernetes(image="i:1", claim="c", mount="/m", folder="/m/x")

# What a shell would start is printed instead, a word a line.
_PRINTS = 'accelerate() { printf "%s\\n" "$@"; }\n'


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_export(tmp_path / "exports" / "default", [react_sample(1)])
    monkeypatch.setenv("TRAJLAKE_EXPORTS", str(tmp_path / "exports"))
    (tmp_path / "there").mkdir()
    environment = tmp_path / "there" / ".venv" / "bin"
    environment.mkdir(parents=True)
    (environment / "activate").touch()
    return tmp_path


def shell(script: str, folder: Path, **environment: str) -> list[str]:
    done = subprocess.run(
        ["bash", "-c", _PRINTS + script],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def objects(text: str) -> dict[str, Any]:
    return {each["kind"]: each for each in yaml.safe_load_all(text)}


# --- values -----------------------------------------------------------------------------------


def test_a_value_is_one_word_whatever_is_in_it(place: Path) -> None:
    training = Training(CONFIG, "r", (f"model.path={HOSTILE}",))
    there = Slurm(folder=str(place / "there"))

    said = shell(slurm(training, there), place)

    assert said == [
        *("launch", "--num_processes", "1", "--num_machines", "1", "-m", "train.sft"),
        *("--config", "train/configs/tiny.yaml", "--set", f"model.path={HOSTILE}"),
        *("--set", "run=r", "--set", "world_size=1", "--go-on"),
    ]
    assert not list(place.rglob("hit"))


def test_a_folder_may_be_called_anything(place: Path) -> None:
    folder = place / "there's $(touch hit) a folder"
    shutil.copytree(place / "there", folder)

    said = shell(slurm(Training(CONFIG, "r"), Slurm(folder=str(folder))), place)

    assert said[0] == "launch"
    assert not list(place.rglob("hit"))


def test_kubernetes_puts_nothing_into_a_value() -> None:
    """Kubernetes replaces `$(NAME)` in commands and variables, so values are in neither."""
    found = objects(kubernetes(Training(CONFIG, "r", ("model.path=$(HF_TOKEN)",)), KUBERNETES))
    container = found["Job"]["spec"]["template"]["spec"]["containers"][0]

    assert "$(" not in json.dumps([container["command"], container["env"]])
    assert "'model.path=$(HF_TOKEN)'" in found["ConfigMap"]["data"]["node.sh"]


@pytest.mark.parametrize("value", ["a\nb", "a\0b", "a\x1bb", "a\u2028b"])
def test_no_value_ends_a_line(value: str) -> None:
    with pytest.raises(ConfigError, match="not printable"):
        Training(CONFIG, "r", (f"model.path={value}",))
    with pytest.raises(ValueError, match="not printable"):
        Slurm(folder=value)


@pytest.mark.parametrize("host", ["-oProxyCommand=x", "a b", "a;b", "$(a)", "a\nb", ""])
def test_a_host_is_never_an_option_or_shell(host: str) -> None:
    with pytest.raises(ValueError, match="host"):
        Ssh(host=host, folder="/x")


@pytest.mark.parametrize("partition", ["gpu\n#SBATCH --x", "a b", "$(a)", "'a"])
def test_options_of_sbatch_are_single_words(partition: str) -> None:
    with pytest.raises(ValueError, match="partition"):
        Slurm(folder="/x", partition=partition)


def test_a_run_with_an_unusual_name_is_refused() -> None:
    with pytest.raises(TrainingError, match="run"):
        Training(CONFIG, "a b; c")


def test_what_training_would_refuse_is_not_launched() -> None:
    with pytest.raises(TrainingError, match="there is no key"):
        Training(CONFIG, "r", ("learning_rat=1",))


def test_a_run_comes_home_to_the_same_folder() -> None:
    with pytest.raises(ConfigError, match="output"):
        ssh(Training(CONFIG, "r", ("output=/elsewhere",)), Ssh(host="h", folder="/x"))


# --- the world --------------------------------------------------------------------------------


def test_each_node_knows_its_place(place: Path) -> None:
    training = Training(CONFIG, "r", nodes=2, gpus=8)
    script = kubernetes(training, KUBERNETES.model_copy(update={"folder": str(place / "there")}))
    node = objects(script)["ConfigMap"]["data"]["node.sh"]

    said = shell(node, place, JOB_COMPLETION_INDEX="1", MAIN_HOST="r-0.r")

    assert said[:13] == [
        *("launch", "--multi_gpu", "--num_processes", "16", "--num_machines", "2"),
        *("--machine_rank", "1", "--main_process_ip", "r-0.r"),
        *("--main_process_port", "29500", "-m"),
    ]
    assert "world_size=16" in said


def test_a_file_of_accelerate_says_how_to_distribute() -> None:
    training = Training(CONFIG, "r", gpus=8, accelerate_config="train/accelerate/fsdp2.yaml")

    command = training.command("c.yaml", 1)

    assert command.startswith(
        "accelerate launch --config_file train/accelerate/fsdp2.yaml --num_processes 8 "
    )
    assert "--multi_gpu" not in command


def test_a_cpu_is_one_node() -> None:
    assert "--cpu --num_processes 1" in Training(CONFIG, "r", gpus=0).command("c.yaml", 1)
    with pytest.raises(ConfigError, match="MPI"):
        Training(CONFIG, "r", nodes=2, gpus=0)
    with pytest.raises(ConfigError, match="one machine"):
        ssh(Training(CONFIG, "r", nodes=2), Ssh(host="h", folder="/x"))


# --- what reads it ----------------------------------------------------------------------------


def test_slurm_is_asked_for_the_nodes_and_a_signal_before_the_end() -> None:
    script = slurm(
        Training(CONFIG, "r", nodes=2, gpus=8),
        Slurm(folder="/x", partition="gpu", memory="512G", options=["--constraint=h100"]),
    )
    lines = script.splitlines()
    options = [line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH ")]

    assert {"--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=8"} <= set(options)
    assert {"--signal=B:TERM@180", "--requeue", "--constraint=h100", "--mem=512G"} <= set(options)
    # sbatch reads options up to the first command.
    first = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    assert not any(line.startswith("#SBATCH") for line in lines[first:])
    assert "srun " in script and "scontrol requeue" in script


@pytest.mark.parametrize("nodes", [1, 2])
def test_scripts_are_shell(nodes: int, place: Path) -> None:
    scripts = [slurm(Training(CONFIG, "r", nodes=nodes, gpus=2), SLURM)]
    scripts.append(ssh(Training(CONFIG, "r"), Ssh(host="a@b", folder="/x y")))
    manifest = objects(kubernetes(Training(CONFIG, "r", nodes=nodes), KUBERNETES))
    scripts.append("#!/bin/bash\n" + manifest["ConfigMap"]["data"]["node.sh"])
    for script in scripts:
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)
        if shutil.which("shellcheck"):
            subprocess.run(
                ["shellcheck", "--severity=warning", "-"], input=script, text=True, check=True
            )


def test_a_job_has_a_pod_a_node_and_a_service_to_find_it_by() -> None:
    place = KUBERNETES.model_copy(update={"secret": "hf", "node_selector": {"gpu": "h100"}})
    text = kubernetes(Training(CONFIG, "r", nodes=2, gpus=8), place)
    found = objects(text)
    job, service = found["Job"], found["Service"]
    pod = job["spec"]["template"]["spec"]
    [container] = pod["containers"]

    assert job["spec"]["completionMode"] == "Indexed"
    assert job["spec"]["completions"] == job["spec"]["parallelism"] == 2
    assert pod["subdomain"] == service["metadata"]["name"] == job["metadata"]["name"]
    labels = job["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"].items() <= labels.items()
    assert service["spec"]["clusterIP"] == "None"
    assert container["env"] == [{"name": "MAIN_HOST", "value": "r-0.r"}]
    assert container["resources"]["limits"] == {"nvidia.com/gpu": "8"}
    assert container["envFrom"] == [{"secretRef": {"name": "hf"}}]
    assert pod["nodeSelector"] == {"gpu": "h100"}
    mounted = {each["name"] for each in container["volumeMounts"]}
    assert mounted == {each["name"] for each in pod["volumes"]}


def test_objects_fit_the_schemas_of_kubernetes() -> None:
    validator = pytest.importorskip(
        "kubernetes_validate", reason="kubernetes-validate is not installed"
    )
    text = kubernetes(Training(CONFIG, "A_run.1", nodes=2, gpus=8), KUBERNETES)
    for each in yaml.safe_load_all(text):
        validator.validate(each, validator.latest_version(), strict=True)


@pytest.mark.parametrize("run", ["A_run.1", "a" * 200, "-".join("ab" * 40), "_", "a_b", "a.b"])
def test_every_run_has_a_name_that_kubernetes_takes(run: str) -> None:
    name = objects(kubernetes(Training(CONFIG, run), KUBERNETES))["Job"]["metadata"]["name"]

    assert re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,50}[a-z0-9])?", name)


def test_two_runs_have_two_names() -> None:
    names = {
        objects(kubernetes(Training(CONFIG, run), KUBERNETES))["Job"]["metadata"]["name"]
        for run in ("a_b", "a.b", "a-b", "A-b")
    }

    assert len(names) == 4


# --- places -----------------------------------------------------------------------------------


def test_the_example_can_be_used() -> None:
    places = read_places(EXAMPLE)

    assert places.ssh and places.slurm and places.kubernetes
    assert places.kubernetes.folder.startswith(places.kubernetes.mount)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("ssh: {host: h}", "ssh.folder"),
        ("slurm: {folder: /x, partitoin: gpu}", "slurm.partitoin"),
        ("ssh: [", "Mend it"),
        ("- 1", "places"),
    ],
)
def test_what_cannot_be_used_is_named(content: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "places.yaml"
    file.write_text(content)

    with pytest.raises(ConfigError, match=said):
        read_places(file)


def test_a_missing_file_says_where_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="example"):
        read_places(tmp_path / "none.yaml")
