"""`ltune plan`: how much memory a run needs on each device, and what to change where that is too much. No GPU and no weights are needed."""

from __future__ import annotations

import argparse
import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from ltune.errors import UsageError
from ltune.usage import configurations, precheck

if TYPE_CHECKING:
    from ltune.apps.planned_rows import PlannedRows
    from ltune.apps.planning import Plan, Way
    from ltune.apps.rehearsal import Rehearsal

UNITS = {"": 2**30, "g": 2**30, "gib": 2**30, "gb": 10**9, "m": 2**20, "mib": 2**20, "mb": 10**6, "b": 1}


def main(argv: list[str]) -> int:
    """Prints the plan. Raises UsageError where it needs more than 110% of the memory."""
    options, rest = parse(argv)
    precheck(rest)
    from ltune.apps.rehearsal import Rehearsal
    from ltune.train import quiet

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
        description="Say how much memory a run needs on each device; exit code 2 if that is more than 110%% of what there is.",
        epilog="Any option of `ltune fit` can be given, for example  --data.max_length 4096 ; `ltune fit --help` lists them.",
    )
    parser.add_argument(
        "--memory", type=size, metavar="SIZE", help="of a device, such as 24GiB (default: what is free on the GPU, if there is one)"
    )
    parser.add_argument(
        "--tokens-per-second", type=rate, metavar="N", help="for the time of an epoch (default: as the run folder's metrics have it)"
    )
    parser.add_argument("--full-rows", action="store_true", help="take every row for as long as data.max_length; no row is read")
    parser.add_argument("--json", action="store_true", help="one object, in bytes")
    return parser.parse_known_args(argv)


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
    from ltune.apps.planned_rows import assumed, tokenised

    data = {**rehearsal.resolved["data"], "accumulate": rehearsal.resolved["trainer"]["accumulate_grad_batches"]}
    if full:
        return assumed(data), ""
    try:
        rehearsal.build()
        rehearsal.prepare()
    except UsageError as error:
        return assumed(data), f"the rows were not read, and each is taken for {data['max_length']:,} tokens: {str(error).splitlines()[0]}"
    return tokenised(rehearsal.datamodule, devices), ""


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


# -- what is said -------------------------------------------------------------------------------------------------------------------------


def lines(plan: Plan, rehearsal: Rehearsal, remark: str = "") -> list[str]:
    """Model, rows, the table, and the way that is taken."""
    outlined, rows = plan.outline, plan.rows
    said = [
        _line(
            "model",
            f"{rehearsal.resolved['model']['model']}, {_count(outlined.parameters)} weights; {_count(outlined.trained)} are trained",
        ),
        _line("layers", "ltune's own" if plan.plain is None else f"transformers' own ({plan.plain}); the estimate is rougher"),
        _line(
            "heaviest step",
            f"{rows.window:,} tokens on a device, longest row {rows.longest:,}" + (", every row at its longest" if rows.assumed else ""),
        ),
        *([f"! {remark}"] if remark else []),
        "",
        *table(plan),
        "",
        _line("ltune fit takes", _taken(plan.chosen, rehearsal)),
    ]
    if plan.memory is None:
        return [*said, _line("memory", "not known here; give it as  --memory 24GiB")]
    share = plan.chosen.total / plan.memory
    fits = "fits" if plan.fits else "about fits, and may run out" if not plan.refused else "does not fit"
    return [*said, _line("memory", f"{fits}: {gib(plan.chosen.total)} of {gib(plan.memory)} GiB ({share:.0%})")]


def _taken(way: Way, rehearsal: Rehearsal) -> str:
    what = str(way.setting) if way.setting else "micro-batches as configured"
    if way.setting is None and rehearsal.resolved["model"]["gradient_checkpointing"]:
        what += ", activations computed again"
    return f"{way.name}: {what}; {way.micro_batches} in the heaviest step"


def table(plan: Plan) -> list[str]:
    """GiB, a column for each way."""
    names = [part for part in plan.chosen.parts if any(way.parts[part] for way in plan.ways)]
    rows = [[part, *(gib(way.parts[part]) for way in plan.ways)] for part in names]
    rows += [["torch's, in all", *(gib(way.peak) for way in plan.ways)]]
    rows += [["CUDA's own, about", *(gib(way.outside) for way in plan.ways)]] if plan.chosen.outside else []
    rows += [["in all", *(gib(way.total) for way in plan.ways)]]
    head = ["GiB on each device", *(way.name for way in plan.ways)]
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    shown = [
        [row[0].ljust(widths[0]), *(cell.rjust(width + 2) for cell, width in zip(row[1:], widths[1:], strict=True))]
        for row in [head, *rows]
    ]
    return ["".join(row) for row in shown]


def epoch_lines(plan: Plan, rate: tuple[float, str] | None) -> list[str]:
    """How long an epoch takes, where tokens and throughput are known."""
    tokens, steps = plan.rows.epoch_tokens, plan.rows.epoch_steps
    if tokens is None or steps is None:
        return []
    if rate is None:
        return [_line("an epoch", f"{tokens:,} tokens in {steps:,} steps; its time with  --tokens-per-second N")]
    return [
        _line("an epoch", f"{duration(tokens / rate[0])}: {tokens:,} tokens in {steps:,} steps at {rate[0]:,.0f} tokens a second{rate[1]}")
    ]


def duration(seconds: float) -> str:
    """Two units of it."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def gib(count: int) -> str:
    """Bytes in GiB."""
    return f"{count / 2**30:.2f}"


def _count(number: int) -> str:
    for unit, name in ((10**9, " billion"), (10**6, " million")):
        if number >= unit:
            return f"{number / unit:.2f}{name}"
    return f"{number:,}"


def _line(name: str, text: str) -> str:
    return f"{name:<17}{text}"


def as_dict(plan: Plan, rate: tuple[float, str] | None, rehearsal: Rehearsal) -> dict[str, Any]:
    """For programs; all sizes in bytes."""
    tokens = plan.rows.epoch_tokens
    return {
        "model": rehearsal.resolved["model"]["model"],
        "parameters": plan.outline.parameters,
        "trained": plan.outline.trained,
        "fast": plan.plain is None,
        "rows_assumed": plan.rows.assumed,
        "step_tokens": plan.rows.window,
        "longest": plan.rows.longest,
        "ways": {
            way.name: {
                "setting": {**asdict(way.setting), "keep": way.setting.keep.name} if way.setting else None,
                "micro_batches": way.micro_batches,
                "parts": way.parts,
                "peak": way.peak,
                "total": way.total,
            }
            for way in plan.ways
        },
        "chosen": plan.chosen.name,
        "memory": plan.memory,
        "fits": None if plan.memory is None else plan.fits,
        "epoch_seconds": tokens / rate[0] if tokens and rate else None,
        "advice": [{"change": change, "total": total} for change, total in plan.advice],
    }


def refuse(plan: Plan) -> None:
    """Raise UsageError, with what to change, where there is no point in trying."""
    if not plan.refused:
        return
    assert plan.memory is not None
    said = [
        f"the run needs {gib(plan.chosen.total)} GiB on each device, {plan.chosen.total / plan.memory:.0%} of its {gib(plan.memory)} GiB"
    ]
    said += [f"  {change}  needs {gib(total)} GiB{'' if total > plan.memory else ', which fits'}" for change, total in plan.advice[:4]]
    if not plan.advice:
        said.append("  no usual change makes it smaller; take a smaller model")
    raise UsageError("\n".join(said))


# -- for `ltune check` --------------------------------------------------------------------------------------------------------------------


def memory(rehearsal: Rehearsal) -> list[str]:
    """The section of `ltune check`, once its data is prepared: what the way that is taken needs."""
    from ltune.apps.planned_rows import tokenised

    made = made_plan(rehearsal, tokenised(rehearsal.datamodule, world_size(rehearsal)), None)
    refuse(made)
    known = f" of {gib(made.memory)} GiB" if made.memory is not None else ", and how much there is was not to be seen here"
    said = [f"{gib(made.chosen.total)} GiB on each device{known}: {_taken(made.chosen, rehearsal)}"]
    others = [f"{way.name} {gib(way.total)} GiB" for way in made.ways if way is not made.chosen]
    return [*said, *([f"otherwise: {', '.join(others)}"] if others else [])]
