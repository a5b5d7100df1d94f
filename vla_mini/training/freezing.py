"""Freezing: named parts of a policy that do not learn."""

from collections.abc import Sequence

from torch import nn

from vla_mini.build import nearest


def freeze(policy: nn.Module, names: Sequence[str]) -> None:
    """No gradient, no update and eval mode (dropout off, running statistics kept) for each named submodule.

    Names are those of `policy.named_modules()`: `vision`, `projection.vision`, `trunk.keys` ... Lightning keeps the mode that
    a module has before `fit`. Raises ValueError for an unknown name, or where nothing is left that learns.
    """
    modules = dict(policy.named_modules())
    for name in names:
        if name not in modules or not name:
            raise ValueError(f"freeze: the policy has no part {name!r}{nearest(name, modules.keys() - {''})}")
        modules[name].requires_grad_(False).eval()
    if not any(parameter.requires_grad for parameter in policy.parameters()):
        raise ValueError(f"freeze={list(names)}: nothing is left that learns")
