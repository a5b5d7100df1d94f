"""LoRA in training: targets -> the layers that get an adapter (lora.py). The adapters are trained, and all else is frozen."""

from collections.abc import Callable, Sequence
from difflib import get_close_matches
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from vla_mini.finetuning.freezing import TrainableParameters, submodules
from vla_mini.policy import Policy
from vla_mini.types import Batch, Observation
from vla_mini.utils import lora

LAYERS = (nn.Linear, nn.Conv2d, nn.Embedding)
ADAPTABLE = "Linear, Embedding or Conv2d (without groups or dilation)"


def add_adapters(policy: Policy, *, targets: Sequence[str], also_train: Sequence[str] = (), **adapters: Any) -> None:
    """Adapters on `targets`. Besides them only the modules named by `also_train` are trained, as they were before."""
    lora.require_peft()
    layers = find_layers(policy, targets)
    others, before = submodules(policy, also_train, setting="lora.also_train"), TrainableParameters(policy)
    policy.requires_grad_(False).eval()
    for module in others:
        before.restore(module)
    lora.inject(policy, layers=layers, **adapters)
    for name, parameter in policy.named_parameters():
        if lora.is_adapter(policy, name):
            parameter.requires_grad_()
    for layer in layers:  # the adapter's own dropout
        policy.get_submodule(layer).train()


def find_layers(policy: Policy, targets: Sequence[str]) -> list[str]:
    """The names of the layers that `targets` mean: each names a layer, or a module and all layers in it; by its whole name
    (`trunk.blocks.0`), or by its last part alone (`qkv`, as in peft) where no module has that whole name.

    Layers whose output the loss does not depend on (a pooler; an embedding whose weight is read) are left out: an adapter would
    not be trained there. Raises ValueError for a target without layers.
    """
    modules = {name: module for name, module in policy.named_modules() if name}
    used = _used_layers(policy)
    found: dict[str, None] = {}
    for target in targets:
        named = [target] if target in modules else [name for name in modules if name.endswith(f".{target}")]
        if not named:
            choices = {*modules, *(name.rpartition(".")[2] for name in modules if not name[-1].isdigit())}
            near = get_close_matches(target, choices, n=5) or [name for name, _ in policy.named_children()]
            raise ValueError(f"lora.targets: the policy has no module {target!r}; the nearest are {', '.join(near)}")
        layers = [layer for layer in used if any(f"{layer}.".startswith(f"{name}.") for name in named)]
        if not layers:
            kind = type(modules[named[0]]).__name__
            raise ValueError(f"lora.targets: {target} ({kind}) is and holds no {ADAPTABLE} that the loss depends on")
        found |= dict.fromkeys(layers)
    return list(found)


def _used_layers(policy: Policy) -> list[str]:
    """The layers that the loss depends on: a zero is added to their output, and has to have a gradient."""
    layers = {name: module for name, module in policy.named_modules() if _is_adaptable(module)}
    zeros = {name: torch.zeros((), device=policy.device, requires_grad=True) for name in layers}

    def add_to_output(zero: Tensor) -> Callable[..., Tensor]:
        return lambda module, inputs, output: output + zero

    before = TrainableParameters(policy)
    hooks = [module.register_forward_hook(add_to_output(zeros[name])) for name, module in layers.items()]
    try:
        policy.eval().requires_grad_()  # frozen encoders, too
        loss, _ = policy.loss(_blank_batch(policy))
        gradients = torch.autograd.grad(loss.sum(), list(zeros.values()), allow_unused=True)
    finally:
        before.restore(policy)
        for hook in hooks:
            hook.remove()
    return [name for name, gradient in zip(layers, gradients, strict=True) if gradient is not None]


def _is_adaptable(module: nn.Module) -> bool:
    """Not a convolution with groups or dilation, whose weight is no product of peft's two matrices."""
    plain = not isinstance(module, nn.Conv2d) or (module.groups == 1 and set(module.dilation) == {1})
    return plain and isinstance(module, LAYERS)


def _blank_batch(policy: Policy) -> Batch:
    """One sample of zeros, of the policy's sizes, on its device."""
    features, cameras = policy.features, policy.history * len(policy.features.cameras)
    number = torch.zeros((), dtype=policy.normalization.state_mean.dtype)
    state, actions = np.zeros((1, features.state_size), np.float32), np.zeros((1, features.action_size), np.float32)
    episode = {"episode_starts": np.array([0]), "episode_ends": np.array([1])}
    data = SimpleNamespace(features=features, states=state, actions=actions, **episode)  # an EpisodeData (parts.py)
    targets = {name: rows for loss in policy.auxiliary.values() for name, rows in loss.targets(data).items()}
    observation = Observation(
        torch.zeros(1, cameras, 3, *features.image_size, dtype=torch.uint8),
        *policy.tokenize([""]),
        number.expand(1, policy.history * features.state_size),
    )
    batch = Batch(
        observation,
        number.expand(1, policy.horizon, features.action_size),
        torch.zeros(1, policy.horizon, dtype=torch.bool),
        {name: torch.from_numpy(rows) for name, rows in targets.items()},
    )
    return tree_map(lambda tensor: tensor.to(policy.device), batch)
