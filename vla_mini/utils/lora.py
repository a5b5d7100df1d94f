"""Low-rank adapters (LoRA, Hu et al. 2021, arXiv:2106.09685) on layers of a policy, made by the peft library.

    y = W x  ->  y = W x + alpha / rank · B (A x)      A: rank x in, random; B: out x rank, at first zero

A layer with an adapter holds the two matrices, and its own weights under `base_layer`. A saved policy has the plain names
again: the product is added to W (`save` = merged), or the matrices are kept in a file of their own (separate).
`policy` is any module with an attribute `lora`: the settings of its adapters, or None.
"""

import re
from collections.abc import Mapping, Sequence
from importlib.util import find_spec

import torch
from torch import Tensor, nn


def require_peft() -> None:
    if find_spec("peft") is None:
        raise ValueError("low-rank adapters need the peft library: pip install -e '.[lora]'")


def inject(policy: nn.Module, *, layers: Sequence[str], rank: int, alpha: float, dropout: float, save: str) -> None:
    """Give each of `layers` an adapter, which at first changes nothing. It is trainable if its layer is."""
    require_peft()
    from peft import LoraConfig, inject_adapter_in_model

    trainable = {name for name, parameter in policy.named_parameters() if parameter.requires_grad}
    names = "|".join(map(re.escape, layers))  # to be matched in full: peft matches lists with the ends of names
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=names)
    inject_adapter_in_model(config, policy)
    policy.lora = {"layers": list(layers), "rank": rank, "alpha": alpha, "dropout": dropout, "save": save}
    for name, parameter in policy.named_parameters():  # peft has frozen all others
        layer = name.partition(".lora_")[0]
        parameter.requires_grad_((f"{layer}.weight" if is_adapter(policy, name) else _plain(name)) in trainable)


def is_adapter(policy: nn.Module, name: str) -> bool:
    """Whether the parameter `name` belongs to an adapter."""
    return policy.lora is not None and name.startswith(tuple(f"{layer}.lora_" for layer in policy.lora["layers"]))


def adapters(policy: nn.Module) -> dict[str, Tensor]:
    """The matrices of all adapters, by their names in the state dict."""
    return {name: tensor for name, tensor in policy.state_dict().items() if is_adapter(policy, name)}


@torch.no_grad()
def plain_weights(policy: nn.Module, *, merged: bool) -> dict[str, Tensor]:
    """The state dict under the names that it has without adapters; `merged`: with their products added to the weights."""
    weights = {_plain(name): tensor for name, tensor in policy.state_dict().items() if not is_adapter(policy, name)}
    for layer in policy.lora["layers"] if merged and policy.lora else ():
        weights[f"{layer}.weight"] = weights[f"{layer}.weight"] + policy.get_submodule(layer).get_delta_weight("default")
    return weights


def load_adapters(policy: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put saved matrices into the adapters of `policy`; RuntimeError where they are not those of its layers."""
    if tensors.keys() != adapters(policy).keys():
        raise RuntimeError(f"the matrices are not those of the layers {', '.join(policy.lora['layers'])}")
    policy.load_state_dict(dict(tensors), strict=False)


def _plain(name: str) -> str:
    return name.replace(".base_layer.", ".")
