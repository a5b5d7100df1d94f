"""How fast a GPU trains, eager and in each mode of torch.compile, in fp32, bf16 and fp16; and how much memory that takes.

python benchmarks/gpu.py [steps=100] [output=benchmarks/results/gpu.json] [data.batch_size=1024 vision=torchvision ...]

The training of the main job, with all callbacks, but without evaluation and validation. The first steps, in which kernels are
selected and compiled, are counted separately. All other arguments are those of scripts/train.py.
"""

import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks._machine import matrix_product_rates, print_table, read_arguments, save

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
        raise SystemExit("benchmarks/gpu.py needs a CUDA device, and torch finds none here")
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
    """Samples per second over `steps` steps after the first ones, the time of compiling, and the peak of the GPU's memory."""
    import gc

    import torch
    from lightning.pytorch.callbacks import LambdaCallback

    from benchmarks._training import build
    from vla_mini import config
    from vla_mini.training.trainer import WarmUp

    on_gpu = accelerator != "cpu"
    run = [f"compile={mode}", f"trainer.precision={precision}", f"trainer.accelerator={accelerator}"]
    run += [f"trainer.max_steps={WARM_UP_STEPS + steps}", f"hydra.run.dir={folder}/run"]
    settings = config.load("train", [*SETTINGS, *run, *others])
    torch.compiler.reset()  # so that nothing is left of the measurement before
    gc.collect()
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    trainer, module, data = build(settings)
    times: list[float] = []

    def note_time(*_: Any) -> None:
        if trainer.global_step in (WARM_UP_STEPS, WARM_UP_STEPS + steps):
            if on_gpu:
                torch.cuda.synchronize()  # Python runs ahead of the GPU
            times.append(time.perf_counter())

    trainer.callbacks.append(LambdaCallback(on_train_batch_end=note_time))
    trainer.fit(module, datamodule=data)
    (warmup,) = [callback.seconds for callback in trainer.callbacks if isinstance(callback, WarmUp)] or [None]
    samples = steps * settings.data.batch_size * settings.trainer.accumulate_grad_batches
    return {
        "mode": mode,
        "precision": precision,
        "batch_size": settings.data.batch_size,
        "samples_per_second": samples / (times[-1] - times[0]),
        "compile_seconds": warmup,
        "allocated_megabytes": torch.cuda.max_memory_allocated() / 2**20 if on_gpu else None,
        "reserved_megabytes": torch.cuda.max_memory_reserved() / 2**20 if on_gpu else None,  # including that of CUDA graphs
        "loss": module.step.loss,
    }


if __name__ == "__main__":
    main()
