"""Finds what is wrong with a command line and its YAML files before anything heavy is imported, and says where: file, line, what was meant."""

import difflib
import re
from collections.abc import Iterator
from pathlib import Path

import yaml

from ltune import schema
from ltune.errors import UsageError

_files: list[Path] = []  # the configuration files of this command, for ``explain``


def precheck(arguments: list[str]) -> None:
    """Raise UsageError for unreadable files, unknown keys, wrong plain types and unknown options; all found are named, at most four shown."""
    _files[:] = configurations(arguments)
    problems: list[str] = []
    for file in _files:
        problems += check_file(file)
    problems += check_options(arguments)
    if problems:
        shown = problems if len(problems) <= 4 else [*problems[:3], f"... and {len(problems) - 3} more"]
        raise UsageError("\n".join(shown))


def configurations(arguments: list[str]) -> list[Path]:
    """The files given by -c and --config."""
    following = [value for name, value in zip(arguments, arguments[1:], strict=False) if name in ("-c", "--config")]
    joined = [argument.partition("=")[2] for argument in arguments if argument.startswith(("--config=", "-c="))]
    if arguments and arguments[-1] in ("-c", "--config"):
        raise UsageError(f"{arguments[-1]} wants a file, for example  --config configs/quickstart.yaml")
    return [Path(value) for value in [*following, *joined]]


def check_file(file: Path) -> list[str]:
    """What is wrong with one YAML file."""
    if not file.is_file():
        near = difflib.get_close_matches(file.name, [other.name for other in file.parent.glob("*.y*ml")] if file.parent.is_dir() else [], n=1)
        raise UsageError(f"--config {file}: no such file" + (f"; did you mean {file.parent / near[0]}?" if near else f" (looked from {Path.cwd()})"))
    try:
        tree = yaml.compose(file.read_text(encoding="utf-8-sig"), Loader=yaml.SafeLoader)
    except UnicodeDecodeError as error:
        raise UsageError(f"{file}: not UTF-8 text: {error}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise UsageError(f"{file}{line}: not valid YAML: {getattr(error, 'problem', None) or error}") from error
    if tree is None:
        return []
    if not isinstance(tree, yaml.MappingNode):
        return [f"{file}:1: a configuration is a mapping of keys to values"]
    return [f"{file}:{line}: {problem}" for line, problem in check_top(tree)]


Problem = tuple[int, str]


def check_top(tree: yaml.MappingNode) -> Iterator[Problem]:
    """The first level: sections and single keys."""
    sections = {**dict.fromkeys(schema.SECTIONS, "section"), **schema.SINGLE}
    for name, key, value in entries(tree):
        yield from duplicate(tree, key)
        if name not in sections:
            yield line_of(key), unknown(name, "", list(sections))
        elif name in schema.SECTIONS or name == "resume":
            yield from check_group(value, name, schema.section(name))
        else:
            yield from check_value(value, name, schema.SINGLE[name])


def check_group(node: yaml.Node, path: str, options: dict[str, str]) -> Iterator[Problem]:
    """A mapping whose keys are known."""
    if not isinstance(node, yaml.MappingNode):
        if not is_null(node):
            yield line_of(node), f"{path} holds options ({', '.join(list(options)[:6])} ...), got {shown(node)}"
        return
    for name, key, value in entries(node):
        yield from duplicate(node, key)
        if f"{path}.{name}" in schema.LINKS:
            yield line_of(key), f"{path}.{name} follows from {schema.LINKS[f'{path}.{name}']}; leave it out"
        elif name not in options:
            yield line_of(key), unknown(name, path, list(options))
        else:
            yield from check_value(value, f"{path}.{name}", options[name])


def check_value(node: yaml.Node, path: str, annotation: str) -> Iterator[Problem]:
    """A value against its annotation, as far as the text of the annotation tells."""
    choices, fields = schema.choices(annotation), schema.fields_of(annotation)
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            if isinstance(item, yaml.MappingNode) and fields:
                yield from check_group(item, path, fields)
    elif isinstance(node, yaml.MappingNode) and choices:
        yield from check_choice(node, path, choices)
    elif isinstance(node, yaml.MappingNode) and fields:
        yield from check_group(node, path, fields)
    elif isinstance(node, yaml.ScalarNode) and choices:
        if not is_null(node) and "." not in node.value and node.value not in choices:
            yield line_of(node), f"{path}: {did_you_mean(node.value, choices)}"
    else:
        yield from check_plain(node, path, annotation)


def check_choice(node: yaml.MappingNode, path: str, choices: list[str]) -> Iterator[Problem]:
    """``class_path`` and ``init_args`` of one of our classes."""
    chosen = next((value.value for name, _, value in entries(node) if name == "class_path"), None)
    for name, key, value in entries(node):
        if name == "class_path" and "." not in value.value and value.value not in choices:
            yield line_of(value), f"{path}: {did_you_mean(value.value, choices)}"
        elif name not in ("class_path", "init_args", "dict_kwargs"):
            yield line_of(key), f"{path}.{name}: a class is given as {{class_path: {choices[0]}, init_args: {{...}}}}"
        elif name == "init_args" and chosen and chosen.rsplit(".", 1)[-1] in choices:
            yield from check_group(value, f"{path}.init_args", schema.parameters_of(chosen.rsplit(".", 1)[-1]))


def check_plain(node: yaml.Node, path: str, annotation: str) -> Iterator[Problem]:
    """int, float, bool, str and literals."""
    allowed = schema.allowed(annotation)
    if allowed is None:
        return
    if not isinstance(node, yaml.ScalarNode):
        yield line_of(node), f"{path} is one value ({annotation}), got {shown(node)}"
    elif not fits(node, allowed):
        literals = sorted(value for value in allowed if isinstance(value, str))
        hint = did_you_mean(node.value, literals) if literals else f"wants {annotation}, got {shown(node)}"
        yield line_of(node), f"{path}: {hint}"


def fits(node: yaml.ScalarNode, allowed: set) -> bool:
    """Whether the scalar is one of the allowed types or literals."""
    if is_null(node):
        return None in allowed
    if str in allowed or node.value in {value for value in allowed if isinstance(value, str)}:
        return True
    if node.tag.endswith(":bool"):
        return bool in allowed
    try:
        number = float(node.value)  # YAML 1.1 reads 5e-5 as text; it is a number all the same
    except ValueError:
        return False
    return float in allowed or (int in allowed and number == int(number) and "." not in node.value)


def check_options(arguments: list[str]) -> list[str]:
    """Unknown ``--section.option`` on the command line."""
    problems = []
    for argument in arguments:
        if argument.startswith("--") and len(argument) > 2:
            name = argument[2:].partition("=")[0].rstrip("+")
            problem = check_option(name)
            if problem:
                problems.append(f"--{name}: {problem}")
    return problems


def check_option(name: str) -> str | None:
    """What is wrong with one option's dotted name."""
    first, _, rest = name.partition(".")
    sections = [*schema.SECTIONS, *schema.SINGLE]
    if first not in sections:
        return unknown(first, "", sections)
    if not rest or first not in (*schema.SECTIONS, "resume"):
        return None if not rest or first in ("config", "help") else f"{first} has no parts"
    options = schema.section(first)
    second, _, deeper = rest.partition(".")
    if f"{first}.{second}" in schema.LINKS:
        return f"follows from {schema.LINKS[f'{first}.{second}']}; leave it out"
    if second not in options:
        return unknown(second, first, list(options))
    choices, fields = schema.choices(options[second]), schema.fields_of(options[second])
    known = set(fields).union(*(schema.parameters_of(choice) for choice in choices)) | ({"class_path", "init_args", "help"} if choices else set())
    last = deeper.removeprefix("init_args.").partition(".")[0]
    return unknown(last, f"{first}.{second}", sorted(known)) if last and known and last not in known else None


def explain(message: str) -> str:
    """LightningCLI's message in a few lines, with the file and line of the key it names."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    found = re.search(r"(?:Parser key |option |Key |argument )[\"'`-]*([A-Za-z_][\w.]*)", message)
    place = locate(found.group(1)) if found else None
    kept = [line if len(line) <= 240 else line[:237] + "..." for line in lines[:4]]
    return "\n".join([f"{place}: {kept[0]}", *kept[1:]] if place else kept)


def locate(key: str) -> str | None:
    """file:line where the last configuration file that has it sets ``model.adapter`` and the like."""
    for file in reversed(_files):
        node: yaml.Node | None = yaml.compose(file.read_text(encoding="utf-8-sig"), Loader=yaml.SafeLoader)
        line = None
        for part in key.split("."):
            entry = next((entry for entry in entries(node) if entry[0] == part), None) if isinstance(node, yaml.MappingNode) else None
            if entry is None:
                break
            line, node = line_of(entry[1]), entry[2]
        if line is not None:
            return f"{file}:{line}"
    return None


def entries(node: yaml.MappingNode) -> Iterator[tuple[str, yaml.Node, yaml.Node]]:
    """(name, key node, value node) of a mapping."""
    for key, value in node.value:
        yield str(key.value), key, value


def duplicate(node: yaml.MappingNode, key: yaml.Node) -> Iterator[Problem]:
    """A key that stands twice: the second would silently win."""
    first = next(other for name, other, _ in entries(node) if name == key.value)
    if first is not key:
        yield line_of(key), f"{key.value} stands here a second time (first in line {line_of(first)})"


def unknown(name: str, path: str, options: list[str]) -> str:
    """That there is no such key, and which was probably meant: here, or in another section."""
    full = f"{path}.{name}" if path else name
    near = difflib.get_close_matches(name, options, n=1, cutoff=0.6)
    if near:
        return f'{full} is not an option; did you mean "{near[0]}"?'
    elsewhere = [f"{other}.{name}" for other in schema.SECTIONS if other != path and name in schema.section(other)]
    if elsewhere:
        return f"{full} is not an option; did you mean {elsewhere[0]}?"
    return f"{full} is not an option; there are: {', '.join(sorted(options)[:12])}{' ...' if len(options) > 12 else ''}"


def did_you_mean(value: str, choices: list[str]) -> str:
    """That the value is none of the choices."""
    near = difflib.get_close_matches(value, choices, n=1, cutoff=0.5)
    return f'"{value}" is none of {", ".join(choices)}' + (f'; did you mean "{near[0]}"?' if near else "")


def line_of(node: yaml.Node) -> int:
    """1-based."""
    return node.start_mark.line + 1


def is_null(node: yaml.Node) -> bool:
    """null, ~ or nothing."""
    return isinstance(node, yaml.ScalarNode) and node.tag.endswith(":null")


def shown(node: yaml.Node) -> str:
    """A value as the file has it, short."""
    if isinstance(node, yaml.ScalarNode):
        return repr(node.value)
    return "a mapping" if isinstance(node, yaml.MappingNode) else "a list"
