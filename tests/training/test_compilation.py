"""compile=...: training is that of eager mode, all else stays eager, and what cannot work is refused before any work."""

import csv
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from tests.factory import ROOT, VARIANTS, make_policy
from vla_mini import config
from vla_mini.training.compilation import WarmUp, check_compile, device_of
from vla_mini.training.trainer import build_training
from vla_mini.training.window import Stopwatch


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """A process of its own: the type checker that tests run under is nothing to compile."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    result = subprocess.run(
        [sys.executable, *arguments], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=3600, check=False
    )
    assert result.returncode == 0, result.stderr
    return result


def trained(folder: Path, mode: str, *, accelerator: str = "cpu", precision: str = "32-true") -> dict[str, Any]:
    """What compiled_worker found."""
    printed = run("-m", "tests.training.compiled_worker", str(folder), mode, accelerator, precision).stdout
    return torch.load(folder / "result.pt") | {"printed": printed, "folder": folder}


def read_rows(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "metrics.csv").read_text().splitlines()))


def assert_same_training(found: dict[str, Any], tolerance: float) -> None:
    """The weights have moved alike, up to a relative error, and both have skipped the batch that is not finite."""
    eager, compiled = (torch.cat([t.flatten() for t in found[how]["change"].values()]) for how in ("eager", "compiled"))
    assert eager.isfinite().all() and eager.norm() > 0.01
    assert (compiled - eager).norm() / eager.norm() < tolerance
    for how in ("eager", "compiled"):
        assert (found[how]["skipped"], found[how]["origin"]) == (1, "the output of state")


@pytest.fixture(scope="module")
def compiled(tmp_path_factory) -> dict[str, Any]:
    return trained(tmp_path_factory.mktemp("compiled"), "default")


def test_compiled_training_is_eager_training(compiled):
    """Accumulated windows, the monitor's hooks on parameters, and a window that the guard skips and computes again."""
    assert_same_training(compiled, 1e-4)
    assert compiled["eager"]["change"].keys() == compiled["compiled"]["change"].keys()  # no name has changed


def test_the_loss_is_one_graph_and_all_else_stays_eager(compiled):
    assert compiled["graphs"] == 1 and compiled["breaks"] == {}
    assert compiled["graphs afterwards"] == 1  # loss and act have compiled nothing


def test_the_policy_that_was_trained_compiled_is_saved_whole(compiled):
    assert torch.equal(compiled["actions"], compiled["loaded actions"])


def test_what_compiling_took_is_said_and_logged_once(compiled):
    (line,) = [line for line in compiled["printed"].splitlines() if "compiling took" in line]
    rows = read_rows(compiled["folder"] / "compiled")
    (warmup,) = [float(row["compile/warmup_seconds"]) for row in rows if row["compile/warmup_seconds"]]
    assert f"compiling took {warmup:.1f} s of the first 6 batches" in line and warmup > 0.2


def test_the_monitor_logs_the_same(compiled):
    eager, ours = (read_rows(compiled["folder"] / how) for how in ("eager", "compiled"))
    names = {"train/loss", "gradients/total", "gradients/vision", "gradients/action/largest", "gradient_noise/scale"}
    for name in names:
        values = [[float(row[name]) for row in rows if row.get(name)] for rows in (eager, ours)]
        assert len(values[0]) >= 3 and values[1] == pytest.approx(values[0], rel=1e-3, nan_ok=True)


@pytest.mark.parametrize("dynamic", [True, False])
def test_one_graph_serves_all_sizes_of_batches_where_it_is_told_to(compiled, dynamic):
    graphs, error = compiled["two sizes"][dynamic]
    assert graphs == (1 if dynamic else 2) and error < 1e-5


def test_the_setting_compiles_what_is_trained_and_checkpoints_cross_over(tmp_path):
    modules = {}
    for mode in ("none", "default"):
        settings = OmegaConf.to_container(config.load("train", ["experiment=toy_pick_smoke", f"compile={mode}"]), resolve=True)
        policy = make_policy(seed=len(modules))
        trainer, module = build_training(settings, policy, run_dir=tmp_path / mode, stopwatch=Stopwatch())
        assert (policy._compiled_call_impl is not None) == (mode == "default")
        assert any(isinstance(callback, WarmUp) for callback in trainer.callbacks) == (mode == "default")
        modules[mode] = module
    eager, compiled = ({name: tensor.clone() for name, tensor in module.state_dict().items()} for module in modules.values())
    modules["none"].load_state_dict(compiled)  # all names, and no other
    modules["default"].load_state_dict(eager)


def test_a_machine_without_a_compiler_is_told():
    import torch._inductor.config as inductor

    with inductor.patch({"cpp.cxx": (None, "/nowhere/g++")}), pytest.raises(ValueError) as raised:
        check_compile("default", accelerator="cpu")
    text = str(raised.value)
    assert text.startswith("compile=default: nothing can be compiled for cpu here (InvalidCxxCompiler: No working C++ compiler")
    assert text.endswith("say compile=none") and "\n" not in text
    check_compile("none", accelerator="cpu")


def test_cuda_graphs_are_for_cuda(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: None)
    for accelerator in ("auto", "cpu"):
        assert device_of(accelerator) == torch.device("cpu")
        with pytest.raises(
            ValueError, match=f"trainer.accelerator={accelerator} computes on the cpu here: say compile=default"
        ):
            check_compile("reduce-overhead", accelerator=accelerator)


# ------------------------------------------------------------------------------------ minutes, or a GPU, or both

EVERY_VARIANT = """
from tests.factory import make_batch, make_policy
from vla_mini import testing
for variant in {variants}:
    print(variant, flush=True)
    policy = make_policy(**variant).train()
    testing.assert_compiled_equal(policy, make_batch(policy, 4), {options})
"""


def compile_every_variant(options: str) -> None:
    variants = [{group: name} for group, names in VARIANTS.items() for name in names]
    run("-c", EVERY_VARIANT.format(variants=variants, options=options))


@pytest.mark.slow
def test_every_variant_is_captured():
    compile_every_variant("backend='aot_eager'")


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["torch.float32", "torch.bfloat16"])
def test_every_variant_is_compiled(precision):
    compile_every_variant("" if precision == "torch.float32" else f"dtype={precision}")


@pytest.mark.slow
def test_bf16_training(tmp_path):
    assert_same_training(trained(tmp_path, "default", precision="bf16-mixed"), 5e-2)


@pytest.mark.slow
@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("mode", ["default", "reduce-overhead", "max-autotune"])
def test_the_modes_on_a_gpu(tmp_path, mode, precision):
    found = trained(tmp_path, mode, accelerator="gpu", precision=precision)
    assert_same_training(found, 5e-2)  # convolutions on TF32; a gradient lost by a CUDA graph is a matter of halves
    assert found["graphs"] == 1 and found["breaks"] == {}
