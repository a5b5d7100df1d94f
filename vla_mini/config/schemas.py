"""What each command's config may hold, key by key: one dataclass a command, one for each plain node.

A field with a default may be left out in YAML; one without must be there. Nodes marked `Target` name a class, and the
signature of its constructor is their schema.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from vla_mini.config.check import AtLeast, Target

Count = Annotated[int, AtLeast(1)]
Natural = Annotated[int, AtLeast(0)]
Amount = Annotated[float, AtLeast(0)]
# The parts of a policy that may hold parameters.
Component = Literal[
    *("vision", "language", "trunk", "action", "auxiliary", "backbone_action"),
    *("projection", "camera", "state"),
]


Optimizer = Annotated[dict, Target("torch.optim", base="Optimizer", also=("vla_mini.training.muon",))]

# Lightning's own annotations leave these too open: a misspelt one would only be found when the Trainer is made.
TRAINER_ARGUMENTS = (
    ("accelerator", Literal["auto", "cpu", "gpu", "cuda", "mps", "tpu"]),
    ("devices", Count),
    ("num_nodes", Literal[1]),  # what several machines would have to say to each other is untested
    ("strategy", Literal["auto", "ddp", "ddp_find_unused_parameters_true"]),
    # Not 16-true: in fp16 an optimizer's epsilon is 0, and a few steps make weights that are not finite.
    ("precision", Literal["auto", "64-true", "32-true", "bf16-mixed", "bf16-true", "16-mixed"]),
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
class Augmentation:
    """Random changes of the images in training: transforms, one after the other, by names of one's own."""

    draws: Count
    transforms: dict[str, Annotated[dict, Target("torchvision.transforms.v2", base="Transform", given=("size",))] | None]


@dataclass
class Schedule:
    """The learning rate: a linear rise over `warmup_steps`, then the decay to the end of training; times a component's own."""

    warmup_steps: Natural
    decay: Literal["cosine", "constant"]
    multipliers: dict[Component, Amount]


@dataclass
class LoRA:
    """Low-rank adapters: where, how large, and how they are saved."""

    targets: list[str]
    rank: Count
    alpha: Amount
    dropout: Amount
    also_train: list[str]
    save: Literal["merged", "apart"]


@dataclass
class MovingAverage:
    """Of the weights (EMA)."""

    decay: Amount | None


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
    tensorboard: bool = False
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
class Checkpoint:
    """What a run can be resumed from."""

    every_n_steps: Count
    keep: Count


@dataclass
class Train:
    seed: Natural
    history: Count
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
    checkpoint: Checkpoint
    resume: str | None
    deterministic: bool
    compile: Literal["none", "default", "reduce-overhead", "max-autotune"]
    compile_dynamic: bool | None
    insulate: bool
    blind: list[Literal["images", "words", "state"]]
    freeze: list[str]
    unfreeze_at: dict[str, Count]
    init_from: str | None
    lora: LoRA
    ema: MovingAverage
    auxiliary: Annotated[dict, Target("vla_mini.auxiliary")] | None = None  # variant `none` holds nothing
    augmentation: Augmentation | None = None  # so here


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
    trust_remote_code: bool
    output: str | None


@dataclass
class Infer:
    policy: str
    image: str | list[str]  # one for each camera, in each frame
    instruction: str
    state: list[float]
    mode: Literal["grad", "no_grad", "inference_mode"]
    seed: Natural
    trust_remote_code: bool


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
    trust_remote_code: bool
    keyframe: Closing


@dataclass
class Doctor:
    """Training as train.py would begin it for `experiment` (its settings: `training`, by compose)."""

    experiment: str
    output: str | None


@dataclass
class Budget:
    """What each run of a comparison may use: one of `steps` and `seconds`."""

    steps: Count | None
    seconds: Amount | None
    calibration_steps: Annotated[int, AtLeast(2)]  # a speed is measured from one to another
    selections: Count | None


@dataclass
class Compare:
    """Variants by name, with what train.py is told for each: completed by compose, and checked by `Train`."""

    question: str | None
    base: list[str]
    variants: dict[str, list[str]]
    seeds: list[Natural]
    budget: Budget
    parameters: dict[str, str]
    output: str | None
    name: str


SCHEMAS = {
    "train": Train,
    "collect": Collect,
    "evaluate": Evaluate,
    "infer": Infer,
    "gradients": Gradients,
    "doctor": Doctor,
    "compare": Compare,
}
