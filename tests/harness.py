"""A real Trainer on a few small batches, and a record of what the optimizer gets."""

import csv
import multiprocessing
import pkgutil
import warnings
from pathlib import Path

import lightning

from tests.factory import make_policy
from vla_mini.training.callbacks import BestPolicy, Checkpoints, WeightAverage
from vla_mini.training.checkpoints import AtomicCheckpointIO
from vla_mini.training.module import PolicyModule
from vla_mini.training.monitor import GradientMonitor
from vla_mini.training.step import OptimizerStep
from vla_mini.utils.schema import settings_model

SGD = {"_target_": "torch.optim.SGD", "lr": 1.0}
ADAMW = {"_target_": "torch.optim.AdamW", "lr": 1e-2, "weight_decay": 0.1}


def optimizer_settings(settings):
    """{"_target_": ..., ...} as the settings that training gets; also with a learning rate of 0."""
    return settings_model(pkgutil.resolve_name(settings["_target_"]), exclude=("params",)).model_validate(settings)


def read_rows(folder):
    return list(csv.DictReader((folder / "metrics.csv").read_text().splitlines()))


def rounded_to_zero(name):
    """Two values, as a share of what the metric `gradients/<name>/zeros` counts: where the true gradient is zero, a sum in
    another order, or on another processor, may be exactly zero or not."""
    name = name.removeprefix("gradients/").removesuffix("/zeros")
    sizes = (p.numel() for key, p in make_policy().named_parameters() if f"{key}.".startswith(f"{name}."))
    return 2 / sum(sizes)


def forked(function, *arguments):
    """`function(*arguments)`, started in a process that is forked from one that has imported all that training needs."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["tests.harness", "vla_mini.training.trainer", "vla_mini.reports.run"])
    process = server.Process(target=function, args=arguments)
    process.start()
    return process


class Record(lightning.Callback):
    """The trainer, the module and its step; with `hooks` also the gradients of each step as the optimizer gets them, and the
    data types that the layers compute in."""

    def __init__(self, *, hooks):
        self.hooks, self.gradients, self.dtypes = hooks, [], set()

    def on_train_start(self, trainer, module):
        self.trainer, self.module, self.step = trainer, module, module.step
        if self.hooks:
            module.policy.trunk.queries.register_forward_hook(lambda *call: self.dtypes.add(call[2].dtype))
            trainer.optimizers[0].register_step_post_hook(lambda *_: self.gradients.append(self._copies()))

    def _copies(self):
        parameters = self.module.policy.named_parameters()
        return {name: parameter.grad.clone() for name, parameter in parameters if parameter.grad is not None}


class Loader:
    """An iterable of batches; Lightning would take a bare list for several loaders."""

    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)

    def __len__(self):
        return len(self.batches)


def saving(best: BestPolicy, folder: Path) -> dict:
    """What a Trainer needs so that the best policy is saved."""
    return {"callbacks": [best, Checkpoints(folder, every_n_steps=100, keep=1, best=best)], "plugins": [AtomicCheckpointIO()]}


def fit(
    policy,
    batches,
    *,
    callbacks=(),
    optimizer=SGD,
    steps=None,
    warmup_steps=0,
    decay="constant",
    multipliers=None,
    clip_value=None,
    clip_algorithm=None,
    patience=5,
    monitor=None,
    average: WeightAverage | None = None,
    validate=(),
    resume=None,
    record=True,
    **trainer,
):
    """Train on `batches`, one micro-batch each, until they end or for some steps. Returns the record of it."""
    record = Record(hooks=record)
    step = OptimizerStep(
        policy,
        monitor=monitor or GradientMonitor(every_n_steps=0, histograms=0),
        warmup_steps=warmup_steps,
        decay=decay,
        clip_value=clip_value,
        clip_algorithm=clip_algorithm,
        patience=patience,
    )
    module = PolicyModule(policy, step, optimizer_settings(optimizer), multipliers=multipliers or {}, average=average)
    defaults = {"accelerator": "cpu", "logger": False, "num_sanity_val_steps": 0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's, about such a small loader
        trainer = lightning.Trainer(
            max_steps=steps or -1,
            max_epochs=-1 if steps else 1,
            callbacks=[*([average] if average else []), *callbacks, record],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            **defaults | trainer,
        )
        trainer.fit(module, Loader(batches), Loader(validate) if validate else None, ckpt_path=resume)
    return record
