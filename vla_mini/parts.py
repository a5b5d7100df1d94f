"""The contract of each part of a policy: abstract base classes, and the typed facts that their constructors get.

    vision     images "b c h w" in [0, 1]                 -> tokens "b n d"
    language   tokens and mask "b l"                      -> word vectors "b l d"
    trunk      image, word and state tokens               -> Context
    action     Context (and noise)                        -> actions "b t a"
    auxiliary  Context and batch (in training alone)      -> loss "b"

A constructor takes first, by position, a *spec*: facts about the data and about the other parts. All further arguments are
keyword-only *settings*: exactly the keys of its YAML file, annotated with their types and bounds. The base class remembers
both; the settings are what is saved with a policy.
"""

import functools
import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from pydantic import ValidationError
from tokenizers import Tokenizer
from torch import Tensor, nn

from vla_mini.types import Batch, Context
from vla_mini.utils.errors import did_you_mean, validation_message
from vla_mini.utils.features import Features, Resize, Statistics
from vla_mini.utils.schema import settings_model

UNKNOWN_TOKENS = {"[UNK]", "<unk>"}  # as BERT writes it, and as T5 and RoBERTa do


@dataclass(frozen=True)
class ObservationSpec:
    """What vision and language parts are built for."""

    cameras: tuple[str, ...]  # one entry for each camera in each frame of history
    image_size: tuple[int, int]  # height, width in pixels
    state: tuple[str, ...]


@dataclass(frozen=True)
class TrunkSpec:
    """What trunks are built for: image tokens lie on a grid (rows, columns) for each camera."""

    grid: tuple[int, int]
    num_cameras: int


@dataclass(frozen=True)
class HeadSpec:
    """What action heads are built for."""

    context_width: int
    num_tokens: int  # context tokens
    horizon: int
    action_size: int


@dataclass(frozen=True)
class AuxiliarySpec:
    """What auxiliary losses are built for: the image tokens' grid, the trunk's queries and context, the features' names."""

    grid: tuple[int, int]
    num_cameras: int
    num_queries: int
    context_width: int
    state_names: tuple[str, ...]
    action_names: tuple[str, ...]


class FitData(NamedTuple):
    """What `Part.fit` learns from: the training split."""

    instructions: tuple[str, ...]  # each once
    action_chunks: Float[Tensor, "n t a"]  # normalised, evenly spaced over the frames
    statistics: Statistics  # raw units


@runtime_checkable
class EpisodeData(Protocol):
    """All frames of all episodes, one after another: what auxiliary losses compute their targets from."""

    features: Features
    states: np.ndarray  # (n, s) float32, raw units
    actions: np.ndarray  # (n, a) float32, raw units
    episode_starts: np.ndarray  # (episodes,)
    episode_ends: np.ndarray  # (episodes,), exclusive


class ActingDefaults(NamedTuple):
    """How a policy's chunks are executed unless the command that acts sets it otherwise."""

    execute: int = 1  # actions of a chunk that are executed before the next chunk is predicted
    # None: the newest chunk alone; else the mean of all chunks, weighted exp(-ensemble * i), where the oldest has i = 0.
    ensemble: float | None = None
    resize: Resize = "letterbox"  # camera images of other proportions


class Part(nn.Module, ABC):
    """A part of a policy.

    - spec, settings: what the constructor was called with, defaults filled in; set by `__new__`, before `__init__` runs. `fit`
      and `load_assets` may replace settings by what they led to: a saved policy keeps no path of pretrained weights
    - changeable: names of settings that may be changed after training; each is also an attribute
    - divisible: False where a batch's content decides how often layers are called, so that several processes cannot gather the
      weights of a layer together (FSDP)

    A ValueError about a setting begins with its name (`width=3 is ...`); registry.py puts the part's own key before it.
    """

    spec: Any
    settings: dict[str, Any]
    spec_class: ClassVar[type]
    changeable: ClassVar[tuple[str, ...]] = ()
    divisible: bool = True

    def __new__(cls, *args: Any, **kwargs: Any) -> "Part":
        if not args and not kwargs:  # a copy is made, or an object is unpickled
            return super().__new__(cls)
        signature = _check_class(cls)
        part = super().__new__(cls)
        bound = signature.bind(part, *args, **kwargs)
        bound.apply_defaults()
        (_, _), (_, spec), *settings = bound.arguments.items()  # self, the spec, then the settings by name
        part.__dict__.update(spec=spec, settings=dict(settings))  # not as attributes: nn.Module.__init__ is yet to come
        return part

    def fit(self, data: FitData) -> None:
        """Called once, directly after construction, for a policy that will be trained: learn a vocabulary or action tokens
        from `data`, load pretrained weights."""

    def save_assets(self, folder: Path) -> None:
        """Write what is neither a setting nor a weight (a tokenizer, a model's config) into a saved policy's folder."""

    def load_assets(self, folder: Path) -> None:
        """Called in the place of `fit` for a saved policy, before its weights are loaded: read what `save_assets` wrote."""

    def change(self, **settings: Any) -> None:
        """Change settings after training. ValueError for one that is not `changeable`, or a value that does not fit."""
        for name in settings.keys() - {*self.changeable}:
            kind, hint = type(self).__name__, did_you_mean(name, self.changeable)
            raise ValueError(f"{name}={settings[name]}: of {kind} it may not change after training; {hint}")
        values = {"_target_": type(self).__qualname__, **self.settings, **settings}
        try:
            arguments = settings_model(type(self)).model_validate(values).arguments()
        except ValidationError as error:
            raise ValueError(validation_message(error, value=values)) from None
        type(self)(self.spec, **arguments)  # which checks what two settings may not be together
        self.settings |= settings
        for name, value in settings.items():
            setattr(self, name, value)


class Vision(Part):
    """Images -> image tokens, row by row.

    - width: size of a token
    - grid: (rows, columns) of the tokens
    """

    spec_class = ObservationSpec
    width: int
    grid: tuple[int, int]

    @classmethod
    def wanted_size(cls, settings: Mapping[str, Any]) -> list[int] | None:
        """[height, width] that a part with these settings resizes images to; None: it takes them as they are. Images of a
        dataset without an environment are decoded to this size."""
        return settings.get("input_size")

    @abstractmethod
    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
        """Images with values in [0, 1] -> tokens."""


class Language(Part):
    """Instruction -> word vectors. It owns a tokenizer, which `fit` or `load_assets` makes.

    - width: size of a word vector
    - tokenizer: pads a batch to one length, cuts what is too long, and begins each instruction with a special token
    """

    spec_class = ObservationSpec
    width: int
    tokenizer: Tokenizer

    @abstractmethod
    def forward(self, tokens: Int64[Tensor, "b l"], mask: Bool[Tensor, "b l"]) -> Float[Tensor, "b l d"]:
        """Token ids -> word vectors, zero where padded."""

    def tokenize(self, instructions: list[str]) -> tuple[Int64[Tensor, "b l"], Bool[Tensor, "b l"]]:
        """Token ids, padded to the longest instruction, and which of them are real (the first always is)."""
        encodings = self.tokenizer.encode_batch(instructions)
        tokens = torch.tensor([encoding.ids for encoding in encodings], dtype=torch.int64)
        return tokens, torch.tensor([encoding.attention_mask for encoding in encodings], dtype=torch.bool)

    def tokens_of(self, instruction: str) -> list[str]:
        """The tokens of one instruction as text, special ones included."""
        return self.tokenizer.encode(instruction).tokens

    def unknown_words(self, instruction: str) -> list[str]:
        """The words of one instruction that the vocabulary lacks: all of them share one vector."""
        encoding = self.tokenizer.encode(instruction)
        pairs = zip(encoding.tokens, encoding.offsets, strict=True)
        return [instruction[start:end] for token, (start, end) in pairs if token in UNKNOWN_TOKENS]


class Trunk(Part):
    """Image, word and state tokens -> Context.

    - width: of all tokens, which the policy projects to it
    - num_tokens: context tokens
    - num_queries: attention maps over the image tokens; 0 where a trunk has none
    """

    spec_class = TrunkSpec
    width: int
    num_tokens: int
    num_queries: int

    @abstractmethod
    def forward(
        self,
        image: Float[Tensor, "b n d"],
        words: Float[Tensor, "b l d"],
        word_mask: Bool[Tensor, "b l"],
        state: Float[Tensor, "b d"],
    ) -> Context: ...


class ActionHead(Part):
    """Context -> a chunk of actions, in normalised units: [-1, 1] is the range of the training data.

    - needs_noise: True for a head that draws samples: its `predict` starts from noise
    - bounded: True for a head that puts out nothing beyond [-1, 1]
    - takes_prefix: True for a head whose `predict` also takes `prefix: Prefix | None`, actions that the chunk is to begin with
    - exportable: False for a head whose `predict` calls its layers as often as their values demand, which no graph can do

    Every context has `spec.num_tokens` tokens, some of them masked: a head may have layers of that size.
    """

    spec_class = HeadSpec
    needs_noise: ClassVar[bool] = False
    bounded: bool = False
    takes_prefix: ClassVar[bool] = False
    exportable: ClassVar[bool] = True

    @abstractmethod
    def loss(self, context: Context, actions: Float[Tensor, "b t a"], is_pad: Bool[Tensor, "b t"]) -> Float[Tensor, "b t"]:
        """The loss of each action, unreduced. The policy sets it to zero where padded; `is_pad` is for heads whose loss of one
        action depends on others."""

    @abstractmethod
    def predict(self, context: Context, noise: Float[Tensor, "b t a"] | None = None) -> Float[Tensor, "b t a"]:
        """A chunk of actions, differentiable. `noise`: standard normal, for heads that sample."""

    def expected_initial_loss(self, actions: Float[Tensor, "n a"]) -> float | None:
        """What an action costs on average while the head has learned nothing; None where that is not known."""
        return None


class AuxiliaryLoss(Part):
    """A further loss in training.

    - weight: of this loss beside the action loss
    """

    spec_class = AuxiliarySpec
    weight: float

    def targets(self, data: EpisodeData) -> dict[str, np.ndarray]:
        """What `loss` needs beside observation and actions: arrays of a row a frame, "n ...", which come back in
        `batch.targets` by the same names. Rows of zeros mean that a frame has no target."""
        return {}

    @abstractmethod
    def loss(self, context: Context, batch: Batch) -> Float[Tensor, " b"]:
        """The loss of each sample, unreduced and not yet multiplied by the weight."""


KINDS: dict[str, type[Part]] = {
    "vision": Vision,
    "language": Language,
    "trunk": Trunk,
    "action": ActionHead,
    "auxiliary": AuxiliaryLoss,
}


@functools.cache
def _check_class(cls: type[Part]) -> inspect.Signature:
    """The constructor's signature. ValueError, in one line, for a class that does not keep the contract."""
    if cls.__abstractmethods__:
        base = next(base.__name__ for base in cls.__mro__ if base in KINDS.values())
        missing = ", ".join(sorted(cls.__abstractmethods__))
        raise ValueError(f"{cls.__name__} does not define {missing}, which vla_mini.parts.{base} asks for")
    signature = inspect.signature(cls.__init__)
    parameters = [*signature.parameters.values()][1:]  # without self
    if not parameters or parameters[0].kind is not inspect.Parameter.POSITIONAL_OR_KEYWORD:
        raise ValueError(
            f"{cls.__name__}.__init__ takes no spec: write __init__(self, spec: {cls.spec_class.__name__}, *, ...)"
        )
    for setting in parameters[1:]:
        if setting.kind is not setting.KEYWORD_ONLY or setting.annotation is setting.empty:
            raise ValueError(f"{cls.__name__}: {setting.name!r} has to be a keyword-only setting with a type (after a `*`)")
        if setting.name in {field.name for field in fields(cls.spec_class)}:
            raise ValueError(f"{cls.__name__}: the setting {setting.name!r} is named like a field of {cls.spec_class.__name__}")
    return signature
