"""Costs of the three modes, and both ways to count memory."""

import torch

from tests.factory import make_observation, make_policy
from vla_mini.autograd.inference import compare_modes, count_saved_bytes, peak_memory


def test_actions_are_equal_and_only_grad_mode_saves_tensors():
    policy = make_policy()
    costs, equal = compare_modes(policy, make_observation(policy, 1), repeats=2)
    assert equal and list(costs) == ["grad", "no_grad", "inference_mode"]
    assert costs["grad"].saved_bytes > 10_000
    assert costs["no_grad"].saved_bytes == costs["inference_mode"].saved_bytes == 0
    assert costs["grad"].peak_bytes > costs["no_grad"].peak_bytes > 0
    assert all(cost.milliseconds > 0 for cost in costs.values())


def test_unequal_actions_are_reported():
    policy = make_policy()
    predict = policy.action.predict
    policy.action.predict = lambda context, noise=None: predict(context, noise) + torch.rand(())
    assert not compare_modes(policy, make_observation(policy, 1), repeats=1)[1]


def test_peak_memory_counts_what_is_alive_at_once():
    mebi = 2**20

    def two_at_once():
        first = torch.ones(mebi // 4)
        second = first + 1
        del first
        third = second * 2
        return third.view(2, -1).t()  # a view needs no new memory

    assert peak_memory(two_at_once) == 2 * mebi
    assert peak_memory(lambda: [torch.ones(mebi // 4) for _ in range(5)]) == 5 * mebi
    assert peak_memory(lambda: None) == 0


def test_peak_memory_includes_backward_and_torch_func():
    x = torch.ones(1000, requires_grad=True)
    assert peak_memory(lambda: x.exp().sum().backward()) >= 2 * 4000
    assert peak_memory(lambda: torch.func.jacrev(torch.exp)(x.detach())) >= 1000 * 4000


def test_saved_bytes_by_hand():
    layer = torch.nn.Linear(3, 5)
    with count_saved_bytes(layer) as saved:
        torch.relu(layer(torch.ones(7, 3)))
    assert sum(saved) == 4 * (7 * 3 + 7 * 5)  # the input and the ReLU's output; not the weight
