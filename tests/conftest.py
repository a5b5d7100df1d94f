"""Fixtures for all tests. In every call of every test jaxtyping and beartype check the modules that annotate tensors."""

import os
import shutil
import signal
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"
if "PYTEST_XDIST_WORKER" in os.environ:  # the workers share the cores, and threads that wait for one another cost the most
    os.environ["OMP_NUM_THREADS"] = "1"

from jaxtyping import install_import_hook

# All modules that import jaxtyping: in the others, which have no shapes to check, it would take a tenth of all tests' time.
ROOT = Path(__file__).parents[1]
FILES = [path for path in (ROOT / "vla_mini").rglob("*.py") if "jaxtyping" in path.read_text(encoding="utf-8")]
CHECKED = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in FILES]
install_import_hook(CHECKED, "beartype.beartype")  # has to come before the first import of the package

import pytest  # noqa: E402
import torch  # noqa: E402

from tests.factory import OTHERS  # noqa: E402

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # a shell starts background jobs with SIGINT ignored
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(params=["default", *(f"{kind}={name}" for kind, name in OTHERS)])
def variant(request) -> dict[str, str]:
    """The default parts, and each other variant in configs/ with the default parts around it."""
    kind, _, name = request.param.partition("=")
    return {kind: name} if name else {}


@pytest.fixture(scope="module")
def browser():
    """Debian's chromium, driven by playwright. Skips where either is missing. It ends with the module: as long as it runs, no
    other event loop can run in this thread."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="the package playwright is missing")
    if (chromium := shutil.which("chromium")) is None:
        pytest.skip("chromium is missing")
    with sync_api.sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path=chromium, args=arguments)
        yield browser
        browser.close()
