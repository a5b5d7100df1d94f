"""Freezing: named parts of a policy that are not trained, for good or until an optimizer step."""

from collections.abc import Collection, Mapping, Sequence

from torch import nn

from vla_mini.utils.errors import did_you_mean


def freeze(policy: nn.Module, names: Sequence[str]) -> None:
    """No gradient, no update and eval mode (no dropout, running statistics stay) for each named submodule.

    Names are those of `policy.named_modules()`: `vision`, `projection.vision`, `trunk.keys` ... Lightning keeps the mode that
    a module has before `fit`. Raises ValueError for an unknown name, or where nothing trainable is left.
    """
    for module in submodules(policy, names, setting="freeze"):
        module.requires_grad_(False).eval()
    if not any(parameter.requires_grad for parameter in policy.parameters()):
        raise ValueError(f"freeze=[{','.join(names)}]: nothing trainable is left")


def submodules(policy: nn.Module, names: Collection[str], *, setting: str) -> list[nn.Module]:
    """The submodules of these names. ValueError, which begins with the `setting` that named them, for an unknown one."""
    modules = {name: module for name, module in policy.named_modules() if name}
    for name in names:
        if name not in modules:
            raise ValueError(f"{setting}: the policy has no part {name!r}; {did_you_mean(name, modules)}")
    return [modules[name] for name in names]


def check_trainable(policy: nn.Module, names: Collection[str], *, setting: str) -> None:
    """ValueError where the `setting` is about the training of named submodules, and one of them is frozen for good."""
    for name, module in zip(names, submodules(policy, names, setting=setting), strict=True):
        if not any(parameter.requires_grad for parameter in module.parameters()):
            raise ValueError(f"{setting}.{name}: nothing in it is trainable; see freeze, lora and {name}.frozen")


def check_stages(policy: nn.Module, steps: Mapping[str, int]) -> None:
    """ValueError where `unfreeze_at` names parts that do not exist or are frozen for good, or leaves nothing to train."""
    check_trainable(policy, steps, setting="unfreeze_at")
    later = {parameter for module in submodules(policy, steps, setting="unfreeze_at") for parameter in module.parameters()}
    if not any(parameter.requires_grad and parameter not in later for parameter in policy.parameters()):
        raise ValueError(f"unfreeze_at={dict(steps)}: nothing is trainable from the start")


class TrainableParameters:
    """Which parameters of a policy are trainable and which of its modules are in training mode, to restore both."""

    def __init__(self, policy: nn.Module):
        self._requires_grad = {parameter: parameter.requires_grad for parameter in policy.parameters()}
        self._training = {module: module.training for module in policy.modules()}

    def restore(self, module: nn.Module) -> None:
        """Let everything in `module` be as it was."""
        for parameter in module.parameters():
            parameter.requires_grad_(self._requires_grad[parameter])
        for child in module.modules():
            child.training = self._training[child]
