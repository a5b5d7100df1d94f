"""A vision transformer of the transformers library (SigLIP, DINOv2, ViT, CLIP ...): images "b c h w" in [0, 1] -> one token for
each patch, row by row, "b n width"."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vla_mini.parts import FitData, ObservationSpec, Vision
from vla_mini.utils import hub
from vla_mini.utils.files import read_json, write_json
from vla_mini.utils.layers import resize, resolve_input_size

FILE = "vision_model.json"  # in a saved policy: the model's config and how its images are normalised


class HuggingFaceVision(Vision):
    """Any AutoModel whose last hidden states end in the patches' tokens; those before them (CLS, registers) are dropped.

    - path: a hub id (google/siglip-base-patch16-224) or a local folder: pretrained. None: untrained, from `config`
    - config: a config of transformers, {"model_type": "siglip_vision_model", "hidden_size": 64, ...}; a pretrained model has
      its own
    - input_size: [height, width] that images are resized to. None: the model's own size
    - image_mean, image_std: of red, green and blue. None: the model's own; for an untrained model 0.5
    - trust_remote_code: whether code that comes with the model may be run
    """

    def __init__(
        self,
        spec: ObservationSpec,
        *,
        path: str | None = None,
        config: dict[str, Any] | None = None,
        input_size: list[int] | None = None,
        image_mean: list[float] | None = None,
        image_std: list[float] | None = None,
        trust_remote_code: bool = False,
    ):
        super().__init__()

    @classmethod
    def wanted_size(cls, settings: Mapping[str, Any]) -> list[int] | None:
        path, config, processor = settings.get("path"), settings.get("config") or {}, {}
        if path is not None and not settings.get("input_size"):
            folder = hub.fetch(path, trust_remote_code=settings.get("trust_remote_code", False))
            config, processor = read_json(folder / "config.json"), _read_processor(folder)
        config = config.get("vision_config") or config
        return settings.get("input_size") or processor.get("size") or _pair(config.get("image_size"))

    def fit(self, data: FitData) -> None:
        path, trust = self.settings["path"], self.settings["trust_remote_code"]
        if path is None:
            model, config = hub.make(self.settings["config"])
            self._build(model, config, {"image_mean": [0.5] * 3, "image_std": [0.5] * 3})
        else:
            folder = hub.fetch(path, trust_remote_code=trust)
            model, config = hub.load(folder, part="vision", trust_remote_code=trust)
            self._build(model, config, _read_processor(folder))

    def save_assets(self, folder: Path) -> None:
        write_json(folder / FILE, {"config": self.config, "processor": self.processor})

    def load_assets(self, folder: Path) -> None:
        saved = read_json(folder / FILE)
        self._build(*hub.make_again(saved["config"], part="vision", settings=self.settings), saved["processor"])

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
        images = resize(images, self.input_size)
        # Positional embeddings are interpolated where the images are not of the size that they were learned at.
        resized = {} if self.input_size == self.model_size else {"interpolate_pos_encoding": True}
        tokens = self.model(pixel_values=(images - self.mean) / self.std, **resized).last_hidden_state
        return tokens[:, -self.grid[0] * self.grid[1] :]

    def _build(self, model: nn.Module, config: dict[str, Any], processor: dict[str, Any]) -> None:
        """Sizes, normalisation and grid of a model, found in its config, in its processor's, and by one forward pass."""
        settings, kind, patch = self.settings, config.get("model_type"), _pair(config.get("patch_size"))
        self.model, self.config = model, config
        self.model_size = _pair(config.get("image_size"))
        own_size = processor.get("size") or self.model_size
        if not patch or not (own_size or settings["input_size"]):
            raise ValueError(f"model_type={kind} is not an encoder of patches: its config has no image_size and patch_size")
        self.input_size = resolve_input_size(settings["input_size"], own_size)
        mean = settings["image_mean"] or processor.get("image_mean")
        std = settings["image_std"] or processor.get("image_std")
        if not mean or not std:
            raise ValueError(f"path={settings['path']} has no normalisation of images: give image_mean and image_std")
        self.processor = {"size": processor.get("size"), "image_mean": mean, "image_std": std}
        self.grid = (self.input_size[0] // patch[0], self.input_size[1] // patch[1])
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(std)[:, None, None], persistent=False)
        with hub.transformers_errors(f"model_type={kind} cannot encode images"):
            tokens = self(torch.zeros(1, 3, *self.input_size))
        if tokens.shape[1] != self.grid[0] * self.grid[1]:
            raise ValueError(f"model_type={kind} gives {tokens.shape[1]} tokens for {self.grid} patches")
        self.width = tokens.shape[-1]
        hub.freeze_unused(self.model, tokens)
        self.settings = hub.saved_settings(settings, config)


def _read_processor(folder: Path) -> dict[str, Any]:
    """How the images of a pretrained model were prepared: {"size": [h, w], "image_mean": ..., "image_std": ...}."""
    found: dict[str, Any] = {}
    for name in ("preprocessor_config.json", "processor_config.json"):  # the second is how transformers 5 writes it
        if (folder / name).is_file():
            whole = read_json(folder / name)
            found = found | whole.get("image_processor", whole)
    if found.get("do_normalize") is False:
        found = found | {"image_mean": [0.0] * 3, "image_std": [1.0] * 3}
    crop = found.get("crop_size") if found.get("do_center_crop", True) else None
    size = crop or found.get("size")  # the model gets what is left after cropping
    if isinstance(size, dict):
        size = [size["height"], size["width"]] if "height" in size else size.get("shortest_edge")
    return found | {"size": _pair(size)}


def _pair(size: int | list[int] | tuple[int, ...] | None) -> list[int] | None:
    """A square's side, or height and width -> [height, width]."""
    return [size, size] if isinstance(size, int) else list(size) if size else None
