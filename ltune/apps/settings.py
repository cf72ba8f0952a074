"""A LLaMA-Factory configuration that is read key by key and remembers which keys nobody could use. It refuses to know what they mean."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, TypeVar

import yaml

from ltune.errors import UsageError

Value = TypeVar("Value")
TRUTH = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


def load_table() -> tuple[set[str], set[str], dict[str, list]]:
    """The keys of llamafactory.yaml: carried, harmless, and neutral with the values that do nothing."""
    table = yaml.safe_load(Path(__file__).with_name("llamafactory.yaml").read_text(encoding="utf-8"))
    carried, harmless = ({key for line in table[group] for key in line} for group in ("carried", "harmless"))
    return carried, harmless, table["neutral"]


class Settings:
    """Typed access to a configuration; ``missing`` and ``ignored`` collect the keys that are not carried.

    Args:
        config: Key to value, as read from the file. A value of null is the same as no key.
        source: The file, for messages.
    """

    def __init__(self, config: dict[str, Any], source: Path) -> None:
        self.config = config
        self.source = source
        self.carried, self.harmless, self.neutral = load_table()
        self.missing: dict[str, str] = {}  # key: why
        self.ignored: list[str] = []
        self._read: set[str] = set()
        for key, value in config.items():
            if "${" in repr(value):
                raise UsageError(
                    f"{source}: {key} has an interpolation, {value}\nltune import does not resolve ${{...}}: write its value there."
                )

    def given(self, key: str) -> bool:
        """Whether the file has ``key`` with a value."""
        return self.config.get(key) is not None

    def get(self, key: str) -> Any:
        """The value as it stands, None where there is none; the key counts as carried from here on."""
        assert key in self.carried, f"{key} is not listed in llamafactory.yaml"
        self._read.add(key)
        return self.config.get(key)

    def text(self, key: str) -> str | None:
        """A text, or None."""
        value = self.get(key)
        if isinstance(value, (list, dict)):
            raise self._wrong(key, "one text", value)
        return None if value is None else str(value)

    def names(self, key: str) -> list[str]:
        """A list, or names separated by commas; empty where there is none."""
        value = self.get(key)
        if isinstance(value, dict):
            raise self._wrong(key, "a name, or names separated by commas", value)
        parts = value if isinstance(value, list) else ([] if value is None else str(value).split(","))
        return [str(part).strip() for part in parts if str(part).strip()]

    def numbers(self, key: str) -> list[float]:
        """A list of numbers, or numbers separated by commas; empty where there is none."""
        try:
            return [float(name) for name in self.names(key)]
        except ValueError:
            raise self._wrong(key, "numbers, separated by commas", self.get(key)) from None

    def flag(self, key: str, default: bool = False) -> bool:
        """true or false."""
        value = self.get(key)
        if value is None:
            return default
        if str(value).lower() not in TRUTH:
            raise self._wrong(key, "true or false", value)
        return TRUTH[str(value).lower()]

    def number(self, key: str, default: float) -> float:
        """A number; a text such as 5e-5 is one too."""
        value = self.get(key)
        if value is None:
            return default
        try:
            if isinstance(value, bool):
                raise ValueError
            return float(value)
        except (TypeError, ValueError):
            raise self._wrong(key, "a number", value) from None

    def whole(self, key: str, default: int) -> int:
        """A whole number; 3.0 is one too."""
        value = self.number(key, default)
        if value != int(value):
            raise self._wrong(key, "a whole number", value)
        return int(value)

    def choice(self, key: str, table: dict[str, Value], default: str) -> Value:
        """What ``table`` has for the value; a value that it does not have counts as missing and the default is taken."""
        value = self.text(key)
        if value is not None and value.lower() not in table:
            self.lacks(key, f"{value}: ltune has {', '.join(table)}")
            value = None
        return table[default if value is None else value.lower()]

    def lacks(self, key: str, why: str) -> None:
        """Note that ``key`` cannot be carried over and would change the result."""
        self._read.add(key)
        self.missing.setdefault(key, why)

    def ignore(self, key: str) -> None:
        """Note that ``key`` has no effect in this configuration."""
        self._read.add(key)
        if self.given(key) and key not in self.ignored:
            self.ignored.append(key)

    def account_for_rest(self) -> None:
        """Sort the keys that were not read into ignored and missing."""
        for key, value in self.config.items():
            if key in self._read:
                continue
            if key in self.carried or key in self.harmless or (key in self.neutral and self._is_neutral(key, value)):
                self.ignored.append(key)
            elif key in self.neutral:
                self.missing[key] = "ltune has no counterpart"
            else:
                near = difflib.get_close_matches(str(key), [*self.carried, *self.harmless, *self.neutral], n=1)
                self.missing[key] = "not a LLaMA-Factory key" + (f"; did you mean {near[0]}?" if near else "")

    def _is_neutral(self, key: str, value: Any) -> bool:
        return value is None or str(value).lower() in [str(neutral).lower() for neutral in self.neutral[key]] or value in self.neutral[key]

    def _wrong(self, key: str, wanted: str, value: Any) -> UsageError:
        return UsageError(f"{self.source}: {key} must be {wanted}, got {value!r}.")
