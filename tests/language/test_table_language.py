"""Word vectors of the table."""

from tests.factory import make_batch, make_policy


def test_padding_has_no_word_vector():
    policy = make_policy()
    observation = make_batch(policy).observation
    vectors = policy.language(observation.tokens, observation.token_mask)
    padded = ~observation.token_mask
    assert padded.any() and (vectors[padded] == 0).all() and (vectors[~padded] != 0).any(dim=-1).all()
