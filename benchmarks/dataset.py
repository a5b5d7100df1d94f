"""How fast demonstrations are written and read: collecting, the first read, a second start, batches from cached frames.

python benchmarks/dataset.py [episodes=2000] [num_workers=2] [output=benchmarks/results/dataset.json]
"""

import tempfile
from pathlib import Path
from typing import Any

from benchmarks._machine import print_table, read_arguments, save, timed

BATCH_SIZE = 256
EPOCHS = 5


def main() -> None:
    arguments = read_arguments(episodes=2000, num_workers=2, output="benchmarks/results/dataset.json")
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(Path(folder), arguments["episodes"], arguments["num_workers"])
    print_table([(name.replace("_", " "), value) for name, value in figures.items()], header=("", "measured"))
    save(figures, arguments["output"])


def measure(folder: Path, episodes: int, num_workers: int) -> dict[str, Any]:
    # Imported here, since the processes that collect import this file, too, and need no torch.
    from vla_mini.collection import collect
    from vla_mini.data.reader import read_dataset

    root = folder / "toy_pick"
    collecting, num_frames = timed(lambda: collect("vla_mini/ToyPick-v0", root, episodes=episodes, num_workers=num_workers))
    first_read, _ = timed(lambda: read_dataset(root))
    second_start, data = timed(lambda: read_dataset(root))
    size = sum(path.stat().st_size for path in root.rglob("*") if path.is_file())
    return {
        "episodes": episodes,
        "frames": num_frames,
        "num_workers": num_workers,
        "collecting_frames_per_second": num_frames / collecting,
        "collecting_seconds": collecting,
        "dataset_megabytes": size / 1e6,
        "first_read_frames_per_second": num_frames / first_read,
        "first_read_seconds": first_read,
        "second_start_seconds": second_start,
        "batch_size": BATCH_SIZE,
        "batches_samples_per_second": samples_per_second(data),
    }


def samples_per_second(data: Any) -> float:
    """The median rate of training's loader over several epochs, after a first one that fills the page cache."""
    from statistics import median

    import torch

    from vla_mini.data.chunks import ActionChunkDataset, BatchLoader

    def tokenize(texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.ones(len(texts), 12, dtype=torch.int64), torch.ones(len(texts), 12, dtype=torch.bool)

    targets = {"keyframe": data.states[:, :2], "has_keyframe": data.actions[:, -1] > 0}  # as large as the keyframe loss's
    dataset = ActionChunkDataset(data, split="train", horizon=8, tokenize=tokenize, targets=targets)
    loader = BatchLoader(dataset, batch_size=BATCH_SIZE, seed=0)
    rates = []
    for epoch in range(1 + EPOCHS):
        loader.sampler.set_epoch(epoch)
        seconds, samples = timed(lambda: sum(len(batch.is_pad) for batch in loader))
        rates.append(samples / seconds)
    return median(rates[1:])


if __name__ == "__main__":
    main()
