"""Check that LeRobot itself reads what vla-mini writes, as the same images, states, actions and tasks.

LeRobot needs other versions of the libraries that vla-mini uses, so it is installed in a virtual environment of its own:

    python3 -m venv .lerobot && .lerobot/bin/pip install lerobot==0.4.4
    python benchmarks/lerobot_reads_it.py lerobot=.lerobot/bin/python [data=DIR]

Without `data` a small dataset of toy_pick is collected. What vla-mini reads from it is written to a .npz file; then this
script runs under LeRobot's interpreter, where it compares every frame of `LeRobotDataset` with that file and with a plain
reading by pandas and Pillow. There LeRobot also writes a dataset, which vla-mini reads.
"""

import io
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np


def main() -> None:
    arguments = dict(argument.split("=", 1) for argument in sys.argv[1:])
    if "expected" in arguments:
        return inside_lerobot(Path(arguments["data"]), Path(arguments["expected"]), Path(arguments["foreign"]))
    if "lerobot" not in arguments:
        raise SystemExit("lerobot=PYTHON is required: the interpreter of a virtual environment that holds lerobot 0.4.4")
    from vla_mini.collection import collect
    from vla_mini.data.reader import read_dataset

    with tempfile.TemporaryDirectory() as folder:
        data = Path(arguments.get("data", f"{folder}/toy_pick"))
        if "data" not in arguments:
            collect("vla_mini/ToyPick-v0", data, episodes=20, validation_episodes=2)
        expected, foreign = Path(folder) / "expected.npz", Path(folder) / "foreign"
        save(expected, read_dataset(data, cache=folder))
        inside = [f"data={data.absolute()}", f"expected={expected}", f"foreign={foreign}"]
        status = subprocess.run([arguments["lerobot"], Path(__file__).absolute(), *inside]).returncode
        if status:
            raise SystemExit(status)
        compare_foreign(read_dataset(foreign, cache=folder), Path(f"{foreign}.npz"))


def save(path: Path, data) -> None:
    """Write what vla-mini reads from a dataset, frame by frame, to a .npz file."""
    tasks = [data.tasks[i] for i in data.task_index]
    cameras = {f"images.{camera}": data.frames[:, k] for k, camera in enumerate(data.features.cameras)}
    np.savez(path, states=data.states, actions=data.actions, tasks=tasks, ends=data.episode_ends, **cameras)


def inside_lerobot(root: Path, expected: Path, foreign: Path) -> None:
    """Runs under LeRobot's interpreter, without vla-mini."""
    import lerobot
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    dataset = LeRobotDataset("local/vla_mini", root=root)
    sizes = f"{dataset.num_episodes} episodes, {dataset.num_frames} frames, fps {dataset.fps}"
    print(f"lerobot {lerobot.__version__} loads what vla-mini wrote: {sizes}")
    theirs = [dataset[i] for i in range(len(dataset))]
    plain = read_plainly(root)
    with np.load(expected) as ours:
        ours = dict(ours)
    cameras = [name for name in ours if name.startswith("images.")]
    assert len(theirs) == len(ours["states"]) == len(plain["tasks"])
    for camera in cameras:
        key = f"observation.{camera}"
        pixels = np.stack([np.round(item[key].numpy() * 255).astype(np.uint8) for item in theirs])
        check(f"{key} {pixels.shape}", pixels, ours[camera], plain[key].transpose(0, 3, 1, 2))
    for key, name in (("observation.state", "states"), ("action", "actions")):
        check(key, np.stack([item[key].numpy() for item in theirs]), ours[name], plain[key])
    check("task", np.array([item["task"] for item in theirs]), ours["tasks"], np.array(plain["tasks"]))
    check("timestamp", np.array([item["timestamp"].item() for item in theirs], np.float32), plain["timestamp"])
    last = np.array([episode["dataset_to_index"] for episode in dataset.meta.episodes])
    check("episodes' ends", last, ours["ends"])
    chunks = LeRobotDataset("local/vla_mini", root=root, delta_timestamps={"action": [0, 1 / dataset.fps]})
    padded = np.array([chunks[i]["action_is_pad"][1].item() for i in range(len(chunks))])
    check("action_is_pad of the next action", padded, np.isin(np.arange(len(chunks)) + 1, ours["ends"]))
    check("stats.json's action mean", dataset.meta.stats["action"]["mean"], ours["actions"].astype(float).mean(0))
    write_foreign(LeRobotDataset, foreign)


def read_plainly(root: Path) -> dict:
    """The data files through pandas and Pillow alone."""
    import pandas
    from PIL import Image

    rows = pandas.concat([pandas.read_parquet(path) for path in sorted(root.glob("data/*/*.parquet"))])
    tasks = pandas.read_parquet(root / "meta/tasks.parquet")
    plain = {name: np.stack(rows[name]) for name in ("observation.state", "action", "timestamp")}
    for name in rows.columns[rows.columns.str.startswith("observation.images.")]:
        plain[name] = np.stack([np.asarray(Image.open(io.BytesIO(image["bytes"]))) for image in rows[name]])
    return plain | {"tasks": [tasks.index[i] for i in rows["task_index"]]}


def write_foreign(dataset_class, root: Path) -> None:
    """Write a dataset by LeRobot: two cameras, no validation split."""
    generator = np.random.default_rng(0)
    image = {"dtype": "image", "shape": (24, 32, 3), "names": ["height", "width", "channels"]}
    features = {
        "observation.images.front": image,
        "observation.images.wrist": image,
        "observation.state": {"dtype": "float32", "shape": (3,), "names": ["x", "y", "gripper"]},
        "action": {"dtype": "float32", "shape": (2,), "names": ["dx", "gripper"]},
    }
    dataset = dataset_class.create("local/foreign", 10, features, root=root, use_videos=False)
    frames = []
    for episode in range(4):
        for _ in range(5 + episode):
            frame = {
                "observation.images.front": generator.integers(0, 256, (24, 32, 3), dtype=np.uint8),
                "observation.images.wrist": generator.integers(0, 256, (24, 32, 3), dtype=np.uint8),
                "observation.state": generator.standard_normal(3).astype(np.float32),
                "action": generator.standard_normal(2).astype(np.float32),
            }
            frames.append(frame)
            dataset.add_frame(frame | {"task": f"task {episode % 3}"})
        dataset.save_episode()
    dataset.finalize()
    images = np.stack([[frame[f"observation.images.{c}"] for c in ("front", "wrist")] for frame in frames])
    states, actions = (np.stack([frame[name] for frame in frames]) for name in ("observation.state", "action"))
    np.savez(f"{root}.npz", images=images, states=states, actions=actions)


def compare_foreign(read, expected: Path) -> None:
    """Compare what vla-mini reads with what LeRobot wrote."""
    print(f"vla-mini reads what lerobot wrote: {json.dumps(read.features._asdict())}, splits {read.splits}")
    with np.load(expected) as wrote:
        check(f"images {read.frames.shape}", read.frames, wrote["images"].transpose(0, 1, 4, 2, 3))
        check("states", read.states, wrote["states"])
        check("actions", read.actions, wrote["actions"])
    lengths = read.episode_ends - read.episode_starts
    check("episodes' lengths", lengths, np.array([5, 6, 7, 8]))
    tasks = np.array([read.tasks[i] for i in read.task_index])
    check("tasks", tasks, np.repeat(["task 0", "task 1", "task 2", "task 0"], lengths))


def check(name: str, found: np.ndarray, *expected: np.ndarray) -> None:
    for other in expected:
        if found.dtype == np.float64:
            np.testing.assert_allclose(found, other, rtol=1e-6, err_msg=name)
        else:
            np.testing.assert_array_equal(found, other, err_msg=name)
    print(f"  equal: {name}")


if __name__ == "__main__":
    main()
