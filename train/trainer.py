"""A training run, whatever it learns by: `train.sft` and `train.dpo` start it.

The settings name an objective (`train.objectives`); launch, checkpoints, resuming, evaluation,
early stopping, trackers and lineage are the same for all. `docs/training.md` says what carries
loss, in which order rows come, and what a run leaves.
"""

from __future__ import annotations

import argparse
import math
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any, Self
from uuid import uuid4

import torch
from accelerate.utils import broadcast_object_list, gather_object
from deltalake.exceptions import DeltaError
from transformers import get_scheduler
from transformers.utils.logging import disable_progress_bar

from train.config import MAY_CHANGE_ON_RESUME, Settings, changed_keys, load_settings
from train.data import Share, shares
from train.engine import device_of_weights, make_accelerator, make_engine
from train.lineage import Seen, save, tell_lake
from train.loss import accumulate_gradients
from train.model import (
    base_model_sha256,
    check_packing,
    evaluation_mode,
    footprint,
    load_model,
    make_optimizer,
)
from train.objectives import make_objective
from train.prepare import Preparation, open_export, summary
from train.run import RunFolder, copy_model, load_state, save_model
from train.tiny import make_tiny_model
from train.tokenizer import load_tokenizer, tokenizer_sha256
from train.tracking import check_trackers, start_trackers, track
from udfs.errors import TrainingError, TrajlakeError
from udfs.folders import atomic_folder

# A second signal within so many seconds is the first one, passed on by a launcher.
_SAME_SIGNAL_S = 5.0
_LIBRARIES = ("torch", "transformers", "tokenizers", "accelerate", "peft", "bitsandbytes")


class Trainer:
    """One process of a run. `train()` is called once, by every process.

    Args:
        settings: of the run; for a resumed one, those it began with.
        resume: the folder of a run to go on with, or null.

    Raises:
        TrainingError: the run cannot start; the message says why.
    """

    def __init__(self, settings: Settings, resume: Path | None = None) -> None:
        self.settings = settings
        check_trackers(settings.trackers)
        self.accelerator = make_accelerator(settings)
        self._check_launch()
        self.run = RunFolder(resume or settings.output / self._run_name())
        if not resume:
            self.run.check_new()
        self.export = open_export(settings)
        if settings.model.tiny is not None:
            with self.accelerator.local_main_process_first():
                make_tiny_model(Path(settings.model.path), settings.model.tiny)
        self.tokenizer, template_origin = load_tokenizer(settings.model)
        preparation = Preparation(settings, self.export, self.tokenizer, template_origin)
        self.identity = {
            "prepared_key": preparation.key,
            "order_sha256": self.export.order_sha256,
            "base_model_sha256": base_model_sha256(settings.model.path),
            "tokenizer_sha256": tokenizer_sha256(self.tokenizer),
        }
        checkpoint = self._check_resumable() if resume else None
        self.prepared = preparation.run()  # one process works, the others wait
        if self.accelerator.is_local_main_process:
            self.prepared.verify()
        self._say(summary(self.prepared))
        if settings.eval_every and not self.prepared.count("eval"):
            raise TrainingError(
                f"eval_every is set, but {self.prepared.folder} has no rows to evaluate on. Give "
                "the recipe an eval_fraction and export again, or set eval_every to null."
            )
        self.objective = make_objective(
            settings, self.export, self.prepared, self.identity["base_model_sha256"]
        )
        self.total_steps = math.ceil(self.objective.rows / settings.global_batch_size)
        if settings.max_steps is not None:
            self.total_steps = min(self.total_steps, settings.max_steps)

        self.totals: Counter[str] = Counter()
        self.seen = Seen(self.accelerator.process_index)
        self.step = 0
        self.evals = Evals()
        self._load(checkpoint)
        self.objective.begin(
            self.accelerator, self.engine.model, self.run if checkpoint else None, self._shares
        )
        self._open_run(is_new=checkpoint is None)
        start_trackers(self.accelerator, settings, self.run.path, first_step=self.step + 1)

    # --- starting -----------------------------------------------------------------------------

    def _check_launch(self) -> None:
        """The world is the one that was asked for, and the batch can be shared out in it."""
        processes, settings = self.accelerator.num_processes, self.settings
        if settings.world_size not in (None, processes):
            raise TrainingError(
                f"{processes} process(es) run, but world_size is {settings.world_size}. Give the "
                "launcher that number. On CPU: ACCELERATE_USE_CPU=true OMP_NUM_THREADS=1 torchrun "
                f"--standalone --nproc_per_node {settings.world_size} -m {self._module} … "
                "(`accelerate launch --cpu --num_processes` runs one process)."
            )
        if settings.global_batch_size % (processes * settings.micro_batch_size):
            raise TrainingError(
                f"global_batch_size {settings.global_batch_size} cannot be shared by {processes} "
                f"process(es) in micro-batches of {settings.micro_batch_size}: it must be a "
                f"multiple of {processes * settings.micro_batch_size}"
            )

    def _run_name(self) -> str:
        """The configured name, or one from the time of start, the same on every rank."""
        name = self.settings.run or f"{self.settings.export_name}-{datetime.now(UTC):%Y%m%d-%H%M%S}"
        return str(broadcast_object_list([name])[0])

    def _check_resumable(self) -> Path:
        before = self.run.read_manifest()
        if before["status"] == "finished":
            raise TrainingError(f"{self.run.path} has finished: there is nothing to go on with")
        changed = [k for k, value in self.identity.items() if before["identity"].get(k) != value]
        if changed:
            raise TrainingError(
                f"{self.run.path} cannot go on: {', '.join(changed)} differ from what it began "
                "with. Restore the export, base model or tokenizer, or start a new run."
            )
        world_size = before["sessions"][-1]["world_size"]
        is_of_shards = self.settings.objective == "sft" and self.settings.order == "shards"
        if is_of_shards and world_size != self.accelerator.num_processes:
            raise TrainingError(
                f"{self.run.path} has the order `shards`, which is another for "
                f"{self.accelerator.num_processes} process(es) than for the {world_size} it began "
                f"with: rows would be read twice, and others never. Resume with {world_size}."
            )
        return self.run.newest_checkpoint()

    def _load(self, checkpoint: Path | None) -> None:
        settings = self.settings
        if settings.precision == "bfloat16":
            # What autocast leaves in float32, on a GPU, may be multiplied as TF32.
            torch.backends.cuda.matmul.allow_tf32 = True
        torch.manual_seed(settings.seed)  # every rank draws the same first adapter
        model = load_model(settings, device_of_weights(self.accelerator), checkpoint)
        self.footprint = footprint(model)
        optimizer = make_optimizer(settings, model)
        self.scheduler = get_scheduler(
            settings.schedule,
            optimizer,
            num_warmup_steps=settings.warmup_steps,
            num_training_steps=self.total_steps,
        )
        # The scheduler stays ours: a prepared one takes `world_size` steps at a time.
        self.engine = make_engine(self.accelerator, model, optimizer, settings)
        if settings.packing != "none":
            check_packing(self.engine.model)
        if checkpoint:
            state = load_state(checkpoint)
            self.engine.restore(state["optimizer"])
            self.scheduler.load_state_dict(state["scheduler"])
            self.step = state["step"]
            self.totals.update(state["totals"])
            self.evals = Evals(**state["evals"])

    def _open_run(self, is_new: bool) -> None:
        if not self.accelerator.is_main_process:
            return
        session = {
            "first_step": self.step + 1,
            "world_size": self.accelerator.num_processes,
            "distributed": self.accelerator.distributed_type.value,
            "micro_batch_size": self.settings.micro_batch_size,
            "device": str(self.accelerator.device.type),
            "started_at": _now(),
            "versions": {"python": sys.version.split()[0]} | {n: version(n) for n in _LIBRARIES},
        }
        if is_new:
            self.run.create(self.settings)
            self.manifest: dict[str, Any] = {
                "run": self.run.path.name,
                "run_id": uuid4().hex,
                "status": "running",
                "settings": self.settings.model_dump(mode="json"),
                "export": {
                    "recipe": self.settings.recipe,
                    "manifest_sha256": self.export.manifest_sha256,
                    "manifest": {k: v for k, v in self.export.manifest.items() if k != "shards"},
                },
                "identity": self.identity,
                "prepared": {
                    "folder": str(self.prepared.folder),
                    **{name: self.prepared.manifest[name] for name in ("template", "splits")},
                },
                "refused": self.prepared.manifest["refused"],
                "model": self.footprint,
                "order": {
                    "rows": self.objective.rows,
                    "global_batch_size": self.settings.global_batch_size,
                    "total_steps": self.total_steps,
                    "rule": self.objective.order_rule,
                },
                "sessions": [session],
                **self.objective.keep(self.run),
            }
        else:
            self.manifest = self.run.read_manifest()
            self.manifest["status"] = "running"
            self.manifest["sessions"].append(session)
            self.run.forget_after(self.step)
        self.run.write_manifest(self.manifest)

    # --- training -----------------------------------------------------------------------------

    def train(self) -> None:
        """Train to the last step and write the result, or stop at a signal with a checkpoint.

        Raises:
            TrainingError: a loss is no number.
        """
        with StopSignal() as stop:
            stopped = self._take_steps(stop)
        if stopped:
            self._save_checkpoint(status="stopped")
            self._say(
                f"stopped after step {self.step}; go on with: "
                f"accelerate launch -m {self._module} --resume {self.run.path}"
            )
        else:
            self._finish()
        # DDP's reducer must go while the process group still lives: as the group's last owner it
        # would wait, holding the GIL, for gloo threads that need the GIL to end (torch 2.13).
        del self.engine
        self.accelerator.free_memory()
        self.accelerator.end_training()

    def _take_steps(self, stop: StopSignal) -> bool:
        """Train to the last step, or until evaluations stop it; True if a signal came before."""
        progress = Progress(self.step, self.total_steps)
        start = self.step * self.settings.global_batch_size
        steps = range(self.step, self.total_steps)
        order = self.objective.order(self.accelerator.process_index, self.accelerator.num_processes)
        coming = self._shares("train", start, order=order, rows_in_order=self.objective.rows)
        for _, share in zip(steps, coming, strict=False):
            share = self.objective.complete(share, "train")
            numbers = self._sum_over_ranks(
                stop=stop.received,
                size=self.objective.size(share),
                **share.counts,
            )
            if numbers.pop("stop"):
                return True
            line = self._take_step(share, numbers, progress)
            if self.accelerator.is_main_process:
                self.run.append_metrics(line)
                progress.show(line)
            track(self.accelerator, "train", line)
            is_due = self.step % self.settings.checkpoint_every == 0
            if self.settings.eval_every and self.step % self.settings.eval_every == 0:
                is_due |= self._evaluate() and self._keeps_best
                if self.evals.without_gain == self.settings.stop_after_evals_without_gain:
                    return False
                progress.seconds()  # an evaluation is no part of the next step
            if is_due:
                self._save_checkpoint()
        return False

    def _shares(self, split: str, start: int, **options: Any) -> Iterator[Share]:
        batch_size = options.pop("global_batch_size", self.settings.global_batch_size)
        return shares(
            self.prepared,
            split,
            start=start,
            global_batch_size=batch_size,
            micro_batch_size=self.settings.micro_batch_size,
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
            pad_id=self.tokenizer.pad_token_id,
            is_flat=self.settings.model.attention == "flash_attention_2",
            **options,
        )

    def _take_step(
        self, share: Share, numbers: dict[str, float], progress: Progress
    ) -> dict[str, Any]:
        """One optimiser step on a share; the line for the metrics. Same numbers on every rank."""
        # Dropout is a function of the row, so there is no random state to save.
        torch.manual_seed(self.settings.seed + share.first_row + self.accelerator.process_index)
        learning_rate = self.scheduler.get_last_lr()[0]
        size = numbers.pop("size")
        mine = accumulate_gradients(self.engine, share.batches, size, self.objective.measure)
        loss = float(self.accelerator.reduce(mine.loss, "sum"))
        norm = self.engine.step()
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise TrainingError(
                f"loss {loss}, gradient norm {norm} at step {share.step} (rows {share.first_row} "
                f"to {share.next_row - 1}). Try a lower learning_rate, or a longer warm-up; the "
                "last checkpoint is kept."
            )
        self.scheduler.step()
        self.step = share.step
        self.seen.add(share, mine.segment_nll)
        counts = {name: int(number) for name, number in numbers.items()}
        self.totals.update(counts)
        return {
            "step": share.step,
            "first_row": share.first_row,
            "next_row": share.next_row,
            "loss": loss,
            **self._means(mine.sums, size),
            "gradient_norm": norm,
            "learning_rate": learning_rate,
            **counts,
            "seconds": progress.seconds(),
        }

    # --- saving -------------------------------------------------------------------------------

    def _save_checkpoint(self, status: str = "running") -> None:
        self._save_lineage()
        weights = self.engine.weights()
        optimizer = self.engine.optimizer_state()
        if self.accelerator.is_main_process:
            state = {
                "step": self.step,
                "optimizer": optimizer,
                "scheduler": self.scheduler.state_dict(),
                "totals": dict(self.totals),
                "evals": asdict(self.evals),
            }
            keep = self.evals.best["step"] if self._keeps_best and self.evals.best else None
            self.run.save_checkpoint(self.step, self.engine.module, weights, state, keep)
            self._write_manifest(status)
            self._tell_lake()
        self.accelerator.wait_for_everyone()

    def _save_lineage(self) -> None:
        tables = gather_object([self.seen.take()])
        if self.accelerator.is_main_process:
            save(self.run, tables)

    def _tell_lake(self) -> None:
        """Where that fails, training goes on: the run's folder has it all, for a later time."""
        try:
            problem = None if tell_lake(self.run) else "there is none here"
        except (TrajlakeError, DeltaError) as error:
            problem = str(error)
        if problem:
            self._say(
                f"the lake does not know of this run ({problem}); where it is, use "
                f"`python -m train.lineage {self.run.path}`"
            )

    @property
    def _module(self) -> str:
        """What is launched."""
        return f"train.{self.settings.objective}"

    @property
    def _keeps_best(self) -> bool:
        """The result is what the best evaluation saw, not what the last step left."""
        return self.settings.stop_after_evals_without_gain is not None

    def _finish(self) -> None:
        self._save_result()  # before anything that may go wrong
        is_evaluated = self.evals.last is not None and self.evals.last["step"] == self.step
        if self.prepared.count("eval") and not is_evaluated:
            self._evaluate()
        self._save_lineage()
        evaluation = self.evals.last
        if self._keeps_best and self.evals.best != self.evals.last:
            evaluation = self.evals.best
            assert evaluation is not None
            self._save_result(best_step=evaluation["step"])
        if self.accelerator.is_main_process:
            self._write_manifest(
                "finished",
                stopped_early=self.step < self.total_steps,
                eval=evaluation,
                result=self._result.name,
            )
            self._tell_lake()
        if self.step < self.total_steps:
            self._say(
                f"stopped early: {self.evals.without_gain} evaluations without gain since step "
                f"{evaluation and evaluation['step']}"
            )
        self._say(f"finished: {self._result}")

    @property
    def _result(self) -> Path:
        return self.run.path / ("model" if self.settings.method == "full" else "adapter")

    def _save_result(self, best_step: int | None = None) -> None:
        """Write the model as it is now, or as it was at a step that has a checkpoint."""
        weights = self.engine.weights() if best_step is None else {}
        if self.accelerator.is_main_process:
            with atomic_folder(self._result) as staging:
                if best_step is None:
                    save_model(self.engine.module, weights, staging)
                else:
                    copy_model(self.run.checkpoint(best_step), staging)
                self.tokenizer.save_pretrained(staging)
        self.accelerator.wait_for_everyone()

    def _evaluate(self) -> bool:
        """Note the loss over the eval split, at this step; whether it is the best so far."""
        began = time.monotonic()
        size = 0.0
        counts: Counter[str] = Counter()
        total = torch.zeros((), dtype=torch.float64, device=self.accelerator.device)
        sums = total.new_zeros(len(self.objective.sums))
        with evaluation_mode(self.engine.model):
            for share in self._shares("eval", 0):
                share = self.objective.complete(share, "eval")
                for batch in share.batches:
                    measured = self.objective.measure(
                        self.engine.model,
                        {name: tensor.to(total.device) for name, tensor in batch.items()},
                    )
                    total += measured.loss
                    sums += measured.sums
                size += self.objective.size(share)
                counts.update(share.counts)
        numbers = self._sum_over_ranks(loss=float(total), size=size, **counts)
        loss = numbers["loss"] / numbers["size"]
        if not math.isfinite(loss):
            raise TrainingError(
                f"eval loss {loss} after step {self.step}. Try a lower learning_rate, or a longer "
                "warm-up; the last checkpoint is kept."
            )
        line = {"step": self.step, "loss": loss} | self._means(sums, numbers["size"])
        line |= {name: int(numbers[name]) for name in counts}
        line["seconds"] = round(time.monotonic() - began, 4)
        is_best = self.evals.add(line)
        if self.accelerator.is_main_process:
            self.run.append_eval(line)
        track(self.accelerator, "eval", line)
        self._say(f"step {self.step}/{self.total_steps}  eval {_told(line)}")
        return is_best

    def _write_manifest(self, status: str, **more: Any) -> None:
        self.manifest |= {
            "status": status,
            "written_at": _now(),
            "step": self.step,
            "next_row": min(self.step * self.settings.global_batch_size, self.objective.rows),
            "totals": dict(self.totals),
            "best_eval": self.evals.best,
            **more,
        }
        self.run.write_manifest(self.manifest)

    # --- over the ranks -----------------------------------------------------------------------

    def _means(self, sums: torch.Tensor, size: float) -> dict[str, float]:
        """What the objective summed beside the loss, by name; the same on every rank."""
        names = self.objective.sums
        if not names:
            return {}
        everywhere = self.accelerator.reduce(sums, "sum") / size
        return dict(zip(names, everywhere.tolist(), strict=True))

    def _sum_over_ranks(self, **numbers: float) -> dict[str, float]:
        mine = torch.tensor(
            list(numbers.values()), dtype=torch.float64, device=self.accelerator.device
        )
        return dict(zip(numbers, self.accelerator.reduce(mine, "sum").tolist(), strict=True))

    def _say(self, text: str) -> None:
        if self.accelerator.is_main_process:
            print(text, flush=True)


@dataclass
class Evals:
    """What evaluations have found so far; lines of `evals.jsonl`. Part of a checkpoint."""

    last: dict[str, Any] | None = None
    best: dict[str, Any] | None = None  # the lowest loss, and of equal ones the first
    without_gain: int = 0  # evaluations since the best

    def add(self, line: dict[str, Any]) -> bool:
        """Note one more; whether it is the best."""
        self.last = line
        is_best = self.best is None or line["loss"] < self.best["loss"]
        if is_best:
            self.best = line
        self.without_gain = 0 if is_best else self.without_gain + 1
        return is_best


class StopSignal:
    """Within its block, remembers a SIGTERM or Ctrl-C: the run then stops between two steps.

    A second one of the same kind has its usual effect, if it comes later than `_SAME_SIGNAL_S`:
    a signal to a process group comes directly, and once more from a launcher that passes it on.
    """

    def __init__(self) -> None:
        self.received = False
        self._received_at = 0.0

    def __enter__(self) -> Self:
        self._before = {n: signal.signal(n, self._receive) for n in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self.received:
            self.received, self._received_at = True, now
        elif now - self._received_at > _SAME_SIGNAL_S:
            signal.signal(number, self._before[signal.Signals(number)])
            os.kill(os.getpid(), number)


class Progress:
    """Prints where a run stands, at most once a second."""

    def __init__(self, first_step: int, total_steps: int) -> None:
        self._first_step = first_step
        self._total_steps = total_steps
        self._began = self._step_ended = time.monotonic()
        self._shown = -math.inf
        self._trained_tokens = 0

    def seconds(self) -> float:
        """Seconds since the last call, or since the beginning: one step, its data included."""
        before, self._step_ended = self._step_ended, time.monotonic()
        return round(self._step_ended - before, 4)

    def show(self, line: dict[str, Any]) -> None:
        """Print the step of a metrics line. Tokens are those that carried loss."""
        self._trained_tokens += line["trained_tokens"]
        step, elapsed = line["step"], self._step_ended - self._began
        if step < self._total_steps and self._step_ended - self._shown < 1:
            return
        self._shown = self._step_ended
        left = elapsed / (step - self._first_step) * (self._total_steps - step)
        print(
            f"step {step}/{self._total_steps}  {_told(line)}  "
            f"{self._trained_tokens / elapsed:,.0f} trained tokens/s  {left:.0f} s left",
            flush=True,
        )


def _told(line: dict[str, Any]) -> str:
    """The loss of a line, and how many pairs are told apart if it is of pairs."""
    told = f"loss {line['loss']:.4f}"
    if "reward_accuracy" in line:
        told += f"  accuracy {line['reward_accuracy']:.0%}  margin {line['reward_margin']:.3f}"
    return told


def command(objective: str, description: str, arguments: Sequence[str] | None) -> int:
    """What `python -m train.<objective>` does; the exit status."""
    module = f"train.{objective}"
    parser = argparse.ArgumentParser(prog=module, description=description)
    start = parser.add_mutually_exclusive_group(required=True)
    start.add_argument("--config", type=Path, help="a YAML file: begin a new run")
    start.add_argument("--resume", type=Path, help="a run's folder: go on from its last checkpoint")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override one setting"
    )
    parser.add_argument(
        "--go-on",
        action="store_true",
        help="with --config: if the run was begun before, go on with it; if it has finished, end",
    )
    options = parser.parse_args(arguments)
    disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        resume = options.resume
        if resume:
            settings = _settings_of(resume, options.set)
        else:
            settings = load_settings(options.config, options.set)
        if settings.objective != objective:
            raise TrainingError(
                f"{options.resume or options.config} has the objective {settings.objective}: "
                f"launch it by train.{settings.objective}, not {module}"
            )
        if options.go_on and not resume:
            begun = _begun(settings)
            if begun and begun.is_finished():
                print(f"finished before: {begun.path}", flush=True)
                return 0
            resume = begun and begun.path
        Trainer(settings, resume=resume).train()
    except TrajlakeError as error:
        rank = os.environ.get("RANK")
        print(f"error{f' (rank {rank})' if rank else ''}: {error}", file=sys.stderr, flush=True)
        return 1
    return 0


def _begun(settings: Settings) -> RunFolder | None:
    """The run of this name, if it can be gone on with or has finished. What is left of one that
    ended before its first checkpoint is removed: nothing was learned.

    Every process looks before the first one has made anything, since that waits for all of them.

    Raises:
        TrainingError: the run has no name, or what is there was trained otherwise.
    """
    if settings.run is None:
        raise TrainingError("--go-on looks for a run by its name. Give it one by --set run=<name>.")
    run = RunFolder(settings.output / settings.run)
    is_kept = run.is_finished() or run.has_checkpoint()
    if not is_kept and (int(os.environ.get("RANK", "0")) or not run.config.exists()):
        return None
    changed = changed_keys(load_settings(run.config), settings) - MAY_CHANGE_ON_RESUME
    if changed:
        raise TrainingError(
            f"{run.path} is a run with another {', '.join(sorted(changed))}. Give this one another "
            "name by --set run=<name>, or the settings that one began with."
        )
    if is_kept:
        return run
    run.remove()
    return None


def _settings_of(run: Path, overrides: Sequence[str]) -> Settings:
    """The settings that a run began with, and overrides that leave its result as it is."""
    config = RunFolder(run).config
    before = load_settings(config)
    settings = load_settings(config, overrides)
    refused = changed_keys(before, settings) - MAY_CHANGE_ON_RESUME
    if refused:
        raise TrainingError(
            f"a run goes on with the settings it began with; {', '.join(sorted(refused))} cannot "
            f"change. On resume only {', '.join(sorted(MAY_CHANGE_ON_RESUME))} can."
        )
    return settings


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
