"""What a recording of ten and a hundred times as many episodes costs: seconds a sample and memory.

python benchmarks/growth.py source=DIR [episodes=2] [decode=1] [repetitions=[1,10,100]] [rounds=3] [output=FILE.json]

`source` is a dataset of format v2.0 or v2.1 with videos. Its first episodes are repeated, and each of these datasets is read
in a process of its own, in turns: with decode=1 it is decoded and trained on as experiment=real does, with decode=0 its frames
are decoded when they are needed, in two worker processes. The ratios are those of the medians, the largest to the smallest.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

STEPS, WARM_UP, BATCH, STREAMED = 60, 10, 32, 3200
PER_SAMPLE = ("training a sample", "a batch of decoded frames, a sample", "decoding when needed, a sample")


def main() -> None:
    if "inside" in sys.argv[1:2]:
        return print(json.dumps((train if sys.argv[3] == "1" else stream)(Path(sys.argv[2]))))
    from benchmarks._machine import print_table, read_arguments, save

    defaults = {"source": "", "episodes": 2, "decode": 1, "repetitions": [1, 10, 100], "rounds": 3}
    arguments = read_arguments(**defaults, output="benchmarks/results/growth.json")
    if not arguments["source"]:
        raise SystemExit("source=DIR is required: a LeRobotDataset of format v2.0 or v2.1 with videos")
    with tempfile.TemporaryDirectory() as temporary:
        roots = [
            repeat(Path(arguments["source"]), Path(temporary) / str(times) / "dataset", arguments["episodes"], times)
            for times in arguments["repetitions"]
        ]
        found: dict[str, dict[str, list[float]]] = {root.parent.name: {} for root in roots}
        for _ in range(arguments["rounds"]):
            for root in roots:
                for name, value in call(root, arguments["decode"]).items():
                    found[root.parent.name].setdefault(name, []).append(value)
    # The first start decodes, and the others find what it decoded.
    kept = {times: {name: median(values) for name, values in figures.items()} for times, figures in found.items()}
    for times, figures in found.items():
        starts = figures["start"]
        kept[times] |= {"first start": starts[0], "start": median(starts[1:]) if starts[1:] else None}
    names = [*kept[roots[0].parent.name]]
    print_table(
        [(name, *(figures[name] for figures in kept.values())) for name in names], header=("", *(f"{t}x" for t in kept))
    )
    first, *_, last = kept.values()
    ratios = {name: last[name] / first[name] for name in PER_SAMPLE if name in first}
    for name, ratio in ratios.items():
        print(f"{name}: {ratio:.2f} times")
    save(
        {name: arguments[name] for name in ("episodes", "decode", "rounds")} | {"figures": kept, "ratios": ratios},
        arguments["output"],
    )


def repeat(source: Path, root: Path, episodes: int, times: int) -> Path:
    """The first `episodes` of `source`, `times` times over, as a dataset of the same format at `root`. Videos are linked."""
    import os
    import shutil

    import pyarrow as pa
    import pyarrow.parquet as pq

    info = json.loads((source / "meta/info.json").read_text())
    described = [json.loads(line) for line in (source / "meta/episodes.jsonl").read_text().splitlines()][:episodes]
    videos = [name for name, feature in info["features"].items() if feature["dtype"] == "video"]

    def path(kind: str, number: int, **names: str) -> str:
        return info[kind].format(episode_chunk=number // info["chunks_size"], episode_index=number, **names)

    first, lines = 0, []
    for number in range(episodes * times):
        old = described[number % episodes]["episode_index"]
        lines.append(json.dumps(described[number % episodes] | {"episode_index": number}))
        table = pq.read_table(source / path("data_path", old))
        columns = {"episode_index": [number] * len(table), "index": range(first, first + len(table))}
        for name, values in columns.items():
            place = table.column_names.index(name)
            table = table.set_column(place, name, pa.array(values, table.schema.field(name).type))
        first += len(table)
        data = root / path("data_path", number)
        data.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, data)
        for name in videos:
            video, new = root / path("video_path", number, video_key=name), number >= episodes
            video.parent.mkdir(parents=True, exist_ok=True)
            if new:
                os.link(root / path("video_path", number % episodes, video_key=name), video)
            else:
                shutil.copyfile(source / path("video_path", old, video_key=name), video)
    (root / "meta").mkdir()
    info |= {"total_episodes": episodes * times, "total_frames": first, "total_videos": len(videos) * episodes * times}
    info |= {"splits": {"train": f"0:{episodes * times}"}}
    (root / "meta/info.json").write_text(json.dumps(info))
    (root / "meta/episodes.jsonl").write_text("\n".join(lines) + "\n")
    shutil.copyfile(source / "meta/tasks.jsonl", root / "meta/tasks.jsonl")
    return root


def call(root: Path, decode: int) -> dict[str, float]:
    command = [sys.executable, __file__, "inside", str(root), str(decode)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise SystemExit(result.stderr)
    return json.loads(result.stdout.splitlines()[-1])


def train(root: Path) -> dict[str, float]:
    """Seconds and megabytes of one dataset whose frames are decoded once."""
    import numpy as np
    from lightning.pytorch.callbacks import LambdaCallback

    from benchmarks._machine import timed
    from benchmarks._training import build
    from vla_mini import config

    arguments = ["experiment=real", f"data.root={root}", f"data.batch_size={BATCH}", f"trainer.max_steps={STEPS}"]
    arguments += [f"hydra.run.dir={root.parent}/run", "trainer.limit_val_batches=0", "trainer.accelerator=cpu"]
    arguments += ["trainer.enable_progress_bar=false"]
    start, (trainer, module, data) = timed(lambda: build(config.load("train", arguments)))
    ends: list[float] = []
    trainer.callbacks.append(LambdaCallback(on_train_batch_end=lambda *_: ends.append(time.perf_counter())))
    trainer.fit(module, datamodule=data)
    frames, rng = data.train_dataset, np.random.default_rng(0)
    drawn = rng.integers(len(frames), size=(200, BATCH))
    gathering, _ = timed(lambda: [frames.__getitems__(each) for each in drawn])
    return {
        "frames": len(frames),
        "start": start,
        "training a sample": float(np.median(np.diff(ends[WARM_UP:]))) / BATCH,
        "a batch of decoded frames, a sample": gathering / drawn.size,
        "megabytes after training": megabytes(),
    }


def stream(root: Path) -> dict[str, float]:
    """Seconds and megabytes of one dataset whose frames are decoded when they are needed."""
    import torch

    from benchmarks._machine import timed
    from vla_mini.data.chunks import ActionChunkDataset, BatchLoader
    from vla_mini.data.reader import read_dataset

    def tokenize(texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.ones(len(texts), 12, dtype=torch.int64), torch.ones(len(texts), 12, dtype=torch.bool)

    start, data = timed(lambda: read_dataset(root, image_size=(96, 96), cache="none"))
    dataset = ActionChunkDataset(data, split="train", horizon=16, tokenize=tokenize)
    batches = iter(BatchLoader(dataset, batch_size=BATCH, seed=0, num_workers=2))
    next(batches)
    seconds, _ = timed(lambda: [next(batches) for _ in range(STREAMED // BATCH)])
    return {
        "frames": len(dataset),
        "start": start,
        "decoding when needed, a sample": seconds / (STREAMED // BATCH * BATCH),
        "megabytes after reading": megabytes(),
    }


def megabytes() -> float:
    """Memory of this process that is not a file's."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0]) / 1024


if __name__ == "__main__":
    main()
