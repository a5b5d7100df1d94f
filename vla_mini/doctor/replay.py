"""The expert replays its own demonstrations: environment + seed -> the same episodes, held against the dataset frame by frame.

Scenes, disturbances and the expert follow from (purpose, seed, attempt), so what was collected can be played again. Where
it differs, the usual mistakes are tried on the dataset's side until one of them explains the difference.

Compared are the frames up to which the states agree: a dataset collected with another `disturbance` still has its first
frames in common. Datasets from elsewhere, or of another seed, cannot be replayed, and are not judged.
"""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import gymnasium
import numpy as np
from numpy.typing import NDArray

import vla_mini.envs
from vla_mini.collection import Played, play
from vla_mini.data.reader import Demonstrations
from vla_mini.doctor.finding import Finding

# Rounding differs between versions and processors: of states and actions, and in levels of 255 of an image's mean.
CLOSE, CLOSE_PIXELS = 1e-3, 1.0
# Attempts that are looked at, beside a tenth of the episodes that are passed over, for the one that an episode was.
PATIENCE = 10
PURPOSE = "demonstration"
# Of the actions: a mistake that makes so many of them right is taken for the reason.
EXPLAINED = 0.8
UNDO = "undo that where the dataset is written, and collect it anew"


class Episode(NamedTuple):
    """One demonstration, as stored or as played again."""

    images: NDArray  # (t, k, c, h, w) uint8
    states: NDArray  # (t, s)
    actions: NDArray  # (t, a)
    task: str


class Pair(NamedTuple):
    stored: Episode
    played: Episode
    agree: int  # leading frames in which the states are the same


def replay(demonstrations: Demonstrations, env_id: str, *, seed: int, episodes: int = 8) -> list[Pair]:
    """Episodes at the beginning, in the middle and at the end of the training data, so many each, beside the same ones played
    again. ValueError, with the reason, where they cannot be."""
    env = vla_mini.envs.make(env_id)
    inner = env.unwrapped
    if getattr(inner, "expert_action", None) is None:
        raise ValueError(f"{env_id} has no scripted expert")
    for name in ("cameras", "image_size", "state", "action"):
        own, theirs = getattr(inner.features, name), getattr(demonstrations.features, name)
        if own != theirs:
            raise ValueError(f"recorded elsewhere: its {name} is {theirs}, that of {env_id} is {own}")
    chosen = _spread(*demonstrations.splits["train"], episodes=episodes)
    stored = [_stored(demonstrations, episode) for episode in chosen]
    played = [play(env, purpose=PURPOSE, seed=seed, attempt=n) for n in _attempts(env, chosen, stored, seed=seed)]
    env.close()
    again = [(one, _seen(other)) for one, other in zip(stored, played, strict=True) if other is not None]
    known = [pair for pair in again if _same_scene(*pair)]
    if 2 * len(known) < len(stored):
        raise ValueError(
            f"collected elsewhere, or with another seed: {len(known)} of {len(stored)} scenes are data.seed={seed}'s, "
            f"and its expert succeeds in {len(again)}"
        )
    return [Pair(one, other, _agreement(one, other)) for one, other in again]


def states(pairs: list[Pair]) -> Finding:
    """Do the states follow one another as they do when the expert plays?"""
    agree, total = sum(pair.agree for pair in pairs), sum(len(pair.stored.states) for pair in pairs)
    begin = sum(pair.agree > 0 for pair in pairs)
    measured = f"{agree} of {total} frames of {len(pairs)} episodes come out the same when the expert plays them again"
    status = "pass" if agree == total else "warn" if begin == len(pairs) else "fail"
    advice = (
        "collect anew if env, expert or disturbance have changed since; else the states, or their order, are damaged"
        if begin == len(pairs)
        else f"the states of {len(pairs) - begin} episodes begin elsewhere: are they of this scene, in these units?"
    )
    return Finding("replay", status, measured, "all", advice, agree / total)


def images(pairs: list[Pair]) -> Finding:
    """Do the images show what the environment's cameras see of the same scenes?"""
    stored = np.concatenate([pair.stored.images[: max(1, pair.agree)] for pair in pairs])
    played = np.concatenate([pair.played.images[: max(1, pair.agree)] for pair in pairs])
    difference = _distance(stored, played)
    measured = f"{difference:.1f} of 255 levels from what the environment shows, in {len(stored)} frames"
    expected = f"at most {CLOSE_PIXELS:g}"
    if difference <= CLOSE_PIXELS:
        return Finding("images", "pass", measured, expected, value=difference)
    reasons = (name for name, views in _other_views(stored) if _distance(views, played) <= CLOSE_PIXELS)
    reason = next(reasons, None)
    advice = UNDO if reason else "is it this camera? Compare a stored image with a rendered one"
    return Finding("images", "fail", f"{measured}{f': {reason}' if reason else ''}", expected, advice, difference)


def instructions(pairs: list[Pair]) -> Finding:
    """Is each episode told what its scene asks for?"""
    wrong = [pair for pair in pairs if pair.stored.task != pair.played.task]
    measured = f"{len(pairs) - len(wrong)} of {len(pairs)} episodes have the instruction of their scene"
    if not wrong:
        return Finding("instructions", "pass", measured, "all", value=1.0)
    elsewhere = {pair.played.task for pair in pairs}
    others = sum(pair.stored.task in elsewhere for pair in wrong)
    measured += f"; one says {wrong[0].stored.task!r} for {wrong[0].played.task!r}"
    advice = "the instructions are those of other episodes: look at task_index" if others else "look at meta/tasks.parquet"
    return Finding("instructions", "fail", measured, "all", advice, 1 - len(wrong) / len(pairs))


def labels(pairs: list[Pair]) -> Finding:
    """Is each action what the expert does in that very frame?"""
    stored = [pair.stored.actions[: max(1, pair.agree)] for pair in pairs]
    played = [pair.played.actions[: max(1, pair.agree)] for pair in pairs]
    right = float(np.mean([close for a, b in zip(stored, played, strict=True) for close in _close(a, b)]))
    measured = f"{right:.1%} of {sum(map(len, stored))} actions are the expert's in that frame"
    if right > 0.999:
        return Finding("labels", "pass", measured, "all", value=right)
    reason = next((name for name, a, b in _other_labels(stored, played) if len(b) and _close(a, b).mean() > EXPLAINED), None)
    advice = UNDO if reason else "compare stored actions with the expert's: units, order, time, scene"
    return Finding("labels", "fail", f"{measured}{f': {reason}' if reason else ''}", "all", advice, right)


# ---- the episodes


def _stored(data: Demonstrations, episode: int) -> Episode:
    frames = slice(int(data.episode_starts[episode]), int(data.episode_ends[episode]))
    task = data.tasks[data.task_index[frames.start]]
    return Episode(np.asarray(data.frames[frames]), data.states[frames], data.actions[frames], task)


def _spread(first: int, last: int, *, episodes: int) -> list[int]:
    """Of `first` to `last` those at the beginning, in the middle and at the end: neighbours, to tell when they are mixed up."""
    starts = (max(first, start) for start in (first, (first + last - episodes) // 2, last - episodes))
    return sorted({episode for start in starts for episode in range(start, min(start + episodes, last))})


def _attempts(env: gymnasium.Env, chosen: list[int], stored: list[Episode], *, seed: int) -> Iterator[int]:
    """The attempt that each episode was: where some before it failed, a later one than its number. The nearest of those that
    may be it, by the first image; or by the first state, where no image is the same."""
    attempt, before = 0, chosen[0]
    for number, episode in zip(chosen, stored, strict=True):
        least = attempt + number - before
        begun = {n: _begun(env, n, seed=seed) for n in range(least, least + (number - before) // 10 + PATIENCE)}
        by_image = {n: _distance(episode.images[:1], images) for n, (images, _) in begun.items()}
        by_state = {n: float(np.abs(episode.states[0] - state).max()) for n, (_, state) in begun.items()}
        nearest = min(by_image, key=by_image.get)
        attempt, before = nearest if by_image[nearest] <= CLOSE_PIXELS else min(by_state, key=by_state.get), number
        yield attempt
        attempt, before = attempt + 1, number + 1


def _begun(env: gymnasium.Env, attempt: int, *, seed: int) -> tuple[NDArray, NDArray]:
    """The first images (1, k, c, h, w) and state (s,) of an attempt."""
    observation, _ = env.reset(seed=attempt, options={"purpose": PURPOSE, "seed": seed})
    views = np.stack([observation["images"][camera] for camera in env.unwrapped.features.cameras])
    return np.moveaxis(views, -1, 1)[None], observation["state"]


def _seen(played: Played) -> Episode:
    views = np.stack(list(played.images.values()), axis=1)
    return Episode(np.moveaxis(views, -1, 2), played.states, played.actions, played.task)


def _same_scene(stored: Episode, played: Episode) -> bool:
    """Whether anything of how the episodes begin is the same: a fault in one respect must not hide the others."""
    state = bool(np.allclose(stored.states[0], played.states[0], atol=CLOSE))
    image = _distance(stored.images[:1], played.images[:1]) <= CLOSE_PIXELS
    return state or image or (stored.task == played.task and len(stored.states) == len(played.states))


def _agreement(stored: Episode, played: Episode) -> int:
    length = min(len(stored.states), len(played.states))
    same = np.isclose(stored.states[:length], played.states[:length], atol=CLOSE).all(axis=1)
    return length if same.all() else int(same.argmin())


# ---- what may have gone wrong


def _other_views(images: NDArray) -> Iterator[tuple[str, NDArray]]:
    """Images (n, k, c, h, w) as they would be without one of the usual mistakes, with its name."""
    for order, name in (([2, 1, 0], "red and blue are swapped"), ([0, 2, 1], "green and blue are swapped")):
        yield name, images[:, :, order]
    for order in itertools.permutations(range(images.shape[1])):
        if list(order) != sorted(order):
            yield "the cameras are swapped", images[:, list(order)]
    yield "the images stand on their heads", images[..., ::-1, :]
    yield "the images are mirrored", images[..., ::-1]
    yield "rows and columns are swapped", np.swapaxes(images, -1, -2) if images.shape[-1] == images.shape[-2] else images
    yield "the images are negatives", 255 - images
    yield "each image stands one frame too late", np.concatenate([images[1:], images[-1:]])
    yield "each image stands one frame too early", np.concatenate([images[:1], images[:-1]])


def _other_labels(stored: list[NDArray], played: list[NDArray]) -> Iterator[tuple[str, NDArray, NDArray]]:
    """The name of a usual mistake, the stored actions without it and what they should then be, each (n, a)."""
    a, b = np.concatenate(stored), np.concatenate(played)
    later, earlier = [x[1:] for x in stored], [x[:-1] for x in stored]
    yield "each action stands one frame too late", np.concatenate(later), np.concatenate([x[:-1] for x in played])
    yield "each action stands one frame too early", np.concatenate(earlier), np.concatenate([x[1:] for x in played])
    yield "the sign of all actions is flipped", -a, b
    for i in range(a.shape[1]):
        yield f"the sign of action {i + 1} of {a.shape[1]} is flipped", a * np.where(np.arange(a.shape[1]) == i, -1, 1), b
    for i, j in itertools.combinations(range(a.shape[1]), 2):
        order = list(range(a.shape[1]))
        order[i], order[j] = j, i
        yield f"actions {i + 1} and {j + 1} are swapped", a[:, order], b
    others = [_nearest(x, [y for j, y in enumerate(played) if j != i]) for i, x in enumerate(stored)]
    lengths = [min(len(x), len(y)) for x, y in zip(stored, others, strict=True)]
    mine, theirs = ([x[:n] for x, n in zip(xs, lengths, strict=True)] for xs in (stored, others))
    yield "the actions are those of other episodes", np.concatenate(mine), np.concatenate(theirs)
    scale = np.median(a[np.abs(b) > 0.1] / b[np.abs(b) > 0.1]) if (np.abs(b) > 0.1).any() else 1.0
    yield f"the actions are {scale:.3g} times too large", a / (scale or 1.0), b


def _nearest(actions: NDArray, others: list[NDArray]) -> NDArray:
    """Of the other episodes' actions those that agree with these most often; none at all where there is no other."""
    return max(others, key=lambda y: _close(actions[: len(y)], y[: len(actions)]).mean(), default=actions[:0])


def _distance(one: NDArray, other: NDArray) -> float:
    return float(np.abs(one.astype(np.float32) - other).mean())


def _close(one: NDArray, other: NDArray) -> NDArray:
    return np.isclose(one, other, atol=CLOSE).all(axis=-1)
