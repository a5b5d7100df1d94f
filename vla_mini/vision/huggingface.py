"""A vision transformer of the transformers library (SigLIP, DINOv2, ViT, CLIP ...): images `b c h w` in [0, 1] -> one token for
each patch, row by row, `b n width`."""

import json
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vla_mini import hub
from vla_mini.layers import resize, size_to_see


class HuggingFaceVision(nn.Module):
    """Any AutoModel whose last hidden states end in the patches' tokens; those before them (CLS, registers) are dropped.

    - path: a hub id (google/siglip-base-patch16-224) or a local folder: pretrained. None: untrained, as `config` says
    - config: what transformers calls a config, {"model_type": "siglip_vision_model", "hidden_size": 64, ...}; a pretrained
      model has its own
    - input_size: [height, width] that images are resized to, whatever their shape. None: what the model was made for
    - image_mean, image_std: of the three colours. None: what the model was made for; untrained, 0.5
    - trust_remote_code: whether code that comes with the model may be run
    """

    def __init__(
        self,
        *,
        path: str | None = None,
        config: dict[str, Any] | None = None,
        input_size: list[int] | None = None,
        image_mean: list[float] | None = None,
        image_std: list[float] | None = None,
        trust_remote_code: bool = False,
    ):
        super().__init__()
        if path is not None:
            folder = hub.fetch(path, trust_remote_code=trust_remote_code)
            self.model, config = hub.load(folder, part="vision", trust_remote_code=trust_remote_code)
            processor = _read_processor(folder)
        elif config is not None:
            self.model, config = hub.make(config)
            processor = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
        else:
            raise ValueError("vision=huggingface needs a path (a hub id or a folder) or a config")
        # What a saved policy is made from again: no path, unless to code that is not ours.
        self.config, self.trust_remote_code = config, trust_remote_code
        self.path = path if "auto_map" in config else None
        self.made_for = _pair(config.get("image_size"))
        own_size = processor.get("size") or self.made_for
        if not own_size and not input_size:
            raise ValueError(f"model_type={config.get('model_type')} is no encoder of patches: it says no size of images")
        self.input_size = size_to_see(input_size, own_size)
        self.image_mean, self.image_std = image_mean or processor.get("image_mean"), image_std or processor.get("image_std")
        self.grid = self._grid(_pair(config.get("patch_size")))
        if not self.image_mean or not self.image_std:
            raise ValueError(f"path={path} does not say how its images are normalised: give image_mean and image_std")
        self.register_buffer("mean", torch.tensor(self.image_mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(self.image_std)[:, None, None], persistent=False)
        with hub.explained(f"model_type={config['model_type']} cannot see"):
            tokens = self(torch.zeros(1, 3, *self.input_size))
        if tokens.shape[1] != self.grid[0] * self.grid[1]:
            raise ValueError(f"model_type={config['model_type']} gives {tokens.shape[1]} tokens for {self.grid} patches")
        self.width = tokens.shape[-1]
        hub.freeze_unused(self.model, tokens)

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
        images = resize(images, self.input_size)
        # Position vectors are stretched where the images are not of the size that they were learnt at.
        stretch = {} if self.input_size == self.made_for else {"interpolate_pos_encoding": True}
        tokens = self.model(pixel_values=(images - self.mean) / self.std, **stretch).last_hidden_state
        return tokens[:, -self.grid[0] * self.grid[1] :]

    def _grid(self, patch: list[int] | None) -> tuple[int, int]:
        if not patch:
            raise ValueError(f"model_type={self.config.get('model_type')} is no encoder of patches: it says no size of them")
        return self.input_size[0] // patch[0], self.input_size[1] // patch[1]


def _read_processor(folder: Path) -> dict[str, Any]:
    """How the images that a pretrained model knows were prepared: {"size": [h, w], "image_mean": ..., "image_std": ...}."""
    found: dict[str, Any] = {}
    for name in ("preprocessor_config.json", "processor_config.json"):  # the second is how transformers 5 writes it
        if (folder / name).is_file():
            whole = json.loads((folder / name).read_text())
            found = found | whole.get("image_processor", whole)
    if found.get("do_normalize") is False:
        found = found | {"image_mean": [0.0] * 3, "image_std": [1.0] * 3}
    crop = found.get("crop_size") if found.get("do_center_crop", True) else None
    size = crop or found.get("size")  # what is left after cropping is what the model sees
    if isinstance(size, dict):
        size = [size["height"], size["width"]] if "height" in size else size.get("shortest_edge")
    return found | {"size": _pair(size)}


def _pair(size: int | list[int] | tuple[int, ...] | None) -> list[int] | None:
    """A square's side, or height and width -> [height, width]."""
    return [size, size] if isinstance(size, int) else list(size) if size else None
