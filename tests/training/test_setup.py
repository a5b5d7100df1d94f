"""What the settings of configs/train.yaml say of the policy and of the data is what training begins with."""

from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf

from tests.factory import make_batch
from vla_mini import config
from vla_mini.action.bins import BinsHead
from vla_mini.collection import collect
from vla_mini.data.reader import read_dataset
from vla_mini.training.setup import data_module, untrained_policy

# Each setting that is about the policy as a whole or about its data, at another value than its default.
SAID = ["history=2", "execute=3", "ensemble=0.25", "blind=[state]", "insulate=true", "data.horizon=5", "data.batch_size=4"]
SAID += ["data.keyframe.state=[y]", "augmentation=default", "freeze=[vision]", "seed=7"]


@pytest.fixture(scope="module")
def demonstrations(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "toy_pick"
    collect("vla_mini/ToyPick-v0", root, episodes=6, seed=0, num_workers=1)
    return read_dataset(root)


@pytest.fixture(scope="module")
def settings():
    return OmegaConf.to_container(config.load("train", ["experiment=toy_pick_smoke", *SAID]))


@pytest.fixture(scope="module")
def policy(settings, demonstrations):
    return untrained_policy(settings, demonstrations)


def test_the_policy_is_as_the_settings_say(policy, demonstrations):
    assert (policy.history, policy.execute, policy.ensemble, policy.blind) == (2, 3, 0.25, ("state",))
    assert policy.action.horizon == 5 and policy.keyframe == ("y",) and isinstance(policy.backbone_action, BinsHead)
    assert {name.partition(".")[0] for name, p in policy.named_parameters() if not p.requires_grad} == {"vision"}
    assert policy.source == {"env": "vla_mini/ToyPick-v0", "dataset": demonstrations.fingerprint}


def test_the_seed_draws_the_weights(settings, policy, demonstrations):
    again, other = (untrained_policy(settings | {"seed": seed}, demonstrations) for seed in (7, 8))
    weight = policy.action.state_dict()["layers.0.weight"]
    assert torch.equal(weight, again.action.state_dict()["layers.0.weight"])
    assert not torch.equal(weight, other.action.state_dict()["layers.0.weight"])


def test_the_data_are_as_the_settings_say(settings, policy, demonstrations):
    batch = next(iter(data_module(settings, demonstrations, policy).train_dataloader()))
    assert batch.observation.images.shape[:2] == (4, 2) and batch.actions.shape == (4, 5, 4) and batch.keyframe.shape == (4, 1)
    assert [tensor.shape for tensor in batch[1:]] == [tensor.shape for tensor in make_batch(policy)[1:]]
    with torch.no_grad():
        policy.loss(batch)  # whose door lets nothing in that does not fit


def test_augmentation_is_handed_over(settings, policy, demonstrations):
    trainer = SimpleNamespace(training=True, global_rank=0, world_size=1, fit_loop=SimpleNamespace(total_batch_idx=0))
    for augmentation, changes in ((settings["augmentation"], True), (None, False)):
        data = data_module(settings | {"augmentation": augmentation}, demonstrations, policy)
        batch = next(iter(data.train_dataloader()))
        data.trainer = trainer
        assert torch.equal(data.on_after_batch_transfer(batch, 0).observation.images, batch.observation.images) is not changes


def test_the_order_is_the_seeds(settings, policy, demonstrations):
    data = (data_module(settings | {"seed": seed}, demonstrations, policy) for seed in (7, 7, 8))
    first, again, other = (next(iter(each.train_dataloader())).actions for each in data)
    assert torch.equal(first, again) and not torch.equal(first, other)
