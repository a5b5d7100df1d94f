"""Trains a tiny policy twice, eager and compiled, in a process without the type checker, which cannot be compiled;
tests/training/test_trainer.py starts it and reads what it wrote.

python -m tests.training.compiled_worker FOLDER MODE ACCELERATOR PRECISION
"""

import sys
import warnings
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch._dynamo.utils import counters

from tests.factory import FEATURES, make_batch, make_policy
from tests.harness import SGD, fit
from vla_mini import Policy
from vla_mini.settings import Logger
from vla_mini.training.loggers import build_loggers
from vla_mini.training.monitor import GradientMonitor
from vla_mini.training.trainer import WarmUp, check_compile, compile_policy

# Few kernels, since each takes a C++ compiler a second: the heads' and encoders' own graphs are looked at elsewhere.
TINY = {
    "vision": {"_target_": "vla_mini.vision.conv.ConvVision", "depth": 0},
    "action": {"_target_": "vla_mini.action.flow.FlowHead", "depth": 1, "noise_samples": 1},  # draws noise
    "auxiliary": "none",
}
OVERFLOW = 3  # the batch whose states are finite, but not what is made of them


def tiny_policy() -> Policy:
    return make_policy(features=FEATURES._replace(image_size=(8, 8)), **TINY).train()


def batches(policy: Policy) -> list[Any]:
    found = [make_batch(policy, 6, seed=seed) for seed in range(8)]
    far = found[OVERFLOW].observation
    far = far._replace(state=torch.full_like(far.state, torch.finfo(far.state.dtype).max))
    found[OVERFLOW] = found[OVERFLOW]._replace(observation=far)
    return found


def train(policy: Policy, folder: Path, *, callbacks: list[Any], **trainer: Any) -> dict[str, Any]:
    """Two micro-batches make a window where the mode allows it; one of them is not finite."""
    torch.manual_seed(0)  # of the noise
    before = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
    logger, monitor = build_loggers(Logger(), run_dir=folder, config={}), GradientMonitor(every_n_steps=1)
    arguments = {"optimizer": SGD | {"lr": 0.1}, "logger": logger, "monitor": monitor, "log_every_n_steps": 1}
    step = fit(policy, batches(policy), callbacks=callbacks, **arguments, **trainer, record=False).step
    change = {name: tensor.cpu() - before[name] for name, tensor in policy.state_dict().items()}
    return {"change": change, "skipped": step.num_skipped, "origin": step.origin}


def two_sizes(dynamic: bool) -> tuple[int, float]:
    """How many graphs batches of two sizes take, as they are captured (no kernel is made), and how far the losses are off."""
    torch.compiler.reset()
    counters.clear()
    eager, policy = tiny_policy(), tiny_policy()
    with patch("torch._inductor.compile_fx.compile_fx", lambda graph, inputs, **_: graph):
        compile_policy(policy, "default", dynamic=dynamic)
        errors = []
        for size in (7, 5):  # a size that another dimension has, too, is taken for the same
            batch = make_batch(policy, size)
            losses = []
            for call in (policy, eager.loss):
                torch.manual_seed(0)
                losses.append(call(batch)[0])
            errors.append((losses[0] - losses[1]).abs().max().item())
    return counters["stats"]["unique_graphs"], max(errors)


def main(folder: Path, mode: str, accelerator: str, precision: str) -> None:
    warnings.simplefilter("ignore")
    check_compile(mode, accelerator=accelerator)
    trainer = {"accelerator": accelerator, "devices": 1, "precision": precision}
    trainer["accumulate_grad_batches"] = 2 if mode == "default" else 1
    eager, policy = tiny_policy(), tiny_policy()
    result = {"eager": train(eager, folder / "eager", callbacks=[], **trainer)}
    counters.clear()
    compile_policy(policy, mode)
    result["compiled"] = train(policy, folder / "compiled", callbacks=[WarmUp(num_batches=6)], **trainer)
    result["graphs"], result["breaks"] = counters["stats"]["unique_graphs"], dict(counters["graph_break"])

    policy.to("cpu").eval()
    batch = batches(policy)[0]
    policy.loss(batch)
    result["actions"] = policy.act(batch.observation, torch.Generator().manual_seed(0))
    result["graphs afterwards"] = counters["stats"]["unique_graphs"]
    policy.save_pretrained(folder / "policy")
    loaded = Policy.from_pretrained(folder / "policy")
    result["loaded actions"] = loaded.act(batch.observation, torch.Generator().manual_seed(0))
    result["two sizes"] = {dynamic: two_sizes(dynamic) for dynamic in (True, False)}
    torch.save(result, folder / "result.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
