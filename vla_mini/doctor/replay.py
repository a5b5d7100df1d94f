"""Checks that replay demonstrations with the expert: dataset, environment and seed -> pairs of episodes -> findings.

Scenes, action noise and the expert's actions follow from (purpose, seed, attempt), so that a collected episode can be played
again. Where the two differ, the usual mistakes are undone in the stored data, one by one, until one explains the difference.

Frames are compared up to the first whose states differ: a dataset collected with another action noise still begins with the
same frames. Datasets of other environments or other seeds cannot be replayed.
"""

import itertools
from collections.abc import Iterator
from contextlib import closing
from typing import NamedTuple

import gymnasium
import numpy as np
from jaxtyping import Bool, Float, UInt8

from vla_mini.collection import Played, play
from vla_mini.data.reader import Demonstrations
from vla_mini.doctor.data import camera_images
from vla_mini.doctor.finding import CannotCheckError, Finding
from vla_mini.envs import get_spec, make

# Rounding differs between versions and processors: of states and actions, and of pixels (mean difference, of 255).
TOLERANCE, PIXEL_TOLERANCE = 1e-3, 1.0
# An episode may be this many attempts later than its number, and a tenth of the episodes that were left out before it.
MAX_FAILED_ATTEMPTS = 10
# A mistake whose correction makes this share of the actions right explains the difference.
EXPLAINED_SHARE = 0.8
CORRECT_IT = "correct this where the dataset is written, and collect it again"

Actions = Float[np.ndarray, "_ a"]


class Pair(NamedTuple):
    """An episode as stored and as replayed, and the number of frames from the first on whose states are equal."""

    stored: Played
    replayed: Played
    num_equal: int


def replay(data: Demonstrations, env_id: str | None, *, seed: int, episodes: int = 8) -> list[Pair]:
    """Episodes at the beginning, in the middle and at the end of the training split, `episodes` each, that the expert repeats.

    Raises CannotCheckError where they cannot be replayed.
    """
    if env_id is None:
        raise CannotCheckError("env=none: there is no environment to replay the demonstrations in")
    if not get_spec(env_id).has_expert:
        raise CannotCheckError(f"{env_id} has no scripted expert")
    if (number := get_spec(env_id).num_tasks) > 1:
        raise CannotCheckError(f"{env_id} has {number} tasks: only demonstrations of one can be replayed")
    first, last = data.splits["train"]
    starts = (max(first, start) for start in (first, (first + last - episodes) // 2, last - episodes))
    chosen = sorted({episode for start in starts for episode in range(start, min(start + episodes, last))})
    pairs, same, attempt, previous = [], 0, 0, chosen[0]
    with closing(make(env_id)) as env:
        for episode in chosen:
            frames = slice(int(data.episode_starts[episode]), int(data.episode_ends[episode]))
            task = data.tasks[data.task_index[frames.start]]
            stored = Played(camera_images(data, frames), data.states[frames], data.actions[frames], task)
            earliest, left_out = attempt + episode - previous, episode - previous
            attempts = range(earliest, earliest + left_out // 10 + MAX_FAILED_ATTEMPTS)
            similarities = [_num_similarities(stored, env, number, seed=seed) for number in attempts]
            attempt = attempts[int(np.argmax(similarities))]
            same += max(similarities) > 0
            replayed = play(env, purpose="demonstration", seed=seed, attempt=attempt)
            attempt, previous = attempt + 1, episode + 1
            if replayed is not None:
                pairs.append(Pair(stored, replayed, _num_equal_states(stored, replayed)))
    if 2 * same < len(chosen) or not pairs:
        scenes = f"{same} of {len(chosen)} scenes are the same, and the expert succeeds in {len(pairs)}"
        raise CannotCheckError(f"not collected with {env_id} and data.seed={seed}: {scenes}")
    return pairs


def states(pairs: list[Pair]) -> Finding:
    """Are the states of all frames those of the replay?"""
    equal, total = sum(pair.num_equal for pair in pairs), sum(len(pair.stored.states) for pair in pairs)
    different_starts = sum(pair.num_equal == 0 for pair in pairs)
    measured = f"{equal} of {total} frames of {len(pairs)} episodes are equal when the expert plays them again"
    advice = "collect again if environment, expert or action noise have changed; otherwise states are damaged or out of order"
    if different_starts:
        advice = f"the states of {different_starts} episodes differ from the first frame on: are scene and units the same?"
    status = "pass" if equal == total else "fail" if different_starts else "warn"
    return Finding(status, measured, "all", advice, equal / total)


def images(pairs: list[Pair]) -> Finding:
    """Do the images show what the environment renders in the same scenes?"""
    stored, replayed = (np.concatenate([_images(pair[i])[: max(1, pair.num_equal)] for pair in pairs]) for i in (0, 1))
    difference = _pixel_difference(stored, replayed)
    measured = f"the mean difference from the rendered images is {difference:.1f} of 255, in {len(stored)} frames"
    expected = f"at most {PIXEL_TOLERANCE:g}"
    if difference <= PIXEL_TOLERANCE:
        return Finding("pass", measured, expected, value=difference)
    corrected = _corrected_images(stored)
    mistake = next((f": {name}" for name, views in corrected if _pixel_difference(views, replayed) <= PIXEL_TOLERANCE), "")
    advice = CORRECT_IT if mistake else "compare a stored image with a rendered one: is it the same camera?"
    return Finding("fail", measured + mistake, expected, advice, difference)


def instructions(pairs: list[Pair]) -> Finding:
    """Does each episode have the instruction of its scene?"""
    wrong = [pair for pair in pairs if pair.stored.task != pair.replayed.task]
    measured = f"{len(pairs) - len(wrong)} of {len(pairs)} episodes have the instruction of their scene"
    if not wrong:
        return Finding("pass", measured, "all", value=1.0)
    measured += f"; one has {wrong[0].stored.task!r} instead of {wrong[0].replayed.task!r}"
    swapped = {pair.stored.task for pair in wrong} & {pair.replayed.task for pair in pairs}
    advice = "the instructions are those of other episodes: look at task_index" if swapped else "look at meta/tasks.parquet"
    return Finding("fail", measured, "all", advice, 1 - len(wrong) / len(pairs))


def labels(pairs: list[Pair]) -> Finding:
    """Is each action what the expert does in that frame?"""
    stored, replayed = ([pair[i].actions[: max(1, pair.num_equal)] for pair in pairs] for i in (0, 1))
    share = float(_equal_actions(np.concatenate(stored), np.concatenate(replayed)).mean())
    measured = f"{share:.1%} of {sum(map(len, stored))} actions are those of the expert in that frame"
    if share > 0.999:
        return Finding("pass", measured, "all", value=share)
    corrected = _corrected_actions(stored, replayed)
    mistake = next((f": {name}" for name, *both in corrected if _equal_actions(*both).mean() > EXPLAINED_SHARE), "")
    advice = CORRECT_IT if mistake else "compare stored actions with the expert's: units, order, time, scene"
    return Finding("fail", measured + mistake, "all", advice, share)


def _num_similarities(stored: Played, env: gymnasium.Env, attempt: int, *, seed: int) -> int:
    """How many of images, state and instruction of the first frame are equal: a mistake in one must not hide the others."""
    observation, _ = env.reset(seed=attempt, options={"purpose": "demonstration", "seed": seed})
    differences = [_pixel_difference(x[0], observation["images"][camera]) for camera, x in stored.images.items()]
    same_state = np.allclose(stored.states[0], observation["state"], atol=TOLERANCE)
    return (max(differences) <= PIXEL_TOLERANCE) + same_state + (stored.task == observation["instruction"])


def _num_equal_states(stored: Played, replayed: Played) -> int:
    length = min(len(stored.states), len(replayed.states))
    equal = np.isclose(stored.states[:length], replayed.states[:length], atol=TOLERANCE).all(axis=1)
    return length if equal.all() else int(equal.argmin())


def _images(played: Played) -> UInt8[np.ndarray, "t k h w c"]:
    return np.stack(list(played.images.values()), axis=1)


def _corrected_images(images: UInt8[np.ndarray, "n k h w c"]) -> Iterator[tuple[str, np.ndarray]]:
    """Each usual mistake by name, with the images as they are without it."""
    yield "red and blue are swapped", images[..., [2, 1, 0]]
    yield "green and blue are swapped", images[..., [0, 2, 1]]
    for order in itertools.permutations(range(images.shape[1])):
        yield "the cameras are swapped", images[:, list(order)]
    yield "the images are upside down", images[:, :, ::-1]
    yield "the images are mirrored", images[:, :, :, ::-1]
    if images.shape[2] == images.shape[3]:
        yield "rows and columns are swapped", np.swapaxes(images, 2, 3)
    yield "the images are negatives", 255 - images
    yield "each image is stored one frame too late", np.roll(images, -1, axis=0)
    yield "each image is stored one frame too early", np.roll(images, 1, axis=0)


def _corrected_actions(stored: list[Actions], replayed: list[Actions]) -> Iterator[tuple[str, Actions, Actions]]:
    """Each usual mistake by name, with the stored actions of all episodes without it, and the actions expected then."""
    actions, expected = np.concatenate(stored), np.concatenate(replayed)
    size = actions.shape[1]
    for name, shift in (("late", -1), ("early", 1)):
        shifted = np.concatenate([np.roll(episode, shift, axis=0) for episode in stored])
        yield f"each action is stored one frame too {name}", shifted, expected
    yield "the sign of all actions is flipped", -actions, expected
    for i in range(size):
        yield f"the sign of action {i + 1} of {size} is flipped", actions * np.where(np.arange(size) == i, -1, 1), expected
    for i, j in itertools.combinations(range(size), 2):
        order = [{i: j, j: i}.get(index, index) for index in range(size)]
        yield f"actions {i + 1} and {j + 1} are swapped", actions[:, order], expected
    if len(replayed) > 1:
        similar = [_most_similar(own, replayed[:i] + replayed[i + 1 :]) for i, own in enumerate(stored)]
        cut = ([x[: len(y)] for x, y in zip(*pair, strict=True)] for pair in ((stored, similar), (similar, stored)))
        yield "the actions are those of other episodes", *map(np.concatenate, cut)
    large = np.abs(expected) > 0.1
    scale = np.median(actions[large] / expected[large]) if large.any() else 1.0
    yield f"the actions are {scale:.3g} times too large", actions / (scale or 1.0), expected


def _most_similar(actions: Actions, others: list[Actions]) -> Actions:
    """The actions among `others` that equal `actions` most often."""
    return max(others, key=lambda other: _equal_actions(actions[: len(other)], other[: len(actions)]).mean())


def _pixel_difference(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one.astype(np.float32) - other).mean())


def _equal_actions(one: Actions, other: Actions) -> Bool[np.ndarray, " n"]:
    return np.isclose(one, other, atol=TOLERANCE).all(axis=1)
