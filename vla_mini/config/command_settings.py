"""The settings of the commands other than training, as vla_mini/settings.py describes them."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from vla_mini.settings import AS_WRITTEN, Env, Names, Path, Reading, Text, TrainSettings
from vla_mini.utils.errors import show
from vla_mini.utils.schema import FROM_LIST, StrictModel


class CollectSettings(StrictModel):
    """scripts/collect.py"""

    env: Env
    output: Path
    episodes: PositiveInt
    validation_episodes: NonNegativeInt
    seed: NonNegativeInt
    action_noise: NonNegativeFloat
    num_workers: PositiveInt | None


class EvaluateSettings(StrictModel):
    """scripts/evaluate.py"""

    env: Env | None = None
    policy: Path
    episodes: PositiveInt
    check_episodes: NonNegativeInt | None
    seed: NonNegativeInt
    num_envs: PositiveInt
    further_splits: Names
    execute: PositiveInt | None
    ensemble: NonNegativeFloat | Literal["none"] | None
    delay: NonNegativeInt
    rtc: bool
    num_steps: PositiveInt | None
    plugins: Names = ()
    trust_remote_code: bool
    output: Path | None


def _paths(value: Any) -> Any:
    """`[a.png,b.png]`, or a single path, as a list."""
    if not isinstance(value, str):
        return value
    return [path.strip() for path in value[1:-1].split(",")] if value.startswith("[") and value.endswith("]") else [value]


class ConvertSettings(StrictModel):
    """scripts/convert.py"""

    policy: Path
    output: Path
    plugins: Names = ()
    trust_remote_code: bool


class InferSettings(StrictModel):
    """scripts/infer.py"""

    policy: Path
    image: Annotated[tuple[Path, ...], FROM_LIST, BeforeValidator(_paths)]  # one for each camera, in each frame
    instruction: Text
    state: Annotated[tuple[float, ...], FROM_LIST]
    mode: Literal["grad", "no_grad", "inference_mode"]
    num_steps: PositiveInt | None
    seed: NonNegativeInt
    plugins: Names = ()
    trust_remote_code: bool


LOOPBACK = ("127.0.0.1", "::1", "localhost")


class ServeSettings(StrictModel):
    """scripts/serve.py"""

    policy: Path
    host: Text
    port: Annotated[int, Field(ge=0, le=65535)]
    api_key: Text | None
    execute: PositiveInt | None
    ensemble: NonNegativeFloat | Literal["none"] | None
    num_steps: PositiveInt | None
    keys: dict[str, Text]
    max_message_mb: PositiveInt
    ssl_certificate: Path | None
    ssl_key: Path | None
    seed: NonNegativeInt
    debug: bool
    plugins: Names = ()
    trust_remote_code: bool

    def contradictions(self) -> Iterator[str]:
        if self.host not in LOOPBACK and self.api_key is None:
            yield f"host={self.host} can be reached from other machines: give api_key=TEXT, or api_key=none to let everyone in"
        if self.ensemble is not None and self.execute is None:
            yield f"ensemble={self.ensemble} needs execute=N: without it clients get whole chunks"
        if (self.ssl_certificate is None) != (self.ssl_key is None):
            yield "ssl_certificate and ssl_key are needed together"


class PlaySettings(StrictModel):
    """scripts/play.py"""

    env: Env | None = None
    policy: Path | None
    run: Path | None
    data: Path | None
    host: Text
    port: Annotated[int, Field(ge=0, le=65535)]
    open: bool
    execute: PositiveInt | None
    num_steps: PositiveInt | None
    seed: NonNegativeInt
    plugins: Names = ()
    trust_remote_code: bool

    def contradictions(self) -> Iterator[str]:
        if (self.policy is None) == (self.run is None):
            given = "neither" if self.policy is None else "both"
            yield f"{given} given: use policy=DIR for a saved policy, or run=DIR for a run with its checkpoints"
        if self.data is not None and self.env is not None:
            yield f"data={self.data} and env={self.env.id}: give one, since recorded frames need no environment"


class ExportSettings(StrictModel):
    """scripts/export.py"""

    policy: Path
    output: Path
    dtype: Literal["fp32", "fp16", "int8"]
    num_steps: PositiveInt | None
    plugins: Names = ()
    trust_remote_code: bool


class GradientsSettings(StrictModel):
    """scripts/gradients.py: a saved policy, or an untrained one, as train.py would build it with the settings `training`."""

    policy: Path | None
    experiment: Text | None
    data: Path | None
    output: Path | None
    samples: PositiveInt
    scenes: PositiveInt
    grid: PositiveInt
    seed: NonNegativeInt
    plugins: Names = ()
    trust_remote_code: bool
    training: TrainSettings | None = None

    def contradictions(self) -> Iterator[str]:
        if (self.policy is None) == (self.experiment is None):
            given = "neither" if self.policy is None else "both"
            yield f"{given} given: use policy=DIR for a saved policy, or experiment=NAME for an untrained one"


class DoctorSettings(StrictModel):
    """scripts/doctor.py: a run as train.py would begin it with the settings `training`."""

    experiment: Text
    output: Path | None
    training: TrainSettings


class BrowseSettings(StrictModel):
    """scripts/browse.py"""

    data: Reading
    output: Path
    episodes: PositiveInt
    examined_episodes: PositiveInt | None


class Budget(StrictModel):
    """What each run of a comparison may use: either `steps` or `seconds`."""

    steps: PositiveInt | None
    seconds: PositiveFloat | None
    calibration_steps: Annotated[int, Field(ge=2)]  # a speed is measured from one step to another
    selections: PositiveInt | None


class CompareSettings(StrictModel):
    """scripts/compare.py: variants by name, each with the arguments that train.py gets for it."""

    question: str | None
    base: Names
    variants: dict[str, Annotated[tuple[str, ...], FROM_LIST, AS_WRITTEN]]
    seeds: Annotated[tuple[NonNegativeInt, ...], FROM_LIST]
    budget: Budget
    parameters: dict[str, Text]
    launcher: Literal["local", "submitit"]
    submitit: dict[str, Any]
    output: Path | None
    name: str

    def contradictions(self) -> Iterator[str]:
        budget = {"steps": self.budget.steps, "seconds": self.budget.seconds}
        given = [f"budget.{name}={amount:g}" for name, amount in budget.items() if amount is not None]
        if len(given) != 1:
            shown = " and ".join(given) or "no budget"
            yield f"{shown} given: use budget.steps=400 or budget.seconds=300 (and null for the other)"
        if self.submitit and self.launcher != "submitit":
            yield f"submitit={show(self.submitit)} is for launcher=submitit"
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            yield f"seeds={show(self.seeds)}: give at least one, and each once"


COMMANDS: dict[str, type[StrictModel]] = {  # but train, whose settings are in vla_mini/settings.py
    "collect": CollectSettings,
    "evaluate": EvaluateSettings,
    "convert": ConvertSettings,
    "infer": InferSettings,
    "serve": ServeSettings,
    "play": PlaySettings,
    "export": ExportSettings,
    "gradients": GradientsSettings,
    "doctor": DoctorSettings,
    "browse": BrowseSettings,
    "compare": CompareSettings,
}
