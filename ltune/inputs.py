"""What a command will read, looked at before anything heavy is imported: the template that is a file, the files of rows.

All that is found here would be found later too, in the same words. Where the options cannot be told from the command line and its files
alone, it is left for later.
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from ltune import schema
from ltune.errors import UsageError
from ltune.usage import options

if TYPE_CHECKING:
    from ltune.data.rows import Row

DEFAULTS: dict[str, Any] = {  # of ChatData, whose module imports torch; a test holds them together
    "datasets": [],
    "val_datasets": [],
    "test_datasets": [],
    "folder": "data",
    "max_rows": None,
    "bad_rows": "error",
    "cache": None,
    "template": None,
    "reasoning": "keep",
}
TEXTS = ("folder", "bad_rows", "cache", "template", "reasoning")
WHOLE = (int, type(None))


def look(command: str, arguments: list[str]) -> None:
    """Look at what fit, validate, test or predict would read, given arguments that are sound.

    Raises:
        UsageError: A template that cannot be rendered, or a file with a row that is malformed or no row.
    """
    data = what_is_read(arguments)
    if data is not None and str(data["template"]).endswith(".jinja"):
        from ltune.data.templates import try_out

        try_out(data["template"], data["reasoning"])
    look_at_data(command, arguments)


def look_at_data(command: str, arguments: list[str]) -> None:
    """As above, at the rows alone."""
    data = what_is_read(arguments)
    if data is not None and data["bad_rows"] == "error":
        look_at_rows(read_by(command, data), data, None if command == "predict" else objective(arguments))


def what_is_read(arguments: list[str]) -> dict[str, Any] | None:
    """The options of the data; None where there is nothing to look at, or another process of this machine does it."""
    if os.environ.get("LOCAL_RANK", "0") != "0" or any(name in ("h", "help", "print_config") for name, _ in options(arguments)):
        return None
    return data_options(arguments)


def read_by(command: str, data: dict[str, Any]) -> list[tuple[str, Any]]:
    """(option, data set) of what the command reads."""
    asked = {"fit": ["datasets", "val_datasets"], "validate": ["val_datasets"]}.get(command, ["test_datasets"])
    if command in ("validate", "predict") and not data[asked[0]]:
        asked = ["datasets"]
    return [(option, item) for option in asked for item in data[option]]


def look_at_rows(datasets: list[tuple[str, Any]], data: dict[str, Any], objective: str | None) -> None:
    """Look at the files of these data sets that are on this machine; one that is nowhere is refused."""
    from ltune.data.contents import cache_folder, hashes_in
    from ltune.data.rows import WrongColumns
    from ltune.data.scan import scan
    from ltune.data.sources import Dataset, Source, find

    sources: list[tuple[Source, int | None]] = []
    for option, item in datasets:
        with suppress(OSError):  # said later
            try:
                found = find(Dataset(**item) if isinstance(item, dict) else item, data["folder"])
            except UsageError as error:
                raise UsageError(f"data.{option}: {error}") from error
            if isinstance(found, Source):
                sources.append((found, data["max_rows"] if found.max_rows is None else found.max_rows))
    rows = rows_of(objective)
    try:
        scan(sources, hashes_in(cache_folder(data["cache"])), rows)
    except WrongColumns as error:
        assert rows is not None, "only rows of some kind need columns"
        raise error.for_objective(f"model.objective: {objective}", rows) from None


def rows_of(objective: str | None) -> "type[Row] | None":
    """The kind of rows that an objective trains on; None where its source does not tell."""
    from ltune.data import rows

    known = schema.classes().get(objective or "")
    while known is not None and "rows" not in known.values:
        known = schema.classes().get(known.bases[0]) if known.bases else None
    return getattr(rows, known.values["rows"], None) if known else None


# -- the options ----------------------------------------------------------------------------------------------------------------------


def data_options(arguments: list[str]) -> dict[str, Any] | None:
    """Those of DEFAULTS, as the last file or option sets them; None where that cannot be told."""
    found = dict(DEFAULTS)
    for option, text in options(arguments):
        if option in ("c", "config"):
            read = _value(Path(text or "").read_text(encoding="utf-8-sig")) or {}
            if not isinstance(read, dict):
                return None
            found |= {key: value for key, value in (read.get("data") or {}).items() if key in DEFAULTS}
        elif option == "data" or option.startswith("data."):
            name, adds = option.removeprefix("data.").removesuffix("+"), option.endswith("+")
            if option == "data" or (name not in DEFAULTS and name.partition(".")[0] in DEFAULTS):
                return None
            if name in DEFAULTS:
                value = _value(text)
                found[name] = [*found[name], *(value if isinstance(value, list) else [value])] if adds else value
    return found if all(_is_plain(found)) else None


def objective(arguments: list[str]) -> str | None:
    """The short name of the objective's class; None where that cannot be told."""
    found: Any = "SFT"
    for option, text in options(arguments):
        if option in ("c", "config"):
            read = _value(Path(text or "").read_text(encoding="utf-8-sig")) or {}
            found = (read.get("model") or {}).get("objective", found)
        elif option == "model" or option.startswith("model.objective."):
            return None
        elif option == "model.objective":
            found = _value(text)
    named = found.get("class_path") if isinstance(found, dict) else found
    if not isinstance(named, str) or ("." in named and not named.startswith("ltune.")):
        return None
    return named.rpartition(".")[2]


def _value(text: str | None) -> Any:
    try:
        return yaml.safe_load(text or "")
    except (yaml.YAMLError, ValueError):  # plain text, such as a system prompt; or a date that there is not
        return text


def _is_plain(found: dict[str, Any]) -> Iterator[bool]:
    """Whether each value has its type already, so that nothing need be made of it."""
    yield all(isinstance(found[name], str | type(None)) for name in TEXTS)
    yield type(found["max_rows"]) in WHOLE and (found["max_rows"] is None or found["max_rows"] > 0)
    for name in ("datasets", "val_datasets", "test_datasets"):
        yield isinstance(found[name], list) and all(isinstance(item, str) or _is_dataset(item) for item in found[name])


def _is_dataset(item: Any) -> bool:
    from ltune.data.sources import Dataset

    return (
        isinstance(item, dict)
        and "name" in item
        and set(item) <= {field.name for field in fields(Dataset)}
        and all(type(item.get(key)) in WHOLE for key in ("max_rows", "num_samples"))
        and type(item.get("weight", 1)) in (int, float)
        and all(isinstance(file, str) for file in [item["name"], *(item.get("files") or [])])
    )
