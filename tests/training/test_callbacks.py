"""The moving average of the weights, the choice of the policy to save, and what a checkpoint waits for."""

import copy
import math

import lightning
import pytest
import torch

from tests.factory import make_batch, make_policy, mean_loss
from tests.harness import ADAMW, fit, saving
from tests.training.test_step import same, weights_of
from vla_mini.evaluation.rollout import EpisodeResult
from vla_mini.policy import Policy
from vla_mini.training.callbacks import BestPolicy, WeightAverage, evaluating
from vla_mini.training.checkpoints import numbered
from vla_mini.training.module import PolicyModule


class Weights(lightning.Callback):
    """Collects the trained weights after each micro-batch."""

    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, module, *_):
        self.seen.append(copy.deepcopy(module.policy.state_dict()))


class Save(lightning.Callback):
    """Saves a checkpoint after the first step, and when training crashes."""

    def __init__(self, folder):
        self.path = folder / "saved.ckpt"

    def on_train_batch_end(self, trainer, module, *_):
        if trainer.global_step == 1 and not self.path.exists():
            trainer.save_checkpoint(self.path)

    def on_exception(self, trainer, module, exception):
        trainer.save_checkpoint(self.path)


def batches_of(policy, number):
    return [make_batch(policy, seed=seed) for seed in range(number)]


def train(policy, batches, *callbacks, **arguments):
    return fit(policy, batches, callbacks=callbacks, **{"optimizer": ADAMW | {"weight_decay": 0.0}} | arguments)


def assert_averages(average, start, weights, decay, *, done=0):
    """`average` is what comes out by hand, in float64, from `start`, after `done` steps."""
    expected = {name: tensor.double() for name, tensor in start.items()}
    for step, each in enumerate(weights, start=done):
        kept = min(decay, (1 + step) / (10 + step))
        expected = {name: kept * tensor + (1 - kept) * each[name].double() for name, tensor in expected.items()}
    for name, tensor in average.items():
        torch.testing.assert_close(tensor.double(), expected[name], rtol=1e-5, atol=1e-6)


# ---- the moving average


@pytest.mark.parametrize("decay", [0.2, 0.999])
def test_it_moves_once_per_optimizer_step(decay):
    """Not per micro-batch; the last window is short. At first its decay is smaller than `decay`."""
    policy, weights = make_policy(), Weights()
    average, start = WeightAverage(policy, decay), weights_of(policy)
    train(policy, batches_of(policy, 7), weights, average=average, accumulate_grad_batches=2)
    assert_averages(average.policy.state_dict(), start, [weights.seen[i] for i in (1, 3, 5, 6)], decay)
    assert not same(average.policy.state_dict(), policy.state_dict())


def test_a_skipped_step_does_not_move_it():
    averages = []
    for skipped in (True, False):
        policy = make_policy()
        averages.append(WeightAverage(policy, 0.5))
        good = make_batch(policy)
        bad = good._replace(actions=torch.full_like(good.actions, torch.nan))
        fit(policy, [good, bad, good] if skipped else [good, good], average=averages[-1])
    assert same(*(average.policy.state_dict() for average in averages))


def test_buffers_are_copied():
    policy = make_policy().train()
    policy.state = torch.nn.Sequential(policy.state, torch.nn.BatchNorm1d(64))
    average = WeightAverage(policy, 0.9)
    fit(policy, batches_of(policy, 3), average=average)
    buffers = dict(policy.named_buffers())
    assert buffers["state.1.num_batches_tracked"] == 3
    assert same(buffers, dict(average.policy.named_buffers()))


def test_frozen_weights_are_not_touched():
    """Or the word vectors that a frozen encoder has cached would be computed again after every step."""
    policy, versions = make_policy(language="huggingface"), []
    average = WeightAverage(policy, 0.9)

    class Versions(lightning.Callback):
        def on_train_batch_end(self, *_):
            versions.append([parameter._version for parameter in average.policy.language.parameters()])

    fit(policy, batches_of(policy, 3), average=average, callbacks=[Versions()])
    assert versions[0] == versions[2]


def test_a_crash_during_validation_mixes_nothing_up(tmp_path, monkeypatch):
    """A checkpoint that is saved afterwards holds the trained weights as such, and the average as such."""

    def crash(*_):
        raise RuntimeError("crashed")

    policy, weights, save = make_policy(), Weights(), Save(tmp_path)
    average, start = WeightAverage(policy, 0.9), weights_of(policy)
    monkeypatch.setattr(PolicyModule, "validation_step", crash)
    batches = batches_of(policy, 3)
    with pytest.raises(RuntimeError, match="crashed"):
        train(policy, batches, weights, save, average=average, validate=batches)
    checkpoint = torch.load(save.path, weights_only=True)
    saved = {name.removeprefix("policy."): tensor for name, tensor in checkpoint["state_dict"].items()}
    assert same(saved, weights.seen[-1])
    assert_averages(checkpoint["callbacks"]["WeightAverage"]["weights"], start, weights.seen, 0.9)


def test_a_resumed_run_continues_it(tmp_path):
    """From a checkpoint between two windows: neither started again nor moved once too often."""
    save, weights, policies = Save(tmp_path), Weights(), [make_policy(), make_policy(seed=1)]
    first, resumed = (WeightAverage(policy, 0.9) for policy in policies)
    batches = batches_of(policies[0], 6)
    train(policies[0], batches, save, average=first, accumulate_grad_batches=2)
    record = train(policies[1], batches, weights, average=resumed, accumulate_grad_batches=2, resume=save.path)
    assert record.trainer.global_step == 3
    kept = torch.load(save.path, weights_only=True)["callbacks"]["WeightAverage"]["weights"]
    assert_averages(resumed.policy.state_dict(), kept, weights.seen[1::2], 0.9, done=1)


# ---- the policy that is saved


def best_policy(folder, **arguments):
    defaults = {"selection_episodes": 4, "every_n_steps": 1, "seed": 0, "env_id": "vla_mini/ToyPick-v0"}
    return BestPolicy(folder / "policy", **defaults | arguments)


@pytest.fixture
def rollouts(monkeypatch):
    """Success rates that rollouts are to have, and the policies that they were of: real ones are slow, and would not tell apart
    policies that differ by one step."""
    rates, policies = [], []

    def rollout(policy, env_id, *, episodes, options, num_envs):
        assert options == {"purpose": "selection", "seed": 0, "split": "seen"} and not policy.training
        policies.append(policy)
        wins = round(rates.pop(0) * len(episodes))
        return [EpisodeResult(i, "", 1, i < wins, {"wrong_object": i >= wins, "two_words": False}) for i in episodes]

    monkeypatch.setattr("vla_mini.training.callbacks.rollout", rollout)
    return rates, policies


def test_the_best_policy_is_saved_and_of_equal_ones_the_earlier(tmp_path, monkeypatch, rollouts, capsys):
    rollouts[0].extend([0.5, 1.0, 1.0, 0.0])
    saved, best, policy = [], best_policy(tmp_path), make_policy()
    monkeypatch.setattr("vla_mini.policy.Policy.save_pretrained", lambda self, folder: saved.append(best.best["step"]))
    fit(policy, [make_batch(policy)] * 4, steps=4, **saving(best, tmp_path))
    assert saved == [1, 2] and best.best["score"] == 1.0 and best.best["step"] == 2
    assert [step for step, _ in numbered(tmp_path)] == [4, 2]  # the newest, and the best
    assert "step 1: success 50%, wrong object 50% in 4 selection scenes" in capsys.readouterr().out


def test_the_average_is_what_is_evaluated_validated_and_saved(tmp_path, rollouts):
    rollouts[0].extend([0.5])
    policy = make_policy()
    average, batches = WeightAverage(policy, 0.9), batches_of(policy, 2)
    with_best = saving(best_policy(tmp_path, every_n_steps=2), tmp_path)
    module = train(policy, batches, *with_best.pop("callbacks"), average=average, validate=batches[:1], **with_best).module
    assert rollouts[1] == [average.policy]
    assert same(Policy.from_pretrained(tmp_path / "policy").state_dict(), average.policy.state_dict())
    loss = mean_loss(average.policy, batches[0]).item()
    assert loss != pytest.approx(mean_loss(policy, batches[0]).item(), rel=1e-3)
    assert module.validation_loss == pytest.approx(loss, rel=1e-5)


def test_without_selection_the_last_policy_is_saved(tmp_path):
    policy = make_policy()
    fit(policy, [make_batch(policy)], **saving(best_policy(tmp_path, every_n_steps=0), tmp_path))
    assert same(Policy.from_pretrained(tmp_path / "policy").state_dict(), policy.state_dict())


@pytest.mark.parametrize(
    ("losses", "kept"), [([3.0, 1.0, 2.0], 4), ([3.0, 2.0, 1.0], 5), ([1.0, 1.0, 1.0], 2), ([math.nan, 2.0, math.nan], 4)]
)
def test_without_an_environment_the_lowest_validation_loss_chooses(tmp_path, monkeypatch, losses, kept):
    """Validated after every second micro-batch, and once more at the end."""
    remaining, policy = list(losses), make_policy()
    policy_at, start = {}, PolicyModule.on_validation_epoch_end

    def validated(self):
        start(self)
        self.validation_loss = remaining.pop(0)
        policy_at[self.trainer.global_step] = weights_of(self.policy)

    monkeypatch.setattr(PolicyModule, "on_validation_epoch_end", validated)
    with_best = saving(best_policy(tmp_path, env_id=None), tmp_path)
    batches = [make_batch(policy, seed=seed) for seed in range(5)]
    interval = {"val_check_interval": 2, "check_val_every_n_epoch": None}
    fit(policy, batches, steps=5, validate=batches[:1], **interval, **with_best)
    assert list(policy_at) == [2, 4, 5] and not remaining
    assert same(Policy.from_pretrained(tmp_path / "policy").state_dict(), policy_at[kept])


def test_evaluating_restores_every_mode():
    policy = make_policy().train()
    policy.vision.eval()
    with evaluating(policy):
        assert not any(module.training for module in policy.modules())
    assert policy.trunk.training and not policy.vision.training
