"""A real Trainer on a few small batches, with all the callbacks that ask for it, and a record of what came by."""

import warnings
from pathlib import Path

import lightning

from vla_mini.training.checkpoints import Checkpoints, WholeFiles
from vla_mini.training.module import PolicyModule
from vla_mini.training.selection import BestPolicy
from vla_mini.training.window import Stopwatch, WindowMean

SGD = {"_target_": "torch.optim.SGD", "lr": 1.0}


class Record(lightning.Callback):
    """Keeps what the optimizer is about to see, and in which precision the layers work."""

    def __init__(self):
        self.gradients, self.dtypes = [], set()

    def on_fit_start(self, trainer, module):
        self.trainer = trainer
        module.policy.trunk.queries.register_forward_hook(lambda *call: self.dtypes.add(call[2].dtype))

    def on_before_optimizer_step(self, trainer, module, optimizer):
        self.gradients.append({n: p.grad.clone() for n, p in module.policy.named_parameters() if p.grad is not None})


class Loader:
    """An iterable of batches; a bare list would mean several loaders to Lightning."""

    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)

    def __len__(self):
        return len(self.batches)


def keeping(best: BestPolicy, folder: Path) -> dict:
    """What a Trainer needs for the best policy to be saved."""
    return {"callbacks": [best, Checkpoints(folder, every_n_steps=100, keep=1, best=best)], "plugins": [WholeFiles()]}


def fit(
    policy,
    batches,
    *,
    accelerator="cpu",
    callbacks=(),
    optimizer=SGD,
    logger=False,
    steps=None,
    record=True,
    warmup_steps=0,
    multipliers=None,
    **trainer,
):
    """Train on `batches`, one micro-batch each; the recorder of what happened."""
    recorders = [Record()] if record else []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what Lightning has to say about such a small loader
        trainer = lightning.Trainer(
            max_steps=steps or -1,
            max_epochs=-1 if steps else 1,
            accelerator=accelerator,
            callbacks=[WindowMean(Stopwatch()), *callbacks, *recorders],
            logger=logger,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            **trainer,
        )
        schedule = {"warmup_steps": warmup_steps, "decay": "constant", "multipliers": multipliers}
        module = PolicyModule(policy, optimizer=optimizer, **schedule)
        trainer.fit(module, train_dataloaders=Loader(batches))
    return recorders[0] if record else None
