"""Fix: what a rollout keeps in memory

rollout lets a policy act: it executes the first action of each predicted chunk, which moves the gripper, and returns the
states. Nobody will call backward, yet every step records a graph, and keeps all of it until the states are gone. Fix it: the
same states, and nothing saved for a backward pass at any time. Afterwards the policy can be trained as before.

    observation   of b samples (vla_mini/types.py); its state is b s
    steps         how many actions to execute
    returns       steps b s, the state after each step

Hint: what the states were computed from is kept alive by their grad_fn. Cutting a graph differs from not recording it.

Read first: docs/autograd.md, sections 12 and 13
"""

import torch
from torch import Tensor

from vla_mini.exercises.compare import WrongAnswerError, compare, saved_tensors
from vla_mini.policy import Policy
from vla_mini.testing import FEATURES, make_observation, make_policy
from vla_mini.types import Observation


# solution:
# Without no_grad, each state depends on the one before it, and with it on all activations of all steps: memory grows with the
# number of steps. `policy.act` in place of `policy.predict_chunk` does the same: it is decorated with no_grad.
# `detach` in each step frees the graph of that step, but only after it was recorded and its activations were saved.
@torch.no_grad()
# task:
# end
def rollout(policy: Policy, observation: Observation, steps: int) -> Tensor:
    states = []
    for _ in range(steps):
        chunk = policy.predict_chunk(observation)
        observation = observation._replace(state=observation.state + 0.1 * chunk[:, 0])
        states.append(observation.state)
    return torch.stack(states)


# ---- judge


def check(function) -> str:
    policy = make_policy(features=FEATURES._replace(image_size=(16, 16)), dtype=torch.float64)
    trainable = [parameter.requires_grad for parameter in policy.parameters()]
    for size, steps in ((2, 3), (1, 2), (3, 5)):
        observation = make_observation(policy, size, seed=size)
        right, state = [], observation.state
        for _ in range(steps):
            state = state + 0.1 * policy.act(observation._replace(state=state))[:, 0]
            right.append(state)
        with torch.enable_grad(), saved_tensors() as (kept, shapes):
            found = function(policy, observation, steps)
            left, enabled = len(kept), torch.is_grad_enabled()
        compare("the states", found, torch.stack(right), look="the file as it was computed the right states")
        if [parameter.requires_grad for parameter in policy.parameters()] != trainable:
            look = "leave requires_grad as it is: no_grad switches recording off for a block of code alone"
            raise WrongAnswerError("afterwards, parameters of the policy no longer require a gradient", look)
        if not enabled:
            look = "use torch.no_grad() in a with statement, or as a decorator: gradients are on again where the block ends"
            raise WrongAnswerError("afterwards, gradients are still switched off for the whole program", look)
        if shapes:
            look = "detach cuts a graph that has been recorded; no_grad does not record it"
            text = f"in {steps} steps {len(shapes)} tensors were saved for backward, the first of shape {shapes[0]}"
            raise WrongAnswerError(f"{text}; when the rollout ended, {left} were still kept", look)
        if found.requires_grad:
            look = "everything from which the states are computed belongs into the block"
            raise WrongAnswerError(f"the states are part of a graph ({found.grad_fn.name()})", look)
    return "3 rollouts: nothing was saved for backward"
