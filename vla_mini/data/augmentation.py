"""Changes of training batches, on the device: images by random transforms of torchvision, or whole samples by a mirror.

torchvision draws random numbers once for each call, here for each part of the batch: all cameras and frames of a sample are
changed in the same way, and samples of different parts differently. The seed and the number of the batch determine all of it.
"""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor, nn
from torchvision.transforms import v2

from vla_mini.types import Batch
from vla_mini.utils.errors import as_value_error, did_you_mean
from vla_mini.utils.features import Features

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


class Mirror:
    """Every second sample as a mirror shows it, for tasks that look and work the same in one: images, states and actions.

    - flip: of all images: left_right, up_down, diagonal (rows become columns), antidiagonal (the other diagonal stays)
    - values: name of a state or an action -> (name, factor, offset): its value in the mirror is factor * that one + offset.
      Those that are not named keep their values. Instructions do, too

    Raises ValueError for a name that there is not, for values that mirroring twice would change, and for a diagonal of images
    that are not square.
    """

    def __init__(self, flip: str, values: Mapping[str, Sequence[Any]], *, features: Features) -> None:
        self._flip = flip
        height, width = features.image_size
        if "diagonal" in flip and height != width:
            raise ValueError(f"augmentation.mirror.flip={flip} needs square images, not {height} x {width} pixels")
        known = {*features.state, *features.action}
        for name in [*values, *(source for source, _, _ in values.values())]:
            if name not in known:
                raise ValueError(f"augmentation.mirror.values: there is no {name!r}; {did_you_mean(name, sorted(known))}")
        self._state, self._action = (_affine(names, values) for names in (features.state, features.action))

    def __call__(self, batch: Batch) -> Batch:
        images, state = batch.observation.images, batch.observation.state
        mirrored = torch.arange(len(images), device=images.device) % 2 == 1  # batches are shuffled: a random half
        observation = batch.observation._replace(
            images=torch.where(mirrored[:, None, None, None, None], flipped(images, self._flip), images),
            state=torch.where(mirrored[:, None], _mirrored(state, *self._state), state),
        )
        actions = torch.where(mirrored[:, None, None], _mirrored(batch.actions, *self._action), batch.actions)
        return batch._replace(observation=observation, actions=actions)


def flipped(images: UInt8[Tensor, "*b h w"], flip: str) -> Tensor:
    if flip in ("left_right", "up_down"):
        return images.flip(-1 if flip == "left_right" else -2)
    return images.mT if flip == "diagonal" else images.flip(-1, -2).mT


def _affine(names: tuple[str, ...], values: Mapping[str, Sequence[Any]]) -> tuple[Tensor, Tensor]:
    """A matrix and an offset: in the mirror, `names` have the values matrix @ values + offset."""
    matrix, offset = torch.eye(len(names)), torch.zeros(len(names))
    for row, name in enumerate(names):
        if name in values:
            source, factor, offset[row] = values[name]
            if source not in names:
                raise ValueError(f"augmentation.mirror.values.{name}: {source!r} is not one of {', '.join(names)}")
            matrix[row] = factor * torch.eye(len(names))[names.index(source)]
    twice = torch.isclose(matrix @ matrix, torch.eye(len(names))).all(dim=1) & torch.isclose(matrix @ offset, -offset)
    if not twice.all():
        name = names[int(twice.int().argmin())]
        raise ValueError(f"augmentation.mirror.values.{name}: mirrored twice, it does not become what it was")
    return matrix, offset


def _mirrored(values: Tensor, matrix: Tensor, offset: Tensor) -> Tensor:
    """The last dimension may hold several frames."""
    frames = values.unflatten(-1, (-1, len(offset)))
    return (frames @ matrix.to(values).T + offset.to(values)).flatten(-2)
