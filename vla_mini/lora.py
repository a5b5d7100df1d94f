"""Low-rank adapters (LoRA, Hu et al. 2021, arXiv:2106.09685) on layers of a policy, made by the peft library.

    y = W x  ->  y = W x + alpha / rank · B (A x)      A: rank x in, random; B: out x rank, at first zero

A layer with an adapter holds the two matrices, and its own weights under `base_layer`. In a saved policy it goes by its plain
names again: the product is added to W (`save` = merged), or the matrices lie in a file of their own (apart).
"""

import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from vla_mini.policy import Policy
from vla_mini.types import Batch, Observation

LAYERS = (nn.Linear, nn.Conv2d, nn.Embedding)


def require_peft() -> None:
    if find_spec("peft") is None:
        raise ValueError("low-rank adapters need the peft library: pip install -e '.[lora]'")


def find_layers(policy: Policy, targets: Sequence[str]) -> list[str]:
    """The names of the layers that `targets` stand for: each names a layer, or a module and all layers in it; in full
    (`trunk.blocks.0`), or by its end alone (`qkv`, as peft has it) where no module has that full name.

    Layers that a pass through the policy does not call (a pooler; an embedding whose weight is read) are none of them: an
    adapter would change nothing there. Raises ValueError for a target without layers.
    """
    modules = {name: module for name, module in policy.named_modules() if name}
    called = _called_layers(policy)
    found: dict[str, None] = {}
    for target in targets:
        named = [target] if target in modules else [name for name in modules if name.endswith(f".{target}")]
        if not named:
            choices = {*modules, *(name.rpartition(".")[2] for name in modules if not name[-1].isdigit())}
            near = get_close_matches(target, choices, n=5) or [name for name, _ in policy.named_children()]
            raise ValueError(f"lora.targets: the policy has no module {target!r}; the nearest are {', '.join(near)}")
        layers = [layer for layer in called if any(f"{layer}.".startswith(f"{name}.") for name in named)]
        if not layers:
            kind = type(modules[named[0]]).__name__
            raise ValueError(f"lora.targets: {target} ({kind}) is and holds no Linear, Conv2d or Embedding that is called")
        found |= dict.fromkeys(layers)
    return list(found)


def inject(policy: Policy, *, layers: Sequence[str], rank: int, alpha: float, dropout: float, save: str) -> None:
    """Give each of `layers` an adapter, which at first changes nothing. It learns if its layer does."""
    require_peft()
    from peft import LoraConfig, inject_adapter_in_model

    learning = {name for name, parameter in policy.named_parameters() if parameter.requires_grad}
    names = "|".join(map(re.escape, layers))  # to be matched in full: peft takes lists for the ends of names
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=names)
    inject_adapter_in_model(config, policy)
    policy.lora = {"layers": list(layers), "rank": rank, "alpha": alpha, "dropout": dropout, "save": save}
    for name, parameter in policy.named_parameters():  # peft has frozen all others
        layer = name.partition(".lora_")[0]
        parameter.requires_grad_((f"{layer}.weight" if is_adapter(policy, name) else _plain(name)) in learning)


def is_adapter(policy: Policy, name: str) -> bool:
    """Whether the parameter `name` belongs to an adapter."""
    return policy.lora is not None and name.startswith(tuple(f"{layer}.lora_" for layer in policy.lora["layers"]))


def adapters(policy: Policy) -> dict[str, Tensor]:
    """The matrices of all adapters, as the state dict names them."""
    return {name: tensor for name, tensor in policy.state_dict().items() if is_adapter(policy, name)}


@torch.no_grad()
def plain_weights(policy: Policy, *, merged: bool) -> dict[str, Tensor]:
    """The state dict as if there were no adapters; `merged`: with what they add in the weights of their layers."""
    weights = {_plain(name): tensor for name, tensor in policy.state_dict().items() if not is_adapter(policy, name)}
    for layer in policy.lora["layers"] if merged and policy.lora else ():
        weights[f"{layer}.weight"] = weights[f"{layer}.weight"] + policy.get_submodule(layer).get_delta_weight("default")
    return weights


def load_adapters(policy: Policy, tensors: Mapping[str, Tensor]) -> None:
    """Put saved matrices into the adapters of `policy`; RuntimeError where they are not those of its layers."""
    if tensors.keys() != adapters(policy).keys():
        raise RuntimeError(f"the matrices are not those of the layers {', '.join(policy.lora['layers'])}")
    policy.load_state_dict(dict(tensors), strict=False)


def _plain(name: str) -> str:
    return name.replace(".base_layer.", ".")


def _called_layers(policy: Policy) -> list[str]:
    """The layers that a pass through the policy calls, in the order in which they are defined."""
    called: set[str] = set()

    def note(name: str) -> Any:
        return lambda *_: called.add(name)

    layers = {name: module for name, module in policy.named_modules() if isinstance(module, LAYERS)}
    hooks = [module.register_forward_hook(note(name)) for name, module in layers.items()]
    modes = {module: module.training for module in policy.modules()}
    try:
        with torch.no_grad():
            policy.eval().loss(_blank_batch(policy))
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in modes.items():
            module.training = training
    return [name for name in layers if name in called]


def _blank_batch(policy: Policy) -> Batch:
    """One sample of nothing, of the policy's sizes."""
    features, horizon = policy.features, policy.action.horizon
    numbers = {"device": policy.device, "dtype": policy.normalization.state_mean.dtype}
    tokens, mask = (tensor.to(policy.device) for tensor in policy.tokenize([""]))
    shape = (1, len(features.cameras), 3, *features.image_size)
    images = torch.zeros(shape, dtype=torch.uint8, device=policy.device)
    observation = Observation(images, tokens, mask, torch.zeros(1, features.state_size, **numbers))
    flags = torch.zeros(1, horizon, dtype=torch.bool, device=policy.device)
    actions = torch.zeros(1, horizon, features.action_size, **numbers)
    return Batch(observation, actions, flags, torch.zeros(1, len(policy.keyframe), **numbers), flags[:, 0])
