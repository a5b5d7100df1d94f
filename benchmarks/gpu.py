"""How fast a GPU trains, eager and in each mode of torch.compile, in fp32, bf16 and fp16; and how much memory that takes.

python benchmarks/gpu.py [steps=100] [output=benchmarks/results/gpu.json] [data.batch_size=1024 vision=torchvision ...]

The main job's own training, with all callbacks, but without evaluation and validation; the first steps, in which kernels are
chosen and compiled, are counted apart. All other arguments are those of scripts/train.py.
"""

import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks._machine import print_table, read_arguments, save
from vla_mini.machine import matrix_product_rates

MODES = ("none", "default", "reduce-overhead", "max-autotune")
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
WARM_UP_STEPS = 12
SETTINGS = ["evaluation.every_n_steps=0", "trainer.limit_val_batches=0"]
COLUMNS = {
    "mode": "compile",
    "precision": "precision",
    "samples_per_second": "samples/s",
    "over_eager": "over eager",
    "compile_seconds": "compiling, s",
    "allocated_megabytes": "tensors at most, MB",
    "reserved_megabytes": "memory taken, MB",
    "loss": "loss",
}


def main() -> None:
    arguments = read_arguments(steps=100, output="benchmarks/results/gpu.json", others=[])
    import torch

    if not torch.cuda.is_available():
        raise SystemExit("benchmarks/gpu.py measures on a CUDA device, and torch sees none here")
    measured: list[dict[str, Any]] = []
    for precision in PRECISIONS:
        for mode in MODES:
            with tempfile.TemporaryDirectory() as folder:
                figures = measure(
                    Path(folder), mode=mode, precision=precision, steps=arguments["steps"], others=arguments["others"]
                )
            eager = next((one for one in measured if one["precision"] == precision), figures)
            figures["over_eager"] = figures["samples_per_second"] / eager["samples_per_second"]
            measured.append(figures)
    print_table([tuple(figures[name] for name in COLUMNS) for figures in measured], header=tuple(COLUMNS.values()))
    rates = matrix_product_rates(device="cuda")
    record = {"device": torch.cuda.get_device_name(), "steps": arguments["steps"], "settings": arguments["others"]}
    save(record | {"matrix_products_gigaflops_per_second": rates, "measured": measured}, arguments["output"])


def measure(
    folder: Path, *, mode: str, precision: str, steps: int, others: list[str], accelerator: str = "gpu"
) -> dict[str, Any]:
    """Samples a second over `steps` steps after the first ones, what compiling took, and the peak of the GPU's memory."""
    import gc

    import torch
    from lightning.pytorch.callbacks import LambdaCallback

    from benchmarks._training import ready
    from vla_mini import config
    from vla_mini.training.compilation import WarmUp
    from vla_mini.training.window import Stopwatch

    on_gpu = accelerator != "cpu"
    run = [f"compile={mode}", f"trainer.precision={precision}", f"trainer.accelerator={accelerator}"]
    run += [f"trainer.max_steps={WARM_UP_STEPS + steps}", f"hydra.run.dir={folder}/run"]
    cfg = config.load("train", [*SETTINGS, *run, *others])
    torch.compiler.reset()  # nothing of the measurement before
    gc.collect()
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    trainer, module, data = ready(cfg, run_dir=folder / "run", stopwatch=Stopwatch())
    times: list[float] = []

    def look(*_: Any) -> None:
        if trainer.global_step in (WARM_UP_STEPS, WARM_UP_STEPS + steps):
            if on_gpu:
                torch.cuda.synchronize()  # the GPU works while Python runs ahead
            times.append(time.perf_counter())

    trainer.callbacks.append(LambdaCallback(on_train_batch_end=look))
    trainer.fit(module, datamodule=data)
    (warmup,) = [callback.seconds for callback in trainer.callbacks if isinstance(callback, WarmUp)] or [None]
    samples = steps * cfg.data.batch_size * cfg.trainer.accumulate_grad_batches
    return {
        "mode": mode,
        "precision": precision,
        "batch_size": cfg.data.batch_size,
        "samples_per_second": samples / (times[-1] - times[0]),
        "compile_seconds": warmup,
        "allocated_megabytes": torch.cuda.max_memory_allocated() / 2**20 if on_gpu else None,
        "reserved_megabytes": torch.cuda.max_memory_reserved() / 2**20 if on_gpu else None,  # with the CUDA graphs' own
        "loss": trainer.callback_metrics["train/loss"].item(),
    }


if __name__ == "__main__":
    main()
