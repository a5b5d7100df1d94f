"""Checks of a recording's frames, read once, episode by episode: demonstrations -> `ImageScan` -> findings."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from tqdm import tqdm

from vla_mini.data.reader import Demonstrations
from vla_mini.doctor.finding import Finding
from vla_mini.doctor.recordings import IDLE_RANGE, spans

EPISODES = 50  # that are examined, evenly spread, unless all are asked for
BLOCK = 256  # frames that are in memory at a time
EXAMINED_PIXELS = 96  # larger images are examined at every second, third ... pixel
# The standard deviation, in levels of 255, of an image that shows something; and the mean of one that is too dark.
MIN_CONTRAST, MIN_BRIGHTNESS = 2.0, 8.0
# An image repeats the one before where no pixel differs by more levels than this. Codecs change an equal image so much.
SAME_LEVELS = 2
FROZEN_SECONDS = 0.5
EVERY = 4  # brightness and contrast are those of every fourth of the examined values


class ImageScan(NamedTuple):
    """What the frames of some episodes look like; of each episode an array over its t frames and k cameras."""

    episodes: list[int]  # positions among the demonstrations, rising
    brightness: list[np.ndarray]  # (t, k) mean, 0..255
    contrast: list[np.ndarray]  # (t, k) standard deviation
    change: list[np.ndarray]  # (t, k) largest difference of a pixel from the frame before; 255 in the first frame
    stills: list[UInt8[np.ndarray, "stills k c h w"]]  # frames evenly spaced in time, the first and the last included
    unreadable: dict[int, str]  # position of an episode whose frames cannot be read -> the reason


def scan(data: Demonstrations, *, episodes: int | None = EPISODES, stills: int = 0) -> ImageScan:
    """Read the frames of so many episodes, evenly spread (None: of all), in parallel, with a progress bar."""
    count = len(data.episode_starts)
    chosen = np.unique(np.linspace(0, count - 1, min(count, episodes or count)).round().astype(int)).tolist()
    with ThreadPoolExecutor() as pool:
        results = pool.map(partial(_scan_episode, data, stills), chosen)
        bar = tqdm(results, desc="reading frames", unit=" episodes", total=len(chosen), disable=None, leave=False)
        found = dict(zip(chosen, bar, strict=True))
    read = {episode: result for episode, result in found.items() if not isinstance(result, str)}
    unreadable = {episode: result for episode, result in found.items() if isinstance(result, str)}
    parts = zip(*read.values(), strict=True) if read else ((), (), (), ())
    return ImageScan(list(read), *map(list, parts), unreadable)


def _scan_episode(data: Demonstrations, stills: int, episode: int) -> tuple[np.ndarray, ...] | str:
    """Brightness, contrast, change and stills of one episode; the reason where a frame cannot be read."""
    start, end = int(data.episode_starts[episode]), int(data.episode_ends[episode])
    shown = np.linspace(start, end - 1, stills).round().astype(int)
    rows, pictures, previous = [], [], None
    try:
        for first in range(start, end, BLOCK):
            frames = np.asarray(data.frames[first : min(first + BLOCK, end)])
            pictures += [frames[place - first] for place in shown[(first <= shown) & (shown < first + BLOCK)]]
            step = max(1, min(frames.shape[-2:]) // EXAMINED_PIXELS)
            pixels = frames[..., ::step, ::step].reshape(*frames.shape[:2], -1)
            before = np.concatenate([pixels[:1] if previous is None else previous, pixels[:-1]])
            change = (np.maximum(pixels, before) - np.minimum(pixels, before)).max(axis=2)
            if previous is None:
                change[0] = 255
            levels = pixels[..., ::EVERY].astype(np.float32)
            mean = levels.mean(axis=2)
            levels -= mean[..., None]
            contrast = np.sqrt(np.einsum("tkp,tkp->tk", levels, levels) / levels.shape[2])
            rows.append((mean, contrast, change))
            previous = pixels[-1:]
    except ValueError as error:
        return str(error)
    brightness, contrast, change = map(np.concatenate, zip(*rows, strict=True))
    return brightness, contrast, change, np.array(pictures, np.uint8)


def readable(data: Demonstrations, found: ImageScan) -> Finding:
    """Can all frames be decoded?"""
    total, bad = len(data.episode_starts), found.unreadable
    examined = len(found.episodes) + len(bad)
    if not bad:
        return Finding("pass", f"all frames of {examined} of {total} episodes can be decoded", value=0)
    measured = f"of {examined} episodes {len(bad)} have frames that cannot be decoded: {next(iter(bad.values()))}"
    numbers = tuple(int(data.episode_index[episode]) for episode in bad)
    advice = f"record them again, or leave them out: data.exclude_episodes={list(numbers)}"
    return Finding("fail", measured, "none", advice, len(bad), episodes=numbers)


def pixels(data: Demonstrations, found: ImageScan) -> Finding:
    """Does each camera show something in every frame?"""
    if not found.episodes:
        return Finding("skip", "no frames could be read")
    problems, episodes, blind = [], set(), False
    contrasts = np.median(np.concatenate(found.contrast), axis=0)
    for camera, name in enumerate(data.features.cameras):
        if contrasts[camera] < MIN_CONTRAST:
            problems.append(f"camera {name!r} shows nothing (standard deviation {contrasts[camera]:.1f} of 255)")
            blind = True
            continue
        dark = {episode: int(blank[:, camera].sum()) for episode, blank in zip(found.episodes, _blank(found), strict=True)}
        if number := sum(dark.values()):
            worst = max(dark, key=dark.__getitem__)
            where = f"{dark[worst]} of them in episode {data.episode_index[worst]}"
            problems.append(f"camera {name!r} is dark or of one colour in {number} frames, {where}")
            episodes |= {int(data.episode_index[episode]) for episode, count in dark.items() if count}
    measured = "; ".join(problems) or f"the standard deviation of the pixels is {contrasts.min():.0f} of 255"
    expected = f"a mean above {MIN_BRIGHTNESS:g}, and a standard deviation above {MIN_CONTRAST:g} levels of 255"
    advice = "look at the images: was the camera connected and lit? Leave out episodes in which it was not"
    status = "fail" if blind else "warn" if problems else "pass"
    return Finding(status, measured, expected, advice, float(contrasts.min()), episodes=tuple(sorted(episodes)))


def frozen(data: Demonstrations, found: ImageScan) -> Finding:
    """Do images change while the state moves?"""
    if not found.episodes:
        return Finding("skip", "no frames could be read")
    fps, runs, entire = data.features.fps, [], set()
    bounds = list(spans(data))
    span = np.where(data.statistics.state.still, np.inf, data.statistics.state.max - data.statistics.state.min)
    for episode, change, blank in zip(found.episodes, found.change, _blank(found), strict=True):
        start, end = bounds[episode]
        states = data.states[start:end] / span
        for camera, name in enumerate(data.features.cameras):
            for first, last in _runs((change <= SAME_LEVELS)[:, camera] & ~blank[:, camera]):
                moved = np.abs(states[first - 1 : last] - states[first - 1]).max() > 2 * IDLE_RANGE
                if moved and last - first >= max(FROZEN_SECONDS * fps, 2):
                    runs.append(((last - first) / fps, f"{name!r}", int(data.episode_index[episode]), first - 1))
                    if last - first == len(states) - 1:
                        entire.add(name)
    repeats = max((np.concatenate(found.change) <= SAME_LEVELS).mean(axis=0).tolist())
    expected = f"no image that stays for {FROZEN_SECONDS:g} s while the state moves"
    if not runs:
        often = f"; of one, {repeats:.0%} of the frames repeat the one before" if repeats >= 0.1 else ""
        return Finding("pass", f"no camera stops while the state moves{often}", expected, value=0.0)
    seconds, camera, number, frame = max(runs)
    episodes = tuple(sorted({run[2] for run in runs}))
    measured = f"camera {camera} stops for {seconds:.1f} s while the state moves, in episode {number} from frame {frame} on"
    if len(runs) > 1:
        measured += f"; in all {len(runs)} such stretches in {len(episodes)} of {len(found.episodes)} episodes"
    advice = "leave out these episodes: the image and the state are not of the same time, and actions follow from neither"
    return Finding("fail" if entire else "warn", measured, expected, advice, seconds, episodes=episodes)


def _blank(found: ImageScan) -> list[np.ndarray]:
    """Of each episode, which of its images show nothing, bool (t, k)."""
    both = zip(found.brightness, found.contrast, strict=True)
    return [(brightness < MIN_BRIGHTNESS) | (contrast < MIN_CONTRAST) for brightness, contrast in both]


def _runs(flags: np.ndarray) -> list[tuple[int, int]]:
    """First and last, exclusive, of each stretch of true `flags` (n,)."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flags.astype(np.int8), [0]])))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))
