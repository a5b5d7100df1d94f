"""Checks of the demonstrations, and of the samples that training makes of them: demonstrations (and policy) -> findings."""

import math
from collections.abc import Callable

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from torch.utils._pytree import tree_map

from vla_mini.acting import observe
from vla_mini.autograd.batches import select
from vla_mini.data.chunks import ActionChunkDataset
from vla_mini.data.reader import Demonstrations
from vla_mini.doctor.finding import Finding
from vla_mini.policy import Policy

# Augmentation may move what an image shows by this share of its size.
MAX_SHIFT = 0.1
# Colours that are far from one another, as shares of red, green and blue.
COLOURS = {"red": (1, 0, 0), "yellow": (1, 1, 0), "green": (0, 1, 0), "cyan": (0, 1, 1), "blue": (0, 0, 1), "purple": (1, 0, 1)}


def finite_values(data: Demonstrations) -> Finding:
    """Are all states and actions finite?"""
    kinds = (("state", data.features.state, data.states), ("action", data.features.action, data.actions))
    bad = [
        (f"{kind} {names[dimension]!r}", int(frame))
        for kind, names, values in kinds
        for frame, dimension in np.argwhere(~np.isfinite(values))
    ]
    measured = f"{len(bad)} of {data.states.size + data.actions.size:,} values are NaN or infinite"
    if not bad:
        return Finding("pass", measured, "none", value=0)
    name, frame = bad[0]
    episode = int(np.searchsorted(data.episode_ends, frame, side="right"))
    measured += f", the first in {name}, episode {episode}, frame {frame}"
    return Finding("fail", measured, "none", "repair or leave out these episodes", len(bad))


def tokens(demonstrations: Demonstrations, policy: Policy) -> Finding:
    """Do different instructions become different tokens?"""
    ids, mask = policy.tokenize(list(demonstrations.tasks))
    sequences = {tuple(row[real].tolist()) for row, real in zip(ids, mask, strict=True)}
    instructions = len({" ".join(task.lower().split()) for task in demonstrations.tasks})
    measured = f"{instructions} instructions, {len(sequences)} of them distinct as tokens, at most {ids.shape[1]} tokens long"
    advice = "raise language.max_words, or choose a tokenizer that knows these words"
    status = "pass" if len(sequences) >= instructions else "fail" if len(sequences) == 1 else "warn"
    return Finding(status, measured, "as many token sequences as instructions", advice, len(sequences))


def chunks(
    dataset: ActionChunkDataset, data: Demonstrations, policy: Policy, *, split: str = "train", samples: int = 32
) -> Finding:
    """Does each sample hold what the demonstrations hold, and is its observation the one that acting on that frame makes?"""
    first, last = data.splits[split]
    offset, ends = int(data.episode_starts[first]), data.episode_ends[first:last]
    frames = np.unique([*np.linspace(offset, ends[-1] - 1, samples).astype(int), *(ends[:2] - 1)])
    batch = dataset.__getitems__(frames - offset)
    wrong: dict[str, None] = {}
    for row, frame in enumerate(frames.tolist()):
        episode = np.searchsorted(data.episode_ends, frame, side="right")
        past = range(frame - 1, max(data.episode_starts[episode] - 1, frame - policy.history), -1)
        now, *before = (
            {"images": camera_images(data, i), "state": data.states[i], "instruction": data.tasks[data.task_index[i]]}
            for i in (frame, *past)
        )
        acting = tree_map(Tensor.cpu, select(observe(policy, [now], past=[before]), 0))
        actions, sample = data.actions[frame : min(frame + policy.horizon, data.episode_ends[episode])], select(batch, row)
        training = sample.observation
        equal = {
            "images": torch.equal(training.images, acting.images),
            "state": torch.equal(training.state, acting.state),
            "instruction": torch.equal(training.tokens[training.token_mask], acting.tokens[acting.token_mask]),
            "padding": sample.is_pad.tolist() == [step >= len(actions) for step in range(len(sample.is_pad))],
            "actions": np.array_equal(sample.actions[: len(actions)], actions),
        }
        wrong |= {name: None for name, same in equal.items() if not same}
    if not wrong:
        return Finding("pass", f"{len(frames)} samples equal the demonstrations, and their observations those of acting")
    measured = f"of {len(frames)} samples, these differ from the demonstrations: {', '.join(wrong)}"
    expected = "each sample is its frame, its instruction and the actions from there to the end of the episode"
    advice = "look at ActionChunkDataset in vla_mini/data/chunks.py, observe in vla_mini/acting.py and the tokenizer"
    return Finding("fail", measured, expected, advice)


def validation(dataset: ActionChunkDataset, data: Demonstrations, policy: Policy) -> Finding:
    """Are the validation episodes missing from the training split, and are the samples right?"""
    bounds = zip(data.episode_starts, data.episode_ends, strict=True)
    episodes = [data.states[start:end].tobytes() + data.actions[start:end].tobytes() for start, end in bounds]
    trained, held_out = (episodes[slice(*data.splits[split])] for split in ("train", "validation"))
    shared = len([episode for episode in held_out if episode in set(trained)])
    if shared:
        measured = f"{shared} of {len(held_out)} validation episodes are also in the training split"
        return Finding("fail", measured, "none", "look at `splits` in meta/info.json, and at the seeds", shared)
    found = chunks(dataset, data, policy, split="validation")
    return found._replace(measured=f"{len(held_out)} episodes, none of them trained on; {found.measured}")


def augmentation(augment: Callable[..., Tensor], demonstrations: Demonstrations, *, repeats: int = 32) -> Finding:
    """Do augmented images still show the colours that instructions name, where the state says they are?

    Images of one colour each, and one of a white square, are augmented `repeats` times.
    """
    height, width = demonstrations.features.image_size
    references = torch.tensor(list(COLOURS.values()))
    images = torch.zeros(1, len(COLOURS) + 1, 3, height, width, dtype=torch.uint8)
    images[0, :-1] = 255 * references[:, :, None, None]
    images[0, -1, :, height // 8 : 3 * height // 8, width // 8 : 3 * width // 8] = 255
    changed, shift = set(), 0.0
    for batch in range(repeats):
        augmented = augment(images, batch=batch)[0].float()
        nearest = (_hues(augmented[:-1].mean(dim=(2, 3))) @ _hues(references.float()).T).argmax(dim=1)
        pairs = zip(COLOURS, (list(COLOURS)[index] for index in nearest), strict=True)
        changed |= {f"{name} becomes {other}" for name, other in pairs if name != other}
        moved = (_bright_centre(augmented[-1]) - _bright_centre(images[0, -1].float())) / torch.tensor([height, width])
        distance = float(moved.norm())
        shift = max(shift, 1.0 if math.isnan(distance) else distance)  # NaN: the square has left the image
    measured = ", ".join([f"images move by up to {shift:.0%} of their size", *sorted(changed)[:3]])
    expected = f"each colour stays the nearest to itself, and images move by at most {MAX_SHIFT:.0%}"
    named = any(name in task.lower().split() for name in COLOURS for task in demonstrations.tasks)
    status = "fail" if changed and named else "warn" if changed or shift > MAX_SHIFT else "pass"
    advice = "weaken augmentation.transforms: instructions name colours, and actions lead to where objects were"
    return Finding(status, measured, expected, advice, shift)


def camera_images(data: Demonstrations, frames: int | slice) -> dict[str, np.ndarray]:
    """The images of one frame or of several, "... h w c" by camera, as in an environment's observation."""
    return dict(zip(data.features.cameras, rearrange(data.frames[frames], "... k c h w -> k ... h w c"), strict=True))


def _hues(colours: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
    """Colours without brightness and saturation, as vectors of length one; 0 for greys."""
    return F.normalize(colours - colours.mean(dim=1, keepdim=True), dim=1)


def _bright_centre(image: Float[Tensor, "3 h w"]) -> Float[Tensor, "2"]:
    """The mean position, in pixels, of what is brighter than the mean; NaN for an image that is all the same."""
    light = image.mean(dim=0)
    return (light > light.mean()).nonzero().float().mean(dim=0)
