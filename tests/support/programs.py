"""Imports the programs that roles install on hosts, which are not part of a package."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType


def load(name: str, role: str = "app") -> ModuleType:
    """Import ``roles/<role>/files/<name>.py``, or a module of a package there such as ``runner.options``."""
    top, _dot, module = name.partition(".")
    files = Path(__file__).parents[2] / f"roles/{role}/files"
    path = files / top / "__init__.py" if module else files / f"{top}.py"
    spec = importlib.util.spec_from_file_location(f"tornado_{top}", path)
    assert spec is not None
    assert spec.loader is not None
    if not module or spec.name not in sys.modules:
        sys.modules[spec.name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[spec.name])
    return importlib.import_module(f"{spec.name}.{module}") if module else sys.modules[spec.name]
