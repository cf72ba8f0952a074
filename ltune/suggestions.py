"""What was probably meant by a key or a value that does not exist. It refuses to know files and command lines."""

import difflib
from functools import cache

import yaml

from ltune import schema


def unknown(name: str, path: str, options: list[str]) -> str:
    """That there is no such key, and which was probably meant: here, in another section, or in another tool's words."""
    full = f"{path}.{name}" if path else name
    elsewhere = [other for other in schema.everywhere().get(name, []) if other != full]
    theirs = other_tools().get(name)
    if elsewhere and not (theirs and "init_args" in elsewhere[0]):  # a section's own option comes before another tool's word for one
        return f"{full} is not an option; did you mean {elsewhere[0]}?"
    if theirs:
        return f"{full} is {theirs} here"
    if near := _nearest(name, options, 0.6 if len(name) > 3 else 0.5):
        return f'{full} is not an option; did you mean "{near}"?'
    if near := _nearest(name, [*schema.everywhere()], 0.75):
        return f"{full} is not an option; did you mean {schema.everywhere()[near][0]}?"
    if near := _nearest(name, [*other_tools()], 0.85):
        return f"{full} is not an option; {near} is {other_tools()[near]} here"
    return f"{full} is not an option; there are: {', '.join(sorted(options)[:12])}{' ...' if len(options) > 12 else ''}"


def did_you_mean(value: str, choices: list[str]) -> str:
    """That the value is none of the choices."""
    near = _nearest(value, choices, 0.5)
    if near and len(choices) > 12:
        return f'"{value}" is not known; did you mean "{near}"?'
    return f'"{value}" is none of {", ".join(choices)}' + (f'; did you mean "{near}"?' if near else "")


@cache
def other_tools() -> dict[str, str]:
    """Another tool's name of an option -> ours, dotted."""
    text = (schema.PACKAGE / "assets" / "other_tools.yaml").read_text(encoding="utf-8")
    return {theirs: ours for ours, names in yaml.safe_load(text).items() for theirs in names}


def _nearest(name: str, choices: list[str], cutoff: float) -> str | None:
    """The choice most like it, in whatever case it is written."""
    cased = {choice.lower(): choice for choice in reversed(choices)}
    near = difflib.get_close_matches(name.lower(), list(cased), n=1, cutoff=cutoff)
    return cased[near[0]] if near else None
