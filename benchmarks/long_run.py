"""Train for long, and measure what grows: the memory of the process, and the run's folder on the disk.

    python benchmarks/long_run.py [steps=10000] [every=1000] [output=benchmarks/results/long_run.json] [key=value ...]

The settings are those of toy_pick_smoke, with fewer validations, and those of scripts/train.py that are given. Memory is the
anonymous memory of the process (RssAnon of Linux's /proc), without the frames in the page cache.
"""

import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks._machine import print_table, read_arguments, save

SETTINGS = ["experiment=toy_pick_smoke", "trainer.log_every_n_steps=20", "trainer.val_check_interval=500"]
SETTINGS += ["evaluation.every_n_steps=500", "trainer.enable_progress_bar=false"]
MEGABYTE = 2**20


def main() -> None:
    defaults = {"steps": 10_000, "every": 1_000, "output": "benchmarks/results/long_run.json", "others": []}
    arguments = read_arguments(**defaults)
    with TemporaryDirectory() as folder:
        found = measure(Path(folder), steps=arguments["steps"], every=arguments["every"], others=arguments["others"])
    print_table([tuple(measurement.values()) for measurement in found], header=tuple(found[0]))
    grown = {f"{name}_grown": found[-1][name] - found[0][name] for name in ("memory_megabytes", "disk_megabytes")}
    first, last = found[0]["steps"], found[-1]["steps"]
    print(f"from step {first} to {last}: " + ", ".join(f"{name} by {size:+.1f}" for name, size in grown.items()))
    save({"settings": [*SETTINGS, *arguments["others"]], "measurements": found, **grown}, arguments["output"])


def measure(folder: Path, *, steps: int, every: int, others: list[str]) -> list[dict[str, Any]]:
    """Memory, disk and steps per second after each `every` steps."""
    from lightning.pytorch.callbacks import LambdaCallback

    from benchmarks._training import build
    from vla_mini import config

    places = [f"data.root={folder}/data", f"hydra.run.dir={folder}/run", f"trainer.max_steps={steps}"]
    trainer, module, data = build(config.load("train", [*SETTINGS, *places, *others]))
    found: list[dict[str, Any]] = []
    start = time.perf_counter()

    def measure_now(*_: Any) -> None:
        nonlocal start
        if trainer.global_step % every == 0:
            rate = every / (time.perf_counter() - start)
            found.append(
                {
                    "steps": trainer.global_step,
                    "memory_megabytes": own_memory() / MEGABYTE,
                    "disk_megabytes": size_of(folder / "run") / MEGABYTE,
                    "steps_per_second": rate,
                }
            )
            start = time.perf_counter()

    trainer.callbacks.append(LambdaCallback(on_train_batch_end=measure_now))
    trainer.fit(module, datamodule=data)
    return found


def own_memory() -> int:
    """Bytes of anonymous memory of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def size_of(folder: Path) -> int:
    """Bytes of the files below `folder`; a file with several names (hard links) counts once."""
    return sum({stat.st_ino: stat.st_size for stat in (path.stat() for path in folder.rglob("*") if path.is_file())}.values())


if __name__ == "__main__":
    main()
