"""Checkpoints from which training goes on to the bit, and which are either right or refused.

    checkpoints/step_000200.ckpt          weights, optimizer, schedule, loops, callbacks, random numbers
    checkpoints/step_000200.ckpt.sha256   its checksum, as `sha256sum --check` reads it
    checkpoints/last.ckpt                 another name of the newest

They are taken where nothing is half done: an accumulation window has ended, its figures are logged, and a validation that
falls on the same step is over. What is resumed there goes on as if it had never stopped: the data are read by no workers,
so that all that goes on is in these files.
"""

import hashlib
import io
import os
import random
import shutil
import signal
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.fabric.plugins import CheckpointIO

from vla_mini import files
from vla_mini.training.selection import BestPolicy

SUFFIX = ".ckpt"


class WholeFiles(CheckpointIO):
    """How Lightning writes and reads a checkpoint: whole or not at all, and without running what is in it. It says in which
    `run` it was taken (provenance.identity)."""

    def __init__(self, run: str = "") -> None:
        self.run = run

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        content = io.BytesIO()  # so that what is wrong with the disk is said by Python, and the checksum is of what was meant
        torch.save(checkpoint | {"run": self.run}, content)
        Path(path).parent.mkdir(exist_ok=True)
        with files.replacing(Path(path)) as temporary:
            temporary.write_bytes(content.getbuffer())
        checksum = hashlib.sha256(content.getbuffer()).hexdigest()
        files.write_text(_checksum_file(Path(path)), f"{checksum}  {Path(path).name}\n")

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = True) -> dict[str, Any]:
        return torch.load(path, map_location=map_location, weights_only=True)

    def remove_checkpoint(self, path: Any) -> None:
        _checksum_file(Path(path)).unlink(missing_ok=True)
        Path(path).unlink(missing_ok=True)


class RandomNumbers(Callback):
    """Comes first: random numbers go on where the checkpoint left them, before anybody draws or notes one. Each process has
    its own."""

    def __init__(self) -> None:
        self._restored: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        name, keys, *rest = np.random.get_state()
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        numpy = [name, keys.tolist(), *rest]
        state = {"torch": torch.get_rng_state(), "cuda": cuda, "numpy": numpy, "python": random.getstate()}
        states: list[Any] = [state]
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            states = [None] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(states, state)
        return {"processes": states}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._restored = state

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if self._restored is None:
            return
        state, self._restored = self._restored["processes"][trainer.global_rank], None
        torch.set_rng_state(state["torch"])
        if state["cuda"]:
            torch.cuda.set_rng_state_all(state["cuda"])
        np.random.set_state(tuple(state["numpy"]))
        version, numbers, gauss = state["python"]
        random.setstate((version, tuple(numbers), gauss))


class Checkpoints(Callback):
    """Comes last: saves every `every_n_steps` optimizer steps, wherever the best policy so far was found, and at the end.

    The newest `keep` stay, and the best one. SIGTERM and SIGINT are noted, and heeded where a checkpoint can be taken: then
    training ends, with 143 or 130 as the exit code. A second signal stops at once.
    """

    def __init__(self, folder: Path, *, every_n_steps: int, keep: int, best: BestPolicy) -> None:
        self.folder, self.every_n_steps, self.keep, self.best = folder, every_n_steps, keep, best
        self._step = self._saved_at = 0
        self._waits = False
        self._signal: int | None = None
        self._heard_before: dict[int, Any] = {}

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._step = self._saved_at = trainer.global_step
        if trainer.is_global_zero and threading.current_thread() is threading.main_thread():
            self._heard_before = {number: signal.signal(number, self._hear) for number in (signal.SIGINT, signal.SIGTERM)}

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        if trainer.global_step == self._step:
            return  # within a window: its first micro-batches' gradients would be lost
        self._step = trainer.global_step
        loop = trainer.fit_loop.epoch_loop
        self._waits = loop._should_check_val_fx(trainer.fit_loop._data_fetcher)
        if not self._waits:
            self._at_rest(trainer, module)

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        if self._waits:
            self._waits = False
            self._at_rest(trainer, module)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._at_rest(trainer, module, ended=True)

    def _at_rest(self, trainer: Trainer, module: LightningModule, *, ended: bool = False) -> None:
        if trainer.global_step == trainer.max_steps and not ended:
            return  # what is done at the end belongs to this step: a checkpoint without it would never be resumed to do it
        stop = self._is_told_to_stop(trainer)
        due = ended or trainer.global_step % self.every_n_steps == 0
        if self.best.unsaved or ((stop or due) and self._saved_at != trainer.global_step):
            self._save(trainer, module)
        if ended:
            self._leave_signals()
            stop = stop or self._is_told_to_stop(trainer)  # while that was saved
        if stop:
            number = signal.Signals(self._signal or signal.SIGTERM)
            if trainer.is_global_zero:
                again = f"python scripts/train.py resume={self.folder.parent}"
                print(f"\nstopped by {number.name} after step {trainer.global_step}: {again} goes on", file=sys.stderr)
            raise SystemExit(128 + number)

    def _is_told_to_stop(self, trainer: Trainer) -> bool:
        told = self._signal is not None
        return told if trainer.world_size == 1 else trainer.strategy.reduce_boolean_decision(told, all=False)

    def _save(self, trainer: Trainer, module: LightningModule) -> None:
        """First the figures, then the checkpoint, then the policy: whoever resumes from there finds the figures, and saves the
        same policy again."""
        self._saved_at = trainer.global_step
        for logger in trainer.loggers:
            logger.save()
        path = self.folder / f"step_{trainer.global_step:06d}{SUFFIX}"
        trainer.save_checkpoint(path)
        if trainer.is_global_zero:
            _name_last(path)
            best = self.best.best
            kept = {step for step, _ in numbered(self.folder)[: self.keep]} | ({int(best["step"])} if best else set())
            for step, old in numbered(self.folder):
                if step not in kept:
                    trainer.strategy.remove_checkpoint(old)
        self.best.save(trainer, module)

    def _hear(self, number: int, frame: Any) -> None:
        if self._signal is None:
            self._signal = number
            said = f"\n{signal.Signals(number).name}: finishing this step (once more stops at once)\n"
            os.write(2, said.encode())  # print fails where the signal came within a print
        else:
            self._leave_signals()
            signal.raise_signal(number)

    def _leave_signals(self) -> None:
        """To the command, which ends at once."""
        for number, handler in self._heard_before.items():
            signal.signal(number, handler)


def numbered(folder: Path) -> list[tuple[int, Path]]:
    """(step, path) of the checkpoints in `folder`, the newest first."""
    found = [(path.stem.removeprefix("step_"), path) for path in folder.glob(f"step_*{SUFFIX}")]
    return sorted(((int(step), path) for step, path in found if step.isdecimal()), reverse=True)


def newest_good(folder: Path, *, run: str | None = None) -> tuple[int, Path | None]:
    """(step, path) of the newest checkpoint that is what was written, in this `run` if one is named.

    A warning names each that is not. (0, None) where none was ever finished; ValueError where none is good.
    """
    faults = []
    for step, path in numbered(folder):
        if (fault := _fault(step, path, run)) is None:
            return step, path
        warnings.warn(f"{path} {fault}: going back to the one before it", stacklevel=2)
        faults.append(f"{path.name} {fault}")
    if any(_checksum_file(path).is_file() for _, path in numbered(folder)) or (folder.parent / "policy").is_dir():
        raise ValueError(": ".join([f"{folder} holds no good checkpoint to go on from", *faults[:1]]))
    return 0, None


def _fault(step: int, path: Path, run: str | None) -> str | None:
    """What is wrong with a checkpoint, or None."""
    checksum = _checksum_file(path)
    try:
        if not checksum.is_file():
            return "was not finished"
        if checksum.read_bytes() != f"{files.digest(path)}  {path.name}\n".encode():
            return "is damaged: its checksum is another"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        step_saved, run_saved = saved["global_step"], saved["run"]
    except Exception as error:  # whatever a stranger's file makes of the loader
        return f"is no checkpoint ({type(error).__name__})"
    if step_saved != step:
        return f"is the one of step {step_saved}"
    return None if run in (None, run_saved) else "was taken with other settings or other data than config.yaml names"


def clear_up(run_dir: Path, *, step: int) -> None:
    """Before a run goes on after `step`: take away what kills left half written, and what was said of its end. Checkpoints that
    are newer are not good, or it would be gone on from them: they are put aside, as *.bad."""
    for partial in [*run_dir.rglob(".*.partial-*")]:
        shutil.rmtree(partial, ignore_errors=True) if partial.is_dir() else partial.unlink(missing_ok=True)
    for number, path in numbered(run_dir / "checkpoints"):
        if number > step:
            for file in (path, _checksum_file(path)):
                if file.exists():
                    file.replace(file.with_name(f"{file.name}.bad"))
            path.with_name(f"last{SUFFIX}").unlink(missing_ok=True)  # the next one will be
    for stale in ("report.html", "evaluation/metrics.json"):
        (run_dir / stale).unlink(missing_ok=True)


def _checksum_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _name_last(path: Path) -> None:
    """`last.ckpt`: a link to the newest, or a copy where the file system knows no links."""
    with files.replacing(path.with_name(f"last{SUFFIX}")) as temporary:
        try:
            os.link(path, temporary)
        except OSError:
            shutil.copyfile(path, temporary)
