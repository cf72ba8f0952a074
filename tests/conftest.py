"""What tests share: where the reference material lies, a small model and its tokenizer, and `ltune` as a real process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import settings

# The same examples every time, so that a run of the tests can be repeated; HYPOTHESIS_PROFILE=search draws new ones
settings.register_profile("same", derandomize=True)
settings.register_profile("search", derandomize=False)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything reads it

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session", autouse=True)
def _quiet_and_offline(tmp_path_factory: pytest.TempPathFactory) -> None:
    """No network, one thread (the runner uses both cores), prepared rows in a cache of this session's own."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Reference runs and sample rows, kept beside the project."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip("the reference material (../shared) is not here")
    return folder


@pytest.fixture
def ltune(tmp_path: Path):
    """Run ``ltune ARGUMENTS`` as a process in a folder of its own."""

    def run(*arguments: object, timeout: float = 240, **options) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "ltune", *map(str, arguments)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **options.pop("env", {})}
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=timeout, env=environment, **options)

    return run


@pytest.fixture(scope="session")
def metrics():
    """The lines of a run's metrics.jsonl."""
    return lambda run: [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """24 conversations of unequal length."""
    file = tmp_path / "rows.jsonl"
    lines = [
        {"instruction": f"Say {n} {'very ' * (n % 5)}slowly", "input": "", "output": " ".join(["word"] * (1 + n % 7)) + f" {n}."}
        for n in range(24)
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file
