"""The modules that a set of entry modules needs, written so that they work under any package name.

Imports of this package become relative, and its operators move to a namespace of their own.
"""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

PACKAGE = "fused_attention"
_STUB = '"""Part of a kernel of the Hugging Face hub; see the package\'s own sources."""\n'


def collect(entries: Sequence[str]) -> dict[str, str]:
    """The sources of these modules and of all that they import, also inside functions.

    A package that only holds modules needed here gets an empty __init__.py.

    Args:
        entries: full module names.

    Returns:
        The path inside the package -> the source with relative imports.

    Raises:
        ValueError: a module imports the package in a way that has no relative form.
        ModuleNotFoundError: a module that is imported does not exist.
    """
    waiting, done, sources = list(entries), set[str](), {}
    while waiting:
        module = waiting.pop()
        if module in done:
            continue
        done.add(module)
        origin = _origin(module)
        source = origin.read_text()
        imports = list(_imports(module, ast.parse(source)))
        waiting += {name for node in imports for name in _needed(node)}
        is_package = origin.name == "__init__.py"
        sources[_path(module, is_package)] = _with_relative_imports(
            source, imports, module.count(".") + is_package
        )
    for path in list(sources):
        for parent in Path(path).parents:
            sources.setdefault(str(parent / "__init__.py"), _STUB)
    return sources


def with_namespace(source: str, namespace: str) -> str:
    """The source with the operators torch.ops.fused_attention.* in another namespace."""
    source = re.sub(rf"\btorch\.ops\.{PACKAGE}\b", f"torch.ops.{namespace}", source)
    source = source.replace(f'Library("{PACKAGE}"', f'Library("{namespace}"')
    return source.replace(f'"{PACKAGE}::', f'"{namespace}::')


def _origin(module: str) -> Path:
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"{module}: is not installed", name=module)
    return Path(spec.origin)


def _path(module: str, is_package: bool) -> str:
    parts = module.split(".")[1:]
    return "/".join([*parts, "__init__.py"]) if is_package else "/".join(parts) + ".py"


def _imports(module: str, tree: ast.AST) -> Iterator[ast.ImportFrom]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and _is_ours(node.module):
            yield node
        elif isinstance(node, ast.Import) and any(_is_ours(alias.name) for alias in node.names):
            raise ValueError(f"{module}: must use `from ... import` in line {node.lineno}")


def _is_ours(module: str | None) -> bool:
    return module is not None and module.split(".")[0] == PACKAGE


def _needed(node: ast.ImportFrom) -> Iterator[str]:
    """The modules behind one statement; a package itself only where names of its own are taken."""
    assert node.module is not None
    is_package = _origin(node.module).name == "__init__.py"
    for alias in node.names:
        name = f"{node.module}.{alias.name}"
        yield name if is_package and importlib.util.find_spec(name) else node.module


def _with_relative_imports(source: str, imports: Iterable[ast.ImportFrom], depth: int) -> str:
    """`depth`: how many dots lead from the module to the package."""
    lines = source.splitlines(keepends=True)
    for node in imports:
        line = lines[node.lineno - 1]
        absolute = f"from {node.module} import"
        relative = f"from {'.' * depth}{(node.module or '')[len(PACKAGE) + 1 :]} import"
        if line[node.col_offset :].startswith(absolute):
            lines[node.lineno - 1] = line.replace(absolute, relative, 1)
    return "".join(lines)
