"""The quick look accepts exactly what the reader accepts, and refuses the rest in the same words."""

import json
import random
from pathlib import Path

import pytest

from ltune.data import lines, scan
from ltune.data.formats import rows_of
from ltune.data.rows import Chat, Mismatched, Pair, Prompt, Rated, Row, Text
from ltune.data.sources import Source, resolve
from ltune.data.written import EXACT
from tests.data.test_broken_files import FILES, FINE
from tests.data.told import said


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch):
    monkeypatch.setattr(lines, "BLOCK", 1500)
    monkeypatch.setattr(lines, "STRETCH", 4000)
    monkeypatch.setattr(lines, "FIRST", 20)
    monkeypatch.setattr("ltune.data.read.BLOCK", 1500)


def by_look(source: Source, rows: type[Row], folder: Path) -> str | None:
    return said(lambda: scan.scan([(source, None)], folder / "memory", rows))


def by_reader(source: Source, rows: type[Row]) -> str | None:
    return said(lambda: list(rows_of(source, rows)))


@pytest.mark.parametrize("broken", FILES, ids=lambda broken: broken.what)
def test_a_broken_file_is_told_in_the_readers_words(tmp_path, broken):
    file = tmp_path / broken.name
    file.write_bytes(broken.content if isinstance(broken.content, bytes) else broken.content.encode())
    source = resolve(str(file), tmp_path)
    assert by_look(source, broken.rows, tmp_path) == by_reader(source, broken.rows) is not None


@pytest.mark.parametrize(("name", "content"), [case[1:3] for case in FINE], ids=[case[0] for case in FINE])
def test_what_is_unusual_and_not_wrong_passes(tmp_path, name, content):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert by_look(resolve(name, tmp_path), Chat, tmp_path) is None


ASK, ANSWER = {"role": "user", "content": 'Räume \\ "auf"\n\u2028 😀'}, {"role": "assistant", "content": "Gern."}
HUMAN, GPT = {"from": "human", "value": 'What is {"a": 1}?'}, {"from": "gpt", "value": "An object."}
SYSTEM = {"role": "system", "content": "Be short."}
GOOD = {  # rows of a data set, and the kind that they are read as
    "alpaca": (Chat, [{"instruction": "hi", "input": "", "output": "Hello!"}, {"instruction": "", "input": "ö", "output": ""}]),
    "alpaca with more": (Chat, [{"id": 7, "instruction": "hi", "output": "x", "history": [], "system": "s", "score": 0.5, "m": {"a": 1}}]),
    "openai": (Chat, [{"messages": [ASK, ANSWER]}, {"messages": [SYSTEM, ASK, ANSWER, ASK, ANSWER]}]),
    "openai with more": (Chat, [{"id": "a", "messages": [ASK, ANSWER], "source": None, "images": []}]),
    "sharegpt": (Chat, [{"conversations": [HUMAN, GPT], "system": "", "tools": ""}, {"conversations": [HUMAN, GPT, HUMAN, GPT]}]),
    "completion": (Chat, [{"prompt": "a", "completion": "b"}]),
    "text": (Text, [{"text": "once"}, {"text": "twice", "meta": {"n": 1}}]),
    "pairs": (Pair, [{"prompt": "a", "chosen": "b", "rejected": "c"}]),
    "pairs behind talk": (Pair, [{"conversations": [HUMAN], "chosen": GPT, "rejected": GPT}]),
    "rated": (Rated, [{"prompt": "a", "completion": "b", "label": True}]),
    "rated talk": (Mismatched, [{"messages": [ASK, ANSWER], "label": False}]),
    "prompts": (Prompt, [{"prompt": "a", "answer": "4"}, {"prompt": [ASK], "answer": "4"}]),
}
VALUES = [None, "", "x", "\0", "\ud83d", 3, 1e300, True, [], {}, [[]], ["a", "b"], {"a": 1}, [ASK], [GPT, HUMAN], "[]", "<think>a</think>b"]
KEYS = ["images", "tools", "system", "history", "text", "label", "kto_tag", "weight", "tool_calls", "input", "instruction", "messages"]


def spoiled(value, chance: random.Random):
    """A copy in which one thing, somewhere, is another."""
    if isinstance(value, dict) and value and chance.random() < 0.8:
        key, made = chance.choice(list(value)), dict(value)
        turn = chance.random()
        if turn < 0.15:
            del made[key]
        elif turn < 0.3:
            made[chance.choice(KEYS)] = chance.choice(VALUES)
        elif turn < 0.4:
            made = dict(reversed(made.items()))
        else:
            made[key] = spoiled(value[key], chance)
        return made
    if isinstance(value, list) and value and chance.random() < 0.8:
        at = chance.randrange(len(value))
        others = [spoiled(value[at], chance)] if chance.random() < 0.7 else chance.choice([[], [value[at]] * 2, [value[at], *value]])
        return [*value[:at], *others, *value[at + 1 :]]
    return chance.choice([*VALUES, "user", "human", "system", "assistant", "tool", "function_call"])


def written(row, chance: random.Random, spoil: bool) -> str:
    """As JSON, with something wrong that only text can have, perhaps."""
    line = json.dumps(row, ensure_ascii=chance.random() < 0.5, separators=chance.choice([None, None, (",", ":"), (" , ", " : ")]))
    if spoil and chance.random() < 0.4:
        at = chance.randrange(len(line))
        line = (
            line[:at]
            + chance.choice(["", '"', "\\", ",", "}", "\t", "\\u0000", "NaN", ' "a": 1,', "\\ud800", " ", line[at:]])
            + line[at + 1 :]
        )
    if spoil and chance.random() < 0.2:
        key = chance.choice([*row, "z"]) if isinstance(row, dict) else "z"
        line = line.replace("{", f'{{"{key}": "z", ', 1)
    return line


def spoil_some(rows: list, chance: random.Random) -> bytes:
    """A file of such rows, of which one or none is spoiled; what is spoiled need not be wrong."""
    bad = chance.choice([None, *range(60)])
    made = [json.dumps(chance.choice(rows), ensure_ascii=False) for _ in range(60)]
    for number in chance.sample(range(60), 3):
        made[number] = chance.choice(["", " ", made[number] + " ", json.dumps(chance.choice(rows), indent=None, separators=(",", ":"))])
    if bad is not None:
        row = spoiled(chance.choice(rows), chance) if chance.random() < 0.8 else chance.choice(rows)
        made[bad] = written(row, chance, spoil=True)
    return chance.choice(["\n", "\n", "\r\n"]).join([*made, ""] if chance.random() < 0.8 else made).encode(errors="surrogatepass")


@pytest.mark.parametrize("name", GOOD)
def test_it_accepts_what_the_reader_accepts(tmp_path, name):
    rows, records = GOOD[name]
    file = tmp_path / "rows.jsonl"
    source = Source("rows", (file,))
    told = 0
    for number in range(40):
        file.write_bytes(spoil_some(records, random.Random(f"{name} {number}")))
        expected = by_reader(source, rows)
        assert by_look(source, rows, tmp_path) == expected, number
        told += expected is not None
    assert 5 < told < 40


@pytest.mark.parametrize("name", GOOD)
def test_it_accepts_items_that_the_reader_accepts(tmp_path, name):
    rows, records = GOOD[name]
    file = tmp_path / "rows.json"
    source = Source("rows", (file,))
    for number in range(20):
        chance = random.Random(f"{name} {number}")
        items = [chance.choice(records) for _ in range(40)]
        items[chance.randrange(40)] = spoiled(chance.choice(records), chance)
        text = json.dumps(items, ensure_ascii=chance.random() < 0.5, indent=chance.choice([None, 1]))
        if chance.random() < 0.5:
            at = chance.randrange(len(text))
            text = text[:at] + chance.choice(["\n", "\n", "\t", " ", '"', "\\", ",", "NaN", '"id": 1, ']) + text[at:]
        file.write_bytes(text.encode(errors="surrogatepass"))
        assert by_look(source, rows, tmp_path) == by_reader(source, rows), number


@pytest.mark.skipif(not EXACT, reason="before Python 3.11.5 no patterns are used: EXACT in ltune/data/written.py")
@pytest.mark.parametrize("name", [name for name in GOOD if name != "prompts"])
def test_rows_that_are_written_like_the_first_are_not_even_parsed(tmp_path, monkeypatch, name):
    rows, records = GOOD[name]
    file = tmp_path / "rows.jsonl"
    usual = [record for record in records if record.get("instruction") != ""]
    file.write_text("".join(json.dumps(record, ensure_ascii=number % 2 == 0) + "\n" for number in range(20) for record in usual))
    form = lines.Form(Source("rows", (file,), format=scan.settled(Source("rows", (file,)), [("", usual[0])], rows).format), rows)
    look = lines.Lines(file, form)
    monkeypatch.setattr(lines.Lines, "_look_at_each", lambda *_: pytest.fail("one was not matched"))
    assert sum(look(begin).rows for begin in look.stretches()) == 20 * len(usual)
