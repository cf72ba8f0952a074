import json
import subprocess
import sys

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer

from ltune.callbacks.predictions import PredictionWriter, score


class Answers(LightningModule):
    """Answers row i of the loader with the i-th of the given answers."""

    def __init__(self, answers):
        super().__init__()
        self.answers = answers

    def predict_step(self, batch, batch_idx):
        return [self.answers[row] | {"row": row} for row in batch.tolist()]


def answer(prompt, predict, label):
    return {"prompt": prompt, "predict": predict, "label": label}


def predict(folder, answers, order):
    trainer = Trainer(
        accelerator="cpu",
        default_root_dir=folder,
        callbacks=[PredictionWriter()],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.predict(Answers(answers), torch.utils.data.DataLoader(order, batch_size=2), return_predictions=False)


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_file_is_in_row_order_and_the_table_names_rows_and_scores(tmp_path, capsys):
    answers = [
        answer("first", "the cat sat on the mat", "the cat sat on the mat"),
        answer("second\nline", "Grüße 你好", None),
        answer("third", "a dog ran over the road", "a dog ran over the road"),
    ]
    capsys.readouterr()
    predict(tmp_path / "run", answers, [2, 0, 1])
    assert lines(tmp_path / "run/predictions.jsonl") == answers
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["predictions.jsonl", "predictions_metrics.json"]
    metrics = json.loads((tmp_path / "run/predictions_metrics.json").read_text())
    assert metrics == pytest.approx({"rows": 3, "scored": 2, "BLEU-4": 100, "ROUGE-1": 100, "ROUGE-2": 100, "ROUGE-L": 100})
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["rows", "3"],
        ["scored", "2"],
        ["BLEU-4", "100.00"],
        ["ROUGE-1", "100.00"],
        ["ROUGE-2", "100.00"],
        ["ROUGE-L", "100.00"],
        ["written:", str(tmp_path / "run/predictions.jsonl")],
    ]


def test_rows_without_labels_only(tmp_path, capsys):
    predict(tmp_path, [answer("p", "q", None)], [0])
    assert json.loads((tmp_path / "predictions_metrics.json").read_text()) == {"rows": 1, "scored": 0}
    assert "no scores: no row has a label" in capsys.readouterr().out


def test_scores_are_the_published_formulas():
    """One word of six differs: bigram matches 3 of 5, trigrams 2 of 4, 4-grams 1 of 3, the longest common subsequence is 5 of 6."""
    scores = score(["the cat sat on the mat"], ["the cat sat on a mat"])
    bleu = 100 * (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25
    assert scores == pytest.approx({"BLEU-4": bleu, "ROUGE-1": 100 * 5 / 6, "ROUGE-2": 100 * 3 / 5, "ROUGE-L": 100 * 5 / 6})


def test_characters_are_words_where_there_are_no_spaces():
    assert score(["你好世界"], ["你好世上"])["ROUGE-1"] == pytest.approx(75)
    assert score(["ничего"], ["ничего"])["ROUGE-1"] == pytest.approx(100)  # and letters need not be Latin ones


def test_without_the_extra_the_rows_are_written_and_the_table_says_what_to_install(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics", None)  # as if it were not installed
    predict(tmp_path, [answer("p", "q", "q")], [0])
    assert "pip install 'ltune[metrics]'" in capsys.readouterr().out
    assert lines(tmp_path / "predictions.jsonl") == [answer("p", "q", "q")]
    assert json.loads((tmp_path / "predictions_metrics.json").read_text()) == {"rows": 1, "scored": 1}


def test_a_failed_run_leaves_the_earlier_file_and_no_part(tmp_path):
    good = [answer("p", "q", "q")]
    predict(tmp_path, good, [0])
    with pytest.raises(IndexError):
        predict(tmp_path, good, [0, 0, 7])  # the second batch asks for an answer that is not there
    assert lines(tmp_path / "predictions.jsonl") == good
    assert sorted(path.name for path in tmp_path.iterdir()) == ["predictions.jsonl", "predictions_metrics.json"]


def test_parts_of_a_killed_run_are_not_joined(tmp_path):
    (tmp_path / ".predictions.part-0").write_text('{"place": [0, 9], "record"')
    (tmp_path / ".predictions.part-3").write_text('{"place": [0, 9], "record"')
    predict(tmp_path, [answer("p", "q", "q")], [0])
    assert lines(tmp_path / "predictions.jsonl") == [answer("p", "q", "q")]
    assert not list(tmp_path.glob(".predictions*"))


TWO_RANKS = """
import sys
import torch
from lightning.pytorch import LightningModule, Trainer
from ltune.callbacks.predictions import PredictionWriter

class Echo(LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
    def predict_step(self, batch, batch_idx):
        return [{"prompt": f"p{row}", "predict": f"rank {self.global_rank}", "label": None, "row": row} for row in batch.tolist()]

if __name__ == "__main__":
    trainer = Trainer(accelerator="cpu", devices=2, strategy="ddp", default_root_dir=sys.argv[1], callbacks=[PredictionWriter()],
                      logger=False, enable_progress_bar=False, enable_model_summary=False)
    trainer.predict(Echo(), torch.utils.data.DataLoader(range(5), batch_size=1), return_predictions=False)
"""


def test_two_ranks_make_one_file_and_one_table(tmp_path):
    script = tmp_path / "two_ranks.py"
    script.write_text(TWO_RANKS)
    done = subprocess.run([sys.executable, str(script), str(tmp_path / "run")], capture_output=True, text=True, timeout=120, check=True)
    written = lines(tmp_path / "run/predictions.jsonl")
    assert [line["prompt"] for line in written] == ["p0", "p1", "p2", "p3", "p4"]
    assert {line["predict"] for line in written} == {"rank 0", "rank 1"}
    assert [line.split() for line in done.stdout.splitlines() if line.startswith("rows")] == [["rows", "5"]]
    assert not list((tmp_path / "run").glob(".*"))
