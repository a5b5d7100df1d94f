"""What a frozen text encoder, whose vectors are cached, costs in training, compared with a learned table of words.

python benchmarks/frozen_language.py path=DIR [rounds=15] [steps=20] [output=benchmarks/results/frozen_language.json]
                                     [key=value ...]

`path` is a folder or a hub id, as language.path is. Two bare training loops, of experiment=toy_pick and of
experiment=toy_pick_synonyms, take turns of `steps` steps in one process; the median of the rounds' ratios is the cost. All
other arguments are those of scripts/train.py, for both.
"""

from statistics import median
from typing import Any

from benchmarks._machine import print_table, read_arguments, save
from benchmarks._training import build_data
from benchmarks.training_speed import SETTINGS, BareLoop, profile, seconds

TARGET_COST = 1.2
WARM_UP_ROUNDS = 2  # in which every instruction is encoded once


def main() -> None:
    defaults = {"path": "", "rounds": 15, "steps": 20, "output": "benchmarks/results/frozen_language.json", "others": []}
    arguments = read_arguments(**defaults)
    if not arguments["path"]:
        raise SystemExit("give the encoder: path=DIR")
    figures = measure(arguments["path"], arguments["rounds"], arguments["steps"], arguments["others"])
    table, encoder = (figures["milliseconds_per_step"][name] for name in ("table", "encoder"))
    print_table(
        [
            ("table, ms per step", table, None),
            ("encoder, ms per step", encoder, None),
            ("encoder / table", figures["cost"], f"at most {TARGET_COST}"),
        ],
        header=("", "measured", "target"),
    )
    save(figures | {"target_cost": TARGET_COST}, arguments["output"])


def measure(path: str, rounds: int, steps: int, others: list[str]) -> dict[str, Any]:
    loops = {
        "table": loop(["experiment=toy_pick", *others]),
        "encoder": loop(["experiment=toy_pick_synonyms", f"language.path={path}", *others]),
    }
    times: dict[str, list[float]] = {name: [] for name in loops}
    for _ in range(WARM_UP_ROUNDS + rounds):
        for name, training in loops.items():
            times[name].append(seconds(lambda training=training: training.train(steps)))
    times = {name: column[WARM_UP_ROUNDS:] for name, column in times.items()}
    return {
        "rounds": rounds,
        "steps": steps,
        "milliseconds_per_step": {name: 1000 * median(column) / steps for name, column in times.items()},
        "cost": median(encoder / table for table, encoder in zip(times["table"], times["encoder"], strict=True)),
        "profile_milliseconds_per_step": {name: profile(training) for name, training in loops.items()},
    }


def loop(arguments: list[str]) -> BareLoop:
    """A bare loop that trains a new policy, as scripts/train.py would build it."""
    from vla_mini import config

    settings = config.load("train", [*SETTINGS, *arguments])
    policy, data = build_data(settings)
    return BareLoop(settings, policy, data.train_dataloader())


if __name__ == "__main__":
    main()
