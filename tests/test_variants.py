"""Every choice of adapter, storage, objective, precision and layout trains two steps and leaves a result that the plain libraries load."""

import json
from pathlib import Path

import pytest

from ltune.cli import main

TINY = Path(__file__).resolve().parents[1] / "ltune" / "assets" / "tiny"
NONE = ["--model.quantize", "null"]
VARIANTS = {
    "LoRA NF4": [],
    "LoRA FP4, rsLoRA": ["--model.quantize", "FP4", "--model.adapter.rslora", "true"],
    "LoRA Int8": ["--model.quantize", "Int8"],
    "DoRA NF4": ["--model.adapter.dora", "true"],
    "PiSSA": [*NONE, "--model.adapter.pissa", "true"],
    "named targets, embeddings saved": [*NONE, "--model.adapter.targets=[q_proj,v_proj]", "--model.adapter.modules_to_save=[embed_tokens]"],
    "bf16 adapter": ["--model.adapter.dtype", "bfloat16", "--trainer.precision", "bf16-true"],
    "bf16-true": ["--trainer.precision", "bf16-true"],
    "bf16-mixed": ["--trainer.precision", "bf16-mixed"],
    "gradient checkpointing": ["--model.gradient_checkpointing", "true"],
    "padded, eager": ["--data.layout", "padded", "--model.attention", "eager"],
    "Full": [*NONE, "--model.adapter", "Full"],
    "Full bf16-mixed": [*NONE, "--model.adapter", "Full", "--trainer.precision", "bf16-mixed"],
    "Freeze": [*NONE, "--model.adapter", "Freeze", "--model.adapter.layers", "1"],
    "Pretrain, Full, Linear": [*NONE, "--model.objective", "Pretrain", "--model.adapter", "Full", "--model.schedule", "Linear"],
    "Pretrain, LoRA, Constant": ["--model.objective", "Pretrain", "--model.schedule", "Constant", "--data.max_length", "16"],
    "last turn": ["--data.train_on", "last", "--data.truncation", "drop"],
    "everything": ["--data.train_on", "all", "--data.truncation", "llamafactory", "--data.max_length", "12"],
}


@pytest.fixture
def texts(tmp_path: Path) -> str:
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": f"The sky is blue and {n} birds are in it. " * (1 + n % 3)}) + "\n" for n in range(8)))
    return str(file)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_trains_and_its_result_loads(name, texts, rows, metrics, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = VARIANTS[name]
    data = texts if "Pretrain" in options else str(rows)
    common = [
        "--run",
        "run",
        f"--data.datasets=[{data}]",
        "--trainer.accelerator",
        "cpu",
        "--trainer.max_steps",
        "2",
        "--trainer.log_every_n_steps",
        "1",
    ]
    assert main(["fit", *common, "--model.optimizer.lr", "1e-3", *options]) == 0
    lines = metrics(tmp_path / "run")
    assert [line["step"] for line in lines] == [1, 2]
    assert all(0 < line["train/loss"] < 15 and line["train/grad_norm"] > 0 for line in lines)
    whole = any(word in options for word in ("Full", "Freeze"))
    result = tmp_path / "run" / ("model" if whole else "adapter")
    assert_loads(result, whole)


def assert_loads(result: Path, whole: bool) -> None:
    """Plain transformers or plain peft; something in it differs from the base."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    ids = torch.tensor([[1, 5, 9, 30, 31]])
    with torch.no_grad():
        before = base(ids).logits
        tuned = AutoModelForCausalLM.from_pretrained(result, dtype=torch.float32) if whole else PeftModel.from_pretrained(base, result)
        after = tuned.eval()(ids).logits
    assert 0 < (before - after).abs().max() < 5
    assert AutoTokenizer.from_pretrained(result).chat_template
