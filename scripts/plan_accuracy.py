"""Compares plans with peaks that were measured: python scripts/plan_accuracy.py MEASURED.json

MEASURED.json is a list of {"options": ["--config", "configs/sft.yaml", ...], "measured_gib": 22.4}: the options of `ltune plan` (those of
`ltune fit`, and --memory where the GPU's should not be taken), and the largest train/peak_memory_gib of the run, which is
torch.cuda.max_memory_allocated. "name" is optional. scripts/measure_memory.py writes such a list; a run of it that did not end is left out,
with a line on stderr. Prints a table in Markdown; exit code 1 if a plan is off by more than 10%.
"""

import json
import sys
from pathlib import Path
from typing import Any

from ltune.apps.plan import made_plan, parse, rows_of, world_size
from ltune.apps.planning import Plan
from ltune.apps.rehearsal import Rehearsal
from ltune.memory import plain, setting_of
from ltune.train import quiet
from ltune.usage import precheck

ALLOWED = 0.10


def main() -> int:
    """A line for each run."""
    quiet()
    print("| run | way | micro-batch, tokens | planned GiB | measured GiB | ratio |\n|---|---|--:|--:|--:|--:|")
    off = 0
    for run in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
        if run.get("exit"):
            print(f"left out, as it ended with exit code {run['exit']}: {run.get('name')}", file=sys.stderr)
            continue
        way = planned(run["options"]).chosen
        ratio = way.peak / 2**30 / run["measured_gib"]
        off += abs(ratio - 1) > ALLOWED
        name = run.get("name", " ".join(run["options"]))
        taken = run.get("setting")
        if taken and way.setting and taken != plain(way.setting):
            print(f"{name}: fit took {setting_of(taken)}; planned was {way.setting}", file=sys.stderr)
        print(f"| {name} | {way.name} | {way.tokens:,} | {way.peak / 2**30:.2f} | {run['measured_gib']:.2f} | {ratio:.3f} |")
    return 1 if off else 0


def planned(arguments: list[str]) -> Plan:
    """As `ltune plan` makes it."""
    options, rest = parse(arguments)
    precheck(rest)
    rehearsal: Any = Rehearsal(rest)
    rehearsal.check(machine=False)
    rows, remark = rows_of(rehearsal, world_size(rehearsal), options.full_rows)
    if remark:
        print(remark, file=sys.stderr)
    return made_plan(rehearsal, rows, options.memory)


if __name__ == "__main__":
    sys.exit(main())
