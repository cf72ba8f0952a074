"""rollouts.jsonl: a line an answer, {"step": 9, "prompt": ..., "answer": ..., "reward": ...}; ``step`` is the first that trains on it."""

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ltune.checkpoints.publish import disk_errors, write_atomically


class RolloutsFile:
    """Appends, on one rank. A run that goes on after a kill writes the lost steps' lines again: those from its first step on go before.

    Args:
        path: The file; its folder is there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rewound = False

    def append(self, step: int, lines: Sequence[dict[str, Any]]) -> None:
        """The answers that step ``step`` is the first to train on. Raises ResourceError when the disk is full."""
        if not self.rewound and self.path.exists():
            write_atomically(self.path, "".join(line for line in self.path.open(encoding="utf-8") if _before(line, step)))
        self.rewound = True
        text = "".join(json.dumps({"step": step, **_finite(line)}, ensure_ascii=False, allow_nan=False) + "\n" for line in lines)
        data = text.encode("utf-8")
        with disk_errors(self.path, len(data)), open(os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666), "ab") as file:
            file.write(data)


def _before(line: str, step: int) -> bool:
    """Whether a line is whole and of an earlier step."""
    try:
        return line.endswith("\n") and json.loads(line)["step"] < step
    except ValueError:
        return False


def _finite(value: Any) -> Any:
    """JSON has no NaN: null."""
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
