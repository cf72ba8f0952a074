"""The LightningModule: a (4-bit) model with an adapter, asked by an objective for a loss. It refuses to know which objective it is."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import SumMetric

from ltune.data.collate import Batch
from ltune.data.datamodule import ChatData
from ltune.data.rows import Row
from ltune.errors import NonFiniteError, UsageError
from ltune.generation.engine import generate
from ltune.generation.sampling import Sampling
from ltune.models.adapters import Adapter, LoRA, trainable_state
from ltune.models.attention import assert_rows_isolated
from ltune.models.card import Card
from ltune.models.load import enable_gradient_checkpointing, load_model
from ltune.models.precision import weights_dtype
from ltune.models.quantize import NF4, Quantizer
from ltune.models.save import save_result
from ltune.models.tokenizer import load_tokenizer
from ltune.objectives import SFT, Objective
from ltune.objectives.policy import Policy
from ltune.optim.groups import build_optimizer
from ltune.optim.schedules import Cosine, Schedule
from ltune.randomness import seed_step


@dataclass
class Part:
    """A micro-batch's share of the step's loss, and its rows."""

    loss: Tensor  # ()
    rows: tuple[int, ...]


class FineTuner(LightningModule):
    """Fine-tunes a causal language model.

    Args:
        model: Hub id, folder, or "tiny" (the embedded one).
        revision: Commit or branch of a hub model.
        trust_remote_code: "repository@revision" runs that repository's own code, and no other's; null: none.
        quantize: How the frozen weights are stored: NF4, FP4, Int8; null: in 16 or 32 bits.
        adapter: What is trained: LoRA, Freeze (some layers), Full.
        objective: The loss: SFT, Pretrain.
        optimizer: A torch optimizer's class and options.
        lora_plus_ratio: LoRA+: learning rate of the B matrices over that of A; null: the same.
        schedule: Of the learning rate: Cosine, Linear, Constant.
        attention: sdpa, eager, flash_attention_2 ...; null: transformers' choice.
        gradient_checkpointing: Compute activations again in the backward pass: less memory, about a third more time.
        sampling: How ``ltune predict`` generates.
        seed: Linked to seed_everything.
    """

    strict_loading = False  # a checkpoint holds the trained weights only

    def __init__(
        self,
        model: str = "tiny",
        revision: str | None = None,
        trust_remote_code: str | None = None,
        quantize: Quantizer | None = NF4(),  # noqa: B008 (stateless; jsonargparse shows it)
        adapter: Adapter = LoRA(),  # noqa: B008
        objective: Objective = SFT(),  # noqa: B008
        optimizer: OptimizerCallable = lambda p: torch.optim.AdamW(p, lr=5e-5, weight_decay=0.0),
        lora_plus_ratio: float | None = None,
        schedule: Schedule = Cosine(warmup=0.1),  # noqa: B008
        attention: str | None = None,
        gradient_checkpointing: bool = False,
        sampling: Sampling = Sampling(),  # noqa: B008
        seed: int = 42,
    ) -> None:
        super().__init__()
        self.name, self.revision, self.trust_remote_code = model, revision, trust_remote_code
        self.quantize, self.adapter, self.objective = quantize, adapter, objective
        self.optimizer, self.lora_plus_ratio, self.schedule = optimizer, lora_plus_ratio, schedule
        self.attention, self.gradient_checkpointing, self.sampling, self.seed = attention, gradient_checkpointing, sampling, seed
        self.tokenizer = load_tokenizer(model, revision=revision, trust_remote_code=trust_remote_code)
        self.model: Any = None  # loads in configure_model
        self.policy: Policy
        self.parts: list[Part] = []  # of the window under way
        self.step_loss = float("nan")  # of the last optimizer step
        self.grad_norm = float("nan")  # before clipping
        self.val_loss, self.val_tokens = SumMetric(), SumMetric()

    @property
    def rows(self) -> type[Row]:
        """What the data module must give."""
        return self.objective.rows

    @property
    def data(self) -> ChatData:
        """The data module beside it."""
        return self.trainer.datamodule  # type: ignore[attr-defined]

    # -- model --------------------------------------------------------------------------------------------------------------------

    def configure_model(self) -> None:
        """Load the weights, quantize, put the adapter on. Lightning calls it again when the module is used again."""
        if self.model is not None:
            return
        seed_step(self.seed)  # the adapter's initial weights depend on the seed alone
        base = load_model(
            self.name,
            dtype=weights_dtype(str(self.trainer.precision), frozen=self.adapter.freezes_base),
            quantize=self.quantize,
            attention=self.attention,
            revision=self.revision,
            trust_remote_code=self.trust_remote_code,
            device=self.trainer.strategy.root_device,
        )
        if self.gradient_checkpointing:
            enable_gradient_checkpointing(base)
        if self.data.layout == "flat":
            assert_rows_isolated(base)
        self.model = self.adapter.apply(base)
        self.model.train()  # from_pretrained and PEFT leave layers in eval mode, and Lightning does not change that
        self.policy = Policy(self.model, forward_of=base)

    def state_dict(self, *args, **kwargs) -> dict[str, Tensor]:  # type: ignore[override]
        """The trained weights only; asking a 4-bit layer for its state would repack it on some processors."""
        return {f"model.{name}": tensor for name, tensor in trainable_state(self.model).items()}

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        """Refuse a checkpoint of other weights than those trained here."""
        missing = self.state_dict().keys() ^ checkpoint["state_dict"].keys()
        if missing:
            raise UsageError(f"the checkpoint holds other weights than this configuration trains, for example {min(missing)}.")

    def configure_optimizers(self):
        """AdamW or another with LoRA+ groups; the schedule moves per optimizer step."""
        named = [(name, parameter) for name, parameter in self.model.named_parameters() if parameter.requires_grad]
        optimizer = build_optimizer(named, self.optimizer, self.lora_plus_ratio)
        total = int(self.trainer.estimated_stepping_batches)
        scheduler = LambdaLR(optimizer, lambda step: self.schedule.factor(step, total))
        self.group_options = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    # -- training -----------------------------------------------------------------------------------------------------------------

    def on_train_start(self) -> None:
        """A restored optimizer brings its old options; the configuration's hold, which are others only where --resume.allow let them be."""
        scheduler = self.lr_schedulers()
        assert isinstance(scheduler, LambdaLR)
        scheduler.base_lrs = [options["initial_lr"] for options in self.group_options]
        for group, options in zip(scheduler.optimizer.param_groups, self.group_options, strict=True):
            group.update(options)
            group["lr"] = options["initial_lr"] * scheduler.lr_lambdas[0](scheduler.last_epoch)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Dropout depends on the place in training alone."""
        assert batch.position is not None
        seed_step(self.seed, *batch.position, self.global_rank)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Ask the objective; undo what Lightning (accumulation) and DDP (ranks) will divide by, as the loss is a share already."""
        loss, _ = self.objective.loss(self.policy, batch)
        self.parts.append(Part(loss.detach(), batch.rows))
        return loss * (self.trainer.accumulate_grad_batches * self.trainer.world_size)

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None) -> None:
        """Once per optimizer step, right before it: the step's loss, the gradient's norm, and the stop if one is not finite."""
        parts, self.parts = self.parts, []
        total = torch.stack([part.loss for part in parts]).sum()
        self.step_loss = float(self.trainer.strategy.reduce(total, reduce_op="sum"))
        if not torch.isfinite(torch.tensor(self.step_loss)):
            raise NonFiniteError(self._non_finite("loss", self.step_loss, parts))
        trained = [parameter for group in optimizer.param_groups for parameter in group["params"] if parameter.grad is not None]
        self.grad_norm = float(torch.nn.utils.clip_grad_norm_(trained, gradient_clip_val or float("inf")))
        if not torch.isfinite(torch.tensor(self.grad_norm)) and self.trainer.precision != "16-mixed":  # there the scaler skips the step
            raise NonFiniteError(self._non_finite("gradient norm", self.grad_norm, parts))

    def _non_finite(self, what: str, value: float, parts: list[Part]) -> str:
        bad = [row for part in parts if not torch.isfinite(part.loss) for row in part.rows] or [row for part in parts for row in part.rows]
        places = ", ".join(self.data.train_rows.place(row) for row in bad[:8]) + (" ..." if len(bad) > 8 else "")
        return (
            f"the {what} is {value} at step {self.trainer.global_step + 1}; the optimizer step was not taken.\n"
            f"rows: {places or 'on another rank'}\n"
            "Look at these rows; a lower learning rate, a longer warm-up or bf16 instead of fp16 are the usual cures."
        )

    # -- validation and test ------------------------------------------------------------------------------------------------------

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Sum of token losses, and how many."""
        self.val_loss.update(self.objective.loss(self.policy, batch).loss * batch.window_tokens)
        self.val_tokens.update(len(batch.targets))

    def on_validation_epoch_end(self) -> None:
        """val/loss and val/perplexity, per trained token over all rows and ranks."""
        self._log_mean("val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """As in validation."""
        self.validation_step(batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        """test/loss and test/perplexity."""
        self._log_mean("test")

    def _log_mean(self, stage: str) -> None:
        loss = self.val_loss.compute() / self.val_tokens.compute().clamp(min=1)
        self.val_loss.reset()
        self.val_tokens.reset()
        self.log_dict({f"{stage}/loss": loss, f"{stage}/perplexity": loss.exp()}, rank_zero_only=True)
        if self.trainer.state.fn == "fit":
            self.log("step", float(self.trainer.global_step), rank_zero_only=True)

    # -- prediction ---------------------------------------------------------------------------------------------------------------

    def predict_step(self, batch: list, batch_idx: int) -> list[dict]:
        """Generate an answer for each prompt: {prompt, predict, label, row}."""
        decode = self.tokenizer.decode
        template = self.data.template
        assert template is not None, "prompts are conversations, and those have one"
        stop_ids = template.stop_ids(self.tokenizer)
        answers = generate(
            self.model, [prompt.ids for prompt in batch], self.sampling, stop_ids=stop_ids, pad_id=self.tokenizer.pad_token_id
        )
        return [
            {"prompt": decode(prompt.ids), "predict": decode(answer, skip_special_tokens=True), "label": prompt.label, "row": prompt.row}
            for prompt, answer in zip(batch, answers, strict=True)
        ]

    @property
    def result_folder(self) -> str:
        """What the result is called in the run folder: an adapter, or a whole model."""
        return "adapter" if self.adapter.freezes_base else "model"

    def save_result(self, folder: Path, template_source: str | None, card: Card) -> None:
        """Write the adapter (or the whole model, for Full and Freeze) with its tokenizer into ``folder``."""
        save_result(self.model, self.tokenizer, template_source, folder, card)
