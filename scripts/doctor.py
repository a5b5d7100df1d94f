"""Find what is wrong with a training run before hours are spent on it: machine, demonstrations, policy, learning, speed.

Prints a line for each check, and what to do where one does not pass; exit code 1 if one fails. Nothing is trained or kept,
but doctor.json in the folder `output`, where that is given.
"""

import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from vla_mini import config

EPISODES = 64  # collected where the demonstrations are missing


@config.main("doctor")
def main(cfg: Any) -> None:
    from omegaconf import OmegaConf

    from vla_mini.data.reader import read_dataset
    from vla_mini.doctor.examine import examine
    from vla_mini.doctor.finding import describe, summary
    from vla_mini.files import write_text
    from vla_mini.machine import describe_machine
    from vla_mini.training.setup import check_start, data_module, untrained_policy

    start = time.perf_counter()
    settings = OmegaConf.to_container(cfg.training, resolve=True)
    check_start(settings)
    if settings["resume"]:
        raise ValueError(f"resume={settings['resume']}: the doctor looks at runs that begin")
    with demonstrations_for(settings) as root:
        demonstrations = read_dataset(root)
        policy = untrained_policy(settings, demonstrations)
        data = data_module(settings, demonstrations, policy)

        output = config.new_folder(cfg.output) if cfg.output else None  # all is checked: the work begins
        config.start_work()
        found = []
        for finding in examine(settings, demonstrations, policy, data.train_windows, data.validation_windows):
            print(describe(finding), flush=True)
            found.append(finding)
    seconds = time.perf_counter() - start
    if output:
        results = {
            "experiment": cfg.experiment,
            "passed": all(finding.status != "fail" for finding in found),
            "seconds": round(seconds, 3),
            "machine": describe_machine(),
            "checks": [finding._replace(value=finite(finding.value))._asdict() for finding in found],
        }
        write_text(output / "doctor.json", json.dumps(results, indent=2, allow_nan=False) + "\n")
    print(f"{summary(found)}; {seconds:.0f} s{f'; {output}/doctor.json' if output else ''}")
    if any(finding.status == "fail" for finding in found):
        raise SystemExit(1)


@contextmanager
def demonstrations_for(settings: dict[str, Any]) -> Iterator[Path]:
    """Where the run's demonstrations lie; where they are still to be collected, a few of them in a temporary folder."""
    from vla_mini.collection import collect

    data = settings["data"]
    if Path(data["root"]).exists() or not data["episodes"]:
        yield Path(data["root"])
        return
    with TemporaryDirectory() as temporary:
        root = Path(temporary) / "data"
        episodes = min(EPISODES, data["episodes"])
        print(f"collecting {episodes} demonstrations, since {data['root']} is still to be collected", flush=True)
        collect(settings["env"]["id"], root, episodes=episodes, validation_episodes=2, seed=data["seed"], num_workers=1)
        data["batch_size"] = min(data["batch_size"], 8 * episodes)  # so few of them hold no larger one
        yield root


def finite(value: float | None) -> float | None:
    """JSON knows no NaN and no infinity: they become null."""
    return value if value is not None and math.isfinite(value) else None


if __name__ == "__main__":
    main()
