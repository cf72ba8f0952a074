"""Two hundred mistakes made in the shipped configurations, each refused at once: exit 2, at most five lines, the key named, the right one
suggested. Each goes through ``main`` as the command line does; the mistakes are the same at every run."""

import copy
import logging
import random
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from ltune import schema
from ltune.cli import main

ROOT = Path(__file__).resolve().parents[1]
WHOLE = {file.stem: yaml.safe_load(file.read_text()) for file in sorted((ROOT / "configs").glob("*.yaml"))}
FRAGMENTS = {f"{file.parent.name}/{file.stem}": yaml.safe_load(file.read_text()) for file in sorted((ROOT / "configs").glob("*/*.yaml"))}
SFT = ROOT / "configs" / "sft.yaml"
LETTERS = "abcdefghijklmnopqrstuvwxyz"

Path_ = tuple[str, ...]


@dataclass(frozen=True)
class Mistake:
    """One mistake and what must be said of it."""

    kind: str
    content: dict | str | None  # of the file: a tree, or the text itself; None: a sound file
    arguments: tuple[str, ...]
    key: str  # must be named
    meant: str | None = None  # must be suggested; None where nobody can know

    def __str__(self) -> str:
        return f"{self.kind}: {self.key} {' '.join(self.arguments)}"


# -- making mistakes ------------------------------------------------------------------------------------------------------------------


def typo(word: str, rng: random.Random) -> str:
    """One letter dropped, doubled, swapped with the next, replaced or added; or an underscore lost, or capitals."""
    while True:
        place = rng.randrange(len(word) - 1)
        made = rng.choice(
            [
                word[:place] + word[place + 1 :],
                word[:place] + word[place] + word[place:],
                word[:place] + word[place + 1] + word[place] + word[place + 2 :],
                word[:place] + rng.choice(LETTERS) + word[place + 1 :],
                word[:place] + rng.choice(LETTERS) + word[place:],
                word.replace("_", "-"),
                word.replace("_", ""),
                word.capitalize(),
            ]
        )
        if made != word and made not in schema.everywhere() and len(made) > 1:
            return made


def keys(tree: Any, before: Path_ = ()) -> Iterator[Path_]:
    """Every key of a tree, those of mappings in lists left out."""
    for key, value in tree.items() if isinstance(tree, dict) else ():
        yield (*before, key)
        yield from keys(value, (*before, key))


def value_at(tree: dict, path: Path_) -> Any:
    for key in path:
        tree = tree[key]
    return tree


def changed(tree: dict, path: Path_, value: Any) -> dict:
    """A copy with another value at a path, made where it is not there."""
    tree = copy.deepcopy(tree)
    inner = tree
    for key in path[:-1]:
        if not isinstance(inner.get(key), dict):
            inner[key] = {}
        inner = inner[key]
    inner[path[-1]] = value
    return tree


def renamed(tree: dict, path: Path_, name: str) -> dict:
    """A copy with one key called otherwise, in its place."""
    head, *rest = path
    return {
        (name if key == head and not rest else key): renamed(value, tuple(rest), name) if key == head and rest else value
        for key, value in tree.items()
    }


def misspelt_keys(rng: random.Random) -> Iterator[Mistake]:
    """Typos at every level: 26 in whole files, 25 in fragments, 20 on the command line."""
    everywhere = [(name, path) for name, tree in WHOLE.items() for path in keys(tree)]
    for name, path in rng.sample(everywhere, 26):
        tree = WHOLE[name]
        wrong = typo(path[-1], rng)
        yield Mistake("misspelt key", renamed(tree, path, wrong), (), wrong, path[-1])
    for name, tree in list(FRAGMENTS.items())[:25]:
        path = rng.choice(list(keys(tree)))
        wrong = typo(path[-1], rng)
        yield Mistake(f"misspelt key in {name}", renamed(tree, path, wrong), (), wrong, path[-1])
    options = [path for path in keys(WHOLE["sft"]) if path[-1] not in ("class_path", "init_args")]
    for number, path in enumerate(rng.sample(options, 20)):
        wrong = typo(path[-1], rng)
        name, value = f"--{'.'.join((*path[:-1], wrong))}", str(value_at(WHOLE["sft"], path))
        yield Mistake("misspelt option", None, (f"{name}={value}",) if number % 2 else (name, value.lstrip("-")), wrong, path[-1])


def misplaced_keys(rng: random.Random) -> Iterator[Mistake]:
    """A key in another section, at the top, or beside the class whose option it is: 30, and 6 on the command line."""
    tree = WHOLE["sft"]
    two = [path for path in keys(tree) if len(path) == 2 and path[0] in schema.SECTIONS and path != ("model", "model")]
    for path in rng.sample(two, 16):
        other = rng.choice([name for name in schema.SECTIONS if name != path[0] and path[1] not in schema.section(name)])
        yield Mistake("in another section", changed(tree, (other, path[1]), value_at(tree, path)), (), f"{other}.{path[1]}", ".".join(path))
    for path in rng.sample(two, 6):
        yield Mistake("at the top", changed(tree, path[1:], value_at(tree, path)), (), path[1], ".".join(path))
    deep = {
        ("lr",): "model.optimizer.init_args.lr",
        ("model", "lr"): "model.optimizer.init_args.lr",
        ("trainer", "weight_decay"): "model.optimizer.init_args.weight_decay",
        ("model", "rank"): "model.adapter.init_args.rank",
        ("model", "adapter", "alpha"): "{class_path: LoRA, init_args: {alpha: ...}}",
        ("data", "warmup"): "model.schedule.init_args.warmup",
        ("model", "temperature"): "model.sampling.temperature",
        ("data", "run"): "run",
    }
    for path, meant in deep.items():
        yield Mistake("not where it belongs", changed(tree, path, 1), (), ".".join(path), meant)
    for wrong, meant in (
        ("--batch_size", "data.batch_size"),
        ("--trainer.keep", "checkpoint.keep"),
        ("--max_epochs", "trainer.max_epochs"),
        ("--data.quantize", "model.quantize"),
        ("--model.max_length", "data.max_length"),
        ("--lr", "model.optimizer.init_args.lr"),
    ):
        yield Mistake("misplaced option", None, (wrong, "3"), wrong, meant)


OTHERS = {
    "learning_rate": "model.optimizer.init_args.lr",
    "per_device_train_batch_size": "data.batch_size",
    "gradient_accumulation_steps": "trainer.accumulate_grad_batches",
    "num_train_epochs": "trainer.max_epochs",
    "lora_rank": "model.adapter.init_args.rank",
    "lora_target": "model.adapter.init_args.targets",
    "target_modules": "model.adapter.init_args.targets",
    "cutoff_len": "data.max_length",
    "max_seq_length": "data.max_length",
    "model_name_or_path": "model.model",
    "quantization_bit": "model.quantize",
    "load_in_4bit": "model.quantize",
    "finetuning_type": "model.adapter",
    "output_dir": "run",
    "lr_scheduler_type": "model.schedule",
    "warmup_ratio": "model.schedule.init_args.warmup",
    "max_grad_norm": "trainer.gradient_clip_val",
    "logging_steps": "trainer.log_every_n_steps",
    "save_steps": "checkpoint.every",
    "bf16": "trainer.precision",
    "attn_implementation": "model.attention",
    "seed": "seed_everything",
}


def other_tools_keys(rng: random.Random) -> Iterator[Mistake]:
    """What somebody writes who comes from another tool: 22, at the top and in a section, in the file and as an option."""
    for number, (theirs, ours) in enumerate(OTHERS.items()):
        place = [[], ["model"], ["data"], ["trainer"]][number % 4 if theirs != "seed" else 0]
        if number % 3:
            yield Mistake("another tool's", changed(WHOLE["sft"], (*place, theirs), 1), (), theirs, ours)
        else:
            yield Mistake("another tool's", None, (f"--{'.'.join([*place, theirs])}", "1"), theirs, ours)


def wrong_values(rng: random.Random) -> Iterator[Mistake]:
    """Of another type (28), none of the choices (14), no such class (9), null (6)."""
    tree = WHOLE["sft"]
    of_numbers = [
        path for path in keys(tree) if isinstance(value_at(tree, path), (bool, int, float)) and path not in (("data", "val_size"),)
    ]
    for path in rng.sample(of_numbers, 14):
        yield Mistake("a word for a number", changed(tree, path, "many"), (), ".".join(path))
    of_one = [
        path for path in keys(tree) if not isinstance(value_at(tree, path), dict | list) and path[-1] not in ("class_path", "devices")
    ]
    known = [path for path in of_one if path[0] in ("data", "checkpoint") or path[-1] in ("rank", "dora", "top_k", "storage", "max_epochs")]
    for path in rng.sample(known, 8):
        value = rng.choice([{"value": 1}, [1, 2]])
        yield Mistake("a list or mapping for one value", changed(tree, path, value), (), ".".join(path))
    for option, value in (
        ("data.batch_size", "2.5"),
        ("model.adapter.rank", "eight"),
        ("trainer.max_epochs", "[3]"),
        ("data.workers", "true"),
        ("model.gradient_checkpointing", "7"),
        ("data.datasets", "rows.jsonl"),
    ):
        yield Mistake("an option of another type", None, (f"--{option}", value), option)
    for path, value, meant in (
        (("data", "truncation"), "lef", "left"),
        (("data", "truncation"), "Drop", "drop"),
        (("data", "train_on"), "asistant", "assistant"),
        (("data", "layout"), "paded", "padded"),
        (("data", "layout"), "flatt", "flat"),
        (("trainer", "precision"), "bf16_true", "bf16-true"),
        (("trainer", "precision"), "bf16mixed", "bf16-mixed"),
        (("trainer", "accelerator"), "cud", "cuda"),
        (("model", "adapter", "init_args", "dtype"), "float23", "float32"),
        (("model", "quantize", "init_args", "storage"), "uint9", "uint8"),
        (("trainer", "callbacks"), ["EarlyStoping"], "EarlyStopping"),
        (("trainer", "logger"), "CSVLoger", "CSVLogger"),
    ):
        yield Mistake("none of the choices", changed(tree, path, value), (), ".".join(path), meant)
    yield Mistake("none of the choices", None, ("--data.train_on", "assitant"), "data.train_on", "assistant")
    yield Mistake("none of the choices", None, ("--trainer.precision=bf61-true",), "trainer.precision", "bf16-true")
    for path, value, meant in (
        (("model", "adapter", "class_path"), "LoRa", "LoRA"),
        (("model", "adapter", "class_path"), "Lora", "LoRA"),
        (("model", "quantize", "class_path"), "NF5", "NF4"),
        (("model", "objective"), "SFTT", "SFT"),
        (("model", "objective"), "pretrain", "Pretrain"),
        (("model", "schedule"), {"class_path": "Cosin"}, "Cosine"),
        (("model", "optimizer", "class_path"), "torch.optim.AdamWW", "torch.optim.AdamW"),
        (("model", "optimizer", "class_path"), "Adamw", "AdamW"),
        (("model", "schedule"), "ltune.optim.schedules.Linaer", "Linear"),
    ):
        yield Mistake("no such class", changed(tree, path, value), (), ".".join(path[:2]), meant)
    for path in (
        ("data", "batch_size"),
        ("data", "max_length"),
        ("model", "schedule"),
        ("model", "adapter"),
        ("checkpoint", "keep"),
        ("data", "datasets"),
    ):
        yield Mistake("null", changed(tree, path, None), (), ".".join(path))


def swapped(text: str, old: str, new: str) -> str:
    """The text with one part of it put otherwise."""
    assert text.count(old) == 1, old
    return text.replace(old, new)


def wrong_texts(rng: random.Random) -> Iterator[Mistake]:
    """Files that are no YAML, keys that stand twice, arguments that belong to nothing: 14."""
    sound = SFT.read_text()
    lines = sound.splitlines()
    tabbed = "\n".join(line.replace("  ", "\t", 1) if line.startswith("  max_length") else line for line in lines)
    number = 1 + next(number for number, line in enumerate(lines) if line.startswith("  max_length"))
    yield Mistake("a tab", tabbed, (), f":{number}:")
    yield Mistake("an open bracket", swapped(sound, "datasets: [quickstart]", "datasets: [quickstart"), (), "not valid YAML")
    yield Mistake("an open quote", swapped(sound, "folder: data", 'folder: "data'), (), "not valid YAML")
    yield Mistake("a second colon", swapped(sound, "model: tiny", "model: tiny: small"), (), "not valid YAML")
    yield Mistake("indented otherwise", swapped(sound, "  layout: flat", "   layout: flat"), (), "not valid YAML")
    yield Mistake("a list", "- model: tiny\n- data: 3\n", (), "a mapping of keys")
    yield Mistake("a section twice", sound + "data: {batch_size: 4}\n", (), "data")
    yield Mistake("a key twice", swapped(sound, "  layout: flat", "  batch_size: 4\n  layout: flat"), (), "batch_size")
    yield Mistake("an option twice", swapped(sound, "      rank: 8 ", "      rank: 8\n      rank: 16 "), (), "rank")
    yield Mistake("a tag", swapped(sound, "model: tiny", "model: !!python/name:os.system"), (), "!!python/name:os.system")
    yield Mistake("a section of text", "data: quickstart\n", (), "data")
    yield Mistake("no value after a flag", None, ("--config",), "--config")
    yield Mistake("a file without --config", None, ("more.yaml",), "more.yaml", "--config more.yaml")
    yield Mistake("an argument too many", None, ("--data.batch_size=3", "4"), "4")


def mistakes() -> list[Mistake]:
    kinds = (misspelt_keys, misplaced_keys, other_tools_keys, wrong_values, wrong_texts)
    return [mistake for number, kind in enumerate(kinds) for mistake in kind(random.Random(number))]


# -- what is said of them -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def said(tmp_path, monkeypatch, capsys):
    """(exit code, stderr) of ``ltune fit`` with a mistake, in a folder of its own and in this process."""
    monkeypatch.chdir(tmp_path)
    root, handler = logging.getLogger(), signal.getsignal(signal.SIGTERM)
    level, handlers = root.level, list(root.handlers)

    def run(mistake: Mistake) -> tuple[int, str]:
        file = tmp_path / "mutated.yaml"
        content = SFT.read_text() if mistake.content is None else mistake.content
        file.write_text(content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False))
        capsys.readouterr()
        code = main(["fit", "--config", file.name, *mistake.arguments])
        return code, capsys.readouterr().err

    yield run
    root.handlers[:] = handlers
    root.setLevel(level)
    signal.signal(signal.SIGTERM, handler)


def test_two_hundred_mistakes_are_refused_with_the_key_and_what_was_meant(said):
    every = mistakes()
    assert len(every) == 200
    assert len({str(mistake) + str(mistake.content) for mistake in every}) == 200
    wrong: list[str] = []
    unguessed: list[str] = []
    slow = 0
    for mistake in every:
        begin = time.perf_counter()
        code, stderr = said(mistake)
        slow += time.perf_counter() - begin > 1
        if code != 2 or not 1 <= len(stderr.splitlines()) <= 5 or not stderr.startswith("error: ") or mistake.key not in stderr:
            wrong.append(f"{mistake} -> {code}\n{stderr}")
        elif mistake.meant and not suggested(mistake.meant, stderr):
            unguessed.append(f"{mistake} (meant: {mistake.meant})\n{stderr}")
    assert not wrong, f"{len(wrong)} of 200:\n" + "\n".join(wrong)
    guessable = sum(mistake.meant is not None for mistake in every)
    assert len(unguessed) <= 0.05 * guessable, f"{len(unguessed)} of {guessable}:\n" + "\n".join(unguessed)
    assert slow <= 4, f"{slow} took more than a second"


def suggested(meant: str, stderr: str) -> bool:
    """Whether the message says it, as a name of its own."""
    around = (('"', '"'), (" ", "?"), (" is ", " here"), (" ", "\n"), ("  ", "  "))
    return any(f"{before}{meant}{after}" in stderr for before, after in around)


@pytest.mark.parametrize(("theirs", "ours"), OTHERS.items())
def test_every_name_of_another_tool_leads_to_an_option_of_ours(theirs, ours):
    from ltune.suggestions import other_tools

    assert other_tools()[theirs] == ours


def test_the_names_of_other_tools_lead_to_options_of_ours():
    from ltune.suggestions import other_tools

    ours = {path for paths in schema.everywhere().values() for path in paths}
    assert set(other_tools().values()) <= ours
