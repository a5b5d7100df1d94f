"""Fix: freezing that leaks

train_head is meant to train the head alone: the encoder's parameters and buffers have to stay as they are, bit by bit. Both
were trained together before, by this optimizer, which has momentum and weight decay. The encoder changes nonetheless, for three
reasons. Fix it; the head takes one step of this optimizer for each batch, on the features of the encoder in eval mode.

    encoder     holds a BatchNorm; in training mode, as the head is
    head        a linear layer
    optimizer   of the parameters of both
    batches     pairs of inputs b d and actions b a
    returns     nothing

Hint: an optimizer skips parameters whose `.grad` is None, and only these. requires_grad is about parameters, not buffers.

Read first: docs/autograd.md, sections 11, 14 and 17
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from vla_mini.exercises.compare import WrongAnswerError, compare


def train_head(encoder: nn.Module, head: nn.Module, optimizer: Optimizer, batches: list[tuple[Tensor, Tensor]]) -> None:
    # solution:
    # 1. Before the first backward: after it, the encoder already has a gradient, and the first step uses it.
    encoder.requires_grad_(False)
    # 2. requires_grad is about parameters. A BatchNorm in training mode updates its running statistics in every forward pass.
    encoder.eval()
    for inputs, actions in batches:
        # 3. `.grad` = None, the default. With a gradient of zero, momentum and weight decay still change the weights.
        optimizer.zero_grad()
        loss = F.mse_loss(head(encoder(inputs)), actions)
        loss.backward()
        optimizer.step()
    # task:
    # for inputs, actions in batches:
    #     optimizer.zero_grad(set_to_none=False)
    #     loss = F.mse_loss(head(encoder(inputs)), actions)
    #     loss.backward()
    #     encoder.requires_grad_(False)
    #     optimizer.step()
    # end


# ---- judge

LOOK = {
    "running": "a BatchNorm in training mode updates its running statistics in every forward pass, trainable or not",
    "num_batches": "a BatchNorm in training mode counts its batches in every forward pass, trainable or not",
    "": "the optimizer changed it: by the gradient of the first backward, if requires_grad is set after it, or by momentum and "
    "weight decay, which a gradient of zero does not stop; .grad has to be None when the optimizer steps",
}


def pair(seed: int) -> tuple[nn.Module, nn.Module, Optimizer]:
    """An encoder, a head and their optimizer, after two steps of common training."""
    torch.manual_seed(seed)
    encoder = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.ReLU()).double()
    head = nn.Linear(7, 3).double()
    optimizer = torch.optim.SGD([*encoder.parameters(), *head.parameters()], lr=0.1, momentum=0.9, weight_decay=0.01)
    for inputs, actions in samples(2):
        optimizer.zero_grad()
        F.mse_loss(head(encoder(inputs)), actions).backward()
        optimizer.step()
    return encoder, head, optimizer  # with the gradients of the last step


def samples(count: int) -> list[tuple[Tensor, Tensor]]:
    return [(torch.randn(4, 5, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)) for _ in range(count)]


def check(function) -> str:
    for seed, steps in ((0, 3), (1, 2), (2, 5)):
        encoder, head, optimizer = pair(seed)
        batches = samples(steps)
        before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
        function(encoder, head, optimizer, [(inputs.clone(), actions.clone()) for inputs, actions in batches])
        for name, tensor in encoder.state_dict().items():
            if not torch.equal(tensor, before[name]):
                look = next(text for part, text in LOOK.items() if part in name)
                change = (tensor - before[name]).abs().max().item()
                text = f"after {steps} batches, encoder.{name} has changed, by up to {change:.2g}"
                raise WrongAnswerError(text, look)
        twin, right, twin_optimizer = pair(seed)
        twin.eval().requires_grad_(False)
        twin_optimizer.zero_grad()
        for inputs, actions in batches:
            right.zero_grad()
            F.mse_loss(right(twin(inputs)), actions).backward()
            twin_optimizer.step()
        for name, parameter in head.named_parameters():
            look = "one zero_grad, backward and step of this optimizer for each batch; the encoder in eval mode"
            text = f"after {steps} batches, head.{name}"
            compare(text, parameter.detach(), right.get_parameter(name).detach(), look=look)
    return "3 trainings: the encoder is unchanged, the head as it should be"
