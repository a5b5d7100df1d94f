"""Closed-loop success during training; the policy that did best is the one that is saved."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from torch import nn

from vla_mini.evaluation.rollout import rollout
from vla_mini.training.average import judged
from vla_mini.training.loggers import log
from vla_mini.training.window import Stopwatch


class BestPolicy(Callback):
    """Plays `episodes` selection scenes every `every_n_steps` optimizer steps and at the end, and keeps the policy whose
    success is higher than that of all before it: ties go to the earlier one.

    The scenes are of the split `seen` alone and of a purpose of their own: held-out words never choose a policy. With
    `every_n_steps` = 0 nothing is played and the last policy is the best. It stays `unsaved` until `Checkpoints`, which comes
    later, has taken a checkpoint and calls `save`.
    """

    def __init__(
        self, folder: Path, *, env_id: str, episodes: int, every_n_steps: int, seed: int, stopwatch: Stopwatch
    ) -> None:
        self.folder, self.env_id, self.episodes, self.seed = folder, env_id, episodes, seed
        self.every_n_steps, self.stopwatch = every_n_steps, stopwatch
        self.best: dict[str, float] | None = None
        self.unsaved = False
        self._played_at = 0

    def on_fit_start(self, trainer: Trainer, module: LightningModule) -> None:
        self.save(trainer, module)  # resumed: the process may have ended before this was done

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        if self.every_n_steps and trainer.global_step % self.every_n_steps == 0:
            self._play(trainer, module)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        if self.every_n_steps:
            self._play(trainer, module)
        else:
            self.unsaved = True

    def save(self, trainer: Trainer, module: LightningModule) -> None:
        if self.unsaved and trainer.is_global_zero:
            judged(trainer, module).save_pretrained(self.folder)
        self.unsaved = False

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "unsaved": self.unsaved, "played_at": self._played_at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best, self.unsaved, self._played_at = state["best"], state["unsaved"], state["played_at"]

    def _play(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.global_step == self._played_at:
            return
        self._played_at = trainer.global_step
        seconds = self.stopwatch.seconds
        # On the first rank alone; what it found, the others have to know, too.
        success = trainer.strategy.broadcast(self._success_rate(trainer, module) if trainer.is_global_zero else None)
        if self.best is None or success > self.best["success_rate"]:
            self.best = {"success_rate": success, "step": trainer.global_step, "seconds": seconds}
            self.unsaved = True

    def _success_rate(self, trainer: Trainer, module: LightningModule) -> float:
        policy = judged(trainer, module)
        with self.stopwatch.paused(), evaluating(policy):
            options = {"purpose": "selection", "seed": self.seed, "split": "seen"}
            results = rollout(policy, self.env_id, episodes=range(self.episodes), options=options)
        success = sum(result.success for result in results) / len(results)
        wrong = sum(result.wrong_object for result in results) / len(results)
        seconds = self.stopwatch.seconds  # of training: to know how long it took to get here
        log(trainer, {"selection/success_rate": success, "selection/wrong_object_rate": wrong, "selection/seconds": seconds})
        rates = f"success {success:.0%}, wrong object {wrong:.0%}"
        module.print(f"step {trainer.global_step}: {rates} in {self.episodes} selection scenes")
        return success


@contextmanager
def evaluating(policy: nn.Module) -> Iterator[None]:
    """Eval mode inside; afterwards each module is in the mode it was in, frozen ones included."""
    modes = {module: module.training for module in policy.modules()}
    policy.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
