"""Frames a second that are read from videos: decoded once to the cache, and decoded when needed, beside LeRobot's reader.

LeRobot needs other versions of the libraries that vla-mini uses, so it is installed in a virtual environment of its own:

    python3 -m venv .lerobot && .lerobot/bin/pip install lerobot==0.4.4     (its decoder needs FFmpeg's libraries)
    python benchmarks/video_reading.py lerobot=.lerobot/bin/python source=DIR [frames=1200] [codec=libsvtav1]

LeRobot itself writes the dataset, with two cameras of 224 x 224 pixels, from the images of the dataset `source`. Both then read
all of its frames, on two cores, in turns, `rounds` times; the ratios are those of the medians. LeRobot's reader is asked frame
after frame, by its DataLoader with two workers in order, and with two workers at random. The pixels are compared, too.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

SIZE, BATCH, WORKERS, EPISODE = 224, 32, 2, 200


def main() -> None:
    if "inside" in sys.argv[1:2]:
        return inside_lerobot(*sys.argv[2:])
    from benchmarks._machine import print_table, read_arguments, save

    arguments = read_arguments(
        lerobot="", source="", frames=1200, codec="libsvtav1", rounds=3, output="benchmarks/results/video_reading.json"
    )
    if not arguments["lerobot"] or not arguments["source"]:
        raise SystemExit("lerobot=PYTHON (of a virtual environment with lerobot 0.4.4) and source=DIR (a dataset) are required")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_pictures(arguments["source"], folder, count=arguments["frames"])
        call(arguments["lerobot"], "write", folder, arguments["codec"])
        seconds: dict[str, list[float]] = {}
        for number in range(arguments["rounds"]):
            for name, found in (ours(folder, number) | call(arguments["lerobot"], "read", folder)).items():
                seconds.setdefault(name, []).append(found)
        call(arguments["lerobot"], "pixels", folder)
        difference = compare(folder)
    frames = 2 * arguments["frames"]
    rates = {name: frames / statistics.median(found) for name, found in seconds.items()}
    print_table([(name, rate) for name, rate in rates.items()], header=("reader", "frames a second"))
    ratios = {
        "cache / lerobot with two workers in order": rates["vla-mini, to the cache"] / rates["lerobot, two workers in order"],
        "cache / lerobot frame after frame": rates["vla-mini, to the cache"] / rates["lerobot, frame after frame"],
        "when needed / lerobot, both two workers": rates["vla-mini, when needed"] / rates["lerobot, two workers at random"],
    }
    for name, ratio in ratios.items():
        print(f"{name}: {ratio:.2f}")
    print(f"pixels differ by at most {difference} of 255 levels")
    kept = {name: arguments[name] for name in ("frames", "codec", "rounds")}
    save(kept | {"frames_per_second": rates, "ratios": ratios, "largest_difference": difference}, arguments["output"])


def write_pictures(source: str, folder: Path, *, count: int) -> None:
    """The first `count` images of a dataset, (n, SIZE, SIZE, 3), for LeRobot to write."""
    from vla_mini.data.reader import read_dataset

    data = read_dataset(source, image_size=(SIZE, SIZE), resize="crop", cache=folder / "source")
    if len(data.states) < count:
        raise SystemExit(f"{source} has {len(data.states)} frames: give frames={len(data.states)} or fewer")
    np.save(folder / "pictures.npy", data.frames[:count, 0].transpose(0, 2, 3, 1))


def ours(folder: Path, number: int) -> dict[str, float]:
    """Seconds that vla-mini takes to read all frames."""
    from vla_mini.data.chunks import ActionChunkDataset, BatchLoader
    from vla_mini.data.lerobot.videos import read_index
    from vla_mini.data.reader import read_dataset

    read_index.cache_clear()
    with stopwatch() as cached:
        data = read_dataset(folder / "dataset", cache=folder / f"cache{number}")
    read_index.cache_clear()
    data = read_dataset(folder / "dataset", cache="none")._replace(splits={"train": (0, len(data.episode_starts))})
    dataset = ActionChunkDataset(data, split="train", horizon=1, tokenize=no_tokens)
    loader = BatchLoader(dataset, batch_size=BATCH, seed=0, num_workers=WORKERS)
    with stopwatch() as streamed:
        count = sum(len(batch.actions) for batch in loader)
    return {"vla-mini, to the cache": cached[0], "vla-mini, when needed": streamed[0] * len(dataset) / count}


def no_tokens(instructions):
    import torch

    return torch.zeros(len(instructions), 1, dtype=torch.int64), torch.ones(len(instructions), 1, dtype=torch.bool)


@contextmanager
def stopwatch() -> Iterator[list[float]]:
    start, seconds = time.perf_counter(), []
    yield seconds
    seconds.append(time.perf_counter() - start)


def call(python: str, task: str, folder: Path, *arguments: str) -> dict[str, float]:
    """Run a task of this script under LeRobot's interpreter."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
    command = [python, str(Path(__file__).absolute()), "inside", task, str(folder), *arguments]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if result.returncode:
        raise SystemExit(result.stderr)
    return json.loads(result.stdout.splitlines()[-1])


def compare(folder: Path) -> int:
    """The largest difference between what both read, in levels of 255."""
    from vla_mini.data.reader import read_dataset

    data = read_dataset(folder / "dataset", cache=folder / "cache0")
    order = np.argsort(np.repeat(data.episode_index, data.episode_ends - data.episode_starts), kind="stable")
    theirs = np.load(folder / "theirs.npy", mmap_mode="r")
    return max(int(np.abs(theirs[i].astype(int) - data.frames[frame].astype(int)).max()) for i, frame in enumerate(order))


def inside_lerobot(task: str, folder: str, codec: str = "") -> None:
    """Runs under LeRobot's interpreter, without vla-mini. The last line that it prints is a JSON object."""
    import torch
    from lerobot.datasets import lerobot_dataset, video_utils
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    root, seconds = Path(folder) / "dataset", {}
    if task == "write":
        encode = video_utils.encode_video_frames
        lerobot_dataset.encode_video_frames = lambda *args, **options: encode(*args, **options | {"vcodec": codec})
        pictures = np.load(Path(folder) / "pictures.npy", mmap_mode="r")
        camera = {"dtype": "video", "shape": (SIZE, SIZE, 3), "names": ["height", "width", "channels"]}
        vector = {"dtype": "float32", "shape": (2,), "names": ["x", "y"]}
        features = {"observation.images.left": camera, "observation.images.right": camera}
        features |= {"observation.state": vector, "action": vector}
        dataset = LeRobotDataset.create("local/videos", 10, features, root=root)
        for number, picture in enumerate(pictures):
            images = {"observation.images.left": picture, "observation.images.right": picture[:, ::-1].copy()}
            values = np.array([number, number % 7], np.float32)
            dataset.add_frame(images | {"observation.state": values, "action": values, "task": "look"})
            if (number + 1) % EPISODE == 0 or number + 1 == len(pictures):
                dataset.save_episode()
        dataset.finalize()
    dataset = LeRobotDataset("local/videos", root=root)
    if task == "read":
        # The workers first: LeRobot's decoders, once open in this process, do not work in forked ones.
        for name, shuffle in (("in order", False), ("at random", True)):
            with stopwatch() as found:
                for _ in torch.utils.data.DataLoader(dataset, batch_size=BATCH, num_workers=WORKERS, shuffle=shuffle):
                    pass
            seconds[f"lerobot, two workers {name}"] = found[0]
        with stopwatch() as found:
            for number in range(len(dataset)):
                dataset[number]
        seconds["lerobot, frame after frame"] = found[0]
    if task == "pixels":
        keys = ("observation.images.left", "observation.images.right")
        both = [torch.stack([dataset[i][key] for key in keys]).mul(255).round().byte().numpy() for i in range(len(dataset))]
        np.save(Path(folder) / "theirs.npy", np.stack(both))
    print(json.dumps(seconds))


if __name__ == "__main__":
    main()
