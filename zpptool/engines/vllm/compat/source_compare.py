# SPDX-License-Identifier: Apache-2.0
"""Compares two releases of vLLM by what zpptool relies on, by reading both sources; nothing of them is imported."""

from __future__ import annotations

import ast
from pathlib import Path

from zpptool.engines.vllm.compat import source_check
from zpptool.engines.vllm.compat.names import HOOKS, NOT_ACROSS_STAGES

COMPARED = (
    ("v1.core.sched.output", "SchedulerOutput"), ("v1.core.sched.output", "NewRequestData"),
    ("v1.core.sched.output", "CachedRequestData"), ("v1.core.sched.output", "GrammarOutput"),
    ("v1.outputs", "ModelRunnerOutput"), ("v1.kv_cache_interface", "KVCacheConfig"),
    ("v1.kv_cache_interface", "KVCacheTensor"), ("sampling_params", "SamplingParams"),
    ("pooling_params", "PoolingParams"),
)  # fmt: skip
"""The classes whose fields travel between head and stages. A new field is refused unless it has its default."""

Changes = dict[str, list[str]]
"""Names, by kind of change."""


def field_changes(old: Path, new: Path) -> dict[str, Changes]:
    """For each class of `COMPARED` that differs, its fields that were added or removed."""
    found = {}
    for module, name in COMPARED:
        changes = _added_and_removed(
            set(source_check.fields(old, module, name)), set(source_check.fields(new, module, name))
        )
        if changes:
            found[name] = changes
    return found


def hook_changes(old: Path, new: Path) -> Changes:
    """What changed of the hooks that both releases have, or of which one has none.

    Returns:
        `missing`: in which release; `parameters`: functions whose parameters differ, with both lists; `code`: functions
        whose code differs otherwise. Comments, docstrings and the layout of the source do not count.
    """
    missing, parameters, code = [], [], []
    for hook in HOOKS:
        before, after = source_check.definition(old, hook), source_check.definition(new, hook)
        if before is None and after is None:
            continue
        if before is None or after is None:
            absent = [source_check.release(root) for root, found in ((old, before), (new, after)) if found is None]
            missing.append(f"{hook}: not in {absent[0]}")
        elif _parameters(before) != _parameters(after):
            parameters.append(f"{hook}: ({', '.join(_parameters(before))}) -> ({', '.join(_parameters(after))})")
        elif _code(before) != _code(after):
            code.append(str(hook))
    return {
        name: found
        for name, found in (("missing", missing), ("parameters", parameters), ("code", sorted(set(code))))
        if found
    }


def call_changes(old: Path, new: Path) -> Changes:
    """The calls of the engine to its workers that were added or removed, without those that stages refuse by name."""
    return _added_and_removed(
        source_check.collective_calls(old) - NOT_ACROSS_STAGES, source_check.collective_calls(new) - NOT_ACROSS_STAGES
    )


def _added_and_removed(before: set[str], after: set[str]) -> Changes:
    changes = {"added": sorted(after - before), "removed": sorted(before - after)}
    return {name: found for name, found in changes.items() if found}


def _parameters(node: ast.AST) -> list[str]:
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return []
    arguments = node.args
    return [argument.arg for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]


def _code(node: ast.AST) -> str:
    """A function's code without its docstring; nothing of a class, a module or a name, whose code is not relied on."""
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return ""
    body = node.body[1:] if ast.get_docstring(node) is not None else node.body
    return "\n".join(ast.dump(statement) for statement in body)
