"""What a policy refuses as input. Since the tests' type checker refuses arguments of wrong types first, `check_inputs`, which
takes anything, is called directly for these."""

import pytest
import torch

from tests.factory import make_batch, make_policy
from vla_mini.acting import observe
from vla_mini.types import RULES, Batch, Observation, check_inputs

MISTAKES = {
    "observation.images": [
        (lambda t: t.float(), "is torch.float32, the policy takes torch.uint8"),
        (lambda t: t[..., :32], "is (4, 1, 3, 64, 32), the policy takes (b=4, k=1, c=3, h=64, w=64)"),
        (lambda t: t[0], "is (1, 3, 64, 64), the policy takes (b, k=1, c=3, h=64, w=64); k: top"),
        (lambda t: t.expand(4, 2, 3, 64, 64), "is (4, 2, 3, 64, 64), the policy takes (b=4, k=1, c=3, h=64, w=64); k: top"),
    ],
    "observation.tokens": [
        (lambda t: t.int(), "is torch.int32, the policy takes torch.int64"),
        (lambda t: t[:3], "is (3, 6), the policy takes (b=4, l=6)"),
    ],
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
}
CASES = [(name, change, message) for name, cases in MISTAKES.items() for change, message in cases]


@pytest.mark.parametrize(("name", "change", "message"), CASES, ids=[f"{name}-{message[:24]}" for name, _, message in CASES])
def test_a_wrong_tensor_is_named_with_what_it_should_be(name, change, message):
    policy, (kind, field) = make_policy(), name.split(".")
    batch = make_batch(policy)
    whole = batch.observation if kind == "observation" else batch
    changed = whole._replace(**{field: change(getattr(whole, field))})
    batch = batch._replace(observation=changed) if kind == "observation" else changed
    with pytest.raises(ValueError) as raised:
        check_inputs(batch, Batch, device=policy.device, letters=policy.letters)
    assert str(raised.value) == f"{name} {message}"


def test_every_tensor_is_checked():
    assert set(MISTAKES) == set(RULES[Batch])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t[:3], r"batch.targets\['keyframe'\] is \(3, 2\) on cpu, the policy takes \(b=4, \.\.\.\) on cpu"),
        (lambda t: t.to("meta"), r"batch.targets\['keyframe'\] is \(4, 2\) on meta, the policy takes"),
    ],
)
def test_a_wrong_target_is_named(change, message):
    policy = make_policy()
    batch = make_batch(policy)
    targets = batch.targets | {"keyframe": change(batch.targets["keyframe"])}
    with pytest.raises(ValueError, match=message):
        policy.loss(batch._replace(targets=targets))


def test_act_prepare_and_loss_check_their_inputs():
    policy = make_policy()
    batch = make_batch(policy)
    narrow = batch.observation._replace(images=batch.observation.images[..., :32])
    for call, argument in ((policy.act, narrow), (policy.prepare, narrow), (policy.loss, batch._replace(observation=narrow))):
        with pytest.raises(ValueError, match=r"^observation\.images is \(4, 1, 3, 64, 32\)"):
            call(argument)
    with pytest.raises(ValueError, match=r"^batch\.actions is \(4, 5, 4\)"):
        policy.loss(batch._replace(actions=batch.actions[:, :5]))


@pytest.mark.parametrize(
    ("kind", "wrong", "source"),
    [
        (Observation, {"images": 0}, "Observation(images, tokens, token_mask, state), such as vla_mini.acting.observe"),
        (Batch, (), "Batch(observation, actions, is_pad, targets), such as vla_mini.data.chunks.ActionChunkDataset"),
    ],
)
def test_other_types_are_refused_with_the_function_that_makes_the_right_one(kind, wrong, source):
    with pytest.raises(TypeError) as raised:
        policy = make_policy()
        check_inputs(wrong, kind, device=policy.device, letters=policy.letters)
    assert str(raised.value) == f"the policy takes {source} makes, not {type(wrong).__name__}"


def test_targets_are_converted_to_the_policys_precision():
    """float64, as NumPy often has it, does not make the loss float64."""
    policy = make_policy()
    batch = make_batch(policy)
    targets = batch.targets | {"keyframe": batch.targets["keyframe"].double()}
    loss, _ = policy.loss(batch._replace(actions=batch.actions.double(), targets=targets))
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, policy.loss(batch)[0], rtol=0, atol=0)


def test_an_empty_list_of_observations_is_refused():
    policy = make_policy()
    with pytest.raises(ValueError, match="observe takes a list of at least one observation"):
        observe(policy, [])
