"""What a run leaves behind: folders that plain peft and transformers load, the same bytes each time."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import PeftModel
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from ltune.models.adapters import Freeze, Full, LoRA, trainable_state
from ltune.models.card import Card, redact, render_card
from ltune.models.load import load_model
from ltune.models.quantize import NF4
from ltune.models.save import rewrite_config, save_result

IDS = torch.arange(2, 18)[None]
TEMPLATE = "{% for message in messages %}{% generation %}{{ message.content }}{% endgeneration %}{% endfor %}\n"
CARD = Card(base_model="someone/base", revision="v1", datasets=["identity"], metrics={"train/loss": 0.5})


def llama() -> PreTrainedModel:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(vocab_size=128, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4))


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    backend = Tokenizer(WordLevel({word: index for index, word in enumerate(("<s>", "</s>", "hello"))}, unk_token="hello"))
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", pad_token="</s>", chat_template="old")


def trained(model: Any) -> Any:
    """As if trained: every trained weight moved."""
    torch.manual_seed(3)
    with torch.no_grad():
        for weight in trainable_state(model).values():
            weight += 0.05 * torch.randn_like(weight)
    return model.eval()


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits


def hashes(folder: Path) -> dict[str, str]:
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize(
    "adapter",
    [LoRA(), LoRA(rslora=True, dora=True, targets=["q_proj"]), LoRA(modules_to_save=["embed_tokens", "lm_head"])],
    ids=["lora", "dora", "modules_to_save"],
)
def test_plain_peft_loads_an_adapter(adapter: LoRA, tokenizer: Any, tmp_path: Path) -> None:
    model = trained(adapter.apply(llama()))
    save_result(model, tokenizer, TEMPLATE, tmp_path, CARD)
    loaded = PeftModel.from_pretrained(llama(), tmp_path).eval()
    assert torch.equal(logits(loaded), logits(model))
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"], config["inference_mode"]) == ("someone/base", "v1", True)
    assert config["target_modules"] == sorted(config["target_modules"])


def test_the_folder_is_complete(tokenizer: Any, tmp_path: Path) -> None:
    save_result(trained(LoRA().apply(llama())), tokenizer, TEMPLATE, tmp_path, CARD)
    expected = {
        "adapter_config.json",
        "adapter_model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "README.md",
    }
    assert {file.name for file in tmp_path.iterdir()} == expected
    assert (tmp_path / "chat_template.jinja").read_text() == TEMPLATE
    assert AutoTokenizer.from_pretrained(tmp_path).chat_template.strip() == TEMPLATE.strip()
    assert tokenizer.chat_template == "old"
    assert str(tmp_path) not in "".join(file.read_text() for file in tmp_path.iterdir() if file.suffix != ".safetensors")


def test_without_a_template_the_tokenizers_own_stays(tokenizer: Any, tmp_path: Path) -> None:
    save_result(trained(LoRA().apply(llama())), tokenizer, None, tmp_path, CARD)
    assert AutoTokenizer.from_pretrained(tmp_path).chat_template == "old"


def test_four_bit_adapters_load_onto_a_four_bit_base(tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    llama().save_pretrained(tmp_path / "base")

    def base() -> PreTrainedModel:
        return load_model(str(tmp_path / "base"), dtype=torch.float32, quantize=NF4())

    model = trained(LoRA().apply(base()))
    save_result(model, tokenizer, TEMPLATE, tmp_path / "out", CARD)
    assert torch.equal(logits(PeftModel.from_pretrained(base(), tmp_path / "out").eval()), logits(model))


@pytest.mark.parametrize("rslora", [False, True])
def test_pissa_is_saved_as_a_lora_of_the_unchanged_base(rslora: bool, tokenizer: Any, tmp_path: Path) -> None:
    model = trained(LoRA(rank=4, pissa=True, rslora=rslora).apply(llama()))
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    save_result(model, tokenizer, TEMPLATE, tmp_path, CARD)
    loaded = PeftModel.from_pretrained(llama(), tmp_path).eval()
    assert loaded.peft_config["default"].r == 8
    assert loaded.peft_config["default"].init_lora_weights is True
    assert torch.allclose(logits(loaded), logits(model), atol=1e-5)
    assert not torch.allclose(logits(llama()), logits(model), atol=1e-2)
    assert not [file for file in tmp_path.iterdir() if file.is_dir()]
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert len(trainable_state(model)) == 28
    assert model.peft_config["default"].r == 4


@pytest.mark.parametrize("adapter", [Full(), Freeze(layers=1)], ids=["full", "freeze"])
def test_whole_weights_become_a_transformers_folder(adapter: Any, tokenizer: Any, tmp_path: Path) -> None:
    model = llama()
    model.config.use_cache = False
    model = trained(adapter.apply(model))
    save_result(model, tokenizer, TEMPLATE, tmp_path, CARD)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(logits(loaded), logits(model))
    assert (loaded.config.use_cache, model.config.use_cache) == (True, False)
    assert not list(tmp_path.glob("*.bin"))


@pytest.mark.parametrize("adapter", [LoRA(), LoRA(pissa=True), Full()], ids=["lora", "pissa", "full"])
def test_the_same_weights_give_the_same_bytes(adapter: Any, tokenizer: Any, tmp_path: Path) -> None:
    model = trained(adapter.apply(llama()))
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        save_result(model, tokenizer, TEMPLATE, tmp_path / name, CARD)
    assert len(hashes(tmp_path / "one")) >= 6
    assert hashes(tmp_path / "one") == hashes(tmp_path / "two")


def test_the_order_of_targets_does_not_show(tmp_path: Path) -> None:
    """PEFT keeps them in a set, whose order follows the process's hash seed."""
    names = ["up_proj", "q_proj", "v_proj"]
    for name, order in (("one", names), ("two", names[::-1])):
        (tmp_path / name).write_text(json.dumps({"target_modules": order, "exclude_modules": None, "r": 8}))
        rewrite_config(tmp_path / name, revision=None)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_adapter_files_are_safetensors_in_float32(tokenizer: Any, tmp_path: Path) -> None:
    save_result(trained(LoRA().apply(llama().to(torch.bfloat16))), tokenizer, TEMPLATE, tmp_path, CARD)
    stored = load_file(tmp_path / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float32}
    assert "base_model.model.model.layers.0.mlp.up_proj.lora_A.weight" in stored


def test_the_card_tells_what_was_done() -> None:
    card = Card(
        base_model="tiny",
        datasets=["identity", "rows.jsonl"],
        rows=591,
        settings={"rank": 8, "note": "a|b", "hub.token": "abc", "max_new_tokens": 256},
        metrics={"train/loss": 0.123456789},
        curve=[(step, 1 / step) for step in range(1, 101)],
        command="ltune fit -c a.yaml --hub.token=hf_abcdefghijkl",
    )
    text = render_card(card, adapter=True)
    head = yaml.safe_load(text.split("---")[1])
    assert (head["base_model"], head["library_name"], head["datasets"]) == ("tiny", "peft", ["identity", "rows.jsonl"])
    for part in (
        "identity, rows.jsonl (591 rows)",
        "| rank | 8 |",
        "a\\|b",
        "| train/loss | 0.123457 |",
        "| 1 | 1.0000 |",
        "| 100 | 0.0100 |",
    ):
        assert part in text
    assert sum(line.startswith("|") and line[2].isdigit() for line in text.splitlines()) == 12
    assert "hf_abc" not in text
    assert yaml.safe_load(render_card(card, adapter=False).split("---")[1])["library_name"] == "transformers"


@pytest.mark.parametrize(
    "secret", ["hf_AbCdEfGhIjKl", "--api_key=s3cret", "--logger.token s3cret", "WANDB_API_KEY=s3cret", "password=s3cret"]
)
def test_secrets_are_blotted_out(secret: str) -> None:
    text = redact(f"ltune fit {secret} -c a.yaml")
    assert "s3cret" not in text
    assert "hf_Ab" not in text
    assert text.endswith(" -c a.yaml")
