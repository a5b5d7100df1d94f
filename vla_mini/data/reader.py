"""A LeRobotDataset on disk or on the hub -> Demonstrations: states (n, s), actions (n, a), frames uint8 (n, k, c, h, w), tasks.

Reads the formats v3.0, v2.1 and v2.0, with images or videos, of any number of cameras, whatever their features are called
(choice.py). Frames are decoded once, to the size that the policy takes (frames.py). No torch.
"""

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vla_mini.data.episodes import Subsampling, frame_stride, kept_frames, split, subsample
from vla_mini.data.frames import Footage, Frames, StreamedFrames, cache_name, decode_to_file
from vla_mini.data.lerobot import layout
from vla_mini.data.lerobot.choice import Choice, choose, element_names, unique_names
from vla_mini.data.lerobot.metadata import Metadata, VideoPart, read_metadata
from vla_mini.data.lerobot.rows import Rows, read_rows
from vla_mini.data.statistics import training_statistics
from vla_mini.utils import files
from vla_mini.utils.download import download, is_hub_id
from vla_mini.utils.errors import in_one_line, show
from vla_mini.utils.features import Features, Resize, Statistics, Units

USER_CACHE = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "vla_mini"


class Demonstrations(NamedTuple):
    """All frames of all episodes, first those to train on, then those that are held out, with actions and instructions."""

    features: Features
    tasks: tuple[str, ...]  # those that occur
    episode_index: np.ndarray  # (episodes,) int64, the numbers that the dataset gives them
    episode_starts: np.ndarray  # (episodes,) int64
    episode_ends: np.ndarray  # (episodes,) int64, exclusive
    splits: dict[str, tuple[int, int]]  # "train" and "validation" -> (first, last exclusive) episode
    states: np.ndarray  # (n, s) float32, raw units
    actions: np.ndarray  # (n, a) float32, raw units
    task_index: np.ndarray  # (n,) int64
    frames: Frames  # (n, k, c, h, w) uint8
    statistics: Statistics  # of the training split
    fingerprint: str  # SHA-256 over the dataset's metadata and the names and sizes of its files
    notes: tuple[str, ...]  # what is ignored or assumed, a line each
    mixture: tuple[tuple[int, float], ...]  # of several datasets: the frames to train on and the weight of each
    units: Mapping[str, Units] = {}
    version: str = layout.VERSION  # of the dataset's format


@in_one_line()
def read_dataset(
    root: str | Path,
    *,
    revision: str | None = None,
    cameras: Mapping[str, str] | None = None,
    state: Sequence[str] | None = None,
    action: str | None = None,
    instruction: str | None = None,
    image_size: Sequence[int] | None = None,
    resize: Resize = "letterbox",
    fps: int | float | None = None,
    subsampled_actions: Subsampling = "last",
    exclude_episodes: Sequence[int] | None = None,
    cache: str | Path | None = None,
    cache_gigabytes: int | float | None = None,
    verify: bool | None = None,
) -> Demonstrations:
    """Read the dataset at `root`. Images that were not decoded before are decoded now.

    - root: a folder; where there is no such folder, a hub id (owner/name), of which `revision` is read
    - cameras, state, action, instruction: features to use instead of the defaults (choice.py); an `instruction` that is no
      feature is the sentence of all episodes
    - image_size: height and width that all images are resized to; None: those of the smallest camera
    - fps: to read every second, third ... frame of a faster recording; its action is the `last` (of positions), the `mean` (of
      velocities) or the `sum` (of displacements) of those up to the next frame that is read: `subsampled_actions`
    - exclude_episodes: by the dataset's numbers; their frames are not read
    - cache: the folder for decoded frames, or "none": they are decoded whenever they are needed. None: `.cache` beside `root`
      or, where that cannot be written, ~/.cache/vla_mini
    - cache_gigabytes: frames that take more are decoded whenever they are needed
    - verify: True: every file is compared with the dataset's manifest, if it has one, and decoded frames with their checksum.
      False: a dataset that differs from its manifest is accepted

    Raises ValueError, naming the file, for whatever is missing, cut short, contradictory or not understood.
    """
    chosen = {"cameras": cameras, "state": state, "action": action, "instruction": instruction}
    root, is_download = _locate(root, revision, chosen)
    metadata = read_metadata(root)
    _check_manifest(metadata, verify)
    choice = _choose(metadata, chosen, is_download)
    rows = _read_rows(metadata, choice, exclude_episodes or ())
    notes = [f"ignored: {', '.join(choice.left_aside)}"] if choice.left_aside else []
    if choice.instruction is None:
        notes.append(f"all episodes have the instruction {instruction!r}")
    tasks, task_index = _read_tasks(metadata, choice, rows, instruction)
    order, splits, notes_of_splits = split(metadata, task_index, exclude_episodes or ())
    stride = frame_stride(metadata, fps)
    if stride > 1:
        notes.append(
            f"1 of {stride} frames is read, and its action is the {subsampled_actions} of {stride} (data.subsampled_actions)"
        )
    kept, starts, ends = kept_frames(metadata, order, stride)
    states = np.concatenate([rows.vectors[name] for name in choice.state], axis=1)[kept]
    actions = subsample(rows.vectors[choice.action], metadata, kept, stride, subsampled_actions)
    features = _features(metadata, choice, {name: rows.vectors[name].shape[1] for name in rows.vectors}, image_size, fps)
    size = features.image_size
    footage = [_footage(metadata, choice, feature, rows, kept) for feature in choice.cameras.values()]
    fingerprint = _fingerprint(root, list(choice.cameras.values()))
    gigabytes = len(kept) * len(footage) * 3 * size[0] * size[1] / 1e9
    if cache == "none" or (cache_gigabytes is not None and gigabytes > cache_gigabytes):
        frames: Frames = StreamedFrames(footage, size=size, resize=resize)
    else:
        times = [os.stat(file).st_mtime_ns for each in footage for file in each.files]
        name = cache_name(fingerprint, list(choice.cameras.values()), size, resize, kept.tobytes(), times)
        frames = decode_to_file(
            _cache_folder(root, cache, is_download) / name, footage, size=size, resize=resize, verify=verify is True
        )
    train = slice(0, ends[splits["train"][1] - 1])
    return Demonstrations(
        features=features,
        tasks=tasks,
        episode_index=np.array([metadata.episodes[number].index for number in order]),
        episode_starts=starts,
        episode_ends=ends,
        splits=splits,
        states=states,
        actions=actions,
        task_index=task_index[kept],
        frames=frames,
        statistics=training_statistics(states[train], actions[train]),
        fingerprint=fingerprint,
        notes=(*notes, *notes_of_splits),
        mixture=(),
        version=metadata.version,
    )


@in_one_line()
def read_features(
    root: str | Path,
    *,
    revision: str | None = None,
    image_size: Sequence[int] | None = None,
    fps: int | float | None = None,
    **options: Any,
) -> Features:
    """The features that `read_dataset` would give, from the metadata alone; other arguments are ignored."""
    chosen = {name: options.get(name) for name in ("cameras", "state", "action", "instruction")}
    root, is_download = _locate(root, revision, chosen)
    metadata = read_metadata(root)
    choice = _choose(metadata, chosen, is_download)
    sizes = {name: int(np.prod(metadata.features[name].shape)) for name in (*choice.state, choice.action)}
    return _features(metadata, choice, sizes, image_size, fps)


def _features(
    metadata: Metadata, choice: Choice, sizes: Mapping[str, int], image_size: Sequence[int] | None, fps: int | float | None
) -> Features:
    """`sizes`: of the vectors, by feature."""
    smallest = min(choice.image_sizes.values(), key=lambda each: each[0] * each[1])
    return Features(
        cameras=tuple(choice.cameras),
        image_size=smallest if image_size is None else tuple(image_size),
        state=_state_names(metadata, choice, sizes),
        action=element_names(metadata.features[choice.action], "action", sizes[choice.action]),
        fps=metadata.fps if fps is None else fps,
    )


def _locate(root: str | Path, revision: str | None, chosen: Mapping[str, Any]) -> tuple[Path, bool]:
    """The folder of the dataset, and whether it was downloaded: its metadata, the numbers, and the videos that are chosen."""
    folder = Path(root).expanduser()
    if folder.is_dir() or not is_hub_id(str(root)):
        if revision is not None:
            raise ValueError(f"data.revision={revision} is for datasets on the hub, and data.root={root} is a path here")
        if not folder.exists() and len(folder.parts) == 2 and Path(folder.parts[0]).exists():
            told = f"there is no such folder, and the hub is not asked, since there is a folder {folder.parts[0]!r} here"
            raise ValueError(f"data.root={root}: {told}")
        return folder, False
    options = {"kind": "dataset", "setting": "data.root", "revision": revision}
    metadata = read_metadata(download(str(root), ["meta/*"], **options))
    choice = _choose(metadata, chosen, is_download=True)
    videos = [f"*/{name}/*" for name in choice.cameras.values() if metadata.features[name].dtype == "video"]
    return download(str(root), ["meta/*", "data/*", *videos], **options), True


def _choose(metadata: Metadata, chosen: Mapping[str, Any], is_download: bool) -> Choice:
    """What is read. Of a download, whose other cameras may not be here, whatever its metadata have."""
    return choose(metadata._replace(episodes=()) if is_download else metadata, **chosen)


def _check_manifest(metadata: Metadata, verify: bool | None) -> None:
    """Compare our own datasets with what was written: their metadata, or with `verify` all of it."""
    root = metadata.root
    if verify is False or not ((root / layout.MANIFEST).is_file() or files.read_json(metadata.info).get("manifest")):
        return
    written = files.read_json(files.require_file(root / layout.MANIFEST))
    found = layout.files_of(root)
    read = [path for path in found if verify or path.parts[len(root.parts)] == "meta"]
    digests = files.digests(root, read) | {
        name: written.get(name) if isinstance(written, dict) else None
        for name in (path.relative_to(root).as_posix() for path in found if path not in read)
    }
    try:
        files.check_manifest(root, layout.MANIFEST, digests)
    except ValueError as error:
        raise ValueError(f"{error}; data.verify=false accepts a dataset that was changed on purpose") from error


def _read_rows(metadata: Metadata, choice: Choice, exclude: Sequence[int]) -> Rows:
    vectors = {}
    for name in (*choice.state, choice.action):
        shape = metadata.features[name].shape
        vectors[name] = int(np.prod(shape)) if shape else None
    return read_rows(metadata, vectors=vectors, values=[choice.instruction] if choice.instruction else [], exclude=exclude)


def _state_names(metadata: Metadata, choice: Choice, sizes: Mapping[str, int]) -> tuple[str, ...]:
    named = {}
    for feature in choice.state:
        prefix = "state" if len(choice.state) == 1 else feature.rpartition(".")[2]
        named[feature] = element_names(metadata.features[feature], prefix, sizes[feature])
    plain = [name for names in named.values() for name in names]
    if len(set(plain)) < len(plain):  # joints have one name each, and a position and a velocity
        plain = [f"{feature.rpartition('.')[2]}.{name}" for feature, names in named.items() for name in names]
    return unique_names(plain)


def _read_tasks(metadata: Metadata, choice: Choice, rows: Rows, sentence: str | None) -> tuple[tuple[str, ...], np.ndarray]:
    """The sentences that occur, and which of them each frame has (n,)."""
    if choice.instruction is None:
        return (sentence,), np.zeros(len(rows.row), np.int64)
    written = rows.values[choice.instruction]
    if written.dtype == object:
        texts, numbers = np.unique(written.astype(str), return_inverse=True)
        return tuple(texts.tolist()), numbers.astype(np.int64)
    used = np.unique(written)
    if not metadata.tasks:
        told = f"{metadata.root / layout.TASKS} is missing, and so is {Path(layout.TASKS_V2).name}, or they hold no task"
        raise ValueError(f'{told}; one sentence for all is given by data.instruction="pick up the bottle"')
    for index in used.tolist():
        if index not in metadata.tasks:
            raise ValueError(f"{metadata.root / 'meta'}: there is no task with the index {index}, which frames have")
        if not (metadata.tasks[index] or "").strip():
            told = f"{metadata.root / 'meta'}: task {index} has no sentence ({show(metadata.tasks[index])})"
            raise ValueError(f'{told}; give one for all: data.instruction="pick up the bottle"')
    return tuple(metadata.tasks[index] for index in used.tolist()), np.searchsorted(used, written)


def _footage(metadata: Metadata, choice: Choice, feature: str, rows: Rows, kept: np.ndarray) -> Footage:
    """Where the kept frames of a camera lie."""
    episodes, is_video = metadata.episodes, metadata.features[feature].dtype == "video"
    lengths = np.array([episode.length for episode in episodes])
    number = np.repeat(np.arange(len(lengths)), lengths)
    used = np.unique(number[kept]).tolist()
    if is_video and (missing := [episodes[i].index for i in used if feature not in episodes[i].videos]):
        told = f"the video of {feature!r} is missing for episode {missing[0]} ({len(missing)} in all)"
        hint = (
            f"data.exclude_episodes={show(missing)}"
            if len(missing) < len(used)
            else "was it downloaded? data.cameras={...} chooses others"
        )
        raise ValueError(f"{metadata.root}: {told}; {hint}")
    # Of an episode that is left out the video may be missing: it has none of the kept frames.
    parts = [episode.videos.get(feature, VideoPart(episode.data_file, 0)) if is_video else None for episode in episodes]
    files_of = [part.file if part else episode.data_file for part, episode in zip(parts, episodes, strict=True)]
    found = list(dict.fromkeys(files_of[i] for i in used))
    where = {file: i for i, file in enumerate(found)}
    of_episode = np.array([where.get(file, 0) for file in files_of])
    frame, needed = rows.row, [0] * len(found)
    if is_video:
        first = np.array([part.first for part in parts])
        frame = np.arange(lengths.sum()) + np.repeat(first - (np.cumsum(lengths) - lengths), lengths)
        for i in used:
            needed[of_episode[i]] = max(needed[of_episode[i]], int(first[i] + lengths[i]))
    exact = is_video and metadata.version != "v3.0"
    announced = choice.image_sizes[feature]
    return Footage(feature, is_video, tuple(found), of_episode[number][kept], frame[kept], announced, tuple(needed), exact)


def _fingerprint(root: Path, cameras: Sequence[str]) -> str:
    """SHA-256 over the content of meta/, and the names and sizes of all other files but the videos of other cameras: the same
    for a copy of the dataset, and whatever else of it was downloaded."""
    digest = hashlib.sha256()
    for path in layout.files_of(root):
        name = path.relative_to(root).as_posix()
        if path.suffix == ".mp4" and not set(path.parts) & set(cameras):
            continue
        digest.update(f"{files.digest(path) if name.startswith('meta/') else path.stat().st_size} {name}\n".encode())
    return digest.hexdigest()


def _cache_folder(root: Path, cache: str | Path | None, is_download: bool) -> Path:
    if cache is not None:
        return Path(cache).expanduser()
    beside = root.absolute().parent / ".cache"
    writable = os.access(beside if beside.exists() else beside.parent, os.W_OK)
    return beside if writable and not is_download else USER_CACHE
