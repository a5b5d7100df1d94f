"""What a page was made with: the machine and the packages, as lines of text."""

import importlib.metadata
import os
import platform

PACKAGES = ("vla-mini", "torch", "lightning", "transformers", "gymnasium", "numpy")


def versions() -> str:
    found = {"python": platform.python_version(), "platform": platform.platform(), "cores": str(os.cpu_count())}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    width = max(map(len, found))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in found.items())
