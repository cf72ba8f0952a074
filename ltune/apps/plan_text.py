"""A memory plan as lines for people, as data for programs, and as a refusal."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ltune.errors import UsageError

if TYPE_CHECKING:
    from ltune.apps.planning import Plan, Way
    from ltune.apps.rehearsal import Rehearsal

Rate = tuple[float, str]  # tokens a second, and where that is from


def lines(plan: Plan, rehearsal: Rehearsal, remark: str = "") -> list[str]:
    """Model, rows, the table, and the way that is taken."""
    outlined, rows, name = plan.outline, plan.rows, rehearsal.resolved["model"]["model"]
    longest = f"{rows.longest:,}, which every row is taken to have" if rows.assumed else f"{rows.longest:,}"
    said = [
        _line("model", f"{name}, {_count(outlined.parameters)} weights; {_count(outlined.trained)} are trained"),
        _line("layers", "ltune's own" if plan.plain is None else f"transformers' own ({plan.plain}); the estimate is rougher"),
        _line("heaviest step", f"{rows.window:,} tokens on a device, longest row {longest}"),
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
    rows = [["GiB on each device", *(way.name for way in plan.ways)]]
    rows += [[part, *(gib(way.parts[part]) for way in plan.ways)] for part in names]
    rows += [["torch's, in all", *(gib(way.peak) for way in plan.ways)]]
    rows += [["CUDA's own, about", *(gib(way.outside) for way in plan.ways)]] if plan.chosen.outside else []
    rows += [["in all", *(gib(way.total) for way in plan.ways)]]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]


def epoch_lines(plan: Plan, rate: Rate | None) -> list[str]:
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


def as_dict(plan: Plan, rate: Rate | None, rehearsal: Rehearsal) -> dict[str, Any]:
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


def in_short(plan: Plan, rehearsal: Rehearsal) -> list[str]:
    """A line for the way that is taken, and one for the others."""
    known = f" of {gib(plan.memory)} GiB" if plan.memory is not None else "; there is no GPU here to compare with"
    said = [f"{gib(plan.chosen.total)} GiB on each device{known}", _taken(plan.chosen, rehearsal)]
    others = [f"{way.name} {gib(way.total)} GiB" for way in plan.ways if way is not plan.chosen]
    return [*said, *([f"otherwise: {', '.join(others)}"] if others else [])]
