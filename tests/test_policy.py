"""How the policy joins its parts: inputs, history, insulation, padding, ablation, and what is saved."""

import os

import numpy as np
import pytest
import torch
from jaxtyping import TypeCheckError

from tests.factory import FEATURES, make_batch, make_observation, make_policy, mean_loss, spec
from vla_mini import testing
from vla_mini.normalization import Normalization
from vla_mini.parts import ActingDefaults, AuxiliaryLoss, AuxiliarySpec
from vla_mini.policy import INPUTS
from vla_mini.testing import split
from vla_mini.utils.features import FeatureStatistics, Statistics


def test_shapes_are_checked_in_tests():
    """Where they are annotated: tests/conftest.py finds the modules."""
    with pytest.raises(TypeCheckError):
        make_policy().vision(torch.zeros(2, 3, 64))


def test_act_is_prepare_and_predict():
    policy = make_policy()
    observation = make_observation(policy)
    images, words, mask, state = policy.prepare(observation)
    predicted = policy.predict(images, words, state, word_mask=mask)
    assert predicted.requires_grad
    torch.testing.assert_close(policy.act(observation), predicted.detach(), rtol=0, atol=0)


def test_noise_is_drawn_for_heads_that_sample_alone():
    policy = make_policy(action="flow")
    noise = policy.draw_noise(2, torch.Generator().manual_seed(0))
    assert noise.shape == (2, policy.horizon, 4)
    assert torch.equal(noise, policy.draw_noise(2, torch.Generator().manual_seed(0)))
    assert make_policy().draw_noise(2) is None


def test_predict_is_differentiable_by_pixels_words_and_state():
    policy = make_policy()
    images, words, mask, state = policy.prepare(make_observation(policy))
    inputs = [tensor.detach().requires_grad_() for tensor in (images, words, state)]
    policy.predict(*inputs, word_mask=mask).sum().backward()
    assert all(tensor.grad.abs().max() > 0 for tensor in inputs)


def test_swapped_cameras_change_the_action():
    policy = make_policy(features=FEATURES._replace(cameras=("top", "wrist")))
    observation = make_observation(policy)
    swapped = observation._replace(images=observation.images.flip(1))
    assert (policy.act(observation) - policy.act(swapped)).abs().max() > 1e-5


def test_past_and_present_frames_are_distinguished_and_history_is_saved(tmp_path):
    policy = make_policy(history=2)
    observation = make_observation(policy)
    assert observation.images.shape[1] == 2 and observation.state.shape[1] == 8
    actions = policy.act(observation)
    for swapped in ({"images": observation.images.flip(1)}, {"state": observation.state.roll(4, 1)}):
        assert (policy.act(observation._replace(**swapped)) - actions).abs().max() > 1e-5
    policy.save_pretrained(tmp_path / "policy")
    loaded = type(policy).from_pretrained(tmp_path / "policy")
    assert loaded.history == 2
    torch.testing.assert_close(loaded.act(observation), actions, rtol=0, atol=0)


def test_past_states_are_normalised_as_the_present_one():
    low, high, mean, std = (np.float32([value, value + 1]) for value in (-3, 3, 0.5, 2))
    statistics = FeatureStatistics(low, high, mean, std, low, high)
    once, thrice = (Normalization(Statistics(statistics, statistics), history=history) for history in (1, 3))
    state = torch.randn(2, 2)
    torch.testing.assert_close(thrice.state(state.repeat(1, 3)), once.state(state).repeat(1, 3))


def test_observations_with_too_few_frames_are_refused():
    policy, one = make_policy(history=2), make_observation(make_policy())
    with pytest.raises(ValueError, match=r"observation.images is \(4, 1, 3, 64, 64\), the policy takes \(b=4, k=2, "):
        policy.act(one)
    images = make_observation(policy).images
    with pytest.raises(
        ValueError, match=r"state is \(4, 4\), the policy takes \(b=4, s=8\); s: x, y, height, closed, x 1 before"
    ):
        policy.act(one._replace(images=images))


def test_insulation_stops_the_heads_gradient_before_the_backbone():
    policy = make_policy(backbone_action=spec("action", "bins"), auxiliary="none")
    batch = make_batch(policy)
    with torch.no_grad():  # stops the second head's gradient, so that only the first head's is left
        policy.backbone_action.layers[0].weight.zero_()
    mean_loss(policy, batch).backward()
    assert all(p.grad.abs().max() > 0 for p in policy.action.parameters())
    backbone = [policy.vision, policy.language, policy.trunk, policy.projection, policy.state]
    assert all(p.grad is None or p.grad.abs().max() == 0 for part in backbone for p in part.parameters())


def test_an_insulated_backbone_is_trained_by_the_second_head():
    policy = make_policy(backbone_action=spec("action", "bins"), auxiliary="none")
    mean_loss(policy, make_batch(policy)).backward()
    assert policy.vision.stem.weight.grad.abs().max() > 0 and policy.trunk.queries.weight.grad.abs().max() > 0


def test_both_heads_of_an_insulated_policy_are_saved(tmp_path):
    policy = make_policy(backbone_action=spec("action", "bins"))
    policy.save_pretrained(tmp_path / "policy")
    loaded = type(policy).from_pretrained(tmp_path / "policy")
    torch.testing.assert_close(loaded.backbone_action.layers[0].weight, policy.backbone_action.layers[0].weight)


def test_samples_without_a_keyframe_cost_nothing():
    policy = make_policy()
    batch = make_batch(policy)
    targets = batch.targets | {"has_keyframe": torch.zeros(4, dtype=torch.bool)}
    _, terms = policy.loss(batch._replace(targets=targets))
    assert (terms["keyframe"] == 0).all()


class MeanStateLoss(AuxiliaryLoss):
    """The squared distance of the mean context token to a number, the next frame's first state value."""

    def __init__(self, spec: AuxiliarySpec, *, weight: float = 2.0):
        super().__init__()
        self.weight = weight

    def targets(self, data):
        return {"next_state": np.roll(data.states[:, 0], -1)}

    def loss(self, context, batch):
        return (context.tokens.mean(dim=(1, 2)) - batch.targets["next_state"]).square()


def test_any_number_of_auxiliary_losses_are_weighted_added_and_saved(tmp_path):
    policy = make_policy(auxiliary=spec("auxiliary", "keyframe") | {"next": MeanStateLoss})
    batch = make_batch(policy)
    loss, terms = policy.loss(batch)
    assert terms.keys() == {"action", "keyframe", "next"} and batch.targets["next_state"].shape == (4,)
    torch.testing.assert_close(loss, terms["action"] + 0.5 * terms["keyframe"] + 2 * terms["next"])
    assert (terms["next"] == terms["next"][:, :1] * ~batch.is_pad).all() and terms["next"].any()
    testing.assert_accumulation_equivalent(policy, batch)
    testing.assert_round_trip(policy, classes=[MeanStateLoss])


@pytest.mark.parametrize("name", ["loss", "action", "backbone_action", "keys", "training", "a.b", "a b", ""])
def test_names_that_an_auxiliary_loss_cannot_have_are_refused(name):
    with pytest.raises(ValueError, match=r"^auxiliary: an auxiliary loss cannot be named '") as refused:
        make_policy(auxiliary={name: MeanStateLoss})
    assert repr(name) in str(refused.value) and "\n" not in str(refused.value)


def test_padded_actions_do_not_change_the_loss():
    policy = make_policy()
    batch = make_batch(policy)
    other = batch._replace(actions=torch.where(batch.is_pad[..., None], 0.7, batch.actions))
    torch.testing.assert_close(policy.loss(batch)[0], policy.loss(other)[0], rtol=0, atol=0)


def test_summed_losses_accumulate_to_the_gradient_of_the_whole_batch():
    policy = make_policy(dtype=torch.float64)
    batch = make_batch(policy, 16)
    mean_loss(policy, batch).backward()
    expected = {name: p.grad.clone() for name, p in policy.named_parameters()}
    policy.zero_grad()
    for part in split(batch, [7, 4, 4, 1]):
        policy.loss(part)[0].sum().backward()
    count = (~batch.is_pad).sum()
    for name, parameter in policy.named_parameters():
        torch.testing.assert_close(parameter.grad / count, expected[name], rtol=1e-10, atol=1e-14)


def test_how_chunks_are_executed_is_saved(tmp_path):
    policy = make_policy()
    policy.acting = ActingDefaults(execute=3, ensemble=0.01, resize="crop")
    policy.save_pretrained(tmp_path / "policy")
    assert type(policy).from_pretrained(tmp_path / "policy").acting == (3, 0.01, "crop")


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_saved_policy_survives_a_failure_to_replace_it(tmp_path, monkeypatch, error):
    """The second of two renames fails, or a signal arrives before it."""
    policy, rename = make_policy(), os.rename
    policy.acting = ActingDefaults(execute=1)
    policy.save_pretrained(tmp_path / "policy")

    def fail(source, target):
        if os.fspath(target) == str(tmp_path / "policy") and not os.fspath(source).endswith("-old"):
            raise error
        rename(source, target)

    with monkeypatch.context() as patch, pytest.raises(error):
        patch.setattr(os, "rename", fail)
        policy.acting = ActingDefaults(execute=2)
        policy.save_pretrained(tmp_path / "policy")
    assert type(policy).from_pretrained(tmp_path / "policy").acting.execute == 1
    assert [path.name for path in tmp_path.iterdir()] == ["policy"]


OTHER = {  # changes one input of an observation
    "images": lambda o: o._replace(images=255 - o.images),
    "instruction": lambda o: o._replace(tokens=o.tokens.roll(1, 0), token_mask=o.token_mask.roll(1, 0)),
    "state": lambda o: o._replace(state=o.state + 1),
}


@pytest.mark.parametrize("ablated", INPUTS)
@pytest.mark.parametrize("language", ["table", "huggingface"])
def test_a_policy_depends_on_all_inputs_but_the_ablated_one(ablated, language, tmp_path):
    policy = make_policy(ablate=[ablated], language=language)
    policy.save_pretrained(tmp_path / "policy")
    loaded = type(policy).from_pretrained(tmp_path / "policy")
    assert loaded.ablate == (ablated,)
    observation = make_observation(policy)
    actions = policy.act(observation)
    for name, change in OTHER.items():
        difference = (loaded.act(change(observation)) - actions).abs().max()
        assert difference == 0 if name == ablated else difference > 1e-6, name


def test_ablated_inputs_are_black_images_an_empty_instruction_and_the_mean_state():
    policy = make_policy(ablate=INPUTS, history=2)
    images, words, mask, state = policy.prepare(make_observation(policy))
    empty = policy.language(*policy.tokenize([""] * 4))
    assert (images == 0).all() and (policy.normalization.state(state) == 0).all()
    assert mask.all() and torch.equal(words, empty)


def test_an_ablated_input_trains_nothing():
    policy = make_policy(ablate=["instruction", "state"])
    batch = make_batch(policy)
    batch.observation.state.requires_grad_()
    mean_loss(policy, batch).backward()
    assert batch.observation.state.grad is None
    assert policy.state.weight.grad.abs().max() == 0
    trained = policy.language.table.weight.grad.abs().amax(1).nonzero().flatten()
    assert trained.tolist() == [policy.tokenize([""])[0].item()]  # the start token alone


def test_an_unknown_input_to_ablate_is_refused():
    with pytest.raises(ValueError, match=r"'image' is not an input; did you mean 'images'"):
        make_policy(ablate=["image"])
