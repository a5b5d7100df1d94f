"""Checks of what was recorded, whatever policy is trained on it: demonstrations -> findings.

They are about dimensions of states (n, s) and actions (n, a), about episodes and sentences; doctor/images.py examines frames.
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Float

from vla_mini.data.reader import Demonstrations
from vla_mini.doctor.finding import Finding
from vla_mini.utils.features import FeatureStatistics

# The middle 98 % of a dimension should fill at least this share of its range: otherwise a few outliers set the scale.
MIN_FILLED_RANGE = 0.05
# A jump: a step within one frame that is so many times as large as 99 % of the steps, and at least such a share of the range.
JUMP, JUMP_RANGE = 6, 0.2
# A dimension with so few values is a switch, as of a gripper: it jumps by design, and one of its values may be rare.
SWITCH_VALUES = 16
# An end of an episode is idle while nothing is further than this share of its range from its first or last value.
IDLE_RANGE, IDLE_SECONDS = 0.01, 1.0
# An episode is very short below this share of the median length.
SHORT = 0.2
# Two episodes are near-duplicates where the mean distance of their paths is below this number of standard deviations.
DUPLICATE, DUPLICATE_POINTS = 0.02, 16
# Actions are states where they differ by at most this share of a dimension's range, in at least this share of the frames.
SAME_VALUE, SAME_FRAMES = 1e-4, 0.98

Vector = tuple[str, tuple[str, ...], np.ndarray, FeatureStatistics]  # "state" or "action", names (d), values (n, d), statistics


def still(data: Demonstrations) -> Finding:
    """Does each dimension of state and action move?"""
    total, number, texts = data.features.state_size + data.features.action_size, 0, []
    for kind, names, _, found in vectors(data):
        unmoved = [repr(names[i]) for i in np.flatnonzero(found.still)]
        number += len(unmoved)
        texts += [f"{kind} {_listed(unmoved, 4)}"] if unmoved else []
    if not number:
        return Finding("pass", f"all {total} dimensions of state and action move", value=0)
    status = "fail" if data.statistics.action.still.all() else "warn"
    measured = f"{number} of {total} dimensions do not move in the training split: {'; '.join(texts)}"
    advice = "were they recorded? A joint that moved and is constant here was lost; if none did, there is nothing to do"
    return Finding(status, measured, "dimensions that move", advice, number)


def outliers(data: Demonstrations) -> Finding:
    """Do the values of each dimension fill its range, or do a few outliers set its scale?"""
    problems, frames, least = [], [], 1.0
    for kind, names, values, found in vectors(data):
        span = np.asarray(found.max, np.float64) - found.min
        filled = np.where(found.still, 1, (found.q99 - found.q01) / np.where(found.still, 1, span))
        for dimension in np.flatnonzero(filled < MIN_FILLED_RANGE).tolist():
            column, share = values[:, dimension], float(filled[dimension])
            if _is_switch(column):
                continue
            frames.append(int(np.abs(column - np.median(column)).argmax()))
            problems.append(f"{kind} {names[dimension]!r}, 98 % of whose values lie in {share:.1%} of its range")
            problems[-1] += f" (farthest: {column[frames[-1]]:.4g} in {place(data, frames[-1])})"
            least = min(least, share)
    measured = f"outliers set the scale of {_listed(problems)}" if problems else "no dimension has its scale set by outliers"
    expected = f"98 % of the values in more than {MIN_FILLED_RANGE:.0%} of the range"
    advice = "are they real? If not, leave out these episodes (data.exclude_episodes=[...]); else normalise by quantiles: "
    advice += "data.normalization.state=quantiles data.normalization.action=quantiles data.normalization.clip=10"
    return Finding("warn" if problems else "pass", measured, expected, advice, least, episodes=_episodes(data, frames))


def jumps(data: Demonstrations) -> Finding:
    """Does no joint move, within one frame, far beyond its usual step?"""
    problems, frames = [], []
    for kind, names, values, _ in vectors(data):
        step = np.abs(np.diff(values, axis=0))
        step[data.episode_ends[:-1] - 1] = 0
        if not len(step):
            continue
        usual, span = np.quantile(step, 0.99, axis=0), np.ptp(values, axis=0)
        large = (step > JUMP * usual) & (step > JUMP_RANGE * span)
        for dimension in np.flatnonzero(large.any(axis=0)).tolist():
            if _is_switch(values[:, dimension]):
                continue
            frame = int(step[:, dimension].argmax())
            found = np.flatnonzero(large[:, dimension])
            share, ordinary = (float(x / span[dimension]) for x in (step[frame, dimension], usual[dimension]))
            text = f"{kind} {names[dimension]!r} by {share:.0%} of its range (else at most {ordinary:.1%}) in "
            text += f"{place(data, frame + 1)}{f', and {len(found) - 1} times more' if len(found) > 1 else ''}"
            problems.append((share, text))
            frames += (found + 1).tolist()
    texts = [text for _, text in sorted(problems, reverse=True)]
    number = f"{len(texts)} dimensions jump" if len(texts) > 1 else "1 dimension jumps"
    measured = f"{number} within one frame: {'; '.join(texts[:2])}{' ...' if len(texts) > 2 else ''}"
    measured = measured if texts else "no dimension jumps within one frame"
    expected = f"steps below {JUMP} times those of 99 % of the frames, or below {JUMP_RANGE:.0%} of the range"
    advice = "look there: frames were lost, the robot was reset within an episode, or an angle wraps around (unwrap it)"
    return Finding("warn" if texts else "pass", measured, expected, advice, len(frames), episodes=_episodes(data, frames))


def idle(data: Demonstrations) -> Finding:
    """Do episodes begin and end with movement?"""
    columns = [values / _range(found) for _, _, values, found in vectors(data)]
    values, fps = np.concatenate(columns, axis=1), data.features.fps
    ends = np.array([_idle_ends(values[start:end]) for start, end in spans(data)])
    long = ends >= max(IDLE_SECONDS * fps, 2)
    found = np.flatnonzero(long.any(axis=1))
    expected = f"less than {IDLE_SECONDS:g} s"
    if not len(found):
        return Finding("pass", f"state and action stand still for {ends.max() / fps:.1f} s at most at an end", expected)
    episode, end = np.unravel_index(ends.argmax(), ends.shape)
    where = f"at the {('start', 'end')[end]} of episode {data.episode_index[episode]}"
    measured = f"state and action stand still for {IDLE_SECONDS:g} s or more at an end of {len(found)} of {len(ends)} episodes"
    measured += f": {ends[long].sum() / len(values):.1%} of all frames; at most {ends.max() / fps:.1f} s, {where}"
    advice = "cut these frames off: a policy learns from them to wait, and may never start"
    return Finding("warn", measured, expected, advice, float(ends.max() / fps), episodes=_numbers(data, found))


def lengths(data: Demonstrations) -> Finding:
    """Is no episode very short?"""
    frames = data.episode_ends - data.episode_starts
    median, fps = float(np.median(frames)), data.features.fps
    short = np.flatnonzero((frames < SHORT * median) | (frames < 2))
    measured = f"{frames.min():,} to {frames.max():,} frames, median {median:,.0f} ({median / fps:.1f} s)"
    if len(short):
        named = _listed([f"episode {data.episode_index[e]} ({frames[e]} frames)" for e in short])
        measured = f"{len(short)} of {len(frames)} episodes are very short: {named}; {measured}"
    advice = "look at them: recordings that were broken off teach nothing; leave them out"
    expected = f"at least {SHORT:.0%} of the median length"
    status = "warn" if len(short) else "pass"
    return Finding(status, measured, expected, advice, float(frames.min()), episodes=_numbers(data, short))


def duplicates(data: Demonstrations) -> Finding:
    """Does no episode repeat another one? Paths are compared at DUPLICATE_POINTS points, in standard deviations."""
    scales = [np.where(found.still, np.inf, found.bounded(found.std)) for *_, found in vectors(data)]
    values = np.concatenate([data.states, data.actions], axis=1) / np.concatenate(scales)
    paths = np.stack([_path(values[start:end]) for start, end in spans(data)])
    frames, moving = data.episode_ends - data.episode_starts, max(1, int(np.isfinite(np.concatenate(scales)).sum()))
    squares, pairs = np.square(paths).sum(axis=1), []
    for first in range(0, len(paths), 512):
        rows = slice(first, first + 512)
        distance = squares[rows, None] + squares - 2 * paths[rows] @ paths.T
        close = distance < DUPLICATE**2 * moving * DUPLICATE_POINTS
        close &= np.abs(frames[rows, None] - frames) <= 0.1 * frames
        close &= np.arange(len(paths)) < np.arange(len(paths))[rows, None]  # earlier ones
        pairs += [(int(close[row].argmax()), first + row) for row in np.flatnonzero(close.any(axis=1)).tolist()]
    if not pairs:
        return Finding("pass", f"no two of the {len(paths)} episodes are near-duplicates", value=0)
    named = _listed([f"{data.episode_index[one]} and {data.episode_index[other]}" for one, other in pairs])
    measured = f"{len(pairs)} of {len(paths)} episodes are near-duplicates of others: episodes {named}"
    advice = "keep one of each: copies weigh more in training, and a copy in the validation split hides overfitting"
    everyone = sorted({episode for pair in pairs for episode in pair})
    return Finding("warn", measured, "none", advice, len(pairs), episodes=_numbers(data, everyone))


def tasks(data: Demonstrations) -> Finding:
    """Do different tasks differ in their words, and not only in case, spaces or punctuation?"""
    groups: dict[tuple[str, ...], list[str]] = {}
    for task in data.tasks:
        groups.setdefault(tuple(re.findall(r"\w+", unicodedata.normalize("NFKC", task).lower())), []).append(task)
    alike = [" and ".join(repr(task) for task in group) for group in groups.values() if len(group) > 1]
    measured = f"{len(data.tasks)} tasks" if len(data.tasks) > 1 else f"one task, {data.tasks[0]!r}"
    measured += f", of which these differ only in case, spaces or punctuation: {_listed(alike)}" if alike else ""
    advice = "write them alike in meta/tasks: to most tokenizers they are one row of tokens, to others two tasks"
    return Finding("warn" if alike else "pass", measured, "tasks that differ in their words", advice, len(alike))


def actions(data: Demonstrations) -> Finding:
    """Are the actions the states of the same or of the next frame? That is a fact, and no error."""
    names, wanted = data.features.state, data.features.action
    shared = [(names.index(name), i) for i, name in enumerate(wanted) if name in names]
    moving = [(s, a) for s, a in shared if not data.statistics.action.still[a]]
    if not moving:
        return Finding("pass", "state and action have no dimension of the same name: actions are no states")
    of_state, of_action = map(list, zip(*moving, strict=True))
    states, taken = data.states[:, of_state], data.actions[:, of_action]
    tolerance = SAME_VALUE * _range(data.statistics.action)[of_action]
    same = float((np.abs(taken - states) <= tolerance).all(axis=1).mean())
    within = np.ones(len(states), bool)
    within[data.episode_ends - 1] = False
    following = (np.abs(taken[:-1] - states[1:]) <= tolerance).all(axis=1)[within[:-1]]
    later = float(following.mean()) if len(following) else 0.0
    measured = "the actions are commands of their own, and not the states of the same or of the next frame"
    if max(same, later) >= SAME_FRAMES:
        which = "the same frame: a policy that repeats its state fits the first action" if same >= later else "the next frame"
        measured = f"the actions are the states of {which}"
    return Finding("pass", measured, value=max(same, later))


def vectors(data: Demonstrations) -> tuple[Vector, Vector]:
    return (
        ("state", data.features.state, data.states, data.statistics.state),
        ("action", data.features.action, data.actions, data.statistics.action),
    )


def spans(data: Demonstrations) -> Iterable[tuple[int, int]]:
    """First frame and last one, exclusive, of each episode."""
    return zip(data.episode_starts.tolist(), data.episode_ends.tolist(), strict=True)


def place(data: Demonstrations, frame: int) -> str:
    """Of a row of the demonstrations the episode, by the dataset's number, and the frame within it."""
    episode = int(np.searchsorted(data.episode_ends, frame, side="right"))
    return f"episode {data.episode_index[episode]}, frame {frame - data.episode_starts[episode]}"


def _range(found: FeatureStatistics) -> np.ndarray:
    """(d,) the range of each dimension; infinite where it does not move."""
    return np.where(found.still, np.inf, np.asarray(found.max, np.float64) - found.min)


def _is_switch(column: Float[np.ndarray, " n"]) -> bool:
    return len(np.unique(column)) <= SWITCH_VALUES


def _idle_ends(values: Float[np.ndarray, "t d"]) -> tuple[int, int]:
    """How many frames an episode stands still before it first moves, and after it last did. Values in ranges."""
    first, last = ((np.abs(one - one[0]) > IDLE_RANGE).any(axis=1) for one in (values, values[::-1]))
    if not first.any():
        return len(values) - 1, 0
    return int(first.argmax()) - 1, int(last.argmax()) - 1


def _path(values: Float[np.ndarray, "t d"]) -> Float[np.ndarray, " points_d"]:
    """An episode at evenly spaced times."""
    times = np.linspace(0, len(values) - 1, DUPLICATE_POINTS)
    before = np.floor(times).astype(int)
    after, weight = np.minimum(before + 1, len(values) - 1), (times - before)[:, None]
    return ((1 - weight) * values[before] + weight * values[after]).ravel()


def _episodes(data: Demonstrations, frames: Sequence[int]) -> tuple[int, ...]:
    """The dataset's numbers of the episodes with these rows."""
    return _numbers(data, np.unique(np.searchsorted(data.episode_ends, np.asarray(frames, int), side="right")))


def _numbers(data: Demonstrations, episodes: Sequence[int] | np.ndarray) -> tuple[int, ...]:
    return tuple(data.episode_index[np.asarray(episodes, int)].tolist())


def _listed(items: Sequence[str], most: int = 3) -> str:
    rest = len(items) - most
    return ", ".join(items[:most]) + (f" and {rest} more" if rest > 0 else "")
