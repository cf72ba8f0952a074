"""What a user sees when something is wrong: the exit code, at most five lines, no traceback, the place and the way out.

Two kinds of test. Real processes, one for each way an error can take to the user; and, as each process imports torch for seconds, the other
cases through the same ``main`` in this process.
"""

import json
import logging
import math
import random
import shutil
import signal
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from ltune.cli import main
from ltune.errors import UsageError
from ltune.models.tokenizer import EMBEDDED
from ltune.usage import explain, precheck

ROOT = Path(__file__).resolve().parents[1]
BASE = {
    "run": "run",
    "model": {"model": "tiny"},
    "data": {"datasets": ["rows.jsonl"], "batch_size": 2, "max_length": 128},
    "checkpoint": {"every": 1},
    "trainer": {"max_epochs": 1, "accelerator": "cpu", "precision": "32-true"},
}


def error_of(stderr: str) -> list[str]:
    """The lines of the error; before them only logs may stand."""
    assert "Traceback" not in stderr, stderr
    lines = stderr.splitlines()
    begin = [number for number, line in enumerate(lines) if line.startswith("error: ")]
    assert len(begin) == 1, stderr
    assert len(lines) - begin[0] <= 5, stderr
    return lines[begin[0] :]


def configure(folder: Path, **sections: dict | str) -> Path:
    """config.yaml in the folder: BASE with some options changed."""
    content = {
        key: {**value, **sections.get(key, {})} if isinstance(value, dict) else sections.get(key, value) for key, value in BASE.items()
    }
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    return file


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys, rows):
    """Run a command in this process, in a folder of its own: (exit code, the error as one text, whether it was the first thing said)."""
    monkeypatch.chdir(tmp_path)
    root, level, handler = logging.getLogger(), logging.getLogger().level, signal.getsignal(signal.SIGTERM)
    handlers = list(root.handlers)

    def run(*arguments: object, command: str = "fit", **sections: dict | str) -> tuple[int, str, bool]:
        configure(tmp_path, **sections)
        capsys.readouterr()
        code = main([command, "--config", "config.yaml", *map(str, arguments)])
        stderr = capsys.readouterr().err
        return code, "\n".join(error_of(stderr)), stderr.startswith("error: ")

    yield run
    root.handlers[:] = handlers
    root.setLevel(level)
    signal.signal(signal.SIGTERM, handler)


# -- real processes -------------------------------------------------------------------------------------------------------------------


def test_malformed_jsonl_is_named_by_file_and_line(ltune, rows, tmp_path):
    with rows.open("a") as file:
        file.write('{"instruction": "a" "output": "b"}\n')
    configure(tmp_path)
    done = ltune("fit", "--config", "config.yaml", fresh=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: rows.jsonl:25: malformed JSON")
    error_of(done.stderr)
    assert not (tmp_path / "run").exists()


def test_several_problems_between_options_are_reported_at_once(ltune, rows, tmp_path):
    configure(tmp_path, model={"adapter": "Full"}, data={"batch_size": 0}, trainer={"precision": "16-mixed"})
    done = ltune("fit", "--config", "config.yaml", fresh=True)
    assert done.returncode == 2
    message = "\n".join(error_of(done.stderr))
    assert "3 problems" in message
    assert all(word in message for word in ("model.adapter: Full", "data.batch_size", "trainer.precision: 16-mixed"))
    assert done.stderr.startswith("error: ")


def test_what_only_jsonargparse_knows_is_told_with_file_and_line(ltune, rows, tmp_path):
    file = configure(tmp_path, trainer={"plugins": "Foo"})
    line = next(number for number, text in enumerate(file.read_text().splitlines(), 1) if "plugins" in text)
    done = ltune("fit", "--config", "config.yaml")
    assert done.returncode == 2
    message = "\n".join(error_of(done.stderr))
    assert message.startswith(f"error: config.yaml:{line}: trainer.plugins")
    assert "got Foo" in message


def test_environment_variables_are_no_configuration(ltune, rows, tmp_path):
    configure(tmp_path)
    done = ltune(
        "fit", "--config", "config.yaml", "--print_config", env={"PL_FIT__MODEL__MODEL": "other", "PL_FIT__DATA__BATCH_SIZE": "77"}
    )
    assert done.returncode == 0
    printed = yaml.safe_load(done.stdout)
    assert printed["model"]["model"] == "tiny"
    assert printed["data"]["batch_size"] == 2


def test_a_loss_that_is_not_finite_stops_before_the_step_and_names_the_rows(ltune, rows, tmp_path, metrics):
    configure(
        tmp_path, model={"optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1.0e30}}}, trainer={"log_every_n_steps": 1}
    )
    done = ltune("fit", "--config", "config.yaml")
    assert done.returncode == 5
    message = "\n".join(error_of(done.stderr))
    assert "the optimizer step was not taken" in message
    assert "rows: rows.jsonl:" in message
    assert "lower learning rate" in message
    step = int(message.partition(" at step ")[2].partition(";")[0])
    checkpoints = sorted(path.name for path in (tmp_path / "run" / "checkpoints").glob("step-*"))
    assert checkpoints[-1] == f"step-{step - 1:08d}"
    weights = load_file(tmp_path / "run" / "checkpoints" / checkpoints[-1] / "weights.safetensors")
    assert weights
    assert all(tensor.isfinite().all() for tensor in weights.values())
    assert all(math.isfinite(line["train/loss"]) for line in metrics(tmp_path / "run"))
    assert not (tmp_path / "run" / "adapter").exists()


# -- data -----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "content", "words"),
    [
        ({"datasets": ["missing.jsonl"]}, "", ["no data set missing.jsonl", "path"]),
        ({"datasets": ["identty"], "folder": "."}, "", ["no data set identty", "Did you mean identity?"]),
        ({"datasets": ["identity"], "folder": "."}, "", ["identity", "nowhere.json does not exist"]),
        ({}, "", ["rows.jsonl", "is empty"]),
        ({}, '{"question": "a", "answer": "b"}\n', ["rows.jsonl:1", "question, answer", "alpaca needs instruction and output"]),
        ({}, "[1]\n", ["rows.jsonl:1", "must be an object", "got [1]"]),
        ({"max_length": 2}, None, ["rows.jsonl", "no row of it can be trained on", "does not fit in 2 tokens", "first: rows.jsonl:1"]),
        ({"max_length": 3, "truncation": "drop"}, None, ["rows.jsonl", "no row of it can be trained on", "longer than 3 tokens"]),
        ({"val_size": 24}, None, ["data.val_size: 24", "24 of 24 rows"]),
        ({"template": "lama3"}, None, ["data.template", "no template lama3", "Did you mean llama3?"]),
        ({"template": "other.jinja"}, None, ["data.template", "no file other.jinja"]),
        ({"datasets": [{"name": "rows.jsonl", "format": "alpacca"}]}, None, ["alpacca", "alpaca, sharegpt"]),
    ],
)
def test_faults_of_the_data_are_named_before_the_model_loads(refused, tmp_path, data, content, words):
    (tmp_path / "dataset_info.json").write_text(json.dumps({"identity": {"file_name": "nowhere.json"}}))
    if content is not None:
        (tmp_path / "rows.jsonl").write_text(content)
    code, message, first = refused(data=data)
    assert code == 2
    assert first
    assert all(word in message for word in words), message
    assert not (tmp_path / "run").exists()


# -- the model's folder ---------------------------------------------------------------------------------------------------------------


def without(*files: str):
    return lambda folder: [(folder / file).unlink() for file in files]


def with_template(source: str):
    return lambda folder: (folder / "chat_template.jinja").write_text(source)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (shutil.rmtree, ["no folder ./base", "hub id"]),
        (without("tokenizer.json", "tokenizer_config.json"), ["the folder ./base has no tokenizer", "tokenizer.json"]),
        (without("chat_template.jinja"), ["data.template: null", "tokenizer has none", "--data.template"]),
        (with_template("{% for m in messages %}{{ m.role }}{% endfor %}"), ["of the tokenizer", "leaves out what the assistant says"]),
        (without("config.json"), ["base"]),
        (without("model.safetensors"), ["the folder ./base has no weights", "model.safetensors"]),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"broken"), ["cannot get the weights", "folder ./base"]),
    ],
    ids=["no folder", "no tokenizer", "no chat template", "no answers in the template", "no config", "no weights", "broken weights"],
)
def test_a_model_folder_that_lacks_something_is_named_with_what_it_lacks(refused, tmp_path, change, words):
    shutil.copytree(EMBEDDED, tmp_path / "base")
    change(tmp_path / "base")
    code, message, _ = refused(model={"model": "./base"})
    assert code == 2
    assert all(word in message for word in words), message


# -- folders --------------------------------------------------------------------------------------------------------------------------


def test_an_adapter_to_continue_that_is_none_is_named(refused, tmp_path):
    (tmp_path / "nothing").mkdir()
    code, message, first = refused(model={"adapter": {"class_path": "LoRA", "init_args": {"init": "nothing"}}})
    assert (code, first) == (2, True)
    assert all(word in message for word in ("adapter.init: nothing", "no adapter_config.json"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("path", "words"), [("nowhere", ["no such folder"]), ("empty", ["neither a result nor a checkpoint"])])
def test_a_ckpt_path_that_is_nothing_is_named(refused, tmp_path, path, words):
    (tmp_path / "empty").mkdir()
    code, message, first = refused("--ckpt_path", path, command="predict")
    assert (code, first) == (2, True)
    assert all(word in message for word in [f"--ckpt_path {path}", *words])


def test_a_run_folder_whose_record_is_broken_is_named(refused, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text('{"state": ')
    code, message, first = refused()
    assert (code, first) == (2, True)
    assert all(word in message for word in ("run/run.json", "cannot be read", "--run FOLDER"))


def test_a_file_in_the_place_of_the_run_folder_or_the_cache_is_named(refused, tmp_path):
    (tmp_path / "file").write_text("")
    code, message, first = refused("--run", "file/run")
    assert (code, first) == (2, True)
    assert "file is a file" in message
    code, message, first = refused("--data.cache", "file")
    assert (code, first) == (4, True)
    assert "data.cache" in message


# -- the configuration, before torch is imported --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("trainer: {precision: bf17}", 'wrong.yaml:1: trainer.precision: "bf17" is none of'),
        ("trainer: {accelerator: gpuu}", 'did you mean "gpu"?'),
        ("trainer: {max_epochs: three}", "wrong.yaml:1: trainer.max_epochs: wants a whole number or null, got 'three'"),
        ("trainer: {logger: Foo}", 'trainer.logger: "Foo" is none of'),
        ("trainer: {callbacks: [EarlyStoping]}", 'did you mean "EarlyStopping"?'),
        (
            "trainer:\n  callbacks:\n  - class_path: EarlyStopping\n    init_args:\n      moniter: a",
            'wrong.yaml:5: trainer.callbacks.init_args.moniter is not an option; did you mean "monitor"?',
        ),
        ("trainer: {callbacks: [{init_args: {monitor: a}}]}", "class_path is missing"),
        ("model: {optimizer: {class_path: torch.optim.Adamm}}", 'torch.optim has no Adamm; did you mean "torch.optim.Adam"?'),
        ("model: {optimizer: {class_path: torch.optim.AdamW, init_args: {lrr: 1}}}", 'init_args.lrr is not an option; did you mean "lr"?'),
        ("model: {optimizer: {class_path: torch.optim.AdamW, init_args: {lr: high}}}", "init_args.lr: wants a number, got 'high'"),
        ("model: {schedule: Cosin}", 'did you mean "Cosine"?'),
        ("model: {schedule: ltune.optim.Cosin}", 'did you mean "ltune.optim.Cosine"?'),
        ("model: {schedule: null}", "model.schedule cannot be null"),
        ("model: {adapter: {rank: 8}}", "class_path"),
        ("model: {adapter: {init_args: {rnk: 8}}}", 'did you mean "rank"?'),
        ("model: {adapter: {class_path: LoRA, init_args: {dtype: float31}}}", '"float31" is none of bfloat16, float32'),
        ("model: {adapter: !!python/object/apply:os.system [ls]}", "the tag !!python/object/apply:os.system is not allowed"),
        ("data: {datasets: 3}", "data.datasets is a list, got '3'"),
        ("data: {datasets: rows.jsonl}", "data.datasets is a list, got 'rows.jsonl'; write [rows.jsonl]"),
        ("data: {datasets: [3]}", "an item is text, got '3'"),
        ("data: {datasets: [{max_rows: 3}]}", "the name is missing"),
        ("data:", "data holds options"),
        ("data: 3", "data holds options"),
        ("data: {run: x}", "did you mean run?"),
        ("data: [", "wrong.yaml:2: not valid YAML"),
        ("data: &a {datasets: [*a]}", "wrong.yaml:1: data.datasets"),
        ("data: {system: \x01}", "not valid YAML"),
        ("\ndata:\n  template: chatmk", "wrong.yaml:3: data.template: there is no template chatmk. Did you mean chatml?"),
        ("data: {template: other.jinja}", "wrong.yaml:1: data.template: there is no file other.jinja."),
    ],
)
def test_a_wrong_configuration_is_named_by_file_line_and_key(tmp_path, monkeypatch, text, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wrong.yaml").write_text(text + "\n")
    with pytest.raises(UsageError) as caught:
        precheck(["--config", "wrong.yaml"])
    assert said in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 5


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--data.batch", "3"], 'data.batch is not an option; did you mean "batch_size"?'),  # abbreviations are off
        (["--mod.model", "x"], 'did you mean "model"?'),
        (["--data.batch_size", "two"], "--data.batch_size: wants a whole number, got 'two'"),
        (["--data.truncation=rihgt"], '"rihgt" is none of drop, error, left, llamafactory, split'),
        (["--data.datasets", "rows.jsonl"], "--data.datasets: is a list, got 'rows.jsonl'; write [rows.jsonl]"),
        (["--data.datasets", "[{name: a, max_row: 3}]"], 'did you mean "max_rows"?'),
        (["--model.adapter", "LoRa"], 'did you mean "LoRA"?'),
        (["--model.adapter.rank", "x"], "--model.adapter.rank: wants a whole number, got 'x'"),
        (["--model.sampling.top_k", "x"], "--model.sampling.top_k: wants a whole number"),
        (["config.yaml"], "config.yaml belongs to no option; write  --config config.yaml"),
        (["--config", "."], "that is a folder"),
        (["--data.template", "lama3"], "--data.template: there is no template lama3. Did you mean llama3?"),
        (["--data.template", "other.jinja"], "--data.template: there is no file other.jinja."),
    ],
)
def test_a_wrong_command_line_is_named_by_its_option(arguments, said):
    with pytest.raises(UsageError) as caught:
        precheck(arguments)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "arguments",
    [
        ["-c", str(ROOT / "configs" / "sft.yaml")],
        ["--data.datasets", "[a, {name: b, max_rows: 3}]", "--data.datasets+=c", "--model.quantize", "null"],
        ["--trainer.callbacks+=my.Own", "--trainer.callbacks.step=3", "--trainer.devices", "-1", "--data.system", "Be kind: always [or so"],
        ["--model.adapter", "LoRA", "--model.adapter.rank", "4", "--model.optimizer.lr", "1e-3", "--resume.allow", "[data.batch_size]"],
        ["--trainer.logger", "false", "--trainer.logger", "lightning.pytorch.loggers.CSVLogger", "--trainer.precision", "32"],
        ["--trainer.strategy", "ddp", "--model.optimizer", "SGD", "--print_config"],
        ["--help"],
    ],
)
def test_a_sound_command_line_passes(arguments):
    precheck(arguments)


def test_the_template_that_is_named_last_is_looked_for(tmp_path):
    (tmp_path / "own.jinja").write_text("{{ messages }}")
    (tmp_path / "wrong.yaml").write_text("data: {template: chatmk}\n")
    (tmp_path / "right.yaml").write_text(f"data: {{template: {tmp_path / 'own.jinja'}}}\n")
    wrong, right = ["--config", str(tmp_path / "wrong.yaml")], ["--config", str(tmp_path / "right.yaml")]
    for last in (right, ["--data.template", "null"], ["--data.template=chatml"]):
        precheck([*wrong, *last])
        with pytest.raises(UsageError, match="chatmk"):
            precheck([*last, *wrong])
    with pytest.raises(UsageError, match="Did you mean .*own.jinja"):
        precheck(["--data.template", str(tmp_path / "onw.jinja")])


def test_every_shipped_configuration_passes():
    files = sorted((ROOT / "configs").rglob("*.yaml"))
    assert files
    for file in files:
        precheck(["--config", str(file)])


# jsonargparse 4.53's own words
LONG = """Parser key "targets":
  Does not validate against any of the Union subtypes
  Subtypes: [list[str], <class 'str'>]
  Errors:
    - Expected a <class 'list'>
    - Expected a <class 'str'>
  Given value type: <class 'int'>
  Given value: 3"""


def test_jsonargparse_is_put_into_plain_words(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("model:\n  adapter:\n    class_path: LoRA\n    init_args:\n      targets: 3\n")
    precheck(["--config", str(file)])
    assert explain(LONG) == f"{file}:5: targets: wants list or text, got 3"
    short = 'Parser key "model.adapter":\n  - Expected a path but x is not accessible\n  - Expected a dot import path string: x'
    assert explain(short) == f"{file}:2: model.adapter: wants the name of a class"
    missing = 'Parser key "model.adapter":\n  Errors:\n  - the following arguments are required: a\n  - Expected a <class "bool">'
    assert explain(missing) == f"{file}:2: model.adapter: the following arguments are required: a"
    assert explain("unrecognized arguments: foo") == "unrecognized arguments: foo"


# -- sixty typos ----------------------------------------------------------------------------------------------------------------------

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def paths(tree: dict, before: tuple = ()) -> list[tuple]:
    """Every key of a tree whose names are known: not those inside lists."""
    found = []
    for key, value in tree.items():
        found.append((*before, key))
        found += paths(value, (*before, key)) if isinstance(value, dict) else []
    return found


def renamed(tree: dict, path: tuple, name: str) -> dict:
    """The tree with one key called otherwise, in its place."""
    head, *rest = path
    return {
        (name if key == head and not rest else key): (renamed(value, tuple(rest), name) if key == head and rest else value)
        for key, value in tree.items()
    }


def typo(word: str, rng: random.Random) -> str:
    """One letter dropped, doubled, swapped with the next, or replaced."""
    place = rng.randrange(len(word) - 1)
    kinds = [
        word[:place] + word[place + 1 :],
        word[:place] + word[place] + word[place:],
        word[:place] + word[place + 1] + word[place] + word[place + 2 :],
        word[:place] + rng.choice(LETTERS) + word[place + 1 :],
    ]
    return rng.choice([kind for kind in kinds if kind != word] or [word + "x"])


def refusal_of(tree: dict, folder: Path) -> str:
    file = folder / "mutated.yaml"
    file.write_text(yaml.safe_dump(tree, sort_keys=False))
    with pytest.raises(UsageError) as caught:
        precheck(["--config", str(file)])
    message = str(caught.value)
    assert len(message.splitlines()) <= 5
    assert f"{file}:" in message
    return message


def test_sixty_single_mistakes_are_all_found_and_the_meant_key_is_guessed(tmp_path):
    rng = random.Random(0)
    tree = yaml.safe_load((ROOT / "configs" / "sft.yaml").read_text())
    every = paths(tree)
    right = 0
    for path in rng.sample(every, 40):  # a key misspelt
        wrong = typo(path[-1], rng)
        message = refusal_of(renamed(tree, path, wrong), tmp_path)
        assert wrong in message, (path, message)
        right += f'did you mean "{path[-1]}"' in message
    assert right >= 38, right
    numbers = [path for path in every if isinstance(value_at(tree, path), (int, float)) and path[-1] != "devices"]
    for path in rng.sample(numbers, 10):  # a word where a number or a bool stands
        message = refusal_of(replaced(tree, path, "word"), tmp_path)
        assert ".".join(path) in message, (path, message)
        assert "word" in message
    moved = [path for path in every if len(path) == 2 and path[0] in ("model", "data", "trainer") and path[1] != "model"]
    for path in rng.sample(moved, 10):  # a key in the wrong section
        other = {"model": "data", "data": "trainer", "trainer": "model"}[path[0]]
        message = refusal_of({**tree, other: {**tree[other], path[1]: value_at(tree, path)}}, tmp_path)
        assert f"{other}.{path[1]} is not an option" in message, (path, message)


def value_at(tree: dict, path: tuple) -> object:
    for key in path:
        tree = tree[key]
    return tree


def replaced(tree: dict, path: tuple, value: object) -> dict:
    head, *rest = path
    return {**tree, head: replaced(tree[head], tuple(rest), value) if rest else value}
