"""The first fault in the order of the rows is the one that is told, soon, by one process or by several."""

import json
import time

import pytest

from ltune.data.chunks import ROWS, Part, chunks_of
from ltune.data.encode import Encoder
from ltune.data.processes import FEW, encode_rows
from ltune.data.rows import Chat
from ltune.data.sources import resolve
from ltune.data.templates import load_template
from ltune.errors import UsageError
from ltune.models.tokenizer import load_tokenizer

GOOD = json.dumps({"instruction": "say one", "output": "one"})
NO_OUTPUT = json.dumps({"instruction": "say one", "input": ""})
BROKEN = '{"instruction": "say one" "output": "one"}'
MANY = (FEW + 2) * ROWS


@pytest.fixture(scope="module")
def encoder():
    tokenizer = load_tokenizer("tiny")
    return Encoder(load_template(None, tokenizer), tokenizer, max_length=64)


@pytest.fixture
def encoded(tmp_path, encoder):
    """What became of the rows of a file with these lines."""

    def run(lines, processes=1, bad_rows="error", limit=None):
        (tmp_path / "a.jsonl").write_text("\n".join(lines) + "\n")
        return list(encode_rows([Part(resolve("a.jsonl", tmp_path), limit)], Chat, encoder, processes, bad_rows))

    return run


@pytest.mark.parametrize("processes", [1, 2, None])
@pytest.mark.parametrize(
    ("faults", "told"),
    [
        ({3: NO_OUTPUT, 7: BROKEN}, "a.jsonl:4: "),  # the reader is ahead: it meets the later fault first
        ({3: BROKEN, 7: NO_OUTPUT}, "a.jsonl:4: "),
        ({ROWS + 3: NO_OUTPUT, 4 * ROWS: BROKEN}, f"a.jsonl:{ROWS + 4}: "),
        ({ROWS + 3: BROKEN, 4 * ROWS: NO_OUTPUT}, f"a.jsonl:{ROWS + 4}: "),
    ],
)
def test_the_first_fault_in_the_file_is_told(encoded, processes, faults, told):
    lines = [faults.get(number, GOOD) for number in range(5 * ROWS)]
    with pytest.raises(UsageError) as caught:
        encoded(lines, processes)
    assert told in str(caught.value)


@pytest.mark.parametrize("fault", [NO_OUTPUT, BROKEN])
def test_a_fault_at_the_end_of_many_rows_is_told_before_they_are_tokenised(encoded, fault):
    begin = time.perf_counter()
    encoded([GOOD] * 1000)
    a_thousand = time.perf_counter() - begin
    begin = time.perf_counter()
    with pytest.raises(UsageError, match=rf"a\.jsonl:{MANY + 1}: "):
        encoded([GOOD] * MANY + [fault])
    assert time.perf_counter() - begin < a_thousand * MANY / 1000 / 2


def test_what_a_template_refuses_in_the_first_chunk_comes_before_a_fault_of_form(tmp_path, encoder):
    source = "{% for m in messages %}{% if m.content == 'no' %}{{ raise_exception('not that') }}{% endif %}" + encoder.template.source
    (tmp_path / "strict.jinja").write_text(source + "{% endfor %}")
    tokenizer = load_tokenizer("tiny")
    strict = Encoder(load_template(str(tmp_path / "strict.jinja"), tokenizer), tokenizer, max_length=64)
    refused = json.dumps({"instruction": "no", "output": "one"})
    (tmp_path / "a.jsonl").write_text("\n".join([GOOD, refused, NO_OUTPUT, BROKEN]))
    with pytest.raises(UsageError, match=r"a\.jsonl:2: .*not that"):
        list(encode_rows([Part(resolve("a.jsonl", tmp_path), None)], Chat, strict, 1))


@pytest.mark.parametrize("processes", [1, 2])
def test_bad_rows_are_skipped_and_listed(encoded, processes):
    lines = [{3: NO_OUTPUT, ROWS: BROKEN}.get(number, GOOD) for number in range(ROWS + 10)]
    made = encoded(lines, processes, "skip")
    assert [len(chunk.lengths) for chunk in made] == [ROWS - 1, 9]
    assert [chunk.tally.counts["bad_rows"] for chunk in made] == [1, 1]
    assert [list(chunk.tally.skipped.values())[0]["places"] for chunk in made] == [["a.jsonl:4"], [f"a.jsonl:{ROWS + 1}"]]
    assert made[1].origins[:, 1].tolist() == list(range(ROWS + 2, ROWS + 11))


def test_a_limit_counts_rows(encoded):
    assert sum(len(made.lengths) for made in encoded([GOOD] * 20, limit=7)) == 7


def test_a_chunk_of_long_texts_holds_fewer_rows(tmp_path):
    rows = [json.dumps({"instruction": "say", "output": "a" * 1_500_000})] * 7
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    chunks = list(chunks_of([Part(resolve("a.jsonl", tmp_path), None)], Chat, "error"))
    assert [len(chunk.records) for chunk in chunks] == [3, 3, 1]
