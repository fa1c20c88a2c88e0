"""Refuse code that reaches what an app's user can change by other ways than ``plugins/module_utils/core/tree.py``.

``python3 -m tools.check_paths [FILE ...]``

It looks at each file of the collection that knows where an app's directories lie, by an import of ``Layout``. Refused are

1. functions that follow links, or that are recursive: ``shutil.rmtree``, ``os.walk``, ``os.chown``, ``Path.chmod`` and the like;
2. access by a path to what lies in a directory that an app's user, or the one that builds it, may write.

A path is known by what it is made of: ``layout.run(slot) / name``, ``layout.socket(...)``, ``layout.shared.iterdir()``, also by
way of a variable of the same function. There is no list of exceptions: what has to be done is a function of tree.py.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
TREE = ROOT / "plugins/module_utils/core/tree.py"

#: Functions of modules that are refused, whatever they are called with.
FUNCTIONS = {
    "shutil": {"rmtree", "copytree", "chown", "move", "copy", "copy2", "copymode", "copystat"},
    "os": {"walk", "fwalk", "chown", "lchown", "chmod", "lchmod", "removedirs", "renames"},
}
#: Methods of paths that are refused, whatever the path is.
METHODS = {"chmod", "lchmod", "rglob", "walk"}

#: Members of Layout that are directories which an app's user, or its builder, may write, and those that lie in one.
DIRECTORIES = {"run", "shared", "cache"}
INSIDE = {"socket", "starts"}

#: Methods of a path that lead from a directory to what it contains.
LISTS = {"iterdir", "glob"}
STEPS = {"joinpath", "with_name", "with_suffix", "with_stem"}

#: Methods by which a path is only reckoned with.
PURE = {"relative_to", "is_relative_to", "as_posix", "match", "is_absolute", *STEPS}

#: Modules whose functions reach files by paths.
REACHING = {"os", "shutil", "glob", "tarfile", "zipfile"}


def problems(code: str) -> Iterator[tuple[int, str]]:
    """Yield line and text of what is refused in the code of a module."""
    module = ast.parse(code)
    yield from _refused(module)
    for scope in ast.walk(module):
        if isinstance(scope, ast.FunctionDef | ast.Module):
            yield from _reached(scope)


def knows_apps(code: str) -> bool:
    """Say whether a module imports Layout, by which it knows the paths of apps."""
    imports = (node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.ImportFrom))
    return any(name.name == "Layout" for node in imports if (node.module or "").endswith("layout") for name in node.names)


def _refused(module: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(module):
        if isinstance(node, ast.ImportFrom) and node.module in FUNCTIONS:
            for name in node.names:
                if name.name in FUNCTIONS[node.module]:
                    yield node.lineno, f"{node.module}.{name.name}"
        if not isinstance(node, ast.Attribute):
            continue
        owner = node.value.id if isinstance(node.value, ast.Name) else ""
        if node.attr in FUNCTIONS.get(owner, METHODS if owner not in FUNCTIONS else set()):
            yield node.lineno, f"{owner or '...'}.{node.attr}"


class _Paths:
    """What is known in a function: the variables that are directories of a user's, and those that are paths in one."""

    def __init__(self) -> None:
        self.directories: set[str] = set()
        self.inside: set[str] = set()

    def is_directory(self, node: ast.expr) -> bool:
        return _is_member(node, DIRECTORIES) or (isinstance(node, ast.Name) and node.id in self.directories)

    def is_inside(self, node: ast.expr) -> bool:
        if isinstance(node, ast.Name):
            return node.id in self.inside
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
            return self.is_directory(node.left) or self.is_inside(node.left)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in STEPS:
            return self.is_directory(node.func.value) or self.is_inside(node.func.value)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("Path", "str"):
            known = [one for one in node.args if self.is_directory(one) or self.is_inside(one)]
            return any(self.is_inside(one) for one in known) or (bool(known) and len(node.args) > 1)
        if isinstance(node, ast.JoinedStr):
            parts = [part.value for part in node.values if isinstance(part, ast.FormattedValue)]
            return any(self.is_inside(part) or (self.is_directory(part) and len(node.values) > 1) for part in parts)
        return _is_member(node, INSIDE)

    def learn(self, target: ast.expr, value: ast.expr) -> None:
        """Remember a variable that is given a path."""
        if isinstance(target, ast.Name):
            if self.is_directory(value):
                self.directories.add(target.id)
            elif self.is_inside(value):
                self.inside.add(target.id)


def _is_member(node: ast.expr, names: set[str]) -> bool:
    """Say whether an expression is a member of a Layout, which is called so wherever there is one."""
    member = node.func if isinstance(node, ast.Call) else node
    if not isinstance(member, ast.Attribute) or member.attr not in names:
        return False
    owner = member.value
    return (isinstance(owner, ast.Name) and owner.id == "layout") or (isinstance(owner, ast.Attribute) and owner.attr == "layout")


def _reached(scope: ast.FunctionDef | ast.Module) -> Iterator[tuple[int, str]]:
    """Yield each access by a path to what lies in a directory of a user's."""
    own = list(_own_nodes(scope))
    paths = _Paths()
    for node in own:
        if isinstance(node, ast.Assign):
            for target in node.targets:
                paths.learn(target, node.value)
        elif isinstance(node, ast.AnnAssign | ast.NamedExpr) and node.value is not None:
            paths.learn(node.target, node.value)
    for node in own:
        if isinstance(node, ast.Call) and (_is_method(node.func, paths) or _is_function(node, paths)):
            yield node.lineno, ast.unparse(node)


def _is_method(called: ast.expr, paths: _Paths) -> bool:
    """Say whether a method of a path is called that reaches what lies in a directory of a user's."""
    if not isinstance(called, ast.Attribute):
        return False
    if paths.is_directory(called.value):
        return called.attr in LISTS
    return paths.is_inside(called.value) and called.attr not in PURE


def _is_function(call: ast.Call, paths: _Paths) -> bool:
    """Say whether a function that reaches files is called with such a path."""
    root = call.func
    while isinstance(root, ast.Attribute):
        root = root.value
    reaching = isinstance(root, ast.Name) and (root.id in REACHING if root is not call.func else root.id == "open")
    return reaching and any(paths.is_inside(one) for one in call.args)


def _own_nodes(scope: ast.FunctionDef | ast.Module) -> Iterator[ast.AST]:
    """Yield the nodes of a function, or of a module, without those of functions in it."""
    waiting: list[ast.AST] = list(scope.body)
    while waiting:
        node = waiting.pop(0)
        yield node
        if not isinstance(node, ast.FunctionDef):
            waiting += ast.iter_child_nodes(node)


def main(arguments: Sequence[str]) -> int:
    """Check the files that are named, or all of the collection; return 1 if something is refused."""
    files = [Path(one) for one in arguments] or [*ROOT.glob("plugins/*/*.py"), *ROOT.glob("roles/*/files/*.py")]
    found = 0
    for file in sorted(files):
        code = file.read_text()
        if file == TREE or not (arguments or knows_apps(code)):
            continue
        for line, text in sorted(set(problems(code))):
            found += 1
            sys.stderr.write(f"{file.relative_to(ROOT) if file.is_relative_to(ROOT) else file}:{line}: {text}\n")
    if found:
        sys.stderr.write("What an app's user can change is reached by plugins/module_utils/core/tree.py only.\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
