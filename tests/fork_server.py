"""Commands as processes that need not import torch, Lightning and the rest anew, which takes each of them seconds: a server that has imported
them forks itself for each. Such a process has its own number, folder, environment and files, ends and is killed as any other.

This file is both the server, as a program, and what tests ask it through.
"""

import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

IMPORTED = ["ltune.train", "bitsandbytes", "datasets", "matplotlib.pyplot", "peft", "transformers.models.llama.modeling_llama"]


class ForkServer:
    """One process, which forks.

    Args:
        folder: For what the commands say.
    """

    def __init__(self, folder: Path) -> None:
        self.said = [folder / "out", folder / "err"]
        self.asked = folder / "in"
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, bufsize=1
        )

    def run(
        self, arguments: list[str], *, cwd: Path, env: dict[str, str], input: str = "", timeout: float
    ) -> subprocess.CompletedProcess[str]:
        """As subprocess.run does, of ``ltune ARGUMENTS``."""
        self.asked.write_text(input)
        order = {"arguments": arguments, "folder": str(cwd), "environment": env, "files": [str(self.asked), *map(str, self.said)]}
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        number = int(self.process.stdout.readline())
        late = not select.select([self.process.stdout], [], [], timeout)[0]
        if late:
            os.kill(number, signal.SIGKILL)
        code = int(self.process.stdout.readline())
        out, err = (file.read_text() for file in self.said)
        if late:
            raise subprocess.TimeoutExpired(arguments, timeout, out, err)
        return subprocess.CompletedProcess(arguments, code, out, err)

    def close(self) -> None:
        """End it."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def serve() -> None:
    """Fork for each order that comes in: its process's number out, then how it ended."""
    for name in IMPORTED:
        __import__(name)
    for line in sys.stdin:
        number = os.fork()
        if number == 0:
            become(**json.loads(line))
        print(number, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(number, 0)[1]), flush=True)


def become(arguments: list[str], folder: str, environment: dict[str, str], files: list[str]) -> Any:
    """This process is ``ltune ARGUMENTS`` from here on."""
    from ltune.cli import main

    for descriptor, (file, mode) in enumerate(zip(files, ("r", "w", "w"), strict=True)):
        with open(file, mode) as opened:
            os.dup2(opened.fileno(), descriptor)
    sys.stdin = open(0, closefd=False)  # the server's may have read ahead
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:0] = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
    sys.argv = ["ltune", *arguments]
    sys.exit(main(arguments))


if __name__ == "__main__":
    serve()
