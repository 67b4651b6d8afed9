"""The product's files, read once, for the laws about them."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SERVICES = ("ingress", "scheduler", "inference", "notifier", "cli")


def python_files() -> list[Path]:
    return sorted(path for folder in ("shared", "services") for path in (ROOT / folder).rglob("*.py"))


def lua_files() -> list[Path]:
    """Scripts and libraries."""
    return sorted(path for folder in ("shared", "services") for path in (ROOT / folder).rglob("*.lua"))


def lua_scripts() -> list[Path]:
    return [path for path in lua_files() if path.parent.name != "lib"]


def lua_libraries() -> list[Path]:
    """What scripts take in: no scripts themselves."""
    return [path for path in lua_files() if path.parent.name == "lib"]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def imports_of(path: Path) -> Iterator[str]:
    """Every module that a file imports, wherever in the file; `from a import b` gives a and a.b."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)} imports relatively"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def strings_of(path: Path) -> Iterator[str]:
    """Every string constant that is not a docstring (a string that stands alone)."""
    tree = tree_of(path)
    alone = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in alone:
            yield node.value
