"""Muon: momentum SGD whose matrix updates are made orthogonal, so that all directions of a layer learn at one rate.

Keller Jordan et al. 2024 (https://kellerjordan.github.io/posts/muon). torch.optim.Muon does the same for matrices. This one
also takes convolutions, as matrices of (out, in x height x width), and updates all other parameters by Adam in the same step,
since Lightning's automatic optimization has one optimizer. On toy_pick it needs a third of the steps that AdamW needs: features
with small gradients, such as shapes beside colours, are learned from the start.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from vla_mini.utils.machine import multiplies_bf16


class Muon(torch.optim.Optimizer):
    """Groups marked `layers=True` (weights of linear and convolutional layers) are updated by Muon, the others by Adam.

    - lr: of the layers; an update has the spectral norm lr times sqrt(max(1, rows / columns)), whatever the gradient's size
    - momentum: of the layers (Nesterov's form)
    - adam_lr, betas, eps: of everything else
    - weight_decay: decoupled, as in AdamW
    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        lr: float = 0.05,
        momentum: float = 0.95,
        adam_lr: float = 8e-3,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ):
        defaults = {"layers": False, "momentum": momentum, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, {"lr": adam_lr} | defaults)
        for group in self.param_groups:
            if group["layers"]:
                group["lr"] = lr

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if parameters:
                torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
                (self._step_layers if group["layers"] else self._step_adam)(parameters, group)
        return loss

    def _step_layers(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        for shape in dict.fromkeys(parameter.shape for parameter in parameters):
            layers = [parameter for parameter in parameters if parameter.shape == shape]  # at once, which is faster
            updates = torch.stack([self._nesterov(layer, group["momentum"]).flatten(1) for layer in layers])
            rows, columns = updates.shape[1:]
            step = group["lr"] * max(1.0, rows / columns) ** 0.5
            for layer, update in zip(layers, orthogonalize(updates), strict=True):
                layer.add_(update.view_as(layer), alpha=-step)

    def _nesterov(self, parameter: Tensor, momentum: float) -> Tensor:
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        state["momentum"].lerp_(parameter.grad, 1 - momentum)
        return parameter.grad.lerp(state["momentum"], momentum)

    def _step_adam(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        beta1, beta2 = group["betas"]
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                state |= {"step": 0, "mean": torch.zeros_like(parameter), "square": torch.zeros_like(parameter)}
            state["step"] += 1
            state["mean"].lerp_(parameter.grad, 1 - beta1)
            state["square"].lerp_(parameter.grad.square(), 1 - beta2)
            mean = state["mean"] / (1 - beta1 ** state["step"])
            square = state["square"] / (1 - beta2 ** state["step"])
            parameter.addcdiv_(mean, square.sqrt().add_(group["eps"]), value=-group["lr"])


def orthogonalize(matrices: Float[Tensor, "b rows columns"], *, steps: int = 5) -> Float[Tensor, "b rows columns"]:
    """The nearest matrices with all singular values near 1, by Newton and Schulz's quintic iteration (in bf16 if fast).

    The coefficients trade exactness (singular values end between 0.7 and 1.2) for speed; see the source above.
    """
    wide = matrices.shape[1] <= matrices.shape[2]
    x = (matrices if wide else matrices.mT).to(torch.bfloat16 if multiplies_bf16(matrices.device.type) else torch.float32)
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(steps):  # x <- 3.4445 x + (-4.7750 gram + 2.0315 gram gram) x
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315)
        x = torch.baddbmm(x, polynomial, x, beta=3.4445)
    return (x if wide else x.mT).to(matrices.dtype)
