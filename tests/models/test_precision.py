"""The dtype weights have and the dtype they compute in, through a real trainer."""

from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader
from transformers import LlamaConfig, LlamaForCausalLM

from ltune.errors import UsageError
from ltune.models.adapters import LoRA, trainable_state
from ltune.models.precision import TruePrecision, compute_dtype, warn_if_slow, weights_dtype

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


@pytest.mark.parametrize(
    ("precision", "compute", "frozen", "trained"),
    [
        (None, FP32, FP32, FP32),
        (32, FP32, FP32, FP32),
        ("32-true", FP32, FP32, FP32),
        ("bf16-true", BF16, BF16, BF16),
        ("bf16-mixed", BF16, BF16, FP32),
        ("bf16", BF16, BF16, FP32),
        ("16-true", FP16, FP16, FP16),
        ("16-mixed", FP16, FP16, FP32),
        (16, FP16, FP16, FP32),
    ],
)
def test_dtypes(precision: str | int | None, compute: torch.dtype, frozen: torch.dtype, trained: torch.dtype) -> None:
    assert compute_dtype(precision) is compute
    assert weights_dtype(precision, frozen=True) is frozen
    assert weights_dtype(precision, frozen=False) is trained


def test_other_precisions_are_refused() -> None:
    with pytest.raises(UsageError, match="64-true"):
        weights_dtype("64-true", frozen=True)
    with pytest.raises(UsageError, match="bf16-mixed"):
        TruePrecision("bf16-mixed")  # type: ignore[arg-type]


class Tuner(pl.LightningModule):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(0)
        config = LlamaConfig(vocab_size=128, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
        self.model = LoRA(rank=4).apply(LlamaForCausalLM(config).to(dtype)).train()
        self.seen: set[torch.dtype] = set()

    def training_step(self, batch: torch.Tensor, _: int) -> torch.Tensor:
        output = self.model(input_ids=batch, labels=batch, use_cache=False)
        self.seen.add(output.logits.dtype)
        assert torch.get_default_dtype() is FP32
        return output.loss

    def validation_step(self, batch: torch.Tensor, _: int) -> None:
        self.seen.add(self.model(input_ids=batch, use_cache=False).logits.dtype)

    predict_step = test_step = validation_step

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(trainable_state(self.model).values(), lr=1e-3)


def train(precision: str, dtype: torch.dtype, folder: Path) -> tuple[Tuner, pl.Trainer]:
    tuner = Tuner(dtype)
    trainer = pl.Trainer(
        max_steps=1,
        accelerator="cpu",
        plugins=[TruePrecision(precision)],  # type: ignore[arg-type]
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    rows = DataLoader(torch.arange(2, 34).view(2, 16), batch_size=2)
    trainer.fit(tuner, rows, rows)
    trainer.test(tuner, rows, verbose=False)
    trainer.predict(tuner, rows)
    return tuner, trainer


@pytest.mark.parametrize(("precision", "dtype"), [("bf16-true", BF16), ("16-true", FP16)])
def test_adapter_weights_are_updated_in_float32_and_compute_in_16_bits(precision: str, dtype: torch.dtype, tmp_path: Path) -> None:
    tuner, trainer = train(precision, dtype, tmp_path)
    assert trainer.precision == precision
    assert tuner.seen == {dtype}
    for name, weight in trainable_state(tuner.model).items():
        assert weight.dtype is FP32
        rounded = weight.to(dtype).float()
        assert "lora_A" not in name or (rounded != weight).float().mean() > 0.9  # lora_B steps from 0 by the learning rate, all alike
    frozen = [weight for weight in tuner.model.parameters() if not weight.requires_grad]
    assert {weight.dtype for weight in frozen} == {dtype}
    assert torch.get_default_dtype() is FP32


def test_32_true_is_plain_float32(tmp_path: Path) -> None:
    tuner, trainer = train("32-true", FP32, tmp_path)
    assert trainer.precision == "32-true"
    assert tuner.seen == {FP32}


@pytest.mark.parametrize(
    ("precision", "device", "known", "says"),
    [
        ("bf16-true", "cpu", {"avx2": True, "avx512_bf16": False}, True),
        ("bf16-mixed", "cpu", {"avx2": True, "amx_bf16": False}, True),
        ("bf16-true", "cpu", {"avx2": True, "avx512_bf16": True, "amx_bf16": False}, False),
        ("bf16-true", "cpu", {"neon": True, "bf16": True}, False),
        ("bf16-true", "cpu", {}, False),
        ("32-true", "cpu", {"avx2": True}, False),
        (None, "cpu", {"avx2": True}, False),
        ("bf16-true", "cuda", {"avx2": True}, False),
    ],
)
def test_a_processor_without_bfloat16_is_told_of(precision, device, known, says, monkeypatch, caplog):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known, raising=False)
    warn_if_slow(precision, torch.device(device))
    assert ("32-true is several times as fast" in caplog.text) is says
