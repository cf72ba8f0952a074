"""What is wrong with a configuration, by line: YAML against the options there are. It refuses to know the command line."""

import difflib
import re
from collections.abc import Iterator
from pathlib import Path

import yaml

from ltune import schema
from ltune.errors import UsageError
from ltune.ranges import out_of_range
from ltune.signatures import Class, NoSuchClass, find
from ltune.suggestions import did_you_mean, unknown

Problem = tuple[int, str]  # line, what
CLASS_KEYS = ("class_path", "init_args", "dict_kwargs")
PLAIN_TAGS = {f"tag:yaml.org,2002:{name}" for name in ("map", "seq", "str", "int", "float", "bool", "null", "timestamp", "merge", "value")}


def check_file(file: Path) -> list[str]:
    """What is wrong with one YAML file, each problem with file:line.

    Raises:
        UsageError: The file cannot be read as YAML at all.
    """
    tree = read_file(file)
    if tree is None:
        return []
    odd = next((node for node in every_node(tree) if node.tag not in PLAIN_TAGS), None)
    if odd is not None:
        tag = odd.tag.replace("tag:yaml.org,2002:", "!!")
        return [f"{file}:{line_of(odd)}: the tag {tag} is not allowed; a configuration is plain YAML"]
    if not isinstance(tree, yaml.MappingNode):
        return [f"{file}:{line_of(tree)}: a configuration is a mapping of keys to values, got {shown(tree)}"]
    return [f"{file}:{line}: {problem}" for line, problem in check_top(tree)]


def read_file(file: Path) -> yaml.Node | None:
    """The file's nodes, which know their lines; None for an empty file."""
    if not file.is_file():
        near = difflib.get_close_matches(file.name, [other.name for other in file.parent.glob("*.y*ml")], n=1)
        hint = f"; did you mean {file.parent / near[0]}?" if near else f" (looked from {Path.cwd()})"
        raise UsageError(f"--config {file}: " + ("that is a folder, not a YAML file" if file.is_dir() else f"no such file{hint}"))
    try:
        return yaml.compose(file.read_text(encoding="utf-8-sig"), Loader=yaml.SafeLoader)
    except UnicodeDecodeError as error:
        raise UsageError(f"{file}: not UTF-8 text: {error}") from error
    except OSError as error:
        raise UsageError(f"--config {file}: cannot be read: {error.strerror}") from error
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UsageError(f"{file}{line}: not valid YAML: {error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise UsageError(f"{file}: not valid YAML: {str(error).splitlines()[0]}") from error


# -- keys -----------------------------------------------------------------------------------------------------------------------------


def check_top(tree: yaml.MappingNode) -> Iterator[Problem]:
    """The first level: sections and single keys."""
    sections = {**dict.fromkeys(schema.SECTIONS, "section"), **schema.SINGLE}
    yield from duplicates(tree)
    for name, key, value in entries(tree):
        if name not in sections:
            yield line_of(key), unknown(name, "", list(sections))
        elif name in schema.SECTIONS or name == "resume":
            yield from check_group(value, name, schema.section(name))
        else:
            yield from check_value(value, name, schema.SINGLE[name])


def check_group(node: yaml.Node, path: str, options: dict[str, str]) -> Iterator[Problem]:
    """A mapping whose keys are known."""
    if not isinstance(node, yaml.MappingNode):
        if not is_null(node) or path in schema.SECTIONS:
            yield line_of(node), f"{path} holds options ({', '.join(list(options)[:6])} ...), got {shown(node)}"
        return
    yield from duplicates(node)
    for name, key, value in entries(node):
        if f"{path}.{name}" in schema.LINKS:
            yield line_of(key), f"{path}.{name} follows from {schema.LINKS[f'{path}.{name}']}; leave it out"
        elif name not in options:
            yield line_of(key), unknown(name, path, list(options))
        else:
            yield from check_value(value, f"{path}.{name}", options[name])


def duplicates(node: yaml.MappingNode) -> Iterator[Problem]:
    """Keys that stand twice: the second would silently win."""
    first: dict[str, yaml.Node] = {}
    for key, _ in node.value:
        if first.setdefault(str(key.value), key) is not key:
            yield line_of(key), f"{key.value} stands here a second time (first in line {line_of(first[str(key.value)])})"


# -- values ---------------------------------------------------------------------------------------------------------------------------


def check_value(node: yaml.Node, path: str, annotation: str) -> Iterator[Problem]:
    """A value against its annotation, as far as the text of the annotation tells."""
    ours, fields, published = schema.choices(annotation), schema.fields_of(annotation), schema.published(annotation)
    if is_null(node):
        if not schema.accepts_null(annotation) and path != "resume":
            hint = f", or choose one of {', '.join(ours)}" if ours else ""
            yield line_of(node), f"{path} cannot be null; leave it out for its default{hint}"
    elif schema.wants_list(annotation) and not isinstance(node, yaml.SequenceNode):
        yield line_of(node), f"{path} is a list, got {shown(node)}; write [{node.value if isinstance(node, yaml.ScalarNode) else '...'}]"
    elif (
        isinstance(node, yaml.SequenceNode)
        and schema.allowed(annotation) is None
        and (schema.takes_list(annotation) or not (ours or fields))
    ):
        for item in node.value:
            if isinstance(item, yaml.MappingNode) and fields:
                yield from check_fields(item, path, fields)
            elif published:
                yield from check_class(item, path, list(published), published)
            elif ours and schema.wants_list(annotation):
                yield from check_class(item, path, ours, published)
            elif schema.wants_list(annotation) and isinstance(item, yaml.ScalarNode) and not item.tag.endswith(":str"):
                yield line_of(item), f"{path}: an item is text, got {shown(item)}"
    elif ours or published:
        if not (isinstance(node, yaml.ScalarNode) and node.tag.endswith(":bool") and "bool" in annotation):  # trainer.logger may be true
            yield from check_class(node, path, ours or list(published), published)
    elif fields and (isinstance(node, yaml.MappingNode) or not schema.takes_list(annotation)):
        yield from check_group(node, path, fields)
    else:
        yield from check_plain(node, path, annotation)


def check_fields(node: yaml.MappingNode, path: str, fields: dict[str, str]) -> Iterator[Problem]:
    """An item of a list, such as {name: alpaca, max_rows: 500}."""
    yield from check_group(node, path, fields)
    if "name" in fields and "name" not in [name for name, _, _ in entries(node)]:
        yield line_of(node), f"{path}: an item has a name, and may have {', '.join(list(fields)[1:])}; the name is missing"


def check_class(node: yaml.Node, path: str, choices: list[str], published: dict[str, str]) -> Iterator[Problem]:
    """A class: its name, or its ``class_path`` and ``init_args``."""
    if isinstance(node, yaml.ScalarNode):
        yield from check_class_path(node, path, choices)
        return
    if not isinstance(node, yaml.MappingNode):
        yield line_of(node), f"{path} is a class ({', '.join(choices[:6])}), got {shown(node)}"
        return
    yield from duplicates(node)
    parts = {name: value for name, _, value in entries(node)}
    for name, key, _ in entries(node):
        if name not in CLASS_KEYS:
            near = difflib.get_close_matches(name, CLASS_KEYS, n=1, cutoff=0.6)
            owner = next((choice for choice in choices if name in schema.parameters_of(choice)), None)
            form = f"{{class_path: {owner or choices[0]}, init_args: {{{f'{name}: ' if owner else ''}...}}}}"
            hint = f'did you mean "{near[0]}"?' if near else f"a class is given as {form}"
            yield line_of(key), f"{path}.{name} is not an option; {hint}"
            return
    chosen = parts.get("class_path")
    if chosen is None:
        yield from check_without_class_path(node, parts, path, choices, published)
    elif not isinstance(chosen, yaml.ScalarNode):
        yield line_of(chosen), f"{path}.class_path is the name of a class, got {shown(chosen)}"
    else:
        problems = list(check_class_path(chosen, path, choices))
        yield from problems
        known = None if problems else class_of(chosen.value, published)
        if known and not known.takes_more and "init_args" in parts:
            yield from check_group(parts["init_args"], f"{path}.init_args", options_of(known))


def check_without_class_path(node: yaml.Node, parts: dict, path: str, choices: list[str], published: dict[str, str]) -> Iterator[Problem]:
    """The options alone are for the class that the default, or an earlier file, chose; a list of loggers or callbacks has none."""
    if published or "init_args" not in parts:
        yield line_of(node), f"{path}: class_path is missing; a class is given as {{class_path: {choices[0]}, init_args: {{...}}}}"
    else:
        every: dict[str, str] = {}
        for choice in choices:
            for name, annotation in schema.parameters_of(choice).items():
                every[name] = annotation if every.get(name, annotation) == annotation else "Any"
        yield from check_group(parts["init_args"], f"{path}.init_args", every)


def options_of(known: Class) -> dict[str, str]:
    """The constructor's parameters that may be given; an optimizer's ``params`` are ours to give."""
    return {name: annotation for name, annotation in known.parameters.items() if name != "params"}


def check_class_path(node: yaml.ScalarNode, path: str, choices: list[str]) -> Iterator[Problem]:
    """A short name must be one of the choices; a dotted one must lead to a class, as far as the sources tell."""
    if not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", node.value):
        if node.value not in choices:
            yield line_of(node), f"{path}: {did_you_mean(node.value, choices)}"
        return
    try:
        find(node.value)
    except NoSuchClass as error:
        yield line_of(node), f"{path}: {error}"


def class_of(name: str, published: dict[str, str]) -> Class | None:
    """The class with this short or dotted name; None where its source does not tell."""
    short = name.rpartition(".")[2]
    if short in schema.classes() and (name == short or name.startswith("ltune.")):
        return Class(short, (), schema.parameters_of(short), schema.classes()[short].takes_more)
    dotted = published.get(name, name)
    return find(dotted) if "." in dotted else None


def check_plain(node: yaml.Node, path: str, annotation: str) -> Iterator[Problem]:
    """int, float, bool, str and literals."""
    allowed = schema.allowed(annotation)
    if allowed is None:
        return
    if not isinstance(node, yaml.ScalarNode):
        yield line_of(node), f"{path} is one value ({wanted(allowed)}), got {shown(node)}"
    elif not fits(node, allowed):
        literals = sorted(value for value in allowed if isinstance(value, str))
        hint = did_you_mean(node.value, literals) if literals else f"wants {wanted(allowed)}, got {shown(node)}"
        yield line_of(node), f"{path}: {hint}"
    elif problem := out_of_range(path, node.value):
        yield line_of(node), problem


def wanted(allowed: set) -> str:
    """What is allowed, in words."""
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text", None: "null"}
    types = [words[one] for one in words if one in allowed and not (one is int and float in allowed)]
    return " or ".join([*sorted(str(one) for one in allowed if not isinstance(one, type) and one is not None), *types])


def fits(node: yaml.ScalarNode, allowed: set) -> bool:
    """Whether the scalar is one of the allowed types or literals."""
    if str in allowed or node.value in {str(value) for value in allowed if isinstance(value, str | int)}:
        return True
    if node.tag.endswith(":bool"):
        return bool in allowed
    try:
        number = float(node.value)  # YAML 1.1 reads 5e-5 as text; it is a number all the same
    except ValueError:
        return False
    return float in allowed or (int in allowed and number == int(number) and "." not in node.value)


def shown(node: yaml.Node) -> str:
    """A value as the file has it, short."""
    if isinstance(node, yaml.ScalarNode):
        return "null" if is_null(node) else repr(node.value if len(node.value) <= 60 else node.value[:57] + "...")
    return "a mapping" if isinstance(node, yaml.MappingNode) else "a list"


# -- nodes ----------------------------------------------------------------------------------------------------------------------------


def entries(node: yaml.MappingNode) -> Iterator[tuple[str, yaml.Node, yaml.Node]]:
    """(name, key node, value node) of a mapping; what ``<<`` merges in comes last, where it is not overridden."""
    own = [(str(key.value), key, value) for key, value in node.value if key.tag != "tag:yaml.org,2002:merge"]
    yield from own
    for key, value in node.value:
        if key.tag == "tag:yaml.org,2002:merge":
            for merged in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                if isinstance(merged, yaml.MappingNode):
                    yield from (entry for entry in entries(merged) if entry[0] not in [name for name, _, _ in own])


def every_node(tree: yaml.Node) -> Iterator[yaml.Node]:
    """All nodes, each once: an anchor may lead back to itself."""
    waiting, seen = [tree], set()
    while waiting:
        node = waiting.pop(0)
        if id(node) in seen:
            continue
        seen.add(id(node))
        yield node
        if isinstance(node, yaml.MappingNode):
            waiting += [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            waiting += node.value


def line_of(node: yaml.Node) -> int:
    """1-based."""
    return node.start_mark.line + 1


def is_null(node: yaml.Node) -> bool:
    """null, ~ or nothing."""
    return isinstance(node, yaml.ScalarNode) and node.tag.endswith(":null")
