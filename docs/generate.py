"""Writes docs/settings.md and docs/files.md from the sources: `python docs/generate.py`.

The tables come from the dataclasses of `mopd_jax.config` and from the modules' docstrings, so
they cannot differ from the code; `tests/test_docs.py` fails until they are written again.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import pathlib
import re
import types
import typing
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from mopd_jax.config import Config

ROOT = pathlib.Path(__file__).parents[1]
NOTE = (
    "<!-- Made by `python docs/generate.py`; edit the docstrings it reads, not this file. -->"
)
FILES_HEAD = """\
# Files

One line a module of `mopd_jax`. Imports go down the order of packages in
`tests/test_layers.py`.
"""
SETTINGS_HEAD = """\
# Settings

Set one by `--config.SECTION.NAME=VALUE` or in a config file; `mopd config` prints them all as a
run would have them. Defaults are stated once, in `mopd_jax/config/`. None is off, or what the
meaning says. *Read by* names the modules that use a setting, apart from `mopd_jax/config`.
"""
# A field of a class's docstring: its name, or several that share a meaning, and the text.
ENTRY = re.compile(r"^( *)([a-z]\w*(?:, [a-z]\w*)*): (.*)$")


def sources(root: pathlib.Path) -> dict[str, str]:
    """{dotted name below mopd_jax: source text}; "" is the package itself.

    Links in the package are left out, so that kernels/ops is listed once, as `kernels`.
    """
    texts = {}
    for folder, prefix in ((root / "mopd_jax", ()), (root / "kernels/ops", ("kernels",))):
        links = {path.name for path in folder.iterdir() if path.is_symlink()}
        for path in sorted(folder.rglob("*.py")):
            below = path.relative_to(folder).with_suffix("").parts
            if below[0] not in links:
                parts = [part for part in (*prefix, *below) if part != "__init__"]
                texts[".".join(parts)] = path.read_text(encoding="utf-8")
    return texts


def file_map(texts: Mapping[str, str]) -> str:
    """docs/files.md: a table for each package, with the first sentence of every module.

    Raises:
        ValueError: a module without a docstring.
    """
    rooms: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for name, text in texts.items():
        whole = ast.get_docstring(ast.parse(text))
        if not whole:
            raise ValueError(
                f"mopd_jax.{name} has no docstring; its first line is its headline"
            )
        packaged = any(other.startswith(f"{name}.") for other in texts)
        rooms[name.split(".")[0] if "." in name or packaged else ""].append(
            (name or "mopd_jax", _one_line(whole.split("\n\n")[0]))
        )
    lines = [
        NOTE,
        FILES_HEAD.rstrip(),
    ]
    for room in sorted(rooms):
        lines += ["", f"## {room}/" if room else "## The root: start at `train`", ""]
        lines += ["| module | what it is |", "|---|---|"]
        lines += [f"| `{name}` | {_cell(headline)} |" for name, headline in rooms[room]]
    return "\n".join(lines) + "\n"


def settings(texts: Mapping[str, str]) -> str:
    """docs/settings.md: every field of `Config` with type, default, meaning and readers.

    Raises:
        ValueError: a field that its class's docstring does not explain.
    """
    readers = readers_of(texts)
    lines = [
        NOTE,
        SETTINGS_HEAD.rstrip(),
    ]
    sections: list[tuple[str, type, list[Field]]]
    sections = [("", Config, [f for f in _fields(Config) if not f.section])]
    sections += [(f.name, f.section, _leaves(f.section)) for f in _fields(Config) if f.section]
    for name, cls, fields in sections:
        lines += ["", f"## {name or 'The run'}", "", _one_line(_introduction(cls)), ""]
        lines += ["| setting | type | default | meaning | read by |", "|---|---|---|---|---|"]
        for field in fields:
            where = f"{name}.{field.name}" if name else field.name
            if field.meaning is None:
                raise ValueError(
                    f"{where} has no meaning; add '{field.name}: ...' to the docstring of "
                    f"{field.owner.__name__}"
                )
            used = readers.get((field.owner, field.name.split(".")[-1]), set())
            modules = ", ".join(f"`{module}`" for module in sorted(used))
            cells = (f"`{where}`", field.type, field.default, _cell(field.meaning), modules)
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


@dataclasses.dataclass(frozen=True)
class Field:
    """A field of a config class, in words.

    name: dotted below its section.
    section: its class, where the field holds further settings.
    """

    name: str
    owner: type
    section: type | None
    type: str
    default: str
    meaning: str | None


def _fields(cls: type) -> list[Field]:
    hints = typing.get_type_hints(cls)
    meanings = _meanings(cls)
    found = []
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        default = field.default
        if default is dataclasses.MISSING:
            assert field.default_factory is not dataclasses.MISSING
            default = field.default_factory()
        found.append(
            Field(
                name=field.name,
                owner=cls,
                section=hint if isinstance(hint, type) and _is_section(hint) else None,
                type=_cell(_type(hint)),
                default=_cell(f"`{default!r}`"),
                meaning=meanings.get(field.name),
            )
        )
    return found


def _is_section(hint: type) -> bool:
    return dataclasses.is_dataclass(hint)


def _leaves(cls: type) -> list[Field]:
    """The settings of a section, with those of the sections in it."""
    found = []
    for field in _fields(cls):
        if field.section is None:
            found.append(field)
        else:
            inner = _leaves(field.section)
            found += [dataclasses.replace(x, name=f"{field.name}.{x.name}") for x in inner]
    return found


def _introduction(cls: type) -> str:
    """The first paragraph of a class's docstring."""
    return inspect.cleandoc(cls.__doc__ or "").split("\n\n")[0]


def _meanings(cls: type) -> dict[str, str]:
    """{field: text} from the entries `name: text` or `name, name: text` of a docstring."""
    found: dict[str, str] = {}
    current: list[str] = []
    indent = ""
    for line in inspect.cleandoc(cls.__doc__ or "").split("\n"):
        if current and line.startswith(f"{indent}    "):
            found |= {name: f"{found[name]} {line.strip()}" for name in current}
        elif entry := ENTRY.match(line):
            indent, current = entry.group(1), entry.group(2).split(", ")
            found |= dict.fromkeys(current, entry.group(3))
        else:
            current = []
    return found


def _type(hint: Any) -> str:
    """A type hint in words."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in args)
    if origin in (typing.Union, types.UnionType):
        # The first is what a setting can be; others, such as an array, are for callers in code.
        first = next(arg for arg in args if arg is not type(None))
        return f"{_type(first)} or None" if type(None) in args else _type(first)
    if origin is tuple:
        return f"list of {_type(args[0])}"
    return "mapping" if origin is dict else str(hint.__name__)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _cell(text: str) -> str:
    """Text that a cell of a table can hold."""
    return text.replace("|", "\\|")


# Who reads a setting.

Classes = frozenset[type]
Names = dict[str, Classes]


def readers_of(texts: Mapping[str, str]) -> dict[tuple[type, str], set[str]]:
    """{(config class, field): modules that read it}, found in the sources.

    A read is an attribute access `X.field` where X is known to be of a config class: by an
    annotation, by an assignment, as a field of another such object, or by the name `cfg`, which
    is a whole Config unless an annotation says otherwise.
    """
    known = {cls.__name__: cls for cls in _classes(Config)}
    readers: dict[tuple[type, str], set[str]] = defaultdict(set)
    for module, text in texts.items():
        if module.split(".")[0] != "config":  # These checks and presets are no use of a value.
            for access in _Scope(known).reads(ast.parse(text)):
                readers[access].add(module)
    return readers


def _classes(cls: type) -> Iterator[type]:
    yield cls
    for field in _fields(cls):
        if field.section:
            yield from _classes(field.section)


class _Scope:
    """Names and `self` attributes of one scope whose values are known to be config objects."""

    def __init__(self, known: Mapping[str, type], names: Mapping[str, Classes] | None = None):
        self._known = known
        self._names: Names = dict(names or {})

    def reads(self, scope: ast.AST) -> set[tuple[type, str]]:
        """Every (class, field) that is read in the scope or in one inside it."""
        inner = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef)
        own, nested, waiting = [], [], list(ast.iter_child_nodes(scope))
        while waiting:
            node = waiting.pop()
            if isinstance(node, inner):
                nested.append(node)
            else:
                own.append(node)
                waiting += ast.iter_child_nodes(node)
        if isinstance(scope, ast.ClassDef):
            self._class(scope)
        for _ in range(2):  # A name may be used, in the order of the walk, before it is set.
            for node in own:
                if isinstance(node, ast.Assign):
                    self._assign(node)
                elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                    self._names[node.target.id] = self._annotated(node.annotation)
        found = {
            (cls, node.attr)
            for node in own
            if isinstance(node, ast.Attribute)
            for cls in self._types(node.value)
            if node.attr in {field.name for field in dataclasses.fields(cls)}
        }
        config = self._known.get(scope.name) if isinstance(scope, ast.ClassDef) else None
        for node in nested:
            below = _Scope(self._known, self._names)
            if config and isinstance(node, ast.FunctionDef):
                if node.name.startswith("_"):
                    continue  # A config's check of itself is no use of a value.
                below._names["self"] = frozenset([config])
            if not isinstance(node, ast.ClassDef):
                arguments = node.args
                for arg in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs):
                    if arg.annotation is not None:
                        below._names[arg.arg] = self._annotated(arg.annotation)
            found |= below.reads(node)
        return found

    def _class(self, scope: ast.ClassDef) -> None:
        """Fields of a class, and attributes that its methods set, as names `self.x`."""
        for node in ast.walk(scope):
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                self._names[f"self.{node.target.id}"] = self._annotated(node.annotation)
            elif isinstance(node, ast.FunctionDef):
                method = _Scope(self._known, self._names)
                for arg in (*node.args.args, *node.args.kwonlyargs):
                    method._names[arg.arg] = self._annotated(arg.annotation)
                for inner in ast.walk(node):
                    if isinstance(inner, ast.Assign):
                        method._assign(inner)
                own = {k: v for k, v in method._names.items() if k.startswith("self.") and v}
                self._names |= own

    def _assign(self, node: ast.Assign) -> None:
        for target in node.targets:
            pairs = [(target, node.value)]
            if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                pairs = list(zip(target.elts, node.value.elts, strict=True))
            for name, value in pairs:
                key = ast.unparse(name) if isinstance(name, ast.Name | ast.Attribute) else ""
                if found := self._types(value):
                    self._names[key] = found

    def _types(self, node: ast.expr) -> Classes:
        """The config classes that an expression may have; empty if none is known."""
        if isinstance(node, ast.Name):
            return self._names.get(node.id, frozenset([Config] if node.id == "cfg" else []))
        if isinstance(node, ast.Attribute):
            if own := self._names.get(ast.unparse(node)):
                return own
            owners = self._types(node.value)
            if not owners and node.attr == "cfg":
                return frozenset([Config])
            hints = [typing.get_type_hints(cls).get(node.attr) for cls in owners]
            return frozenset(cls for cls in self._known.values() if cls in hints)
        if isinstance(node, ast.Call) and node.args and "replace" in ast.unparse(node.func):
            return self._types(node.args[0])
        if isinstance(node, ast.IfExp):
            return self._types(node.body) | self._types(node.orelse)
        return frozenset()

    def _annotated(self, node: ast.expr | None) -> Classes:
        """The config classes that an annotation names."""
        names = set(re.findall(r"\w+", "" if node is None else ast.unparse(node)))
        return frozenset(self._known[name] for name in names & self._known.keys())


def documents(root: pathlib.Path) -> dict[str, str]:
    """{file name below docs/: its text}."""
    texts = sources(root)
    return {"files.md": file_map(texts), "settings.md": settings(texts)}


if __name__ == "__main__":
    for file, text in documents(ROOT).items():
        (ROOT / "docs" / file).write_text(text, encoding="utf-8")
