"""The moving average of the weights: what it is, that it alone is judged and saved, and that nothing ever swaps the two."""

import copy
import math
import warnings

import lightning
import pytest
import torch

from tests.factory import make_batch, make_policy, mean_loss
from tests.harness import Loader, fit, keeping
from vla_mini.evaluation.rollout import EpisodeResult
from vla_mini.policy import Policy
from vla_mini.training.average import WeightAverage
from vla_mini.training.guard import NonFiniteGuard
from vla_mini.training.module import PolicyModule
from vla_mini.training.selection import BestPolicy
from vla_mini.training.window import Stopwatch, WindowMean

ADAMW = {"_target_": "torch.optim.AdamW", "lr": 1e-2}


class Weights(lightning.Callback):
    """Keeps the weights that learn, as they are after each micro-batch."""

    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, module, *_):
        self.seen.append(copy.deepcopy(module.policy.state_dict()))


class Save(lightning.Callback):
    """Writes last.ckpt after the first step, and when training crashes."""

    def __init__(self, folder):
        self.path = folder / "last.ckpt"

    def on_train_batch_end(self, trainer, module, *_):
        if trainer.global_step == 1 and not self.path.exists():
            trainer.save_checkpoint(self.path)

    def on_exception(self, trainer, module, exception):
        trainer.save_checkpoint(self.path)


def train(policy, batches, *callbacks, validate=(), resume=None, steps=-1, **arguments):
    """As tests.harness.fit, with validation and resuming."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what Lightning has to say about such a small loader
        trainer = lightning.Trainer(
            max_epochs=1,
            max_steps=steps,
            accelerator="cpu",
            callbacks=[WindowMean(Stopwatch()), *callbacks],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            **arguments,
        )
        module = PolicyModule(policy, optimizer=ADAMW, decay="constant")
        trainer.fit(module, Loader(batches), Loader(validate) if validate else None, ckpt_path=resume)
    return trainer


def batches_of(policy, number):
    return [make_batch(policy, seed=seed) for seed in range(number)]


def same(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


def assert_averages(average, start, weights, decay, *, done=0):
    """`average` is what comes out by hand, in float64, from `start`, after `done` steps."""
    expected = {name: tensor.double() for name, tensor in start.items()}
    for step, each in enumerate(weights, start=done):
        kept = min(decay, (1 + step) / (10 + step))
        expected = {name: kept * tensor + (1 - kept) * each[name].double() for name, tensor in expected.items()}
    for name, tensor in average.items():
        torch.testing.assert_close(tensor.double(), expected[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("decay", [0.2, 0.999])
def test_it_steps_once_per_optimizer_step(decay):
    """Not per micro-batch; the last window is short. Early on it forgets sooner than `decay` says."""
    policy, average, weights = make_policy(), WeightAverage(decay), Weights()
    start = copy.deepcopy(policy.state_dict())
    fit(policy, batches_of(policy, 7), callbacks=[average, weights], optimizer=ADAMW, accumulate_grad_batches=2)
    assert_averages(average.policy.state_dict(), start, [weights.seen[i] for i in (1, 3, 5, 6)], decay)
    assert not same(average.policy.state_dict(), policy.state_dict())


def test_a_skipped_step_leaves_it():
    policy, average = make_policy(), WeightAverage(0.5)
    good = make_batch(policy)
    bad = good._replace(actions=torch.full_like(good.actions, math.nan))
    fit(policy, [good, bad, good], callbacks=[NonFiniteGuard(), average])
    alone = WeightAverage(0.5)
    fit(make_policy(), [good, good], callbacks=[NonFiniteGuard(), alone])
    assert same(average.policy.state_dict(), alone.policy.state_dict())


def test_buffers_are_taken_as_they_are():
    policy, average = make_policy().train(), WeightAverage(0.9)
    policy.state = torch.nn.Sequential(policy.state, torch.nn.BatchNorm1d(64))
    fit(policy, batches_of(policy, 3), callbacks=[average])
    buffers = dict(policy.named_buffers())
    assert buffers["state.1.num_batches_tracked"] == 3
    assert same(buffers, dict(average.policy.named_buffers()))


def test_frozen_weights_are_not_touched():
    """Or the word vectors that a frozen encoder remembers would be thrown away after every step."""
    policy, average, versions = make_policy(language="huggingface"), WeightAverage(0.9), []

    class Versions(lightning.Callback):
        def on_train_batch_end(self, *_):
            versions.append([parameter._version for parameter in average.policy.language.parameters()])

    fit(policy, batches_of(policy, 3), callbacks=[average, Versions()])
    assert versions[0] == versions[2]


def best_policy(folder, **arguments):
    defaults = {"episodes": 1, "every_n_steps": 0, "seed": 0, "env_id": "vla_mini/ToyPick-v0"}
    return BestPolicy(folder / "policy", stopwatch=Stopwatch(), **(defaults | arguments))


def test_it_is_what_is_played_validated_and_saved(tmp_path, monkeypatch):
    policy, average = make_policy(), WeightAverage(0.9)
    batches, played = batches_of(policy, 2), []

    def rollout(policy, *_, **__):
        played.append(policy)
        return [EpisodeResult(0, "", 1, True, False, -1, 0, False, 2)]

    monkeypatch.setattr("vla_mini.training.selection.rollout", rollout)  # whom it plays is the question, not how well
    with_best = keeping(best_policy(tmp_path, every_n_steps=2), tmp_path)
    trainer = train(policy, batches, average, *with_best["callbacks"], plugins=with_best["plugins"], validate=batches[:1])
    assert played == [average.policy]
    assert same(Policy.from_pretrained(tmp_path / "policy").state_dict(), average.policy.state_dict())
    loss = mean_loss(average.policy, batches[0]).item()
    assert loss != pytest.approx(mean_loss(policy, batches[0]).item(), rel=1e-3)
    assert trainer.callback_metrics["validation/loss"] == pytest.approx(loss, rel=1e-5)


def test_a_crash_while_it_is_judged_mixes_nothing_up(tmp_path, monkeypatch):
    """A checkpoint that is saved on the way out holds the weights that learn as such, and the average as such."""

    def crash(*_):
        raise RuntimeError("crashed")

    policy, average, weights = make_policy(), WeightAverage(0.9), Weights()
    start = copy.deepcopy(policy.state_dict())
    monkeypatch.setattr(PolicyModule, "validation_step", crash)
    batches, save = batches_of(policy, 3), Save(tmp_path)
    with pytest.raises(RuntimeError, match="crashed"):
        train(policy, batches, average, weights, save, validate=batches)
    checkpoint = torch.load(save.path, weights_only=True)
    saved = {name.removeprefix("policy."): tensor for name, tensor in checkpoint["state_dict"].items()}
    assert same(saved, weights.seen[-1])
    assert_averages(checkpoint["callbacks"]["WeightAverage"]["weights"], start, weights.seen, 0.9)


def test_a_resumed_run_goes_on_with_it(tmp_path):
    """From a checkpoint between two windows: neither begun anew nor stepped once too often."""
    save, resumed, weights = Save(tmp_path), WeightAverage(0.9), Weights()
    batches = batches_of(make_policy(), 6)
    train(make_policy(), batches, WeightAverage(0.9), save, accumulate_grad_batches=2)
    trainer = train(make_policy(seed=1), batches, resumed, weights, accumulate_grad_batches=2, resume=save.path)
    assert trainer.global_step == 3
    kept = torch.load(save.path, weights_only=True)["callbacks"]["WeightAverage"]["weights"]
    assert_averages(resumed.policy.state_dict(), kept, weights.seen[1::2], 0.9, done=1)


def test_without_a_decay_there_is_none(tmp_path):
    policy, none = make_policy(), WeightAverage(None)
    with_best = keeping(best_policy(tmp_path), tmp_path)
    fit(policy, [make_batch(policy)], callbacks=[none, *with_best["callbacks"]], plugins=with_best["plugins"])
    assert none.policy is None and none.state_dict() == {}
    assert same(Policy.from_pretrained(tmp_path / "policy").state_dict(), policy.state_dict())
