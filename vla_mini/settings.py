"""The settings of training: typed, frozen, and checked as a whole before anything is built.

    configs/train.yaml, composed ──TrainSettings.model_validate──▶ TrainSettings, or ValidationError

The settings of an object (a node with `_target_`) are the arguments of its constructor. What two settings may not be together
is said beside them (`contradictions`). This module imports no torch until it validates.
"""

import itertools
import os
from collections.abc import Iterator
from functools import partial
from typing import Annotated, Any, Literal
from urllib.parse import urlencode

from pydantic import AfterValidator, BeforeValidator, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from vla_mini.utils.errors import show
from vla_mini.utils.schema import FROM_LIST, StrictModel, library_class, object_settings

# Free text and paths: on a command line their value is taken as it stands, whatever characters it holds (config/compose.py).
AS_WRITTEN = object()
Text = Annotated[str, AS_WRITTEN]
Path = Annotated[str, AS_WRITTEN, AfterValidator(os.path.expanduser)]
Names = Annotated[tuple[str, ...], FROM_LIST]

# The parts of a policy that may hold parameters (`Policy.components`).
Component = Literal[
    *("vision", "language", "trunk", "action", "auxiliary", "backbone_action"), *("projection", "camera_embedding", "state")
]


def part_settings(kind: str) -> Any:
    """The type of a node that describes a part of a policy."""

    def find_class(target: Any) -> type:
        from vla_mini.registry import resolve

        return resolve(target, kind)

    return object_settings(find_class)


# What training/ hands to Lightning's Trainer itself, and what Lightning's own annotations leave too open.
TRAINER_EXCLUDED = (
    *("logger", "callbacks", "plugins", "default_root_dir", "deterministic"),
    *("enable_checkpointing", "enable_model_summary"),
)
TRAINER_TYPES = (
    ("accelerator", Literal["auto", "cpu", "gpu", "cuda", "mps", "tpu"]),
    ("devices", PositiveInt),
    ("num_nodes", PositiveInt),
    ("strategy", Literal["auto", "ddp", "ddp_find_unused_parameters_true", "fsdp"]),
    # Not 16-true: an optimizer's epsilon is 0 in fp16, and a few steps make weights that are not finite.
    ("precision", Literal["auto", "64-true", "32-true", "bf16-mixed", "bf16-true", "16-mixed"]),
    ("max_steps", PositiveInt),
    ("accumulate_grad_batches", PositiveInt),
    ("gradient_clip_val", NonNegativeFloat | None),
    ("gradient_clip_algorithm", Literal["norm", "value"] | None),
    ("limit_train_batches", PositiveInt | PositiveFloat | None),
    ("log_every_n_steps", PositiveInt),
    ("val_check_interval", PositiveInt | NonNegativeFloat | None),
)
TrainerSettings = object_settings(
    partial(library_class, package="lightning", base="Trainer"), overrides=TRAINER_TYPES, exclude=TRAINER_EXCLUDED
)
OptimizerSettings = object_settings(
    partial(library_class, package="torch.optim", base="Optimizer", also=("vla_mini.training.muon",)),
    overrides=(("lr", PositiveFloat), ("adam_lr", PositiveFloat)),
    exclude=("params",),
)
TransformSettings = object_settings(
    partial(library_class, package="torchvision.transforms.v2", base="Transform"), exclude=("size",)
)


class Env(StrictModel):
    """The environment that demonstrations come from and that the policy is evaluated in."""

    id: str | None  # as registered with Gymnasium; null = none: train and validate on a dataset alone
    # Arguments of the environment; null where it has no such argument, or for its default.
    task: Text | None = None
    image_size: PositiveInt | None = None
    view: Literal["workspace", "whole"] | None = None
    wrist: bool | None = None
    render: Literal["fast", "faithful"] | None = None

    @property
    def address(self) -> str | None:
        """The id with the arguments, as `vla_mini.envs.make` takes it."""
        arguments = urlencode(self.model_dump(exclude={"id"}, exclude_none=True))
        return f"{self.id}?{arguments}" if self.id and arguments else self.id


class NormalizationModes(StrictModel):
    """How states and actions become numbers of about 1 (vla_mini/normalization.py)."""

    state: Literal["mean_std", "min_max", "quantiles", "none"] = "mean_std"
    action: Literal["mean_std", "min_max", "quantiles", "none"] = "min_max"
    clip: PositiveFloat | None = None


class Reading(StrictModel):
    """Where a dataset is and what of it is read: arguments of `read_dataset` (vla_mini/data/reader.py)."""

    root: Path | None = None
    revision: Text | None = None
    cameras: dict[str, Text] | None = None
    state: Names | None = None
    action: Text | None = None
    instruction: Text | None = None
    image_size: Annotated[tuple[PositiveInt, PositiveInt], FROM_LIST] | None = None
    resize: Literal["letterbox", "stretch", "crop"] = "letterbox"
    fps: PositiveFloat | None = None
    subsampled_actions: Literal["last", "mean", "sum"] = "last"
    exclude_episodes: Annotated[tuple[NonNegativeInt, ...], FROM_LIST] | None = None
    verify: bool | None = None

    def reading(self) -> dict[str, Any]:
        """The arguments of `read_dataset`."""
        return self.model_dump(include={*Reading.model_fields, "roots", "statistics", "cache", "cache_gigabytes"})

    def contradictions(self) -> Iterator[str]:
        if self.root is None:
            yield "root is required: give data.root=DIR"


class Data(Reading):
    """The demonstrations: where they are, what of them is read, how many are collected where they are missing, how they are
    batched. What has the name of an argument of `read_dataset` is that."""

    roots: dict[Path, PositiveFloat] | None = None
    statistics: Literal["together", "by_dataset"] = "together"
    cache: Path | None = None
    num_workers: NonNegativeInt = 2
    cache_gigabytes: PositiveFloat | None = None
    recorded_in_env: bool = False
    actions: Literal["absolute", "relative"] = "absolute"
    absolute_actions: Names | None = None
    normalization: NormalizationModes = NormalizationModes()
    episodes: PositiveInt | None  # null = never collect
    validation_episodes: PositiveInt
    seed: NonNegativeInt  # of the scenes that are collected
    horizon: PositiveInt
    batch_size: PositiveInt

    def contradictions(self) -> Iterator[str]:
        if self.root is None and not self.roots:
            yield "root is required: give data.root=DIR, or several datasets with their weights in data.roots"
        if self.absolute_actions is not None and self.actions == "absolute":
            yield "absolute_actions is for data.actions=relative: all actions are absolute already"
        if self.statistics == "by_dataset" and (not self.roots or self.actions == "relative"):
            yield "statistics=by_dataset is for several datasets (data.roots) and absolute actions"
        if self.roots and self.exclude_episodes:
            yield f"exclude_episodes={show(self.exclude_episodes)} with data.roots: it is not said of which dataset"


class Mirror(StrictModel):
    """How samples look in a mirror: images, and of states and actions those that change, as (name, factor, offset)."""

    flip: Literal["left_right", "up_down", "diagonal", "antidiagonal"]
    values: dict[str, Annotated[tuple[str, float, float], FROM_LIST]]


class Augmentation(StrictModel):
    """Changes of the training batches: image transforms by name, applied one after the other, and a mirror."""

    draws: PositiveInt
    transforms: dict[str, TransformSettings | None]
    mirror: Mirror | None = None


class Schedule(StrictModel):
    """The learning-rate schedule: linear warm-up, then decay; times a multiplier for each component."""

    warmup_steps: NonNegativeInt
    decay: Literal["cosine", "constant"]
    multipliers: dict[Component, NonNegativeFloat]

    def contradictions(self) -> Iterator[str]:
        for name, multiplier in self.multipliers.items():
            if multiplier == 0:
                yield f"multipliers.{name}=0 leaves no learning rate: use freeze=[{name}] instead"


class LoRA(StrictModel):
    """Low-rank adapters: of which layers, how large, and how they are saved."""

    targets: Names
    rank: PositiveInt
    alpha: PositiveFloat
    dropout: Annotated[float, Field(ge=0, lt=1)]
    also_train: Names
    save: Literal["merged", "separate"]

    def contradictions(self) -> Iterator[str]:
        if not self.targets and (self.also_train or self.save == "separate"):
            given = f"also_train={show(self.also_train)}" if self.also_train else f"save={self.save}"
            yield f"{given} is for adapters: give lora.targets=[...], too"


class MovingAverage(StrictModel):
    """The exponential moving average of the weights (EMA)."""

    decay: Annotated[float, Field(gt=0, lt=1)] | None  # null = none


class Evaluation(StrictModel):
    """Closed-loop evaluation: on final scenes after training, on selection scenes during it."""

    episodes: PositiveInt
    check_episodes: NonNegativeInt | None
    seed: NonNegativeInt
    selection_episodes: PositiveInt
    every_n_steps: NonNegativeInt  # 0 = never
    further_splits: Names


class Logger(StrictModel):
    """metrics.csv is always written; the variants of configs/logger/ add to it."""

    csv: Literal[True] = True
    tensorboard: bool = False
    wandb: bool = False
    project: Text | None = None
    mode: Literal["offline", "online", "disabled"] = "offline"
    name: Text | None = None

    def contradictions(self) -> Iterator[str]:
        for name, value in self.model_dump(include={"project", "mode", "name"}, exclude_defaults=True).items():
            if not self.wandb:
                yield f"{name}={value} is for Weights & Biases: add logger=wandb"


class Monitor(StrictModel):
    """What is logged about gradients, and every how many optimizer steps (0 = never)."""

    every_n_steps: NonNegativeInt
    histograms: NonNegativeInt
    per_parameter: bool
    watch: bool


class Guard(StrictModel):
    """How many steps in a row may have a gradient that is not finite."""

    patience: PositiveInt


class Checkpoint(StrictModel):
    """The checkpoints from which a run can be resumed."""

    every_n_steps: PositiveInt
    keep: PositiveInt


# What may change when a run is resumed. Compilation changes results by rounding alone, and no checkpoint.
CHANGEABLE_ON_RESUME = (
    *("trainer.max_steps", "logger", "compile", "compile_dynamic"),
    # Over how many processes the samples of a step are divided.
    *("trainer.devices", "trainer.num_nodes", "trainer.strategy", "data.batch_size"),
    # Where the same data are, and how they are read.
    *("data.root", "data.roots", "data.cache", "data.cache_gigabytes", "data.verify", "data.num_workers"),
)


class TrainSettings(StrictModel):
    """scripts/train.py, and all commands that begin where it begins."""

    seed: NonNegativeInt
    history: PositiveInt
    execute: PositiveInt
    ensemble: NonNegativeFloat | None
    plugins: Names = ()
    env: Env
    data: Data
    vision: part_settings("vision")
    language: part_settings("language")
    trunk: part_settings("trunk")
    action: part_settings("action")
    auxiliary: dict[str, part_settings("auxiliary")] = Field(default_factory=dict)  # by name
    augmentation: Annotated[Augmentation | None, BeforeValidator(lambda node: node or None)] = None  # variant none is empty
    optimizer: OptimizerSettings
    schedule: Schedule
    trainer: TrainerSettings
    logger: Logger
    evaluation: Evaluation
    monitor: Monitor
    guard: Guard
    checkpoint: Checkpoint
    resume: Path | None
    deterministic: bool
    compile: Literal["none", "default", "reduce-overhead", "max-autotune"]
    compile_dynamic: bool | None
    insulate: bool
    ablate: Annotated[tuple[Literal["images", "instruction", "state"], ...], FROM_LIST]
    freeze: Names
    unfreeze_at: dict[str, PositiveInt]
    init_from: Path | None
    lora: LoRA
    ema: MovingAverage
    run_dir: Path

    @property
    def num_processes(self) -> int:
        """How many train together, on all machines."""
        return self.trainer.num_nodes * self.trainer.devices

    def contradictions(self) -> Iterator[str]:
        if self.execute > self.data.horizon:
            yield f"execute={self.execute} is more than the data.horizon={self.data.horizon} of a chunk"
        if self.ensemble is not None and self.execute == self.data.horizon:
            yield f"ensemble={self.ensemble:g} averages chunks that overlap: execute={self.execute} leaves no overlap"
        if self.env.id is None and (splits := self.evaluation.further_splits):
            yield f"evaluation.further_splits={show(splits)} with env=none: there is no environment to evaluate in"
        if self.env.id is None and self.data.recorded_in_env:
            yield "data.recorded_in_env=true with env=none: name the environment, such as env=libero_spatial"
        if self.data.fps is not None and self.data.recorded_in_env:
            yield f"data.fps={self.data.fps:g} with data.recorded_in_env=true: its frames per second are the environment's"
        if self.insulate and self.action.target == "vla_mini.action.bins.BinsHead":
            yield "insulate=true with action=bins: the backbone would learn from a head of the same kind"
        if self.monitor.watch and not self.logger.wandb:
            yield "monitor.watch=true is for Weights & Biases: add logger=wandb"
        if self.augmentation and self.augmentation.mirror and self.auxiliary:
            yield f"augmentation.mirror does not mirror what auxiliary={', '.join(self.auxiliary)} predicts: use auxiliary=none"
        if self.trainer.strategy == "fsdp":
            if self.optimizer.target.endswith("Muon"):
                yield "trainer.strategy=fsdp divides the matrices that Muon needs as a whole: use optimizer=adamw"
            if self.compile != "none" or self.unfreeze_at:
                yield "trainer.strategy=fsdp is neither for compile nor for unfreeze_at: use strategy=ddp"
        yield from self._contradictions_in_compilation()
        yield from self._contradictions_in_finetuning()

    def _contradictions_in_compilation(self) -> Iterator[str]:
        if self.compile == "none" and self.compile_dynamic is not None:
            yield f"compile_dynamic={show(self.compile_dynamic)} is for torch.compile: give compile=default, too"
        if self.compile not in ("none", "default") and (number := self.trainer.accumulate_grad_batches) > 1:
            yield (
                f"compile={self.compile} with trainer.accumulate_grad_batches={number}: its CUDA graphs overwrite the "
                "gradients of the previous micro-batch; use compile=default"
            )

    def _contradictions_in_finetuning(self) -> Iterator[str]:
        last = self.trainer.max_steps
        for name, step in self.unfreeze_at.items():
            if name in self.freeze:
                yield f"freeze=[{name}] and unfreeze_at.{name}={step}: give one; the second freezes it until then"
            if step >= last:
                yield f"unfreeze_at.{name}={step} is never reached: trainer.max_steps={last}; use freeze=[{name}]"
        for name, frozen in itertools.product(self.lora.also_train, self.freeze):
            if f"{name}.".startswith(f"{frozen}."):
                yield f"lora.also_train=[{name}] and freeze=[{frozen}]: give one"
        noise, frozen = self.language.arguments().get("noise"), "language" in self.freeze
        if noise and (frozen or (self.lora.targets and "language" not in self.lora.also_train)):
            key = "freeze=[language]" if frozen else "lora.targets without lora.also_train=[language]"
            yield f"language.noise={noise:g} with {key}: noise is added only to a part that is in training mode"
