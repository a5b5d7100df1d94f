"""Fixtures for all tests. Shapes and types are checked by jaxtyping and beartype in every call of every test."""

import os
import signal

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"
if "PYTEST_XDIST_WORKER" in os.environ:  # several processes share the cores, and threads that wait for one another cost most
    os.environ["OMP_NUM_THREADS"] = "1"

from jaxtyping import install_import_hook

install_import_hook("vla_mini", "beartype.beartype")  # before anything of the package is imported

import pytest  # noqa: E402
import torch  # noqa: E402

from tests.factory import OTHERS  # noqa: E402

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # a shell starts what is to run in the background so, deaf to Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(params=["default", *(f"{group}={name}" for group, name in OTHERS)])
def variant(request) -> dict[str, str]:
    """Each variant that configs/ holds, found by itself, with the default parts around it, and once those alone."""
    group, _, name = request.param.partition("=")
    return {group: name} if name else {}
