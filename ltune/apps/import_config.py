"""`ltune import`: a LLaMA-Factory configuration in, ours out. It imports nothing heavy."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import Any, NoReturn

import yaml

from ltune.apps.llamafactory import Conversion, convert
from ltune.errors import UsageError

__all__ = ["Conversion", "convert", "main", "read_config"]


def main(argv: list[str]) -> int:
    """Read, convert, say what was not carried, write. Raises UsageError for what the user can mend."""
    arguments = parser().parse_args(argv)
    conversion = convert(read_config(arguments.file), arguments.file)
    report(conversion, arguments.file, arguments.allow_missing)
    write(conversion, arguments.file, arguments.output, arguments.force)
    print(arguments.output)
    print(f"next: {next_command(conversion.yaml, arguments.output)}")
    return 0


class Parser(argparse.ArgumentParser):
    """Says what is wrong without the whole usage."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}\nltune import --help  lists the options")


def parser() -> Parser:
    """The command line."""
    command = Parser(
        prog="ltune import", allow_abbrev=False, description="Turn a LLaMA-Factory training or chat configuration into one of ltune's."
    )
    command.add_argument("file", type=Path, metavar="FILE", help="the configuration, .yaml, .yml or .json")
    command.add_argument("--output", type=Path, default=Path("ltune.yaml"), metavar="FILE", help="what to write (default: %(default)s)")
    command.add_argument(
        "--allow-missing", action="store_true", help="write even where a setting that changes the result cannot be carried over"
    )
    command.add_argument("--force", action="store_true", help="write over another file of that name")
    return command


def read_config(file: Path) -> dict[str, Any]:
    """The file's keys and values.

    Raises:
        UsageError: no such file, malformed (with file:line), or not a mapping of keys to values.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{file}: not a text in UTF-8 (byte {error.start})") from error
    try:
        config = json.loads(text) if file.suffix == ".json" else yaml.load(text, UniqueKeys)
    except json.JSONDecodeError as error:
        raise UsageError(f"{file}:{error.lineno}: not JSON: {error.msg}") from error
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise UsageError(f"{file}:{line}: not YAML: {error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise UsageError(f"{file}:1: not YAML: {error}") from error
    if not isinstance(config, dict) or not config:
        raise UsageError(f"{file}: holds {type(config).__name__}, not the keys and values of a LLaMA-Factory configuration.")
    return {str(key): value for key, value in config.items()}


class UniqueKeys(yaml.SafeLoader):
    """Refuses a key given twice, as LLaMA-Factory does: one of the two values would be lost."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key is a single word", key.start_mark)
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value} is given twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


def report(conversion: Conversion, file: Path, allow_missing: bool) -> None:
    """Name on stderr what was not carried; refuse to go on where that would change the result."""
    if conversion.ignored:
        print(f"ignored, no effect on the result: {', '.join(conversion.ignored)}", file=sys.stderr)
    if not conversion.reasons:
        return
    reasons = "; ".join(f"{key} ({why})" for key, why in conversion.reasons.items())
    if not allow_missing:
        raise UsageError(
            f"{file}: not carried over, and the result would differ:\n  {reasons}\n"
            "Nothing is written. Remove them, or go on without them:  --allow-missing"
        )
    print(f"not carried over, the result will differ: {reasons}", file=sys.stderr)


def write(conversion: Conversion, file: Path, output: Path, force: bool) -> None:
    """Write the YAML, headed by where it came from and what it lacks."""
    text = f"# From {file.name} (LLaMA-Factory) by `ltune import`.\n"
    text += "".join(f"# Not carried over: {key}\n" for key in conversion.missing)
    text += yaml.safe_dump(conversion.yaml, sort_keys=False, allow_unicode=True, width=140)
    if output.exists() and not force and output.read_bytes() != text.encode("utf-8"):
        raise UsageError(
            f"{output} is there already and differs; nothing is written.\nName another with  --output FILE  or write over it with  --force"
        )
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{output}: {error.strerror or error}") from error


def next_command(config: dict[str, Any], output: Path) -> str:
    """What to do with the result: train, or talk."""
    if "run" in config:
        return f"ltune fit -c {shlex.quote(str(output))}"
    model, data = config["model"], config.get("data", {})
    options = {
        "--adapter": model.get("adapter", {}).get("init_args", {}).get("init"),
        "--template": data.get("template"),
        "--system": data.get("system"),
        "--quantize": (model["quantize"] or {}).get("class_path"),
        **{f"--{knob.replace('_', '-')}": model["sampling"][knob] for knob in ("max_new_tokens", "temperature", "top_p", "top_k")},
    }
    words = [word for option, value in options.items() if value is not None for word in (option, str(value))]
    return shlex.join(["ltune", "chat", str(model["model"]), *words])
