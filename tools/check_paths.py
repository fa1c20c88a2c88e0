"""Static check: files that an app's user can write must be accessed through ``plugins/module_utils/core/tree.py`` only.

``python3 -m tools.check_paths [FILE ...]``

All files of the collection that import ``Layout`` are checked. They must not contain

1. functions that follow links or are recursive, such as ``shutil.rmtree``, ``os.walk``, ``os.chown`` and ``Path.chmod``;
2. access by path to files in a directory that the user or the builder of an app can write.

Such paths are recognized by their expression, ``layout.run(slot) / name``, ``layout.socket(...)``, ``layout.shared.iterdir()``,
or through a variable of the same function. There is no list of exceptions: add a function to tree.py instead.

Unfinished builds belong to the builder until root copies them. The modules that build (``UNFINISHED``) may access them by path
only within ``with as_user(...)``, or below the line of ``take_ownership`` in the same function. They are recognized by the names
of variables and directories. The check does not follow calls: modules that get the path of a source as an argument must read it
through tree.py, or be called within ``with as_user(...)``.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
TREE = ROOT / "plugins/module_utils/core/tree.py"

#: Forbidden functions, by module.
FUNCTIONS = {
    "shutil": {"rmtree", "copytree", "chown", "move", "copy", "copy2", "copymode", "copystat"},
    "os": {"walk", "fwalk", "chown", "lchown", "chmod", "lchmod", "removedirs", "renames"},
}
#: Forbidden methods of all paths.
METHODS = {"chmod", "lchmod", "rglob", "walk"}

#: Members of Layout that are directories which an app's user or its builder can write, and members that are paths inside one.
DIRECTORIES = {"run", "shared", "cache"}
INSIDE = {"socket", "starts"}

#: Modules that build, with the names of their variables that are directories of the builder, and the names of such directories.
UNFINISHED = {
    "plugins/module_utils/building/environment.py": {"path", "source", "target"},
    "plugins/module_utils/building/release.py": {"source", "target"},
}
UNFINISHED_PARTS = {"package", "src"}

#: Methods that list a directory, and methods that return a path inside one.
LISTING = {"iterdir", "glob"}
JOINING = {"joinpath", "with_name", "with_suffix", "with_stem"}

#: Methods of a path that do not access the file system.
PURE = {"relative_to", "is_relative_to", "as_posix", "match", "is_absolute", *JOINING}

#: Modules whose functions access files by path.
FILE_MODULES = {"os", "shutil", "glob", "tarfile", "zipfile"}


def problems(code: str, unfinished: Collection[str] = ()) -> Iterator[tuple[int, str]]:
    """Yield the line and the source text of each violation in a module.

    :arg unfinished: names of variables that are directories of the builder.
    """
    module = ast.parse(code)
    yield from _forbidden_functions(module)
    for scope in ast.walk(module):
        if isinstance(scope, ast.FunctionDef | ast.Module):
            own = list(_own_nodes(scope))
            yield from _unsafe_accesses(own, own, _Variables())
            if unfinished:
                yield from _unsafe_accesses(own, _before_ownership(own), _Variables(unfinished, UNFINISHED_PARTS))


def imports_layout(code: str) -> bool:
    """Return whether a module imports Layout."""
    imports = (node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.ImportFrom))
    return any(name.name == "Layout" for node in imports if (node.module or "").endswith("layout") for name in node.names)


def _forbidden_functions(module: ast.Module) -> Iterator[tuple[int, str]]:
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


class _Variables:
    """The variables of a function that hold writable directories, or paths inside one."""

    def __init__(self, directories: Collection[str] = (), parts: Collection[str] = ()) -> None:
        self.directories = set(directories)
        self.inside: set[str] = set()
        self.parts = parts

    def is_directory(self, node: ast.expr) -> bool:
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div) and isinstance(node.right, ast.Constant):
            return node.right.value in self.parts
        return _is_member(node, DIRECTORIES) or (isinstance(node, ast.Name) and node.id in self.directories)

    def is_inside(self, node: ast.expr) -> bool:
        if isinstance(node, ast.Name):
            return node.id in self.inside
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
            return self.is_directory(node.left) or self.is_inside(node.left)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in JOINING:
            return self.is_inside(node.func.value) or (node.func.attr == "joinpath" and self.is_directory(node.func.value))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("Path", "str"):
            paths = [argument for argument in node.args if self.is_directory(argument) or self.is_inside(argument)]
            return any(self.is_inside(path) for path in paths) or (bool(paths) and len(node.args) > 1)
        if isinstance(node, ast.JoinedStr):
            parts = [part.value for part in node.values if isinstance(part, ast.FormattedValue)]
            return any(self.is_inside(part) or (self.is_directory(part) and len(node.values) > 1) for part in parts)
        return _is_member(node, INSIDE)

    def assign(self, target: ast.expr, value: ast.expr) -> None:
        """Record an assignment of such a path to a variable."""
        if isinstance(target, ast.Name):
            if self.is_directory(value):
                self.directories.add(target.id)
            elif self.is_inside(value):
                self.inside.add(target.id)


def _is_member(node: ast.expr, names: set[str]) -> bool:
    """Return whether an expression is a member of a Layout; by convention, its variables are named ``layout``."""
    member = node.func if isinstance(node, ast.Call) else node
    if not isinstance(member, ast.Attribute) or member.attr not in names:
        return False
    owner = member.value
    return (isinstance(owner, ast.Name) and owner.id == "layout") or (isinstance(owner, ast.Attribute) and owner.attr == "layout")


def _before_ownership(nodes: Sequence[ast.AST]) -> list[ast.AST]:
    """Return the nodes of a function up to its call of take_ownership, except those within ``with as_user(...)``."""
    calls = [node for node in nodes if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("take_ownership")]
    end = min((call.lineno for call in calls), default=sys.maxsize)
    blocks = [node for node in nodes if isinstance(node, ast.With) and any(map(_is_as_user, node.items))]
    excepted = {id(inner) for block in blocks for inner in ast.walk(block)}
    return [node for node in nodes if getattr(node, "lineno", 0) <= end and id(node) not in excepted]


def _is_as_user(item: ast.withitem) -> bool:
    return isinstance(item.context_expr, ast.Call) and ast.unparse(item.context_expr.func) == "as_user"


def _unsafe_accesses(own: Sequence[ast.AST], checked: Sequence[ast.AST], variables: _Variables) -> Iterator[tuple[int, str]]:
    """Yield each access by path to a file in a writable directory.

    :arg own: the nodes of a function or a module.
    :arg checked: those of them in which such access is forbidden.
    """
    for node in own:
        if isinstance(node, ast.Assign):
            for target in node.targets:
                variables.assign(target, node.value)
        elif isinstance(node, ast.AnnAssign | ast.NamedExpr) and node.value is not None:
            variables.assign(node.target, node.value)
    for node in checked:
        if isinstance(node, ast.Call) and (_is_unsafe_method(node.func, variables) or _is_unsafe_call(node, variables)):
            yield node.lineno, ast.unparse(node)


def _is_unsafe_method(method: ast.expr, variables: _Variables) -> bool:
    """Return whether a method of a path accesses files in a writable directory."""
    if not isinstance(method, ast.Attribute):
        return False
    if variables.is_inside(method.value):
        return method.attr not in PURE
    return variables.is_directory(method.value) and method.attr in LISTING


def _is_unsafe_call(call: ast.Call, variables: _Variables) -> bool:
    """Return whether a function that accesses files is called with such a path."""
    root = call.func
    while isinstance(root, ast.Attribute):
        root = root.value
    accesses_files = isinstance(root, ast.Name) and (root.id in FILE_MODULES if root is not call.func else root.id == "open")
    return accesses_files and any(variables.is_inside(argument) for argument in call.args)


def _own_nodes(scope: ast.FunctionDef | ast.Module) -> Iterator[ast.AST]:
    """Yield the nodes of a function or a module, except those of nested functions."""
    pending: list[ast.AST] = list(scope.body)
    while pending:
        node = pending.pop(0)
        yield node
        if not isinstance(node, ast.FunctionDef):
            pending += ast.iter_child_nodes(node)


def collection_files() -> list[Path]:
    """Return the files of the collection that run on hosts or on the controller."""
    return [*ROOT.glob("plugins/**/*.py"), *ROOT.glob("roles/*/files/**/*.py")]


def main(arguments: Sequence[str]) -> int:
    """Check the given files, or all files of the collection; return 1 if there are violations."""
    files = [Path(argument) for argument in arguments] or collection_files()
    violations = 0
    for file in sorted(files):
        code = file.read_text()
        if file == TREE or not (arguments or imports_layout(code)):
            continue
        name = str(file.relative_to(ROOT) if file.is_relative_to(ROOT) else file)
        for line, text in sorted(set(problems(code, UNFINISHED.get(name, ())))):
            violations += 1
            sys.stderr.write(f"{name}:{line}: {text}\n")
    if violations:
        sys.stderr.write("Access files that an app's user can write through plugins/module_utils/core/tree.py only.\n")
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
