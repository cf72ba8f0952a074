"""`ltune predict` the quick way writes the plain way's predictions, row by row. On the CPU, where it is otherwise left out."""

import json
import re
from pathlib import Path

import pytest
import yaml

from ltune import cli
from ltune.models.fast import build
from ltune.models.fast.decode import FastDecoder

CONFIGURATION = {
    "model": {"model": "tiny", "quantize": None, "sampling": {"max_new_tokens": 8}},
    "data": {"datasets": ["rows.jsonl"], "batch_size": 3},
    "trainer": {"accelerator": "cpu", "precision": "32-true", "enable_progress_bar": False},
}


@pytest.fixture
def predict(rows, tmp_path, monkeypatch):
    """Run `ltune predict` in this process, the quick way allowed on the CPU; its predictions."""
    monkeypatch.setattr(build, "_require_device", lambda *arguments: None)
    monkeypatch.chdir(tmp_path)
    Path("config.yaml").write_text(yaml.safe_dump(CONFIGURATION))

    def run(name: str, *options: str) -> list[dict]:
        assert cli.main(["predict", "--config", "config.yaml", "--run", name, *options]) == 0
        return [json.loads(line) for line in (Path(name) / "predictions.jsonl").read_text().splitlines()]

    return run


def test_both_ways_write_the_same_rows_in_order(predict, rows, capsys, monkeypatch):
    opened = []
    begin = FastDecoder.open
    monkeypatch.setattr(FastDecoder, "open", lambda self, *sizes: opened.append(sizes) or begin(self, *sizes))
    quick = predict("quick")
    said = capsys.readouterr().err
    assert re.search(r"generated \d+ tokens in [\d.]+ s \(\d+ tokens/s\)", said)
    assert len(opened) == 1  # all prompts at once, not data.batch_size of them
    plain = predict("plain", "--model.fast", "false")
    assert len(opened) == 1
    assert quick == plain
    questions = [json.loads(line)["instruction"] for line in rows.read_text().splitlines()]
    assert len(quick) == len(questions)
    assert all(question in line["prompt"] for question, line in zip(questions, quick, strict=True))
    assert len({line["predict"] for line in quick}) > 1
    assert re.search(r"generated \d+ tokens", capsys.readouterr().err)


def test_a_small_cache_gives_the_same_answers(predict):
    assert predict("small", "--model.generation_tokens", "100") == predict("whole")


def test_a_cache_of_nothing_is_refused(predict, capsys):
    assert cli.main(["predict", "--config", "config.yaml", "--run", "none", "--model.generation_tokens", "0"]) == 2
    assert "model.generation_tokens: at least 1" in capsys.readouterr().err


def test_a_limit_counts_batches_in_file_order_both_ways(predict):
    whole = predict("whole")
    for fast in ("true", "false"):
        assert predict(f"limited-{fast}", "--model.fast", fast, "--trainer.limit_predict_batches", "2") == whole[:6]
        assert predict(f"half-{fast}", "--model.fast", fast, "--trainer.limit_predict_batches", "0.5") == whole[:12]


def test_drawn_answers_follow_the_seed_not_the_batches(predict):
    options = ["--model.sampling.temperature", "1.0"]
    drawn = predict("drawn", *options)
    assert predict("again", *options, "--model.generation_tokens", "100") == drawn
    assert predict("fewer", *options, "--data.max_rows", "5") == drawn[:5]
    assert predict("other", *options, "--seed_everything", "7") != drawn


def test_bfloat16_under_an_adapter(predict):
    answers = predict("rounded", "--trainer.precision", "bf16-true", "--model.quantize", "NF4")
    assert len(answers) == 24
