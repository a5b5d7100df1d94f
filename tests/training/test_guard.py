"""A NaN, planted in one place after another, never reaches a weight, and its place is named."""

import json
import math

import pytest
import torch
from lightning import Callback
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import nn

from tests.factory import command, make_batch, make_policy
from tests.harness import fit
from vla_mini.autograd.nonfinite import first_nonfinite
from vla_mini.training.guard import NonFiniteError, NonFiniteGuard, raise_if_stopped

OPTIMIZERS = {
    "adamw": {"_target_": "torch.optim.AdamW", "lr": 1e-2, "weight_decay": 0.1},
    "muon": {"_target_": "vla_mini.training.muon.Muon", "weight_decay": 0.1},
    "sgd": {"_target_": "torch.optim.SGD", "lr": 1e-2, "momentum": 0.9, "weight_decay": 0.1},
}


class Snapshots(Callback):
    """The weights, the learning rate and the guard's mark after each optimizer step."""

    def __init__(self):
        self.weights, self.rates, self.marks = [], [], []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.weights.append({name: tensor.clone() for name, tensor in module.policy.state_dict().items()})
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])
        self.marks.append(module.skip_step)


def same(one, other):
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


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


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("plant", PLACES, ids=lambda plant: plant.__name__)
def test_a_planted_nan_leaves_every_weight_and_is_named(plant, optimizer, capsys):
    policy = make_policy()
    good = [make_batch(policy, seed=seed) for seed in range(3)]
    bad, place = plant(policy, make_batch(policy, seed=9))
    guard, snapshots = NonFiniteGuard(), Snapshots()
    arguments = {"optimizer": OPTIMIZERS[optimizer], "gradient_clip_val": 1.0, "warmup_steps": 50}
    fit(policy, [good[0], bad, good[1]], callbacks=[guard, snapshots], **arguments)
    before, skipped, after = snapshots.weights
    assert same(before, skipped) and not same(skipped, after)
    assert snapshots.marks == [False, True, False]
    assert snapshots.rates[0] == snapshots.rates[1] < snapshots.rates[2]  # the schedule was held
    assert (guard.skipped, guard.in_a_row, guard.origin) == (1, 0, place)
    assert f"step 1 skipped (1 in a row, 1 in all): not finite is {place}" in capsys.readouterr().err

    untouched = make_policy()  # momentum, step counters and schedule are as if the bad batch had never come
    fit(untouched, good[:2], callbacks=[NonFiniteGuard()], **arguments)
    assert same(untouched.state_dict(), after)


def test_without_the_guard_training_goes_on_silently():
    policy = make_policy()
    bad, _ = nan_in_an_output(policy, make_batch(policy))
    fit(policy, [bad])
    assert not all(parameter.isfinite().all() for parameter in policy.parameters())


def test_a_window_is_skipped_whole_and_leaves_nothing_behind():
    """The NaN is in the second of three micro-batches; the next window's gradient is its own."""
    policy = make_policy()
    batches = [make_batch(policy, seed=seed) for seed in range(6)]
    batches[1], place = nan_in_an_output(policy, batches[1])
    guard = NonFiniteGuard()
    record = fit(policy, batches, callbacks=[guard], accumulate_grad_batches=3)
    assert (guard.skipped, guard.origin) == (1, place)
    alone = fit(make_policy(), batches[3:], callbacks=[NonFiniteGuard()], accumulate_grad_batches=3)
    assert same(record.gradients[1], alone.gradients[0])


def test_too_many_in_a_row_end_training():
    policy = make_policy()
    before = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
    bad, place = nan_in_an_output(policy, make_batch(policy))
    record = fit(policy, [bad] * 10, callbacks=[NonFiniteGuard(patience=3)])
    assert record.trainer.global_step == 3 and same(before, policy.state_dict())
    with pytest.raises(NonFiniteError, match=f"3 steps in a row were not finite, the last because of {place}"):
        raise_if_stopped(record.trainer)


def test_a_good_step_between_them_starts_the_count_anew():
    policy = make_policy()
    good = make_batch(policy, seed=1)
    bad, _ = nan_in_an_output(policy, make_batch(policy))
    guard = NonFiniteGuard(patience=2)
    record = fit(policy, [bad, good, bad, good], callbacks=[guard])
    raise_if_stopped(record.trainer)
    assert guard.skipped == 2 and record.trainer.global_step == 4
    resumed = NonFiniteGuard()
    resumed.load_state_dict(guard.state_dict())
    assert (resumed.skipped, resumed.origin) == (2, "the output of trunk.queries")


def test_the_random_numbers_are_those_of_the_step():
    """A NaN that hangs on chance happens again when the batch is computed again, and training draws what it would have."""

    def unlucky(module, inputs, output):
        return output * (math.nan if torch.rand(()) < 0.3 else 1)

    draws = []
    for origin in (True, False):
        policy, guard = make_policy(), NonFiniteGuard(patience=100)
        policy.trunk.values.register_forward_hook(unlucky)
        torch.manual_seed(3)
        guard._find_origin = guard._find_origin if origin else lambda *_: "not looked for"
        fit(policy, [make_batch(policy)] * 20, callbacks=[guard], accumulate_grad_batches=2)
        assert guard.skipped > 1
        assert not origin or guard.origin == "the output of trunk.values"
        draws.append((guard.skipped, torch.rand(()).item()))
    assert draws[0] == draws[1]


def test_what_does_not_happen_again_is_reported_as_such():
    policy = make_policy()
    calls = []
    policy.trunk.slots.register_hook(lambda gradient: gradient * (calls.append(0) or math.nan if not calls else 1))
    guard = NonFiniteGuard()
    fit(policy, [make_batch(policy)], callbacks=[guard])
    assert guard.origin == "the gradient of trunk.slots, which was finite when computed again"


def test_finding_leaves_gradients_hooks_and_running_statistics():
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


def test_running_statistics_survive():
    policy = make_policy().train()
    policy.state = nn.Sequential(policy.state, nn.BatchNorm1d(64))
    bad, _ = nan_in_the_batch(policy, make_batch(policy))
    fit(policy, [make_batch(policy), bad], callbacks=[NonFiniteGuard()])
    assert policy.state[1].running_mean.isfinite().all() and policy.state[1].num_batches_tracked == 1


def test_an_fp16_overflow_lowers_the_scale_and_is_no_failure():
    policy = make_policy()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    guard, snapshots = NonFiniteGuard(patience=2), Snapshots()
    plugin = MixedPrecision("16-mixed", "cpu", scaler)
    fit(policy, [make_batch(policy)] * 30, callbacks=[guard, snapshots], plugins=[plugin])
    assert guard.skipped > 2 and guard.in_a_row == 0 and guard.origin is None
    assert scaler.get_scale() < 2.0**40 and not snapshots.marks[-1]
    assert not same(snapshots.weights[0], snapshots.weights[-1])
    assert all(parameter.isfinite().all() for parameter in policy.parameters())


def test_train_py_stops_with_exit_code_1_and_a_good_checkpoint(tmp_path, monkeypatch, capsys):
    """The whole command, with a language part that gives NaN from the second step on."""
    from vla_mini.language.table import TableLanguage

    forward, calls = TableLanguage.forward, []

    def failing(self, tokens, mask):
        calls.append(self.training and torch.is_grad_enabled())
        return forward(self, tokens, mask) * (math.nan if calls[-1] and sum(calls) > 1 else 1)

    monkeypatch.setattr(TableLanguage, "forward", failing)
    arguments = ("experiment=toy_pick_smoke", f"data.root={tmp_path / 'data'}", f"hydra.run.dir={tmp_path / 'run'}")
    code = command("train", *arguments, "trainer.max_steps=20", "guard.patience=3", "evaluation.every_n_steps=0")
    assert code == 1
    assert (
        "NonFiniteError: 3 steps in a row were not finite, the last because of the output of language"
        in capsys.readouterr().err
    )
    checkpoint = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=False)
    assert checkpoint["global_step"] == 4
    assert all(tensor.isfinite().all() for tensor in checkpoint["state_dict"].values() if tensor.is_floating_point())
    assert not (tmp_path / "run" / "evaluation").exists()
    assert json.loads((tmp_path / "run" / "policy" / "config.json").read_text())  # the best of before
