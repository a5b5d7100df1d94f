"""Freezing: named parts of a policy that do not learn, for good or until later."""

from collections.abc import Collection, Mapping, Sequence

from torch import nn

from vla_mini.build import nearest


def freeze(policy: nn.Module, names: Sequence[str]) -> None:
    """No gradient, no update and eval mode (dropout off, running statistics kept) for each named submodule.

    Names are those of `policy.named_modules()`: `vision`, `projection.vision`, `trunk.keys` ... Lightning keeps the mode that
    a module has before `fit`. Raises ValueError for an unknown name, or where nothing is left that learns.
    """
    for part in parts(policy, names, setting="freeze"):
        part.requires_grad_(False).eval()
    if not any(parameter.requires_grad for parameter in policy.parameters()):
        raise ValueError(f"freeze={list(names)}: nothing is left that learns")


def parts(policy: nn.Module, names: Collection[str], *, setting: str) -> list[nn.Module]:
    """The submodules of these names; ValueError, which begins with the `setting` that named them, for an unknown one."""
    modules = {name: module for name, module in policy.named_modules() if name}
    for name in names:
        if name not in modules:
            raise ValueError(f"{setting}: the policy has no part {name!r}{nearest(name, modules)}")
    return [modules[name] for name in names]


def refuse_frozen(policy: nn.Module, names: Collection[str], *, setting: str) -> None:
    """ValueError where the `setting` is about how parts of these names learn, and one of them is frozen for good."""
    for name, part in zip(names, parts(policy, names, setting=setting), strict=True):
        if not any(parameter.requires_grad for parameter in part.parameters()):
            raise ValueError(f"{setting}.{name}: nothing in it learns: look at freeze, at lora and at {name}.frozen")


class Learning:
    """Which parameters of a policy learn and which of its modules are in training mode, to be restored after freezing."""

    def __init__(self, policy: nn.Module):
        self._learns = {parameter: parameter.requires_grad for parameter in policy.parameters()}
        self._training = {module: module.training for module in policy.modules()}

    def restore(self, part: nn.Module) -> None:
        """Let all within `part` be as it was."""
        for parameter in part.parameters():
            parameter.requires_grad_(self._learns[parameter])
        for module in part.modules():
            module.training = self._training[module]


def check_stages(policy: nn.Module, steps: Mapping[str, int]) -> None:
    """ValueError for parts to unfreeze at a step that do not exist or would not learn then, or where nothing learns from the
    start."""
    refuse_frozen(policy, steps, setting="unfreeze_at")
    later = {parameter for part in parts(policy, steps, setting="unfreeze_at") for parameter in part.parameters()}
    if not any(parameter.requires_grad and parameter not in later for parameter in policy.parameters()):
        raise ValueError(f"unfreeze_at={dict(steps)}: nothing is left that learns from the start")
