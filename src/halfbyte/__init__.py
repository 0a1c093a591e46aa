"""halfbyte: fine-tune open language models on the machine at hand, and prove the result.

The public Python API is loaded on first use, so that importing the package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import Any

from halfbyte.importing import uncollected

__version__ = "0.1.0"
__all__ = ["__version__", "api"]


def __getattr__(name: str) -> Any:
    """`halfbyte.api` on first use: it pulls in torch."""
    if name == "api":
        with uncollected():
            return importlib.import_module("halfbyte.api")
    raise AttributeError(f"module 'halfbyte' has no attribute {name!r}")
