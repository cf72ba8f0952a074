"""Which options there are, read from the constructors' signatures as text.

Importing the classes would import torch, which takes seconds; a typo should be told at once. The signatures stay the one place where options
are defined: this reads them, LightningCLI reads them too and has the last word.
"""

import ast
import importlib.util
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parent

# Filled in from another option, so not to be given: {filled: from}
LINKS = {
    "data.tokenizer": "model.tokenizer",
    "data.rows": "model.rows",
    "data.seed": "seed_everything",
    "model.seed": "seed_everything",
}

SECTIONS = {"model": "FineTuner", "data": "ChatData", "checkpoint": "Checkpoints", "trainer": "Trainer"}
SINGLE = {"seed_everything": "int", "run": "str", "ckpt_path": "str | None", "resume": "Resume", "config": "str", "print_config": "str", "help": "str"}


@dataclass(frozen=True)
class Class:
    """A class as its source has it."""

    name: str
    bases: tuple[str, ...]
    parameters: dict[str, str] = field(default_factory=dict)  # of the constructor: name -> annotation


@cache
def classes() -> dict[str, Class]:
    """Every class of ltune, and Lightning's Trainer, by name."""
    found = {"Resume": Class("Resume", (), {"allow": "list[str]"})}
    for file in PACKAGE.rglob("*.py"):
        if file.stem != "schema":
            found |= read(file)
    lightning = importlib.util.find_spec("lightning")  # of a top package: finds it without running it
    if lightning and lightning.submodule_search_locations:
        found |= read(Path(lightning.submodule_search_locations[0]) / "pytorch" / "trainer" / "trainer.py")
    return found


def read(file: Path) -> dict[str, Class]:
    """The classes that a file defines."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return {node.name: _class(node) for node in tree.body if isinstance(node, ast.ClassDef)}


def _class(node: ast.ClassDef) -> Class:
    bases = tuple(base.id for base in node.bases if isinstance(base, ast.Name))
    init = next((part for part in node.body if isinstance(part, ast.FunctionDef) and part.name == "__init__"), None)
    if init is not None:
        arguments = [*init.args.args[1:], *init.args.kwonlyargs]
        return Class(node.name, bases, {argument.arg: _text(argument.annotation) for argument in arguments})
    fields = [part for part in node.body if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name)]
    return Class(node.name, bases, {part.target.id: _text(part.annotation) for part in fields if "ClassVar" not in _text(part.annotation)})


def _text(annotation: ast.expr | None) -> str:
    return ast.unparse(annotation) if annotation is not None else "Any"


def section(name: str) -> dict[str, str]:
    """The options of model, data, checkpoint, trainer or resume that may be given."""
    if name not in SECTIONS and name != "resume":
        return {}
    parameters = parameters_of(SECTIONS.get(name, "Resume"))
    return {option: annotation for option, annotation in parameters.items() if f"{name}.{option}" not in LINKS}


def parameters_of(name: str) -> dict[str, str]:
    """Constructor parameters, those of the nearest base that has some where the class has none."""
    known = classes().get(name)
    if known is None:
        return {}
    if known.parameters or not known.bases:
        return known.parameters
    return parameters_of(known.bases[0])


def choices(annotation: str) -> list[str]:
    """Our classes that a value of this type may name: the subclasses of an abstract base."""
    bases = {name for name in _names(annotation) if name in classes()}
    return sorted(name for name in classes() if _ancestors(name) & bases)


def fields_of(annotation: str) -> dict[str, str]:
    """The fields of a plain class of ours (no choice of subclasses) that the annotation names."""
    for name in _names(annotation):
        if name in classes() and not choices(name):
            return parameters_of(name)
    return {}


def _names(annotation: str) -> list[str]:
    try:
        tree = ast.parse(annotation, mode="eval")
    except SyntaxError:
        return []
    return [node.id for node in ast.walk(tree) if isinstance(node, ast.Name)]


def _ancestors(name: str) -> set[str]:
    bases = classes()[name].bases if name in classes() else ()
    return set(bases).union(*(_ancestors(base) for base in bases)) if bases else set()


def allowed(annotation: str) -> set | None:
    """{int, float, bool, str, None, or literal values} that a plain annotation allows; None where it is more than that."""
    plain = {"int": int, "float": float, "bool": bool, "str": str, "None": None}

    def collect(node: ast.expr) -> set | None:
        if isinstance(node, ast.Constant):
            return {None} if node.value is None else None
        if isinstance(node, ast.Name):
            return {plain[node.id]} if node.id in plain else None
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
            return both([node.left, node.right])
        if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name):
            parts = list(node.slice.elts) if isinstance(node.slice, ast.Tuple) else [node.slice]
            if node.value.id == "Literal":
                return {part.value for part in parts if isinstance(part, ast.Constant)}
            if node.value.id == "Union":
                return both(parts)
            if node.value.id == "Optional":
                inner = both(parts)
                return None if inner is None else inner | {None}
        return None

    def both(nodes: list[ast.expr]) -> set | None:
        sets = [collect(node) for node in nodes]
        return None if any(one is None for one in sets) else set().union(*(one for one in sets if one is not None))

    return collect(ast.parse(annotation, mode="eval").body)
