"""Parquet and Arrow to records."""

import pyarrow
import pytest
from pyarrow import parquet

from ltune.data.read import read_file
from ltune.data.tables import BATCH
from ltune.errors import UsageError

TALK = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Hello!"}]


def test_parquet_keeps_lists(tmp_path):
    parquet.write_table(pyarrow.Table.from_pylist([{"messages": TALK}]), tmp_path / "a.parquet")
    assert list(read_file(tmp_path / "a.parquet")) == [("a.parquet row 1", {"messages": TALK})]


def test_arrow_streams_as_datasets_keeps_them_and_arrow_files(tmp_path):
    table = pyarrow.Table.from_pylist([{"text": str(number)} for number in range(BATCH + 5)])
    with pyarrow.ipc.new_stream(tmp_path / "stream.arrow", table.schema) as stream:
        stream.write_table(table)
    with pyarrow.ipc.new_file(tmp_path / "file.arrow", table.schema) as file:
        file.write_table(table)
    for name in ("stream.arrow", "file.arrow"):
        found = list(read_file(tmp_path / name))
        assert found[0] == (f"{name} row 1", {"text": "0"})
        assert found[-1] == (f"{name} row {BATCH + 5}", {"text": str(BATCH + 4)})


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
@pytest.mark.parametrize("kept", [0, 3, 100, -200, -1])
def test_what_is_cut_off_is_no_table(tmp_path, kind, kept):
    table, whole = pyarrow.Table.from_pylist([{"text": "x" * 100}] * 50), tmp_path / "whole"
    if kind == "parquet":
        parquet.write_table(table, whole)
    else:
        with pyarrow.ipc.new_file(whole, table.schema) as file:
            file.write_table(table)
    (tmp_path / f"a.{kind}").write_bytes(whole.read_bytes()[:kept])
    with pytest.raises(UsageError, match=rf"a\.{kind}: (malformed {kind}: |the file is empty)"):
        list(read_file(tmp_path / f"a.{kind}"))
