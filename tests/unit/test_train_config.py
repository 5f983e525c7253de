"""The settings of a training run."""

from __future__ import annotations

from pathlib import Path

import pytest

from udfs.errors import TrainingError

pytest.importorskip("yaml", reason="the training extra is not installed")

from train.config import DpoSettings, SftSettings, changed_keys, load_settings

CONFIGS = Path(__file__).parents[2] / "train" / "configs"
TINY = CONFIGS / "tiny.yaml"


@pytest.mark.parametrize(
    ("name", "kind"), [("tiny.yaml", SftSettings), ("dpo-tiny.yaml", DpoSettings)]
)
def test_a_shipped_config_names_every_setting(
    name: str, kind: type[SftSettings] | type[DpoSettings]
) -> None:
    import yaml

    written = yaml.safe_load((CONFIGS / name).read_text())

    assert set(written) == set(kind.model_fields) - {"output"}
    assert isinstance(load_settings(CONFIGS / name), kind)
    assert load_settings(CONFIGS / name).model.tiny is not None


def test_a_config_without_an_objective_is_one_of_samples(tmp_path: Path) -> None:
    config = tmp_path / "old.yaml"
    config.write_text(TINY.read_text().replace("objective: sft", ""))

    assert load_settings(config) == load_settings(TINY)


def test_an_override_reaches_a_nested_setting() -> None:
    settings = load_settings(TINY, ["lora.rank=4", "learning_rate=3e-4", "max_steps=null"])

    assert settings.lora.rank == 4
    assert settings.learning_rate == 3e-4
    assert settings.max_steps is None
    assert changed_keys(load_settings(TINY), settings) == {"lora", "learning_rate", "max_steps"}


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("lora.rnk=4", "--set lora.rnk: there is no key 'lora.rnk'. The keys here are rank, alpha"),
        ("lerning_rate=1", "The keys here are recipe, run, output"),
        ("model.tiny.width=3", "The keys here are vocab_size, hidden_size, layers"),
        (
            "learning_rate=fast",
            "--set learning_rate: learning_rate: Input should be",
        ),
        ("global_batch_size=0", "greater than 0 (found 0)"),
        ("method=magic", "'qlora', 'lora' or 'full' (found 'magic')"),
        ("max_steps", "write it as key=value"),
        ("stop_after_evals_without_gain=2", "it counts evaluations: set eval_every too"),
        ("run=../elsewhere", "run"),
    ],
)
def test_a_wrong_override_is_refused_by_name(override: str, said: str) -> None:
    with pytest.raises(TrainingError) as error:
        load_settings(TINY, [override])
    assert said in str(error.value)


def test_an_unknown_key_in_a_file_names_the_file(tmp_path: Path) -> None:
    config = tmp_path / "mine.yaml"
    config.write_text(TINY.read_text() + "batch_size: 8\n")

    with pytest.raises(TrainingError, match=r"mine\.yaml: there is no key 'batch_size'"):
        load_settings(config)


@pytest.mark.parametrize(
    ("content", "said"), [("- a\n", "must hold `key: value` lines"), ("a: [", "no valid YAML")]
)
def test_a_file_that_holds_no_settings_is_refused(tmp_path: Path, content: str, said: str) -> None:
    config = tmp_path / "mine.yaml"
    config.write_text(content)

    with pytest.raises(TrainingError, match=said):
        load_settings(config)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="there is no config file"):
        load_settings(tmp_path / "none.yaml")
