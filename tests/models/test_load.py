"""What loads, in which dtype, and what is refused before anything is trained."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from ltune.errors import UsageError
from ltune.models.adapters import LoRA, trainable_state
from ltune.models.load import enable_gradient_checkpointing, load_model
from ltune.models.quantize import FP4, NF4, Int8, is_quantized

IDS = torch.arange(2, 18)[None]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=128, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def edit_config(folder: Path, **changes: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_a_folder_loads_bit_for_bit(folder: Path) -> None:
    model = load_model(str(folder), dtype=torch.float32)
    assert torch.equal(
        model.model.layers[1].mlp.up_proj.weight, load_file(folder / "model.safetensors")["model.layers.1.mlp.up_proj.weight"]
    )
    assert model.config.use_cache is False
    assert not is_quantized(model)


def test_the_dtype_is_the_one_asked_for(folder: Path) -> None:
    model = load_model(str(folder), dtype=torch.bfloat16, attention="eager")
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    assert model.config._attn_implementation == "eager"


def test_tied_weights_are_not_missing(tmp_path: Path) -> None:
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, tie_word_embeddings=True
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    model = load_model(str(tmp_path), dtype=torch.float32)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_a_four_bit_checkpoint_is_kept_and_computes_in_the_runs_dtype(folder: Path, tmp_path: Path) -> None:
    made = load_model(str(folder), dtype=torch.bfloat16, quantize=NF4())
    made.save_pretrained(tmp_path / "four")
    for quantize in (None, NF4(double_quantization=False)):
        model = load_model(str(tmp_path / "four"), dtype=torch.float32, quantize=quantize)
        layer = model.model.layers[0].self_attn.q_proj
        assert type(layer).__name__ == "Linear4bit"
        assert (layer.compute_dtype, layer.support_avx512bf16_for_cpu) == (torch.float32, False)
        assert torch.equal(layer.weight.data, made.model.layers[0].self_attn.q_proj.weight.data)
    for other in (FP4(), Int8()):
        with pytest.raises(UsageError, match=r"stored quantized \(nf4\), so it cannot become"):
            load_model(str(tmp_path / "four"), dtype=torch.float32, quantize=other)


def test_missing_files_are_named(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(UsageError, match=r"has no weights.\nMissing: model.safetensors"):
        load_model(str(folder), dtype=torch.float32)
    (folder / "config.json").unlink()
    with pytest.raises(UsageError, match="has no config.json"):
        load_model(str(folder), dtype=torch.float32)


def test_pickled_weights_are_refused(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UsageError, match="only pickled weights"):
        load_model(str(folder), dtype=torch.float32)


def test_a_weight_missing_in_the_file_is_refused(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UsageError, match=r"lacks 1 weights of a LlamaForCausalLM, such as model.layers.1.mlp.up_proj.weight"):
        load_model(str(folder), dtype=torch.float32)


def test_a_truncated_file_is_refused(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UsageError, match="cannot get the weights"):
        load_model(str(folder), dtype=torch.float32)


def test_an_adapter_is_not_a_model(folder: Path, tmp_path: Path) -> None:
    LoRA().apply(load_model(str(folder), dtype=torch.float32)).save_pretrained(tmp_path / "adapter")
    with pytest.raises(UsageError, match="is an adapter"):
        load_model(str(tmp_path / "adapter"), dtype=torch.float32)


def test_unknown_attention_is_refused(folder: Path) -> None:
    with pytest.raises(UsageError, match="no_such_attention"):
        load_model(str(folder), dtype=torch.float32, attention="no_such_attention")


def test_a_repository_that_cannot_be_had_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # what the variable sets, which is read at import
    with pytest.raises(UsageError, match="configuration of repository nobody-at-all/no-such-model, revision main"):
        load_model("nobody-at-all/no-such-model", dtype=torch.float32)


def test_code_of_the_models_own_never_runs_unasked(folder: Path) -> None:
    (folder / "code.py").write_text("raise SystemExit('this ran')")
    edit_config(folder, model_type="mine", auto_map={"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"})
    with pytest.raises(UsageError, match=r"needs code from its repository \(AutoConfig, AutoModelForCausalLM\)"):
        load_model(str(folder), dtype=torch.float32)
    edit_config(folder, model_type="llama")  # a type that transformers has: its own code is used
    assert type(load_model(str(folder), dtype=torch.float32)) is LlamaForCausalLM


@pytest.mark.parametrize("before", [True, False])
def test_checkpointing_gives_the_same_gradients(folder: Path, before: bool) -> None:
    def gradients(checkpointing: bool) -> list[torch.Tensor]:
        model = load_model(str(folder), dtype=torch.float32, quantize=NF4())
        if checkpointing and before:
            enable_gradient_checkpointing(model)
        torch.manual_seed(0)
        adapted = LoRA(rank=2).apply(model).train()
        if checkpointing and not before:
            enable_gradient_checkpointing(adapted)
        assert any(layer.gradient_checkpointing for layer in model.model.layers) is checkpointing
        adapted(input_ids=IDS, labels=IDS).loss.backward()
        return [weight.grad for weight in trainable_state(adapted).values()]

    assert all(torch.equal(plain, recomputed) for plain, recomputed in zip(gradients(False), gradients(True), strict=True))
