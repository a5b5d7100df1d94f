"""The tab "One step of learning": its numbers are those of a step computed by hand, and nothing of the policy changes."""

import copy
import json
import math

import pytest
import torch

from tests.factory import CONFIGS, OmegaConf, make_batch, make_policy, mean_loss, spec
from vla_mini.autograd.batches import select
from vla_mini.play.learning import ADAM_SHARE, MUON_BETAS, OPTIMIZERS, STEPS, answer
from vla_mini.play.trace import SEED
from vla_mini.testing import as_float64

SMALL = {"action": spec("action", "regression") | {"hidden": 32}, "vision": spec("vision", "conv") | {"width": 16}}


@pytest.fixture(scope="module")
def exact():
    """A policy and a batch in float64, which no test changes."""
    policy = make_policy(**SMALL)
    return as_float64(policy, make_batch(policy, 6))


def by_hand(policy, batch, make_optimizer, *, steps=1, scale=1.0):
    """The losses before each step and after the last, the first gradient's norm, and the stepped copy."""
    policy = copy.deepcopy(policy)
    optimizer, losses, norm = make_optimizer(policy.parameters()), [], None
    for _ in range(steps):
        optimizer.zero_grad()
        loss = mean_loss(policy, batch)
        loss.backward()
        norm = norm or math.hypot(*(parameter.grad.norm().item() for parameter in policy.parameters()))
        for parameter in policy.parameters():
            parameter.grad.mul_(scale)
        optimizer.step()
        losses.append(loss.item())
    return [*losses, mean_loss(policy, batch).item()], norm, policy


TORCH = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.02, momentum=0.9, nesterov=True),
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.02, betas=(0.9, 0.95)),
}


@pytest.mark.parametrize("name", TORCH)
def test_one_step_is_that_of_torch(exact, name):
    policy, batch = exact
    losses, norm, stepped = by_hand(policy, batch, TORCH[name])
    shown = answer(policy, batch, {"optimizer": name, "learning_rate": 0.02})
    assert [shown["before"], shown["after"]] == pytest.approx(losses, rel=1e-12)
    assert shown["gradient_norm"] == pytest.approx(norm, rel=1e-12) and shown["clip_factor"] == 1
    rows = {row["name"]: row for row in shown["components"]}
    assert list(rows) == list(policy.components())
    for component, row in rows.items():
        before, after = (dict(each.get_submodule(component).named_parameters()) for each in (policy, stepped))
        weights = math.hypot(*(parameter.norm().item() for parameter in before.values()))
        update = math.hypot(*((after[key] - before[key]).norm().item() for key in before))
        assert (row["weights"], row["update"], row["ratio"]) == pytest.approx((weights, update, update / weights), rel=1e-9)


def test_clipping_scales_the_gradient(exact):
    policy, batch = exact
    _, norm, _ = by_hand(policy, batch, TORCH["sgd"])
    losses, _, _ = by_hand(policy, batch, TORCH["sgd"], scale=0.1 / norm)
    shown = answer(policy, batch, {"optimizer": "sgd", "learning_rate": 0.02, "clip_norm": 0.1})
    assert shown["clip_factor"] == pytest.approx(0.1 / norm, rel=1e-4)  # torch adds 1e-6 to the norm
    assert shown["after"] == pytest.approx(losses[-1], rel=1e-5) and shown["gradient_norm"] == pytest.approx(norm)
    assert answer(policy, batch, {"optimizer": "sgd", "clip_norm": 10 * norm})["clip_factor"] == 1


def test_the_comparison_takes_ten_steps_with_each(exact):
    policy, batch = exact
    shown = answer(policy, batch, {"compare": True, "rates": {"sgd": 0.02, "adam": 0.02}})
    curves = {curve["optimizer"]: curve for curve in shown["curves"]}
    assert list(curves) == ["sgd", "adam", "muon"]
    for name, make_optimizer in TORCH.items():
        losses, _, _ = by_hand(policy, batch, make_optimizer, steps=STEPS)
        assert curves[name]["losses"] == pytest.approx(losses, rel=1e-6)
    muon = answer(policy, batch, {"optimizer": "muon"})
    assert curves["muon"]["losses"][:2] == [muon["before"], muon["after"]] and len(curves["muon"]["losses"]) == STEPS + 1
    assert curves["muon"]["losses"][-1] < curves["muon"]["losses"][0]


def test_the_batch_is_the_chosen_samples_and_noise_is_the_same_before_and_after():
    policy = make_policy(action="flow", auxiliary="none")
    batch = make_batch(policy, 6)
    shown = answer(policy, batch, {"samples": [4, 1], "learning_rate": 1e-30, "weight_decay": 0})
    torch.manual_seed(SEED)
    assert shown["before"] == mean_loss(policy, select(batch, [4, 1])).item()
    assert shown["after"] == shown["before"] and "same, to the last bit" in shown["words"]
    assert shown["chosen"] == [4, 1] and [sample["instruction"] for sample in shown["samples"]][:2] == [
        "pick up the red cube",
        "grab the blue ball",
    ]


def test_a_diverging_learning_rate_is_said_in_words():
    policy = make_policy(**SMALL)
    batch = make_batch(policy)
    shown = answer(policy, batch, {"optimizer": "sgd", "learning_rate": 1e36})
    assert shown["after"] == "not finite" and "learning rate is far too large" in shown["words"]
    curves = answer(policy, batch, {"compare": True, "rates": {"sgd": 1e36, "adam": 3.0}})["curves"]
    assert len(curves[0]["losses"]) == 1 and "not finite after 1 step:" in curves[0]["words"] and "1e+36" in curves[0]["words"]
    assert curves[1]["losses"][-1] > curves[1]["losses"][0] and "higher after 10 steps" in curves[1]["words"]
    assert curves[2]["words"] is None
    json.dumps([shown, curves], allow_nan=False)
    assert "The loss rose" in answer(policy, batch, {"optimizer": "sgd", "learning_rate": 100.0})["words"]
    assert "The loss fell" in answer(policy, batch, {"optimizer": "sgd", "learning_rate": 1e-3})["words"]


def test_a_step_that_is_not_finite_is_skipped():
    policy = make_policy()
    with torch.no_grad():
        policy.state.weight.fill_(math.nan)
    shown = answer(policy, make_batch(policy), {})
    assert "skipped" in shown["words"] and shown["before"] == shown["after"] == "not finite"
    assert {row["update"] for row in shown["components"]} == {None}
    json.dumps(shown, allow_nan=False)


def test_frozen_parts_do_not_move():
    policy = make_policy()
    policy.vision.requires_grad_(False)
    rows = {row["name"]: row for row in answer(policy, make_batch(policy), {})["components"]}
    assert rows["vision"]["update"] is None and rows["trunk"]["update"] > 0


def test_the_defaults_are_those_of_training():
    assert set(OPTIMIZERS) <= {path.stem for path in (CONFIGS / "optimizer").glob("*.yaml")}
    for name, row in OPTIMIZERS.items():
        settings = OmegaConf.load(CONFIGS / "optimizer" / f"{name}.yaml")
        assert settings["_target_"].rpartition(".")[2] == row.kind.__name__
        assert (settings.lr, settings.weight_decay) == (row.learning_rate, row.weight_decay)
        assert (settings.betas[0] if name.startswith("adam") else settings.momentum) == row.momentum
        if name == "muon":
            assert settings.adam_lr == pytest.approx(ADAM_SHARE * settings.lr) and tuple(settings.betas) == MUON_BETAS


@pytest.mark.parametrize("request_", [{"optimizer": name} for name in OPTIMIZERS] + [{"compare": True}], ids=str)
def test_the_policy_stays_as_it_is(request_):
    policy = make_policy(**SMALL | {"action": spec("action", "flow") | {"hidden": 32}})
    batch = make_batch(policy)
    policy.state.requires_grad_(False)
    mean_loss(policy, batch).backward()
    before = copy.deepcopy(policy)
    gradients = {name: parameter.grad.clone() for name, parameter in policy.named_parameters() if parameter.grad is not None}
    state = torch.get_rng_state()
    answer(policy, batch, request_)
    assert torch.equal(torch.get_rng_state(), state)
    for (name, parameter), other in zip(policy.named_parameters(), before.parameters(), strict=True):
        assert torch.equal(parameter, other), name
        assert (parameter.requires_grad, parameter.dtype) == (other.requires_grad, other.dtype)
        assert (parameter.grad is None) == (name not in gradients)
        assert parameter.grad is None or torch.equal(parameter.grad, gradients[name])


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"learning_rate": 0}, "learning_rate=0 is not a number above 0"),
        ({"learning_rate": math.inf}, "learning_rate=inf is not a number"),
        ({"momentum": 1.0}, "momentum=1.0 is not a number below 1"),
        ({"optimizer": "sdg"}, "did you mean 'sgd'"),
        ({"samples": [6]}, "6 is not one of the 6 samples, 0 to 5"),
        ({"samples": []}, "a batch needs at least one sample"),
        ({"rates": {"sgdd": 1.0}}, "did you mean 'rates.sgd'"),
        ({"clip": 1.0}, "unknown key 'clip'"),
    ],
)
def test_wrong_requests_get_one_line(exact, request_, message):
    with pytest.raises(ValueError) as error:
        answer(*exact, request_)
    assert message in str(error.value) and "\n" not in str(error.value)
