"""How the preparation of data grows with the number of rows: seconds, rows and tokens a second, memory; cold and warm.

    python scripts/data_growth.py [--rows 1000 10000 100000 1000000] [--processes 2]

Writes made-up rows into a temporary folder (1.7 GB a million rows with the tokens made of them), tokenises them with the embedded model's
tokenizer in a process of its own, opens them in another as a second start does, and prints a table in Markdown. Besides the seconds on
the wall it counts those in the processor, of the process that reads and writes and of the workers: other work on the machine does not
change them much.
"""

import argparse
import contextlib
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROWS = [1_000, 10_000, 100_000, 1_000_000]
SETTLES = 3.0  # seconds after which a file that was written counts as written
MIB = 2**20

HEADER = """\
| rows | source | tokens | cold | processor | rows/s | tokens/s | memory over start | largest worker | warm | memory over start |
|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|"""


def main() -> None:
    """One line of the table after the other."""
    arguments = parsed()
    if arguments.measure:
        print(json.dumps(measured(*arguments.measure, arguments.processes)))
        return
    print(HEADER, flush=True)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        for rows in arguments.rows:
            print(line(rows, Path(folder), arguments.processes), flush=True)
        speed = own_speed(Path(folder) / f"{arguments.rows[0]}.jsonl")
    print(f"\nThe tokenizer alone, whole texts in one batch on one core: {speed:,.0f} tokens/s.")


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS)
    parser.add_argument("--processes", type=int, default=None, help="for tokenising; by default as ltune chooses")
    parser.add_argument("--folder", help="for the temporary folder")
    parser.add_argument("--measure", nargs=2, metavar=("FILE", "CACHE"), help=argparse.SUPPRESS)  # the process that is measured
    return parser.parse_args()


def line(rows: int, folder: Path, processes: int | None) -> str:
    """Cold and warm, each in a fresh process."""
    source, cache = folder / f"{rows}.jsonl", folder / f"cache-{rows}"
    write_rows(source, rows)
    time.sleep(SETTLES)
    cold, warm = (in_a_process(source, cache, processes) for _ in range(2))
    assert cold["rows"] == warm["rows"] == rows
    cells = [
        f"{rows:,}",
        f"{source.stat().st_size / MIB:,.1f} MiB",
        f"{cold['tokens']:,}",
        f"{cold['seconds']:.2f} s",
        f"{cold['processor']:.2f} + {cold['workers_processor']:.2f} s",
        f"{rows / cold['seconds']:,.0f}",
        f"{cold['tokens'] / cold['seconds']:,.0f}",
        f"{cold['over_start'] / MIB:,.0f} MiB",
        f"{cold['worker'] / MIB:,.0f} MiB" if cold["worker"] else "-",
        f"{warm['seconds']:.2f} s",
        f"{warm['over_start'] / MIB:,.0f} MiB",
    ]
    return f"| {' | '.join(cells)} |"


def in_a_process(source: Path, cache: Path, processes: int | None) -> dict:
    command = [sys.executable, __file__, "--measure", str(source), str(cache)]
    command += [] if processes is None else ["--processes", str(processes)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def measured(source: str, cache: str, processes: int | None) -> dict:
    """Prepare the rows, or find them prepared: all that ``ltune fit`` does with data before the first step but starting itself."""
    from ltune.data.encode import Encoder
    from ltune.data.prepared import prepare
    from ltune.data.rows import Chat
    from ltune.data.sampler import epoch_order
    from ltune.data.split import Split
    from ltune.data.templates import load_template
    from ltune.models.tokenizer import load_tokenizer

    tokenizer = load_tokenizer("tiny")
    encoder = Encoder(load_template(None, tokenizer), tokenizer, max_length=2048)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of starting up
    start = memory("VmRSS")
    watch = WorkersMemory()
    begin, processor, workers = time.perf_counter(), time.process_time(), workers_time()
    prepared = prepare([source], ".", rows=Chat, encoder=encoder, cache=cache, processes=processes)
    rows = Split.whole(prepared)
    epoch_order(len(rows), 42, 0)
    return {
        "seconds": time.perf_counter() - begin,
        "processor": time.process_time() - processor,
        "workers_processor": workers_time() - workers,
        "rows": len(rows),
        "tokens": prepared.report["total"]["tokens"],
        "over_start": memory("VmHWM") - start,
        "worker": watch.largest,
    }


def workers_time() -> float:
    """Seconds in the processor of the children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def memory(name: str, pid: int | str = "self") -> int:
    """VmRSS or VmHWM (its peak) of a process, in bytes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next((int(text.split()[1]) * 1024 for text in lines if text.startswith(name)), 0)


class WorkersMemory(threading.Thread):
    """Looks at this process's children ten times a second; what the system counts for them includes their parent's memory at the fork."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.largest = 0
        self.start()

    def run(self) -> None:
        while True:
            children = [pid for file in Path("/proc/self/task").glob("*/children") for pid in file.read_text().split()]
            for pid in children:
                with contextlib.suppress(OSError):  # it has just ended
                    self.largest = max(self.largest, memory("VmHWM", pid))
            time.sleep(0.1)


def own_speed(source: Path) -> float:
    """Tokens a second that the tokenizer makes of the rows' texts, nothing else done; the best of five."""
    from ltune.data.tokens import Tokens
    from ltune.models.tokenizer import load_tokenizer

    tokens = Tokens(load_tokenizer("tiny"))
    rows = [json.loads(text) for text in source.read_text().splitlines()[:10_000]]
    texts = [text for row in rows for text in (f"{row['instruction']}\n{row['input']}", row["output"])]
    best = 0.0
    for _ in range(5):
        begin = time.perf_counter()
        made = tokens.direct.encode_batch_fast(texts, add_special_tokens=False)
        seconds = time.perf_counter() - begin
        best = max(best, sum(len(one) for one in made) / seconds)
    return best


def write_rows(path: Path, rows: int) -> None:
    """Alpaca's columns and lengths, with the words of the embedded quickstart rows; the same at every run."""
    from ltune.data.sources import QUICKSTART

    texts = [json.loads(text) for text in QUICKSTART.read_text(encoding="utf-8").splitlines()]
    words = " ".join(value for row in texts for value in row.values()).split()
    chance = random.Random(rows)

    def said(least: int, most: int) -> str:
        return " ".join(chance.choices(words, k=chance.randint(least, most)))

    with path.open("w", encoding="utf-8") as file:
        for _ in range(rows):
            row = {"instruction": said(5, 20), "input": said(5, 30) if chance.random() < 0.4 else "", "output": said(5, 120)}
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # as ltune fit has it
    main()
