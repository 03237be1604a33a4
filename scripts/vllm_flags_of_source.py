# SPDX-License-Identifier: Apache-2.0
"""Read the flags of `vllm serve` from vLLM's source, without importing vLLM: it is parsed, and nothing of it is run.

vLLM makes most flags from the fields of its config classes: `add_argument("--flag", **cache_kwargs["field"])`, where
`cache_kwargs = get_kwargs(CacheConfig)`. How many values such a flag takes follows from the field's type, by the rules
of `get_kwargs`. A test compares the result with what vLLM's own parser of the installed release has.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator

ARGUMENTS = "vllm/engine/arg_utils.py"
SERVE = ("vllm/entrypoints/common/cli_args.py", "vllm/entrypoints/launchers/cli_args.py")
"""Where `vllm serve` makes its parser, newest place first."""
CONFIGS = "vllm/config/"
COLLECTIONS = ("tuple", "list", "set")
Keywords = dict[str, object]
"""Of one `add_argument`: `action` and `nargs` alone."""


class Source:
    """The modules that define flags.

    Args:
        read: the content of a file by its path; None for a file that does not exist.
        names: the paths of all files.
    """

    def __init__(self, read: Callable[[str], str | None], names: Iterator[str]) -> None:
        self._classes: dict[str, ast.ClassDef] = {}
        self._aliases: dict[str, ast.expr] = {}
        serve = next((path for path in SERVE if read(path) is not None), SERVE[0])
        paths = [name for name in names if name.startswith(CONFIGS) and name.endswith(".py")]
        self.trees = {path: ast.parse(read(path) or "") for path in (*paths, ARGUMENTS, serve)}
        self.serve = self.trees[serve]
        for tree in self.trees.values():
            for node in tree.body:
                if isinstance(node, ast.ClassDef):
                    self._classes[node.name] = node
                elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                    self._aliases[node.targets[0].id] = node.value
                elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value:
                    self._aliases[node.target.id] = node.value

    def fields(self, name: str) -> dict[str, Keywords]:
        """The keywords for each field of a config class, those of its bases first."""
        found: dict[str, Keywords] = {}
        node = self._classes.get(name)
        if node is None:
            return found
        for base in node.bases:
            if isinstance(base, ast.Name):
                found |= self.fields(base.id)
        for item in node.body:
            if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name) and not _is_class_variable(item):
                found[item.target.id] = self.keywords(item.annotation)
        return found

    def keywords(self, annotation: ast.expr) -> Keywords:
        """The keywords for a field of that type."""
        words = set(self._members(annotation))
        if any(word in self._classes for word in words):
            return {}
        if words == {"bool", "str", "None"}:
            return {"nargs": "?"}
        if "bool" in words:
            return {"action": "BooleanOptionalAction"}
        if "Literal" not in words and words & set(COLLECTIONS):
            return {"nargs": "+"}
        return {}

    def _members(self, node: ast.expr) -> Iterator[str]:
        """The names of the types in a union; aliases are resolved, and what a type contains is left out."""
        if isinstance(node, ast.BinOp):
            yield from self._members(node.left)
            yield from self._members(node.right)
        elif isinstance(node, ast.Constant):
            if isinstance(node.value, str):  # a forward reference
                yield from self._members(ast.parse(node.value, mode="eval").body)
            else:
                yield str(node.value)
        elif isinstance(node, ast.Subscript):
            outer = next(self._members(node.value), "")
            inner = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
            if outer in ("Union", "Optional", "Annotated", "SkipValidation", "InitVar"):
                for item in inner[:1] if outer == "Annotated" else inner:
                    yield from self._members(item)
                if outer == "Optional":
                    yield "None"
            else:
                yield outer
        elif isinstance(node, ast.Name):
            if node.id in self._aliases and node.id not in self._classes:
                yield from self._members(self._aliases[node.id])
            else:
                yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr


class _Flags:
    """Follows the statements that add arguments."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._groups: dict[str, dict[str, Keywords]] = {}
        self.found: dict[str, Keywords] = {}

    def follow(self, body: list[ast.stmt]) -> None:
        for statement in body:
            if isinstance(statement, ast.Assign):
                self._assign(statement.targets[0], statement.value)
            elif isinstance(statement, ast.Delete):
                for target in statement.targets:
                    self._change(target, None)
            elif isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
                self._call(statement.value)
            elif isinstance(statement, ast.If | ast.With):
                self.follow(statement.body)

    def frontend(self, name: str, body: list[ast.stmt]) -> None:
        """The flags of a class whose fields all are flags, after `body` has changed some of their keywords."""
        fields = self._groups["frontend_kwargs"] = self._groups.get("frontend_kwargs") or self._source.fields(name)
        self.follow(body)
        for field, keywords in fields.items():
            for flag in (*_strings(keywords.get("flags")), f"--{field.replace('_', '-')}"):
                self.found[flag] = keywords

    def _assign(self, target: ast.expr, value: ast.expr) -> None:
        if isinstance(target, ast.Subscript):
            self._change(target, value)
        elif isinstance(target, ast.Name):
            keywords = self._keywords(value)
            cls = _call_of(value, "get_kwargs")
            if cls:
                self._groups[target.id] = self._source.fields(cls)
            elif keywords is not None:
                self._groups[target.id] = {"": keywords}

    def _change(self, target: ast.expr, value: ast.expr | None) -> None:
        """`group["field"]["nargs"] = value`, or its removal."""
        if not isinstance(target, ast.Subscript) or not isinstance(target.slice, ast.Constant):
            return
        keywords = self._keywords(target.value)
        if keywords is None:
            return
        keywords.pop(str(target.slice.value), None)
        if value is not None and target.slice.value in ("action", "nargs", "flags"):
            keywords[str(target.slice.value)] = _plain(value)

    def _keywords(self, node: ast.expr) -> Keywords | None:
        """What `group["field"]`, `get_kwargs(Config)["field"]`, the name of one of them, or `{**one, ...}` means."""
        if isinstance(node, ast.Dict):
            return next(
                (self._keywords(own) for key, own in zip(node.keys, node.values, strict=True) if key is None), None
            )
        if isinstance(node, ast.Name):
            return self._groups.get(node.id, {}).get("")
        if not isinstance(node, ast.Subscript) or not isinstance(node.slice, ast.Constant):
            return None
        field = str(node.slice.value)
        if isinstance(node.value, ast.Name):
            return self._groups.get(node.value.id, {}).get(field)
        cls = _call_of(node.value, "get_kwargs")
        return self._source.fields(cls).get(field) if cls else None

    def _call(self, call: ast.Call) -> None:
        if not isinstance(call.func, ast.Attribute) or call.func.attr != "add_argument":
            return
        keywords: Keywords = {}
        for item in call.keywords:
            if item.arg is None:
                keywords |= self._keywords(item.value) or {}
            elif item.arg in ("action", "nargs"):
                keywords[item.arg] = _plain(item.value)
        for name in call.args:
            if isinstance(name, ast.Constant) and str(name.value).startswith("-"):
                self.found[str(name.value)] = keywords


def flags_of_source(source: Source) -> dict[str, str]:
    """Each flag of `vllm serve`, and how many values it takes: `none`, `one`, `maybe` or `many`."""
    flags = _Flags(source)
    for tree, functions in ((source.serve, ("make_arg_parser",)), (source.trees[ARGUMENTS], ())):
        for node in tree.body:
            if isinstance(node, ast.FunctionDef) and node.name in functions:
                flags.follow(node.body)
            if isinstance(node, ast.ClassDef):
                changes = _method(node, "_customize_cli_kwargs")
                if changes and _inherited(node, source.serve, "FrontendArgs"):
                    flags.frontend("FrontendArgs", changes)
                elif (body := _method(node, "add_cli_args")) and node.name in ("EngineArgs", "AsyncEngineArgs"):
                    flags.follow(body)
    found = {}
    for name, keywords in flags.found.items():
        found[name] = _kind(keywords)
        if keywords.get("action") == "BooleanOptionalAction" and name.startswith("--"):
            found[f"--no-{name[2:]}"] = "none"
    return found


def _kind(keywords: Keywords) -> str:
    action, nargs = keywords.get("action"), keywords.get("nargs")
    if action in ("BooleanOptionalAction", "store_true", "store_false", "store_const", "count", "help", "version"):
        return "none"
    if nargs in (None, 1):
        return "one"
    return "maybe" if nargs == "?" else "many"


def _inherited(node: ast.ClassDef, tree: ast.Module, last: str) -> bool:
    """Whether a class is `last`, or one of those that it is derived from."""
    classes = {item.name: item for item in tree.body if isinstance(item, ast.ClassDef)}
    chain = [last]
    for name in chain:
        if name in classes:
            chain += [base.id for base in classes[name].bases if isinstance(base, ast.Name)]
    return node.name in chain


def _method(node: ast.ClassDef, name: str) -> list[ast.stmt]:
    return next((item.body for item in node.body if isinstance(item, ast.FunctionDef) and item.name == name), [])


def _call_of(node: ast.expr, function: str) -> str:
    """`Name` of `function(Name)`; empty for anything else."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == function and node.args:
        return node.args[0].id if isinstance(node.args[0], ast.Name) else ""
    return ""


def _plain(node: ast.expr) -> object:
    """A constant, a list of them, or the last name of what is referred to."""
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.List | ast.Tuple):
        return [_plain(item) for item in node.elts]
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def _strings(value: object) -> list[str]:
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []


def _is_class_variable(item: ast.AnnAssign) -> bool:
    return "ClassVar" in ast.dump(item.annotation)
