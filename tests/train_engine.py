"""A model as the trainer drives it, in this process."""

from __future__ import annotations

from accelerate import Accelerator
from torch import nn
from torch.optim import AdamW

from train.config import SftSettings
from train.engine import Engine, make_engine


def engine_of(model: nn.Module) -> Engine:
    settings = SftSettings(recipe="default", model={"path": "none"})
    return make_engine(Accelerator(cpu=True), model, AdamW(model.parameters()), settings)
