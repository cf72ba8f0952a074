"""`ltune check`, as it is called: one page, exit 2 if anything is wrong."""

import json
import re

import pytest

from ltune.cli import main


@pytest.fixture
def folder(rows, monkeypatch):
    """24 conversations and a configuration that trains in a second."""
    text = "run: run\nmodel: {model: tiny, quantize: null}\ndata: {datasets: [rows.jsonl], max_length: 64, batch_size: 8}\n"
    (rows.parent / "job.yaml").write_text(text + "trainer: {max_steps: 2, accelerator: cpu, precision: 32-true}\n")
    monkeypatch.chdir(rows.parent)
    return rows.parent


def check(capsys, *arguments):
    """Exit code, {title: verdict}, the page, stderr."""
    code = main(["check", "--config", "job.yaml", *map(str, arguments)])
    out, err = capsys.readouterr()
    return code, {title: verdict for verdict, title in re.findall(r"^\[(.+?)\] ([a-z ]+)", out, re.M)}, out, err


def test_nothing_wrong(folder, capsys):
    code, verdicts, page, _ = check(capsys)
    assert code == 0
    assert set(verdicts.values()) == {"ok"}
    assert list(verdicts)[:2] == ["configuration", "tokenizer and template"]
    assert {"data", "run folder"} <= set(verdicts)
    assert page.startswith("ltune check job.yaml\n")
    assert page.endswith("\nnothing wrong found\n")
    assert re.search(r"^  rows +24 to train on$", page, re.M)
    assert "  run is new\n" in page
    assert sorted(file.name for file in folder.iterdir()) == ["job.yaml", "rows.jsonl"]


def test_every_section_says_what_is_wrong(folder, capsys):
    code, verdicts, page, _ = check(capsys, "--model.adapter", "Full", "--model.quantize", "NF4", "--data.datasets=[none.jsonl]")
    assert code == 2
    assert {title for title, verdict in verdicts.items() if verdict == "wrong"} == {"configuration", "data"}
    assert verdicts["trainer"] == "--"
    assert "model.adapter: Full trains the weights themselves" in page
    assert "none.jsonl" in page
    assert page.endswith("\nwrong: data, configuration\n")


def test_bad_rows_come_first_and_the_rest_of_the_page_all_the_same(folder, capsys):
    with (folder / "rows.jsonl").open("a") as file:
        file.write('{"messages": []}\n')
    code, verdicts, page, _ = check(capsys, "--model.adapter", "Full", "--model.quantize", "NF4")
    assert (code, verdicts["data"], verdicts["configuration"], verdicts["run folder"]) == (2, "wrong", "wrong", "ok")
    assert page.startswith("ltune check job.yaml\n\n[wrong] data\n  rows.jsonl:25: ")
    assert page.count("] data") == 1
    assert page.endswith("\nwrong: data, configuration\n")


def test_without_a_template_the_data_cannot_be_looked_at(folder, capsys):
    (folder / "mute.jinja").write_text("{% for message in messages %}{{ message.role }}{% endfor %}")
    code, verdicts, page, _ = check(capsys, "--data.template", "mute.jinja")
    assert code == 2
    assert (verdicts["tokenizer and template"], verdicts["data"], verdicts["run folder"]) == ("wrong", "--", "ok")
    assert "the chat template mute.jinja leaves out" in page
    assert "data: not looked at, as tokenizer and template is not right" in page


def test_a_name_that_is_no_templates_is_told_at_once(folder, capsys):
    code, verdicts, page, err = check(capsys, "--data.template", "chatmk")
    assert (code, verdicts, page) == (2, {}, "")
    assert "--data.template: there is no template chatmk. Did you mean chatml?" in err


def test_a_warning_is_on_the_page_and_is_not_wrong(folder, capsys):
    code, _, page, err = check(capsys, "--data.template", "chatml", "--data.max_length", 40)
    assert code == 0
    assert "! template chatml" in page
    assert "chatml" not in err
    assert re.search(r"! \d+ of 24 rows .* are cut at data.max_length", page)
    assert page.endswith("\nnothing wrong found\n")


def test_a_machine_without_the_device(folder, capsys):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    code, verdicts, page, _ = check(capsys, "--trainer.accelerator", "gpu")
    assert (code, verdicts["configuration"], verdicts["data"]) == (2, "wrong", "ok")
    assert "sees no CUDA device" in page


def test_what_cannot_be_read_at_all_is_said_without_a_page(folder, capsys):
    code, _, page, err = check(capsys, "--data.batch_sizes", 3)
    assert (code, page) == (2, "")
    assert 'did you mean "batch_size"?' in err


def test_a_run_that_is_there(folder, capsys):
    assert main(["fit", "--config", "job.yaml"]) == 0
    capsys.readouterr()
    code, _, page, _ = check(capsys)
    assert code == 0
    assert "run is finished: `ltune fit` would not train again" in page
    code, verdicts, page, _ = check(capsys, "--data.batch_size", 4)
    assert (code, verdicts["run folder"]) == (2, "wrong")
    assert "data.batch_size: 8 -> 4" in page
    assert check(capsys, "--data.batch_size", 4, "--resume.allow=[data]")[0] == 0
    with (folder / "rows.jsonl").open("a") as file:
        file.write(json.dumps({"instruction": "one more", "input": "", "output": "row"}) + "\n")
    code, verdicts, page, _ = check(capsys)
    assert (code, verdicts["run folder"]) == (2, "wrong")
    assert "rows.jsonl" in page


def test_help(capsys):
    assert main(["check", "--help"]) == 0
    assert capsys.readouterr().out.startswith("usage: ltune check")
