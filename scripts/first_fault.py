"""How soon `ltune fit` tells a fault in the last of many rows: seconds from the start of the command to its exit, and what it said.

    python scripts/first_fault.py [--rows 1000000] [--tries 3] [--kinds alpaca openai sharegpt alpaca.csv ...]

Writes made-up rows into a temporary folder (0.45 GB a million), puts one faulty row after the other at their end and calls the command.
"""

import argparse
import csv
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow
from pyarrow import parquet

USER, ASSISTANT = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}
HUMAN, GPT = {"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}
CALL = {"role": "assistant", "tool_calls": [{"function": {"name": "add", "arguments": "{a"}}]}
PICTURE = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}
FAULTS: dict[str, dict[str, object]] = {  # by kind of rows, and file where it is not lines of JSON: what is wrong, and the line or row
    "alpaca": {
        "no comma": '{"instruction": "a" "output": "x"}',
        "a key given twice": '{"instruction": "a", "output": "x", "output": "y"}',
        "no answer": {"instruction": "a", "input": ""},
        "an answer that is null": {"instruction": "a", "output": None},
        "an empty question": {"instruction": "", "input": "", "output": "x"},
        "an array": [1],
        "another format": {"messages": [USER, ASSISTANT]},
        "an image": {"instruction": "a", "output": "x", "images": ["a.png"]},
    },
    "openai": {
        "NaN": '{"messages": NaN}',
        "roles out of order": {"messages": [ASSISTANT, USER]},
        "no content": {"messages": [{"role": "user"}, ASSISTANT]},
        "two systems": {"messages": [{"role": "system", "content": "a"}, {"role": "system", "content": "b"}, USER, ASSISTANT]},
        "a call that is no JSON": {"messages": [USER, CALL, {"role": "tool", "content": "1"}, ASSISTANT]},
        "an image": {"messages": [PICTURE, ASSISTANT]},
    },
    "sharegpt": {
        "roles out of order": {"conversations": [GPT, HUMAN]},
        "empty content": {"conversations": [{"from": "human", "value": ""}, GPT]},
        "a call that is no JSON": {"conversations": [HUMAN, {"from": "function_call", "value": "add(1)"}, HUMAN, GPT]},
    },
    "alpaca.csv": {
        "an empty question": ",,x",
        "a field too few": "a,x",
        "a quote that is not closed": 'a,"b,x',
    },
    "alpaca.parquet": {
        "an answer that is null": {"instruction": "a", "output": None},
        "an empty question": {"instruction": "", "input": "", "output": "x"},
    },
    "openai.parquet": {
        "roles out of order": {"messages": [ASSISTANT, USER]},
        "no messages": {"messages": []},
        "content that is null": {"messages": [USER | {"content": None}, ASSISTANT]},
    },
}


def main() -> None:
    """A line of the table for each fault."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--tries", type=int, default=3)
    parser.add_argument("--kinds", nargs="+", default=list(FAULTS), choices=list(FAULTS))
    parser.add_argument("--folder", help="for the temporary folder")
    arguments = parser.parse_args()
    print("| rows | what is wrong | seconds, least and most | said |\n|---|---|---:|---|", flush=True)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        for kind in arguments.kinds:
            file = Path(folder) / (kind if "." in kind else f"{kind}.jsonl")
            write_rows(file, kind.partition(".")[0], arguments.rows - 1)
            for what, line in FAULTS[kind].items():
                print(f"| {kind} | {what} | {timed(file, line, arguments.tries)} |", flush=True)


def timed(file: Path, line: object, tries: int) -> str:
    """The command's times, and the first line that it says."""
    seconds, said = [], ""
    with appended(file, line):
        for _ in range(tries):
            begin = time.perf_counter()
            command = [sys.executable, "-m", "ltune", "fit", "--data.datasets", f"[{file.name}]"]
            done = subprocess.run(command, cwd=file.parent, capture_output=True, text=True)
            seconds.append(time.perf_counter() - begin)
            assert done.returncode == 2, done.stderr
            said = done.stderr.splitlines()[0]
    return f"{min(seconds):.2f} - {max(seconds):.2f} | {said[:110]}"


@contextmanager
def appended(file: Path, line: object) -> Iterator[None]:
    """The file with one more line, or row, for a while."""
    if file.suffix == ".parquet":
        rows = parquet.read_table(file)
        parquet.write_table(pyarrow.concat_tables([rows, pyarrow.Table.from_pylist([line], rows.schema)]), file)
        yield
        parquet.write_table(rows, file)
        return
    size = file.stat().st_size
    with file.open("a") as opened:
        opened.write((line if isinstance(line, str) else json.dumps(line)) + "\n")
    yield
    os.truncate(file, size)


def write_rows(file: Path, kind: str, rows: int) -> None:
    """What ``made_up`` gives."""
    if file.suffix == ".parquet":
        parquet.write_table(pyarrow.Table.from_pylist(list(made_up(kind, rows))), file)
        return
    with file.open("w", encoding="utf-8", newline="") as opened:
        if file.suffix == ".csv":
            writer = csv.DictWriter(opened, ["instruction", "input", "output"])
            writer.writeheader()
            writer.writerows(made_up(kind, rows))
        else:
            opened.writelines(json.dumps(row) + "\n" for row in made_up(kind, rows))


def made_up(kind: str, rows: int) -> Iterator[dict]:
    """Alpaca's, or conversations of 2 or 4 messages, with the words of the embedded quickstart rows; the same at every run."""
    from ltune.data.sources import QUICKSTART

    texts = [json.loads(text) for text in QUICKSTART.read_text(encoding="utf-8").splitlines()]
    words = " ".join(value for row in texts for value in row.values()).split()
    chance = random.Random(rows)
    said = {length: [" ".join(chance.choices(words, k=length)) for _ in range(30)] for length in range(5, 121)}

    def text(least: int, most: int) -> str:
        return chance.choice(said[chance.randint(least, most)])

    role, content, user, assistant = ("role", "content", "user", "assistant") if kind == "openai" else ("from", "value", "human", "gpt")
    for _ in range(rows):
        if kind == "alpaca":
            yield {"instruction": text(5, 20), "input": text(5, 30) if chance.random() < 0.4 else "", "output": text(5, 120)}
        else:
            turns = [({role: user, content: text(5, 20)}, {role: assistant, content: text(5, 70)}) for _ in range(chance.choice([1, 1, 2]))]
            yield {"messages" if kind == "openai" else "conversations": [message for turn in turns for message in turn]}


if __name__ == "__main__":
    main()
