"""Help and usage errors answer at once, in a few lines, without importing torch."""

import json
import resource
import subprocess
import sys
import time

import pytest

from ltune.cli import COMMANDS, main

PROBE = "import sys; from ltune.cli import main; code = main(sys.argv[1:]); print('torch' in sys.modules, file=sys.stderr); sys.exit(code)"


def quick(*arguments, cwd=None):
    """Exit code, stdout, stderr lines, whether torch was imported, seconds."""
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", PROBE, *arguments], capture_output=True, text=True, cwd=cwd, timeout=60)
    *lines, torch = done.stderr.splitlines()
    return done.returncode, done.stdout, lines, torch == "True", time.perf_counter() - start


def processor():
    """Seconds of the processor that ended processes took, with theirs; unlike the clock, it does not count what others do meanwhile."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_help_names_every_command_and_is_quick():
    code, out, _, torch, seconds = quick("--help")
    assert code == 0
    assert not torch
    assert all(f"  {name} " in out for name in COMMANDS)
    assert seconds < 0.3 * 4  # the bound is 0.3 s; tests share the machine


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "a command is missing"),
        (["fitt"], 'did you mean "fit"?'),
        (["fit", "--model.adaptr", "LoRA"], 'model.adaptr is not an option; did you mean "adapter"?'),
        (["fit", "--trainer.max_step", "3"], 'trainer.max_step is not an option; did you mean "max_steps"?'),
        (["fit", "--batch_size", "3"], "did you mean data.batch_size?"),
        (["fit", "--data.seed", "3"], "--data.seed: data.seed follows from seed_everything"),
        (["fit", "--model.adapter.rnak", "3"], 'did you mean "rank"?'),
        (["fit", "--config"], "--config wants a file"),
        (["fit", "--config", "none.yaml"], "none.yaml: no such file"),
    ],
)
def test_a_usage_error_says_what_was_meant(arguments, said):
    code, out, lines, torch, _ = quick(*arguments)
    assert code == 2
    assert out == ""
    assert said in "\n".join(lines)
    assert 1 <= len(lines) <= 5
    assert not torch


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("model:\n  modle: tiny\n", 'wrong.yaml:2: model.modle is not an option; did you mean "model"?'),
        ("data:\n  batch_size: two\n", "wrong.yaml:2: data.batch_size: wants a whole number, got 'two'"),
        ("data:\n  truncation: rihgt\n", "wrong.yaml:2: data.truncation"),
        ("model:\n  adapter: LoRa\n", 'did you mean "LoRA"?'),
        ("model:\n  adapter: {class_path: LoRA, init_args: {rnk: 8}}\n", 'did you mean "rank"?'),
        ("model:\n  rank: 8\n", "wrong.yaml:2: model.rank is not an option"),
        ("batch_size: 3\n", "wrong.yaml:1: batch_size is not an option; did you mean data.batch_size?"),
        ("data:\n  batch_size: 3\n  batch_size: 4\n", "wrong.yaml:3: batch_size stands here a second time (first in line 2)"),
        ("model:\n\t model: tiny\n", "wrong.yaml:2: not valid YAML"),
        ("- a\n", "wrong.yaml:1: a configuration is a mapping"),
        ("data:\n  datasets: [{name: a, max_row: 3}]\n", 'did you mean "max_rows"?'),
        ("model:\n  sampling: {temprature: 1}\n", 'did you mean "temperature"?'),
    ],
)
def test_a_wrong_configuration_is_named_by_file_and_line(tmp_path, text, said):
    (tmp_path / "wrong.yaml").write_text(text)
    code, _, lines, torch, _ = quick("fit", "--config", "wrong.yaml", cwd=tmp_path)
    assert code == 2
    assert said in "\n".join(lines)
    assert 1 <= len(lines) <= 5
    assert not torch


# -- what it will read ---------------------------------------------------------------------------------------------------------------


def test_the_first_error_of_a_long_file_is_told_wherever_it_stands(tmp_path):
    line = json.dumps({"instruction": "say it", "output": "it " * 80}) + "\n"
    with (tmp_path / "rows.jsonl").open("w") as file:
        for _ in range(100):
            file.write(line * 1000)
        file.write('{"instruction": "say it" "output": "it"}\n')
    before = processor()
    code, out, lines, torch, _ = quick("fit", "--data.datasets", "[rows.jsonl]", cwd=tmp_path)
    assert (code, out) == (2, "")
    assert lines == ["error: rows.jsonl:100001: malformed JSON: Expecting ',' delimiter (column 26), got '\"output\": \"it\"}'."]
    assert not torch
    assert processor() - before < 0.5 * 4  # the bound for a million lines is 2 s; tests share the machine


ASK, ANSWER = {"role": "user", "content": "say it"}, {"role": "assistant", "content": 'He said "it",\n' * 20}
HUMAN, GPT = {"from": "human", "value": "say it"}, {"from": "gpt", "value": 'He said "it",\n' * 20}


@pytest.mark.parametrize(
    ("good", "bad", "said"),
    [
        (
            {"instruction": "say it", "input": "", "output": "it " * 80},
            {"instruction": "say it", "output": None},
            "output must be text; got None.",
        ),
        ({"messages": [ASK, ANSWER] * 2}, {"messages": [ANSWER, ASK]}, "the roles must be user, assistant, user, assistant ...,"),
        ({"conversations": [HUMAN, GPT]}, {"conversations": [HUMAN, {"from": "gpt"}]}, "message 2 must have from and value; got from."),
    ],
    ids=["alpaca", "openai", "sharegpt"],
)
def test_a_fault_of_form_in_the_last_line_is_told_as_early(tmp_path, good, bad, said):
    with (tmp_path / "rows.jsonl").open("w") as file:
        for _ in range(200):
            file.write((json.dumps(good) + "\n") * 1000)
        file.write(json.dumps(bad) + "\n")
    before = processor()
    code, out, lines, torch, _ = quick("fit", "--data.datasets", "[rows.jsonl]", cwd=tmp_path)
    assert (code, out, torch) == (2, "", False)
    assert lines[0].startswith(f"error: rows.jsonl:200001: {said}")
    assert len(lines) <= 5
    assert processor() - before < 0.8 * 2 * 2  # of two cores; the bound for a million lines is 2 s, of which 0.5 s is the start


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("{{ raise_exception('not today') }}", "cannot render this conversation: not today"),
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "is stopped: it is not done after 1 s"),
        ("{% for a in range(99999) %}{% for b in range(99999) %}{{ 'a' * 99999 }}{% endfor %}{% endfor %}", "is stopped: it writes more"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "is unsafe"),
    ],
    ids=["raises", "loops", "prints a gigabyte", "breaks out"],
)
def test_a_template_that_cannot_be_trusted_is_told_at_once(tmp_path, source, said):
    (tmp_path / "own.jinja").write_text(source)
    code, out, lines, torch, seconds = quick("fit", "--data.template", "own.jinja", cwd=tmp_path)
    assert (code, out) == (2, "")
    assert lines[0].startswith("error: the chat template own.jinja ")
    assert said in lines[0]
    assert len(lines) <= 5
    assert not torch
    assert seconds < 2.5 * 4


IMPORTED = """
import gc
from ltune.cli import main
try:
    main(["fit", "--help"])
except SystemExit:
    print(gc.isenabled(), gc.get_freeze_count() > 100_000)
"""


def test_what_a_command_imports_is_not_looked_through_for_garbage():
    done = subprocess.run([sys.executable, "-c", IMPORTED], capture_output=True, text=True, timeout=60)
    assert done.stdout.endswith("True True\n"), done.stderr


def test_version_names_the_stack(capsys):
    assert main(["version"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("ltune 0.")
    assert all(name in out for name in ("torch 2.", "lightning 2.", "peft 0."))
