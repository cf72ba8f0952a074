"""What becomes of LLaMA-Factory's variants of supervised fine-tuning; each result is what the parser of `ltune fit` takes."""

from pathlib import Path

import pytest
import yaml

from ltune.apps.import_config import convert
from ltune.usage import check_file

TRAINING = {"stage": "sft", "do_train": True, "model_name_or_path": "tiny", "dataset": "identity", "output_dir": "saves/one"}
ASFT = {"weight": 0.1, "sft_weight": 1.0, "dft": True}


def converted(**keys):
    return convert(TRAINING | keys, Path("train.yaml"))


@pytest.mark.parametrize(
    ("keys", "class_path", "options"),
    [
        ({"use_dft_loss": True}, "SFT", {"dft": True}),
        ({"neftune_noise_alpha": 5, "label_smoothing_factor": 0.1}, "SFT", {"label_smoothing": 0.1, "neftune_alpha": 5.0}),
        ({"use_dft_loss": True, "use_eaft_loss": True, "neftune_noise_alpha": "5"}, "SFT", {"dft": True, "neftune_alpha": 5.0}),
        ({"use_eaft_loss": True}, "EAFT", {"alpha": 1.0}),
        ({"use_eaft_loss": True, "eaft_alpha": 0.5}, "EAFT", {"alpha": 0.5}),
        ({"use_asft_loss": True}, "Distill", {"teacher": None, **ASFT}),
        ({"use_asft_loss": True, "asft_alpha": 0.2}, "Distill", {"teacher": None, **ASFT, "weight": 0.2}),
        (
            {"use_asft_loss": True, "finetuning_type": "full"},
            "Distill",
            {"teacher": "tiny", "teacher_quantize": None, **ASFT},
        ),
        (
            {"use_asft_loss": True, "ref_model": "other", "ref_model_quantization_bit": 4, "ref_model_adapters": "one"},
            "Distill",
            {"teacher": "other", "teacher_quantize": {"class_path": "NF4"}, "teacher_adapter": "one", **ASFT},
        ),
        ({"stage": "pt", "packing": False, "label_smoothing_factor": 0.1}, "Pretrain", {"label_smoothing": 0.1}),
    ],
    ids=str,
)
def test_carried(keys, class_path, options, tmp_path):
    conversion = converted(**keys)
    assert conversion.missing == []
    assert conversion.yaml["model"]["objective"] == {"class_path": class_path, "init_args": options}
    (tmp_path / "ours.yaml").write_text(yaml.safe_dump(conversion.yaml))
    assert check_file(tmp_path / "ours.yaml") == []


def test_what_does_nothing_there_is_listed():
    assert converted(use_dft_loss=True, label_smoothing_factor=0.1).ignored == ["label_smoothing_factor"]
    assert converted(stage="pt", packing=False, use_dft_loss=True).ignored == ["use_dft_loss"]
    assert converted(use_dft_loss=False, neftune_noise_alpha=0).yaml["model"]["objective"] == "SFT"


def test_noise_that_no_objective_here_has_is_missing():
    assert converted(stage="dpo", neftune_noise_alpha=5).missing == ["neftune_noise_alpha"]
