"""LoRA in training: targets -> the layers that get an adapter (lora.py). The adapters are trained, and all else is frozen."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map

from vla_mini.autograd.batches import blank_batch, forward_hooks
from vla_mini.finetuning.freezing import TrainableParameters, submodules
from vla_mini.policy import Policy
from vla_mini.utils import lora
from vla_mini.utils.errors import did_you_mean

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
            children, last = dict(policy.named_children()), (name.rpartition(".")[2] for name in modules)
            hint = did_you_mean(target, dict.fromkeys([*children, *modules, *last]))
            raise ValueError(f"lora.targets: the policy has no module {target!r}; {hint}")
        layers = [layer for layer in used if any(f"{layer}.".startswith(f"{name}.") for name in named)]
        if not layers:
            kind = type(modules[named[0]]).__name__
            raise ValueError(f"lora.targets: {target} ({kind}) is and holds no {ADAPTABLE} that the loss depends on")
        found |= dict.fromkeys(layers)
    return list(found)


def _used_layers(policy: Policy) -> list[str]:
    """The layers that the loss depends on: a zero is added to their output, and has to have a gradient."""
    layers = [name for name, module in policy.named_modules() if _is_adaptable(module)]
    zeros = {name: torch.zeros((), device=policy.device, requires_grad=True) for name in layers}
    batch, before = tree_map(lambda tensor: tensor.to(policy.device), blank_batch(policy)), TrainableParameters(policy)
    try:
        policy.eval().requires_grad_()  # frozen encoders, too
        with forward_hooks(policy, lambda name, _inputs, output: output + zeros[name] if name in zeros else None):
            loss, _ = policy.loss(batch)
        gradients = torch.autograd.grad(loss.sum(), list(zeros.values()), allow_unused=True)
    finally:
        before.restore(policy)
    return [name for name, gradient in zip(layers, gradients, strict=True) if gradient is not None]


def _is_adaptable(module: nn.Module) -> bool:
    """Not a convolution with groups or dilation, whose weight is no product of peft's two matrices."""
    plain = not isinstance(module, nn.Conv2d) or (module.groups == 1 and set(module.dilation) == {1})
    return plain and isinstance(module, LAYERS)
