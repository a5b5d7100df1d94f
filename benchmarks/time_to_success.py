"""How long the default config trains until it succeeds in 95 % of 200 final scenes: wall-clock, for three training seeds.

python benchmarks/time_to_success.py [seeds=[0,1,2]] [every_n_steps=10] [episodes=200] [target=0.95]
                                     [output=benchmarks/results/time_to_success.json] [data.root=DIR ...]

Trains as scripts/train.py does, by the same functions, and stops at the first evaluation that reaches the target. Time is
counted from the first optimizer step, without the evaluations; the learning rate decays over the whole run. All other
arguments are those of scripts/train.py.
"""

import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks._machine import matrix_product_rates, print_table, read_arguments, save

TARGETS = {"seconds_median": 90.0, "seconds_worst": 90.0, "teraflop_equivalents_median": 80.0}


def main() -> None:
    output = "benchmarks/results/time_to_success.json"
    defaults = {"seeds": [0, 1, 2], "every_n_steps": 10, "episodes": 200, "target": 0.95, "output": output, "others": []}
    arguments = read_arguments(**defaults)
    settings = {name: arguments[name] for name in ("every_n_steps", "episodes", "target")}
    rates, runs = [matrix_product_rates()], []
    for seed in arguments["seeds"]:
        with tempfile.TemporaryDirectory() as folder:
            runs.append(train_until(Path(folder), seed=seed, others=arguments["others"], **settings))
        rates.append(matrix_product_rates())  # between the runs, too, since the speed changes with other load
    figures = settings | summarize(runs, rates) | {"targets": TARGETS, "runs": runs}
    columns = ("seed", "seconds", "evaluation_seconds", "steps", "success_rate")
    print_table([tuple(run[name] for name in columns) for run in runs], header=columns)
    print()
    names = ("seconds_median", "seconds_worst", "teraflop_equivalents_median", "teraflop_equivalents_worst")
    rows = [(name.replace("_", " "), figures[name], TARGETS.get(name)) for name in names]
    print_table(rows, header=(f"until {arguments['target']:.0%} success", "measured", "at most"))
    save(figures, arguments["output"])


def train_until(
    folder: Path, *, seed: int, every_n_steps: int, episodes: int, target: float, others: list[str]
) -> dict[str, Any]:
    """One training; `seconds` and `steps` at its first evaluation that reaches the target, None where none does."""
    from lightning.pytorch.callbacks import LambdaCallback

    from benchmarks._training import build
    from vla_mini import config
    from vla_mini.evaluation.rollout import rollout
    from vla_mini.training.callbacks import evaluating

    # The evaluations here take the place of the selection of the best policy.
    own = [f"seed={seed}", f"hydra.run.dir={folder}/run", "evaluation.every_n_steps=0"]
    settings = config.load("train", [*others, *own])
    trainer, module, data = build(settings)
    policy, stopwatch = module.policy, module.step.stopwatch
    options = {"purpose": "evaluation", "seed": settings.evaluation.seed, "split": "seen"}
    checkpoints: list[dict[str, float]] = []

    def evaluate(*_: Any) -> None:
        step, last = trainer.global_step, checkpoints[-1]["steps"] if checkpoints else 0
        if step == last or (step % every_n_steps and step < settings.trainer.max_steps):
            return
        seconds, start = stopwatch.seconds, time.perf_counter()
        with stopwatch.paused(), evaluating(policy):
            results = rollout(policy, settings.env.address, episodes=range(episodes), options=options)
        success = sum(result.success for result in results) / episodes
        evaluation = time.perf_counter() - start
        checkpoints.append({"steps": step, "seconds": seconds, "success_rate": success, "evaluation_seconds": evaluation})
        trainer.should_stop = success >= target

    trainer.callbacks.append(LambdaCallback(on_train_batch_end=evaluate))
    trainer.fit(module, datamodule=data)
    last, reached = checkpoints[-1], checkpoints[-1]["success_rate"] >= target
    return {
        "seed": seed,
        "seconds": last["seconds"] if reached else None,
        "steps": last["steps"] if reached else None,
        "success_rate": last["success_rate"],
        "evaluation_seconds": sum(checkpoint["evaluation_seconds"] for checkpoint in checkpoints),
        "checkpoints": checkpoints,
    }


def summarize(runs: list[dict[str, Any]], rates: list[dict[str, float]]) -> dict[str, Any]:
    """Median and maximum over the seeds, in seconds and multiplied by the bf16 rate; None where the target was not reached."""
    seconds = sorted(float("inf") if run["seconds"] is None else run["seconds"] for run in runs)
    figures: dict[str, Any] = {"seconds_median": median(seconds), "seconds_worst": seconds[-1]}
    rate = median(measured["bfloat16"] for measured in rates)
    for name in ("median", "worst"):
        figures[f"teraflop_equivalents_{name}"] = figures[f"seconds_{name}"] * rate / 1000
    reached = {name: value if value < float("inf") else None for name, value in figures.items()}
    return reached | {"matrix_products_gigaflops_per_second": rates}


if __name__ == "__main__":
    main()
