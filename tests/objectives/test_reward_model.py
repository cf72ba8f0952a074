"""A reward model's result is loaded by ``RewardModel`` and scores as it did in training, from an adapter and from a whole model."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from ltune.cli import main
from ltune.data.collate import collate
from ltune.data.encode import Encoder
from ltune.data.rows import Message, Pair
from ltune.data.templates import load_template
from ltune.errors import UsageError
from ltune.models.heads import ValueHead
from ltune.models.tokenizer import EMBEDDED
from ltune.objectives import RewardModel
from ltune.objectives.companions import Companions
from ltune.objectives.policy import Policy

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "reward.yaml"
LOAD = Companions("32-true", torch.device("cpu"), None, True, False, ("tiny", None))


@pytest.fixture
def batch():
    tokenizer = AutoTokenizer.from_pretrained(str(EMBEDDED))
    encoder = Encoder(load_template(None, tokenizer), tokenizer, max_length=200)
    row = Pair("here:1", (Message("user", "hi"),), Message("assistant", "good"), Message("assistant", "bad and sad"))
    return collate(encoder.process(row).sequences, (0,), 1, 1, flat=True, pad_id=0).tensors()


@pytest.mark.parametrize("adapter", ["LoRA", "Full"])
def test_it_scores_what_was_trained(adapter, batch, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = ["--run", "run", "--trainer.max_steps", "2", "--trainer.precision", "32-true", "--trainer.accelerator", "cpu"]
    assert main(["fit", "--config", str(CONFIG), "--model.quantize", "null", "--model.adapter", adapter, *options]) == 0
    folder = Path("run") / ("adapter" if adapter == "LoRA" else "model")
    model = RewardModel(str(folder))
    model.load(LOAD, torch.device("cpu"))
    scores = model.scores(batch)
    assert scores.shape == (2,)
    if adapter == "LoRA":
        from peft import PeftModel

        base = AutoModelForCausalLM.from_pretrained(str(EMBEDDED), dtype=torch.float32)
        plain = PeftModel.from_pretrained(base, str(folder)).merge_and_unload()
    else:
        plain, told = AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32, output_loading_info=True)
        assert not told["unexpected_keys"]
    with torch.no_grad():
        expected = ValueHead.load(folder)(Policy(plain, plain).hidden(batch, batch.ends))
    torch.testing.assert_close(scores, expected, atol=1e-4, rtol=1e-4)


def test_a_folder_without_a_head_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"value_head\.safetensors"):
        RewardModel(str(tmp_path)).load(LOAD, torch.device("cpu"))
