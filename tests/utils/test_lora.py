"""Low-rank adapters: on which layers, what is trained, and that a saved policy acts as before."""

import sys

import pytest
import torch

from tests.factory import FEATURES, make_batch, make_observation, make_policy, mean_loss, spec
from vla_mini import testing
from vla_mini.finetuning.adapters import add_adapters, find_layers
from vla_mini.policy import Policy
from vla_mini.utils import lora

PARTS = ["vision", "language", "trunk", "action"]
OPTIONS = {"rank": 4, "alpha": 8.0, "dropout": 0.0, "save": "separate"}


def adapted(targets=PARTS, **options) -> Policy:
    """A policy with adapters that already add something."""
    arguments = {key: options.pop(key) for key in [*OPTIONS, "also_train"] if key in options}
    policy = make_policy(**options)
    add_adapters(policy, targets=targets, **OPTIONS | arguments)
    fill(policy)
    return policy.eval()


@torch.no_grad()
def fill(policy: Policy) -> None:
    generator = torch.Generator().manual_seed(1)
    for tensor in lora.adapters(policy).values():
        tensor.copy_(0.1 * torch.randn(tensor.shape, generator=generator))


def act(policy: Policy) -> torch.Tensor:
    return policy.act(make_observation(policy), torch.Generator().manual_seed(0))


def test_merged_and_separate_adapters_act_alike(variant, tmp_path):
    policy = adapted(**variant)
    loaded = {}
    for save in ("merged", "separate"):
        policy.lora["save"] = save
        policy.save_pretrained(tmp_path / save)
        loaded[save] = Policy.from_pretrained(tmp_path / save)
    assert (tmp_path / "separate" / "adapters.safetensors").is_file()
    assert not (tmp_path / "merged" / "adapters.safetensors").exists() and loaded["merged"].lora is None
    for each in loaded.values():
        torch.testing.assert_close(act(each), act(policy), rtol=1e-4, atol=1e-5)
    assert (act(policy) - act(make_policy(**variant))).abs().max() > 1e-3  # and the adapters do something
    assert all(parameter.requires_grad for parameter in loaded["separate"].action.parameters())  # as in any loaded policy


def test_at_first_nothing_changes():
    policy = make_policy()
    before = act(policy)
    add_adapters(policy, targets=PARTS, **OPTIONS)
    torch.testing.assert_close(act(policy), before)


def test_adapters_and_named_modules_are_trained_and_nothing_else():
    policy = make_policy().train()
    add_adapters(policy, targets=["vision", "trunk"], also_train=["state"], **OPTIONS | {"dropout": 0.5})
    before = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
    optimizer = torch.optim.AdamW([p for p in policy.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(2):  # A moves from the second step on, since B is zero at first
        optimizer.zero_grad()
        mean_loss(policy, make_batch(policy)).backward()
        optimizer.step()
    moved = {name for name, tensor in policy.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == {*lora.adapters(policy), "state.weight", "state.bias"}
    assert policy.trunk.queries.lora_dropout.training and policy.state.training and not policy.action.training
    testing.assert_no_graph(policy.eval().act, make_observation(policy))


def test_adapters_of_a_frozen_language_are_trained_and_cached_once_saved(tmp_path):
    """With adapters its word vectors are computed each time; a loaded policy, whose encoder is frozen, caches them."""
    policy = adapted(["language"], language="huggingface")
    assert not any("pooler" in name for name in policy.lora["layers"])  # it is called, but the loss does not depend on it
    mean_loss(policy, make_batch(policy)).backward()
    assert all(p.grad.abs().max() > 0 for name, p in policy.named_parameters() if lora.is_adapter(policy, name))
    for save in ("merged", "separate"):
        policy.lora["save"] = save
        policy.save_pretrained(tmp_path / save)
        loaded = Policy.from_pretrained(tmp_path / save)
        torch.testing.assert_close(act(loaded), act(policy), rtol=1e-4, atol=1e-5)
        assert loaded.language._cache


@pytest.mark.parametrize(
    ("targets", "layers"),
    [
        (["trunk.queries"], ["trunk.queries"]),
        (["queries", "stem"], ["trunk.queries", "vision.stem"]),  # by its end, where no module has that full name
        (["vision"], ["vision.stem", "vision.blocks.0", "vision.blocks.1"]),  # not projection.vision
        (["state", "state"], ["state"]),
    ],
)
def test_the_layers_of_targets(targets, layers):
    assert find_layers(make_policy(), targets) == layers
    assert adapted(targets).lora["layers"] == layers


def test_a_policy_with_history_is_adapted():
    assert adapted(["trunk.queries"], history=2).lora["layers"] == ["trunk.queries"]


def test_grouped_convolutions_are_left_out(tmp_path):
    vision = {"_target_": "vla_mini.vision.torchvision.TorchvisionVision", "name": "mobilenet_v3_small", "layer": "features.1"}
    policy = adapted(["vision"], vision=vision)
    grouped = [name for name, m in policy.named_modules() if isinstance(m, torch.nn.Conv2d) and m.groups > 1]
    assert grouped and policy.lora["layers"] and not {*grouped} & {*policy.lora["layers"]}
    policy.save_pretrained(tmp_path / "policy")
    torch.testing.assert_close(act(Policy.from_pretrained(tmp_path / "policy")), act(policy), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=f"lora.targets: {grouped[0]} .Conv2d. is and holds no"):
        add_adapters(make_policy(vision=vision), targets=grouped, **OPTIONS)


@pytest.mark.parametrize(
    ("targets", "says"),
    [
        (["trunk.querys"], r"no module 'trunk.querys'; did you mean 'trunk.queries'"),
        (["zzzzz"], r"no module 'zzzzz'; choose from: vision, language, trunk"),
        ([""], r"no module ''"),
        (["normalization"], r"normalization \(Normalization\) is and holds no Linear, .* that the loss depends on"),
        (["camera_embedding"], r"camera_embedding \(Embedding\) is and holds no Linear"),  # the policy reads its weight
    ],
)
def test_targets_without_layers_are_refused(targets, says):
    policy = make_policy(features=FEATURES._replace(cameras=("top", "wrist")))
    with pytest.raises(ValueError, match=f"lora.targets: .*{says}") as refused:
        add_adapters(policy, targets=targets, **OPTIONS)
    assert "\n" not in str(refused.value)


def test_without_peft_merged_policies_load_and_others_name_what_is_missing(monkeypatch, tmp_path):
    policy = adapted()
    for save in ("merged", "separate"):
        policy.lora["save"] = save
        policy.save_pretrained(tmp_path / save)
    monkeypatch.setitem(sys.modules, "peft", None)
    torch.testing.assert_close(act(Policy.from_pretrained(tmp_path / "merged")), act(policy), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"pip install -e '.\[lora\]'"):
        Policy.from_pretrained(tmp_path / "separate")


def test_the_manifest_covers_the_adapters(tmp_path):
    adapted().save_pretrained(tmp_path / "policy")
    path = tmp_path / "policy" / "adapters.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(ValueError, match=r"adapters\.safetensors is damaged"):
        Policy.from_pretrained(tmp_path / "policy")


def test_gradients_reach_every_adapter():
    policy = adapted(action=spec("action", "flow"))
    testing.assert_gradients_reach(policy, make_batch(policy, 8))


def test_accumulation_and_per_sample_gradients_with_adapters():
    from vla_mini.autograd.per_sample import per_sample

    policy = adapted()
    testing.assert_accumulation_equivalent(policy.double(), make_batch(policy, 8))
    assert per_sample(policy.float(), make_batch(policy, 3)).mean_minus_batch_max_abs < 1e-4
