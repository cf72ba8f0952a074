"""`ltune preview`: training rows as they will be trained, and the report of all of them. It needs the tokenizer, not the weights."""

from __future__ import annotations

import argparse
import difflib
import io
import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from ltune import schema
from ltune.errors import UsageError
from ltune.importing import importing
from ltune.inputs import look
from ltune.usage import precheck

if TYPE_CHECKING:
    from ltune.apps.rehearsal import Rehearsal
    from ltune.apps.shown_rows import ShownRow

log = logging.getLogger("ltune")


def main(argv: list[str]) -> int:
    """Prints the rows and the report, or writes the page. Raises UsageError for all that `ltune fit` would refuse in the data."""
    options, rest = parse(argv)
    precheck(rest)
    look("fit", rest)
    with importing():
        from ltune.apps.rehearsal import Rehearsal
        from ltune.apps.shown_rows import shown_rows
        from ltune.messages import quiet

    quiet()
    rehearsal = Rehearsal(rest)
    rehearsal.check(machine=False)
    rehearsal.build()
    rehearsal.prepare()
    rows = shown_rows(rehearsal.datamodule, options.rows, options.row)
    show(rows, rehearsal, options)
    return 0


class Parser(argparse.ArgumentParser):
    """Says what is wrong without the whole usage."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}\nltune preview --help  lists the options")


def parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Our own options, and the rest, which is for the parser of `ltune fit`."""
    parser = Parser(
        prog="ltune preview",
        usage="ltune preview --config FILE [-n ROWS] [--row ROW] [--html FILE | --json] [any option of ltune fit]",
        allow_abbrev=False,
        description="Show training rows as they will be trained, and the report of all of them.",
        epilog="Any option of `ltune fit` can be given, for example  --data.template chatml ; `ltune fit --help` lists them.",
    )
    parser.add_argument("-n", type=int, default=3, dest="rows", metavar="ROWS", help="how many rows (default: %(default)s)")
    parser.add_argument("--row", metavar="ROW", help="begin with this one: its number, or its place, such as rows.jsonl:13")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page with rows and report instead of printing them")
    parser.add_argument("--json", action="store_true", help="one object a row, one line each, and nothing else")
    options, rest = parser.parse_known_args(argv)
    refuse_misspelt(rest)
    if options.rows < 0:
        raise UsageError(f"-n is not negative, got {options.rows}")
    if options.html and options.html.is_dir():
        raise UsageError(f"--html {options.html} is a folder; give a file, for example  --html {options.html / 'preview.html'}")
    if options.html and not options.html.absolute().parent.is_dir():
        raise UsageError(f"--html {options.html}: there is no folder {options.html.absolute().parent}")
    return options, rest


def refuse_misspelt(arguments: list[str]) -> None:
    """An option of ours, nearly: the parser of `ltune fit` would look for it among its own."""
    for argument in arguments:
        name = argument.partition("=")[0]
        near = difflib.get_close_matches(name, ["--html", "--json", "--row"], n=1, cutoff=0.7)
        if near and name.lstrip("-") not in (*schema.SINGLE, *schema.SECTIONS):
            raise UsageError(f'{name} is not an option; did you mean "{near[0]}"?')


def show(rows: Iterator[ShownRow], rehearsal: Rehearsal, options: argparse.Namespace) -> None:
    """As asked for: for machines, as a page, or for people."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8", errors="replace")
    if options.html:
        from ltune.apps.preview_page import page

        kept = list(rows)
        write(options.html, page(kept, rehearsal))
        rows = iter(kept)
    if options.json:
        for row in rows:
            print(json.dumps(row.as_dict()))  # in ASCII: some readers take U+2028 in a text for the line's end
        warn(rehearsal)
    elif options.html:
        print(options.html)
        warn(rehearsal)
    else:
        print_rows(rows, rehearsal, options.rows)
        print_report(rehearsal)


def write(file: Path, text: str) -> None:
    """The page."""
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"--html {file}: cannot be written: {error.strerror}") from error


def warn(rehearsal: Rehearsal) -> None:
    """What is worth a second look, in the log."""
    from ltune.data.remarks import remarks

    for remark in remarks(rehearsal.report):
        log.warning("%s", remark)


def print_rows(rows: Iterator[ShownRow], rehearsal: Rehearsal, count: int) -> None:
    """For people; in colour on a terminal."""
    from ltune.data.paint import GREY, LEGEND_COLOURED, LEGEND_MARKED, PLAIN, in_colour, paint, printable

    coloured = in_colour(sys.stdout)
    all_rows = len(rehearsal.datamodule.train_rows)
    if count:
        print(f"{LEGEND_COLOURED if coloured else LEGEND_MARKED}; rows in the order of {order(rehearsal)}\n")
    for row in rows:
        print(f"--- row {row.name} of {all_rows:,}, {printable(row.place)}: {len(row.tokens):,} tokens, {row.trained:,} trained")
        print(paint(row.tokens, coloured))
        if row.padding:
            text = f"... and {row.padding:,} × padding, in its micro-batch of the first epoch"
            print(f"{GREY}{text}{PLAIN}" if coloured else text)
        print()


def order(rehearsal: Rehearsal) -> str:
    """What the rows' order is that of. Each epoch shuffles it."""
    from ltune.data.mixing import Concatenate

    mix = rehearsal.datamodule.mix
    return "the files" if isinstance(mix, Concatenate) else f"data.mix: {type(mix).__name__}"


def print_report(rehearsal: Rehearsal) -> None:
    """Of all rows, those that are not shown too."""
    from ltune.apps.report_text import report_lines
    from ltune.data.remarks import remarks

    all_rows = len(rehearsal.datamodule.train_rows)
    print("--- report of all rows")
    print("\n".join(report_lines(rehearsal.report, all_rows, rehearsal.held_out)))
    for remark in remarks(rehearsal.report):
        print(f"! {remark}")
