"""LoRA in training: targets -> the layers that get an adapter (lora.py), which then learn in the place of all else."""

from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

import torch
from torch import nn

from vla_mini import lora
from vla_mini.policy import Policy
from vla_mini.training.freezing import Learning, parts
from vla_mini.types import Batch, Observation

LAYERS = (nn.Linear, nn.Conv2d, nn.Embedding)
ADAPTABLE = "Linear, Embedding or Conv2d (without groups or dilation)"


def add_adapters(policy: Policy, *, targets: Sequence[str], also_train: Sequence[str] = (), **adapters: Any) -> None:
    """Adapters on `targets`. Besides them only the modules named by `also_train` learn, as they did before."""
    lora.require_peft()
    layers = find_layers(policy, targets)
    others, before = parts(policy, also_train, setting="lora.also_train"), Learning(policy)
    policy.requires_grad_(False).eval()
    for part in others:
        before.restore(part)
    lora.inject(policy, layers=layers, **adapters)
    for name, parameter in policy.named_parameters():
        if lora.is_adapter(policy, name):
            parameter.requires_grad_()
    for layer in layers:  # the adapter's own dropout
        policy.get_submodule(layer).train()


def find_layers(policy: Policy, targets: Sequence[str]) -> list[str]:
    """The names of the layers that `targets` stand for: each names a layer, or a module and all layers in it; in full
    (`trunk.blocks.0`), or by its end alone (`qkv`, as peft has it) where no module has that full name.

    Layers whose output the loss does not hang on (a pooler; an embedding whose weight is read) are none of them: an adapter
    there would learn nothing. Raises ValueError for a target without layers.
    """
    modules = {name: module for name, module in policy.named_modules() if name}
    reached = _reached_layers(policy)
    found: dict[str, None] = {}
    for target in targets:
        named = [target] if target in modules else [name for name in modules if name.endswith(f".{target}")]
        if not named:
            choices = {*modules, *(name.rpartition(".")[2] for name in modules if not name[-1].isdigit())}
            near = get_close_matches(target, choices, n=5) or [name for name, _ in policy.named_children()]
            raise ValueError(f"lora.targets: the policy has no module {target!r}; the nearest are {', '.join(near)}")
        layers = [layer for layer in reached if any(f"{layer}.".startswith(f"{name}.") for name in named)]
        if not layers:
            kind = type(modules[named[0]]).__name__
            raise ValueError(f"lora.targets: {target} ({kind}) is and holds no {ADAPTABLE} that feeds the loss")
        found |= dict.fromkeys(layers)
    return list(found)


def _reached_layers(policy: Policy) -> list[str]:
    """The layers whose output the loss hangs on: a zero is added where an adapter would add, and must have a gradient."""
    layers = {name: module for name, module in policy.named_modules() if _is_adaptable(module)}
    probes = {name: torch.zeros((), device=policy.device, requires_grad=True) for name in layers}

    def add(name: str) -> Any:
        return lambda module, inputs, output: output + probes[name]

    before = Learning(policy)
    hooks = [module.register_forward_hook(add(name)) for name, module in layers.items()]
    try:
        policy.eval().requires_grad_()  # a frozen encoder would be passed over
        loss, _ = policy.loss(_blank_batch(policy))
        gradients = torch.autograd.grad(loss.sum(), list(probes.values()), allow_unused=True)
    finally:
        before.restore(policy)
        for hook in hooks:
            hook.remove()
    return [name for name, gradient in zip(layers, gradients, strict=True) if gradient is not None]


def _is_adaptable(module: nn.Module) -> bool:
    """Not a convolution with groups or dilation, whose weight peft's two matrices do not make up."""
    plain = not isinstance(module, nn.Conv2d) or (module.groups == 1 and set(module.dilation) == {1})
    return plain and isinstance(module, LAYERS)


def _blank_batch(policy: Policy) -> Batch:
    """One sample of nothing, of the policy's sizes."""
    features, history, horizon = policy.features, policy.history, policy.action.horizon
    numbers = {"device": policy.device, "dtype": policy.normalization.state_mean.dtype}
    tokens, mask = (tensor.to(policy.device) for tensor in policy.tokenize([""]))
    shape = (1, history * len(features.cameras), 3, *features.image_size)
    images = torch.zeros(shape, dtype=torch.uint8, device=policy.device)
    observation = Observation(images, tokens, mask, torch.zeros(1, history * features.state_size, **numbers))
    flags = torch.zeros(1, horizon, dtype=torch.bool, device=policy.device)
    actions = torch.zeros(1, horizon, features.action_size, **numbers)
    return Batch(observation, actions, flags, torch.zeros(1, len(policy.keyframe), **numbers), flags[:, 0])
