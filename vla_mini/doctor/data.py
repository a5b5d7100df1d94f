"""Checks of the demonstrations by themselves, and of the windows that training cuts from them."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vla_mini.data.reader import Demonstrations
from vla_mini.data.windows import ActionWindows
from vla_mini.doctor.finding import Finding
from vla_mini.evaluation.rollout import observe
from vla_mini.features import Moments
from vla_mini.normalization import LEAST_SPREAD
from vla_mini.policy import Policy

# The middle 98 % of a dimension should fill at least this share of its range: else a few outliers set the scale for all.
LEAST_FILLED = 0.05
# Levels, of 255, by which the pixels of an image that shows something deviate from their mean.
LEAST_CONTRAST = 2.0

# Colours that nobody takes for one another, as shares of red, green, blue.
PLAIN = {"red": (1, 0, 0), "yellow": (1, 1, 0), "green": (0, 1, 0), "cyan": (0, 1, 1), "blue": (0, 0, 1), "purple": (1, 0, 1)}
# Of an image's size, that augmentation may move what is seen: as far from where the state says it is.
FARTHEST = 0.1


def numbers(demonstrations: Demonstrations) -> Finding:
    """Are all states and actions numbers?"""
    bad, named = 0, ""
    for kind, values in (("state", demonstrations.states), ("action", demonstrations.actions)):
        wrong = np.argwhere(~np.isfinite(values))
        if len(wrong) and not named:
            frame, dimension = map(int, wrong[0])
            episode = int(np.searchsorted(demonstrations.episode_ends, frame, side="right"))
            named = f", first in {kind} {getattr(demonstrations.features, kind)[dimension]!r}, episode {episode}, frame {frame}"
        bad += len(wrong)
    total = demonstrations.states.size + demonstrations.actions.size
    measured = f"{bad} of {total:,} values are NaN or infinite{named}"
    return Finding("numbers", "fail" if bad else "pass", measured, "none", "repair or leave out those episodes", bad)


def spread(demonstrations: Demonstrations) -> Finding:
    """Does each dimension of state and action vary, without a few outliers setting its scale?"""
    features, statistics = demonstrations.features, demonstrations.statistics
    still = [*_still("state", features.state, statistics.state), *_still("action", features.action, statistics.action)]
    squeezed = [
        *_squeezed("state", features.state, statistics.state),
        *_squeezed("action", features.action, statistics.action),
    ]
    problems = [f"{name} hardly varies (std {std:.1g})" for name, std in still]
    problems += [f"{name} has outliers (98 % of it in {share:.0%} of its range)" for name, share in squeezed]
    expected = f"std above {LEAST_SPREAD:g}, and 98 % of the values in more than {LEAST_FILLED:.0%} of the range"
    least = float(min(statistics.state.std.min(), statistics.action.std.min()))
    if not problems:
        return Finding("spread", "pass", f"smallest std {least:.2g}", expected, value=least)
    dead = len([name for name, _ in still if name.startswith("action")]) == features.action_size
    advice = "leave out dimensions that say nothing; cut off or drop outliers: they squeeze all other values together"
    return Finding("spread", "fail" if dead else "warn", "; ".join(problems), expected, advice, least)


def pixels(demonstrations: Demonstrations, *, frames: int = 64) -> Finding:
    """Does each camera show something, and something else as time goes by?"""
    starts, ends = demonstrations.episode_starts, demonstrations.episode_ends
    episodes = np.linspace(0, len(starts) - 1, min(frames, len(starts))).astype(int)
    first = demonstrations.frames[starts[episodes]].astype(np.float32)  # (e, k, c, h, w)
    later = demonstrations.frames[ends[episodes] - 1]
    contrast = first.std(axis=(0, 2, 3, 4))
    moving = (first != later).any(axis=(2, 3, 4)).mean(axis=0)
    dark = [f"{c} shows nothing (deviation {s:.1f} of 255)" for c, s in _of(demonstrations, contrast) if s < LEAST_CONTRAST]
    frozen = [f"{c} stands still in {1 - m:.0%} of the episodes" for c, m in _of(demonstrations, moving) if m < 0.5]
    expected = f"pixels deviate by more than {LEAST_CONTRAST:g} of 255, and change within an episode"
    measured = ", ".join(dark + frozen) or f"pixels deviate by {contrast.min():.0f} of 255"
    advice = "look at the images: bytes are 0 to 255, and a camera that hangs repeats its last frame"
    status = "fail" if dark else "warn" if frozen else "pass"
    return Finding("pixels", status, measured, expected, advice, float(contrast.min()))


def windows(
    cut: ActionWindows, demonstrations: Demonstrations, policy: Policy, *, split: str = "train", samples: int = 32
) -> Finding:
    """Is a training sample what the dataset holds, and its observation what acting would be shown of the same frame?"""
    data, horizon = demonstrations, policy.action.horizon
    first_episode, last_episode = data.splits[split]
    first = int(data.episode_starts[first_episode])
    ends = data.episode_ends[first_episode:last_episode] - first
    indices = np.unique(np.concatenate([np.linspace(0, len(cut) - 1, samples).astype(int), ends[:2] - 1]))
    batch = cut.__getitems__(indices)
    starts = data.episode_starts[np.searchsorted(data.episode_ends, first + indices, side="right")]
    now = [_shown(data, int(frame)) for frame in first + indices]
    past = [
        [_shown(data, int(frame) - age) for age in range(1, policy.history) if frame - age >= start]
        for frame, start in zip(first + indices, starts, strict=True)
    ]
    acting = observe(policy, now, past=past)
    wrong = [name for name in ("images", "state") if not _equal(getattr(batch.observation, name), getattr(acting, name))]
    if not _same_words(batch.observation, acting):
        wrong.append("instruction")
    actions, is_pad = _chunks(data.actions, first + indices, first + ends, horizon)
    if not np.array_equal(batch.is_pad.numpy(), is_pad):
        wrong.append("padding")
    if not np.array_equal(batch.actions.numpy()[~is_pad], actions[~is_pad]):
        wrong.append("actions")
    count = f"{len(indices)} samples"
    expected = "each sample is its frame, its instruction and the actions from there on, up to the episode's end"
    if not wrong:
        return Finding("windows", "pass", f"{count} equal the dataset and what acting is shown", expected)
    advice = "look at vla_mini/data/windows.py, rollout.observe and the tokenizer: what is trained on is not what is there"
    return Finding("windows", "fail", f"of {count}, these differ from the dataset: {', '.join(wrong)}", expected, advice)


def validation(cut: ActionWindows, demonstrations: Demonstrations, policy: Policy) -> Finding:
    """Are the validation samples what the dataset holds, and of other episodes than training's?"""
    data = demonstrations
    bounds = zip(data.episode_starts, data.episode_ends, strict=True)
    episodes = [data.states[start:end].tobytes() + data.actions[start:end].tobytes() for start, end in bounds]
    trained, held_out = (episodes[slice(*data.splits[split])] for split in ("train", "validation"))
    seen = set(trained)
    shared = sum(episode in seen for episode in held_out)
    if shared:
        measured = f"{shared} of {len(held_out)} validation episodes are in the training data, too"
        advice = "look at `splits` in meta/info.json, and at the seeds: what was seen in training judges nothing"
        return Finding("validation", "fail", measured, "none", advice, shared)
    found = windows(cut, data, policy, split="validation")._replace(check="validation")
    return found._replace(measured=f"{len(held_out)} episodes, none of them trained on; {found.measured}")


def augmentation(augment: Callable[..., torch.Tensor], demonstrations: Demonstrations, *, draws: int = 32) -> Finding:
    """Does a changed image still show what it is said to show, where it is said to be? Plain colours and a white spot tell."""
    height, width = demonstrations.features.image_size
    shown = torch.zeros(1, len(PLAIN) + 1, 3, height, width, dtype=torch.uint8)
    for camera, colour in enumerate(PLAIN.values()):
        shown[:, camera] = 255 * torch.tensor(colour, dtype=torch.uint8)[:, None, None]
    shown[:, -1, :, height // 8 : 3 * height // 8, width // 8 : 3 * width // 8] = 255
    recoloured, moved = set(), 0.0
    for batch in range(draws):
        *colours, spot = augment(shown, batch=batch)[0].float()
        for name, colour in zip(PLAIN, colours, strict=True):
            nearest = min(PLAIN, key=lambda other: float((_hue(colour) - _hue(torch.tensor(PLAIN[other]))).norm()))
            recoloured |= {f"{name} becomes {nearest}"} if nearest != name else set()
        moved = max(moved, float((_centre(spot) - _centre(shown[0, -1].float())).norm()))
    measured = ", ".join([f"images move by up to {moved:.0%} of their size", *sorted(recoloured)[:3]])
    expected = f"colours keep their names, and images move by at most {FARTHEST:.0%}"
    said = {name for name in PLAIN for task in demonstrations.tasks if name in task.lower().split()}
    status = "fail" if recoloured and said else "warn" if recoloured or moved > FARTHEST else "pass"
    advice = "weaken augmentation.transforms: instructions name colours, and actions lead to where things were"
    return Finding("augmentation", status, measured, expected, advice, moved)


def words(demonstrations: Demonstrations, policy: Policy) -> Finding:
    """Does the tokenizer tell the instructions apart?"""
    tokens, mask = policy.tokenize(list(demonstrations.tasks))
    kept = {tuple(row[real].tolist()) for row, real in zip(tokens, mask, strict=True)}
    distinct = len({" ".join(task.lower().split()) for task in demonstrations.tasks})
    measured = f"{distinct} instructions, {len(kept)} of them distinct as tokens, up to {tokens.shape[1]} words"
    advice = "raise language.max_words, or take a tokenizer that knows these words: the policy cannot tell such tasks apart"
    status = "pass" if len(kept) >= distinct else "fail" if len(kept) == 1 else "warn"
    return Finding("words", status, measured, "as many token sequences as instructions", advice, len(kept))


def _hue(image: torch.Tensor) -> torch.Tensor:
    """Which of red, green and blue there is more of than of the others, (3,), of length one; 0 for greys."""
    colour = image.float().reshape(3, -1).mean(dim=1)
    return torch.nn.functional.normalize(colour - colour.mean(), dim=0)


def _centre(image: torch.Tensor) -> torch.Tensor:
    """Where the light of an image (3, h, w) is, as shares of height and width; the middle where it is everywhere the same."""
    light = image.mean(dim=0) - image.mean(dim=0).min()
    places = [(torch.arange(size) + 0.5) / size for size in light.shape]
    if not light.sum():
        return torch.tensor([0.5, 0.5])
    return torch.stack([(light.sum(dim=1 - axis) * place).sum() / light.sum() for axis, place in enumerate(places)])


def _still(kind: str, names: tuple[str, ...], moments: Moments) -> list[tuple[str, float]]:
    return [(f"{kind} {name!r}", float(std)) for name, std in zip(names, moments.std, strict=True) if std < LEAST_SPREAD]


def _squeezed(kind: str, names: tuple[str, ...], moments: Moments) -> list[tuple[str, float]]:
    shares = (moments.q99 - moments.q01) / np.maximum(moments.max - moments.min, LEAST_SPREAD)
    varied = moments.std >= LEAST_SPREAD
    filled = zip(names, shares, varied, strict=True)
    return [(f"{kind} {name!r}", float(share)) for name, share, varies in filled if varies and share < LEAST_FILLED]


def _of(demonstrations: Demonstrations, values: NDArray) -> list[tuple[str, float]]:
    return list(zip((f"camera {name!r}" for name in demonstrations.features.cameras), map(float, values), strict=True))


def _shown(data: Demonstrations, frame: int) -> dict[str, Any]:
    """A frame as an environment would show it."""
    views = np.moveaxis(np.asarray(data.frames[frame]), 1, -1)
    images = dict(zip(data.features.cameras, views, strict=True))
    return {"images": images, "state": data.states[frame], "instruction": data.tasks[data.task_index[frame]]}


def _chunks(actions: NDArray, frames: NDArray, ends: NDArray, horizon: int) -> tuple[NDArray, NDArray]:
    """The chunks that follow `frames`, (b, t, a), and which of their steps lie past the episode's end, one by one."""
    chunks, is_pad = np.zeros((len(frames), horizon, actions.shape[1]), actions.dtype), np.ones((len(frames), horizon), bool)
    for row, frame in enumerate(frames):
        follow = actions[frame : min(frame + horizon, ends[ends > frame][0])]
        chunks[row, : len(follow)], is_pad[row, : len(follow)] = follow, False
    return chunks, is_pad


def _equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and bool(torch.equal(a.cpu(), b.cpu()))


def _same_words(one, other) -> bool:
    """Whether the real tokens are the same, however far each batch is padded."""
    rows = zip(one.tokens.cpu(), one.token_mask.cpu(), other.tokens.cpu(), other.token_mask.cpu(), strict=True)
    return all(torch.equal(tokens[mask], others[other_mask]) for tokens, mask, others, other_mask in rows)
