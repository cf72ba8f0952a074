"""`ltune import`: what becomes of each group of LLaMA-Factory's keys, what is refused, what is written."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from ltune.apps.import_config import convert, main
from ltune.apps.settings import load_table
from ltune.data.template_files import names
from ltune.errors import UsageError

GOLDEN = Path(__file__).resolve().parents[2].parent / "shared" / "golden" / "runs"
TRAINING = {"stage": "sft", "do_train": True, "model_name_or_path": "tiny", "dataset": "identity", "output_dir": "saves/one"}
BASE = Path("train.yaml")


def trained(**keys):
    return convert(TRAINING | keys, BASE)


def at(converted, path):
    """The value at model.adapter.init_args, or None where there is none."""
    for key in path.split("."):
        converted = (converted or {}).get(key)
    return converted


def write(folder, text, name="train.yaml"):
    (folder / name).write_text(text, encoding="utf-8")
    return str(folder / name)


def test_defaults_are_llama_factorys():
    conversion = trained()
    assert conversion.missing == []
    assert conversion.ignored == []
    assert conversion.yaml == {
        "seed_everything": 42,
        "run": "saves/one",
        "model": {
            "model": "tiny",
            "quantize": None,
            "adapter": {"class_path": "LoRA", "init_args": {"rank": 8, "alpha": 16, "dropout": 0.0, "targets": "all"}},
            "objective": "SFT",
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 5e-5, "weight_decay": 0.0}},
            "schedule": {"class_path": "Linear", "init_args": {"warmup": 0}},
        },
        "data": {"datasets": ["identity"], "folder": "data", "max_length": 2048, "truncation": "llamafactory", "batch_size": 8},
        "trainer": {"max_epochs": 3, "accumulate_grad_batches": 1, "precision": "32-true", "gradient_clip_val": 1.0},
    }


@pytest.mark.skipif(not GOLDEN.is_dir(), reason="the golden runs are not beside the repository")
def test_golden_run(tmp_path):
    settings = json.loads((GOLDEN / "sft.json").read_text())["settings"]
    folders = {
        "model_name_or_path": "golden/model",
        "adapter_name_or_path": "golden/adapter",
        "dataset_dir": "golden/data",
        "output_dir": "out",
    }
    file = write(tmp_path, yaml.safe_dump(settings | folders))
    assert main([file, "--output", str(tmp_path / "ltune.yaml")]) == 0
    assert yaml.safe_load((tmp_path / "ltune.yaml").read_text()) == {
        "seed_everything": 42,
        "run": "out",
        "model": {
            "model": "golden/model",
            "quantize": None,
            "adapter": {"class_path": "LoRA", "init_args": {"init": "golden/adapter"}},
            "objective": "SFT",
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 2e-4, "weight_decay": 0.0}},
            "lora_plus_ratio": 16.0,
            "schedule": {"class_path": "Cosine", "init_args": {"warmup": 0.1}},
        },
        "data": {
            "datasets": ["identity", "alpaca_en_demo"],
            "folder": "golden/data",
            "template": "llama3",
            "max_length": 2048,
            "truncation": "llamafactory",
            "max_rows": 500,
            "batch_size": 2,
        },
        "trainer": {"max_epochs": 3, "accumulate_grad_batches": 4, "precision": "32-true", "gradient_clip_val": 1.0},
    }


LORA = "model.adapter.init_args"


@pytest.mark.parametrize(
    ("keys", "path", "expected"),
    [
        # model
        ({"model_revision": "v2"}, "model.revision", "v2"),
        ({"model_revision": "main"}, "model.revision", None),
        ({"trust_remote_code": True}, "model.trust_remote_code", "tiny@main"),
        ({"trust_remote_code": True, "model_revision": "v2"}, "model.trust_remote_code", "tiny@v2"),
        ({"flash_attn": "auto"}, "model.attention", None),
        ({"flash_attn": "disabled"}, "model.attention", "eager"),
        ({"flash_attn": "fa2"}, "model.attention", "flash_attention_2"),
        ({"quantization_bit": 4}, "model.quantize", {"class_path": "NF4", "init_args": {"double_quantization": True}}),
        (
            {"quantization_bit": 4, "quantization_type": "fp4", "double_quantization": False},
            "model.quantize",
            {"class_path": "FP4", "init_args": {"double_quantization": False}},
        ),
        ({"quantization_bit": 8, "quantization_method": "bnb"}, "model.quantize", {"class_path": "Int8"}),
        ({"disable_gradient_checkpointing": False}, "model.gradient_checkpointing", True),
        ({"disable_gradient_checkpointing": True}, "model.gradient_checkpointing", None),
        # adapter
        ({"lora_rank": 16}, f"{LORA}.alpha", 32),
        ({"lora_rank": 16, "lora_alpha": 8}, f"{LORA}.alpha", 8),
        ({"lora_dropout": "0.1"}, f"{LORA}.dropout", 0.1),
        ({"lora_target": "q_proj, v_proj"}, f"{LORA}.targets", ["q_proj", "v_proj"]),
        ({"additional_target": "embed_tokens,lm_head"}, f"{LORA}.modules_to_save", ["embed_tokens", "lm_head"]),
        ({"use_rslora": True}, f"{LORA}.rslora", True),
        ({"use_dora": True}, f"{LORA}.dora", True),
        ({"pissa_init": True, "pissa_convert": None}, f"{LORA}.pissa", 16),
        ({"pissa_init": True, "pissa_iter": -1}, f"{LORA}.pissa", True),
        ({"adapter_name_or_path": "a", "lora_rank": 16}, LORA, {"init": "a"}),
        ({"finetuning_type": "full"}, "model.adapter", {"class_path": "Full"}),
        (
            {"finetuning_type": "freeze", "freeze_trainable_layers": -3, "freeze_extra_modules": "norm"},
            "model.adapter",
            {"class_path": "Freeze", "init_args": {"layers": -3, "extra": ["norm"]}},
        ),
        ({"finetuning_type": "freeze", "freeze_trainable_modules": "mlp"}, "model.adapter.init_args", {"layers": 2, "modules": ["mlp"]}),
        # objective, optimizer, schedule
        ({"stage": "pt", "packing": False}, "model.objective", "Pretrain"),
        ({"stage": "rm"}, "model.objective", "Reward"),
        (
            {"stage": "ppo", "reward_model": "saves/rm", "ppo_epochs": 2, "ppo_buffer_size": 3, "ppo_target": 5, "quantization_bit": 4},
            "model.objective.init_args",
            {
                "rewards": [
                    {
                        "class_path": "ModelReward",
                        "init_args": {"folder": "saves/rm", "model": "tiny", "quantize": {"class_path": "NF4"}},
                    }
                ],
                "sampling": {"max_new_tokens": 1024, "temperature": 0.95, "top_p": 0.7, "top_k": 50, "repetition_penalty": 1.0},
                "iterations": 2,
                "mini_batches": 3,
                "kl": {"class_path": "AdaptiveKL", "init_args": {"initial": 0.2, "target": 5.0}},
            },
        ),
        (
            {"stage": "ppo", "reward_model": "saves/rm", "ppo_buffer_size": 3, "gradient_accumulation_steps": 2},
            "trainer.accumulate_grad_batches",
            6,
        ),
        ({"stage": "ppo", "reward_model": "saves/rm", "max_steps": 5}, "trainer.max_steps", 20),
        (
            {"stage": "ppo", "reward_model": "rm", "reward_model_type": "full", "reward_model_adapters": "a"},
            "model.objective.init_args.rewards",
            [{"class_path": "ModelReward", "init_args": {"folder": "a", "model": "rm"}}],
        ),
        ({"stage": "dpo"}, "model.objective", {"class_path": "DPO", "init_args": {"beta": 0.1}}),
        (
            {"stage": "dpo", "pref_beta": 0.2, "pref_ftx": 0.5, "dpo_label_smoothing": 0.1, "ld_alpha": 0.3},
            "model.objective.init_args",
            {"beta": 0.2, "loss": {"class_path": "Sigmoid", "init_args": {"label_smoothing": 0.1}}, "sft_weight": 0.5, "ld_alpha": 0.3},
        ),
        ({"stage": "dpo", "pref_loss": "hinge"}, "model.objective.init_args", {"beta": 0.1, "loss": {"class_path": "Hinge"}}),
        ({"stage": "dpo", "pref_loss": "ipo"}, "model.objective.init_args", {"beta": 0.1, "loss": {"class_path": "IPO"}}),
        ({"stage": "dpo", "pref_loss": "simpo", "simpo_gamma": 0.7}, "model.objective.init_args", {"beta": 0.1, "gamma": 0.7}),
        ({"stage": "dpo", "pref_loss": "orpo"}, "model.objective", {"class_path": "ORPO", "init_args": {"beta": 0.1}}),
        (
            {"stage": "kto", "kto_chosen_weight": 2, "kto_rejected_weight": 0.5},
            "model.objective",
            {"class_path": "KTO", "init_args": {"beta": 0.1, "good_weight": 2.0, "bad_weight": 0.5}},
        ),
        (
            {"stage": "dpo", "ref_model": "other", "ref_model_adapters": "a", "ref_model_quantization_bit": 4},
            "model.objective.init_args.reference",
            {"class_path": "OtherModel", "init_args": {"model": "other", "quantize": {"class_path": "NF4"}, "adapter": "a"}},
        ),
        (
            {"stage": "dpo", "finetuning_type": "full"},
            "model.objective.init_args.reference",
            {"class_path": "OtherModel", "init_args": {"model": "tiny"}},
        ),
        ({"loraplus_lr_ratio": 16}, "model.lora_plus_ratio", 16.0),
        ({"optim": "paged_adamw_8bit"}, "model.optimizer.class_path", "bitsandbytes.optim.PagedAdamW8bit"),
        ({"optim": "sgd", "adam_beta1": 0.8}, "model.optimizer.init_args", {"lr": 5e-5, "weight_decay": 0.0}),
        ({"learning_rate": "2e-4"}, "model.optimizer.init_args.lr", 2e-4),
        ({"adam_beta2": 0.95, "adam_epsilon": "1e-6"}, "model.optimizer.init_args.betas", [0.9, 0.95]),
        ({"weight_decay": 0.1}, "model.optimizer.init_args.weight_decay", 0.1),
        ({"lr_scheduler_type": "cosine", "warmup_ratio": 0.1}, "model.schedule", {"class_path": "Cosine", "init_args": {"warmup": 0.1}}),
        ({"warmup_steps": 20}, "model.schedule.init_args.warmup", 20),
        ({"warmup_steps": 0.05}, "model.schedule.init_args.warmup", 0.05),
        ({"lr_scheduler_type": "constant", "warmup_steps": 20}, "model.schedule", {"class_path": "Constant", "init_args": {"warmup": 0}}),
        (
            {"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 20},
            "model.schedule",
            {"class_path": "Constant", "init_args": {"warmup": 20}},
        ),
        # data
        ({"dataset": "a, b"}, "data.datasets", ["a", "b"]),
        ({"dataset": ["a", "b"]}, "data.datasets", ["a", "b"]),
        ({"eval_dataset": "c"}, "data.val_datasets", ["c"]),
        ({"dataset_dir": "../rows"}, "data.folder", "../rows"),
        ({"default_system": "Be short."}, "data.system", "Be short."),
        ({"cutoff_len": 512}, "data.max_length", 512),
        ({"max_samples": 100}, "data.max_rows", 100),
        ({"val_size": 0.1}, "data.val_size", 0.1),
        ({"val_size": 50.0}, "data.val_size", 50),
        ({"train_on_prompt": "true"}, "data.train_on", "all"),
        ({"mask_history": True}, "data.train_on", "last"),
        ({"template": "deepseekcoder"}, "data.template", "deepseekcoder"),
        ({"template": "qwen3_nothink", "enable_thinking": False}, "data.template", "qwen3_nothink"),
        ({"template": "qwen3", "mask_history": True}, "data.reasoning", "drop_history"),
        ({"template": "qwen3"}, "data.reasoning", None),
        ({"template": "llama3", "mask_history": True}, "data.reasoning", None),
        ({"preprocessing_num_workers": 16}, "data.processes", 16),
        ({"dataloader_num_workers": 4}, "data.workers", 4),
        # run and trainer
        ({"seed": 7, "data_seed": 7}, "seed_everything", 7),
        ({"output_dir": None}, "run", "runs/train"),
        ({"save_steps": 250, "save_total_limit": 3}, "checkpoint", {"every": 250, "keep": 3}),
        ({"save_strategy": "epoch", "save_steps": 250}, "checkpoint", None),
        ({"num_train_epochs": "2.0"}, "trainer.max_epochs", 2),
        ({"max_steps": 40, "num_train_epochs": 1.5}, "trainer.max_steps", 40),
        ({"max_steps": 40}, "trainer.max_epochs", -1),
        ({"max_steps": -1}, "trainer.max_epochs", 3),
        ({"gradient_accumulation_steps": 4}, "trainer.accumulate_grad_batches", 4),
        ({"max_grad_norm": 0}, "trainer.gradient_clip_val", None),
        ({"logging_steps": 5}, "trainer.log_every_n_steps", 5),
        ({"use_cpu": True}, "trainer.accelerator", "cpu"),
        ({"bf16": True}, "trainer.precision", "bf16-mixed"),
        ({"fp16": True, "bf16": False}, "trainer.precision", "16-mixed"),
        ({"fp16": False, "bf16": False}, "trainer.precision", "32-true"),
        ({"pure_bf16": True}, "trainer.precision", "bf16-true"),
        ({"pure_bf16": True}, f"{LORA}.dtype", "bfloat16"),
        ({"eval_strategy": "steps", "eval_steps": 50, "gradient_accumulation_steps": 4}, "trainer.val_check_interval", 200),
        ({"eval_strategy": False, "eval_steps": 50}, "trainer.val_check_interval", None),
        ({"report_to": "wandb"}, "trainer.logger", [{"class_path": "lightning.pytorch.loggers.WandbLogger"}]),
        ({"report_to": ["tensorboard"]}, "trainer.logger", None),
        # generation, as far as it is named
        ({"do_sample": False}, "model.sampling.temperature", 0.0),
        ({"temperature": 0.5}, "model.sampling.top_k", 50),
    ],
)
def test_carried(keys, path, expected):
    conversion = trained(**keys)
    assert conversion.missing == []
    assert at(conversion.yaml, path) == expected


@pytest.mark.parametrize(
    "keys",
    [
        {"adapter_name_or_path": "a,b"},
        {"adapter_name_or_path": "a", "create_new_adapter": True},
        {"adapter_folder": "sub"},
        {"stage": "dpo", "pref_loss": "kto_pair"},
        {"stage": "ppo", "reward_model": None},
        {"stage": "ppo", "reward_model": "rm", "reward_model_type": "api"},
        {"stage": "ppo", "reward_model": "rm", "reward_model_adapters": "a,b"},
        {"stage": "ppo", "reward_model": "rm", "do_sample": False},
        {"stage": "dpo", "pref_bco_weight": 0.5},
        {"stage": "dpo", "ref_model": "other", "ref_model_adapters": "a,b"},
        {"stage": "kto", "pref_ftx": 0.5},
        {"do_train": False},
        {"finetuning_type": "oft"},
        {"quantization_bit": 3},
        {"quantization_bit": 4, "quantization_method": "hqq"},
        {"rope_scaling": "linear"},
        {"loraplus_lr_ratio": 16, "loraplus_lr_embedding": 1e-5},
        {"lr_scheduler_type": "cosine_with_min_lr"},
        {"warmup_steps": 10, "warmup_ratio": 0.1},
        {"optim": "adafactor"},
        {"num_train_epochs": 1.5},
        {"seed": 1, "data_seed": 2},
        {"bf16": True, "fp16": True},
        {"template": "gemma9"},
        {"template": "qwen3", "enable_thinking": False},
        {"template": "gemma9", "packing": False},
        {"dataset_dir": "ONLINE"},
        {"packing": True},
        {"neat_packing": True},
        {"stage": "pt"},  # packs by default
        {"streaming": True},
        {"disable_shuffling": True},
        {"group_by_length": True},
        {"interleave_probs": "1.0"},
        {"stage": "dpo", "neftune_noise_alpha": 5},
        {"deepspeed": "ds_z3.json"},
        {"fsdp": "full_shard"},
        {"load_best_model_at_end": True},
        {"early_stopping_steps": 5},
        {"resume_from_checkpoint": "saves/checkpoint-10"},
        {"use_galore": True},
        {"lora_ranks": 8},
    ],
    ids=str,
)
def test_missing(keys):
    assert len(trained(**keys).missing) == 1
    assert trained(**keys).missing[0] in {*keys, "packing"}


@pytest.mark.parametrize(
    "keys",
    [
        {"overwrite_cache": True},
        {"hf_hub_token": "secret"},
        {"enable_liger_kernel": True},
        {"upcast_layernorm": True},
        {"per_device_eval_batch_size": 1},
        {"ddp_timeout": 180000000},
        {"resume_from_checkpoint": True},
        {"report_to": "mlflow"},
        {"streaming": False},
        {"label_smoothing_factor": 0.0},
        {"group_by_length": "false"},
        {"deepspeed": None},
        {"logging_steps": 0.1},
        {"finetuning_type": "full", "lora_rank": 4},
        {"quantization_type": "fp4"},  # nothing is quantized
        {"loraplus_lr_embedding": 1e-5},  # no LoRA+
        {"do_train": True, "do_predict": True},
    ],
    ids=str,
)
def test_ignored(keys):
    conversion = trained(**keys)
    assert conversion.missing == []
    assert conversion.ignored == [list(keys)[-1]]


def test_every_golden_template_is_carried():
    for name in names():
        conversion = trained(template=name)
        assert (conversion.missing, conversion.yaml["data"]["template"]) == ([], name)


def test_keys_are_listed_once():
    carried, harmless, neutral = load_table()
    assert not carried & harmless
    assert not (carried | harmless) & set(neutral)


def test_chat_configuration():
    config = {"model_name_or_path": "tiny", "adapter_name_or_path": "saves/one", "template": "llama3", "infer_backend": "huggingface"}
    conversion = convert(config | {"finetuning_type": "lora", "top_p": 0.9}, Path("chat.yaml"))
    assert (conversion.missing, conversion.ignored) == ([], ["infer_backend", "finetuning_type"])
    assert conversion.yaml == {
        "model": {
            "model": "tiny",
            "quantize": None,
            "adapter": {"class_path": "LoRA", "init_args": {"init": "saves/one"}},
            "sampling": {"max_new_tokens": 1024, "temperature": 0.95, "top_p": 0.9, "top_k": 50, "repetition_penalty": 1.0},
        },
        "data": {"template": "llama3"},
        "trainer": {"precision": "bf16-true"},
    }


def test_chat_with_another_backend_is_missing():
    assert convert({"model_name_or_path": "tiny", "infer_backend": "vllm"}, BASE).missing == ["infer_backend"]


def test_chat_prints_the_command(tmp_path, capsys):
    file = write(tmp_path, "model_name_or_path: some model\ntemplate: llama3\nquantization_bit: 4\ndo_sample: false\n")
    assert main([file, "--output", str(tmp_path / "chat.yaml")]) == 0
    command = "ltune chat 'some model' --template llama3 --quantize NF4 --max-new-tokens 1024 --temperature 0.0 --top-p 0.7 --top-k 50"
    assert capsys.readouterr().out.splitlines() == [str(tmp_path / "chat.yaml"), f"next: {command}"]


def test_missing_key_writes_nothing(tmp_path):
    file = write(tmp_path, yaml.safe_dump(TRAINING | {"lora_rnak": 8}))
    with pytest.raises(UsageError) as error:
        main([file, "--output", str(tmp_path / "ltune.yaml")])
    assert "lora_rnak (not a LLaMA-Factory key; did you mean lora_rank?)" in str(error.value)
    assert error.value.exit_code == 2
    assert len(str(error.value).splitlines()) <= 5
    assert not (tmp_path / "ltune.yaml").exists()


def test_allow_missing_writes_and_names(tmp_path, capsys):
    file = write(tmp_path, yaml.safe_dump(TRAINING | {"packing": True, "plot_loss": True}))
    assert main([file, "--output", str(tmp_path / "ltune.yaml"), "--allow-missing"]) == 0
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "ignored, no effect on the result: plot_loss"
    assert said[1].startswith("not carried over, the result will differ: packing (")
    written = (tmp_path / "ltune.yaml").read_text()
    assert "# Not carried over: packing\n" in written
    assert yaml.safe_load(written)["run"] == "saves/one"


def test_json(tmp_path):
    file = write(tmp_path, json.dumps(TRAINING), "train.json")
    assert main([file, "--output", str(tmp_path / "ltune.yaml")]) == 0
    assert yaml.safe_load((tmp_path / "ltune.yaml").read_text()) == trained().yaml


def test_another_file_is_not_overwritten(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = write(tmp_path, yaml.safe_dump(TRAINING))
    assert main([file]) == 0
    assert main([file]) == 0  # the same again: nothing would be lost
    write(tmp_path, "seed_everything: 1\n", "ltune.yaml")
    with pytest.raises(UsageError, match="--force"):
        main([file])
    assert (tmp_path / "ltune.yaml").read_text() == "seed_everything: 1\n"
    assert main([file, "--force"]) == 0
    assert yaml.safe_load((tmp_path / "ltune.yaml").read_text())["run"] == "saves/one"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.yaml", "stage: sft\ndataset: [a\nseed: 1\n", "a.yaml:3: not YAML"),
        ("a.yaml", "stage: sft\nseed: 1\nseed: 2\n", "a.yaml:3: not YAML: seed is given twice"),
        ("a.json", '{"stage": "sft",\n"seed": }', "a.json:2: not JSON"),
        ("a.yaml", "- a\n- b\n", "a.yaml: holds list"),
        ("a.yaml", "", "a.yaml: holds NoneType"),
        ("a.yaml", "stage: sft\noutput_dir: ${oc.env:HOME}/saves\n", "output_dir has an interpolation"),
        ("a.yaml", "stage: sft\nlora_rank: eight\n", "lora_rank must be a number, got 'eight'"),
        ("a.yaml", "stage: sft\nlora_rank: 8.5\n", "lora_rank must be a whole number, got 8.5"),
        ("a.yaml", "stage: sft\nbf16: maybe\n", "bf16 must be true or false, got 'maybe'"),
    ],
)
def test_malformed(tmp_path, name, text, message):
    with pytest.raises(UsageError) as error:
        main([write(tmp_path, text, name), "--output", str(tmp_path / "ltune.yaml")])
    assert message in str(error.value)
    assert error.value.exit_code == 2


def test_no_such_file(tmp_path):
    with pytest.raises(UsageError, match="No such file"):
        main([str(tmp_path / "none.yaml")])


def test_abbreviations_are_off(tmp_path):
    with pytest.raises(UsageError, match="--allow"):
        main([write(tmp_path, yaml.safe_dump(TRAINING)), "--allow"])


def test_imports_nothing_heavy():
    code = "import sys, ltune.apps.import_config; print(sorted({'torch', 'transformers', 'lightning'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize(
    ("keys", "mix"),
    [
        ({}, None),
        ({"mix_strategy": "concat"}, None),
        ({"mix_strategy": "interleave_under"}, {"stop": "under"}),
        ({"mix_strategy": "interleave_over", "interleave_probs": "0.7,0.3"}, {"stop": "over", "probabilities": [0.7, 0.3]}),
        ({"mix_strategy": "interleave_once", "interleave_probs": [0.5, 0.5]}, {"stop": "once", "probabilities": [0.5, 0.5]}),
        ({"mix_strategy": "interleave_under", "interleave_probs": "1.0", "dataset": "identity"}, None),
    ],
)
def test_mixing_of_data_sets(keys, mix):
    conversion = trained(**({"dataset": "identity,alpaca_en_demo"} | keys))
    assert conversion.missing == []
    assert at(conversion.yaml, "data.mix") == (mix and {"class_path": "Interleave", "init_args": mix})


def test_mixing_that_cannot_be_meant():
    two = {"dataset": "identity,alpaca_en_demo"}
    assert "interleave_under" in trained(**two, interleave_probs="0.7,0.3").reasons["interleave_probs"]
    assert trained(**two, mix_strategy="interleave_under", interleave_probs="1").reasons["interleave_probs"] == "1 for 2 data sets"
    assert trained(**two, mix_strategy="interleave").missing == ["mix_strategy"]
    with pytest.raises(UsageError, match="interleave_probs must be numbers, separated by commas, got 'half,half'"):
        trained(**two, mix_strategy="interleave_over", interleave_probs="half,half")
