"""The same on a GPU: the main path, the numbers, the precisions, the errors. For torch.compile see training/test_trainer.py."""

import copy
import csv
import json
import math

import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from benchmarks import gpu
from tests.factory import command, make_batch, make_policy, mean_loss
from tests.harness import SGD, fit
from tests.training.test_step import nan_in_a_gradient, nan_in_an_output
from vla_mini import testing
from vla_mini.autograd.per_sample import per_sample
from vla_mini.collection import collect
from vla_mini.testing import split
from vla_mini.training.monitor import GradientMonitor

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("default")]  # warnings of libraries about single GPUs

GPU = torch.device("cuda", 0)
ON_GPU = {"accelerator": "gpu", "devices": 1}
ADAM = {"_target_": "torch.optim.Adam", "lr": 1e-3}


def to_gpu(tensors):
    return tree_map(lambda tensor: tensor.to(GPU), tensors)


class HostNoise(TorchFunctionMode):
    """Noise is drawn on the host and moved, so that heads that sample get the same on both devices."""

    def __init__(self):
        super().__init__()
        self.generator = torch.Generator().manual_seed(0)

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if function not in (torch.rand, torch.randn):
            return function(*args, **kwargs)
        device = kwargs.pop("device", "cpu")
        return function(*args, **kwargs | {"generator": self.generator}).to(device)


def compute(policy, batch):
    """The loss, its gradient and a chunk of actions, on the host."""
    policy.zero_grad()
    with HostNoise():
        loss = mean_loss(policy, batch)
    loss.backward()
    with HostNoise():
        actions = policy.act(batch.observation)
    gradient = torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None])
    return loss.detach().cpu(), gradient.cpu(), actions.cpu()


@pytest.mark.parametrize("precision", ["auto", "32-true", "16-mixed"])
def test_the_main_path(tmp_path, capsys, precision):
    """Collects, trains on the GPU, evaluates, reports; and the saved policy acts on the host."""
    settings = [f"data.root={tmp_path / 'data'}", f"hydra.run.dir={tmp_path / 'run'}", f"trainer.precision={precision}"]
    assert command("train", "experiment=toy_pick_smoke", "trainer.accelerator=gpu", "trainer.max_steps=20", *settings) == 0
    out = "".join(capsys.readouterr())
    if precision == "auto":
        precision = "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
    assert "cuda:0" in out and f"precision: {precision}" in out
    assert json.loads((tmp_path / "run" / "evaluation" / "metrics.json").read_text())["episodes"] == 2
    rows = list(csv.DictReader((tmp_path / "run" / "metrics.csv").read_text().splitlines()))
    assert all(math.isfinite(float(row["train/loss"])) for row in rows if row["train/loss"])
    totals = [float(row["gradients/total"]) for row in rows if row["gradients/total"]]
    assert 0 < totals[-1] < 100  # unscaled, and no overflow any more
    assert command("evaluate", f"policy={tmp_path / 'run' / 'policy'}", "episodes=2") == 0


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-8), (torch.float32, 1e-2)])
def test_the_numbers_are_those_of_the_host(variant, dtype, tolerance):
    """In float32 cuDNN may round products to TF32; its gradients are left out, since a ReLU's kink then decides."""
    policy = make_policy(**variant, dtype=dtype)
    batch = make_batch(policy, 4)
    host = compute(policy, batch)
    there = compute(copy.deepcopy(policy).to(GPU), to_gpu(batch))
    for name, one, other in zip(("loss", "gradient", "actions"), host, there, strict=True):
        if name != "gradient" or dtype == torch.float64:
            error = ((other - one).norm() / one.norm()).item()
            assert error < tolerance, f"the {name} is off by {error:.1e}"


@pytest.mark.parametrize(("dtype", "precision"), [(torch.float64, "64-true"), (torch.float32, "bf16-mixed")])
def test_a_window_is_the_one_big_batch(dtype, precision):
    policy = make_policy(dtype=dtype).to(GPU)
    batch = make_batch(make_policy(dtype=dtype), 20)
    arguments = {"optimizer": SGD | {"lr": 0.0}, "precision": precision, "accumulate_grad_batches": 3}
    record = fit(make_policy(dtype=dtype), split(batch, [3, 5, 4, 2, 6]), **arguments, **ON_GPU)
    for window, gradients in zip(split(batch, [12, 8]), record.gradients, strict=True):
        policy.zero_grad()
        with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16-mixed"):
            loss = mean_loss(policy, to_gpu(window))
        loss.backward()
        expected = torch.cat([parameter.grad.flatten() for parameter in policy.parameters()])
        got = torch.cat([gradients[name].flatten() for name, _ in policy.named_parameters()])
        assert got.device.type == "cuda"
        assert (got - expected).norm() / expected.norm() < (1e-12 if dtype == torch.float64 else 1e-2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_micro_batches_add_up(dtype):
    policy = make_policy(dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    batch = make_batch(policy, 8)
    testing.assert_accumulation_equivalent(policy.to(GPU), to_gpu(batch), dtype=dtype)


@pytest.mark.parametrize(
    ("precision", "dtype"), [("32-true", torch.float32), ("bf16-mixed", torch.bfloat16), ("16-mixed", torch.float16)]
)
def test_each_precision_trains(precision, dtype):
    """Layers in `dtype`, parameters and gradients in float32, with GradScaler for float16; with monitor and clipping."""
    policy = make_policy()
    batch = make_batch(policy, 8)
    before = mean_loss(policy, batch).item()
    arguments = {"optimizer": ADAM, "monitor": GradientMonitor(every_n_steps=5), "precision": precision, "clip_value": 1.0}
    record = fit(policy, [batch] * 40, **arguments, **ON_GPU)
    assert record.dtypes == {dtype}
    assert {g.dtype for gradients in record.gradients for g in gradients.values()} == {torch.float32}
    skipped = 10 if precision == "16-mixed" else 0  # until the scale fits
    assert record.step.num_skipped <= skipped and record.step.origin is None
    policy = policy.to("cpu")
    assert {parameter.dtype for parameter in policy.parameters()} == {torch.float32}
    assert mean_loss(policy, batch).item() < 0.8 * before


@pytest.mark.parametrize("fused", [False, True])
def test_the_scale_is_taken_out_of_the_gradients(fused):
    """The gradients of float16 training, as clipping and the optimizer get them, are not multiples of the scale."""
    batch = make_batch(make_policy(), 8)
    plugin = MixedPrecision("16-mixed", "cuda", torch.amp.GradScaler("cuda", init_scale=2.0**8))
    arguments = {"optimizer": ADAM | {"fused": fused}, **ON_GPU}
    scaled, plain = (
        torch.cat(
            [gradient.flatten() for gradient in fit(make_policy(), [batch], **precision, **arguments).gradients[0].values()]
        )
        for precision in ({"plugins": [plugin]}, {"precision": "32-true"})
    )
    assert (scaled - plain).norm() < 0.05 * plain.norm()


def test_an_fp16_overflow_lowers_the_scale_and_is_no_failure():
    policy = make_policy()
    scaler = torch.amp.GradScaler("cuda", init_scale=2.0**40)
    plugin = MixedPrecision("16-mixed", "cuda", scaler)
    step = fit(policy, [make_batch(policy)] * 40, patience=2, optimizer=ADAM, plugins=[plugin], **ON_GPU).step
    assert step.num_skipped > 2 and step.num_skipped_in_a_row == 0 and step.origin is None and scaler.get_scale() < 2.0**40
    assert all(parameter.isfinite().all() for parameter in policy.parameters())


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
@pytest.mark.parametrize("plant", [nan_in_an_output, nan_in_a_gradient], ids=lambda plant: plant.__name__)
def test_a_planted_nan_leaves_every_weight_and_is_named(plant, precision):
    policy = make_policy()
    before = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
    bad, place = plant(policy, make_batch(policy))
    if precision == "16-mixed" and plant is nan_in_a_gradient:  # which the scaler takes for an overflow
        place = None
    step = fit(policy, [bad], precision=precision, **ON_GPU).step
    assert (step.num_skipped, step.origin) == (1, place)
    assert all(torch.equal(tensor.cpu(), before[name]) for name, tensor in policy.state_dict().items())


def test_per_sample_gradients_leave_the_gpus_random_state():
    policy = make_policy(action="flow")  # draws noise
    batch = make_batch(policy, 4)
    policy.to(GPU)
    before = torch.cuda.get_rng_state(GPU), torch.get_rng_state()
    one, two = (per_sample(policy, to_gpu(batch), seed=1) for _ in range(2))
    assert one.norms == pytest.approx(two.norms, rel=1e-3)  # drawn from the seed
    assert torch.equal(torch.cuda.get_rng_state(GPU), before[0]) and torch.equal(torch.get_rng_state(), before[1])


def test_a_tensor_on_another_device_is_named_with_both():
    policy = make_policy()
    batch = make_batch(policy)
    policy.to(GPU)
    with pytest.raises(ValueError, match=r"^observation\.images is on cpu, the policy is on cuda:0$"):
        policy.act(batch.observation)
    mixed = to_gpu(batch)._replace(actions=batch.actions)
    with pytest.raises(ValueError, match=r"^batch\.actions is on cpu, the policy is on cuda:0$"):
        policy.loss(mixed)
    with pytest.raises(ValueError, match=r"^observation\.images is on cuda:0, the policy is on cpu$"):
        policy.to("cpu").loss(to_gpu(batch))


def test_acting_builds_no_graph():
    policy = make_policy()
    observation = to_gpu(make_batch(policy).observation)
    testing.assert_no_graph(policy.to(GPU).act, observation)


def test_the_benchmark_measures(tmp_path):
    collect("vla_mini/ToyPick-v0", tmp_path / "data", episodes=8, validation_episodes=1, num_workers=1)
    others = [f"data.root={tmp_path / 'data'}", "data.batch_size=16", "trainer.log_every_n_steps=1"]
    figures = gpu.measure(tmp_path, mode="none", precision="bf16-mixed", steps=5, others=others)
    assert figures["samples_per_second"] > 0 and 1 < figures["allocated_megabytes"] <= figures["reserved_megabytes"]
