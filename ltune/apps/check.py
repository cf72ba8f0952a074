"""`ltune check`: all that can be found wrong before the weights load, on one page. Whoever knows more adds a section."""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ltune.apps.plan import memory
from ltune.errors import LtuneError, UsageError
from ltune.importing import importing
from ltune.inputs import look_at_data
from ltune.usage import configurations, precheck

if TYPE_CHECKING:
    from ltune.apps.rehearsal import Rehearsal

HELP = """usage: ltune check --config FILE [any option of ltune fit]

Look at configuration, template, data and run folder as `ltune fit` would, and say on one page what is wrong.
Exit code 2 if anything is; 0 otherwise. No weights are loaded and no run folder is made.
"""


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Args:
        title: Its name.
        look: Finds what there is to say; what it raises is wrong.
        needs: Titles of sections without which it cannot look.
    """

    title: str
    look: Callable[[Rehearsal], list[str]]
    needs: tuple[str, ...] = ()


def main(argv: list[str]) -> int:
    """Prints the page. Returns 2 if anything would be wrong; raises UsageError where the command line or the YAML cannot be read."""
    if any(argument in ("-h", "--help") for argument in argv):
        print(HELP, end="")
        return 0
    precheck(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8", errors="replace")
    title = f"ltune check {' '.join(map(str, configurations(argv)))}".rstrip()
    wrong = bad_rows(argv, title)
    with importing():
        from ltune.apps.rehearsal import Rehearsal
        from ltune.messages import quiet

    quiet()
    rehearsal = Rehearsal(argv, with_trainer=True)
    if not wrong:
        print(title)
    unseen: list[str] = []
    for section in SECTIONS:
        if section.title in wrong:
            continue
        if missing := [title for title in section.needs if title in wrong or title in unseen]:
            print(f"\n[--] {section.title}: not looked at, as {missing[0]} is not right")
            unseen.append(section.title)
        elif not print_section(section, rehearsal):
            wrong.append(section.title)
    print(f"\nwrong: {', '.join(wrong)}" if wrong else "\nnothing wrong found")
    return 2 if wrong else 0


def bad_rows(argv: list[str], title: str) -> list[str]:
    """The data's section, if a quick look finds it wrong: printed within a second or two, while the rest of the page takes its time."""
    try:
        look_at_data("fit", argv)
    except UsageError as error:
        print(title)
        print_verdict("data", False, [str(error)])
        return ["data"]
    return []


def print_section(section: Section, rehearsal: Rehearsal) -> bool:
    """Look and print; whether all is well."""
    with warned() as warnings:
        try:
            lines, well = section.look(rehearsal), True
        except LtuneError as error:
            lines, well = [str(error)], False
        except Exception as error:  # whatever it is, `ltune fit` would meet it too
            lines, well = [f"{type(error).__name__}: {error}"], False
    print_verdict(section.title, well, [*lines, *(f"! {warning}" for warning in warnings)])
    return well


def print_verdict(title: str, well: bool, texts: list[str]) -> None:
    """A section of the page."""
    from ltune.data.paint import printable

    print(f"\n[{'ok' if well else 'wrong'}] {title}")
    for text in texts:
        for line in text.splitlines():
            print(f"  {printable(line)}".rstrip(), flush=True)


@contextmanager
def warned() -> Iterator[list[str]]:
    """Collects our own warnings meanwhile; they belong on the page. The rest of the log goes where it always does."""
    found: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.levelno < logging.WARNING:
                logging.getLogger().handle(record)
            elif record.getMessage() not in found:
                found.append(record.getMessage())

    logger, collector = logging.getLogger("ltune"), Collector()
    propagates, logger.propagate = logger.propagate, False
    logger.addHandler(collector)
    try:
        yield found
    finally:
        logger.removeHandler(collector)
        logger.propagate = propagates


# -- sections -------------------------------------------------------------------------------------------------------------------------


def configuration(rehearsal: Rehearsal) -> list[str]:
    """The rules between options, also those about this machine."""
    rehearsal.check(machine=True)
    return []


def template(rehearsal: Rehearsal) -> list[str]:
    """The tokenizer, and the template, which may differ from the tokenizer's own."""
    rehearsal.build()
    named = rehearsal.datamodule.template
    return [f"model {rehearsal.model.name}, template {named.name if named else 'none: plain text'}"]


def trainer(rehearsal: Rehearsal) -> list[str]:
    """Devices, strategy, loggers and callbacks."""
    made = rehearsal.build_trainer()
    return [f"{type(made.accelerator).__name__}, {made.world_size} process{'' if made.world_size == 1 else 'es'}, {made.precision}"]


def data(rehearsal: Rehearsal) -> list[str]:
    """All rows as they will be trained, in short."""
    from ltune.apps.report_text import report_lines
    from ltune.data.remarks import remarks

    rehearsal.prepare()
    return [
        *report_lines(rehearsal.report, len(rehearsal.datamodule.train_rows), rehearsal.held_out, places=3, bars=False),
        *(f"! {remark}" for remark in remarks(rehearsal.report)),
    ]


def run_folder(rehearsal: Rehearsal) -> list[str]:
    """Whether a run is there, and goes on with these settings and this data."""
    from ltune.checkpoints.store import CheckpointStore

    folder, changed = rehearsal.run_folder()
    if folder.finished and not changed:
        return [f"{folder.path} is finished: `ltune fit` would not train again"]
    newest = CheckpointStore(folder.path / "checkpoints").newest_intact(logging.getLogger("ltune").warning)
    return [f"{folder.path} goes on from {newest.name}" if newest else f"{folder.path} is new"]


SECTIONS = [
    Section("configuration", configuration),
    Section("tokenizer and template", template),
    Section("trainer", trainer, needs=("configuration", "tokenizer and template")),
    Section("data", data, needs=("tokenizer and template",)),
    Section("memory", memory, needs=("trainer", "data")),
    Section("run folder", run_folder),
]
