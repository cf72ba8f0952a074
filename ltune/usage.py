"""Finds what is wrong with a command line and its YAML files before anything heavy is imported: file, line, what was meant."""

import re
from collections.abc import Iterator
from pathlib import Path

import yaml

from ltune import schema
from ltune.configuration import check_file, check_value, entries, is_null, line_of, read_file
from ltune.data.template_files import from_path, named
from ltune.errors import UsageError
from ltune.ranges import out_of_range
from ltune.suggestions import unknown

_files: list[Path] = []  # the configuration files of this command, for ``explain``
_options: list[tuple[str, str | None]] = []  # its options, likewise


def precheck(arguments: list[str]) -> None:
    """Raise UsageError for unreadable files, unknown keys and wrong values; all are found, and at most four lines shown."""
    _files[:] = configurations(arguments)
    _options[:] = options(arguments)
    problems: list[str] = []
    for file in _files:
        problems += check_file(file)
    for name, value in _options:
        problems += [f"--{name}: {problem}" for problem in check_option(name, value)]
    problems += [f"{argument} belongs to no option; write  --config {argument}  or  --OPTION {argument}" for argument in strays(arguments)]
    problems += check_template(arguments)
    if problems:
        shown = problems if len(problems) <= 4 else [*problems[:3], f"... and {len(problems) - 3} more"]
        raise UsageError("\n".join(shown))


# -- the command line -----------------------------------------------------------------------------------------------------------------


def configurations(arguments: list[str]) -> list[Path]:
    """The files given by -c and --config."""
    if arguments and arguments[-1] in ("-c", "--config"):
        raise UsageError(f"{arguments[-1]} wants a file, for example  --config configs/quickstart.yaml")
    return [Path(value or "") for name, value in options(arguments) if name in ("c", "config")]


def options(arguments: list[str]) -> list[tuple[str, str | None]]:
    """(name, value) of each option; None where no value follows."""
    found: list[tuple[str, str | None]] = []
    for number, argument in enumerate(arguments):
        if is_option(argument):
            name, equals, value = argument.lstrip("-").partition("=")
            following = arguments[number + 1] if number + 1 < len(arguments) and not is_option(arguments[number + 1]) else None
            found.append((name, value if equals else following))
    return found


def is_option(argument: str) -> bool:
    """``--name`` or ``-c``, not a negative number."""
    return re.match(r"--\w|-[A-Za-z]", argument) is not None


def strays(arguments: list[str]) -> Iterator[str]:
    """Arguments that are neither an option nor the value of one."""
    for before, argument in zip(["--help=", *arguments], arguments, strict=False):
        if not is_option(argument) and (not is_option(before) or "=" in before):
            yield argument


def check_option(name: str, value: str | None) -> Iterator[str]:
    """What is wrong with ``--section.option value``."""
    name, adds = name.removesuffix("+"), name.endswith("+")
    if name in ("c", "h"):
        return
    annotation, problem = annotation_of(name)
    if problem:
        yield problem
    elif annotation is not None and value is not None and not adds:
        try:
            node = yaml.compose(value, Loader=yaml.SafeLoader)
        except yaml.YAMLError:
            return  # plain text, such as a system prompt; LightningCLI has the last word
        text = str in (schema.allowed(annotation) or ())  # then what looks like a mapping is text all the same
        if text and (problem := out_of_range(name, value)):
            yield problem.removeprefix(f"{name} ")
        elif node is not None and not text:
            yield from (problem.removeprefix(f"{name}: ").removeprefix(f"{name} ") for _, problem in check_value(node, name, annotation))


def annotation_of(name: str) -> tuple[str | None, str | None]:
    """(annotation, None) of a dotted option, (None, problem) where there is none, (None, None) where the sources do not tell."""
    first, _, rest = name.partition(".")
    if first not in (*schema.SECTIONS, *schema.SINGLE):
        return None, unknown(first, "", [*schema.SECTIONS, *schema.SINGLE])
    if first not in (*schema.SECTIONS, "resume"):
        return (None, f"{first} has no parts") if rest and first not in ("config", "help") else (schema.SINGLE[first], None)
    if not rest:
        return None, None
    second, _, deeper = rest.partition(".")
    if f"{first}.{second}" in schema.LINKS:
        return None, f"{first}.{second} follows from {schema.LINKS[f'{first}.{second}']}; leave it out"
    if second not in schema.section(first):
        return None, unknown(second, first, list(schema.section(first)))
    return inner_annotation(f"{first}.{second}", schema.section(first)[second], deeper.removeprefix("init_args."))


def inner_annotation(path: str, annotation: str, deeper: str) -> tuple[str | None, str | None]:
    """As ``annotation_of``, for a part of an option: a class's own option, a field."""
    if not deeper:
        return annotation, None
    choices = schema.choices(annotation)
    known: dict[str, set[str]] = {}
    for parameters in [schema.fields_of(annotation), *(schema.parameters_of(choice) for choice in choices)]:
        for name, found in parameters.items():
            known.setdefault(name, set()).add(found)
    last, _, more = deeper.partition(".")
    if not known or more or last in ("class_path", "init_args", "dict_kwargs", "help"):
        return None, None
    if last not in known:
        return None, unknown(last, path, sorted(known))
    return (known[last].pop(), None) if len(known[last]) == 1 else (None, None)


# -- the template ---------------------------------------------------------------------------------------------------------------------


def check_template(arguments: list[str]) -> Iterator[str]:
    """What is wrong with the name or the file that data.template has last."""
    place, name = "", None
    for option, value in options(arguments):
        if option == "data.template":
            place, name = "--data.template", value if value not in ("null", "~") else None
        elif option in ("c", "config"):
            place, name = template_in(Path(value or "")) or (place, name)
    if name:
        try:
            from_path(Path(name).expanduser()) if name.endswith(".jinja") else named(name)
        except UsageError as error:
            problem = " ".join(str(error).splitlines())
            yield f"{place}: {problem.removeprefix('data.template: ') if place.startswith('--') else problem}"


def template_in(file: Path) -> tuple[str, str | None] | None:
    """(file:line, value) of data.template in a file; None where it says nothing of it."""
    data = next((value for name, _, value in parts(read_file(file)) if name == "data"), None)
    found = next(((key, value) for name, key, value in parts(data) if name == "template"), None)
    if found is None or not isinstance(found[1], yaml.ScalarNode):
        return None
    return f"{file}:{line_of(found[0])}", None if is_null(found[1]) else found[1].value


def parts(node: yaml.Node | None) -> Iterator[tuple[str, yaml.Node, yaml.Node]]:
    """(name, key, value) of a mapping; nothing for what is none."""
    return iter(entries(node)) if isinstance(node, yaml.MappingNode) else iter(())


# -- what LightningCLI says -----------------------------------------------------------------------------------------------------------

NOISE = re.compile(
    r"Does not validate against|Subtypes:|Errors:|Given value|Expected a path but|Problem with given class_path|Not a valid subclass|"
    r"Subclass types expect|a class path \(str\)|a dict with"
)
KEY = re.compile(r"(?:Parser key |[Oo]ption |Key |argument )[\"'`-]*([A-Za-z_][\w.]*)")
PLAINLY = {  # Python's words, and those of somebody who writes a YAML
    r"Type typing\.Callable\[.*?\] expects a function or a callable class: ": "",
    r"Namespace\(class_path='([\w.]+)'.*\)": r"\1",
    r"typing\.Literal\[([^\]]*)\]": r"one of \1",
    r"<class '(?:[\w.]+\.)?(\w+)'>": r"\1",
    r"Expected a dot import path string: .*": "wants the name of a class",
    r"Expected an import path or a subclass spec, but got": "wants a class, got",
    r"Import path ([\w.]+) does not correspond to a subclass of (\w+)": r"\1 is no \2",
    r"Expected '([\w.]+)' to be a subclass of (\w+)\.*": r"\1 is no \2",
    r"Expected an? (one of )?": r"wants \1",
    r"wants NoneType": "wants null",
    r"wants str\b": "wants text",
    r"wants int\b": "wants a whole number",
    r"wants float\b": "wants a number",
    r"\.? Got value:": ", got",
}


def explain(message: str) -> str:
    """LightningCLI's message in a few lines, with the place of the key it names: file:line, or the option on the command line."""
    found = KEY.search(message)
    key = found.group(1) if found else None
    lines = [re.sub(r'^(- )?(Parser key "[\w.]+":)?\s*', "", line.strip()) for line in message.splitlines()]
    said = [plainly(line) for line in lines if line and not NOISE.match(line)]
    wanted = list(dict.fromkeys(line.removeprefix("wants ") for line in said if line.startswith("wants ") and ", got" not in line))
    said = [line for line in dict.fromkeys(said) if not line.startswith("wants ") or ", got" in line]
    given = re.search(r"Given value: (.+)", message)
    if wanted and not said:
        said.append(f"wants {' or '.join(wanted)}" + (f", got {given.group(1)}" if given else ""))
    if refused := re.fullmatch(r"Option '(\w+)' is not accepted", said[0] if said else ""):
        said = [unknown(refused.group(1), "", list(schema.everywhere()))]
    kept = [line if len(line) <= 240 else line[:237] + "..." for line in said[:4]] or [message.strip()[:240]]
    place = locate(key) if key else None
    if key and not (place or "").endswith(key) and key not in kept[0]:
        kept[0] = f"{key}: {kept[0]}"
    return "\n".join([f"{place}: {kept[0]}" if place else kept[0], *(f"  {line}" for line in kept[1:])])


def plainly(line: str) -> str:
    """A line of jsonargparse's in plain words."""
    for python, plain in PLAINLY.items():
        line = re.sub(python, plain, line)
    return line


def locate(key: str) -> str | None:
    """Where ``model.adapter`` and the like is set last: the option, or file:line. A bare name is found where it stands only once."""
    for name, _ in reversed(_options):
        if name == key or ("." not in key and name.endswith(f".{key}")):
            return f"--{name}"
    for file in reversed(_files):
        tree = yaml.compose(file.read_text(encoding="utf-8-sig"), Loader=yaml.SafeLoader)
        lines = [line for line, path in keys(tree, "") if path == key or ("." not in key and path.endswith(f".{key}"))]
        if len(lines) == 1:
            return f"{file}:{lines[0]}"
    return locate(key.rpartition(".")[0]) if "." in key else None


def keys(node: yaml.Node | None, path: str) -> Iterator[tuple[int, str]]:
    """(line, dotted path) of every key in a tree."""
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from keys(item, path)
    elif isinstance(node, yaml.MappingNode):
        for name, key, value in entries(node):
            yield line_of(key), f"{path}.{name}" if path else name
            yield from keys(value, f"{path}.{name}" if path else name)
