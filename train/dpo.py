"""Preference training (DPO) of a causal model on an export of pairs.

    trajlake export default --layout pairs
    accelerate launch -m train.dpo --config train/configs/dpo-tiny.yaml
    accelerate launch -m train.dpo --config train/configs/dpo-tiny.yaml --set beta=0.5
    accelerate launch -m train.dpo --resume runs/<run>

A pair is two runs of an agent, of which the chosen one becomes likelier against the rejected one,
measured from the model as it was before (Rafailov et al. 2023, "Direct Preference Optimization").
Only what the agent wrote after the two part carries loss. All else is as in `train.sft`: the launch
in several processes, checkpoints, evaluation, and what a run leaves. `docs/training.md` has it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from train.trainer import command


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; the exit status."""
    return command("dpo", "Train a model on preference pairs.", arguments)


if __name__ == "__main__":
    sys.exit(main())
