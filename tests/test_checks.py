"""Rules between options: each says what is wrong and what to do, and all are reported at once."""

import copy

import pytest
import torch

from ltune.checks import check
from ltune.errors import UsageError

SOUND: dict = {
    "run": "run",
    "model": {
        "quantize": {"class_path": "ltune.models.quantize.NF4", "init_args": {}},
        "adapter": {"class_path": "ltune.models.adapters.LoRA", "init_args": {"pissa": False}},
        "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-4}},
        "lora_plus_ratio": None,
        "objective": {"class_path": "ltune.objectives.SFT", "init_args": {}},
    },
    "data": {
        "datasets": ["rows.jsonl"], "val_datasets": [], "test_datasets": [], "val_size": 0, "batch_size": 2, "max_length": 2048,
        "workers": 0, "max_rows": None, "tokens_per_batch": None, "layout": "flat", "processes": None, "weights": None,
    },
    "trainer": {
        "accelerator": "cpu", "devices": "auto", "strategy": "auto", "precision": "32-true", "default_root_dir": None,
        "overfit_batches": 0.0,
        "reload_dataloaders_every_n_epochs": 0, "gradient_clip_algorithm": None, "use_distributed_sampler": False, "callbacks": None,
        "max_epochs": 3, "max_steps": -1, "max_time": None,
    },
}  # fmt: skip
FULL = {"class_path": "ltune.models.adapters.Full", "init_args": {}}
FREEZE = {"class_path": "ltune.models.adapters.Freeze", "init_args": {}}
NO_SUCH_LAYER = {"class_path": "ltune.models.adapters.LoRA", "init_args": {"targets": ["v_proj", "q_projj"]}}
PISSA = {"class_path": "ltune.models.adapters.LoRA", "init_args": {"pissa": True}}


def configuration(**changes: object) -> dict:
    """A sound one with changes given as model__adapter=..."""
    config = copy.deepcopy(SOUND)
    for name, value in changes.items():
        section, _, key = name.partition("__")
        if key:
            config[section][key] = value
        else:
            config[section] = value
    return config


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def refusal(command: str = "fit", **changes: object) -> str:
    with pytest.raises(UsageError) as caught:
        check(configuration(**changes), command)
    assert len(str(caught.value).splitlines()) <= 5
    return str(caught.value)


def test_a_sound_configuration_passes():
    for command in ("fit", "test", "predict"):
        check(configuration(), command)
    check(configuration(data__val_size=0.1), "validate")
    check(configuration(model__quantize=None, model__adapter=FULL), "fit")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model__adapter": FULL}, ["model.adapter: Full", "model.quantize: NF4", "model.quantize: null"]),
        ({"model__adapter": FREEZE}, ["model.adapter: Freeze", "model.quantize: NF4", "model.adapter: LoRA"]),
        ({"model__adapter": PISSA}, ["pissa", "quantize: null"]),
        ({"model__quantize": None, "model__adapter": FULL, "model__lora_plus_ratio": 16}, ["model.lora_plus_ratio", "Full", "null"]),
        ({"model__lora_plus_ratio": 0}, ["model.lora_plus_ratio is above 0, got 0"]),
        (
            {"model__optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": -1.0}}},
            ["model.optimizer", "Invalid learning rate: -1.0"],
        ),
        ({"model__attention": "flash"}, ["model.attention: flash is not known", "null, sdpa or eager"]),
        ({"model__attention": "sdpaa"}, ['model.attention: sdpaa is not known; did you mean "sdpa"?']),
        ({"data__folder": "no/such"}, ["data.folder: there is no folder no/such", "dataset_info.json"]),
        (
            {"model__model": "tiny", "model__revision": None, "model__trust_remote_code": None, "model__adapter": NO_SUCH_LAYER},
            ["model.adapter.targets: the model has no module q_projj.", "q_proj"],
        ),
        ({"data__batch_size": 0}, ["data.batch_size is at least 1, got 0"]),
        ({"data__max_length": 1}, ["data.max_length is at least 2, got 1"]),
        ({"data__workers": -1}, ["data.workers is not negative, got -1"]),
        ({"data__max_rows": 0}, ["data.max_rows", "got 0"]),
        ({"data__tokens_per_batch": 1}, ["data.tokens_per_batch", "at least 2", "got 1"]),
        ({"data__tokens_per_batch": 64, "data__layout": "padded"}, ["data.tokens_per_batch", "data.layout: flat"]),
        ({"data__val_size": 1.5}, ["data.val_size", "got 1.5"]),
        ({"data__val_size": 1.0}, ["data.val_size", "1.0", "write 1"]),
        ({"data__val_size": 0.1, "data__val_datasets": ["a"]}, ["data.val_size and data.val_datasets", "choose one"]),
        ({"data__datasets": []}, ["data.datasets is empty"]),
        ({"trainer__precision": "16-mixed"}, ["trainer.precision: 16-mixed", "needs a GPU", "bf16-true or 32-true"]),
        ({"trainer__devices": "foo"}, ["trainer.devices", "got foo"]),
        ({"trainer__devices": 0}, ["trainer.devices", "got 0"]),
        ({"trainer__devices": [0, 1]}, ["trainer.devices", "got [0, 1]"]),
        ({"trainer__strategy": "dpp"}, ["trainer.strategy: dpp", 'did you mean "ddp"?']),
        ({"trainer__overfit_batches": 1}, ["trainer.overfit_batches", "data.max_rows"]),
        ({"trainer__default_root_dir": "x"}, ["trainer.default_root_dir", "run: FOLDER"]),
        ({"trainer__gradient_clip_algorithm": "value"}, ["trainer.gradient_clip_algorithm: value", "norm"]),
        ({"trainer__use_distributed_sampler": True}, ["trainer.use_distributed_sampler", "false"]),
        ({"trainer__max_epochs": -1}, ["would not end"]),
    ],
)
def test_one_problem_is_one_line_that_names_the_option_and_the_way_out(changes, words):
    message = refusal(**changes)
    assert "\n" not in message
    assert all(word in message for word in words), message


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_said_before_anything_loads():
    message = refusal(trainer__accelerator="gpu")
    assert all(word in message for word in ("trainer.accelerator: gpu", "no CUDA device", "auto or cpu"))


def test_several_problems_are_reported_together_in_five_lines():
    message = refusal(
        model__adapter=FULL, model__lora_plus_ratio=16, data__batch_size=0, trainer__precision="16-mixed", trainer__overfit_batches=1
    )
    assert message.startswith("5 problems in the configuration:")
    assert all(word in message for word in ("model.adapter", "lora_plus_ratio", "batch_size", "trainer.precision", "overfit_batches"))


def test_validate_without_rows_for_it_is_refused():
    message = refusal("validate")
    assert all(word in message for word in ("nothing to validate on", "data.val_size", "data.val_datasets"))


def test_a_run_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for run in ("file", "file/run"):
        message = refusal(run=run)
        assert all(word in message for word in (f"run: {run}", "is a file", "--run FOLDER"))


# -- preferences ------------------------------------------------------------------------------------------------------------------------


def dpo(reference: str, **options: object) -> dict:
    reference_of = {"class_path": f"ltune.objectives.reference.{reference}", "init_args": options}
    return {"class_path": "ltune.objectives.DPO", "init_args": {"beta": 0.1, "reference": reference_of}}


def test_a_whole_model_needs_another_one_as_its_reference():
    for reference in ("AdapterOff", "OtherAdapter"):
        said = refusal(model__adapter=FULL, model__quantize=None, model__objective=dpo(reference, folder="somewhere"))
        assert "DPO compares with the model without its adapter" in said
        assert "OtherModel" in said
    check(configuration(model__adapter=FULL, model__quantize=None, model__objective=dpo("OtherModel", model="tiny")), "fit")


def test_a_changed_base_is_no_reference():
    assert "pissa" in refusal(model__adapter=PISSA, model__quantize=None, model__objective=dpo("AdapterOff"))


def test_an_adapter_to_compare_with_has_to_be_there():
    assert "somewhere is no PEFT folder" in refusal(model__objective=dpo("OtherAdapter", folder="somewhere"))


def test_ktos_divergence_needs_rows_of_a_fixed_number():
    kto = {"class_path": "ltune.objectives.KTO", "init_args": {"divergence": True, "reference": None}}
    assert "divergence" in refusal(model__objective=kto, data__tokens_per_batch=500)
