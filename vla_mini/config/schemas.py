"""What each command's config may hold, key by key: one dataclass a command, one for each plain node.

A field with a default may be left out in YAML; one without must be there. Nodes marked `Target` name a class, and the
signature of its constructor is their schema.
"""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from vla_mini.config.check import AtLeast, Target

Count = Annotated[int, AtLeast(1)]
Natural = Annotated[int, AtLeast(0)]
Amount = Annotated[float, AtLeast(0)]


Optimizer = Annotated[dict, Target("torch.optim", base="Optimizer", also=("vla_mini.training.muon",))]

# Lightning's own annotations leave these too open: a misspelt one would only be found when the Trainer is made.
TRAINER_ARGUMENTS = (
    ("accelerator", Literal["auto", "cpu", "gpu", "cuda", "mps", "tpu"]),
    ("devices", Literal[1]),  # of several processes each would collect and evaluate: not yet
    ("precision", Literal["auto", "64-true", "32-true", "bf16-mixed", "bf16-true", "16-mixed", "16-true"]),
    ("max_steps", Count),
    ("accumulate_grad_batches", Count),
    ("gradient_clip_val", Amount | None),
    ("gradient_clip_algorithm", Literal["norm", "value"] | None),
    ("log_every_n_steps", Count),
    ("val_check_interval", Count | Amount | None),
)
Trainer = Annotated[dict, Target("lightning", base="Trainer", instead=TRAINER_ARGUMENTS)]


@dataclass
class Environment:
    id: str  # as registered with Gymnasium


@dataclass
class Keyframe:
    """Which state features to remember of the frame in which the action `closes` next rises above `threshold`."""

    state: list[str]
    closes: str
    threshold: float


@dataclass
class Data:
    """The demonstrations: where they lie, how many are collected where they are missing, how they are batched."""

    root: str
    episodes: Count | None  # null = never collect
    validation_episodes: Count
    seed: Natural  # of the scenes that are collected
    horizon: Count
    batch_size: Count
    keyframe: Keyframe | None


@dataclass
class Schedule:
    """The learning rate: a linear rise over `warmup_steps`, then the decay to the end of training."""

    warmup_steps: Natural
    decay: Literal["cosine", "constant"]


@dataclass
class Evaluation:
    """Closed loop: on final scenes after training, on selection scenes during it (0 = never)."""

    episodes: Count
    seed: Natural
    selection_episodes: Count
    every_n_steps: Natural
    further_splits: list[str]


@dataclass
class Logger:
    """metrics.csv is always written; the variants of configs/logger/ add to it."""

    csv: Literal[True] = True
    wandb: bool = False
    project: str | None = None
    mode: Literal["offline", "online", "disabled"] = "offline"
    name: str | None = None


@dataclass
class Monitor:
    """What is written down about gradients, and every how many optimizer steps (0 = never)."""

    every_n_steps: Natural
    histograms: Natural
    per_parameter: bool
    watch: bool


@dataclass
class Guard:
    """What is done about steps that are not finite."""

    patience: Count


@dataclass
class Train:
    seed: Natural
    execute: Count
    ensemble: Amount | None
    env: Environment
    data: Data
    vision: Annotated[dict, Target("vla_mini.vision")]
    language: Annotated[dict, Target("vla_mini.language")]
    trunk: Annotated[dict, Target("vla_mini.trunk")]
    action: Annotated[dict, Target("vla_mini.action")]
    optimizer: Optimizer
    schedule: Schedule
    trainer: Trainer
    logger: Logger
    evaluation: Evaluation
    monitor: Monitor
    guard: Guard
    insulate: bool
    freeze: list[str]
    auxiliary: Annotated[dict, Target("vla_mini.auxiliary")] | None = None  # variant `none` holds nothing


@dataclass
class Collect:
    env: Environment
    output: str
    episodes: Count
    validation_episodes: Natural
    seed: Natural
    disturbance: Amount
    num_workers: Count | None


@dataclass
class Evaluate:
    policy: str
    episodes: Count
    seed: Natural
    num_envs: Count
    further_splits: list[str]
    output: str | None


@dataclass
class Infer:
    policy: str
    image: str | list[str]  # one for each camera
    instruction: str
    state: list[float]
    mode: Literal["grad", "no_grad", "inference_mode"]
    seed: Natural


@dataclass
class Closing:
    """The gripper closes where the action `closes` rises above `threshold`."""

    closes: str
    threshold: float


@dataclass
class Gradients:
    """A saved policy, or an untrained one, made as train.py would for `experiment` (its settings: `training`, by compose)."""

    policy: str | None
    experiment: str | None
    data: str | None
    output: str | None
    samples: Count
    scenes: Count
    grid: Count
    seed: Natural
    keyframe: Closing


SCHEMAS = {"train": Train, "collect": Collect, "evaluate": Evaluate, "infer": Infer, "gradients": Gradients}


def refuse_contradictions(settings: dict[str, Any]) -> None:
    """ValueError for settings of which each is right by itself, but not beside the others."""
    if "execute" in settings and settings["execute"] > settings["data"]["horizon"]:
        raise ValueError(
            f"execute={settings['execute']} is more than the data.horizon={settings['data']['horizon']} of a chunk"
        )
    if "experiment" in settings and (settings["policy"] is None) == (settings["experiment"] is None):
        given = "neither" if settings["policy"] is None else "both"
        raise ValueError(
            f"{given} given: say policy=DIR for a saved policy, or experiment=NAME for an untrained one as train.py begins with"
        )
    if settings.get("insulate") and settings["action"]["_target_"].endswith(".BinsHead"):
        raise ValueError("insulate=true with action=bins: the backbone would learn from the same head; choose another action")
    for name in ("lr", "adam_lr"):
        if (rate := settings.get("optimizer", {}).get(name, 1.0)) <= 0:
            raise ValueError(f"optimizer.{name}={rate} is no learning rate: it has to be above 0")
    logger = settings.get("logger")
    if logger and not logger["wandb"]:
        for key, default in (("project", None), ("mode", "offline"), ("name", None)):
            if logger[key] != default:
                raise ValueError(f"logger.{key}={logger[key]} is for Weights & Biases: say logger=wandb, too")
        if settings["monitor"]["watch"]:
            raise ValueError("monitor.watch=true is for Weights & Biases: say logger=wandb, too")
