"""A run's checkpoints: which there are, which one to continue from, and which may go.

After each save: the checkpoint is published, then `latest` is replaced, then old ones are pruned. `newest_intact` looks at the checkpoints
themselves and never at `latest` (which is for people and scripts), so it is right whichever of the three steps a kill came between.
A damaged checkpoint stays where it is until the next save of the same process has succeeded, and is removed by the `prune` that follows.
"""

import re
from collections.abc import Callable
from pathlib import Path

from ltune.checkpoints.publish import Damaged, remove, verify, write_atomically
from ltune.errors import UsageError

LATEST = "latest"
NAME = re.compile(r"step-(\d{8,})")

_damaged: dict[
    Path, set[int]
] = {}  # what this process found damaged, by folder: the store that reads at the start is not the one that saves


class CheckpointStore:
    """The checkpoints of one run, named by the number of optimizer steps taken.

    Args:
        folder: where they are; need not exist yet.
        keep: how many of the newest ones `prune` leaves, at least 1.
    """

    def __init__(self, folder: Path, keep: int = 2):
        if keep < 1:
            raise UsageError(f"checkpoint.keep is the number of checkpoints to keep, at least 1; got {keep}.")
        self.folder = Path(folder)
        self.keep = keep
        self._damaged = _damaged.setdefault(self.folder.absolute(), set())

    def path(self, step: int) -> Path:
        """The checkpoint's folder, whether it exists or not."""
        return self.folder / f"step-{step:08d}"

    def steps(self) -> list[int]:
        """The steps there are checkpoints of, ascending, damaged ones included."""
        if not self.folder.is_dir():
            return []
        matches = (NAME.fullmatch(path.name) for path in self.folder.iterdir() if path.is_dir())
        return sorted(int(match[1]) for match in matches if match)

    def latest(self) -> str | None:
        """The name in `latest`, for people and scripts."""
        file = self.folder / LATEST
        return file.read_text(encoding="utf-8").strip() if file.exists() else None

    def newest_intact(self, warn: Callable[[str], None]) -> Path | None:
        """The newest checkpoint that verifies, or None. Each damaged one that is newer is named through `warn`."""
        steps = self.steps()
        for position in range(len(steps) - 1, -1, -1):
            try:
                verify(self.path(steps[position]))
                return self.path(steps[position])
            except Damaged as damage:
                self._damaged.add(steps[position])
                previous = (
                    f"trying the previous one, step {steps[position - 1]}"
                    if position
                    else "there is no earlier one: starting from the beginning"
                )
                warn(f"The checkpoint of step {steps[position]} is damaged: {damage.folder / damage.file} {damage.why}; {previous}.")
        return None

    def mark_latest(self, step: int) -> None:
        """Say that the checkpoint of `step`, just published, is the newest. Raises ResourceError when the disk is full."""
        self._damaged.discard(step)
        write_atomically(self.folder / LATEST, self.path(step).name + "\n")

    def prune(self) -> None:
        """Delete the damaged checkpoints that were found and all but the newest `keep` others; never the one that `latest` names."""
        intact = [step for step in self.steps() if step not in self._damaged]
        kept = set(intact[-self.keep :])
        for step in self.steps():
            if step not in kept and self.path(step).name != self.latest():
                remove(self.path(step))
                self._damaged.discard(step)
