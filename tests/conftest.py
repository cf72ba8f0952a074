"""What tests share: where the reference material lies, a small model and its tokenizer, and `ltune` as a real process."""

import gc
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from fork_server import ForkServer
from hypothesis import settings

# The same examples every time, so that a run of the tests can be repeated; HYPOTHESIS_PROFILE=search draws new ones
settings.register_profile("same", derandomize=True)
settings.register_profile("search", derandomize=False)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything reads it

ROOT = Path(__file__).resolve().parents[1]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole runs first: what is left when one of two workers has nothing more to do is short then."""
    items.sort(key=lambda item: item.path.parent != ROOT / "tests")


@pytest.fixture(scope="session", autouse=True)
def _quiet_and_offline(tmp_path_factory: pytest.TempPathFactory) -> None:
    """No network, one thread (the runner uses both cores), prepared rows in a cache of this session's own."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="module", autouse=True)
def _walked_once() -> None:
    """What earlier modules imported is walked by no collection any more; each run would otherwise begin with one of half a second."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def shared() -> Path:
    """Reference runs and sample rows, kept beside the project."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip("the reference material (../shared) is not here")
    return folder


@pytest.fixture(scope="session")
def fork_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkServer]:
    """Has imported torch and the rest once, for all processes of this session that need not do it anew."""
    server = ForkServer(tmp_path_factory.mktemp("fork_server"))
    yield server
    server.close()


@pytest.fixture(scope="session")
def ltune_in(request: pytest.FixtureRequest):
    """Run ``ltune ARGUMENTS`` as a process in a folder; with ``fresh``, from the interpreter's start on, as a user does; with ``ranks``, as
    many that have started already."""

    import torch

    def run(
        folder: Path,
        *arguments: object,
        timeout: float = 240,
        fresh: bool = False,
        ranks: int = 1,
        env: dict | None = None,
        input: str = "",
    ):
        words, environment = list(map(str, arguments)), {**os.environ, "OMP_NUM_THREADS": "1", **(env or {})}
        options = {"cwd": folder, "timeout": timeout, "env": environment, "input": input}
        if fresh or torch.cuda.is_available():  # a process that was forked cannot use CUDA
            return subprocess.run([sys.executable, "-m", "ltune", *words], capture_output=True, text=True, **options)
        return request.getfixturevalue("fork_server").run(words, ranks=ranks, **options)

    return run


@pytest.fixture
def ltune(ltune_in, tmp_path: Path):
    """The same, in the test's own folder."""
    return partial(ltune_in, tmp_path)


@pytest.fixture(scope="session")
def metrics():
    """The lines of a run's metrics.jsonl."""
    return lambda run: [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="session")
def write_rows():
    """Write rows.jsonl into a folder: 24 conversations of unequal length."""

    def write(folder: Path) -> Path:
        lines = [
            {"instruction": f"Say {n} {'very ' * (n % 5)}slowly", "input": "", "output": " ".join(["word"] * (1 + n % 7)) + f" {n}."}
            for n in range(24)
        ]
        (folder / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return folder / "rows.jsonl"

    return write


@pytest.fixture
def rows(write_rows, tmp_path: Path) -> Path:
    """Such a file, in the test's own folder."""
    return write_rows(tmp_path)
