"""What a command will read is looked at first; where that cannot be told, and what the command does not read, is left alone."""

import inspect
import os
import subprocess
import sys

import pytest
import yaml

from ltune.data.datamodule import ChatData
from ltune.errors import UsageError
from ltune.inputs import DEFAULTS, data_options, look

BAD = '{"instruction": "a", "output": "b"}\n{"instruction": "a" "output": "b"}\n'


@pytest.fixture(autouse=True)
def _files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    (tmp_path / "bad.jsonl").write_text(BAD)
    (tmp_path / "good.jsonl").write_text(BAD.splitlines()[0] + "\n")


def configured(**data) -> list[str]:
    with open("c.yaml", "w") as file:
        yaml.safe_dump({"data": data}, file)
    return ["--config", "c.yaml"]


def refused(command: str, arguments: list[str]) -> bool:
    said = ""
    try:
        look(command, arguments)
    except UsageError as error:
        said = str(error)
    assert not said or said.startswith("bad.jsonl:2: malformed JSON")
    return bool(said)


def test_defaults_are_those_of_the_data_module():
    parameters = inspect.signature(ChatData).parameters
    assert {name: parameters[name].default for name in DEFAULTS} == DEFAULTS


@pytest.mark.parametrize(
    ("command", "data", "found"),
    [
        ("fit", {"datasets": ["bad.jsonl"]}, True),
        ("fit", {"datasets": ["good.jsonl"], "val_datasets": [{"name": "bad.jsonl"}]}, True),
        ("fit", {"datasets": ["good.jsonl"], "test_datasets": ["bad.jsonl"]}, False),
        ("validate", {"datasets": ["bad.jsonl"]}, True),
        ("validate", {"datasets": ["bad.jsonl"], "val_datasets": ["good.jsonl"]}, False),
        ("test", {"datasets": ["bad.jsonl"], "test_datasets": ["good.jsonl"]}, False),
        ("test", {"datasets": ["good.jsonl"], "test_datasets": ["bad.jsonl"]}, True),
        ("predict", {"datasets": ["bad.jsonl"]}, True),
        ("predict", {"datasets": ["bad.jsonl"], "test_datasets": ["good.jsonl"]}, False),
        ("fit", {"datasets": ["bad.jsonl"], "bad_rows": "skip"}, False),
        ("fit", {"datasets": ["bad.jsonl"], "max_rows": 1}, False),
        ("fit", {"datasets": ["bad.jsonl"], "max_rows": 2}, True),
        ("fit", {"datasets": [{"name": "bad.jsonl", "max_rows": 1}], "max_rows": 2}, False),
        ("fit", {"datasets": [{"name": "mine", "files": ["b*.jsonl"]}]}, True),
        ("fit", {"datasets": ["owner/name", "bad.jsonl"]}, True),
        ("fit", {"datasets": ["registered"], "folder": "."}, True),
    ],
)
def test_the_files_are_looked_at_that_the_command_reads(tmp_path, command, data, found):
    (tmp_path / "dataset_info.json").write_text('{"registered": {"file_name": "bad.jsonl"}, "far": {"hf_hub_url": "a/b"}}')
    assert refused(command, configured(**data)) is found


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["--data.bad_rows=skip"], False),
        (["--data.bad_rows", "skip"], False),
        (["--data.bad_rows", "skip", "--data.bad_rows", "error"], True),
        (["--data.max_rows", "1"], False),
        (["--data.max_rows", "null"], True),
        (["--data.datasets", "[good.jsonl]"], False),
        (["--data.datasets", "[good.jsonl]", "--data.datasets+", "bad.jsonl"], True),
        (["--data.datasets+=[good.jsonl]"], True),
        (["--data.batch_size", "3", "--data.mix.stop", "over", "--data.system", "Be kind: [or so"], True),
        (["--data.datasets.max_rows", "1"], False),  # too clever for this
        (["--data", "other.yaml"], False),
        (["--data.max_rows", "1.0"], False),  # LightningCLI has the last word
        (["--print_config"], False),
        (["--help"], False),
    ],
)
def test_the_option_that_comes_last_counts(arguments, found):
    assert refused("fit", [*configured(datasets=["bad.jsonl"]), *arguments]) is found


def test_of_several_files_the_last_that_says_something_counts(tmp_path):
    first = configured(datasets=["bad.jsonl"], max_rows=1)
    (tmp_path / "more.yaml").write_text("data: {max_rows: null}\n")
    (tmp_path / "empty.yaml").write_text("")
    (tmp_path / "nothing.yaml").write_text("data:\n")
    assert data_options([*first, "-c", "more.yaml", "-c", "empty.yaml"])["max_rows"] is None
    assert refused("fit", [*first, "-c", "more.yaml"])
    assert not refused("fit", ["-c", "more.yaml", "-c", "nothing.yaml", *first])


@pytest.mark.parametrize("text", ["system: =", "system: 2024-99-99", "max_rows: 0", "max_rows: -1", "max_rows: true", "datasets: {a: b}"])
def test_what_is_odd_is_left_for_later(tmp_path, text):
    (tmp_path / "odd.yaml").write_text(f"data:\n  val_datasets: [bad.jsonl]\n  {text}\n")
    assert not refused("fit", ["-c", "odd.yaml"])


def test_only_the_first_process_of_a_machine_looks(monkeypatch):
    arguments = configured(datasets=["bad.jsonl"])
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert not refused("fit", arguments)
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert refused("fit", arguments)


def test_a_template_that_cannot_be_rendered_is_refused_whatever_the_rows(tmp_path):
    (tmp_path / "own.jinja").write_text('{{ raise_exception("no") }}')
    for arguments in (["--data.template", "own.jinja"], configured(template="own.jinja", bad_rows="skip")):
        with pytest.raises(UsageError, match="the chat template own.jinja cannot render this conversation: no"):
            look("fit", arguments)
    look("fit", [*configured(template="own.jinja"), "--data.template", "null"])


def test_nothing_heavy_is_imported(tmp_path):
    (tmp_path / "own.jinja").write_text("{{ bos_token + messages[0].content }}")
    code = (
        "import sys; from ltune.inputs import look\n"
        "look('fit', ['--data.template', 'own.jinja', '--data.datasets', '[good.jsonl]'])\n"
        "print([name for name in ('torch', 'transformers', 'datasets', 'lightning', 'pyarrow', 'tokenizers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=dict(os.environ))
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


ROLES = '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'
SHUFFLED = '{"messages": [{"role": "assistant", "content": "b"}, {"role": "user", "content": "a"}]}\n'


@pytest.mark.parametrize(
    ("objective", "content", "said"),
    [
        ([], ROLES * 3000 + SHUFFLED, "rows.jsonl:3001: the roles must be user, assistant"),
        (["--model.objective", "ltune.objectives.SFT"], ROLES + SHUFFLED, "rows.jsonl:2: the roles"),
        (["--model.objective", "Pretrain"], '{"text": "a"}\n{"text": 5}\n', "rows.jsonl:2: text must be text; got 5"),
        (["--model.objective", "Mine"], ROLES + SHUFFLED, None),
        ([], ROLES * 3, None),
    ],
)
def test_what_rows_mean_is_looked_at_as_early_where_the_kind_is_known(objective, content, said):
    with open("rows.jsonl", "w") as file:
        file.write(content)
    arguments = ["--data.datasets", "[rows.jsonl]", *objective]
    if said is None:
        look("fit", arguments)
    else:
        with pytest.raises(UsageError) as error:
            look("fit", arguments)
        assert str(error.value).startswith(said)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"datasets": ["good.jsonl", "god.jsonl"]}, "data.datasets: there is no data set god.jsonl."),
        ({"datasets": ["quickstrat"]}, "data.datasets: there is no data set quickstrat."),
        ({"datasets": ["good.jsonl"], "val_datasets": ["nowhere.jsonl"]}, "data.val_datasets: there is no data set nowhere.jsonl."),
        ({"datasets": ["hf://nonsense"]}, "data.datasets: "),
        ({"datasets": [{"name": "good.jsonl", "weight": -1}]}, "data.datasets: data set good.jsonl: weight is -1"),
        ({"datasets": [{"name": "mine", "files": ["good.jsonl", "*.jsonl"]}]}, "data.datasets: "),  # a file twice
    ],
)
def test_data_sets_that_are_nowhere_are_told_with_their_option(data, said):
    with pytest.raises(UsageError) as error:
        look("fit", configured(**data))
    assert str(error.value).startswith(said)
    assert len(str(error.value).splitlines()) <= 5
