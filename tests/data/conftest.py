"""Made-up datasets: two cameras, uneven episodes, a gripper that closes here and there."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest

from vla_mini.data.lerobot.writer import DatasetWriter, encode_episode
from vla_mini.utils.features import Features

FEATURES = Features(cameras=("front", "wrist"), image_size=(6, 8), state=("x", "y", "closed"), action=("dx", "close"), fps=5)
TASKS = ("push the block", "파란 공을 집어", "push the block", 'lift, "it"', "파란 공을 집어")
LENGTHS = (3, 1, 12, 5, 2)


class Truth(NamedTuple):
    """What went into a dataset: per episode, images (t, k, h, w, 3), states (t, s), actions (t, a)."""

    images: list[np.ndarray]
    states: list[np.ndarray]
    actions: list[np.ndarray]


def make_truth(features: Features = FEATURES, *, lengths: tuple[int, ...] = LENGTHS, seed: int = 0) -> Truth:
    generator = np.random.default_rng(seed)
    shape = (len(features.cameras), *features.image_size, 3)
    return Truth(
        [generator.integers(0, 256, (length, *shape), dtype=np.uint8) for length in lengths],
        [generator.standard_normal((length, features.state_size)).astype(np.float32) for length in lengths],
        [generator.standard_normal((length, features.action_size)).astype(np.float32) for length in lengths],
    )


def write(root: Path, truth: Truth, *, features: Features = FEATURES, splits=None) -> Path:
    with DatasetWriter(root, features=features, robot_type="made_up") as writer:
        for i, (images, states, actions) in enumerate(zip(*truth, strict=True)):
            cameras = {camera: images[:, k] for k, camera in enumerate(features.cameras)}
            writer.add_episode(encode_episode(cameras, states=states, actions=actions, task=TASKS[i % len(TASKS)]))
        last = len(truth.states)
        writer.finish(splits=splits or {"train": (0, last - 1), "validation": (last - 1, last)})
    return root


def edit_info(root: Path, **changes) -> None:
    """As another program may have written it: without our checksums."""
    (root / "meta/manifest.json").unlink(missing_ok=True)
    path = root / "meta/info.json"
    info = {name: value for name, value in json.loads(path.read_text()).items() if name != "manifest"}
    path.write_text(json.dumps(info | changes))


@pytest.fixture(scope="session")
def made_up() -> SimpleNamespace:
    """The helpers of this file."""
    return SimpleNamespace(features=FEATURES, tasks=TASKS, lengths=LENGTHS, truth=make_truth, write=write, edit_info=edit_info)


@pytest.fixture
def truth() -> Truth:
    return make_truth()


@pytest.fixture
def dataset(tmp_path, truth) -> Path:
    return write(tmp_path / "dataset", truth)
