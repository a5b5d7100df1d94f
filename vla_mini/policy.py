"""The join: image, word and state tokens are projected to one width, a trunk mixes them, a head turns them into actions.

    images  b k c h w ── vision ──── b n . ── project ─┐
    tokens  b l ──────── language ── b l . ── project ─┼── trunk ── Context ── action head ── actions  b t a
    state   b s ─────────────────────────────── state ─┘                  └── auxiliary loss (training only)

It knows no concrete variant: the parts are handed in, and it holds the projections, the normalisation and the loss.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int64
from torch import Generator, Tensor, nn

from vla_mini.door import admit
from vla_mini.normalization import Normalization
from vla_mini.types import Batch, Context, Features, Observation

INPUTS = ("images", "words", "state")  # what a policy can be made blind to


class Policy(nn.Module):
    """A Vision-Language-Action policy.

    - vision, language, trunk, action: the parts (DESIGN of the package: what each promises is in their folders)
    - auxiliary: an optional further loss on the context; it has a `weight`
    - backbone_action: an optional second head, for knowledge insulation (Driess et al. 2025): the backbone learns from this one
      alone, and the gradient of `action` stops before it
    - normalization: raw units <-> the network's units, with the dataset's statistics
    - features: what a frame of the dataset holds; observations of other sizes are refused
    - history: how many frames are seen and felt, the newest first; to the parts, the past is so many further cameras
    - keyframe: names of the state features that make up the keyframe
    - execute: how many actions of a chunk to execute before the policy is asked again
    - ensemble: None: those of the newest chunk; a number: of all chunks so far, averaged (evaluation/rollout.py says how)
    - blind: names of inputs, of `INPUTS`, that it never sees: black images, no words but the start token, the mean state. What
      is lost by that says what the input is worth
    - source: where it comes from: the environment's id, the dataset's fingerprint (kept for the record)
    """

    def __init__(
        self,
        *,
        vision: nn.Module,
        language: nn.Module,
        trunk: nn.Module,
        action: nn.Module,
        normalization: Normalization,
        features: Features,
        auxiliary: nn.Module | None = None,
        backbone_action: nn.Module | None = None,
        history: int = 1,
        keyframe: Sequence[str] = (),
        execute: int = 1,
        ensemble: float | None = None,
        blind: Sequence[str] = (),
        source: dict[str, str] | None = None,
    ):
        super().__init__()
        if not 1 <= execute <= action.horizon:
            raise ValueError(f"execute={execute}: a chunk has 1 to {action.horizon} actions to execute")
        if unknown := [name for name in blind if name not in INPUTS]:
            raise ValueError(f"blind={list(blind)}: there is no input {unknown[0]!r}, but {', '.join(INPUTS)}")
        self.features, self.keyframe, self.source = features, tuple(keyframe), dict(source or {})
        self.history, self.execute, self.ensemble, self.blind = history, execute, ensemble, tuple(blind)
        self.lora: dict[str, Any] | None = None  # of its low-rank adapters, if it was given any (lora.py)
        self.vision, self.language, self.trunk, self.action = vision, language, trunk, action
        self.auxiliary, self.backbone_action = auxiliary, backbone_action
        self.projection = nn.ModuleDict(
            {"vision": nn.Linear(vision.width, trunk.width), "language": nn.Linear(language.width, trunk.width)}
        )
        cameras = history * len(features.cameras)
        # Tells cameras and ages of frames apart; a single one needs no name.
        self.camera = nn.Embedding(cameras, trunk.width) if cameras > 1 else None
        self.state = nn.Linear(history * features.state_size, trunk.width)
        self.normalization = normalization
        if "words" in blind:  # tokenized here, since a compiled policy cannot
            for name, tensor in zip(("silent_tokens", "silent_mask"), self.tokenize([""]), strict=True):
                self.register_buffer(name, tensor, persistent=False)

    # ---- training

    def loss(self, batch: Batch) -> tuple[Float[Tensor, "b t"], dict[str, Float[Tensor, "b t"]]]:
        """The loss of every action of every chunk, zero where padded, and its terms, detached, for the log.

        A term without a time axis counts once for every valid action of its sample: one denominator serves all.
        """
        self._admit(batch, Batch)
        images, words, mask, state = self.prepare(batch.observation)
        context = self.context(images, words, state, mask)
        valid = ~batch.is_pad
        actions = self.normalization.action(batch.actions.to(state.dtype))
        seen = context if self.backbone_action is None else Context(*(tensor.detach() for tensor in context))
        terms = {"action": self.action.loss(seen, actions, batch.is_pad) * valid}
        total = terms["action"]
        if self.backbone_action is not None:
            terms["backbone_action"] = self.backbone_action.loss(context, actions, batch.is_pad) * valid
            total = total + terms["backbone_action"]
        if self.auxiliary is not None:
            indices = [self.features.state.index(name) for name in self.keyframe]
            keyframe = self.normalization.keyframe(batch.keyframe.to(state.dtype), indices)
            terms["keyframe"] = self.auxiliary(context, keyframe, batch.has_keyframe)[:, None] * valid
            total = total + self.auxiliary.weight * terms["keyframe"]
        return total, {name: term.detach() for name, term in terms.items()}

    def forward(self, batch: Batch) -> tuple[Float[Tensor, "b t"], dict[str, Float[Tensor, "b t"]]]:
        """`loss`. A call is what `policy.compile()` compiles; `policy.loss` stays eager (training/compilation.py)."""
        return self.loss(batch)

    # ---- acting

    @torch.no_grad()
    def act(self, observation: Observation, generator: Generator | None = None) -> Float[Tensor, "b t a"]:
        """A chunk of actions in raw units, without a graph."""
        images, words, mask, state = self.prepare(observation)
        return self.predict(images, words, state, generator, word_mask=mask)

    def predict(
        self,
        images: Float[Tensor, "b k c h w"],
        word_vectors: Float[Tensor, "b l dl"],
        state: Float[Tensor, "b s"],
        generator: Generator | None = None,
        *,
        word_mask: Bool[Tensor, "b l"] | None = None,
    ) -> Float[Tensor, "b t a"]:
        """A chunk of actions in raw units, differentiable by images (in [0, 1]), word vectors and state (raw units)."""
        context = self.context(images, word_vectors, state, word_mask)
        actions = self.action.predict(context, generator)
        return self.normalization.raw_action(actions.to(self.normalization.action_centre.dtype))

    # ---- the way from observation to context

    def prepare(
        self, observation: Observation
    ) -> tuple[Float[Tensor, "b k c h w"], Float[Tensor, "b l dl"], Bool[Tensor, "b l"], Float[Tensor, "b s"]]:
        """Bytes to floats in [0, 1], token ids to word vectors: what `predict` can be differentiated by."""
        self._admit(observation, Observation)
        dtype = self.normalization.state_mean.dtype
        images, tokens, mask, state = observation
        images, state = images.to(dtype) / 255, state.to(dtype)
        if "images" in self.blind:
            images = torch.zeros_like(images)
        if "words" in self.blind:
            tokens, mask = (tensor.expand(len(tokens), -1) for tensor in (self.silent_tokens, self.silent_mask))
        if "state" in self.blind:
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
        if self.camera is not None:
            image_tokens = image_tokens + self.camera.weight[:, None]
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

    def _admit(self, value: Any, kind: type) -> None:
        """Errors name the tensor that does not fit: see door.py."""
        height, width = self.features.image_size
        ages = {"k": self._aged(self.features.cameras), "s": self._aged(self.features.state)}
        names = ages | {"a": self.features.action, "g": self.keyframe}
        admit(value, kind, device=self.device, letters=names | {"c": 3, "h": height, "w": width, "t": self.action.horizon})

    def _aged(self, names: Sequence[str]) -> list[str]:
        """The newest frame's, and those of the frames before it."""
        return [f"{name} {age} before" if age else name for age in range(self.history) for name in names]

    # ---- saving

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config.json, model.safetensors, tokenizers' files and manifest.json to a new folder.

        Low-rank adapters are merged into the weights, or written beside them to adapters.safetensors (`lora.save`).
        """
        from vla_mini.pretrained import save

        save(self, Path(folder))

    @classmethod
    def from_pretrained(cls, folder: str | Path, *, classes: Sequence[type] = (), trust_remote_code: bool = False) -> "Policy":
        """The policy that `save_pretrained` wrote, in eval mode; where there is no such folder, the one of that id (owner/name)
        on the Hugging Face hub. Runs no code but vla_mini's and that of `classes`, unless the policy was trained with
        `trust_remote_code`, which then has to be said again."""
        from vla_mini.pretrained import load

        return load(folder, classes=classes, trust_remote_code=trust_remote_code)

    def push_to_hub(self, repo_id: str, *, private: bool | None = None, token: str | None = None) -> str:
        """Upload what `save_pretrained` writes, with a model card, to the Hugging Face hub; the address of the repository.

        - repo_id: owner/name; made where it is missing
        - private: whether only its owner sees a new one; None: as the owner's settings say
        - token: of the hub; None: the one of `hf auth login`, or of HF_TOKEN

        Raises ValueError where the hub cannot be reached or refuses.
        """
        from vla_mini.sharing import push

        return push(self, repo_id, private=private, token=token)
