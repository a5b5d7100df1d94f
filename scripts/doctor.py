"""Find what is wrong with a training run before hours are spent on it: machine, demonstrations, policy, learning, speed.

Prints a line for each check, and what to do where one does not pass. The exit code is 1 if one fails. Nothing is kept, except
for doctor.json in the folder `output`, where that is given.

    python scripts/doctor.py experiment=toy_pick
    python scripts/doctor.py experiment=toy_pick action=flow data.root=data/mine output=checked
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from vla_mini import config

if TYPE_CHECKING:
    from vla_mini.config.command_settings import DoctorSettings
    from vla_mini.settings import TrainSettings

EPISODES = 64  # that are collected where the demonstrations are missing


@config.main("doctor")
def main(settings: "DoctorSettings") -> None:
    from vla_mini.doctor.checks import TrainingRun, run_checks
    from vla_mini.doctor.finding import describe, summary
    from vla_mini.setup.demonstrations import check_start, fit_environment, training_demonstrations
    from vla_mini.setup.policy import data_module, notes_on, untrained_policy
    from vla_mini.utils.files import write_json
    from vla_mini.utils.machine import describe_machine

    start = time.perf_counter()
    check_start(settings.training)
    if settings.training.resume:
        raise ValueError(f"resume={settings.training.resume}: only a new run can be checked")
    with demonstrations_of(settings.training) as training:
        training, notes = fit_environment(training, config.is_given)
        demonstrations = training_demonstrations(training)
        policy = untrained_policy(training, demonstrations)
        print("".join(f"{note}\n" for note in (*notes, *notes_on(policy, demonstrations))), end="", flush=True)
        data = data_module(training, demonstrations, policy)

        output = config.new_folder(settings.output) if settings.output else None
        config.start_work()
        found = []
        for finding in run_checks(TrainingRun(training, demonstrations, policy, data.train_dataset, data.validation_dataset)):
            print(describe(finding), flush=True)
            found.append(finding)
    seconds = time.perf_counter() - start
    passed = all(finding.status != "fail" for finding in found)
    if output:
        results = {
            "experiment": settings.experiment,
            "passed": passed,
            "seconds": round(seconds, 3),
            "machine": describe_machine(),
            "checks": [finding._asdict() for finding in found],
        }
        finite = json.loads(json.dumps(results), parse_constant=lambda _: None)  # JSON has no NaN and no infinity
        write_json(output / "doctor.json", finite)
    print(f"{summary(found)}; {seconds:.0f} s{f'; {output}/doctor.json' if output else ''}")
    if not passed:
        raise SystemExit(1)


@contextmanager
def demonstrations_of(settings: "TrainSettings") -> Iterator["TrainSettings"]:
    """The settings, with demonstrations that exist: where they are missing, a few are collected in a temporary folder."""
    from vla_mini.collection import collect
    from vla_mini.envs import get_spec
    from vla_mini.setup.demonstrations import must_collect

    data = settings.data
    if not must_collect(settings, config.is_given):
        yield settings
        return
    with TemporaryDirectory() as temporary:
        root, num_tasks = Path(temporary) / "data", get_spec(settings.env.address).num_tasks
        episodes = min(max(1, EPISODES // num_tasks), data.episodes)  # of each task
        print(f"collecting {num_tasks * episodes} demonstrations, since {data.root} does not exist yet", flush=True)
        collect(settings.env.address, root, episodes=episodes, validation_episodes=2, seed=data.seed, num_workers=1)
        batch_size = min(data.batch_size, 8 * num_tasks * episodes)  # larger ones may exceed the frames of so few episodes
        collected = data.model_copy(update={"root": str(root), "batch_size": batch_size})
        yield settings.model_copy(update={"data": collected})


if __name__ == "__main__":
    main()
