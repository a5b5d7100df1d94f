"""What happens between optimizer steps: averaging of the weights, choice of the policy to save, checkpoints."""

import copy
import math
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import nn

from vla_mini.commands import command_line
from vla_mini.envs import get_spec
from vla_mini.evaluation.metrics import further_rates, summarize_split
from vla_mini.evaluation.rollout import NUM_ENVS, rollout
from vla_mini.finetuning.freezing import TrainableParameters
from vla_mini.policy import Policy
from vla_mini.training.checkpoints import checkpoint_path, link_last, numbered, random_state, set_random_state
from vla_mini.training.distributed import full_state, load_full_state, local, unsharded
from vla_mini.training.loggers import gather, log, print_above_bar


class WeightAverage(Callback):
    """An exponential moving average (EMA) of the weights: average = decay x average + (1 - decay) x weights after each step.

    - policy: the average, in eval mode
    - decay: 0.999 averages over about a thousand steps. It is (1 + steps) / (10 + steps) where that is less: else the untrained
      weights would dominate the average of a short training

    A skipped step changes nothing. The average never takes the place of the trained weights, so an error during an evaluation
    cannot mix them up. Buffers are copied: running statistics are averages already. Frozen weights are not touched.
    """

    def __init__(self, policy: Policy, decay: float) -> None:
        self.policy, self.decay = copy.deepcopy(policy).requires_grad_(False).eval(), decay
        self._num_updates = 0

    def on_fit_start(self, trainer: Trainer, module: LightningModule) -> None:
        self.policy.to(module.device)

    @torch.no_grad()
    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        if module.step.window or module.step.skipped:
            return
        decay = min(self.decay, (1 + self._num_updates) / (10 + self._num_updates))
        self._num_updates += 1
        pairs = zip(self.policy.parameters(), module.policy.parameters(), strict=True)
        trained = [(local(average), local(weight).to(average.dtype)) for average, weight in pairs if weight.requires_grad]
        torch._foreach_lerp_(*map(list, zip(*trained, strict=True)), 1 - decay)
        for average, buffer in zip(self.policy.buffers(), module.policy.buffers(), strict=True):
            average.copy_(buffer)

    def state_dict(self) -> dict[str, Any]:
        weights = {name: tensor.cpu() for name, tensor in full_state(self.policy).items()}
        return {"weights": weights, "num_updates": self._num_updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        load_full_state(self.policy, state["weights"])
        self._num_updates = state["num_updates"]


class BestPolicy(Callback):
    """Chooses the policy to save, in `folder`. Of two equally good ones it keeps the earlier one.

    - with an environment: the highest success rate in `selection_episodes` scenes of its first split, every `every_n_steps`
      optimizer steps and at the end. Held-out splits never choose a policy
    - without one (env_id=None): the lowest loss of all validations, of which there is one more at the end

    With `every_n_steps` = 0 the last policy is the best. `Checkpoints` calls `save` after it has saved a checkpoint.
    """

    def __init__(self, folder: Path, *, env_id: str | None, selection_episodes: int, every_n_steps: int, seed: int) -> None:
        self.folder, self.env_id, self.episodes, self.seed = folder, env_id, selection_episodes, seed
        self.every_n_steps = every_n_steps
        self.best: dict[str, float] | None = None
        self.unsaved = False
        self._evaluated_at = 0

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self.save(trainer, module)  # in a resumed run, whose process may have ended between checkpoint and policy

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        if self.env_id is None:
            trainer.should_stop |= trainer.global_step == trainer.max_steps  # Lightning validates once more before it stops
        elif self.every_n_steps and trainer.global_step % self.every_n_steps == 0:
            self._evaluate(trainer, module)

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        if self.env_id is None and self.every_n_steps and not trainer.sanity_checking:
            loss = module.validation_loss
            print_above_bar(trainer, f"step {trainer.global_step}: validation loss {loss:.4g}")
            score = -math.inf if math.isnan(loss) else -loss
            self._keep_if_best(trainer, score, seconds=module.step.stopwatch.seconds)
            if module.step.window:  # within an accumulated step, after which the weights are others than those validated
                self.save(trainer, module)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        if self.env_id is not None and self.every_n_steps:
            self._evaluate(trainer, module)
        elif self.best is None:
            self.unsaved = True

    def save(self, trainer: Trainer, module: LightningModule) -> None:
        if self.unsaved:
            policy = unsharded(module.policy_for_evaluation)
            if trainer.is_global_zero:
                policy.save_pretrained(self.folder)
        self.unsaved = False

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "unsaved": self.unsaved, "evaluated_at": self._evaluated_at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best, self.unsaved, self._evaluated_at = state["best"], state["unsaved"], state["evaluated_at"]

    def _evaluate(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.global_step == self._evaluated_at:
            return
        self._evaluated_at = trainer.global_step
        seconds = module.step.stopwatch.seconds
        with module.step.stopwatch.paused():
            success = self._success_rate(trainer, module, seconds)
        self._keep_if_best(trainer, success, seconds=seconds)

    def _success_rate(self, trainer: Trainer, module: LightningModule, seconds: float) -> float:
        """Each process plays its part of the episodes."""
        policy, spec = unsharded(module.policy_for_evaluation), get_spec(self.env_id)
        options = {"purpose": "selection", "seed": self.seed, "split": next(iter(spec.splits))}
        episodes = range(spec.num_tasks * self.episodes)[trainer.global_rank :: trainer.world_size]
        num_envs = max(1, NUM_ENVS // trainer.world_size)  # as many together as one process would have
        if trainer.world_size > 1:
            for buffer in policy.buffers():  # such as running statistics, which each process has of its own samples
                torch.distributed.broadcast(buffer, src=0)
        with evaluating(policy):
            own = rollout(policy, self.env_id, episodes=episodes, options=options, num_envs=num_envs) if episodes else []
        results = sorted((result for part in gather(own) for result in part), key=lambda result: result.episode)
        figures = summarize_split(results, spec)
        rates = {f"selection/{key}": figure for key, figure in figures.items() if key.endswith("_rate")}
        log(trainer, rates | {"selection/seconds": seconds})
        words = {"success": figures["success_rate"]} | further_rates(figures)
        text = ", ".join(f"{name} {rate:.0%}" for name, rate in words.items())
        print_above_bar(trainer, f"step {trainer.global_step}: {text} in {len(results)} selection scenes")
        return figures["success_rate"]

    def _keep_if_best(self, trainer: Trainer, score: float, *, seconds: float) -> None:
        if self.best is None or score > self.best["score"]:
            self.best = {"score": score, "step": trainer.global_step, "seconds": seconds}
            self.unsaved = True


@contextmanager
def evaluating(policy: nn.Module) -> Iterator[None]:
    """Eval mode inside. Afterwards each module is in the mode that it was in, frozen ones included."""
    before = TrainableParameters(policy)
    policy.eval()
    try:
        yield
    finally:
        before.restore(policy)


class Checkpoints(Callback):
    """Saves every `every_n_steps` optimizer steps, wherever `best` has found a better policy, and at the end.

    The newest `keep` checkpoints and that of the best policy stay. After SIGTERM or SIGINT the step in progress is finished and
    saved; then training ends with exit code 143 or 130. A second signal stops it at once. This comes after all callbacks whose
    state it saves.
    """

    def __init__(self, folder: Path, *, every_n_steps: int, keep: int, best: BestPolicy) -> None:
        self.folder, self.every_n_steps, self.keep, self.best = folder, every_n_steps, keep, best
        self._step = self._saved_at = 0
        self._random_states: list[dict[str, Any]] = []  # of each process, in a resumed run
        self._signal: int | None = None
        self._previous_handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._step = self._saved_at = trainer.global_step
        if trainer.global_rank < len(self._random_states):
            set_random_state(self._random_states[trainer.global_rank])
        if trainer.is_global_zero and threading.current_thread() is threading.main_thread():
            for number in self._previous_handlers:
                signal.signal(number, self._on_signal)

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        if not validation_follows(trainer):  # which belongs to the step
            self._at_step_boundary(trainer, module)

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._at_step_boundary(trainer, module)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._at_step_boundary(trainer, module, ended=True)

    def state_dict(self) -> dict[str, Any]:
        return {"random_states": gather(random_state())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._random_states = state["random_states"]  # set once Lightning has prepared everything

    def _at_step_boundary(self, trainer: Trainer, module: LightningModule, *, ended: bool = False) -> None:
        # Not within a window, whose gradients so far would be lost. Nor after the last step, to which `on_train_end` belongs:
        # a checkpoint without it would be resumed after it.
        if not ended and trainer.global_step in (self._step, trainer.max_steps):
            return
        self._step = trainer.global_step
        stop = self._is_stopped(trainer)
        due = stop or ended or self._step % self.every_n_steps == 0
        if self.best.unsaved or (due and self._saved_at != self._step):
            self._save(trainer, module)
        if ended:
            self._restore_handlers()
            stop = stop or self._is_stopped(trainer)  # by a signal that came while it was saved
        if stop:
            self._stop(trainer)

    def _is_stopped(self, trainer: Trainer) -> bool:
        return trainer.strategy.reduce_boolean_decision(self._signal is not None, all=False)  # of any process

    def _stop(self, trainer: Trainer) -> None:
        number = signal.Signals(self._signal or signal.SIGTERM)
        if trainer.is_global_zero:
            resume = f"{command_line('train')} resume={self.folder.parent}"
            print(f"\nstopped by {number.name} after step {self._step}; to resume: {resume}", file=sys.stderr)
        raise SystemExit(128 + number)

    def _save(self, trainer: Trainer, module: LightningModule) -> None:
        """Metrics, then checkpoint, then policy: a run that resumes from it finds the metrics, and saves the policy again."""
        self._saved_at = self._step
        for logger in trainer.loggers:
            logger.save()
        path = checkpoint_path(self.folder, self._step)
        trainer.save_checkpoint(path)
        if trainer.is_global_zero:
            link_last(path)
            best = self.best.best["step"] if self.best.best else None
            for step, old in numbered(self.folder)[self.keep :]:
                if step != best:
                    trainer.strategy.remove_checkpoint(old)
        self.best.save(trainer, module)

    def _on_signal(self, number: int, frame: Any) -> None:
        if self._signal is None:
            self._signal = number
            text = f"\n{signal.Signals(number).name}: finishing this step (a second signal stops at once)\n"
            os.write(2, text.encode())  # print would fail where the signal interrupts another print
        else:
            self._restore_handlers()
            signal.raise_signal(number)

    def _restore_handlers(self) -> None:
        """Those of the command, which end it at once."""
        if threading.current_thread() is threading.main_thread():
            for number, handler in self._previous_handlers.items():
                signal.signal(number, handler)


def validation_follows(trainer: Trainer) -> bool:
    """Whether Lightning validates once `on_train_batch_end` is over."""
    every_n_epochs = trainer.check_val_every_n_epoch
    if not trainer.enable_validation or (every_n_epochs and (trainer.current_epoch + 1) % every_n_epochs):
        return False
    batch = trainer.fit_loop.batch_idx if every_n_epochs else trainer.fit_loop.total_batch_idx
    stops = trainer.should_stop and trainer.global_step >= (trainer.min_steps or 0)
    return stops or (batch + 1) % trainer.val_check_batch == 0
