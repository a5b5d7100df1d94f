"""Settings -> the Trainer: its callbacks, what the hardware has, torch.compile, and memory."""

import os
import platform
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.factory import ROOT, VARIANTS, command, make_batch, make_observation, make_policy, mean_loss, spec
from tests.harness import fit, read_rows, saving
from vla_mini import config
from vla_mini.action._denoiser import Denoiser
from vla_mini.training.callbacks import BestPolicy, WeightAverage
from vla_mini.training.trainer import build_training, check_compile, choose_device, choose_precision, keep_freed_memory
from vla_mini.utils.machine import multiplies_bf16

ENV = "vla_mini/ToyPick-v0"


def names_of(callbacks):
    return [type(callback).__name__ for callback in callbacks]


def test_the_settings_are_what_is_built(tmp_path):
    """Checkpoints come after what they save; eager and compiled modules load each other's weights."""
    more = ["compile=default", "ema.decay=0.9", "unfreeze_at.vision=2", "guard.patience=3", "schedule.warmup_steps=7"]
    modules = {}
    for name, arguments in {"plain": [], "more": [*more, "trainer.gradient_clip_algorithm=value"]}.items():
        settings = config.load("train", ["experiment=toy_pick_smoke", "trainer.gradient_clip_val=0.5", *arguments])
        policy = make_policy(seed=len(modules))
        trainer, modules[name] = build_training(settings, policy, run_dir=tmp_path / name)
        found = names_of(trainer.callbacks)
        always = ["BestPolicy", "TrainingBar", "Checkpoints", "Summary"]
        assert found == (always if name == "plain" else ["Unfreezing", "WeightAverage", "WarmUp", *always])
        assert (policy._compiled_call_impl is not None) == (name == "more")
        assert trainer.gradient_clip_val is None  # or Lightning would clip, too
    plain, more = modules["plain"].step, modules["more"].step
    assert (plain.clip_norm, plain.clip_value, more.clip_norm, more.clip_value) == (0.5, None, None, 0.5)
    assert (plain.patience, more.patience, plain.warmup_steps, more.warmup_steps) == (5, 3, 2, 7)
    assert plain.monitor.every_n_steps == 1 and modules["plain"].policy_for_evaluation is modules["plain"].policy
    assert modules["more"].policy_for_evaluation is modules["more"].average.policy
    weights = [{name: tensor.clone() for name, tensor in module.state_dict().items()} for module in modules.values()]
    modules["plain"].load_state_dict(weights[1])  # all names, and no other
    modules["more"].load_state_dict(weights[0])


def test_deterministic_asks_torch_for_it_and_prints_what_it_costs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    seen, asked = [], torch.are_deterministic_algorithms_enabled
    monkeypatch.setattr(BestPolicy, "on_train_batch_end", lambda *_: seen.append(asked()))
    try:
        assert command("train", "experiment=toy_pick_smoke", "env=none", "data.root=missing", "deterministic=true") == 2
        arguments = ["deterministic=true", "evaluation.episodes=1", "evaluation.every_n_steps=0"]
        assert command("train", "experiment=toy_pick_smoke", *arguments) == 0
    finally:
        torch.use_deterministic_algorithms(False)
    assert seen == [True] * 4
    assert "deterministic=true: no cost on CPUs; on GPUs slower kernels" in capsys.readouterr().out


# ---- hardware


def test_precision_is_what_the_hardware_has(monkeypatch):
    assert choose_precision("32-true") == "32-true"
    for capable, expected in ((True, "bf16-mixed"), (False, "32-true")):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda capable=capable: {"avx512_bf16": capable})
        multiplies_bf16.cache_clear()
        assert choose_precision("auto", accelerator="cpu") == expected
    multiplies_bf16.cache_clear()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("trainer.precision=16-mixed", "trainer.precision=16-mixed is for GPUs; on CPUs there are bf16-mixed, 32-true"),
        ("trainer.precision=16-true", "trainer.precision='16-true'"),
        ("trainer.accelerator=tpu", "trainer.accelerator=tpu: torch finds no such device here"),
        ("trainer.val_check_interval=0.5", "trainer: `val_check_interval` should be an integer"),
    ],
)
def test_what_the_hardware_or_lightning_refuses_is_refused_before_any_work(setting, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert command("train", "experiment=toy_pick_smoke", "trainer.accelerator=cpu", setting) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("action", VARIANTS["action"])
def test_policies_of_bf16_are_trained_evaluated_and_saved(action, tmp_path):
    """Their moving average is of float32."""
    policy = make_policy(action=action)
    average = WeightAverage(policy, 0.9)
    best = BestPolicy(tmp_path / "policy", env_id=ENV, selection_episodes=1, every_n_steps=2, seed=0)
    fit(policy, [make_batch(policy)] * 2, **saving(best, tmp_path), average=average, precision="bf16-true", record=False)
    assert {p.dtype for p in policy.parameters()} == {torch.bfloat16} and best.best is not None
    assert {p.dtype for p in average.policy.parameters()} == {torch.float32}
    assert all(parameter.isfinite().all() for parameter in [*policy.parameters(), *average.policy.parameters()])


@pytest.mark.parametrize("arguments", [{}, {"num_steps": 100}])
@pytest.mark.parametrize("action", ["flow", "diffusion"])
def test_noise_and_times_are_not_rounded_with_the_weights(action, arguments):
    policies = [
        make_policy(action=spec("action", action) | arguments, dtype=dtype) for dtype in (torch.float32, torch.bfloat16)
    ]
    acted = [policy.act(make_observation(policy), torch.Generator().manual_seed(0)).float() for policy in policies]
    torch.testing.assert_close(*acted, rtol=0, atol=0.1)
    losses, times = [], []
    for policy in policies:
        (field,) = (part for part in policy.action.children() if isinstance(part, Denoiser))
        field.register_forward_pre_hook(lambda module, inputs: times.append(inputs[1].dtype))
        torch.manual_seed(1)
        losses.append(mean_loss(policy, make_batch(policy, 8)).float())
    assert times == [torch.float32] * 2
    torch.testing.assert_close(*losses, rtol=0.02, atol=0)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="for glibc's malloc")
def test_freed_memory_is_used_again():
    """In five steps that each hold 80 MB for a moment, a hundred thousand pages of 4 kB."""
    keep_freed_memory()
    for step in range(6):
        if step == 1:  # the first one asks for memory in any case
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        blocks = [torch.zeros(2 << 20) for _ in range(10)]
        del blocks
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < 10_000


# ---- torch.compile


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """A process of its own: the type checker that tests run under cannot be compiled."""
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


def assert_same_training(found: dict[str, Any], tolerance: float) -> None:
    """The weights have changed alike, up to a relative error, and both have skipped the batch that is not finite."""
    eager, compiled = (torch.cat([t.flatten() for t in found[how]["change"].values()]) for how in ("eager", "compiled"))
    assert eager.isfinite().all() and eager.norm() > 0.01
    assert (compiled - eager).norm() / eager.norm() < tolerance
    for how in ("eager", "compiled"):
        assert (found[how]["skipped"], found[how]["origin"]) == (1, "the output of state")


@pytest.fixture(scope="module")
def compiled(tmp_path_factory) -> dict[str, Any]:
    return trained(tmp_path_factory.mktemp("compiled"), "default")


def test_compiled_training_is_eager_training(compiled):
    """Accumulated windows, the monitor's hooks on parameters, and a window that is skipped and computed again."""
    assert_same_training(compiled, 1e-4)
    assert compiled["eager"]["change"].keys() == compiled["compiled"]["change"].keys()  # no name has changed
    eager, ours = (read_rows(compiled["folder"] / how) for how in ("eager", "compiled"))
    names = {"train/loss", "gradients/total", "gradients/vision", "gradients/action/largest", "gradient_noise/scale"}
    for name in names:
        values = [[float(row[name]) for row in rows if row.get(name)] for rows in (eager, ours)]
        assert len(values[0]) >= 3 and values[1] == pytest.approx(values[0], rel=1e-3, nan_ok=True)


def test_the_loss_is_one_graph_and_all_else_stays_eager(compiled):
    assert compiled["graphs"] == 1 and compiled["breaks"] == {}
    assert compiled["graphs afterwards"] == 1  # loss and act have compiled nothing
    assert torch.equal(compiled["actions"], compiled["loaded actions"])  # what was trained compiled is saved whole


def test_what_compiling_took_is_printed_and_logged_once(compiled):
    (line,) = [line for line in compiled["printed"].splitlines() if "compiling took" in line]
    rows = read_rows(compiled["folder"] / "compiled")
    (warmup,) = [float(row["compile/warmup_seconds"]) for row in rows if row["compile/warmup_seconds"]]
    assert f"compiling took {warmup:.1f} s of the first 6 batches" in line and warmup > 0.2


@pytest.mark.parametrize("dynamic", [True, False])
def test_one_graph_serves_all_batch_sizes_where_it_is_to(compiled, dynamic):
    graphs, error = compiled["two sizes"][dynamic]
    assert graphs == (1 if dynamic else 2) and error < 1e-5


def test_a_machine_without_a_compiler_is_refused():
    import torch._inductor.config as inductor

    with inductor.patch({"cpp.cxx": (None, "/nowhere/g++")}), pytest.raises(ValueError) as raised:
        check_compile("default", accelerator="cpu")
    text = str(raised.value)
    assert text.startswith("compile=default: nothing can be compiled for cpu here (InvalidCxxCompiler: No working C++ compiler")
    assert text.endswith("use compile=none") and "\n" not in text
    check_compile("none", accelerator="cpu")


def test_cuda_graphs_are_for_cuda(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: None)
    for accelerator in ("auto", "cpu"):
        assert choose_device(accelerator) == torch.device("cpu")
        with pytest.raises(
            ValueError, match=f"trainer.accelerator={accelerator} computes on the cpu here: use compile=default"
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


@pytest.mark.slow
@pytest.mark.parametrize("options", ["backend='aot_eager'", "", "dtype=torch.bfloat16"])
def test_every_variant_is_compiled(options):
    variants = [{group: name} for group, names in VARIANTS.items() for name in names]
    run("-c", "import torch\n" + EVERY_VARIANT.format(variants=variants, options=options))


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
