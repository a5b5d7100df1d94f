"""What has to hold for every variant in configs/: shapes, dtypes, gradients, freezing, bf16, saving and loading."""

import copy

import torch

from tests.factory import FEATURES, make_batch, make_observation, make_policy, mean_loss
from vla_mini import testing
from vla_mini.finetuning.freezing import freeze
from vla_mini.policy import Policy

KEY_BIASES = ("trunk.word_keys.bias", "k_proj.bias", "key.bias")
# Rounding errors grow with depth, here through ten layers, each with a ReLU whose kink some inputs cross.
BF16_GRADIENT = {"torchvision": 0.2}


def act(policy, observation):
    """The actions from fixed noise, for heads that sample."""
    return policy.act(observation, torch.Generator().manual_seed(0))


def test_shapes_and_dtypes(variant):
    policy = make_policy(**variant)
    batch = make_batch(policy, 3)
    loss, terms = policy.loss(batch)
    assert loss.shape == batch.is_pad.shape and loss.dtype == torch.float32
    assert all(term.shape == loss.shape and not term.requires_grad for term in terms.values())
    assert (loss[batch.is_pad] == 0).all() and torch.isfinite(loss).all()
    actions = policy.act(batch.observation)
    assert actions.shape == batch.actions.shape and actions.dtype == torch.float32


def test_gradients_reach_every_parameter(variant):
    policy = make_policy(**variant)
    reason = "a key's bias adds the same score to every token, which the softmax cancels"
    exceptions = {name: reason for name, _ in policy.named_parameters() if name.endswith(KEY_BIASES)}
    testing.assert_gradients_reach(policy, make_batch(policy, 8), except_for=exceptions)


def test_gradients_of_micro_batches_add_up_to_the_batchs(variant):
    policy = make_policy(**variant, dtype=torch.float64)
    testing.assert_accumulation_equivalent(policy, make_batch(policy, 8))


def test_frozen_parts_are_not_trained(variant):
    untrained = make_policy(**variant).train()
    for name in ("vision", "language", "trunk", "action"):
        policy = copy.deepcopy(untrained)
        freeze(policy, [name])
        optimizer = torch.optim.AdamW([p for p in policy.parameters() if p.requires_grad], lr=1e-2)
        mean_loss(policy, make_batch(policy)).backward()
        optimizer.step()
        part, before = policy.get_submodule(name), untrained.state_dict()
        assert all(p.grad is None for p in part.parameters()) and not part.training
        changed = {key for key, value in policy.state_dict().items() if not torch.equal(value, before[key])}
        assert changed and not [key for key in changed if key.startswith(f"{name}.")], name


def test_bf16_is_close_and_losses_are_fp32(variant):
    policy = make_policy(**variant)
    tolerance = BF16_GRADIENT.get(variant.get("vision"), 5e-2)
    testing.assert_precision_close(policy, make_batch(policy, 8), gradient_tolerance=tolerance)


def test_a_loaded_policy_acts_as_the_saved_one(variant, tmp_path):
    policy = make_policy(**variant)
    testing.assert_round_trip(policy)
    policy.save_pretrained(tmp_path / "policy")
    loaded = Policy.from_pretrained(tmp_path / "policy")
    assert loaded.features == policy.features and loaded.acting == policy.acting and loaded.source == policy.source
    for name in ("vision", "language", "trunk", "action"):
        part, again = policy.get_submodule(name), loaded.get_submodule(name)
        assert type(again) is type(part) and again.settings.keys() == part.settings.keys()


def test_every_input_matters_and_padding_does_not(variant):
    policy = make_policy(**variant)
    images, tokens, mask, state = observation = make_observation(policy, 2)
    actions = act(policy, observation)

    def change(**fields):
        return (act(policy, observation._replace(**fields)) - actions).abs().amax((1, 2))

    assert (change(images=255 - images) > 1e-6).all()
    assert (change(state=state + 1) > 1e-6).all()
    assert (change(tokens=tokens.roll(1, 0), token_mask=mask.roll(1, 0)) > 1e-6).all()
    padding = torch.full((2, 3), 2)  # the id of a real word, which only the mask excludes
    padded = change(
        tokens=torch.cat([tokens, padding], 1), token_mask=torch.cat([mask, torch.zeros(2, 3, dtype=torch.bool)], 1)
    )
    assert (padded < 1e-5).all()


def test_cameras_and_frames_all_matter_and_are_distinguished(variant, tmp_path):
    """Two cameras in two frames, with images of 48 x 64 pixels, a size that not every encoder was made for."""
    features = FEATURES._replace(cameras=("top", "wrist"), image_size=(48, 64))
    policy = make_policy(**variant, features=features, history=2)
    loss, _ = policy.loss(make_batch(policy, 3))
    assert torch.isfinite(loss).all()
    observation = make_observation(policy, 2)
    actions = act(policy, observation)
    for view in range(4):
        images = observation.images.clone()
        images[:, view] = 255 - images[:, view]
        assert ((act(policy, observation._replace(images=images)) - actions).abs().amax((1, 2)) > 1e-6).all()
        swapped = observation.images.clone()
        swapped[:, [view, view - 1]] = observation.images[:, [view - 1, view]]
        assert ((act(policy, observation._replace(images=swapped)) - actions).abs().amax((1, 2)) > 1e-6).all()
    policy.save_pretrained(tmp_path / "policy")
    torch.testing.assert_close(act(Policy.from_pretrained(tmp_path / "policy"), observation), actions, rtol=0, atol=0)


def test_acting_builds_no_graph(variant):
    policy = make_policy(**variant)
    testing.assert_no_graph(policy.act, make_observation(policy))


def test_it_overfits_one_batch(variant):
    policy = make_policy(**variant, features=FEATURES._replace(image_size=(32, 32))).train()
    batch = make_batch(policy, 4)
    optimizer = torch.optim.Adam(policy.parameters(), lr=3e-3)
    first = None
    for _ in range(150):
        optimizer.zero_grad()
        loss, terms = policy.loss(batch)
        loss.sum().backward()
        optimizer.step()
        last = terms["action"].sum().item()
        first = first or last
        if last < 0.1 * first:  # of a loss that is drawn, too, one that is small by chance
            break
    assert last < 0.2 * first
