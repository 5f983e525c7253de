"""It learns: from raw runs to an agent that is better for them, and better still for curation.

    pytest -s tests/bench/test_it_learns.py

The task is a registry of huts (`_huts.py`): "Who keeps hut 142?" takes one call, "Which key opens
hut 142?" two, the second with what the first one gave. Who keeps a hut is drawn at random, so
nothing but calling the right tools with the right names gives the answer. Each task has three raw
runs by scripted agents: one is right, two are wrong in two of four ways. Whether the answer was
right is the record's score.

From there all is the project's own, each in the process that a person would start: dbt build, two
exports (all runs; the runs with score 1), train.sft on each with the same number of steps from the
same random weights, train.serve, trajlake eval on huts that no run was about. All that three times,
from other weights: when a model learns to copy a number is a matter of luck too.
`docs/learning.md` has what came of it.
"""

from __future__ import annotations

import csv
import json
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="the training extra is not installed")
pytest.importorskip("fastapi", reason="the extra serve is not installed")
pytest.importorskip("scipy", reason="the extra evaluation is not installed")

import _huts
from rich.console import Console
from rich.table import Table
from scipy import stats
from scripted_model import Said, ScriptedModel, calls, text
from transformers import AutoTokenizer

from orchestration.agent.environment import Task
from orchestration.agent.functions import Functions, load_functions
from orchestration.agent.loop import Limits, play
from orchestration.agent.model import Model
from orchestration.agent.records import Records, record
from orchestration.agent.styles import STYLES
from train.config import SftSettings, TinyModel
from train.merge import prepare_tokenizer
from train.serve import model_folder, serving
from train.tiny import make_tiny_model

PROJECT = Path(__file__).resolve().parents[2]
TOOLS = Path(_huts.__file__)

TRAINED_HUTS = 270  # of 300; two questions about each of the others are the test
STEPS = 400
ROWS = 16  # in a step
MOST_REPLIES = 4
SEEDS = (0, 1, 2)  # of the first weights

RECIPES = {"curated": "score = 1", "uncurated": "true"}


# --- raw runs ---------------------------------------------------------------------------------


def question(hut: int, wants_key: bool) -> str:
    return f"Which key opens hut {hut}?" if wants_key else f"Who keeps hut {hut}?"


def answer(hut: int, wants_key: bool) -> str:
    keeper = _huts.keeper_of(hut)
    return _huts.key_of(number(keeper)) if wants_key else keeper


def number(said: str) -> int:
    return int(re.findall(r"\d+", said)[0])


def call(tool: str, **arguments: int) -> dict[str, Any]:
    return calls((tool, json.dumps(arguments)))


def looks_up(asked: str, told: list[str]) -> Said:
    """Right: the keeper, and for a key what that keeper has."""
    return _look_up(number(asked), "key" in asked, told)


def looks_up_another(asked: str, told: list[str]) -> Said:
    """Asks about some other hut."""
    others = [hut for hut in _huts.HUTS if hut != number(asked)]
    return _look_up(random.Random(asked).choice(others), "key" in asked, told)


def goes_to_the_wrong_end(asked: str, told: list[str]) -> Said:
    """Stops at the keeper where the key was asked for, and goes on where it was not."""
    return _look_up(number(asked), "key" not in asked, told)


def asks_the_wrong_tool(asked: str, told: list[str]) -> Said:
    """Takes the hut for a guide, which raises, and gives up."""
    return text("I do not know.") if told else call("key_of", guide=number(asked))


def guesses(asked: str, told: list[str]) -> Said:
    """Answers without a look."""
    drawn = random.Random(asked).randrange(100, 1000)
    return text(f"key {drawn}" if "key" in asked else f"guide {drawn}")


def _look_up(hut: int, wants_key: bool, told: list[str]) -> Said:
    if not told:
        return call("keeper_of", hut=hut)
    if wants_key and len(told) == 1:
        return call("key_of", guide=number(told[-1]))
    return text(told[-1])


WRONG = (looks_up_another, goes_to_the_wrong_end, asks_the_wrong_tool, guesses)
AGENTS: dict[str, Callable[[str, list[str]], Said]] = {
    agent.__name__: agent for agent in (looks_up, *WRONG)
}


def say(body: dict[str, Any]) -> Said:
    """What the agent of that name says next."""
    asked = next(m["content"] for m in body["messages"] if m["role"] == "user")
    told = [message["content"] for message in body["messages"] if message["role"] == "tool"]
    return AGENTS[body["model"]](asked, told)


def write_runs(folder: Path, huts: list[int]) -> dict[str, int]:
    """Three runs of each task, in no order; how many of each agent."""
    drawn = random.Random(1)
    tasks = [(hut, wants_key) for hut in huts for wants_key in (False, True)]
    runs = [(t, a) for t in tasks for a in (looks_up, *drawn.sample(WRONG, 2))]
    drawn.shuffle(runs)
    functions = load_functions([str(TOOLS)])
    models = {name: Model(name, {}, 20.0) for name in AGENTS}
    limits = Limits(MOST_REPLIES)
    counts = dict.fromkeys(AGENTS, 0)
    with Records(folder) as records:
        for (hut, wants_key), agent in runs:
            environment = Functions(question(hut, wants_key), functions)
            # As `trajlake eval` asks for answers that are compared word for word.
            environment.instructions += " Give the answer alone, as short as it can be."
            task = Task(f"{hut}-{'key' if wants_key else 'keeper'}", lambda e=environment: e)
            model = models[agent.__name__]
            episode = play(task, model, STYLES["tools"], limits)
            episode.reward = float(episode.answer == answer(hut, wants_key))
            records.add(record(episode, model, limits))
            counts[agent.__name__] += 1
    return counts


# --- the way to an agent ----------------------------------------------------------------------


def write_project(folder: Path) -> None:
    """A copy of the project with two recipes: they differ by the filter alone."""
    for name in ("models", "dbt_project", "udfs"):
        shutil.copytree(PROJECT / name, folder / name)
    for name in ("dbt_project.yml", "profiles.yml"):
        shutil.copy(PROJECT / name, folder)
    common = {
        "salvage_filter": None,
        "seed": 42,
        "eval_fraction": 0.0,
        "token_budget": None,
        "temperature": 1.0,
        "agent_share": None,
        "masks_bad_steps": False,
        "drops_near_duplicates": False,  # runs at one task differ by little here
        "excluded_benchmarks": None,
        "redacts_personal_data": False,
        "metadata_prefix": None,
    }
    epochs = {"curated": 1 + STEPS * ROWS // (2 * TRAINED_HUTS)}
    epochs["uncurated"] = 1 + STEPS * ROWS // (6 * TRAINED_HUTS)
    recipes = [
        {"recipe": name, "filter": condition, "epochs": epochs[name], **common}
        for name, condition in RECIPES.items()
    ]
    sources = [
        {"recipe": n, "source": "*", "weight": 1.0, "max_repeats": 100, "is_general": False}
        for n in RECIPES
    ]
    for seed, rows in (("recipes", recipes), ("recipe_sources", sources)):
        with (folder / f"dbt_project/seeds/{seed}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


def settings(recipe: str, run: str, base: Path, folder: Path) -> dict[str, Any]:
    return SftSettings(
        recipe=recipe,
        run=run,
        output=folder / "runs",
        model={"path": str(base)},
        method="full",
        precision="float32",
        max_length=512,
        global_batch_size=ROWS,
        micro_batch_size=ROWS,
        max_steps=STEPS,
        learning_rate=2e-3,
        schedule="constant_with_warmup",
        warmup_steps=20,
        checkpoint_every=10_000,
    ).model_dump(mode="json")


def as_served(folder: Path, out: Path) -> Path:
    """A model with its tokenizer as `train.merge` leaves it; the untrained one's is not."""
    shutil.copytree(model_folder(folder), out)
    tokenizer = AutoTokenizer.from_pretrained(out)
    prepare_tokenizer(tokenizer)
    tokenizer.save_pretrained(out)
    return out


def test_training_makes_an_agent_and_curation_a_better_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = tmp_path / "project"
    project.mkdir()
    write_project(project)
    for name in ("raw", "lake", "exports", "prepared", "benchmarks"):
        monkeypatch.setenv(f"TRAJLAKE_{name.upper()}", str(tmp_path / name))
        (tmp_path / name).mkdir()
    monkeypatch.setenv("TRAJLAKE_DB", str(tmp_path / "views.duckdb"))
    monkeypatch.setenv("PYTHONPATH", str(PROJECT))
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def run(*command: str) -> str:
        began = time.monotonic()
        done = subprocess.run(command, cwd=project, text=True, capture_output=True, check=False)
        assert done.returncode == 0, f"{command}: {done.stdout[-4000:]}{done.stderr[-4000:]}"
        shown = " ".join(Path(part).name for part in command[:5])
        print(f"{time.monotonic() - began:.0f} s: {shown}", flush=True)
        return done.stdout

    huts = random.Random(0).sample(list(_huts.HUTS), len(_huts.HUTS))
    with closing(ScriptedModel(say)) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        print("runs:", write_runs(tmp_path / "raw" / "huts", huts[:TRAINED_HUTS]))
    asked = [(h, k) for h in huts[TRAINED_HUTS:] for k in (False, True)]
    questions = tmp_path / "benchmarks" / "huts.jsonl"
    questions.write_text(
        "\n".join(json.dumps({"question": question(*a), "answer": answer(*a)}) for a in asked)
    )

    untested = ("--exclude-resource-type", "test", "--exclude-resource-type", "unit_test")
    run("dbt", "build", "--quiet", *untested)
    for recipe in RECIPES:
        run("trajlake", "export", recipe)
    served: dict[tuple[str, int], Path] = {}
    trainings = []
    for seed in SEEDS:
        base = tmp_path / f"untrained-{seed}"
        make_tiny_model(base, TinyModel(vocab_size=1024, hidden_size=128, layers=2, seed=seed))
        served["untrained", seed] = base
        for recipe in RECIPES:
            name = f"{recipe}-{seed}"
            config = tmp_path / f"{name}.yaml"
            config.write_text(json.dumps(settings(recipe, name, base, tmp_path)))
            served[recipe, seed] = tmp_path / "runs" / name
            trainings.append((sys.executable, "-m", "train.sft", "--config", str(config)))
    with ThreadPoolExecutor(2) as cores:  # one thread of torch each
        list(cores.map(lambda command: run(*command), trainings))

    n = len(asked)
    solved: dict[tuple[str, int], int] = {}
    for (name, seed), folder in served.items():
        with serving(as_served(folder, tmp_path / "served" / f"{name}-{seed}")) as endpoint:
            monkeypatch.setenv("OPENAI_BASE_URL", endpoint.base_url)
            measured = run(
                "trajlake", "eval", "mint",
                "--model", endpoint.model, "--questions", str(questions),
                "--tools", str(TOOLS), "--budget", str(MOST_REPLIES),
                "--parameters", "{temperature: 0, max_tokens: 40}", "--json",
            )  # fmt: skip
            solved[name, seed] = round(json.loads(measured)[-1]["value"] * n)
            print(f"{name}, weights {seed}: {solved[name, seed]} of {n}", flush=True)

    totals = {name: sum(solved[name, seed] for seed in SEEDS) for name in ("untrained", *RECIPES)}
    table = Table(title=f"{STEPS} steps of {ROWS} rows", title_justify="left")
    table.add_column("model")
    for column in (*(f"solved of {n}, weights {seed}" for seed in SEEDS), "curated is better, p"):
        table.add_column(column, justify="right")

    def p_value(worse: str) -> float:
        """Fisher's exact test, one-sided, over all weights: as much better by chance."""
        counts = [[totals[each], n * len(SEEDS) - totals[each]] for each in ("curated", worse)]
        return float(stats.fisher_exact(counts, alternative="greater").pvalue)

    for name in totals:
        p = "" if name == "curated" else f"{p_value(name):.1g}"
        table.add_row(name, *(str(solved[name, seed]) for seed in SEEDS), p)
    Console(width=100).print(table)
    assert p_value("untrained") < 0.001
    assert p_value("uncurated") < 0.001
