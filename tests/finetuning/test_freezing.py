"""What is frozen stays as it is, costs nothing on the way back, and is refused where it makes no sense."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.factory import make_batch, make_policy, mean_loss
from tests.harness import fit, saving
from vla_mini.autograd.inference import count_saved_bytes
from vla_mini.finetuning.freezing import freeze
from vla_mini.training.callbacks import BestPolicy


def test_frozen_parts_stay_in_eval_mode_through_training_and_selection(tmp_path):
    policy = make_policy().train()
    freeze(policy, ["vision", "projection.language"])
    before = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
    best = BestPolicy(tmp_path / "policy", env_id="vla_mini/ToyPick-v0", selection_episodes=1, every_n_steps=1, seed=0)
    record = fit(policy, [make_batch(policy)], steps=2, **saving(best, tmp_path))
    frozen = ("vision.", "projection.language.")
    assert not [name for name in record.gradients[0] if name.startswith(frozen)]
    for name, tensor in policy.state_dict().items():
        assert not name.startswith(frozen) or torch.equal(tensor, before[name])
    assert not policy.vision.training and not policy.projection["language"].training and policy.trunk.training


def test_a_frozen_part_keeps_nothing_for_backward_and_is_not_computed_back_through():
    policy, frozen = make_policy(), make_policy()
    freeze(frozen, ["vision"])
    batch = make_batch(policy, 32)
    saved, arithmetic = [], []
    for each in (policy, frozen):
        with count_saved_bytes(each) as bytes_, FlopCounterMode(display=False) as flops:
            mean_loss(each, batch).backward()
        saved.append(sum(bytes_))
        arithmetic.append(flops.get_flop_counts()["Global"])
    assert saved[1] < 0.5 * saved[0]
    backward = [{str(op): count for op, count in counts.items() if "backward" in str(op)} for counts in arithmetic]
    assert sum(backward[0].values()) > 0 and not backward[1]  # of the convolutions, which are all in vision
    assert sum(arithmetic[1].values()) < 0.5 * sum(arithmetic[0].values())


def test_freezing_the_unknown_or_everything_is_refused():
    with pytest.raises(ValueError, match="freeze: the policy has no part 'visoin'; did you mean 'vision'"):
        freeze(make_policy(), ["visoin"])
    policy = make_policy()
    with pytest.raises(ValueError, match="nothing trainable is left"):
        freeze(policy, list(policy.components()))
