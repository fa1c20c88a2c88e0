"""Entry point of ``python runner``.

Python puts this directory on the module search path, where its modules would shadow those of the application. The package is
imported under a private name instead.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

DIRECTORY = Path(__file__).resolve().parent
PACKAGE = "_tornado_runner"


def main() -> int:
    """Run the program and return its exit status."""
    sys.path[:] = [path for path in sys.path if Path(path).resolve() != DIRECTORY]
    spec = importlib.util.spec_from_file_location(PACKAGE, DIRECTORY / "__init__.py")
    if spec is None:
        raise ImportError(f"cannot import {DIRECTORY}")
    sys.modules[PACKAGE] = importlib.util.module_from_spec(spec)
    status: int = importlib.import_module(f"{PACKAGE}.serving").main()
    return status


if __name__ == "__main__":
    sys.exit(main())
