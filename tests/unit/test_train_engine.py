"""Which configs of DeepSpeed are taken."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("torch", reason="the training extra is not installed")
pytest.importorskip("deepspeed", reason="the extra deepspeed is not installed")

from accelerate.utils import DeepSpeedPlugin

from train.config import SftSettings
from train.engine import check_deepspeed
from udfs.errors import TrainingError


def settings(method: str) -> SftSettings:
    return SftSettings(recipe="default", model={"path": "none"}, method=method)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"optimizer": {"type": "Adam"}}, "has a section 'optimizer'"),
        ({"scheduler": {"type": "WarmupLR"}}, "has a section 'scheduler'"),
        ({"bf16": {"enabled": True}}, "switches bf16 on"),
        ({"zero_optimization": {"stage": 0}}, "asks for ZeRO's stage 0"),
        (
            {"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme"}}},
            "moves param to NVMe",
        ),
    ],
)
def test_what_the_settings_say_is_not_said_again(config: dict[str, Any], said: str) -> None:
    plugin = DeepSpeedPlugin(hf_ds_config={"zero_optimization": {"stage": 2}} | config)

    with pytest.raises(TrainingError, match=said):
        check_deepspeed(plugin, settings("lora"))


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_parts_may_be_on_the_cpu(stage: int) -> None:
    zero = {"stage": stage, "offload_optimizer": {"device": "cpu"}}

    check_deepspeed(DeepSpeedPlugin(hf_ds_config={"zero_optimization": zero}), settings("full"))


def test_4_bit_weights_are_not_divided() -> None:
    plugin = DeepSpeedPlugin(hf_ds_config={"zero_optimization": {"stage": 3}})

    with pytest.raises(TrainingError, match="does not divide weights of 4 bits"):
        check_deepspeed(plugin, settings("qlora"))
