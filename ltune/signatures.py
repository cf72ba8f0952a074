"""Reads Python files as text: which classes a module has, and what their constructors take. Nothing is imported, so nothing heavy runs."""

import ast
import difflib
import importlib.util
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path


class NoSuchClass(LookupError):
    """A dotted path leads nowhere; the message says where it ends and what is near."""


@dataclass(frozen=True)
class Class:
    """A class as its source has it."""

    name: str
    bases: tuple[str, ...]
    parameters: dict[str, str] = field(default_factory=dict)  # of the constructor: name -> annotation
    takes_more: bool = False  # **kwargs
    defines: frozenset[str] = frozenset()  # methods and values
    left_open: frozenset[str] = frozenset()  # methods that it leaves to its subclasses
    values: dict[str, str] = field(default_factory=dict)  # of the class itself, those that are names: rows = Chat


@dataclass(frozen=True)
class Module:
    """A module as its source has it."""

    classes: dict[str, Class]
    imported: dict[str, str]  # name here -> dotted path where it comes from
    others: frozenset[str]  # functions and variables
    aliases: dict[str, str]  # names that stand for an annotation, such as FloatName = Literal["float32", "bfloat16"]
    complete: bool  # no star import and no __getattr__


@cache
def module_file(dotted: str) -> Path | None:
    """The source of a module; None where there is none, or where only an import could tell."""
    top, *rest = dotted.split(".")
    spec = importlib.util.find_spec(top)  # of a top package: finds it without running it
    if spec is None or not spec.origin:
        return None
    if not spec.submodule_search_locations:
        return Path(spec.origin) if not rest and spec.origin.endswith(".py") else None
    path = Path(spec.submodule_search_locations[0]).joinpath(*rest)
    return next((file for file in (path / "__init__.py", path.with_name(path.name + ".py")) if file.is_file()), None)


def find(dotted: str, depth: int = 8) -> Class | None:
    """The class at a dotted path, through the imports that lead to it; None where its source does not tell.

    Raises:
        NoSuchClass: The module is there, and has no such name.
    """
    module, _, name = dotted.rpartition(".")
    if not name.isidentifier() or not all(part.isidentifier() for part in module.split(".")):
        return None
    file = module_file(module)
    if file is None or depth == 0:
        return None
    known = read(file)
    if name in known.classes:
        return _with_inherited(known, module, name, depth)
    if name in known.imported:
        return find(known.imported[name], depth - 1)
    if name in known.others or not known.complete or module_file(dotted):
        return None
    names = [*known.classes, *(other for other in known.imported if other[0].isupper())]
    near = [other for other in names if other.lower() == name.lower()] or difflib.get_close_matches(name, names, n=1)
    raise NoSuchClass(f"{module} has no {name}" + (f'; did you mean "{module}.{near[0]}"?' if near else ""))


def _with_inherited(module: Module, dotted: str, name: str, depth: int) -> Class | None:
    """The class with the constructor of its first base where it has none itself."""
    known = module.classes[name]
    if known.parameters or known.takes_more or not known.bases:
        return known
    base = known.bases[0]
    return find(module.imported.get(base, f"{dotted}.{base}"), depth - 1) if base in module.imported or base in module.classes else None


@cache
def read(file: Path) -> Module:
    """The names that a file defines."""
    classes: dict[str, Class] = {}
    imported: dict[str, str] = {}
    others: set[str] = set()
    aliases: dict[str, str] = {}
    for node in _parsed(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef):
            classes[node.name] = _class(node)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            others.add(node.name)
        else:  # statements, and what stands under if and try
            for part in ast.walk(node):
                if isinstance(part, ast.ImportFrom):
                    imported |= {name.asname or name.name: f"{_origin(file, part)}.{name.name}" for name in part.names}
                elif isinstance(part, ast.Import):
                    others |= {(name.asname or name.name).partition(".")[0] for name in part.names}
                elif isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store):
                    others.add(part.id)
                elif isinstance(part, (ast.FunctionDef, ast.ClassDef)):
                    others.add(part.name)
            aliases |= _alias(node)
    return Module(classes, imported, frozenset(others), aliases, complete="*" not in imported and "__getattr__" not in others)


def _parsed(text: str) -> ast.Module:
    try:
        return ast.parse(without_bodies(text))
    except SyntaxError:  # in a text there was what looks like a function
        return ast.parse(text)


def without_bodies(text: str) -> str:
    """Python without what functions do: a quarter is left to be parsed."""
    kept: list[str] = []
    indent: int | None = None  # of the function whose signature or body this is
    inside = False  # the body
    for line in text.split("\n"):
        bare = line.lstrip(" \t")
        if inside and indent is not None and (not bare or len(line) - len(bare) > indent):
            continue
        if inside:
            indent, inside = None, False
        kept.append(line)
        if bare.startswith(("def ", "async def ")):
            indent = len(line) - len(bare)
        if indent is not None:
            code = line.partition("  #")[0].rstrip()
            if code.endswith(":"):
                kept[-1], inside = f"{code} ...", True
            elif not code.endswith((",", "(", "[")):  # unusual; its body may stay
                indent = None
    return "\n".join(kept)


def _alias(node: ast.stmt) -> dict[str, str]:
    value = node.value if isinstance(node, ast.Assign) else None
    if not isinstance(node, ast.Assign) or not isinstance(value, ast.Subscript) or not isinstance(value.value, ast.Name):
        return {}
    if value.value.id not in ("Literal", "Union", "Optional"):
        return {}
    return {target.id: ast.unparse(value) for target in node.targets if isinstance(target, ast.Name)}


def _origin(file: Path, node: ast.ImportFrom) -> str:
    """The dotted module that ``from ... import`` names; relative ones by the folders that are packages."""
    if not node.level:
        return node.module or ""
    package = file.parent
    names: list[str] = []
    for _ in range(node.level - 1):
        package = package.parent
    while (package / "__init__.py").exists():
        names.insert(0, package.name)
        package = package.parent
    return ".".join([*names, *([node.module] if node.module else [])])


def _class(node: ast.ClassDef) -> Class:
    bases = tuple(base.id for base in node.bases if isinstance(base, ast.Name))
    functions = [part for part in node.body if isinstance(part, ast.FunctionDef)]
    targets = (target for part in node.body if isinstance(part, ast.Assign) for target in part.targets)
    defines = frozenset([*(part.name for part in functions), *(target.id for target in targets if isinstance(target, ast.Name))])
    left_open = frozenset(part.name for part in functions if any(_is_abstract(mark) for mark in part.decorator_list))
    values = dict(pair for part in node.body for pair in _named(part))
    init = next((part for part in functions if part.name == "__init__"), None)
    if init is not None:
        arguments = [*init.args.args[1:], *init.args.kwonlyargs]
        parameters = {argument.arg: _text(argument.annotation) for argument in arguments}
        return Class(node.name, bases, parameters, init.args.kwarg is not None, defines, left_open, values)
    fields = [part for part in node.body if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name)]
    parameters = {ast.unparse(part.target): _text(part.annotation) for part in fields if "ClassVar" not in _text(part.annotation)}
    return Class(node.name, bases, parameters, defines=defines, left_open=left_open, values=values)


def _is_abstract(mark: ast.expr) -> bool:
    return isinstance(mark, ast.Name) and mark.id == "abstractmethod"


def _named(node: ast.stmt) -> list[tuple[str, str]]:
    if not isinstance(node, ast.Assign | ast.AnnAssign) or not isinstance(node.value, ast.Name):
        return []
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    return [(target.id, node.value.id) for target in targets if isinstance(target, ast.Name)]


def _text(annotation: ast.expr | None) -> str:
    return ast.unparse(annotation) if annotation is not None else "Any"
