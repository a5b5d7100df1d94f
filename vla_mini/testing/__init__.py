"""For people who write their own encoder, trunk, head or loss: a policy around it, random batches for it, and assertions.

    policy = testing.make_policy(action=MyHead)
    testing.assert_gradients_reach(policy, testing.make_batch(policy))

docs/testing.md writes a new head and tests it. Nothing here needs a dataset, Lightning or a GPU. Arguments are not changed:
where weights have to move, the weights of a copy move.
"""

from vla_mini.autograd.batches import mean_loss
from vla_mini.testing.assertions import (
    assert_accumulation_equivalent,
    assert_compiled_equal,
    assert_gradients_reach,
    assert_matches_central_differences,
    assert_no_graph,
    assert_precision_close,
    assert_round_trip,
)
from vla_mini.testing.samples import FEATURES, TASKS, as_float64, make_batch, make_observation, make_policy, split

__all__ = [
    "FEATURES",
    "TASKS",
    "as_float64",
    "assert_accumulation_equivalent",
    "assert_compiled_equal",
    "assert_gradients_reach",
    "assert_matches_central_differences",
    "assert_no_graph",
    "assert_precision_close",
    "assert_round_trip",
    "make_batch",
    "make_observation",
    "make_policy",
    "mean_loss",
    "split",
]
