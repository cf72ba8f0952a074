"""dataset_info.json: what LLaMA-Factory writes about its data sets, by name. It refuses to look for the files that it names."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ltune.data.strict_json import decoded, parsed
from ltune.errors import UsageError

FILE = "dataset_info.json"
COLUMNS = (
    "prompt", "query", "response", "history", "messages", "system", "tools",
    "images", "videos", "audios", "chosen", "rejected", "kto_tag",
)  # fmt: skip
TAGS = ("role_tag", "content_tag", "user_tag", "assistant_tag", "observation_tag", "function_tag", "system_tag")
TEXTS = ("file_name", "hf_hub_url", "subset", "split", "folder", "formatting")
ELSEWHERE = {  # where rows may come from that are not read here
    "ms_hub_url": "ModelScope's hub",
    "om_hub_url": "Modelers' hub",
    "script_url": "a loading script, which would run foreign code",
    "cloud_file_name": "cloud storage",
}
KNOWN = (*TEXTS, *ELSEWHERE, "ranking", "num_samples", "columns", "tags")


@dataclass(frozen=True)
class Entry:
    """What is written about a data set. One of ``file`` and ``hub_id`` is set."""

    place: str  # for messages
    file: Path | None
    hub_id: str | None
    format: str | None
    columns: dict[str, str] | None
    tags: dict[str, str] | None
    subset: str | None
    split: str | None
    folder: str | None
    num_samples: int | None


def entries(folder: Path) -> dict[str, Any]:
    """All entries of the folder's dataset_info.json, as they stand there; none where there is no such file.

    Raises:
        UsageError: The file is malformed.
    """
    path = folder / FILE
    if not path.is_file():
        return {}
    found = parsed(path, decoded(path, path.read_bytes()), 1)
    if not isinstance(found, dict):
        raise UsageError(f"{path}: must be an object, data set name to its entry.")
    return found


def entry_of(name: str, found: Any, folder: Path) -> Entry:
    """The entry, checked.

    Raises:
        UsageError: A key that LLaMA-Factory does not have, a value of the wrong type, or a place that is not read here.
    """
    place = f"data set {name} in {folder / FILE}"
    if not isinstance(found, dict):
        raise UsageError(f"{place}: its entry must be an object.")
    _check_keys(place, found)
    file, hub_id = found.get("file_name"), found.get("hf_hub_url")
    if not file and not hub_id:
        elsewhere = next((f"{key} ({why}) is not read here" for key, why in ELSEWHERE.items() if found.get(key)), None)
        said = elsewhere or f"got {', '.join(found) or 'nothing'}"
        raise UsageError(f"{place}: its entry has neither file_name nor hf_hub_url; {said}.")
    return Entry(
        place,
        folder / file if file and not hub_id else None,  # as in LLaMA-Factory, the hub goes before the file
        hub_id,
        found.get("formatting"),
        _columns(found),
        found.get("tags"),
        found.get("subset"),
        found.get("split"),
        found.get("folder"),
        found.get("num_samples"),
    )


def _check_keys(place: str, found: dict[str, Any]) -> None:
    _refuse_unknown(place, "the entry", found, KNOWN)
    for key in TEXTS:
        if not isinstance(found.get(key), str | None):
            raise UsageError(f"{place}: {key} must be text; got {repr(found[key])[:60]}.")
    if not isinstance(found.get("ranking"), bool | None):
        raise UsageError(f"{place}: ranking must be true or false; got {repr(found['ranking'])[:60]}.")
    samples = found.get("num_samples")
    if samples is not None and (type(samples) is not int or samples < 1):
        raise UsageError(f"{place}: num_samples must be a whole number, 1 or more; got {repr(samples)[:60]}.")
    for group, names in (("columns", COLUMNS), ("tags", TAGS)):
        check_names(place, group, found.get(group), names)


def check_names(place: str, group: str, given: Any, known: tuple[str, ...]) -> None:
    """Refuse what is no mapping of known parts to names."""
    if given is None:
        return
    if not isinstance(given, dict) or not all(isinstance(value, str) for value in given.values()):
        raise UsageError(f"{place}: {group} must be an object, part to name; got {repr(given)[:80]}.")
    _refuse_unknown(place, group, given, known)


def _refuse_unknown(place: str, where: str, given: dict[str, Any], known: tuple[str, ...]) -> None:
    if unknown := [key for key in given if key not in known]:
        raise UsageError(f"{place}: {where} has {', '.join(map(repr, unknown))}.\nKnown: {', '.join(known)}.")


def _columns(found: dict[str, Any]) -> dict[str, str] | None:
    """With ``ranking`` alone, the names that LLaMA-Factory presumes."""
    columns = found.get("columns")
    if not found.get("ranking"):
        return columns
    conversation = found.get("formatting") in ("sharegpt", "openai")
    presumed = {"messages": "conversations"} if conversation else {"prompt": "instruction", "query": "input"}
    return {**(columns or presumed), **{part: (columns or {}).get(part, part) for part in ("chosen", "rejected")}}
