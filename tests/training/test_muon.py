"""Muon against torch's own, and its Adam against torch's AdamW."""

import pytest
import torch

from vla_mini.training import muon
from vla_mini.training.muon import Muon, orthogonalize


def trained(make_optimizer, shape: tuple[int, ...]) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(shape, generator=generator))
    optimizer = make_optimizer([weight])
    for _ in range(5):
        weight.grad = torch.randn(shape, generator=generator)
        optimizer.step()
    return weight.detach()


@pytest.fixture(params=[True, False], ids=["bf16", "float32"])
def native(request, monkeypatch):
    """Whether the processor multiplies bf16 natively."""
    monkeypatch.setattr(muon, "multiplies_bf16", lambda device: request.param)
    return request.param


def test_matrices_are_updated_as_by_torchs_muon(native):
    for shape in ((8, 20), (20, 8)):
        ours = trained(lambda p: Muon([{"params": p, "layers": True}], lr=0.05, weight_decay=0.1), shape)
        torchs = trained(lambda p: torch.optim.Muon(p, lr=0.05, weight_decay=0.1, momentum=0.95), shape)
        assert (ours - torchs).norm() / torchs.norm() < 1e-2  # which iterates in bf16


def test_the_rest_is_updated_as_by_adamw():
    ours = trained(lambda p: Muon([{"params": p}], adam_lr=0.01, betas=(0.9, 0.99), weight_decay=0.1), (7,))
    torchs = trained(lambda p: torch.optim.AdamW(p, lr=0.01, betas=(0.9, 0.99), weight_decay=0.1), (7,))
    torch.testing.assert_close(ours, torchs)


def test_convolutions_are_matrices_of_their_outputs():
    as_convolution = trained(lambda p: Muon([{"params": p, "layers": True}]), (6, 4, 3, 3)).flatten(1)
    as_matrix = trained(lambda p: Muon([{"params": p, "layers": True}]), (6, 36))
    torch.testing.assert_close(as_convolution, as_matrix, rtol=1e-3, atol=1e-4)


def test_orthogonalize_makes_the_singular_values_equal(native):
    matrix = torch.randn(12, 30, generator=torch.Generator().manual_seed(0))
    before, after = torch.linalg.svdvals(matrix), torch.linalg.svdvals(orthogonalize(matrix[None])[0])
    assert before.max() / before.min() > 2
    assert after.min() > 0.6 and after.max() < 1.3
    inexact = orthogonalize(matrix[None])[0]
    assert torch.equal(inexact, inexact.bfloat16().float()) == native
