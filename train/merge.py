"""Base model and adapter as one model folder, which any server loads.

    python -m train.merge --run runs/<run>
    python -m train.merge --run runs/<run> --out /models/mine

The adapter goes into the base's own weights, at the precision they are published in. That holds
for the method `qlora` too: what it trained beside were the weights rounded to 4 bits, and rounding
the sum again would lose most of what was learned. So a merged model differs from the one that was
trained by the base's rounding.

The chat template comes along as a server needs it: without the marks of what the agent wrote,
which are for training (`{% generation %}`), and which servers other than transformers' do not know.
`docs/acting.md` has the rest.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from train.model import base_model_sha256
from train.run import RunFolder
from train.tokenizer import describe_calls
from udfs.errors import TrainingError
from udfs.folders import atomic_folder

_MARK = re.compile(r"{%([-+]?)\s*((?:end)?generation)\s*([-+]?)%}")

_CARD = """\
---
library_name: transformers
base_model: {base}
{license_yaml}tags:
- agent
- tool-use
---
# {run}

`{base}` with the adapter of the run `{run}` merged into it by Trajlake: method `{method}`, \
{steps} steps over {seen}, {trained_tokens:,} trained tokens.

{precision}

| made from | |
|---|---|
| export | recipe `{recipe}`, manifest sha256 `{manifest_sha256}` |
| base model | `{base}`, sha256 `{base_sha256}` |

## Licences of the training data

{licenses}

What the base model's licence asks for holds as well.
"""


def merge(run: Path, out: Path | None = None) -> Path:
    """Write base and adapter of a finished run as one model folder, whole or not at all.

    Args:
        run: the run's folder.
        out: where the model goes; null: `<run>/merged`.

    Raises:
        TrainingError: there is no finished run, nothing to merge, another base model than the run
            was trained on, or something at `out`.
    """
    manifest = RunFolder(run).read_manifest()
    out = out or run / "merged"
    settings = manifest["settings"]
    if settings["method"] == "full":
        raise TrainingError(
            f"{run} trained all weights (method full), so there is nothing to merge: the model is "
            f"{run / 'model'}. Serve it as it is: python -m train.serve {run}"
        )
    if manifest["status"] != "finished":
        raise TrainingError(
            f"{run} is {manifest['status']} and has no result yet. Go on with it: "
            f"accelerate launch -m train.{settings.get('objective', 'sft')} --resume {run}"
        )
    if out.exists():
        raise TrainingError(f"{out} exists. Move it away, or give --out another folder.")
    base = settings["model"]["path"]
    adapter = run / manifest["result"]
    try:
        found = base_model_sha256(base)
        model: Any = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
        tokenizer: Any = AutoTokenizer.from_pretrained(adapter)
    except (OSError, ValueError) as error:
        raise TrainingError(
            f"cannot load what {run} was made from: {error}\nThe base model has to be at {base}, "
            "as the run found it; run the command from the same folder."
        ) from error
    if found != manifest["identity"]["base_model_sha256"]:
        raise TrainingError(
            f"the model at {base} is not the one that {run} was trained on (sha256 {found}, then "
            f"{manifest['identity']['base_model_sha256']}). Restore it."
        )
    merged = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    prepare_tokenizer(tokenizer)
    with atomic_folder(out) as staging:
        merged.save_pretrained(staging)
        tokenizer.save_pretrained(staging)
        (staging / "README.md").write_text(_card(manifest, found), encoding="utf-8")
    return out


def prepare_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    """Give a tokenizer what a server needs of it.

    The template loses its marks for training; how tool calls look in it is kept.

    Raises:
        TrainingError: without the marks the template is none.
    """
    describe_calls(tokenizer)
    tokenizer.chat_template = without_marks(str(tokenizer.chat_template))


def without_marks(template: str) -> str:
    """A chat template without `{% generation %}`: each mark becomes a comment.

    A comment trims spaces and line breaks as the tag did, so every conversation reads as before.

    Raises:
        TrainingError: what is left is no Jinja template.
    """
    plain = _MARK.sub(r"{#\1 \2 \3#}", template)
    # The tags that transformers' environment knows, without the one that is taken out.
    environment = Environment(extensions=["jinja2.ext.loopcontrols"])
    try:
        environment.parse(plain)
    except Exception as error:
        raise TrainingError(
            f"without its generation marks the chat template cannot be read: {error}. Give the "
            "run's `model.chat_template` a form that plain Jinja reads."
        ) from error
    return plain


def _card(manifest: Mapping[str, Any], base_sha256: str) -> str:
    export = manifest["export"]
    settings, totals = manifest["settings"], manifest["totals"]
    licenses: Mapping[str, int] = export["manifest"].get("licenses") or {}
    named = sorted(name for name in licenses if name != "null")
    return _CARD.format(
        run=manifest["run"],
        base=settings["model"]["path"],
        base_sha256=base_sha256,
        method=settings["method"],
        steps=manifest["step"],
        seen=f"{totals['rows']:,} preference pairs (DPO)"
        if settings.get("objective") == "dpo"
        else f"{totals['segments']:,} samples",
        trained_tokens=totals["trained_tokens"],
        recipe=export["recipe"],
        manifest_sha256=export["manifest_sha256"],
        license_yaml="license: other\n" if named else "",
        licenses="\n".join(
            f"- {'not known' if name == 'null' else name}: {count:,} trajectories"
            for name, count in licenses.items()
        )
        or "The export's manifest says nothing about licences.",
        precision=(
            "The adapter was trained beside weights rounded to 4 bits and is merged into the "
            "unrounded ones, so answers can differ a little from those of the training run."
            if settings["method"] == "qlora"
            else "The adapter is merged into the base's weights as they are published."
        ),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; the exit status."""
    parser = argparse.ArgumentParser(
        prog="train.merge", description="Merge a run's adapter into its base model."
    )
    parser.add_argument("--run", type=Path, required=True, help="the folder of a finished run")
    parser.add_argument("--out", type=Path, help="the folder to write; default: <run>/merged")
    options = parser.parse_args(arguments)
    disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        out = merge(options.run, options.out)
    except TrainingError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"merged: {out}\nserve it: python -m train.serve {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
