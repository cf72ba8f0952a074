"""`ltune plan`: how much memory a run needs on each device, and what to change where that is too much. No GPU and no weights are needed."""

from __future__ import annotations

import argparse
import difflib
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from ltune import schema
from ltune.errors import UsageError
from ltune.importing import importing
from ltune.usage import configurations, precheck

if TYPE_CHECKING:
    from ltune.apps.planned_rows import PlannedRows
    from ltune.apps.planning import Plan
    from ltune.apps.rehearsal import Rehearsal

UNITS = {"": 2**30, "g": 2**30, "gib": 2**30, "gb": 10**9, "m": 2**20, "mib": 2**20, "mb": 10**6, "b": 1}


def main(argv: list[str]) -> int:
    """Prints the plan. Raises UsageError where it needs more than 110% of the memory."""
    options, rest = parse(argv)
    precheck(rest)
    with importing():
        from ltune.apps.plan_text import as_dict, epoch_lines, lines, refuse
        from ltune.apps.rehearsal import Rehearsal
        from ltune.messages import quiet

    quiet()
    rehearsal = Rehearsal(rest)
    rehearsal.check(machine=False)
    rows, remark = rows_of(rehearsal, world_size(rehearsal), options.full_rows)
    made = made_plan(rehearsal, rows, options.memory)
    rate = tokens_per_second(options.tokens_per_second, Path(rehearsal.asked.run))
    if options.json:
        print(json.dumps(as_dict(made, rate, rehearsal)))
    else:
        title = f"ltune plan {' '.join(map(str, configurations(rest)))}".rstrip()
        print("\n".join([title, *lines(made, rehearsal, remark), *epoch_lines(made, rate)]))
    refuse(made)
    return 0


# -- the command line ---------------------------------------------------------------------------------------------------------------------


class Parser(argparse.ArgumentParser):
    """Says what is wrong without the whole usage."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}\nltune plan --help  lists the options")


def parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Our own options, and the rest, which is for the parser of `ltune fit`."""
    parser = Parser(
        prog="ltune plan",
        usage="ltune plan --config FILE [--memory 24GiB] [--tokens-per-second N] [--full-rows] [--json] [any option of ltune fit]",
        allow_abbrev=False,
        description="Say how much memory a run needs on each device; exit code 2 if that is more than 110% of what there is.",
        epilog="Any option of `ltune fit` can be given, for example  --data.max_length 4096 ; `ltune fit --help` lists them.",
    )
    parser.add_argument("--memory", type=size, metavar="SIZE", help="of a device, such as 24GiB (default: what is free on the GPU here)")
    parser.add_argument("--tokens-per-second", type=rate, metavar="N", help="to tell an epoch's time (default: the run folder's)")
    parser.add_argument("--full-rows", action="store_true", help="take every row for as long as data.max_length; no row is read")
    parser.add_argument("--json", action="store_true", help="one object, in bytes")
    options, rest = parser.parse_known_args(argv)
    refuse_misspelt(rest)
    return options, rest


def refuse_misspelt(arguments: list[str]) -> None:
    """An option of ours, nearly: the parser of `ltune fit` would look for it among its own."""
    for argument in arguments:
        name = argument.partition("=")[0]
        near = difflib.get_close_matches(name, ["--memory", "--tokens-per-second", "--full-rows", "--json"], n=1, cutoff=0.7)
        if near and "." not in name and name.lstrip("-") not in (*schema.SINGLE, *schema.SECTIONS):
            raise UsageError(f'{name} is not an option; did you mean "{near[0]}"?')


def size(text: str) -> int:
    """Bytes of "24GiB", "24" (GiB too), "24GB" or "24576MiB"."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", text)
    if not found or found.group(2).lower() not in UNITS or not float(found.group(1)):
        raise argparse.ArgumentTypeError(f"wants a size such as 24GiB, got {text!r}")
    return int(float(found.group(1)) * UNITS[found.group(2).lower()])


def rate(text: str) -> float:
    """A number above 0."""
    try:
        value = float(text.replace(",", ""))
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"wants a number above 0, got {text!r}")
    return value


# -- what is known ------------------------------------------------------------------------------------------------------------------------


def world_size(rehearsal: Rehearsal) -> int:
    """Devices that train together, as the configuration has it."""
    import torch

    trainer = rehearsal.resolved["trainer"]
    asked = trainer["devices"]
    if isinstance(asked, list):
        count = len(asked)
    elif str(asked).isdigit():
        count = int(asked)
    elif isinstance(asked, str) and "," in asked:
        count = len([part for part in asked.split(",") if part.strip()])
    else:
        count = max(1, torch.cuda.device_count()) if trainer["accelerator"] != "cpu" else 1
    return max(1, count) * int(trainer["num_nodes"] or 1)


def rows_of(rehearsal: Rehearsal, devices: int, full: bool) -> tuple[PlannedRows, str]:
    """The rows as they were tokenised, or are now; where they cannot be, as long as they may be, and a remark that says why."""
    from ltune.apps.planned_rows import assumed, tokenised, trained

    data = {**rehearsal.resolved["data"], "accumulate": rehearsal.resolved["trainer"]["accumulate_grad_batches"]}
    if full:
        rehearsal.build()
        return trained(assumed(data), rehearsal.model.objective), ""
    try:
        rehearsal.build()
        rehearsal.prepare()
    except UsageError as error:
        return assumed(data), f"the rows were not read, and each is taken for {data['max_length']:,} tokens: {str(error).splitlines()[0]}"
    return trained(tokenised(rehearsal.datamodule, devices), rehearsal.model.objective), ""


def made_plan(rehearsal: Rehearsal, rows: PlannedRows, memory: int | None) -> Plan:
    """For the memory that was named, or that is free on the GPU here."""
    import torch

    from ltune.apps.planning import CONTEXT, on_cuda, plan

    if memory is None and on_cuda(rehearsal.resolved) and torch.cuda.is_available():
        memory = torch.cuda.mem_get_info()[0] + CONTEXT  # CUDA has just taken its share
    return plan(rehearsal.resolved, rows, memory, world_size(rehearsal))


def tokens_per_second(given: float | None, run: Path) -> tuple[float, str] | None:
    """The throughput, and where it is from: the option, or the median of what the run has logged since its first entry."""
    from statistics import median

    from ltune.callbacks.metrics_file import read_metrics

    if given is not None:
        return given, ""
    file = run / "metrics.jsonl"
    logged = (
        [line["train/tokens_per_second"] for line in read_metrics(file) if line.get("train/tokens_per_second")] if file.exists() else []
    )
    return (median(logged[1:] or logged), f", as {file} has it") if logged else None


# -- for `ltune check` --------------------------------------------------------------------------------------------------------------------


def memory(rehearsal: Rehearsal) -> list[str]:
    """The section of `ltune check`, once its data is prepared: what the way that is taken needs."""
    from ltune.apps.plan_text import in_short, refuse
    from ltune.apps.planned_rows import tokenised, trained

    rows = trained(tokenised(rehearsal.datamodule, world_size(rehearsal)), rehearsal.model.objective)
    made = made_plan(rehearsal, rows, None)
    refuse(made)
    return in_short(made, rehearsal)
