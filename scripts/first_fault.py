"""How soon `ltune fit` tells a fault in the last of many lines: seconds from the start of the command to its exit, and what it said.

    python scripts/first_fault.py [--rows 1000000] [--tries 3] [--kinds alpaca openai sharegpt]

Writes made-up rows into a temporary folder (0.45 GB a million), puts one faulty line after the other at their end and calls the command.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

USER, ASSISTANT = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}
HUMAN, GPT = {"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}
CALL = {"role": "assistant", "tool_calls": [{"function": {"name": "add", "arguments": "{a"}}]}
PICTURE = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}
FAULTS: dict[str, dict[str, object]] = {  # by kind of rows: what is wrong, and the line
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
            file = Path(folder) / f"{kind}.jsonl"
            write_rows(file, kind, arguments.rows - 1)
            for what, line in FAULTS[kind].items():
                print(f"| {kind} | {what} | {timed(file, line, arguments.tries)} |", flush=True)


def timed(file: Path, line: object, tries: int) -> str:
    """The command's times, and the first line that it says."""
    size = file.stat().st_size
    with file.open("a") as opened:
        opened.write((line if isinstance(line, str) else json.dumps(line)) + "\n")
    seconds, said = [], ""
    for _ in range(tries):
        begin = time.perf_counter()
        command = [sys.executable, "-m", "ltune", "fit", "--data.datasets", f"[{file.name}]"]
        done = subprocess.run(command, cwd=file.parent, capture_output=True, text=True)
        seconds.append(time.perf_counter() - begin)
        assert done.returncode == 2, done.stderr
        said = done.stderr.splitlines()[0]
    os.truncate(file, size)
    return f"{min(seconds):.2f} - {max(seconds):.2f} | {said[:110]}"


def write_rows(file: Path, kind: str, rows: int) -> None:
    """Alpaca's, or conversations of 2 or 4 messages, with the words of the embedded quickstart rows; the same at every run."""
    from ltune.data.sources import QUICKSTART

    texts = [json.loads(text) for text in QUICKSTART.read_text(encoding="utf-8").splitlines()]
    words = " ".join(value for row in texts for value in row.values()).split()
    chance = random.Random(rows)
    said = {length: [" ".join(chance.choices(words, k=length)) for _ in range(30)] for length in range(5, 121)}

    def text(least: int, most: int) -> str:
        return chance.choice(said[chance.randint(least, most)])

    role, content, user, assistant = ("role", "content", "user", "assistant") if kind == "openai" else ("from", "value", "human", "gpt")
    with file.open("w", encoding="utf-8") as opened:
        for _ in range(rows):
            if kind == "alpaca":
                row: dict = {"instruction": text(5, 20), "input": text(5, 30) if chance.random() < 0.4 else "", "output": text(5, 120)}
            else:
                turns = [
                    ({role: user, content: text(5, 20)}, {role: assistant, content: text(5, 70)}) for _ in range(chance.choice([1, 1, 2]))
                ]
                row = {"messages" if kind == "openai" else "conversations": [message for turn in turns for message in turn]}
            opened.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
