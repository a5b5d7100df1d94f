"""Chunks spelled in tokens and read again, what may follow what, and the tokenizer that is saved with the policy."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tests.action.test_flow_head import SHAPE, make_context
from tests.factory import make_batch, make_observation, make_policy
from vla_mini import testing
from vla_mini.action.fast import FILE, FastHead, cosines
from vla_mini.policy import Policy

LONG = {"context_width": 8, "num_tokens": 2, "horizon": 8, "action_size": 2, "hidden": 32}


def smooth(size: int, *, seed: int = 0) -> torch.Tensor:
    """Chunks of 8 actions that swing slowly, or stand still."""
    generator = torch.Generator().manual_seed(seed)
    phase, speed = 6 * torch.rand(2, size, 1, 2, generator=generator)
    moving = torch.rand(size, 1, 2, generator=generator) < 0.7
    return torch.sin(phase + 0.1 * speed * torch.arange(8)[:, None]) * moving


def learned(**arguments) -> FastHead:
    torch.manual_seed(0)
    return FastHead(**LONG | {"action_chunks": smooth(512)} | arguments).eval()


def wide(context, size: int):
    return type(context)(*(tensor[:1].expand(size, *tensor.shape[1:]) for tensor in context))


@pytest.mark.parametrize("size", [1, 2, 8, 50])
def test_the_transform_is_that_of_a_mirrored_fourier_transform(size):
    x = np.random.default_rng(0).standard_normal((size, 3))
    turned = np.exp(-0.5j * np.pi * np.arange(size) / size)[:, None] * np.fft.fft(np.concatenate([x, x[::-1]]), axis=0)[:size]
    expected = turned.real / 2 * np.sqrt(np.where(np.arange(size) == 0, 1, 2) / size)[:, None]
    matrix = cosines(size, like=torch.zeros((), dtype=torch.float64))
    np.testing.assert_allclose(matrix.numpy() @ x, expected, atol=1e-12)
    np.testing.assert_allclose((matrix.T @ matrix).numpy(), np.eye(size), atol=1e-12)


@pytest.mark.parametrize("action_chunks", [None, smooth(512)], ids=["single", "learned"])
def test_what_is_spelled_is_read_again_up_to_rounding(action_chunks):
    head, actions = learned(action_chunks=action_chunks, scale=20.0), smooth(16, seed=1)
    tokens = head.tokenize(actions)
    certain = 99.0 * F.one_hot(tokens, len(head.lengths))
    head._logits = lambda context, so_far: certain[:, : so_far.shape[1]]
    predicted = head.predict(wide(make_context(1), 16))
    assert torch.equal(head._decode(wide(make_context(1), 16)), tokens)
    error = cosines(8, like=actions) @ (predicted - actions)
    assert error.abs().max() <= 0.5 / 20 + 1e-5
    assert (predicted - actions).square().mean().sqrt() < 0.02


def test_what_often_stands_together_is_one_token():
    single, head, actions = learned(action_chunks=None), learned(vocab_size=128), smooth(64, seed=1)
    assert len(head.lengths) == 128 and len(single.lengths) == 2 * single.largest + 2
    assert single.tokenize(actions).shape[1] == 16
    assert (head.lengths[head.tokenize(actions)] > 0).sum() < 0.6 * actions.numel()
    assert torch.equal(head.lengths[head.tokenize(actions)].sum(dim=1), torch.full((64,), 16))
    assert learned(vocab_size=128).tokenizer.to_str() == head.tokenizer.to_str()


def test_actions_beyond_the_training_range_are_cut():
    head = learned()
    tokens = head.tokenize(torch.tensor([[[9.0, -9.0]] * 8]))
    spelled = [value for token in tokens[0] for value in head.coefficients[token, : head.lengths[token]].tolist()]
    assert spelled[:2] == [head.largest, -head.largest]


def test_every_chunk_is_full_whatever_the_network_says():
    head, contexts = learned(), make_context(64)
    torch.testing.assert_close(head.predict(contexts)[:5], head.predict(type(contexts)(*(t[:5] for t in contexts))))
    generator = torch.Generator().manual_seed(0)
    head._logits = lambda context, tokens: torch.randn(*tokens.shape, len(head.lengths), generator=generator)
    tokens = head._decode(contexts)
    lengths = head.lengths[tokens]
    assert (lengths.sum(dim=1) == 16).all()
    assert ((lengths > 0) | (lengths.cumsum(dim=1) == 16)).all(), "the start token comes again only where nothing is left"
    assert len({tuple(row) for row in tokens.tolist()}) == 64


def test_a_token_hangs_on_those_before_it_and_on_the_context():
    head, context, tokens = learned(), make_context(1), learned().tokenize(smooth(8, seed=1))[:1]
    logits = head._logits(context, tokens)
    other = tokens.clone()
    other[0, 2] = (other[0, 2] + 1) % len(head.lengths)
    changed = (head._logits(context, other) - logits).abs().amax(dim=(0, 2))
    assert (changed[:3] == 0).all() and (changed[3:] > 1e-4).all()
    turned = head._logits(context._replace(tokens=context.tokens.flip(-1)), tokens) - logits
    assert (turned.abs().amax(dim=(0, 2)) > 1e-4).all()
    hidden = context._replace(mask=torch.tensor([[True, False]]))
    louder = context._replace(mask=hidden.mask, tokens=context.tokens * torch.tensor([1.0, 5.0])[:, None])
    assert torch.equal(head._logits(hidden, tokens), head._logits(louder, tokens))


def test_the_gradient_of_a_prediction_is_its_slope():
    head, context = learned().double(), make_context(3)
    tokens = context.tokens.double().requires_grad_()
    weights = torch.randn(3, 8, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    testing.assert_matches_central_differences(
        lambda: (weights * head.predict(context._replace(tokens=tokens))).sum(), {"context": tokens}
    )


def test_the_loss_is_the_mean_surprise_of_a_chunks_tokens():
    head, context, actions = learned(), make_context(4), smooth(4, seed=2)
    loss = head.loss(context, actions, torch.zeros(4, 8, dtype=torch.bool))
    tokens = head.tokenize(actions)
    chances = head._logits(context, tokens).softmax(dim=-1)
    for row in range(4):
        real = [i for i, token in enumerate(tokens[row]) if token != head.start]
        surprise = -torch.stack([chances[row, i, tokens[row, i]].log() for i in real]).mean()
        torch.testing.assert_close(loss[row], surprise.expand(8))


def test_what_lies_past_the_end_is_not_learned():
    head, context, actions = learned(), make_context(4), smooth(4, seed=2)
    is_pad = torch.arange(8) >= torch.tensor([[1], [3], [7], [8]])
    other = torch.where(is_pad[..., None], -actions.flip(0), actions)
    assert torch.equal(head.loss(context, actions, is_pad), head.loss(context, other, is_pad))


def test_two_ways_are_learned_as_two_and_not_as_their_mean():
    """What regression cannot: two of five demonstrations go left, the others right. The likelier way is taken."""
    actions = torch.where(torch.arange(64) % 5 < 2, 0.8, -0.8)[:, None, None].expand(64, 8, 2)
    torch.manual_seed(0)
    head, context = FastHead(**LONG, action_chunks=actions), wide(make_context(1), 64)
    optimizer = torch.optim.Adam(head.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        head.loss(context, actions, torch.zeros(64, 8, dtype=torch.bool)).mean().backward()
        optimizer.step()
    with torch.no_grad():
        assert (head.predict(context) + 0.8).abs().max() < 0.15


def test_the_tokens_are_saved_with_the_policy(tmp_path):
    policy = make_policy(action="fast")
    assert len(policy.action.lengths) > 2 * policy.action.largest + 2
    policy.save_pretrained(tmp_path / "policy")
    loaded, batch = Policy.from_pretrained(tmp_path / "policy"), make_batch(policy)
    assert torch.equal(loaded.loss(batch)[0], policy.loss(batch)[0])
    assert torch.equal(loaded.act(batch.observation), policy.act(batch.observation))
    (tmp_path / "policy" / FILE).unlink()
    with pytest.raises(ValueError, match=f"{FILE} is missing"):
        Policy.from_pretrained(tmp_path / "policy")


def test_a_file_of_tokens_that_does_not_fit_is_refused(tmp_path):
    learned().save_tokenizer(tmp_path)
    with pytest.raises(ValueError, match=f"{FILE} of scale=6 lacks 4 of 36 single tokens"):
        FastHead(**LONG, scale=6.0, folder=tmp_path)
    (tmp_path / FILE).unlink()
    with pytest.raises(ValueError, match=f"{tmp_path}/{FILE} is missing"):
        FastHead(**LONG, folder=tmp_path)


def test_actions_are_spelled_alike_under_autocast():
    head, actions = learned(scale=50.0), smooth(64, seed=3)
    expected = head.tokenize(actions)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(head.tokenize(actions), expected)
        predicted = head.predict(wide(make_context(1), 2))
    assert predicted.dtype == torch.float32


def test_of_actions_that_are_not_finite_the_loss_is_not_either():
    head, actions = learned(), smooth(4, seed=2)
    actions[1, 3, 0], actions[2, 0, 1] = torch.nan, torch.inf
    loss = head.loss(make_context(4), actions, torch.zeros(4, 8, dtype=torch.bool))
    assert loss.isfinite().all(dim=1).tolist() == [True, False, False, True]
    learned(action_chunks=actions)


def test_context_tokens_are_told_apart():
    head, context = learned(), make_context(2)
    torch.nn.init.normal_(head.kinds)  # as training will, which begins at nothing
    swapped = context._replace(tokens=context.tokens.flip(1))
    assert (head.predict(swapped) - head.predict(context)).abs().max() > 1e-4


def test_it_acts_the_same_each_time():
    policy = make_policy(action="fast")
    observation = make_observation(policy)
    assert torch.equal(*(policy.act(observation, torch.Generator().manual_seed(seed)) for seed in (0, 1)))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"scale": 0.0}, "scale=0: a number above 0"),
        ({"scale": float("inf")}, "scale=inf: a number above 0"),
        ({"vocab_size": 19}, "scale=5, vocab_size=19: 20 are needed"),
        ({"depth": 0}, "depth=0: at least 1"),
        ({"num_heads": 5}, "num_heads=5"),
    ],
)
def test_impossible_settings_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        FastHead(**SHAPE, **wrong)
