"""Every shipped configuration is parsed by the real parser, fragments on top of a whole one."""

from pathlib import Path

import pytest
import yaml

from ltune import schema
from ltune.usage import check_file

ROOT = Path(__file__).resolve().parents[1]
WHOLE = sorted((ROOT / "configs").glob("*.yaml"))
FRAGMENTS = sorted((ROOT / "configs").glob("*/*.yaml"))


def parsed(*files: Path) -> dict:
    """The configuration that `ltune fit -c FILE ...` resolves to, after the checks; nothing is loaded or run."""
    from ltune.data.datamodule import ChatData
    from ltune.module import FineTuner
    from ltune.train import TrainCLI, cli_options

    class Parsed(TrainCLI):
        def instantiate_classes(self) -> None: ...

        def _run_subcommand(self, subcommand: str) -> None: ...

    arguments = [word for file in files for word in ("--config", str(file))]
    return Parsed(FineTuner, ChatData, args=["fit", *arguments, "--run", "no-such-run"], **cli_options("fit", arguments)).resolved


@pytest.fixture(scope="module")
def plain() -> dict:
    return parsed(ROOT / "configs" / "sft.yaml")


def test_as_many_as_were_shipped():
    assert [file.name for file in WHOLE] == [
        *("bco.yaml", "cpo.yaml", "distill.yaml", "dpo.yaml", "kto.yaml", "llama3_lora_sft.yaml", "orpo.yaml"),
        *("pretrain.yaml", "quickstart.yaml", "reward.yaml", "sft.yaml", "simpo.yaml"),
    ]
    assert len(FRAGMENTS) == 29


@pytest.mark.parametrize("file", WHOLE, ids=lambda file: file.stem)
def test_a_whole_configuration_parses_and_passes_the_checks(file):
    assert parsed(file)["data"]["datasets"]


@pytest.mark.parametrize("file", FRAGMENTS, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_a_fragment_changes_what_it_says(file, plain):
    assert 1 <= len(file.read_text().splitlines()) <= 12
    says_the_same = {"nf4", "lora", "adamw"}
    if file.stem == "one_gpu":
        assert check_file(file) == []  # refused where there is no GPU
    else:
        assert (parsed(ROOT / "configs" / "sft.yaml", *needs(file), file) != plain) == (file.stem not in says_the_same)


def test_the_commented_configuration_has_every_key():
    written = yaml.safe_load((ROOT / "configs" / "sft.yaml").read_text())
    for name in ("model", "data", "checkpoint", "resume"):
        assert sorted(written[name]) == sorted(schema.section(name))


def needs(file: Path) -> list[Path]:
    """Freeze and Full train the weights themselves, PiSSA factors them: not in 4 bits."""
    return [ROOT / "configs" / "quantize" / "none.yaml"] if file.stem in ("freeze", "full", "pissa") else []


@pytest.mark.parametrize("adapter", ["Full", "Freeze"])
def test_another_adapter_does_not_inherit_the_default_ones_dtype(ltune, adapter):
    done = ltune("fit", "--model.quantize=null", "--model.adapter", adapter, "--data.datasets=[quickstart]", "--print_config")
    assert done.returncode == 0, done.stderr
    assert yaml.safe_load(done.stdout)["model"]["adapter"]["init_args"]["weights_dtype"] is None
