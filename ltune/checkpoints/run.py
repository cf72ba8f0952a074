"""A run folder's record: what was asked, of which data, and whether it is done. The same question again is answered by it."""

import hashlib
import json
from pathlib import Path
from typing import Any

from ltune.checkpoints.publish import write_atomically
from ltune.errors import LtuneError, UsageError

# Settings that cannot change what is trained: they may differ when a run goes on.
HARMLESS = (
    "run", "config", "resume", "checkpoint", "model.sampling", "model.generation_tokens", "data.processes", "data.workers", "data.cache",
    "data.test_datasets",
    "trainer.logger", "trainer.callbacks", "trainer.log_every_n_steps", "trainer.enable_progress_bar", "trainer.enable_model_summary",
    "trainer.enable_checkpointing", "trainer.enable_autolog_hparams", "trainer.profiler", "trainer.barebones", "trainer.max_time",
    "trainer.num_sanity_val_steps", "trainer.limit_val_batches", "trainer.limit_test_batches", "trainer.limit_predict_batches",
    "trainer.val_check_interval", "trainer.check_val_every_n_epoch", "trainer.fast_dev_run", "trainer.default_root_dir",
)  # fmt: skip


class RunFolder:
    """A folder that holds one run.

    Args:
        path: The folder; made by ``record``.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.file = self.path / "run.json"

    def read(self) -> dict[str, Any] | None:
        """The record, or None where nothing was begun."""
        if not self.file.exists():
            return None
        advice = "Move the folder away, or choose another one with  --run FOLDER"
        try:
            record = json.loads(self.file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:  # ValueError: neither JSON nor UTF-8
            raise UsageError(f"{self.file} cannot be read: {error}.\n{advice}") from error
        if not isinstance(record, dict) or not {"state", "settings", "sources", "world_size"} <= record.keys():
            raise UsageError(f"{self.file} is no record of a run.\n{advice}")
        return record

    @property
    def finished(self) -> bool:
        """Whether the result is there, as recorded."""
        record = self.read()
        return bool(record and record["state"] == "finished" and (self.path / record.get("result", "none")).is_dir())

    def refuse_changes(self, settings: dict[str, Any], sources: list[dict] | None, world_size: int | None, allow: list[str]) -> bool:
        """Refuse to go on with other settings or data than the run began with, unless ``allow`` names them.

        True if there are changes, all of them allowed.
        """
        record = self.read()
        if record is None or not any((self.path / "checkpoints").glob("step-*")):
            return False
        changes = differences(record["settings"], settings)
        if sources is not None:
            changes |= differences(by_path(record["sources"]), by_path(sources))
        if world_size is not None and record["world_size"] != world_size:
            changes["trainer.devices"] = (record["world_size"], world_size)
        refused = {key: change for key, change in changes.items() if not any(is_under(key, name) for name in allow)}
        if refused:
            raise UsageError(self._refusal(refused))
        return bool(changes)

    def _refusal(self, refused: dict[str, tuple]) -> str:
        shown = [f"  {key}: {show(was)} -> {show(now)}" for key, (was, now) in list(refused.items())[:2]]
        more = f"  and {len(refused) - 2} more: {', '.join(list(refused)[2:])[:300]}" if len(refused) > 2 else None
        names = ",".join(refused)
        advice = f"Choose another folder with  --run FOLDER , or go on all the same with  --resume.allow='[{names}]'"
        return "\n".join(filter(None, [f"{self.path} holds a run with other settings; going on would be neither.", *shown, more, advice]))

    def hashes(self) -> dict[str, str]:
        """Of the configuration and the data, for a checkpoint's manifest."""
        record = self.read() or {}
        return {name: record[name] for name in ("config_sha256", "data_sha256") if name in record}

    def record(self, *, state: str, settings: dict, sources: list[dict], world_size: int, **facts: Any) -> None:
        """Write the record."""
        self.path.mkdir(parents=True, exist_ok=True)
        hashes = {"config_sha256": sha256_of(settings), "data_sha256": sha256_of(by_path(sources))}
        content = {"state": state, "world_size": world_size, **hashes, **facts, "sources": sources, "settings": settings}
        write_atomically(self.file, json.dumps(content, indent=1, default=str) + "\n")

    def finish(self, **facts: Any) -> None:
        """Mark the run as finished, with the result's folder and what else is worth keeping."""
        record = self.read()
        assert record is not None
        write_atomically(self.file, json.dumps({**record, "state": "finished", **facts}, indent=1, default=str) + "\n")


class Finished(LtuneError):
    """The run is done already.

    Args:
        folder: The finished run.
    """

    exit_code = 0

    def __init__(self, folder: RunFolder) -> None:
        record = folder.read()
        assert record is not None
        super().__init__(
            f"{folder.path} is finished: {record['steps']} steps, result in {folder.path / record['result']}\n"
            "To train again choose another folder with  --run FOLDER"
        )


def sha256_of(value: Any) -> str:
    """Of plain data."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def settings_of(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The configuration flat, as {"data.batch_size": 2, ...}, without what cannot change the result."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if any(is_under(name, harmless) for harmless in HARMLESS):
            continue
        if isinstance(value, dict) and value:
            flat |= settings_of(value, f"{name}.")
        else:
            flat[name] = value
    return flat


def differences(was: dict[str, Any], now: dict[str, Any]) -> dict[str, tuple]:
    """{key: (was, now)} where the two differ; None stands for absent. A number given on the command line may arrive as text."""
    return {key: (was.get(key), now.get(key)) for key in [*was, *(now.keys() - was.keys())] if str(was.get(key)) != str(now.get(key))}


def by_path(sources: list[dict]) -> dict[str, Any]:
    """The contents' hash of each source file."""
    return {f"data:{source['path']}": source["sha256"][:12] for source in sources}


def is_under(key: str, name: str) -> bool:
    """Whether ``key`` is ``name`` or inside it; ``data`` also stands for all data files."""
    return key == name or key.startswith((f"{name}.", f"{name}:"))


def show(value: Any) -> str:
    """A value, short."""
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
