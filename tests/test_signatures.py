"""Signatures are read from sources as text; what functions do is left out before parsing, and nothing else is lost by it."""

import ast
from pathlib import Path

import pytest

from ltune import signatures

PACKAGE = Path(signatures.__file__).parent


@pytest.mark.parametrize("file", [PACKAGE / "train.py", PACKAGE / "data" / "datamodule.py", *sorted(PACKAGE.glob("objectives/*.py"))])
def test_nothing_is_lost_by_leaving_bodies_out(monkeypatch, file):
    found = signatures.read.__wrapped__(file)
    monkeypatch.setattr(signatures, "_parsed", ast.parse)
    whole = signatures.read.__wrapped__(file)
    assert (found.classes, found.imported, found.aliases, found.complete) == (whole.classes, whole.imported, whole.aliases, whole.complete)
    assert found.classes or file.name in ("__init__.py",) or not whole.classes


def test_text_that_looks_like_a_function_does_no_harm(tmp_path):
    (tmp_path / "odd.py").write_text(
        'TEXT = """\n  def no():\n    """\n\n\nclass A:\n    rows = Chat\n\n    def __init__(self, a: int) -> None:\n        pass\n'
    )
    found = signatures.read(tmp_path / "odd.py").classes["A"]
    assert (found.parameters, found.values) == ({"a": "int"}, {"rows": "Chat"})


def test_a_class_tells_what_its_names_stand_for():
    classes = signatures.read(PACKAGE / "objectives" / "dpo.py").classes
    assert classes["DPO"].values["rows"] == "Pair"
