"""The quick look at CSV, Parquet and Arrow files tells what the reader tells, in the same words, or nothing."""

import csv
import io
import random
import time
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from ltune.data import csv_scan, scan, table_scan
from ltune.data.csv_scan import scan_csv
from ltune.data.formats import rows_of
from ltune.data.lines import Form
from ltune.data.rows import Chat, Pair, Prompt, Rated, Row, Text
from ltune.data.sources import Source
from ltune.data.table_scan import scan_table
from ltune.data.written import EXACT
from tests.data.told import said

patterns = pytest.mark.skipif(not EXACT, reason="before Python 3.11.5 no patterns are used: EXACT in ltune/data/written.py")

TEXTS = ["hi", 'Räume "auf"', "one\ntwo\r\n, three", "", "a, b", '"', "x" * 90, "😀"]
SEPARATE = {  # a format whose rows are columns of text: what they are read as, the columns, and those that are never empty
    "alpaca": (Chat, ["instruction", "input", "output"], {"instruction"}),
    "alpaca with more": (Chat, ["id", "instruction", "output", "system", "images", "history"], {"instruction"}),
    "completion": (Chat, ["prompt", "completion"], {"prompt"}),
    "text": (Text, ["text"], {"text"}),
    "completion of pairs": (Pair, ["chosen", "prompt", "rejected"], {"prompt"}),
    "completion that is rated": (Rated, ["prompt", "completion", "label"], {"prompt"}),
    "completion of prompts": (Prompt, ["prompt", "answer"], {"prompt"}),
}
EMPTY = ("images", "history")


def looked(look, source: Source, rows: type[Row]) -> str | None:
    (file,) = source.files
    return said(lambda: look(file, f"{file.name} row ", 10**9, Form(source, rows)))


def by_reader(source: Source, rows: type[Row]) -> str | None:
    return said(lambda: list(rows_of(source, rows)))


def text_of(column: str, needed: set[str], chance: random.Random) -> str:
    if column == "label":
        return chance.choice(["true", "False", "0"])
    return "" if column in EMPTY else chance.choice([text for text in TEXTS if text or column not in needed])


def csv_of(columns: list[str], rows: list[list[str]], chance: random.Random) -> bytes:
    written = io.StringIO()
    quoting = chance.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
    csv.writer(written, lineterminator=chance.choice(["\n", "\r\n"]), quoting=quoting).writerows([columns, *rows])
    made = chance.choice([b"", b"\xef\xbb\xbf"]) + written.getvalue().encode()
    return made.rstrip() if chance.random() < 0.2 else made


def spoiled(made: bytes, chance: random.Random) -> bytes:
    """With one thing inserted, taken out or emptied behind the header; it need not be wrong."""
    at = chance.randrange(made.index(b"\n") + 1, len(made))
    return chance.choice(
        [
            made[:at] + chance.choice([b'"', b",", b"\n", b"\r", b"\0", b"\xff", b"\n\n", b'""', b"  ", b"\xef\xbb\xbf"]) + made[at:],
            made[:at] + made[at + 1 :],
            made[:at],
        ]
    )


@patterns
@pytest.mark.parametrize("name", SEPARATE)
def test_csv_is_told_in_the_readers_words_or_left_to_it(tmp_path, monkeypatch, name):
    monkeypatch.setattr(csv_scan, "STRETCH", 400)
    rows, columns, needed = SEPARATE[name]
    file = tmp_path / "rows.csv"
    source = Source("rows", (file,), format=name.split()[0])
    wrong = told = 0
    for number in range(100):
        chance = random.Random(f"{name} {number}")
        made = [[text_of(column, needed, chance) for column in columns] for _ in range(40)]
        if 30 < number < 60:
            made[chance.randrange(40)][chance.randrange(len(columns))] = chance.choice(["", "x", "[]"])
        whole = csv_of(columns, made, chance)
        file.write_bytes(whole if number < 60 else spoiled(whole, chance))
        expected, found = by_reader(source, rows), looked(scan_csv, source, rows)
        assert found in (None, expected), number
        assert found is not None or expected is None or number >= 60, number
        assert number > 30 or scan_csv(file, "", 10**9, Form(source, rows)) == 40, number
        wrong, told = wrong + (expected is not None), told + (found is not None)
    assert told >= 0.8 * wrong > 5


@patterns
@pytest.mark.parametrize(
    ("row", "what"),
    [
        (b',"",x', "row 1001: instruction is empty"),
        (b'"two\nlines",x', ":3004: the row has 2 fields and the header 3"),
        (b'"a"b,,x', ":3003: malformed CSV: ',' expected after '\"'; the row begins there"),
        (b'"a,,x', ":3003: malformed CSV: unexpected end of data; the row begins there"),
        (b"a\0,,x", ":3003: holds a null byte"),
        (b"a\xff,,x", ":3003: not UTF-8 text"),
        (b"a\rb,,x", ":3003: malformed CSV: new-line character seen in unquoted field"),
    ],
)
def test_a_fault_behind_rows_of_several_lines_has_the_right_number(tmp_path, monkeypatch, row, what):
    monkeypatch.setattr(csv_scan, "STRETCH", 400)
    file = tmp_path / "rows.csv"
    file.write_bytes(b"instruction,input,output\n" + b'"one\n\ntwo",,"say ""x"", y"\n' * 1000 + b"\n" + row + b"\n")
    source = Source("rows", (file,), format="alpaca")
    found = looked(scan_csv, source, Chat)
    assert found == by_reader(source, Chat)
    assert what in (found or "")


@patterns
def test_quotes_within_a_field_are_left_to_the_reader(tmp_path):
    file = tmp_path / "rows.csv"
    file.write_bytes(b"instruction,output\n" + b"hi,x\n" * 9 + b'5" and 6,"x"\n' + b"hi,x\n" * 9)
    source = Source("rows", (file,), format="alpaca")
    assert scan_csv(file, "", 10**9, Form(source, Chat)) is None
    assert scan_csv(file, "", 9, Form(source, Chat)) == 9
    assert len(list(rows_of(source, Chat))) == 19


@patterns
@pytest.mark.parametrize("long", ["x" * 3000, '"' + "x" * 3000 + '"', '"' + "x\n" * 1500 + '"'])
def test_rows_that_are_very_long_are_left_to_the_reader(tmp_path, monkeypatch, long):
    monkeypatch.setattr(csv_scan, "STRETCH", 400)
    file = tmp_path / "rows.csv"
    form = Form(Source("rows", (file,), format="alpaca"), Chat)
    for before in range(300, 400, 7):
        file.write_text("instruction,output\n" + "x" * before + f",y\nhi,{long}\nhi,x\n")
        assert scan_csv(file, "", 10**9, form) == 3
        with monkeypatch.context() as patch:
            patch.setattr(csv_scan, "LONGEST", 1000)
            assert scan_csv(file, "", 10**9, form) is None


@patterns
def test_rows_are_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(csv_scan, "STRETCH", 64)
    file = tmp_path / "rows.csv"
    file.write_bytes(b"instruction,input,output\r\n" + b'"a\nb",,x\r\n\r\n,c,x\r\n' * 100 + b"a,b,c")
    form = Form(Source("rows", (file,), format="alpaca"), Chat)
    assert scan_csv(file, "", 10**9, form) == 201


@patterns
def test_the_last_of_many_rows_takes_little_time(tmp_path):
    file = tmp_path / "rows.csv"
    words = "what is the capital of France, and of Italy? " * 10
    file.write_text("instruction,input,output\n" + f'hi,,"{words}"\n' * 100_000 + ",,x\n")
    source = Source("rows", (file,))
    began = time.process_time()
    assert said(lambda: scan.scan([(source, None)], tmp_path, Chat)) == "rows.csv row 100001: instruction is empty."
    assert time.process_time() - began < 0.8  # 0.07 to 0.15 s; the reader and to_row take 1.9 s


# -- tables ---------------------------------------------------------------------------------------------------------------------------

ASK, ANSWER, SYSTEM = ({"role": role, "content": f"{role} says"} for role in ("user", "assistant", "system"))
HUMAN, GPT = {"from": "human", "value": "hi"}, {"from": "gpt", "value": ""}
TABLES = {
    "alpaca": (Chat, [{"instruction": "hi", "input": None, "output": ""}, {"instruction": "", "input": "ö", "output": "x"}]),
    "alpaca with more": (Chat, [{"id": 7, "instruction": "hi", "output": "x", "history": [], "system": "s", "images": [], "m": {"a": 1}}]),
    "openai": (Chat, [{"messages": [ASK, ANSWER]}, {"messages": [SYSTEM, ASK, ANSWER, ASK, ANSWER]}]),
    "openai with more": (Chat, [{"messages": [ASK | {"name": None}, ANSWER | {"name": "x"}], "system": None, "tools": ""}]),
    "sharegpt": (Chat, [{"conversations": [HUMAN, GPT], "system": "be short"}]),
    "text": (Text, [{"text": "once"}]),
    "completion of pairs": (Pair, [{"prompt": "a", "chosen": "b", "rejected": ""}]),
    "openai before pairs": (Pair, [{"messages": [ASK], "chosen": "b", "rejected": ""}]),
    "completion that is rated": (Rated, [{"prompt": "a", "completion": "b", "label": True}]),
    "openai that is rated": (Rated, [{"messages": [ASK, ANSWER], "label": False}]),
    "completion of prompts": (Prompt, [{"prompt": "a", "answer": "4"}]),
}


def other(value, chance: random.Random):
    """In its stead, of the same type."""
    if isinstance(value, list) and value and chance.random() < 0.7:
        at = chance.randrange(len(value))
        return chance.choice([[], value[1:], value[:-1], value * 2, [*value[:at], other(value[at], chance), *value[at + 1 :]]])
    if isinstance(value, dict) and chance.random() < 0.9:
        key = chance.choice(list(value))
        return value | {key: other(value[key], chance)}
    if value == []:
        return ["a.png"]
    return chance.choice(["", "\0", "system", "gpt", "tool", None]) if isinstance(value, str) else None


def write(file: Path, rows: list[dict], large: bool) -> None:
    table = pyarrow.Table.from_pylist(rows)
    if large:
        texts = [field.with_type(pyarrow.large_string()) if field.type == pyarrow.string() else field for field in table.schema]
        table = table.cast(pyarrow.schema(texts))
    if file.suffix == ".parquet":
        parquet.write_table(table, file, row_group_size=70)
    else:
        with pyarrow.ipc.new_stream(file, table.schema) as stream:
            stream.write_table(table, max_chunksize=70)


@pytest.mark.parametrize("ending", [".parquet", ".arrow"])
@pytest.mark.parametrize("name", TABLES)
def test_tables_are_told_in_the_readers_words(tmp_path, monkeypatch, name, ending):
    monkeypatch.setattr(table_scan, "ROWS", 40)
    rows, records = TABLES[name]
    file = tmp_path / f"rows{ending}"
    source = Source("rows", (file,), format=name.split()[0])
    told = 0
    for number in range(25):
        chance = random.Random(f"{name} {number}")
        made = [chance.choice(records) for _ in range(100)]
        for at in chance.sample(range(100), 2 if number else 0):
            key = chance.choice(list(made[at]))
            made[at] = made[at] | {key: other(made[at][key], chance)}
        write(file, made, large=number % 2 == 0)
        expected = by_reader(source, rows)
        assert looked(scan_table, source, rows) == expected, number
        told += expected is not None
    assert told > 3


@pytest.mark.parametrize("ending", [".parquet", ".arrow"])
def test_columns_that_are_all_null_or_empty(tmp_path, ending):
    file, kind = tmp_path / f"rows{ending}", pyarrow.string()
    talk = pyarrow.list_(pyarrow.struct({"role": kind, "content": kind}))
    empty = {"system": pyarrow.nulls(9, kind), "images": pyarrow.nulls(9, pyarrow.list_(kind)), "history": pyarrow.nulls(9)}
    columns = {
        "completion": {"prompt": pyarrow.array(["hi"] * 9), "completion": pyarrow.array([""] * 9)},
        "alpaca": {"instruction": pyarrow.array(["hi"] * 9).dictionary_encode(), "output": pyarrow.nulls(9, kind)},
        "openai": {"messages": pyarrow.array([[]] * 9, talk)},
        "openai too": {"messages": pyarrow.nulls(9, talk)},
    }
    told = []
    for name, given in columns.items():
        table = pyarrow.table(given | empty)
        if ending == ".parquet":
            parquet.write_table(table, file)
        else:
            with pyarrow.ipc.new_file(file, table.schema) as opened:
                opened.write_table(table)
        source = Source("rows", (file,), format=name.split()[0])
        told.append(looked(scan_table, source, Chat))
        assert told[-1] == by_reader(source, Chat)
    assert [text and text.partition(": ")[2] for text in told] == [
        None, "output must be text; got None.", "messages is empty: it has no messages.", "messages must be a list of messages; got None.",
    ]  # fmt: skip


def test_tables_of_other_types_are_left_to_the_reader(tmp_path):
    file = tmp_path / "rows.parquet"
    for row in ({"messages": "hi"}, {"messages": ["hi"]}, {"messages": [{"role": 1, "content": "x"}]}, {"messages": None}, {"text": "x"}):
        parquet.write_table(pyarrow.Table.from_pylist([row]), file)
        assert scan_table(file, "", 10**9, Form(Source("rows", (file,), format="openai"), Chat)) is None
    file.write_bytes(file.read_bytes()[:-9])
    assert scan_table(file, "", 10**9, Form(Source("rows", (file,), format="openai"), Chat)) is None
