"""Which features of a dataset are trained on: its metadata and the user's choice in, columns and names out.

By default: cameras `observation.image(s).*`, else `image*`; `observation.state` or `state`; `action` or `actions`. Features
that are no input (`next.*`), depth and masks are ignored, which is said.
"""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any, NamedTuple

from vla_mini.data.lerobot import layout
from vla_mini.data.lerobot.metadata import Feature, Metadata
from vla_mini.utils.errors import did_you_mean, show

NOT_COLOURS = ("mask", "segmentation", "depth")
INSTRUCTION = "task_index"


class Choice(NamedTuple):
    """What is read of each frame."""

    cameras: dict[str, str]  # name -> feature
    image_sizes: dict[str, tuple[int, int]]  # feature -> height, width as announced
    state: tuple[str, ...]  # columns that are joined
    action: str
    instruction: str | None  # column of task indices or of text; None where there is one sentence for all
    left_aside: tuple[str, ...]  # features that one may have expected to be used, with the reason


def choose(
    metadata: Metadata,
    *,
    cameras: Mapping[str, str] | None = None,
    state: Sequence[str] | None = None,
    action: str | None = None,
    instruction: str | None = None,
) -> Choice:
    """Raises ValueError for a feature that there is not, and where a default does not exist."""
    features, left = metadata.features, []
    if cameras is None:
        chosen, left = _default_cameras(metadata)
    else:
        chosen = dict(cameras)
        for name, feature in chosen.items():
            _require(metadata, f"data.cameras.{name}", feature)
            if reason := _why_no_camera(metadata, feature):
                raise ValueError(f"data.cameras.{name}={feature}: {metadata.info}: {reason}")
    states = tuple(state) if state is not None else (_first(metadata, "state", (layout.STATE, "state")),)
    for name in states:
        _require(metadata, "data.state", name)
    if action is None:
        action = _first(metadata, "action", (layout.ACTION, "actions"))
    _require(metadata, "data.action", action)
    column = INSTRUCTION if instruction is None else instruction if instruction in features else None
    if column is None and _is_name(instruction, features):
        raise ValueError(
            f"data.instruction={instruction}: {metadata.info} has no such feature; {did_you_mean(instruction, features)}"
        )
    if instruction in features and features[instruction].dtype.startswith("float"):
        kept = f"{metadata.info}: it {_kept(features[instruction])}, and not as sentences or their indices"
        raise ValueError(f"data.instruction={instruction}: {kept}")
    left += [f"{name} (not an input)" for name in features if name.startswith("next.")]
    sizes = {feature: image_size(features[feature].shape) for feature in chosen.values()}
    return Choice(chosen, sizes, states, action, column, tuple(left))


def _is_name(instruction: str, features: Mapping[str, Feature]) -> bool:
    """Whether an instruction that is no feature is meant as one: a word with a dot in it, or much like a feature's name."""
    if " " in instruction:
        return False
    words = {INSTRUCTION, *features, *(word for name in features for word in name.split("."))}
    return "." in instruction.rstrip(".") or bool(get_close_matches(instruction, words, n=1, cutoff=0.8))


def element_names(feature: Feature, prefix: str, size: int) -> tuple[str, ...]:
    """The names of a vector's elements: written as a list, nested lists, {group: list}, {name: index}, or not at all."""
    names = list(_flat_names(feature.names))
    if len(names) != size:
        names = [f"{prefix}_{i}" for i in range(size)]
    return unique_names(names)


def unique_names(names: Sequence[str]) -> tuple[str, ...]:
    """The names, each with its position where another one is equal."""
    return tuple(f"{name}_{i}" if names.count(name) > 1 else name for i, name in enumerate(names))


def image_size(shape: Sequence[int]) -> tuple[int, int]:
    """Height and width of an image feature's shape. Channels come last, as LeRobot writes them, or first, or there are none."""
    if len(shape) == 2:
        return shape[0], shape[1]
    return (shape[0], shape[1]) if shape[2] in (1, 3, 4) else (shape[1], shape[2])


def _flat_names(names: Any) -> list[str]:
    if isinstance(names, dict):
        if all(isinstance(index, int) for index in names.values()):
            return sorted(names, key=names.__getitem__)
        return [name for group in names.values() for name in _flat_names(group)]
    if isinstance(names, list):
        return [name for each in names for name in (_flat_names(each) if isinstance(each, list | dict) else [str(each)])]
    return []


def _default_cameras(metadata: Metadata) -> tuple[dict[str, str], list[str]]:
    candidates = [name for name, feature in metadata.features.items() if feature.dtype in ("image", "video")]
    usable, left = [], []
    for name in candidates:
        reason = _why_no_camera(metadata, name)
        if name.startswith("next.") or reason:
            left.append(f"{name} ({reason or 'not an input'})")
        else:
            usable.append(name)
    for prefix in ("observation.", "image", ""):
        if found := [name for name in usable if name.startswith(prefix)]:
            left += [f"{name} (not one of {prefix}*)" for name in usable if name not in found]
            short = [name.removeprefix(layout.IMAGES).removeprefix("observation.") for name in found]
            return dict(
                zip([n if short.count(n) == 1 else full for n, full in zip(short, found, strict=True)], found, strict=True)
            ), left
    reasons = f"; ignored: {', '.join(left)}" if left else ""
    numbers = [
        name for name, feature in metadata.features.items() if "image" in name and feature.dtype not in ("image", "video")
    ]
    if numbers:
        reasons = f"; {numbers[0]} {_kept(metadata.features[numbers[0]])}, and not as an image or a video"
    raise ValueError(f"{metadata.info}: no feature is an image or a video{reasons}")


def _why_no_camera(metadata: Metadata, name: str) -> str | None:
    feature = metadata.features[name]
    if feature.dtype not in ("image", "video"):
        return f"it {_kept(feature)}, and not as an image or a video"
    if feature.is_depth or any(word in name.lower() for word in NOT_COLOURS):
        return "depth or a mask, and no colours"
    if len(feature.shape) not in (2, 3) or (len(feature.shape) == 3 and not {feature.shape[0], feature.shape[2]} & {1, 3, 4}):
        return f"its shape {show(list(feature.shape))} is not [height, width, channels]"
    if feature.dtype == "video" and _has_no_file(metadata, name):
        return "there is no file of it"
    return None


def _kept(feature: Feature) -> str:
    return f"is kept as {feature.dtype}" if feature.dtype else "has no dtype"


def _has_no_file(metadata: Metadata, name: str) -> bool:
    """Whether there are videos, and none of this feature. (Of a dataset on the hub, none is there before it is chosen.)"""
    found = {video for episode in metadata.episodes for video in episode.videos}
    return bool(found) and name not in found


def _first(metadata: Metadata, setting: str, names: Sequence[str]) -> str:
    for name in names:
        if name in metadata.features:
            return name
    raise ValueError(f"{metadata.info}: no feature {names[0]!r} or {names[1]!r}: give data.{setting}, {_numbers(metadata)}")


def _require(metadata: Metadata, setting: str, name: str) -> None:
    if name not in metadata.features:
        raise ValueError(f"{setting}={name}: {metadata.info} has no such feature; {did_you_mean(name, metadata.features)}")
    feature = metadata.features[name]
    if not setting.startswith("data.cameras") and (not feature.dtype or feature.dtype in ("image", "video", "string")):
        raise ValueError(f"{metadata.info}: {name!r} {_kept(feature)}, and not as numbers")


def _numbers(metadata: Metadata) -> str:
    taken = ("image", "video", "string", "")
    found = [n for n, f in metadata.features.items() if f.dtype not in taken and n not in layout.BOOKKEEPING]
    return f"one of {', '.join(found)}" if found else "but there are no numbers"
