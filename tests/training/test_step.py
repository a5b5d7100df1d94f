"""One optimizer step: a window of micro-batches is the one large batch, and a NaN never reaches a weight and is named."""

import math

import lightning
import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import nn

from tests.factory import CONFIGS, make_batch, make_policy, mean_loss, spec
from tests.harness import SGD, fit, read_rows
from vla_mini.autograd.nonfinite import first_nonfinite
from vla_mini.settings import Logger
from vla_mini.testing import split
from vla_mini.training.loggers import build_loggers
from vla_mini.training.monitor import GradientMonitor
from vla_mini.training.step import NonFiniteError, OptimizerStep, Stopwatch, learning_rate_factor

DECAYING = {"weight_decay": 0.1}
OPTIMIZERS = {
    "adamw": {"_target_": "torch.optim.AdamW", "lr": 1e-2} | DECAYING,
    "muon": {"_target_": "vla_mini.training.muon.Muon"} | DECAYING,
    "sgd": {"_target_": "torch.optim.SGD", "lr": 1e-2, "momentum": 0.9} | DECAYING,
}


def flat(gradients):
    return torch.cat([gradients[name].flatten() for name in sorted(gradients)])


def gradients_of_the_mean(policy, batch):
    policy.zero_grad()
    mean_loss(policy, batch).backward()
    return {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}


def relative_error(found, expected):
    return ((flat(found) - flat(expected)).norm() / flat(expected).norm()).item()


def weights_of(policy):
    return {name: tensor.clone() for name, tensor in policy.state_dict().items()}


def same(one, other):
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


# ---- the gradient of a window


@pytest.mark.parametrize(
    ("precision", "dtype", "tolerance"),
    [("64-true", torch.float64, 1e-12), ("32-true", torch.float32, 1e-6), ("bf16-mixed", torch.float32, 5e-3)],
)
def test_a_window_is_the_one_large_batch(precision, dtype, tolerance):
    """Unequal masks, and a last window that is shorter than the others (Lightning's own means are wrong for both)."""
    policy = make_policy(dtype=dtype)
    batch = make_batch(policy, 20)
    arguments = {"optimizer": SGD | {"lr": 0.0}, "accumulate_grad_batches": 3, "precision": precision}
    record = fit(make_policy(dtype=dtype), split(batch, [3, 5, 4, 2, 6]), **arguments)
    for window, gradients in zip(split(batch, [12, 8]), record.gradients, strict=True):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
            expected = gradients_of_the_mean(policy, window)
        assert relative_error(gradients, expected) < tolerance
    if precision == "bf16-mixed":
        assert record.dtypes == {torch.bfloat16}
        assert {gradient.dtype for gradient in record.gradients[0].values()} == {torch.float32}


@pytest.mark.parametrize("optimizer", [SGD, SGD | {"fused": True}], ids=["plain", "fused"])
def test_fp16_gradients_are_unscaled_before_they_are_measured_and_clipped(optimizer, tmp_path):
    """A fused optimizer would unscale within its own step."""
    policy = make_policy()
    batch, before = make_batch(policy, 8), weights_of(policy)
    expected = gradients_of_the_mean(policy, batch)
    plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**8))
    arguments = {"optimizer": optimizer, "clip_value": 0.01, "accumulate_grad_batches": 2, "plugins": [plugin]}
    logger = build_loggers(Logger(), run_dir=tmp_path, config={})
    fit(policy, split(batch, [3, 5]), monitor=GradientMonitor(every_n_steps=1, histograms=0), logger=logger, **arguments)
    (logged,) = (row for row in read_rows(tmp_path) if row["gradients/total"])
    assert float(logged["gradients/total"]) == pytest.approx(flat(expected).norm().item(), rel=2e-2)
    moved = {name: (before[name] - weight).detach() for name, weight in policy.named_parameters()}
    assert flat(moved).norm().item() == pytest.approx(0.01, rel=1e-2)
    assert relative_error(moved, {name: 0.01 * g / flat(expected).norm() for name, g in expected.items()}) < 3e-2


def test_nothing_leaks_from_one_window_to_the_next():
    policy = make_policy(dtype=torch.float64)
    batches = [make_batch(policy, 3, seed=seed) for seed in range(4)]
    arguments = {"accumulate_grad_batches": 2, "optimizer": SGD | {"lr": 0.0}, "precision": "64-true"}
    both, second = fit(policy, batches, **arguments), fit(policy, batches[2:], **arguments)
    assert torch.equal(flat(both.gradients[1]), flat(second.gradients[0]))


@pytest.mark.parametrize(("algorithm", "order"), [("norm", 2), ("value", math.inf)])
def test_clipping_bounds_the_step(algorithm, order):
    """A step of SGD is the rate times the gradient, as long as nothing is clipped."""
    policy, clipped = make_policy(), make_policy()
    batch, before = make_batch(policy), weights_of(policy)
    expected = gradients_of_the_mean(policy, batch)
    fit(policy, [batch], optimizer=SGD | {"lr": 0.1})
    for name, parameter in policy.named_parameters():
        torch.testing.assert_close(parameter.detach(), before[name] - 0.1 * expected[name])
    fit(clipped, [batch], clip_value=0.01, clip_algorithm=algorithm)
    assert flat(expected).norm(p=order) > 0.02
    moved = {name: parameter.detach() - before[name] for name, parameter in clipped.named_parameters()}
    torch.testing.assert_close(flat(moved).norm(p=order), torch.tensor(0.01), rtol=1e-3, atol=0)


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONFIGS / "optimizer").glob("*.yaml")))
def test_the_optimizers_of_configs_reduce_the_loss(name):
    policy = make_policy()
    batch = make_batch(policy)
    before = mean_loss(policy, batch).item()
    fit(policy, [batch] * 10, optimizer=spec("optimizer", name), clip_value=1.0)
    assert mean_loss(policy, batch).item() < before


# ---- the learning rate and the clock


def test_warm_up_and_cosine():
    factors = [learning_rate_factor(step, 100, warmup_steps=10, decay="cosine") for step in range(101)]
    assert factors[0] == pytest.approx(0.1) and max(factors) == pytest.approx(factors[10], rel=0.05)
    assert factors[10:] == sorted(factors[10:], reverse=True) and factors[100] == pytest.approx(0)
    assert [learning_rate_factor(step, 100, warmup_steps=2, decay="constant") for step in range(4)] == [0.5, 1, 1, 1]


def test_each_component_learns_at_its_own_rate(tmp_path):
    """By hand: weight - rate x schedule x multiplier x gradient, in the first of two steps of warm-up."""
    policy = make_policy()
    batch, before = make_batch(policy), weights_of(policy)
    gradients = gradients_of_the_mean(policy, batch)
    multipliers = {"vision": 0.1, "trunk": 4.0}
    logger = build_loggers(Logger(), run_dir=tmp_path, config={})
    arguments = {"optimizer": SGD | {"lr": 0.1}, "multipliers": multipliers, "warmup_steps": 2, "log_every_n_steps": 1}
    fit(policy, [batch] * 2, logger=logger, **arguments, callbacks=[Snapshots(weights := [])])
    for name in gradients:
        rate = 0.1 * 0.5 * multipliers.get(name.split(".")[0], 1.0)
        torch.testing.assert_close(weights[0][name], before[name] - rate * gradients[name])
    for row, factor in zip(read_rows(tmp_path), (0.5, 1), strict=True):
        rates = {"learning_rate": 0.1, "learning_rate/vision": 0.01, "learning_rate/trunk": 0.4}
        assert {name: float(row[name]) for name in rates} == pytest.approx({n: factor * r for n, r in rates.items()})


def test_the_stopwatch_leaves_pauses_out(monkeypatch):
    now = 100.0

    def clock():
        return now

    monkeypatch.setattr("time.perf_counter", clock)
    stopwatch = Stopwatch()
    now += 5
    assert stopwatch.seconds == 0
    stopwatch.start()
    now += 2
    with stopwatch.paused():
        now += 30
    stopwatch.offset += 10
    assert stopwatch.seconds == 12


# ---- steps that are not finite


class Snapshots(lightning.Callback):
    """Collects the weights after each step; and the learning rate, and whether it was skipped."""

    def __init__(self, weights):
        self.weights, self.rates, self.skipped = weights, [], []

    def on_train_batch_end(self, trainer, module, *_):
        self.weights.append(weights_of(module.policy))
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])
        self.skipped.append(module.step.skipped)


def marked(batch):
    """The batch with a state so far from all others that a hook can tell."""
    state = batch.observation.state.clone()
    state[0, 0] = 1e3
    return batch._replace(observation=batch.observation._replace(state=state))


def flags(policy):
    """Whether each forward pass was one of the marked batch."""
    seen = []
    policy.state.register_forward_pre_hook(lambda module, inputs: seen.append(bool(inputs[0].abs().max() > 100)))
    return seen


def nan_in_the_batch(policy, batch):
    state = batch.observation.state.clone()
    state[1, 2] = math.nan
    return batch._replace(observation=batch.observation._replace(state=state)), "batch.observation.state"


def nan_in_an_output(policy, batch):
    seen = flags(policy)
    policy.trunk.queries.register_forward_hook(lambda module, inputs, output: output * (math.nan if seen[-1] else 1))
    return marked(batch), "the output of trunk.queries"


def nan_in_a_gradient(policy, batch):
    seen = flags(policy)
    policy.trunk.slots.register_hook(lambda gradient: gradient * (math.inf if seen[-1] else 1))
    return marked(batch), "the gradient of trunk.slots"


def nan_in_the_loss(policy, batch):
    seen, loss = flags(policy), policy.action.loss
    policy.action.loss = lambda *arguments: loss(*arguments) * (math.nan if seen[-1] else 1)
    return marked(batch), "the loss term action"


PLACES = [nan_in_the_batch, nan_in_an_output, nan_in_a_gradient, nan_in_the_loss]
# Each place with one optimizer, and each optimizer with one place: what is skipped does not depend on the pair.
PAIRS = [*((place, "adamw") for place in PLACES), (nan_in_an_output, "muon"), (nan_in_an_output, "sgd")]


@pytest.mark.parametrize(("plant", "optimizer"), PAIRS, ids=lambda value: getattr(value, "__name__", value))
def test_a_planted_nan_leaves_every_weight_and_is_named(plant, optimizer, capsys):
    policy = make_policy()
    good = [make_batch(policy, seed=seed) for seed in range(2)]
    bad, place = plant(policy, make_batch(policy, seed=9))
    snapshots = Snapshots([])
    arguments = {"optimizer": OPTIMIZERS[optimizer], "clip_value": 1.0, "warmup_steps": 50}
    step = fit(policy, [good[0], bad, good[1]], callbacks=[snapshots], **arguments).step
    before, skipped, after = snapshots.weights
    assert same(before, skipped) and not same(skipped, after)
    assert snapshots.skipped == [False, True, False]
    assert snapshots.rates == pytest.approx([snapshots.rates[0] * factor for factor in (1, 2, 2)])  # the schedule was held
    assert (step.num_skipped, step.num_skipped_in_a_row, step.origin) == (1, 0, place)
    assert f"step 1 skipped (1 in a row, 1 in all): not finite is {place}" in capsys.readouterr().err

    untouched = make_policy()  # momentum, step counters and schedule are as if the bad batch had never come
    fit(untouched, good, **arguments)
    assert same(untouched.state_dict(), after)


def test_a_window_is_skipped_as_a_whole_and_leaves_nothing_behind():
    """The NaN is in the second of three micro-batches; the next window's gradient is its own."""
    policy = make_policy()
    batches = [make_batch(policy, seed=seed) for seed in range(6)]
    batches[1], place = nan_in_an_output(policy, batches[1])
    record = fit(policy, batches, accumulate_grad_batches=3)
    assert (record.step.num_skipped, record.step.origin) == (1, place) and record.gradients[0] == {}
    alone = fit(make_policy(), batches[3:], accumulate_grad_batches=3)
    assert same(record.gradients[1], alone.gradients[0])


def test_too_many_in_a_row_end_training():
    policy = make_policy()
    before = weights_of(policy)
    bad, place = nan_in_an_output(policy, make_batch(policy))
    record = fit(policy, [bad] * 10, patience=3)
    assert record.trainer.global_step == 3 and same(before, policy.state_dict())
    with pytest.raises(NonFiniteError, match=f"3 steps in a row were not finite, the last because of {place}"):
        record.step.raise_if_stopped()


def test_a_good_step_between_them_restarts_the_count():
    policy = make_policy()
    good = make_batch(policy, seed=1)
    bad, _ = nan_in_an_output(policy, make_batch(policy))
    record = fit(policy, [bad, good, bad, good], patience=2)
    record.step.raise_if_stopped()
    assert record.step.num_skipped == 2 and record.trainer.global_step == 4
    resumed = OptimizerStep(policy, monitor=GradientMonitor())
    resumed.load_state_dict(record.step.state_dict())
    assert (resumed.num_skipped, resumed.origin) == (2, "the output of trunk.queries")


def test_the_random_numbers_are_those_of_the_step(monkeypatch):
    """A NaN that depends on chance happens again when the batch is computed again, and training draws what it would have."""

    def unlucky(module, inputs, output):
        return output * (math.nan if torch.rand(()) < 0.3 else 1)

    draws = []
    for origin in (OptimizerStep.find_origin, lambda *_: "not looked for"):
        monkeypatch.setattr(OptimizerStep, "find_origin", origin)
        policy = make_policy()
        policy.trunk.values.register_forward_hook(unlucky)
        torch.manual_seed(3)
        step = fit(policy, [make_batch(policy)] * 20, accumulate_grad_batches=2, patience=100).step
        assert step.num_skipped > 1
        draws.append((step.num_skipped, torch.rand(()).item(), step.origin))
    assert draws[0][:2] == draws[1][:2] and draws[0][2] == "the output of trunk.values"


def test_what_does_not_happen_again_is_reported_as_such():
    policy, calls = make_policy(), []
    policy.trunk.slots.register_hook(lambda gradient: gradient * (calls.append(0) or math.nan if not calls else 1))
    step = fit(policy, [make_batch(policy)]).step
    assert step.origin == "the gradient of trunk.slots, which was finite when computed again"


def test_the_search_leaves_gradients_hooks_and_running_statistics():
    policy = make_policy().train()
    policy.state = nn.Sequential(policy.state, nn.BatchNorm1d(64))
    batch = make_batch(policy)
    assert first_nonfinite(policy, batch) is None
    bad, _ = nan_in_the_batch(policy, batch)
    assert first_nonfinite(policy, bad) == "batch.observation.state"
    never = batch.actions.clone()
    never[0, 0, 0] = -math.inf
    assert first_nonfinite(policy, batch._replace(actions=never)) == "batch.actions"
    assert policy.state[1].num_batches_tracked == 0
    assert all(parameter.grad is None and not parameter._backward_hooks for parameter in policy.parameters())
    assert not [name for name, module in policy.named_modules() if module._forward_hooks]


def test_running_statistics_are_restored():
    policy = make_policy().train()
    policy.state = nn.Sequential(policy.state, nn.BatchNorm1d(64))
    bad, _ = nan_in_the_batch(policy, make_batch(policy))
    fit(policy, [make_batch(policy), bad])
    assert policy.state[1].running_mean.isfinite().all() and policy.state[1].num_batches_tracked == 1


def test_an_fp16_overflow_lowers_the_scale_and_is_no_failure():
    policy, scaler = make_policy(), torch.amp.GradScaler("cpu", init_scale=2.0**20)
    before = weights_of(policy)
    step = fit(policy, [make_batch(policy, 2)] * 24, patience=2, plugins=[MixedPrecision("16-mixed", "cpu", scaler)]).step
    assert step.num_skipped > 2 and step.num_skipped_in_a_row == 0 and step.origin is None
    assert scaler.get_scale() < 2.0**20 and not step.skipped
    assert not same(before, policy.state_dict())
    assert all(parameter.isfinite().all() for parameter in policy.parameters())


def test_a_skipped_step_is_logged_with_its_gradients(tmp_path):
    policy = make_policy()
    policy.vision.stem.weight.register_hook(lambda gradient: gradient * torch.nan)
    logger = build_loggers(Logger(), run_dir=tmp_path, config={})
    fit(policy, [make_batch(policy)], monitor=GradientMonitor(every_n_steps=1), logger=logger)
    (row,) = read_rows(tmp_path)
    assert float(row["gradients/vision/nonfinite"]) == policy.vision.stem.weight.numel()
    assert float(row["guard/skipped_steps"]) == 1 and float(row["updates/action"]) == 0 and "train/loss" not in row
