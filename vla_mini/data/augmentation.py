"""Random changes of a batch's images in training, by transforms of torchvision: uint8 "b k c h w" -> the same, on the device.

torchvision draws random numbers once for each call, here for each part of the batch: all cameras and frames of a sample are
changed in the same way, and samples of different parts differently. The seed and the number of the batch determine all of it.
"""

import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor, nn
from torchvision.transforms import v2

from vla_mini.utils.errors import as_value_error

TRIALS = 16  # calls of each new transform: some change the image's size at random


class Augmentation:
    """Transforms, one after the other.

    - transforms: by name, {"_target_": "torchvision.transforms.v2.ColorJitter", "brightness": 0.2, ...}, or None;
      `size`, where a constructor asks for it, is the images' own
    - draws: parts of a batch that are changed differently: 1 = all samples in the same way, the batch size = each in its own
    - seed: of all random numbers
    - image_size: (height, width) of the images

    Raises ValueError, with the name, for a transform that cannot be made, or that changes the size or the type of images.
    """

    def __init__(
        self, transforms: Mapping[str, Mapping[str, Any] | None], *, draws: int, seed: int, image_size: tuple[int, int]
    ) -> None:
        self._seed, self._draws = seed, draws
        self._transforms = nn.Sequential()
        trial = torch.zeros(1, 1, 3, *image_size, dtype=torch.uint8)
        for name, spec in transforms.items():
            if spec is None:
                continue
            constructor = getattr(v2, spec["_target_"].rpartition(".")[2])
            arguments = {key: value for key, value in spec.items() if key != "_target_"}
            if "size" in inspect.signature(constructor).parameters:
                arguments["size"] = list(image_size)
            with as_value_error(f"augmentation.transforms.{name}", ValueError, TypeError, RuntimeError):
                self._transforms.append(constructor(**arguments))
                changed = [self(trial, batch=batch) for batch in range(TRIALS)]
            for other in changed:
                if (other.dtype, other.shape) != (trial.dtype, trial.shape):
                    change = f"changes uint8 {tuple(trial.shape[2:])} to {other.dtype} {tuple(other.shape[2:])}"
                    raise ValueError(f"augmentation.transforms.{name} {change}: images have to keep their size and type")

    def __call__(self, images: UInt8[Tensor, "b k c h w"], *, batch: int, rank: int = 0) -> Tensor:
        """The changed images. `batch` is the number of the batch since training began, `rank` that of the process."""
        seed = np.random.SeedSequence([self._seed, rank, batch]).generate_state(1, np.uint64)
        with torch.random.fork_rng([images.device] if images.is_cuda else []):  # torchvision uses the global generator
            torch.manual_seed(int(seed[0]))
            return torch.cat([self._transforms(part) for part in images.chunk(self._draws)])
