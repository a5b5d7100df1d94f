"""What Lightning costs over a bare PyTorch loop, which share of the processor's rate training reaches, and where the time goes.

python benchmarks/training_speed.py [rounds=10] [steps=20] [output=benchmarks/results/training_speed.json] [data.root=DIR ...]

Both loops train the same policy from the same weights on the same batches in the same precision, in one process: after
every `steps` steps of Lightning, with all callbacks of the main job, a callback pauses it while the bare loop makes as many.
The median of the rounds' ratios is the cost of Lightning. Evaluation and validation are left out, since neither is a step.
All other arguments are those of scripts/train.py.
"""

import copy
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks._machine import matrix_product_rates, print_table, read_arguments, save
from benchmarks._training import build

TARGET_COST, TARGET_SHARE = 0.05, 0.40
WARM_UP_ROUNDS = 1
PROFILED_STEPS = 10
# Neither evaluation nor validation, and a constant learning rate after the warm-up.
SETTINGS = ["evaluation.every_n_steps=0", "trainer.limit_val_batches=0", "schedule.decay=constant", "trainer.accelerator=cpu"]

# An operation belongs to the first category of which its name contains a word.
CATEGORIES = {
    "convolutions and matrix products": ("conv", "mm", "linear", "matmul", "mkldnn"),
    "normalisation and softmax": ("norm", "softmax", "logsumexp"),
    "copies": ("copy", "clone", "contiguous", "cat", "stack", "gather", "index", "to_copy"),
    "element-wise and sums": ("",),
}
PHASES = {"batch": "batches", "optimizer": "optimizer"}  # all operations within these belong to them
OVERHEAD = "Python and autograd"


def main() -> None:
    defaults = {"rounds": 10, "steps": 20, "output": "benchmarks/results/training_speed.json", "others": []}
    arguments = read_arguments(**defaults)
    before = matrix_product_rates()
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(Path(folder), arguments["rounds"], arguments["steps"], arguments["others"])
    rates = {name: max(rate, before[name]) for name, rate in matrix_product_rates().items()}
    share = figures["gigaflops_per_second"] / rates["bfloat16"]
    figures |= {"matrix_products_gigaflops_per_second": rates, "share_of_bfloat16_rate": share}
    figures |= {"target_cost": TARGET_COST, "target_share": TARGET_SHARE}
    print_table(
        [
            ("Lightning, samples/s", figures["lightning_samples_per_second"], None),
            ("bare loop, samples/s", figures["bare_samples_per_second"], None),
            ("Lightning's cost per step", f"{figures['lightning_cost']:.1%}", f"at most {TARGET_COST:.0%}"),
            ("arithmetic of a step, GFLOP", figures["step_gigaflops"], None),
            ("arithmetic in training, GFLOP/s", figures["gigaflops_per_second"], None),
            ("bf16 matrix products, GFLOP/s", rates["bfloat16"], None),
            ("share of that rate", f"{share:.1%}", f"above {TARGET_SHARE:.0%}"),
        ],
        header=("", "measured", "target"),
    )
    print()
    profile = figures["profile_milliseconds_per_step"]
    total = sum(profile.values())
    rows = [(name, milliseconds, f"{milliseconds / total:.1%}") for name, milliseconds in profile.items()]
    print_table(rows, header=("where a step of the bare loop goes", "ms", "share"))
    save(figures, arguments["output"])


def measure(folder: Path, rounds: int, steps: int, others: list[str]) -> dict[str, Any]:
    """Rounds of Lightning and of the bare loop in turns, then the bare loop's arithmetic and profile."""
    from lightning.pytorch.callbacks import LambdaCallback
    from torch.utils.flop_counter import FlopCounterMode

    from vla_mini import config

    max_steps = (WARM_UP_ROUNDS + rounds) * steps
    settings = config.load("train", [*SETTINGS, f"trainer.max_steps={max_steps}", f"hydra.run.dir={folder}/run", *others])
    trainer, module, data = build(settings)
    bare = BareLoop(settings, copy.deepcopy(module.policy), data.train_dataloader())
    times: list[tuple[float, float]] = []  # seconds of each round: Lightning's, the bare loop's
    resumed = time.perf_counter()

    def train_bare(*_: Any) -> None:
        nonlocal resumed
        if trainer.global_step % steps == 0:
            lightning = time.perf_counter() - resumed
            times.append((lightning, seconds(lambda: bare.train(steps))))
            resumed = time.perf_counter()

    trainer.callbacks.append(LambdaCallback(on_train_batch_end=train_bare))
    trainer.fit(module, datamodule=data)
    times, bare_loss = times[WARM_UP_ROUNDS:], bare.loss.item()
    with FlopCounterMode(display=False) as counter:
        bare.train(1)
    samples, step_flops = steps * settings.data.batch_size, counter.get_total_flops()
    lightning, plain = (median(column) for column in zip(*times, strict=True))
    return {
        "rounds": rounds,
        "steps": steps,
        "batch_size": settings.data.batch_size,
        "precision": trainer.precision,
        "lightning_samples_per_second": samples / lightning,
        "bare_samples_per_second": samples / plain,
        "lightning_cost": median(a / b for a, b in times) - 1,
        "lightning_loss": module.step.loss,  # both of the last step, if it was logged: equal but for rounding
        "bare_loss": bare_loss,
        "round_seconds": times,
        "step_gigaflops": step_flops / 1e9,
        "gigaflops_per_second": step_flops / (lightning / steps) / 1e9,
        "profile_milliseconds_per_step": profile(bare),
    }


class BareLoop:
    """The training loop as one writes it without Lightning: same loss, optimizer, precision and clipping."""

    def __init__(self, settings: Any, policy: Any, loader: Any) -> None:
        import torch

        from vla_mini.training.module import build_optimizer
        from vla_mini.training.trainer import choose_precision

        self.policy, self.batches, self.clip = policy, self._forever(loader), settings.trainer.gradient_clip_val
        self.optimizer = build_optimizer(policy, settings.optimizer, settings.schedule.multipliers)
        self.warmup_steps, self.step = settings.schedule.warmup_steps, 0
        bf16 = choose_precision(settings.trainer.precision, accelerator="cpu") == "bf16-mixed"
        self.precision = (lambda: torch.autocast("cpu", torch.bfloat16)) if bf16 else nullcontext

    def train(self, steps: int, *, mark: Callable[[str], Any] = nullcontext) -> None:
        """`mark` is a context around each part of a step, for the profiler."""
        from torch.nn.utils import clip_grad_norm_

        self.policy.train()
        for _ in range(steps):
            with mark("batch"):
                batch = next(self.batches)
            with mark("forward"), self.precision():
                loss, _ = self.policy.loss(batch)
                mean = loss.sum() / (~batch.is_pad).sum()
            with mark("backward"):
                self.optimizer.zero_grad()
                mean.backward()
            with mark("optimizer"):
                if self.clip:
                    clip_grad_norm_(self.policy.parameters(), self.clip)
                self.step += 1
                for group in self.optimizer.param_groups:
                    group["lr"] = group["initial_lr"] * min(1.0, self.step / max(1, self.warmup_steps))
                self.optimizer.step()
            self.loss = mean.detach()

    @staticmethod
    def _forever(loader: Any) -> Iterator[Any]:
        while True:
            yield from loader
            loader.sampler.set_epoch(loader.sampler.epoch + 1)


def profile(bare: BareLoop, *, steps: int = PROFILED_STEPS) -> dict[str, float]:
    """Milliseconds of a step by category, from each event's own time, the largest first."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # no messages of the profiler about missing GPUs
    import torch

    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        bare.train(steps, mark=torch.profiler.record_function)
    spent: Counter[str] = Counter()
    for event in profiler.events():
        spent[category_of(event)] += event.self_cpu_time_total / 1000 / steps
    return dict(spent.most_common())


def category_of(event: Any) -> str:
    ancestor = event
    while ancestor is not None:
        if ancestor.name in PHASES:
            return PHASES[ancestor.name]
        ancestor = ancestor.cpu_parent
    if not event.name.startswith(("aten::", "mkldnn")):
        return OVERHEAD
    return next(name for name, words in CATEGORIES.items() if any(word in event.name for word in words))


def seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
