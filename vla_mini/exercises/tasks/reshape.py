"""A vector-Jacobian product by hand: feature maps become tokens

Policy.context turns the feature maps of k cameras into one sequence of tokens, and adds a vector to the tokens of each camera:

    tokens = rearrange(maps, "(b k) d h w -> b k (h w) d", k=k) + embedding[:, None]
    tokens = rearrange(tokens, "b k n d -> b (k n) d")

Given a vector of the shape of the tokens (in a backward pass: the gradient by them), compute its product with the Jacobian of
the tokens by the maps, and with their Jacobian by the embedding. Build neither matrix.

    maps        (b k) d h w
    embedding   k d
    vector      b (k h w) d
    returns     vector_by_maps and vector_by_embedding, of the shapes of maps and embedding

Hint: a reshape only moves numbers, so each number of the vector moves back to where its token came from. Each embedding is
added to many tokens: the h w of its camera, in all samples.

Read first: docs/autograd.md, sections 4, 6 and 20
"""

from einops import rearrange
from torch import Tensor

from vla_mini.exercises.compare import Case, check_backward


def tokens_vjp(maps: Tensor, embedding: Tensor, vector: Tensor) -> tuple[Tensor, Tensor]:
    # solution:
    k, (_, _, h, w) = len(embedding), maps.shape
    # The Jacobian by the maps is a permutation matrix. Its transpose, which is what the vector is multiplied by, is the
    # permutation back: the same pattern with its two sides exchanged.
    vector_by_maps = rearrange(vector, "b (k h w) d -> (b k) d h w", k=k, h=h, w=w)
    # Broadcasting repeats embedding[k] for all b, h and w; the gradients by all copies add up.
    vector_by_embedding = rearrange(vector, "b (k n) d -> b k n d", k=k).sum(dim=(0, 2))
    return vector_by_maps, vector_by_embedding
    # end


# ---- judge

LOOK = {
    "maps": "the patterns of the forward pass with their two sides exchanged; the order within brackets counts: in (b k) the "
    "k cameras of a sample are next to each other, in (k h w) the tokens of a camera, row by row",
    "embedding": "embedding[k] was added to every token of camera k in all samples: sum over b and the tokens of that camera",
}


def forward(maps: Tensor, embedding: Tensor) -> Tensor:
    tokens = rearrange(maps, "(b k) d h w -> b k (h w) d", k=len(embedding)) + embedding[:, None]
    return rearrange(tokens, "b k n d -> b (k n) d")


def inputs(case: Case) -> dict[str, Tensor]:
    return {"maps": case.randn("b k d h w").flatten(0, 1), "embedding": case.randn("k d")}


def check(vjp) -> str:
    return check_backward(vjp, forward, "b k d h w", inputs, look=LOOK, prefix="vector_by_")
