"""Which options there are, read from the constructors' signatures as text.

Importing the classes would import torch, which takes seconds; a typo should be told at once. The signatures stay the one place where
options are defined: this reads them, LightningCLI reads them too and has the last word.
"""

import ast
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from ltune.signatures import Class, find, module_file, read

PACKAGE = Path(__file__).parent

# Filled in from another option, so not to be given: {filled: from}
LINKS = {
    "data.tokenizer": "model.tokenizer",
    "data.rows": "model.rows",
    "data.repeats": "model.repeats",
    "data.objective": "model.objective_name",
    "data.accumulate": "trainer.accumulate_grad_batches",
    "data.seed": "seed_everything",
    "model.seed": "seed_everything",
}

SECTIONS = {"model": "FineTuner", "data": "ChatData", "checkpoint": "Checkpoints", "trainer": "Trainer"}
SINGLE = {
    "seed_everything": "int",
    "run": "str",
    "ckpt_path": "str | None",
    "resume": "Resume",
    "config": "str",
    "print_config": "str",
    "help": "str",
}

# Where ltune takes less than Lightning
NARROWER = {
    "trainer.accelerator": "Literal['auto', 'cpu', 'gpu', 'cuda', 'mps']",
    "trainer.precision": "Literal['32-true', 'bf16-true', 'bf16-mixed', '16-true', '16-mixed', '32', '16', 'bf16', 32, 16] | None",
}
TRAINER = "lightning.pytorch.trainer.trainer"
# Where the classes are that these annotations choose from, under their short names
PUBLISHED = {"Logger": "lightning.pytorch.loggers", "Callback": "lightning.pytorch.callbacks", "OptimizerCallable": "torch.optim"}


@cache
def classes() -> dict[str, Class]:
    """Every class of ltune, and Lightning's Trainer, by name."""
    found = {"Resume": Class("Resume", (), {"allow": "list[str]"})}
    for file in PACKAGE.rglob("*.py"):
        found |= read(file).classes
    return found | read(_lightning(TRAINER)).classes


@cache
def aliases() -> dict[str, str]:
    """Names that stand for an annotation, here and in Lightning."""
    found: dict[str, str] = {}
    for file in [*PACKAGE.rglob("*.py"), _lightning(TRAINER)]:
        found |= read(file).aliases
    return found


def _lightning(module: str) -> Path:
    file = module_file(module)
    assert file is not None, "lightning is a dependency"
    return file


def section(name: str) -> dict[str, str]:
    """The options of model, data, checkpoint, trainer or resume that may be given."""
    if name not in SECTIONS and name != "resume":
        return {}
    parameters = parameters_of(SECTIONS.get(name, "Resume"))
    given = {option: annotation for option, annotation in parameters.items() if f"{name}.{option}" not in LINKS}
    return {option: NARROWER.get(f"{name}.{option}", annotation) for option, annotation in given.items()}


@cache
def everywhere() -> dict[str, list[str]]:
    """Every option's own name -> where it stands, dotted: sections' own first, then those of the classes that can be chosen there."""
    outer = [(name, name) for name in SINGLE if name not in ("config", "print_config", "help")]
    outer += [(option, f"{name}.{option}") for name in SECTIONS for option in section(name)]
    inner = [pair for name in SECTIONS for option, annotation in section(name).items() for pair in _inside(f"{name}.{option}", annotation)]
    found: dict[str, list[str]] = {}
    for option, path in [*outer, *inner, *((name, name) for name in SECTIONS)]:
        found.setdefault(option, []).append(path)
    return found


def _inside(path: str, annotation: str) -> list[tuple[str, str]]:
    """(name, dotted path) of the options of the classes that may stand here; the usual optimizer's for all optimizers."""
    if wants_list(annotation):
        return []
    own = [(option, f"{path}.{option}") for option in fields_of(annotation)]
    chosen = dict.fromkeys(option for choice in choices(annotation) for option in parameters_of(choice))
    if "OptimizerCallable" in _names(annotation):
        usual = find("torch.optim.AdamW")
        chosen |= dict.fromkeys(option for option in (usual.parameters if usual else ()) if option != "params")
    return own + [(option, f"{path}.init_args.{option}") for option in chosen]


def parameters_of(name: str) -> dict[str, str]:
    """Constructor parameters, those of the nearest base that has some where the class has none."""
    known = classes().get(name)
    if known is None:
        return {}
    if known.parameters or not known.bases:
        return known.parameters
    return parameters_of(known.bases[0])


def choices(annotation: str) -> list[str]:
    """Our classes that a value of this type may name: the subclasses of an abstract base, those left out that are abstract themselves."""
    bases = {name for name in _names(annotation) if name in classes()}
    return sorted(name for name in classes() if _ancestors(name) & bases and not _left_open(name))


def published(annotation: str) -> dict[str, str]:
    """Short name -> dotted path of the loggers, callbacks or optimizers that the annotation names, ours too."""
    found: dict[str, str] = {}
    for name in _names(annotation):
        package = PUBLISHED.get(name)
        file = module_file(package) if package else None
        if package and file:
            names = [short for short in read(file).imported if short[0].isupper() and short not in ("Optimizer", name)]
            found |= {short: f"{package}.{short}" for short in names}
            bases = {name, *found}
            found |= {short: short for short in classes() if _ancestors(short) & bases}
    return found


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


@cache
def _ancestors(name: str) -> set[str]:
    bases = classes()[name].bases if name in classes() else ()
    return set(bases).union(*(_ancestors(base) for base in bases)) if bases else set()


@cache
def _left_open(name: str) -> frozenset[str]:
    """The methods that a class leaves to its subclasses, its bases' among them."""
    known = classes().get(name)
    if known is None:
        return frozenset()
    return frozenset().union(*map(_left_open, known.bases)) - known.defines | known.left_open


def accepts_null(annotation: str) -> bool:
    """Whether null is a value of this type."""
    return bool({"None", "Optional", "Any"} & {*_names(annotation), *(["None"] if "None" in annotation else [])})


def wants_list(annotation: str) -> bool:
    """Whether nothing but a list will do."""
    return annotation.startswith("list[") and "|" not in annotation.rpartition("]")[2]


def takes_list(annotation: str) -> bool:
    """Whether a list is among what will do."""
    return bool({"list", "Iterable", "Sequence", "Any"} & set(_names(annotation)))


def allowed(annotation: str) -> set | None:
    """{int, float, bool, str, None, or literal values} that a plain annotation allows; None where it is more than that."""
    plain: dict[str, set] = {"int": {int}, "float": {float}, "bool": {bool}, "str": {str}, "None": {None}}
    plain["Tensor"] = set()  # nothing in a YAML is one

    def collect(node: ast.expr) -> set | None:
        if isinstance(node, ast.Constant):
            return {None} if node.value is None else None
        if isinstance(node, ast.Name) and node.id in aliases():
            return allowed(aliases()[node.id])
        if isinstance(node, ast.Name):
            return plain.get(node.id)
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

    def both(nodes: Iterable[ast.expr]) -> set | None:
        sets = [collect(node) for node in nodes]
        return None if any(one is None for one in sets) else set().union(*(one for one in sets if one is not None))

    return collect(ast.parse(annotation, mode="eval").body)
