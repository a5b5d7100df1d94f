"""Closed-loop success during training; the policy that did best is the one that is saved."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from torch import nn

from vla_mini.evaluation.rollout import rollout
from vla_mini.training.window import Stopwatch


class BestPolicy(Callback):
    """Plays `episodes` selection scenes every `every_n_steps` optimizer steps and at the end, and saves the policy to `folder`
    whenever its success is higher than ever before: ties go to the earlier one.

    The scenes are of the split `seen` alone and of a purpose of their own: held-out words never choose a policy. With
    `every_n_steps` = 0 nothing is played and the last policy is saved.
    """

    def __init__(
        self, folder: Path, *, env_id: str, episodes: int, every_n_steps: int, seed: int, stopwatch: Stopwatch
    ) -> None:
        self.folder, self.env_id, self.episodes, self.every_n_steps, self.seed = (
            folder,
            env_id,
            episodes,
            every_n_steps,
            seed,
        )
        self.stopwatch = stopwatch
        self.best: dict[str, float] | None = None
        self._played_at = 0

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        if self.every_n_steps and trainer.global_step % self.every_n_steps == 0 and trainer.global_step > self._played_at:
            self._play(trainer, module)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        if not self.every_n_steps:
            module.policy.save_pretrained(self.folder)
        elif trainer.global_step > self._played_at:
            self._play(trainer, module)

    def _play(self, trainer: Trainer, module: LightningModule) -> None:
        self._played_at = trainer.global_step
        if not trainer.is_global_zero:
            return
        seconds = self.stopwatch.seconds
        with self.stopwatch.paused(), evaluating(module.policy):
            options = {"purpose": "selection", "seed": self.seed, "split": "seen"}
            results = rollout(module.policy, self.env_id, episodes=range(self.episodes), options=options)
            success = sum(result.success for result in results) / len(results)
            wrong = sum(result.wrong_object for result in results) / len(results)
            figures = {"success_rate": success, "wrong_object_rate": wrong, "seconds": seconds}
            for logger in trainer.loggers:
                metrics = {f"selection/{name}": value for name, value in figures.items()}
                logger.log_metrics(metrics, step=trainer.global_step - 1)
            rates = f"success {success:.0%}, wrong object {wrong:.0%}"
            module.print(f"step {trainer.global_step}: {rates} in {self.episodes} selection scenes")
            if self.best is None or success > self.best["success_rate"]:
                self.best = {"success_rate": success, "step": trainer.global_step, "seconds": seconds}
                module.policy.save_pretrained(self.folder)


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
