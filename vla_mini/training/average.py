"""An exponential moving average (EMA) of the policy's weights: a copy that is validated, played and saved in its place."""

import copy
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

from vla_mini.policy import Policy


class WeightAverage(Callback):
    """Keeps `policy`, in eval mode: average = decay x average + (1 - decay) x weights, after each step that was not skipped.

    - decay: 0.999 remembers about a thousand steps; None: there is no average, and `policy` is None

    The average is never put in the place of the weights that learn: whatever fails while it is judged, neither is taken for
    the other. At first the decay is (1 + steps) / (10 + steps), or the untrained weights would outlive a short training.
    Buffers are taken as they are: running statistics are averages already, and the data's statistics are constants. Frozen
    weights are not touched: they are what they were, and what was remembered of them (language/huggingface.py) stays true.
    """

    def __init__(self, decay: float | None) -> None:
        self.decay = decay
        self.policy: Policy | None = None
        self._steps = self._seen = 0

    def setup(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        if self.decay is not None:
            self.policy = copy.deepcopy(module.policy).requires_grad_(False).eval()

    def on_fit_start(self, trainer: Trainer, module: LightningModule) -> None:
        if self.policy is not None:
            self.policy.to(module.device)

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._seen = trainer.global_step  # of a resumed run: not 0

    @torch.no_grad()
    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        stepped = trainer.global_step > self._seen and not module.skip_step
        self._seen = trainer.global_step
        if self.policy is None or not stepped:
            return
        decay = min(self.decay, (1 + self._steps) / (10 + self._steps))
        self._steps += 1
        pairs = zip(self.policy.parameters(), module.policy.parameters(), strict=True)
        learning = [(average, weight.to(average.dtype)) for average, weight in pairs if weight.requires_grad]
        torch._foreach_lerp_(*map(list, zip(*learning, strict=True)), 1 - decay)
        for average, buffer in zip(self.policy.buffers(), module.policy.buffers(), strict=True):
            average.copy_(buffer)

    def state_dict(self) -> dict[str, Any]:
        return {} if self.policy is None else {"weights": self.policy.state_dict(), "steps": self._steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.policy is not None:
            self.policy.load_state_dict(state["weights"])
            self._steps = state["steps"]


def judged(trainer: Trainer, module: LightningModule) -> Policy:
    """The policy that is validated, played and saved: the average of the weights where there is one, else what learns."""
    averages = (callback.policy for callback in trainer.callbacks if isinstance(callback, WeightAverage))
    return next(filter(None, averages), module.policy)
