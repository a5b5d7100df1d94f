"""Memory that a step frees is the next step's, without the system in between."""

import platform
import resource

import pytest
import torch

from vla_mini.training.memory import keep_freed_memory


def page_faults() -> int:
    """Of five steps that each hold 80 MB for a moment: a hundred thousand pages of 4 kB."""
    for step in range(6):
        if step == 1:  # the first one asks for memory in any case
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        blocks = [torch.zeros(2 << 20) for _ in range(10)]
        del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's malloc is told")
def test_freed_memory_is_used_again():
    keep_freed_memory()
    assert page_faults() < 10_000
