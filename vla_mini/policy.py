"""The policy: image, word and state tokens are projected to one width, a trunk mixes them, a head turns them into actions.

    images  b k c h w ── vision ──── b n . ── project ─┐
    tokens  b l ──────── language ── b l . ── project ─┼── trunk ── Context ── action head ── actions  b t a
    state   b s ──────────────────────── . ── project ─┘                  └── auxiliary losses (training only)

It knows no concrete variant: its parts are built by their class paths. It holds the projections, the normalisation, the loss.
"""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int64
from torch import Generator, Tensor, nn
from torch.utils._pytree import tree_map_only

from vla_mini.normalization import Normalization, NormalizationSettings
from vla_mini.parts import ActingDefaults, AuxiliarySpec, EpisodeData, FitData, HeadSpec, ObservationSpec, TrunkSpec
from vla_mini.pretrained import PretrainedMixin
from vla_mini.registry import build
from vla_mini.types import Batch, Context, Features, Observation, Prefix, Statistics, Units, check_inputs
from vla_mini.utils.errors import did_you_mean

INPUTS = ("images", "instruction", "state")  # what can be ablated
Generators = Generator | Sequence[Generator] | None  # of noise: one for all chunks, one for each, or torch's own
OTHER_LOSSES = ("loss", "action", "backbone_action")  # names in the log that no auxiliary loss may have


class Policy(PretrainedMixin, nn.Module):
    """A Vision-Language-Action policy, from the settings of its parts and the facts about the data that they are built for.

    - parts: `{"vision": {"_target_": ..., ...}, "language": ..., "trunk": ..., "action": ..., "auxiliary": {name: ...}}`; what
      each promises is in parts.py. "backbone_action" is an optional second head, for knowledge insulation (Driess et al.
      2025): it and the auxiliary losses train the backbone, and the gradient of `action` stops before it
    - features: what a frame of the dataset holds; observations of other sizes are refused
    - statistics: of the dataset, for raw units <-> network units
    - horizon: number of actions in a chunk
    - normalization: modes, and the actions that are predicted relative to the state at the chunk's start
    - instructions, action_chunks: of the training split, (n, t, a) in raw units or relative: what the parts are fitted to
    - assets: the folder of a saved policy, whose vocabulary and action tokens are used instead
    - classes: those of the parts that are not vla_mini's own
    - history: how many frames are observed, the newest first; to the parts, past frames are further cameras
    - acting: defaults of the Controller (acting.py), kept for saving
    - units: of the datasets that it was trained on, by name, where these have statistics of their own (`in_units_of`)
    - ablate: names of inputs, of `INPUTS`, that are replaced by a constant: black images, an empty instruction, the mean state
    - source: the environment's id and the dataset's fingerprint, kept for the record
    """

    def __init__(
        self,
        parts: Mapping[str, Any],
        *,
        features: Features,
        statistics: Statistics,
        horizon: int,
        normalization: NormalizationSettings = NormalizationSettings(),  # noqa: B008 (immutable)
        instructions: Sequence[str] = (),
        action_chunks: np.ndarray | None = None,
        assets: Path | None = None,
        classes: Sequence[type] = (),
        history: int = 1,
        acting: ActingDefaults | None = None,
        units: Mapping[str, Units] = {},
        ablate: Sequence[str] = (),
        source: Mapping[str, str] = {},
    ):
        super().__init__()
        if unknown := [name for name in ablate if name not in INPUTS]:
            raise ValueError(f"ablate={list(ablate)}: {unknown[0]!r} is not an input; {did_you_mean(unknown[0], INPUTS)}")
        self.features, self.history, self.acting = features, history, acting or ActingDefaults()
        self.ablate, self.source, self.units = tuple(ablate), dict(source), dict(units)
        self.lora: dict[str, Any] | None = None  # settings of the low-rank adapters, if there are any (lora.py)
        units = Normalization(statistics, history=history, settings=normalization, features=features)
        if normalization.relative and "state" in ablate:
            raise ValueError("ablate=[state]: relative actions cannot be turned into absolute ones without the state")
        chunks = np.zeros((0, horizon, features.action_size), np.float32) if action_chunks is None else action_chunks
        data = FitData(tuple(instructions), units.action(torch.from_numpy(chunks)), statistics)
        options = {"classes": classes, "data": data, "assets": assets}

        num_images = history * len(features.cameras)
        observation = ObservationSpec(features.cameras * history, features.image_size, features.state)
        self.vision = vision = build("vision", parts["vision"], observation, **options)
        self.language = build("language", parts["language"], observation, **options)
        self.trunk = trunk = build("trunk", parts["trunk"], TrunkSpec(vision.grid, num_images), **options)
        head = HeadSpec(trunk.width, trunk.num_tokens, horizon, features.action_size)
        self.action = build("action", parts["action"], head, **options)
        if self.action.bounded and normalization.action in ("mean_std", "none"):
            told = f"{type(self.action).__name__} puts out normalised actions of -1 to 1 alone; use min_max or quantiles"
            raise ValueError(f"data.normalization.action={normalization.action}: {told}")
        second = parts.get("backbone_action")
        backbone_action = build("action", second, head, name="backbone_action", **options) if second else None
        spec = AuxiliarySpec(vision.grid, num_images, trunk.num_queries, trunk.width, features.state, features.action)
        self.auxiliary, self.backbone_action = nn.ModuleDict(), backbone_action
        for name, settings in (parts.get("auxiliary") or {}).items():
            if not name.isidentifier() or name in (*OTHER_LOSSES, *dir(self.auxiliary)):
                raise ValueError(f"auxiliary: an auxiliary loss cannot be named {name!r}: choose another identifier")
            self.auxiliary[name] = build("auxiliary", settings, spec, name=f"auxiliary.{name}", **options)
        self.projection = nn.ModuleDict(
            {"vision": nn.Linear(vision.width, trunk.width), "language": nn.Linear(self.language.width, trunk.width)}
        )
        # Distinguishes cameras and frames of history; a single image needs no embedding.
        self.camera_embedding = nn.Embedding(num_images, trunk.width) if num_images > 1 else None
        self.state = nn.Linear(history * features.state_size, trunk.width)
        self.normalization = units

        (height, width), cameras = features.image_size, _with_history(features.cameras, history)
        # The sizes of inputs, or the names of their entries, by the letters of types.py.
        self.letters = {"k": cameras, "c": 3, "h": height, "w": width, "s": _with_history(features.state, history)}
        self.letters |= {"a": features.action, "t": horizon}
        if "instruction" in self.ablate:  # tokenized here, since a compiled policy cannot
            for name, tensor in zip(("empty_tokens", "empty_mask"), self.tokenize([""]), strict=True):
                self.register_buffer(name, tensor, persistent=False)

    # ---- training

    def loss(self, batch: Batch) -> tuple[Float[Tensor, "b t"], dict[str, Float[Tensor, "b t"]]]:
        """The loss of every action of every chunk, zero where padded, and its terms, detached, for the log.

        An auxiliary loss has one value a sample, which is repeated for each valid action: each term is a mean over all of them.
        The terms are not multiplied by their weights.
        """
        check_inputs(batch, Batch, device=self.device, letters=self.letters)
        images, words, mask, state = self.prepare(batch.observation)
        context = self.context(images, words, state, mask)
        valid = ~batch.is_pad
        actions = self.normalization.action(batch.actions.to(state.dtype), state)
        insulated = context if self.backbone_action is None else tree_map_only(Tensor, Tensor.detach, context)
        terms = {"action": self.action.loss(insulated, actions, batch.is_pad) * valid}
        total = terms["action"]
        if self.backbone_action is not None:
            terms["backbone_action"] = self.backbone_action.loss(context, actions, batch.is_pad) * valid
            total = total + terms["backbone_action"]
        for name, auxiliary in self.auxiliary.items():
            terms[name] = auxiliary.loss(context, batch)[:, None] * valid
            total = total + auxiliary.weight * terms[name]
        return total, {name: term.detach() for name, term in terms.items()}

    def forward(self, batch: Batch) -> tuple[Float[Tensor, "b t"], dict[str, Float[Tensor, "b t"]]]:
        """`loss`. A call is what `policy.compile()` compiles; `policy.loss` stays eager (training/trainer.py)."""
        return self.loss(batch)

    def auxiliary_targets(self, data: EpisodeData) -> dict[str, np.ndarray]:
        """The targets of all auxiliary losses, by name, a row a frame. ValueError where two losses use one name."""
        targets: dict[str, np.ndarray] = {}
        for name, loss in self.auxiliary.items():
            found = loss.targets(data)
            if both := targets.keys() & found.keys():
                raise ValueError(f"auxiliary.{name}: another auxiliary loss has targets of the name {both.pop()!r}, too")
            targets |= found
        return targets

    # ---- acting

    @torch.no_grad()
    def act(
        self, observation: Observation, generator: Generators = None, prefix: Prefix | None = None
    ) -> Float[Tensor, "b t a"]:
        """`predict_chunk`, without a graph."""
        return self.predict_chunk(observation, generator, prefix)

    def predict_chunk(
        self, observation: Observation, generator: Generators = None, prefix: Prefix | None = None
    ) -> Float[Tensor, "b t a"]:
        """A chunk of actions in raw units; one that begins with `prefix`, in raw units, where the head takes one."""
        images, words, mask, state = self.prepare(observation)
        return self.predict(images, words, state, self.draw_noise(len(state), generator), word_mask=mask, prefix=prefix)

    def predict(
        self,
        images: Float[Tensor, "b k c h w"],
        word_vectors: Float[Tensor, "b l dl"],
        state: Float[Tensor, "b s"],
        noise: Float[Tensor, "b t a"] | None = None,
        *,
        word_mask: Bool[Tensor, "b l"] | None = None,
        prefix: Prefix | None = None,
    ) -> Float[Tensor, "b t a"]:
        """A chunk of actions in raw units, differentiable by images (in [0, 1]), word vectors and state (raw units)."""
        assert prefix is None or self.takes_prefix
        context = self.context(images, word_vectors, state, word_mask)
        if prefix is None:
            actions = self.action.predict(context, noise)
        else:
            normalized = prefix._replace(actions=self.normalization.action(prefix.actions, state))
            actions = self.action.predict(context, noise, normalized)
        return self.normalization.unnormalize_action(actions.to(self.normalization.action_offset.dtype), state)

    def draw_noise(self, size: int, generator: Generators = None) -> Float[Tensor, "b t a"] | None:
        """Standard normal noise for `size` chunks; None where the head does not sample."""
        if not self.action.needs_noise:
            return None
        if isinstance(generator, Sequence):
            return torch.cat([self.draw_noise(1, each) for each in generator])
        shape, offset = (size, self.horizon, self.features.action_size), self.normalization.action_offset
        return torch.randn(shape, generator=generator, dtype=offset.dtype, device=offset.device)

    def in_units_of(self, dataset: str) -> "Policy":
        """A copy that takes the states and puts out the actions of one of the datasets that the policy was trained on with
        data.statistics=by_dataset, and not those of the first one. ValueError for one that it does not know."""
        if dataset not in self.units:
            raise ValueError(f"the policy has no statistics of a dataset {dataset!r}: {did_you_mean(dataset, self.units)}")
        policy = copy.deepcopy(self)
        policy.normalization.change_units(self.units[dataset])
        policy.units = {}
        return policy

    # ---- from observation to context

    def prepare(
        self, observation: Observation
    ) -> tuple[Float[Tensor, "b k c h w"], Float[Tensor, "b l dl"], Bool[Tensor, "b l"], Float[Tensor, "b s"]]:
        """Bytes to floats in [0, 1], token ids to word vectors: what `predict` can be differentiated by."""
        check_inputs(observation, Observation, device=self.device, letters=self.letters)
        dtype = self.normalization.state_mean.dtype
        images, tokens, mask, state = observation
        images, state = images.to(dtype) / 255, state.to(dtype)
        if "images" in self.ablate:
            images = torch.zeros_like(images)
        if "instruction" in self.ablate:
            tokens, mask = (tensor.expand(tokens.shape[0], -1) for tensor in (self.empty_tokens, self.empty_mask))
        if "state" in self.ablate:
            state = self.normalization.state_mean.expand_as(state)
        return images, self.language(tokens, mask), mask, state

    def context(
        self,
        images: Float[Tensor, "b k c h w"],
        word_vectors: Float[Tensor, "b l dl"],
        state: Float[Tensor, "b s"],
        word_mask: Bool[Tensor, "b l"] | None = None,
    ) -> Context:
        """Three kinds of tokens, projected to one width, mixed by the trunk."""
        if word_mask is None:
            word_mask = torch.ones(word_vectors.shape[:2], dtype=torch.bool, device=word_vectors.device)
        cameras = images.shape[1]
        image_tokens = self.vision(rearrange(images, "b k c h w -> (b k) c h w"))
        image_tokens = rearrange(self.projection["vision"](image_tokens), "(b k) n d -> b k n d", k=cameras)
        if self.camera_embedding is not None:
            image_tokens = image_tokens + self.camera_embedding.weight[:, None]
        image_tokens = rearrange(image_tokens, "b k n d -> b (k n) d")
        word_tokens = self.projection["language"](word_vectors)
        state_token = self.state(self.normalization.state(state))
        return self.trunk(image_tokens, word_tokens, word_mask, state_token)

    def tokenize(self, instructions: list[str]) -> tuple[Int64[Tensor, "b l"], Bool[Tensor, "b l"]]:
        """The language part's own tokenizer."""
        return self.language.tokenize(instructions)

    @property
    def device(self) -> torch.device:
        return self.normalization.state_mean.device

    @property
    def horizon(self) -> int:
        """The number of actions in a chunk."""
        return self.action.spec.horizon

    def unknown_words(self, instruction: str) -> list[str]:
        """The words of one instruction that the language part's vocabulary lacks."""
        return self.language.unknown_words(instruction)

    @property
    def takes_prefix(self) -> bool:
        """Whether a chunk can continue the one before it."""
        return self.action.takes_prefix

    def components(self) -> dict[str, nn.Module]:
        """The direct submodules that hold parameters, by name: vision, language, trunk, action, state, projection ..."""
        return {name: part for name, part in self.named_children() if any(True for _ in part.parameters())}


def _with_history(names: Sequence[str], history: int) -> list[str]:
    """The newest frame's, and those of the frames before it."""
    return [f"{name} {age} before" if age else name for age in range(history) for name in names]
