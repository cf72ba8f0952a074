"""Numbers that cannot be meant are told with their line or option, before torch is imported."""

import pytest

from ltune.errors import UsageError
from ltune.usage import precheck


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("seed_everything: -1", "2: seed_everything is at least 0, got -1"),
        ("seed_everything: 4294967296", "2: seed_everything is at most 4294967295, got 4294967296"),
        ("trainer: {max_epochs: -5}", "2: trainer.max_epochs is at least -1; -1: no limit, got -5"),
        ("trainer: {gradient_clip_val: -1.0}", "2: trainer.gradient_clip_val is at least 0, got -1.0"),
        ("trainer:\n  gradient_clip_val: .nan", "3: trainer.gradient_clip_val: wants a number or null, got '.nan'"),
        ("data: {processes: 0}", "2: data.processes is at least 1, got 0"),
        ("checkpoint: {keep: 0}", "2: checkpoint.keep is at least 1, got 0"),
        ("run: ''", "2: run is the folder that the run is written to, got nothing; for example  runs/mine"),
    ],
)
def test_a_file_with_such_a_number(tmp_path, text, words):
    file = tmp_path / "a.yaml"
    file.write_text(f"# a comment\n{text}\n")
    with pytest.raises(UsageError) as error:
        precheck(["--config", str(file)])
    assert str(error.value) == f"{file}:{words}"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--seed_everything", "-1"], "--seed_everything: is at least 0, got -1"),
        (["--trainer.gradient_clip_val=-2"], "--trainer.gradient_clip_val: is at least 0, got -2"),
        (["--run="], "--run: is the folder that the run is written to, got nothing; for example  runs/mine"),
    ],
)
def test_such_an_option(arguments, words):
    with pytest.raises(UsageError) as error:
        precheck(arguments)
    assert str(error.value) == words


def test_sound_ones_pass(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("seed_everything: 0\ntrainer: {max_epochs: -1, max_steps: 5, gradient_clip_val: 0}\ndata: {processes: null}\n")
    precheck(["--config", str(file), "--trainer.max_steps", "-1", "--run", "here"])
