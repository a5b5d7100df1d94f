"""What every variant found in configs/ is held to: shapes, dtypes, gradients, freezing, bf16, save and load."""

import pytest
import torch

from tests.factory import make_batch, make_observation, make_policy, mean_loss
from vla_mini.build import describe
from vla_mini.policy import Policy
from vla_mini.training.freezing import freeze


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
    """In float64 after one optimizer step: zero initialisations have moved, rounding is no excuse."""
    policy = make_policy(**variant, dtype=torch.float64)
    batch = make_batch(policy, 8)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-3)
    for _ in range(2):
        optimizer.zero_grad()
        mean_loss(policy, batch).backward()
        optimizer.step()
    norms = {name: p.grad.norm().item() for name, p in policy.named_parameters() if p.grad is not None}
    missing = [name for name, _ in policy.named_parameters() if name not in norms]
    assert not missing
    largest = max(norms.values())
    assert [name for name, norm in norms.items() if norm <= 1e-7 * largest and not exempt(name)] == []


def exempt(name: str) -> bool:
    """A key's bias adds the same score to every token, and a softmax does not see what all have in common."""
    return name == "trunk.word_keys.bias"


@pytest.mark.parametrize("name", ["vision", "language", "trunk", "action"])
def test_frozen_parts_do_not_learn(variant, name):
    policy = make_policy(**variant).train()
    freeze(policy, [name])
    before = {key: value.clone() for key, value in policy.state_dict().items()}
    optimizer = torch.optim.AdamW([p for p in policy.parameters() if p.requires_grad], lr=1e-2)
    mean_loss(policy, make_batch(policy)).backward()
    optimizer.step()
    part = policy.get_submodule(name)
    assert all(p.grad is None for p in part.parameters()) and not part.training
    moved = {key for key, value in policy.state_dict().items() if not torch.equal(value, before[key])}
    assert moved and not [key for key in moved if key.startswith(f"{name}.")]


def test_bf16_is_close_and_losses_stay_fp32(variant):
    policy = make_policy(**variant)
    batch = make_batch(policy, 8)
    exact = mean_loss(policy, batch)
    with torch.autocast("cpu", torch.bfloat16):
        loss = mean_loss(policy, batch)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, exact, rtol=2e-2, atol=2e-2)
    loss.backward()
    assert all(p.grad is None or p.grad.dtype == torch.float32 for p in policy.parameters())


def test_save_load_act_gives_equal_numbers(variant, tmp_path):
    policy = make_policy(**variant)
    policy.save_pretrained(tmp_path / "policy")
    loaded = Policy.from_pretrained(tmp_path / "policy")
    observation = make_observation(policy)
    torch.testing.assert_close(loaded.act(observation), policy.act(observation), rtol=0, atol=0)
    assert loaded.features == policy.features and loaded.execute == policy.execute and loaded.source == policy.source
    for name in ("vision", "language", "trunk", "action"):
        assert describe(getattr(loaded, name)) == describe(getattr(policy, name))


def test_every_input_matters_and_padding_words_do_not(variant):
    policy = make_policy(**variant)
    images, tokens, mask, state = observation = make_observation(policy, 2)
    actions = policy.act(observation)

    def change(**fields):
        return (policy.act(observation._replace(**fields)) - actions).abs().amax((1, 2))

    assert (change(images=255 - images) > 1e-6).all()
    assert (change(state=state + 1) > 1e-6).all()
    assert (change(tokens=tokens.roll(1, 0), token_mask=mask.roll(1, 0)) > 1e-6).all()
    padding = torch.full((2, 3), 2)  # any real word's id: the mask alone must keep it out
    padded = change(
        tokens=torch.cat([tokens, padding], 1), token_mask=torch.cat([mask, torch.zeros(2, 3, dtype=torch.bool)], 1)
    )
    assert (padded < 1e-5).all()


def test_no_graph_when_acting(variant):
    policy = make_policy(**variant)
    assert not policy.act(make_observation(policy)).requires_grad


def test_one_batch_can_be_overfitted(variant):
    policy = make_policy(**variant).train()
    batch = make_batch(policy, 4)
    optimizer = torch.optim.Adam(policy.parameters(), lr=3e-3)
    first = None
    for _ in range(150):
        optimizer.zero_grad()
        loss, terms = policy.loss(batch)
        loss.sum().backward()
        optimizer.step()
        first = first or terms["action"].sum().item()
    assert terms["action"].sum().item() < 0.2 * first
