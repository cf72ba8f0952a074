"""No rows, one row, fewer rows than a batch, and rows that are bad: refused clearly or trained rightly."""

import json

import pytest

GOOD = {"instruction": "hi", "output": "Hello!"}
QUICK = ["--trainer.accelerator", "cpu", "--model.quantize", "null", "--trainer.max_epochs", "2", "--trainer.log_every_n_steps", "1"]


def write(folder, *lines):
    (folder / "rows.jsonl").write_text("".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines))


def fit(ltune, *options):
    return ltune("fit", "--data.datasets", "[rows.jsonl]", "--run", "run", *QUICK, *options)


def test_a_row_that_is_less_than_a_batch_is_one_step_an_epoch(ltune, tmp_path, metrics):
    write(tmp_path, GOOD)
    done = fit(ltune, "--data.batch_size", "8", "--trainer.accumulate_grad_batches", "4")
    assert done.returncode == 0, done.stderr
    assert [line["step"] for line in metrics(tmp_path / "run") if "train/loss" in line] == [1, 2]
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([], "rows.jsonl: the file is empty: it has no rows."),
        ([GOOD, "{broken\n", GOOD], "rows.jsonl:2: malformed JSON: Expecting property name enclosed in double quotes"),
    ],
    ids=["none", "broken"],
)
def test_what_cannot_be_trained_on_ends_with_two_and_a_few_lines(ltune, tmp_path, lines, words):
    write(tmp_path, *lines)
    done = fit(ltune)
    assert done.returncode == 2
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) <= 5
    assert not (tmp_path / "run").exists()


def test_bad_rows_are_skipped_where_asked_and_reported(ltune, tmp_path):
    write(tmp_path, GOOD, "{broken\n", GOOD, {"instruction": 3, "output": "x"})
    done = fit(ltune, "--data.bad_rows", "skip")
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "run" / "data_report.json").read_text())
    assert (report["total"]["rows"], report["total"]["bad_rows"]) == (2, 2)
    assert "rows.jsonl:2" in json.dumps(report["datasets"])
