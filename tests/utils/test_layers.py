"""The attentions of the package against PyTorch's own and against NumPy, in float64."""

import math

import numpy as np
import pytest
import torch
from einops import rearrange
from torch.nn import functional as F

from vla_mini.parts import TrunkSpec
from vla_mini.trunk.query import QueryTrunk
from vla_mini.utils.layers import Block, FiLMBlock

MASK = torch.tensor([[True, True, True, True, True], [True, False, True, False, False]])
CAUSAL = torch.ones(5, 5, dtype=torch.bool).tril()


def random(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


def numpy_attention(q, k, v, mask=None):
    """softmax(q k' / sqrt(d)) v, in NumPy; `mask` is True where a key may be attended to."""
    q, k, v = (tensor.numpy(force=True) for tensor in (q, k, v))
    scores = np.einsum("...qd,...kd->...qk", q, k) / math.sqrt(q.shape[-1])
    if mask is not None:
        scores = np.where(mask.numpy(), scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return torch.from_numpy(np.einsum("...qk,...kd->...qd", weights / weights.sum(-1, keepdims=True), v))


ATTENTIONS = [numpy_attention, lambda q, k, v, mask=None: F.scaled_dot_product_attention(q, k, v, attn_mask=mask)]


@pytest.mark.parametrize("attention", ATTENTIONS, ids=["numpy", "sdpa"])
@pytest.mark.parametrize("mask", [None, MASK[:, None], MASK[:, None] & CAUSAL], ids=["all", "masked", "causal"])
def test_a_block_is_pre_norm_attention_and_an_mlp(attention, mask):
    torch.manual_seed(0)
    block, x = Block(width=12, num_heads=3).double(), random(2, 5, 12)
    q, k, v = rearrange(block.qkv(block.norm1(x)), "b n (three h d) -> three b h n d", three=3, h=3)
    attended = attention(q, k, v, None if mask is None else mask[:, None])
    expected = x + block.output_projection(rearrange(attended, "b h n d -> b n (h d)"))
    expected = expected + block.mlp(block.norm2(expected))
    torch.testing.assert_close(block(x, mask), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("has_words", [False, True])
@pytest.mark.parametrize("attention", ATTENTIONS, ids=["numpy", "sdpa"])
def test_the_query_trunk_is_two_attentions(attention, has_words):
    """Slots attend to the words, the result to the image; the context holds the mean positions of the attention maps."""
    torch.manual_seed(0)
    trunk = QueryTrunk(TrunkSpec(grid=(3, 4), num_cameras=1), width=8, num_queries=2, words=has_words).double()
    image, words, state = random(2, 12, 8), random(2, 5, 8), random(2, 8)
    slots = trunk.slots.expand(2, -1, -1)
    instruction = attention(slots, trunk.word_keys(words), trunk.word_values(words), MASK[:, None].expand(-1, 2, -1))
    queries = F.layer_norm(trunk.queries(instruction + slots), (8,)) * trunk.log_sharpness.exp()
    keys = F.layer_norm(image + trunk.positional_embedding(trunk.token_positions), (8,))
    values = trunk.values(attention(queries, keys, keys))
    positions = attention(queries, keys, trunk.token_positions.expand(2, -1, -1))
    context = trunk(image, words, MASK, state)
    close = {"rtol": 1e-12, "atol": 1e-12}
    words_read = [instruction] if has_words else []
    expected = torch.cat([values + trunk.positional_embedding(positions), *words_read, state[:, None]], dim=1)
    assert trunk.num_tokens == expected.shape[1]
    torch.testing.assert_close(context.tokens, expected, **close)
    torch.testing.assert_close(context.attention.exp() @ trunk.token_positions, positions, **close)


def film_block():
    torch.manual_seed(0)
    block = FiLMBlock((3, 4), 8).double()
    torch.nn.init.normal_(block.film.weight)
    return block


def test_a_film_block_is_a_residual_convolution_that_a_vector_scales_and_shifts():
    block, x, vector = film_block(), random(2, 24, 8), random(2, 8)
    expected = []
    for camera in x.split(12, dim=1):  # each by itself
        scale, shift = F.linear(vector, block.film.weight)[:, None].split(8, dim=-1)
        maps = rearrange(F.layer_norm(camera, (8,)) * (1 + scale) + shift, "b (h w) d -> b d h w", h=3)
        maps = F.conv2d(maps, block.conv.weight, block.conv.bias, padding=1)
        expected.append(camera + rearrange(maps, "b d h w -> b (h w) d").relu())
    torch.testing.assert_close(block(x, vector), torch.cat(expected, dim=1), rtol=1e-12, atol=1e-12)


def test_the_instruction_reaches_the_image_tokens_of_a_query_trunk_through_its_film_blocks():
    torch.manual_seed(0)
    trunk = QueryTrunk(TrunkSpec(grid=(3, 4), num_cameras=1), width=8, num_queries=2, film=1).double()
    image, words, state = random(2, 12, 8), random(2, 5, 8), random(2, 8)
    trunk.film[0] = film_block()
    slots = trunk.slots.expand(2, -1, -1)
    mask = MASK[:, None].expand(-1, 2, -1)
    instruction = F.scaled_dot_product_attention(slots, trunk.word_keys(words), trunk.word_values(words), attn_mask=mask)
    found = trunk(image, words, MASK, state)
    changed, trunk.film = trunk.film[0](image, instruction.mean(dim=1)), torch.nn.ModuleList()
    torch.testing.assert_close(found.tokens, trunk(changed, words, MASK, state).tokens, rtol=1e-12, atol=1e-12)
    assert (found.tokens - trunk(image, words, MASK, state).tokens).abs().max() > 1e-3
