# SPDX-License-Identifier: Apache-2.0
"""Checks a release of vLLM against the list of private names by reading its source; nothing of it is imported."""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

from zpptool.config.vllm_releases import READ, TESTED, is_of
from zpptool.engines.vllm.compat.names import (
    GROUP_NAMES,
    HANDLER_NAMES,
    HOOKS,
    UNUSED_GROUP_NAMES,
    UNUSED_HANDLER_NAMES,
    Hook,
)
from zpptool.errors import ZppError

_VERSION = re.compile(r"""__version__\s*=\s*(?:version\s*=\s*)?['"]([^'"]+)['"]""")
_WORKERS = "v1/worker"
_ENGINE = ("v1/executor/abstract.py", "v1/engine/core.py", "v1/engine/async_llm.py", "v1/engine/llm_engine.py")


def installed_root() -> Path | None:
    """The directory of the installed vLLM's source; None where vLLM is not installed."""
    found = importlib.util.find_spec("vllm")
    return Path(found.origin).parent if found and found.origin else None


def release(root: Path) -> str:
    """The version of a source tree; empty where it has none."""
    file = root / "_version.py"
    match = _VERSION.search(file.read_text()) if file.is_file() else None
    return match[1] if match else ""


def version_warning(version: str) -> str | None:
    """The warning about a vLLM that zpptool was not tested with; None for one that it was tested with."""
    if is_of(version, TESTED):
        return None
    known = "whose hooks were read but never run" if is_of(version, READ) else "which is unknown to it"
    return f"zpptool was seen to work with vLLM {', '.join(TESTED)}; installed is {version}, {known}"


def require_hooks(root: Path | None = None) -> None:
    """Refuse a vLLM that lacks something that zpptool relies on. A release that zpptool was tested with is not read.

    Raises:
        ZppError: the message names every broken hook.
    """
    root = root or installed_root()
    if root is None or is_of(release(root), TESTED):
        return
    faults = broken_hooks(root)
    if faults:
        raise ZppError(
            f"vLLM {release(root) or 'of an unknown version'} lacks what zpptool relies on: {'; '.join(faults)}",
            f"Install vLLM {', '.join(TESTED)}.",
        )


def broken_hooks(root: Path) -> list[str]:
    """For each hook that a source tree of vLLM lacks, what is missing; empty where it has all of them."""
    return [fault for hook in hooks_of(release(root)) if (fault := _fault(root, hook))]


def hooks_of(version: str) -> tuple[Hook, ...]:
    """The hooks that a version is to have."""
    series = _numbers(version)
    return tuple(hook for hook in HOOKS if not hook.since or not series or series >= _numbers(hook.since))


def new_group_names(root: Path) -> set[str]:
    """The attributes of the pipeline group that workers and runners read and that zpptool does not know."""
    return _names_read(root, _is_group) - GROUP_NAMES - UNUSED_GROUP_NAMES


def new_handler_names(root: Path) -> set[str]:
    """The attributes of V2's handler of sampled tokens that the runner uses and that zpptool does not know."""
    return _names_read(root, _is_handler) - HANDLER_NAMES - UNUSED_HANDLER_NAMES


def collective_calls(root: Path) -> set[str]:
    """The worker methods that vLLM's engine calls by name on every worker."""
    calls = (node for file in _ENGINE for node in ast.walk(_tree(root / file)) if isinstance(node, ast.Call))
    return {
        node.args[0].value
        for node in calls
        if isinstance(node.func, ast.Attribute) and node.func.attr == "collective_rpc" and node.args
        if isinstance(node.args[0], ast.Constant) and isinstance(node.args[0].value, str)
    }


def fields(root: Path, module: str, name: str) -> tuple[str, ...]:
    """The annotated fields of a class, in order."""
    found = _definition(root, module, name)
    if not isinstance(found, ast.ClassDef):
        return ()
    targets = (part.target for part in found.body if isinstance(part, ast.AnnAssign))
    return tuple(target.id for target in targets if isinstance(target, ast.Name))


def definition(root: Path, hook: Hook) -> ast.AST | None:
    """A hook's definition; None where the source tree lacks it."""
    owner, _, member = hook.name.partition(".")
    found = _definition(root, hook.module, owner)
    if not member or not isinstance(found, ast.ClassDef):
        return None if member else found
    return _member(found, member)


def _numbers(version: str) -> tuple[int, ...]:
    """The first two numbers of a version; empty where it does not begin with them."""
    match = re.match(r"(\d+)\.(\d+)", version)
    return (int(match[1]), int(match[2])) if match else ()


def _fault(root: Path, hook: Hook) -> str | None:
    owner, _, member = hook.name.partition(".")
    found: ast.AST | None = _definition(root, hook.module, owner)
    if found is None:
        return f"{hook} is not there"
    if member:
        if not isinstance(found, ast.ClassDef):
            return f"{hook}: {owner} is no class"
        found = _member(found, member)
        if found is None:
            return f"{hook} is not there"
    missing = [name for name in hook.parameters if name not in _parameters(found)]
    return f"{hook} takes no {', '.join(missing)}" if missing else None


def _definition(root: Path, module: str, name: str) -> ast.AST | None:
    """The definition of a module's name, followed through imports from other modules of vLLM."""
    file = _file(root, module)
    if file is None:
        return None
    for node in _bindings(_tree(file)):
        if isinstance(node, ast.ImportFrom):
            if any((alias.asname or alias.name) == name for alias in node.names):
                return _imported(root, node, name) or node
        elif name in _bound_names(node):
            return node
    return _tree(submodule) if (submodule := _file(root, f"{module}.{name}")) else None


def _imported(root: Path, node: ast.ImportFrom, name: str) -> ast.AST | None:
    if node.level or not node.module or not node.module.startswith("vllm."):
        return None
    own = next(alias.name for alias in node.names if (alias.asname or alias.name) == name)
    return _definition(root, node.module.removeprefix("vllm."), own)


def _bindings(tree: ast.Module) -> Iterator[ast.stmt]:
    """A module's statements, including those within `if` and `try`."""
    pending: list[ast.stmt] = list(tree.body)
    while pending:
        node = pending.pop(0)
        yield node
        if isinstance(node, ast.If | ast.Try):
            pending += [part for part in ast.iter_child_nodes(node) if isinstance(part, ast.stmt)]


def _bound_names(node: ast.AST) -> set[str]:
    if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        return {node.name}
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return {target.id for target in targets if isinstance(target, ast.Name)}


def _member(owner: ast.ClassDef, name: str) -> ast.AST | None:
    """A method, a field, or an attribute that a method sets; the last definition of several (overloads come first)."""
    own = [node for node in owner.body if name in _bound_names(node)]
    if own:
        return own[-1]
    for node in ast.walk(owner):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and node.attr == name:
            return node
    return None


def _parameters(node: ast.AST) -> set[str]:
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return set()
    arguments = node.args
    return {argument.arg for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)}


def _names_read(root: Path, is_object: Callable[[ast.expr], bool]) -> set[str]:
    """The attributes of an object that the source of workers and runners reads."""
    return {
        node.attr
        for file in sorted((root / _WORKERS).rglob("*.py"))
        for node in ast.walk(_tree(file))
        if isinstance(node, ast.Attribute) and is_object(node.value)
    }


def _is_handler(node: ast.expr) -> bool:
    """`self.pp_handler`."""
    return isinstance(node, ast.Attribute) and node.attr == "pp_handler"


def _is_group(node: ast.expr) -> bool:
    """`get_pp_group()`, or a variable that holds it."""
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and node.func.id == "get_pp_group"
    return isinstance(node, ast.Name) and node.id in ("pp", "pp_group")


def _file(root: Path, module: str) -> Path | None:
    base = root.joinpath(*module.split("."))
    return next((file for file in (base.with_suffix(".py"), base / "__init__.py") if file.is_file()), None)


@cache
def _tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text())
