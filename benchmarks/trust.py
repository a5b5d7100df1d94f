"""What safety costs: saving checkpoints, checking what is loaded, validating the settings.

    python benchmarks/trust.py [repeats=20] [output=benchmarks/results/trust.json] [key=value ...]

Trains experiment=toy_pick once, with the settings of scripts/train.py that are given, at the default interval of checkpoints.
"""

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks._machine import print_table, read_arguments, save

SETTINGS = ["experiment=toy_pick"]
MOST = {
    "saving_share": 0.01,
    "policy_verification_seconds": 0.05,
    "config_check_seconds": 0.5,
    "frames_verification_seconds": 1.0,
}


def main() -> None:
    arguments = read_arguments(repeats=20, output="benchmarks/results/trust.json", others=[])
    with TemporaryDirectory() as folder:
        figures = measure(Path(folder), arguments["repeats"], arguments["others"])
    rows = [(name.replace("_", " "), figure, MOST.get(name)) for name, figure in figures.items()]
    print_table(rows, header=("", "measured", "at most"))
    save({"settings": [*SETTINGS, *arguments["others"]], **figures}, arguments["output"])


def measure(folder: Path, repeats: int, others: list[str]) -> dict[str, Any]:
    from unittest.mock import patch

    from benchmarks._training import build
    from vla_mini import config
    from vla_mini.data.frames import is_intact
    from vla_mini.data.mixture import read_demonstrations
    from vla_mini.pretrained import read_config
    from vla_mini.training.callbacks import Checkpoints

    arguments = [*SETTINGS, f"hydra.run.dir={folder}/run", *others]
    settings = config.load("train", arguments)  # the first time it also imports modules
    checking = timed(lambda: config.load("train", arguments), repeats)
    trainer, module, data = build(settings)
    saving: list[float] = []
    save_once = Checkpoints._save

    def save_timed(*arguments: Any) -> None:
        start = time.perf_counter()
        save_once(*arguments)
        saving.append(time.perf_counter() - start)

    with patch.object(Checkpoints, "_save", save_timed):
        trainer.fit(module, datamodule=data)
    training = module.step.stopwatch.seconds

    demonstrations = read_demonstrations(**settings.data.reading())
    saved = folder / "run" / "policy"
    (cache,) = (Path(settings.data.root).absolute().parent / ".cache").glob("[!.]*.u8")
    return {
        "training_seconds": training,
        "saves": len(saving),
        "saving_seconds": sum(saving),
        "saving_share": sum(saving) / training,
        "policy_megabytes": sum(path.stat().st_size for path in saved.iterdir()) / 2**20,
        "policy_verification_seconds": timed(lambda: read_config(saved), repeats),
        "config_check_seconds": checking,
        "frames_megabytes": demonstrations.frames.nbytes / 2**20,
        "frames_verification_seconds": timed(lambda: is_intact(cache, demonstrations.frames.nbytes, whole=True), 3),
    }


def timed(work: Callable[[], Any], repeats: int) -> float:
    """The median of the seconds that `work` takes."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return median(seconds)


if __name__ == "__main__":
    main()
