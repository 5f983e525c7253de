"""The settings of a training run: a YAML file, with `--set key=value` on top.

Every field is checked for name, type and range before anything is loaded, and a key that does not
exist is refused: a misspelt setting never trains with its default in silence.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import UnionType
from typing import Any, ClassVar, Literal, Union, get_args, get_origin

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from udfs.errors import TrainingError


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TinyModel(_Settings):
    """A tiny Llama-like model with random weights (`train.tiny` makes it)."""

    vocab_size: int = Field(default=8192, ge=512, le=131072)
    hidden_size: PositiveInt = 128
    layers: PositiveInt = 2
    heads: PositiveInt = 4
    seed: int = 0


class ModelSettings(_Settings):
    """The base model and how a conversation is written for it."""

    path: str  # a folder, or a name on the Hugging Face hub
    tiny: TinyModel | None = None  # make this model at `path` if nothing is there
    chat_template: Path | None = None  # a Jinja file; null: the tokenizer's own, else ours
    attention: Literal["sdpa", "flash_attention_2", "eager"] = "sdpa"


class LoraSettings(_Settings):
    """Low-rank adapters, for the methods `lora` and `qlora`."""

    rank: PositiveInt = 16
    alpha: PositiveInt = 32
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    target_modules: list[str] | None = None  # null: every linear layer but the output's


class RunSettings(_Settings):
    """What every run has, whatever it learns by. Lengths in tokens, sizes in rows."""

    recipe: str  # of the export
    run: str | None = Field(
        default=None, pattern=r"^[\w][\w.-]*$"
    )  # null: recipe and time of start
    output: Path = Path("runs")  # the run writes `<output>/<run>/`
    world_size: PositiveInt | None = None  # fail unless this many processes run; null: any

    model: ModelSettings
    method: Literal["qlora", "lora", "full"] = "qlora"
    lora: LoraSettings = LoraSettings()
    precision: Literal["bfloat16", "float32"] = "bfloat16"
    gradient_checkpointing: bool = False  # less memory, a third more time: activations come anew

    max_length: PositiveInt = 4096  # of a row; of pairs, of either side
    global_batch_size: PositiveInt = 16  # rows in one optimiser step, over all processes
    micro_batch_size: PositiveInt = 1  # rows in one forward pass of one process
    max_steps: PositiveInt | None = None  # null: to the last row

    optimizer: Literal["adamw", "paged_adamw_8bit"] = "adamw"
    learning_rate: PositiveFloat = 2e-4
    schedule: Literal["constant_with_warmup", "linear", "cosine"] = "cosine"
    warmup_steps: NonNegativeInt = 0
    weight_decay: NonNegativeFloat = 0.0
    max_grad_norm: PositiveFloat = 1.0
    seed: NonNegativeInt = 0

    checkpoint_every: PositiveInt = 100  # steps
    eval_every: PositiveInt | None = None  # steps; null: only at the end
    stop_after_evals_without_gain: PositiveInt | None = None  # null: never; else the best is kept
    trackers: list[Literal["tensorboard", "mlflow", "wandb"]] = []

    @field_validator("stop_after_evals_without_gain")
    @classmethod
    def _has_evals_to_count(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and info.data.get("eval_every") is None:
            raise ValueError("it counts evaluations: set eval_every too")
        return value


class SftSettings(RunSettings):
    """One supervised fine-tuning run, on the export `<TRAJLAKE_EXPORTS>/<recipe>`."""

    objective: Literal["sft"] = "sft"
    too_long: Literal["refuse", "split"] = "refuse"  # a longer sample; never cut in a message
    packing: Literal["none", "window"] = "none"  # a row: one segment, or as many as fit
    packing_window: PositiveInt = 64  # rows open at a time; bounds how far a sample moves
    order: Literal["plan", "shards"] = "plan"  # shards: the specification's own (train.sampler)

    sequences_per_row: ClassVar[int] = 1

    @property
    def export_name(self) -> str:
        """The export's folder, below the folder of exports."""
        return self.recipe


class DpoSettings(RunSettings):
    """One run of preference training, on the export `<TRAJLAKE_EXPORTS>/<recipe>.pairs`. A row is a
    pair."""

    objective: Literal["dpo"]
    epochs: PositiveInt = 1  # the export has each pair once
    beta: PositiveFloat = 0.1  # how dear it is to leave the reference
    label_smoothing: float = Field(
        default=0.0, ge=0.0, lt=0.5
    )  # share of pairs the wrong way round
    length_normalised: bool = False  # rewards a token instead of a continuation
    sft_weight: NonNegativeFloat = 0.0  # of the chosen continuations' own loss, beside

    sequences_per_row: ClassVar[int] = 2
    too_long: ClassVar[Literal["refuse"]] = "refuse"
    packing: ClassVar[Literal["none"]] = "none"

    @property
    def export_name(self) -> str:
        """The export's folder, below the folder of exports."""
        return f"{self.recipe}.pairs"


Settings = SftSettings | DpoSettings
_KINDS: dict[str, type[Settings]] = {"sft": SftSettings, "dpo": DpoSettings}

# What a resumed run may change, because none of it changes what is learned.
MAY_CHANGE_ON_RESUME = frozenset(
    {"world_size", "micro_batch_size", "gradient_checkpointing", "checkpoint_every", "trackers"}
)


def load_settings(file: Path, overrides: Sequence[str] = ()) -> Settings:
    """Read the YAML `file` and put `overrides` ("key=value", "lora.rank=8") on top.

    Its `objective` says which settings there are; without one they are those of `train.sft`.

    Raises:
        TrainingError: the file cannot be read, a key does not exist, or a value does not fit. The
            message names the file or the override, the key, and what would be accepted.
    """
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise TrainingError(f"there is no config file {file}") from None
    except yaml.YAMLError as error:
        raise TrainingError(f"{file} is no valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise TrainingError(f"{file} must hold `key: value` lines, not {type(content).__name__}")
    overridden = {_apply(content, override) for override in overrides}
    objective = content.get("objective", "sft")
    kind = _KINDS.get(objective) if isinstance(objective, str) else None
    if kind is None:
        where = "--set objective" if "objective" in overridden else str(file)
        raise TrainingError(
            f"{where}: objective: {objective!r} is none. Choose from: {', '.join(_KINDS)}."
        )
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        problems = [_explain(problem, kind, file, overridden) for problem in error.errors()]
        raise TrainingError("\n".join(problems)) from None


def changed_keys(before: Settings, after: Settings) -> set[str]:
    """Names of the top-level settings that differ."""
    if type(before) is not type(after):
        return {"objective"}
    fields = type(before).model_fields
    return {key for key in fields if getattr(before, key) != getattr(after, key)}


def _apply(content: dict[str, Any], override: str) -> str:
    """Set one "key=value" in `content` and return the key."""
    key, separator, value = override.partition("=")
    if not separator or not key:
        raise TrainingError(f"--set {override!r}: write it as key=value, for example lora.rank=8")
    *parents, name = key.split(".")
    for parent in parents:
        below = content.get(parent)
        if not isinstance(below, dict):
            below = content[parent] = {}
        content = below
    try:
        content[name] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise TrainingError(f"--set {override!r}: the value is no valid YAML") from error
    return key


def _explain(problem: Any, kind: type[Settings], file: Path, overridden: set[str]) -> str:
    path = [part for part in problem["loc"] if isinstance(part, str)]
    key = ".".join(path)
    where = f"--set {key}" if key in overridden else str(file)
    if problem["type"] != "extra_forbidden":
        return f"{where}: {key}: {problem['msg']} (found {problem['input']!r})"
    known = _settings_below(kind, path[:-1]).model_fields
    return f"{where}: there is no key {key!r}. The keys here are {', '.join(known)}."


def _settings_below(kind: type[Settings], path: Sequence[str]) -> type[_Settings]:
    """The class of settings that the dotted `path` leads to."""
    current: type[_Settings] = kind
    for name in path:
        annotation = current.model_fields[name].annotation
        options = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else ()
        candidates = [annotation, *options]
        current = next(c for c in candidates if isinstance(c, type) and issubclass(c, _Settings))
    return current
