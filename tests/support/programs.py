"""The programs that roles bring to hosts, as modules: they stand alone, in no package."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType


def load(name: str, role: str = "app") -> ModuleType:
    """Import ``roles/<role>/files/<name>.py``."""
    path = Path(__file__).parents[2] / f"roles/{role}/files/{name}.py"
    spec = importlib.util.spec_from_file_location(f"tornado_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
