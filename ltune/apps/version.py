"""``ltune version``: what is installed, without importing any of it."""

import sys
from importlib.metadata import PackageNotFoundError, version

from ltune import __version__

PACKAGES = ["torch", "lightning", "transformers", "peft", "bitsandbytes", "datasets", "tokenizers", "safetensors", "flash-attn-4"]


def main(argv: list[str]) -> int:
    """Print one line a package."""
    print(f"ltune {__version__}")
    print(f"python {sys.version.split()[0]}")
    for package in PACKAGES:
        print(package, installed(package))
    return 0


def installed(package: str) -> str:
    """Its version, or that it is missing."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
