"""Low-rank adapters (LoRA, Hu et al. 2021, arXiv:2106.09685) on layers of a policy, made by the peft library.

    y = W x  ->  y = W x + alpha / rank · B (A x)      A: rank x in, random; B: out x rank, at first zero

A layer with an adapter holds the two matrices, and its own weights under `base_layer`. In a saved policy it goes by its plain
names again: the product is added to W (`save` = merged), or the matrices lie in a file of their own (apart).
"""

import re
from collections.abc import Mapping, Sequence
from importlib.util import find_spec

import torch
from torch import Tensor

from vla_mini.policy import Policy


def require_peft() -> None:
    if find_spec("peft") is None:
        raise ValueError("low-rank adapters need the peft library: pip install -e '.[lora]'")


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
