import json
from pathlib import Path

import pytest

from ltune.apps.source import find_source
from ltune.errors import UsageError


def test_run_folder_is_quantized_as_in_training_unless_told_otherwise(tmp_path, write_run):
    nf4 = {"class_path": "ltune.models.quantize.NF4", "init_args": {}}
    write_run(tmp_path, Path("base"), quantize=nf4)
    (tmp_path / "model").mkdir()
    source = find_source(str(tmp_path))
    assert (source.model, source.quantize) == (str(tmp_path / "model"), None)  # whole weights were written: no longer 4-bit
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter/adapter_config.json").write_text("{}")
    (tmp_path / "adapter/adapter_model.safetensors").touch()
    source = find_source(str(tmp_path))
    assert (source.model, source.quantize, source.adapter) == ("base", nf4, tmp_path / "adapter")
    assert source.sampling == {"max_new_tokens": 99}


def test_unfinished_run_says_so(tmp_path, write_run):
    write_run(tmp_path, Path("base"))
    with pytest.raises(UsageError, match="has not finished") as caught:
        find_source(str(tmp_path))
    assert f"ltune fit --config {tmp_path / 'config.yaml'}" in str(caught.value)


def test_folders_that_are_no_adapter(tmp_path):
    with pytest.raises(UsageError, match="no adapter_config.json"):
        find_source("tiny", tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "base"}))
    (tmp_path / "adapter_model.bin").touch()
    with pytest.raises(UsageError, match="pickled weights are not loaded"):
        find_source(str(tmp_path))


def test_config_that_is_no_runs(tmp_path):
    (tmp_path / "config.yaml").write_text("model: tiny\n")
    with pytest.raises(UsageError, match="not the configuration of a run"):
        find_source(str(tmp_path))
    (tmp_path / "config.yaml").write_text("model: [\n")
    with pytest.raises(UsageError, match="not readable as YAML"):
        find_source(str(tmp_path))
