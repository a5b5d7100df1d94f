"""Random changes of a batch's images in training, by transforms of torchvision: uint8 "b k c h w" -> the same, on the device.

torchvision draws once for all that it is given, here for a part of the batch: all cameras and frames of a sample change alike,
and samples of different parts do not. What is drawn depends on the seed and the number of the batch, and on nothing else.
"""

import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor, nn
from torchvision.transforms import v2

TRIALS = 16  # of each transform when it is made: some change the size by chance


class Augmentation:
    """Transforms, one after the other.

    - transforms: by name, {"_target_": "torchvision.transforms.v2.ColorJitter", "brightness": 0.2, ...}, or None;
      `size`, where a constructor asks for it, is the images' own
    - draws: of random numbers for each batch: 1 for all samples alike, the batch size for each by itself
    - seed: of all that is drawn
    - image_size: (height, width) of the images

    Raises ValueError, with the name, for a transform that cannot be made, or that changes the size or the type of images.
    """

    def __init__(
        self, transforms: Mapping[str, Mapping[str, Any] | None], *, draws: int, seed: int, image_size: tuple[int, int]
    ) -> None:
        self._seed, self._draws = seed, draws
        self._transforms: list[nn.Module] = []
        trial = torch.zeros(1, 1, 3, *image_size, dtype=torch.uint8)
        for name, spec in transforms.items():
            if spec is None:
                continue
            try:
                self._transforms.append(_make(spec, image_size))
                found = {(changed.dtype, changed.shape) for changed in (self(trial, batch=batch) for batch in range(TRIALS))}
            except (ValueError, TypeError, RuntimeError) as error:
                raise ValueError(f"augmentation.transforms.{name}: {' '.join(str(error).split())[:200]}") from error
            for dtype, shape in found - {(trial.dtype, trial.shape)}:
                made = f"{dtype} {tuple(shape[2:])} of uint8 {tuple(trial.shape[2:])}"
                raise ValueError(f"augmentation.transforms.{name} makes {made}: images have to stay as large, and bytes")

    def __call__(self, images: UInt8[Tensor, "b k c h w"], *, batch: int, rank: int = 0) -> Tensor:
        """The images changed; `batch` is the number of the batch since training began, `rank` that of the process."""
        seed = np.random.SeedSequence([self._seed, rank, batch]).generate_state(1, np.uint64)
        with torch.random.fork_rng([images.device] if images.is_cuda else []):  # torchvision draws from the global generator
            torch.manual_seed(int(seed[0]))
            return torch.cat([self._change(part) for part in images.chunk(self._draws)])

    def _change(self, images: UInt8[Tensor, "b k c h w"]) -> Tensor:
        for transform in self._transforms:
            images = transform(images)
        return images


def _make(spec: Mapping[str, Any], image_size: tuple[int, int]) -> nn.Module:
    arguments = dict(spec)
    constructor = getattr(v2, arguments.pop("_target_").rpartition(".")[2])
    if "size" in inspect.signature(constructor).parameters:
        arguments["size"] = list(image_size)
    return constructor(**arguments)
