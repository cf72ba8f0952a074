"""Commands as processes that need not import torch, Lightning and the rest anew, which takes each of them seconds: a server that has
imported them forks itself for each. Such a process has its own number, folder, environment and files, and ends or is killed as any other.

This file is both what tests ask the server through and the server, as a program: orders come in and ends go out, each a line of JSON.
"""

import atexit
import gc
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

IMPORTED = ["ltune.train", "bitsandbytes", "datasets", "matplotlib.pyplot", "peft"]


class ForkServer:
    """One process, which forks.

    Args:
        folder: For what the commands are told and say.
    """

    def __init__(self, folder: Path) -> None:
        self.files = [folder / name for name in ("in", "out", "err")]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.orders, self.ends = self.process.stdin, self.process.stdout

    def run(
        self, arguments: list[str], *, cwd: Path, env: dict, input: str, timeout: float, ranks: int = 1
    ) -> subprocess.CompletedProcess[str]:
        """``ltune ARGUMENTS``, as subprocess.run would; with several ranks the exit code is the first one's."""
        self.files[0].write_text(input)
        order = {"arguments": arguments, "folder": str(cwd), "environment": env, "files": list(map(str, self.files)), "ranks": ranks}
        print(json.dumps([timeout, order]), file=self.orders, flush=True)
        code = json.loads(self.ends.readline())
        out, err = (file.read_text() for file in self.files[1:])
        if code is None:
            raise subprocess.TimeoutExpired(arguments, timeout, out, err)
        return subprocess.CompletedProcess(arguments, code, out, err)

    def close(self) -> None:
        """End it."""
        self.orders.close()
        self.process.wait()


def serve() -> None:
    """A process for each order, and its exit code; null where it took too long."""
    import_all()
    for line in sys.stdin:
        seconds, order = json.loads(line)
        number = os.fork()
        if number == 0:
            become(**order)
        print(json.dumps(end_of(number, seconds)), flush=True)


def import_all() -> None:
    """What most commands import, and what is read once in a process: the options there are, transformers' table of old weights' names."""
    import torch

    for name in IMPORTED:
        __import__(name)
    from ltune.models.load import load_model
    from ltune.schema import classes

    classes()
    load_model("tiny", dtype=torch.float32)
    gc.collect()
    gc.freeze()  # no process walks it again


def end_of(number: int, seconds: float) -> int | None:
    """The exit code of a process; it is killed when its time is over."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        ended, status = os.waitpid(number, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(number, signal.SIGKILL)
    os.waitpid(number, 0)
    return None


def become(arguments: list[str], folder: str, environment: dict[str, str], files: list[str], ranks: int) -> None:
    """This process is ``ltune ARGUMENTS`` from here on."""
    from ltune.cli import main

    for descriptor, (file, mode) in enumerate(zip(files, ("r", "w", "w"), strict=True)):
        with open(file, mode) as opened:
            os.dup2(opened.fileno(), descriptor)
    sys.stdin = os.fdopen(0)  # the server's may have read ahead
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:0] = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
    sys.argv = ["ltune", *arguments]
    if ranks > 1:
        divide(ranks)
    code = main(arguments)
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # taking all that was imported to pieces takes a second


def divide(ranks: int) -> None:
    """From here on there are so many processes, told which they are as torchrun tells it. The first one ends last."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(ranks), "LOCAL_RANK": "0"}
    for rank in range(1, ranks):
        other = os.fork()
        if other == 0:
            os.environ["LOCAL_RANK"] = str(rank)
            return
        atexit.register(os.waitpid, other, 0)


if __name__ == "__main__":
    serve()
