"""What a policy refuses at its door. The types of arguments are checked before by the type checker that tests run under, so
that `admit`, which takes anything, is asked about those itself."""

import pytest
import torch

from tests.factory import make_batch, make_policy
from vla_mini.door import RULES
from vla_mini.evaluation.rollout import observe
from vla_mini.types import Batch, Observation

MISFITS = {
    "observation.images": [
        (lambda t: t.float(), "is torch.float32, the policy takes torch.uint8"),
        (lambda t: t[..., :32], "is (4, 1, 3, 64, 32), the policy takes (b=4, k=1, c=3, h=64, w=64)"),
        (lambda t: t[0], "is (1, 3, 64, 64), the policy takes (b, k=1, c=3, h=64, w=64); k: top"),
        (lambda t: t.expand(4, 2, 3, 64, 64), "is (4, 2, 3, 64, 64), the policy takes (b=4, k=1, c=3, h=64, w=64); k: top"),
    ],
    "observation.tokens": [(lambda t: t.int(), "is torch.int32, the policy takes torch.int64")],
    "observation.token_mask": [
        (lambda t: t.long(), "is torch.int64, the policy takes torch.bool"),
        (lambda t: t[:, 1:], "is (4, 5), the policy takes (b=4, l=6)"),
    ],
    "observation.state": [
        (lambda t: t.to("meta"), "is on meta, the policy is on cpu"),
        (lambda t: t.long(), "is torch.int64, the policy takes floating-point numbers"),
        (lambda t: t.numpy(), "is of type ndarray, the policy takes torch.Tensor"),
        (lambda t: t[:, :3], "is (4, 3), the policy takes (b=4, s=4); s: x, y, height, closed"),
        (lambda t: t[:2], "is (2, 4), the policy takes (b=4, s=4)"),
    ],
    "batch.actions": [
        (lambda t: t.to("meta"), "is on meta, the policy is on cpu"),
        (lambda t: t[:, :5], "is (4, 5, 4), the policy takes (b=4, t=8, a=4)"),
        (lambda t: t[:3], "is (3, 8, 4), the policy takes (b=4, t=8, a=4)"),
    ],
    "batch.is_pad": [(lambda t: t.float(), "is torch.float32, the policy takes torch.bool")],
    "batch.keyframe": [(lambda t: t[:, :1], "is (4, 1), the policy takes (b=4, g=2); g: x, y")],
    "batch.has_keyframe": [
        (lambda t: t.to("meta"), "is on meta, the policy is on cpu"),
        (lambda t: t[:, None], "is (4, 1), the policy takes (b=4)"),
    ],
}
CASES = [(name, change, message) for name, cases in MISFITS.items() for change, message in cases]


@pytest.mark.parametrize(("name", "change", "message"), CASES, ids=[f"{name}-{message[:24]}" for name, _, message in CASES])
def test_misfits_are_named_with_what_they_should_be(name, change, message):
    policy, (kind, field) = make_policy(), name.split(".")
    batch = make_batch(policy)
    whole = batch.observation if kind == "observation" else batch
    changed = whole._replace(**{field: change(getattr(whole, field))})
    batch = batch._replace(observation=changed) if kind == "observation" else changed
    with pytest.raises(ValueError) as raised:
        policy._admit(batch, Batch)
    assert str(raised.value) == f"{name} {message}"


def test_every_tensor_is_looked_at():
    assert set(MISFITS) == {f"{kind.__name__.lower()}.{name}" for kind, rules in RULES.items() for name in rules}


def test_acting_and_learning_come_through_the_door():
    policy = make_policy()
    batch = make_batch(policy)
    narrow = batch.observation._replace(images=batch.observation.images[..., :32])
    for call, argument in ((policy.act, narrow), (policy.prepare, narrow), (policy.loss, batch._replace(observation=narrow))):
        with pytest.raises(ValueError, match=r"^observation\.images is \(4, 1, 3, 64, 32\)"):
            call(argument)
    with pytest.raises(ValueError, match=r"^batch\.actions is \(4, 5, 4\)"):
        policy.loss(batch._replace(actions=batch.actions[:, :5]))


@pytest.mark.parametrize(
    ("kind", "wrong", "maker"),
    [
        (Observation, {"images": 0}, "Observation(images, tokens, token_mask, state), as vla_mini.evaluation.rollout.observe"),
        (Batch, (), "Batch(observation, actions, is_pad, keyframe, has_keyframe), as vla_mini.data.windows.ActionWindows"),
    ],
)
def test_what_is_no_observation_or_batch_hears_what_makes_one(kind, wrong, maker):
    with pytest.raises(TypeError) as raised:
        make_policy()._admit(wrong, kind)
    assert str(raised.value) == f"the policy takes {maker} makes it, not {type(wrong).__name__}"


def test_targets_are_brought_to_the_policys_precision():
    """NumPy's float64, as it comes, makes no float64 loss."""
    policy = make_policy()
    batch = make_batch(policy)
    wide = batch._replace(actions=batch.actions.double(), keyframe=batch.keyframe.double())
    loss, _ = policy.loss(wide)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, policy.loss(batch)[0], rtol=0, atol=0)


def test_nothing_to_observe_is_refused():
    policy = make_policy()
    with pytest.raises(ValueError, match="observe takes a list of at least one observation"):
        observe(policy, [])
