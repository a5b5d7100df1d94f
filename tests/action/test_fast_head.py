"""Chunks encoded as tokens and decoded again, which tokens may follow, and the tokenizer that is saved with the policy."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tests.action.test_flow_head import make_context, repeat_context
from tests.factory import make_batch, make_observation, make_policy, spec
from vla_mini import testing
from vla_mini.action.fast import FILE, FastHead, cosine_transform
from vla_mini.parts import FitData, HeadSpec
from vla_mini.policy import Policy
from vla_mini.utils.features import FeatureStatistics, Statistics

LONG = HeadSpec(context_width=8, num_tokens=2, horizon=8, action_size=2)
UNIT = FeatureStatistics(*(np.float32([value, value]) for value in (-1, 1, 0, 1, -1, 1)))


def smooth(size: int, *, seed: int = 0) -> torch.Tensor:
    """Chunks of 8 actions that oscillate slowly, or are constant zero."""
    generator = torch.Generator().manual_seed(seed)
    phase, speed = 6 * torch.rand(2, size, 1, 2, generator=generator)
    moving = torch.rand(size, 1, 2, generator=generator) < 0.7
    return torch.sin(phase + 0.1 * speed * torch.arange(8)[:, None]) * moving


def fitted(*, action_chunks: torch.Tensor | None = None, **settings) -> FastHead:
    """A head whose tokenizer is trained on smooth chunks, or on these."""
    torch.manual_seed(0)
    head = FastHead(LONG, **{"hidden": 32} | settings)
    head.fit(FitData(("lift it",), smooth(512) if action_chunks is None else action_chunks, Statistics(UNIT, UNIT)))
    return head.eval()


def unmerged(**settings) -> FastHead:
    """A head whose tokenizer has one token for each coefficient, and no longer ones."""
    return fitted(action_chunks=torch.zeros(0, 8, 2), **settings)


@pytest.mark.parametrize("size", [1, 2, 8, 50])
def test_the_cosine_transform_is_the_fourier_transform_of_the_mirrored_signal(size):
    x = np.random.default_rng(0).standard_normal((size, 3))
    fourier = np.fft.fft(np.concatenate([x, x[::-1]]), axis=0)[:size]
    rotated = np.exp(-0.5j * np.pi * np.arange(size) / size)[:, None] * fourier
    expected = rotated.real / 2 * np.sqrt(np.where(np.arange(size) == 0, 1, 2) / size)[:, None]
    matrix = cosine_transform(size, like=torch.zeros((), dtype=torch.float64))
    np.testing.assert_allclose(matrix.numpy() @ x, expected, atol=1e-12)
    np.testing.assert_allclose((matrix.T @ matrix).numpy(), np.eye(size), atol=1e-12)


@pytest.mark.parametrize("make_head", [unmerged, fitted])
def test_decoding_inverts_encoding_up_to_rounding(make_head):
    head, actions = make_head(scale=20.0), smooth(16, seed=1)
    tokens = head.tokenize(actions)
    certain = 99.0 * F.one_hot(tokens, len(head.lengths))
    head._logits = lambda context, so_far: certain[:, : so_far.shape[1]]
    context = repeat_context(make_context(1), 16)
    predicted = head.predict(context)
    assert torch.equal(head._decode(context), tokens)
    error = cosine_transform(8, like=actions) @ (predicted - actions)
    assert error.abs().max() <= 0.5 / 20 + 1e-5
    assert (predicted - actions).square().mean().sqrt() < 0.02


def test_frequent_sequences_become_one_token():
    single, head, actions = unmerged(), fitted(vocab_size=128), smooth(64, seed=1)
    assert len(head.lengths) == 128 and len(single.lengths) == 2 * single.max_coefficient + 2
    assert single.tokenize(actions).shape[1] == 16
    assert (head.lengths[head.tokenize(actions)] > 0).sum() < 0.6 * actions.numel()
    assert torch.equal(head.lengths[head.tokenize(actions)].sum(dim=1), torch.full((64,), 16))
    assert fitted(vocab_size=128).tokenizer.to_str() == head.tokenizer.to_str()


def test_actions_beyond_the_training_range_are_clamped():
    head = fitted()
    tokens = head.tokenize(torch.tensor([[[9.0, -9.0]] * 8]))
    decoded = [value for token in tokens[0] for value in head.coefficients[token, : head.lengths[token]].tolist()]
    assert decoded[:2] == [head.max_coefficient, -head.max_coefficient]


def test_every_chunk_is_complete_whatever_the_logits():
    head, contexts = fitted(), make_context(64)
    first = contexts._replace(tokens=contexts.tokens[:5], mask=contexts.mask[:5])
    torch.testing.assert_close(head.predict(contexts)[:5], head.predict(first))
    generator = torch.Generator().manual_seed(0)
    head._logits = lambda context, tokens: torch.randn(*tokens.shape, len(head.lengths), generator=generator)
    tokens = head._decode(contexts)
    lengths = head.lengths[tokens]
    assert (lengths.sum(dim=1) == 16).all()
    assert ((lengths > 0) | (lengths.cumsum(dim=1) == 16)).all(), "the start token only follows complete chunks"
    assert len({tuple(row) for row in tokens.tolist()}) == 64


def test_context_tokens_are_distinguished():
    head, context = fitted(), make_context(2)
    torch.nn.init.normal_(head.type_embedding)  # zero before training
    swapped = context._replace(tokens=context.tokens.flip(1))
    assert (head.predict(swapped) - head.predict(context)).abs().max() > 1e-4


def test_a_token_depends_on_the_tokens_before_it_and_on_the_context():
    head = fitted()
    context, tokens = make_context(1), head.tokenize(smooth(8, seed=1))[:1]
    logits = head._logits(context, tokens)
    other = tokens.clone()
    other[0, 2] = (other[0, 2] + 1) % len(head.lengths)
    changed = (head._logits(context, other) - logits).abs().amax(dim=(0, 2))
    assert (changed[:3] == 0).all() and (changed[3:] > 1e-4).all()
    flipped = head._logits(context._replace(tokens=context.tokens.flip(-1)), tokens) - logits
    assert (flipped.abs().amax(dim=(0, 2)) > 1e-4).all()
    masked = context._replace(mask=torch.tensor([[True, False]]))
    scaled = context._replace(mask=masked.mask, tokens=context.tokens * torch.tensor([1.0, 5.0])[:, None])
    assert torch.equal(head._logits(masked, tokens), head._logits(scaled, tokens))


def test_the_gradient_of_a_prediction_matches_central_differences():
    head, context = fitted().double(), make_context(3)
    tokens = context.tokens.double().requires_grad_()
    weights = torch.randn(3, 8, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    testing.assert_matches_central_differences(
        lambda: (weights * head.predict(context._replace(tokens=tokens))).sum(), {"context": tokens}
    )


def test_the_loss_is_the_mean_negative_log_likelihood_of_a_chunks_tokens():
    head, context, actions = fitted(), make_context(4), smooth(4, seed=2)
    loss = head.loss(context, actions, torch.zeros(4, 8, dtype=torch.bool))
    tokens = head.tokenize(actions)
    probabilities = head._logits(context, tokens).softmax(dim=-1)
    for row in range(4):
        real = [i for i, token in enumerate(tokens[row]) if token != head.start]
        expected = -torch.stack([probabilities[row, i, tokens[row, i]].log() for i in real]).mean()
        torch.testing.assert_close(loss[row], expected.expand(8))


def test_actions_past_the_end_are_not_learned():
    head, context, actions = fitted(), make_context(4), smooth(4, seed=2)
    is_pad = torch.arange(8) >= torch.tensor([[1], [3], [7], [8]])
    other = torch.where(is_pad[..., None], -actions.flip(0), actions)
    assert torch.equal(head.loss(context, actions, is_pad), head.loss(context, other, is_pad))


def test_two_modes_are_learned_as_two_and_not_as_their_mean():
    """Two of five demonstrations go left, the others right: regression would learn the mean. The likelier mode is predicted."""
    actions = torch.where(torch.arange(64) % 5 < 2, 0.8, -0.8)[:, None, None].expand(64, 8, 2)
    head, context = fitted(action_chunks=actions), repeat_context(make_context(1), 64)
    optimizer = torch.optim.Adam(head.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        head.loss(context, actions, torch.zeros(64, 8, dtype=torch.bool)).mean().backward()
        optimizer.step()
    with torch.no_grad():
        assert (head.predict(context) + 0.8).abs().max() < 0.15


def test_the_tokenizer_is_saved_with_the_policy(tmp_path):
    policy = make_policy(action="fast")
    assert len(policy.action.lengths) > 2 * policy.action.max_coefficient + 2
    policy.save_pretrained(tmp_path / "policy")
    loaded, batch = Policy.from_pretrained(tmp_path / "policy"), make_batch(policy)
    assert torch.equal(loaded.loss(batch)[0], policy.loss(batch)[0])
    assert torch.equal(loaded.act(batch.observation), policy.act(batch.observation))
    (tmp_path / "policy" / FILE).unlink()
    with pytest.raises(ValueError, match=f"{FILE} is missing"):
        Policy.from_pretrained(tmp_path / "policy")


def test_a_tokenizer_file_that_does_not_fit_is_refused(tmp_path):
    fitted().save_assets(tmp_path)
    with pytest.raises(ValueError, match=f"{FILE} of scale=6 lacks 4 of 36 single tokens"):
        FastHead(LONG, scale=6.0).load_assets(tmp_path)
    (tmp_path / FILE).unlink()
    with pytest.raises(ValueError, match=f"{tmp_path}/{FILE} is missing"):
        FastHead(LONG).load_assets(tmp_path)


def test_tokens_are_the_same_under_autocast():
    head, actions = fitted(scale=50.0), smooth(64, seed=3)
    expected = head.tokenize(actions)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(head.tokenize(actions), expected)
        predicted = head.predict(repeat_context(make_context(1), 2))
    assert predicted.dtype == torch.float32


def test_the_loss_of_actions_that_are_not_finite_is_not_finite():
    head, actions = fitted(), smooth(4, seed=2)
    actions[1, 3, 0], actions[2, 0, 1] = torch.nan, torch.inf
    loss = head.loss(make_context(4), actions, torch.zeros(4, 8, dtype=torch.bool))
    assert loss.isfinite().all(dim=1).tolist() == [True, False, False, True]


def test_acting_does_not_depend_on_the_generator():
    policy = make_policy(action="fast")
    observation = make_observation(policy)
    assert torch.equal(*(policy.act(observation, torch.Generator().manual_seed(seed)) for seed in (0, 1)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scale": 0.0}, "action.scale=0.0 is not a number above 0"),
        ({"scale": float("inf")}, "action.scale=inf is not a number"),
        ({"vocab_size": 19}, "scale=5, vocab_size=19: .* are needed"),
        ({"depth": 0}, "action.depth=0 is not an integer of at least 1"),
        ({"num_heads": 5}, "num_heads=5"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        make_policy(action=spec("action", "fast") | settings)
