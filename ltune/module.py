"""The LightningModule: a (4-bit) model with an adapter, asked by an objective for a loss. It refuses to know which objective it is."""

import gc
import logging
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from ltune.acting import answers_of
from ltune.data.collate import Step
from ltune.data.datamodule import ChatData
from ltune.data.rows import Row
from ltune.errors import UsageError
from ltune.evaluation import Evaluation
from ltune.generation.sampling import Sampling
from ltune.memory import Memory, Wanted
from ltune.models.adapters import Adapter, LoRA, trainable_state
from ltune.models.card import Card
from ltune.models.fast.ahead import compiled_meanwhile
from ltune.models.load import load_model
from ltune.models.outline import outline
from ltune.models.precision import compute_dtype, warn_if_slow, weights_dtype
from ltune.models.quantize import NF4, Quantizer
from ltune.models.save import save_result
from ltune.models.tokenizer import load_tokenizer
from ltune.objectives import SFT, Objective
from ltune.objectives.companions import Companions
from ltune.objectives.policy import Policy, policy_of
from ltune.optim.groups import build_optimizer, fuse
from ltune.optim.schedules import Cosine, Schedule
from ltune.randomness import seed_step
from ltune.steps import Steps
from ltune.unobserved import Module

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROMPTS = 4096  # that the quick way is given at once

log = logging.getLogger(__name__)


class FineTuner(Module):
    """Fine-tunes a causal language model.

    Args:
        model: Hub id, folder, or "tiny" (the embedded one).
        revision: Commit or branch of a hub model.
        trust_remote_code: "repository@revision" runs that repository's own code, and no other's; null: none.
        quantize: How the frozen weights are stored: NF4, FP4, Int8; null: in 16 or 32 bits.
        adapter: What is trained: LoRA, Freeze (some layers), Full.
        objective: The method: SFT, EAFT, Distill, Pretrain; Reward, DPO, SimPO, ORPO, CPO, KTO, BCO; PPO, GRPO, RLOO.
        optimizer: A torch optimizer's class and options.
        lora_plus_ratio: LoRA+: learning rate of the B matrices over that of A; null: the same.
        schedule: Of the learning rate: Cosine, Linear, Constant.
        attention: sdpa, eager, flash_attention_2 ...; null: transformers' choice.
        fast: Compute with ltune's own layers where they can serve the model, on CUDA; false: with transformers'.
        memory: How such layers use the GPU's memory. auto: the quickest way that fits; speed: the quickest; least: as little as can be.
        gradient_checkpointing: Compute activations again in the backward pass: less memory, about a third more time.
        sampling: How ``ltune predict`` generates.
        generation_tokens: Tokens that ``ltune predict`` keeps keys and values of at once in ltune's own layers; null: what fits.
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
        fast: bool = True,
        memory: Wanted = "auto",
        gradient_checkpointing: bool = False,
        sampling: Sampling = Sampling(),  # noqa: B008
        generation_tokens: int | None = None,
        seed: int = 42,
    ) -> None:
        super().__init__()
        self.name, self.revision, self.trust_remote_code = model, revision, trust_remote_code
        self.quantize, self.adapter, self.objective = quantize, adapter, objective
        self.optimizer, self.lora_plus_ratio, self.schedule = optimizer, lora_plus_ratio, schedule
        self.attention, self.fast, self.gradient_checkpointing = attention, fast, gradient_checkpointing
        self.memory = Memory(memory, again=gradient_checkpointing)
        if generation_tokens is not None and generation_tokens < 1:
            raise UsageError(f"model.generation_tokens: at least 1, or null for what fits, got {generation_tokens}")
        self.sampling, self.generation_tokens, self.seed = sampling, generation_tokens, seed
        self.tokenizer = load_tokenizer(model, revision=revision, trust_remote_code=trust_remote_code)
        objective.suit(self.tokenizer, self._load_another_tokenizer)
        self.model: Any = None  # loads in configure_model
        self.policy: Policy
        self.steps: Steps
        self.evaluation: Evaluation

    @property
    def rows(self) -> type[Row]:
        """What the data module must give."""
        return self.objective.rows

    @property
    def repeats(self) -> int:
        """How often the data module must give each window."""
        return self.objective.repeats

    @property
    def objective_name(self) -> str:
        """As the configuration says it."""
        return f"model.objective: {type(self.objective).__name__}"

    @property
    def data(self) -> ChatData:
        """The data module beside it."""
        return self.trainer.datamodule  # type: ignore[attr-defined]

    # -- model --------------------------------------------------------------------------------------------------------------------

    def configure_model(self) -> None:
        """Load the weights, quantize, put the adapter on. Lightning calls it again when the module is used again."""
        if self.model is not None:
            return
        precision, device, flat = str(self.trainer.precision), self.trainer.strategy.root_device, self.data.layout == "flat"
        warn_if_slow(precision, device)
        wanted: dict[str, Any] = {
            "dtype": weights_dtype(precision, frozen=self.adapter.freezes_base),
            "quantize": self.quantize,
            "attention": self.attention,
            "revision": self.revision,
            "trust_remote_code": self.trust_remote_code,
        }
        with self._kernels_meanwhile(wanted, device):
            base = load_model(self.name, **wanted, device=device, sparing=self.memory.wanted == "least")
        seed_step(self.seed)  # the adapter's initial weights depend on the seed alone
        self.model = self.adapter.apply(base)
        self.model.train()  # from_pretrained and PEFT leave layers in eval mode, and Lightning does not change that
        self.policy = policy_of(self.model, base, precision, flat, self.fast, self.gradient_checkpointing)
        self.memory.fast = self.policy.fast
        self.data.prompts_at_once = PROMPTS if self.policy.fast is not None else None
        self.steps = Steps(self)
        trusted = self.name, self.trust_remote_code
        self.objective.extend(self.model, Companions(precision, device, self.attention, flat, self.fast, trusted))
        if device.type == "cuda":
            now, most = (held(device) / 2**30 for held in (torch.cuda.memory_allocated, torch.cuda.max_memory_allocated))
            log.info("loaded: %.2f GiB of the GPU's memory, %.2f while loading", now, most)

    def _kernels_meanwhile(self, wanted: dict[str, Any], device: torch.device) -> AbstractContextManager[None]:
        """Those of the steps to come are compiled."""
        if not (self.fast and device.type == "cuda" and self.data.layout == "flat" and self.trainer.state.fn == "fit"):
            return nullcontext()
        outlined = partial(outline, self.name, **wanted, adapter=self.adapter, layers=2)  # the last layer differs
        likely = partial(self.memory.likely, tokens=self.data.heaviest_step.tokens)
        return compiled_meanwhile(outlined, compute_dtype(str(self.trainer.precision)), likely, device)

    def _load_another_tokenizer(self, model: str, revision: str | None = None) -> "PreTrainedTokenizerBase":
        return load_tokenizer(model, revision=revision, trust_remote_code=self.trust_remote_code if model == self.name else None)

    def cpu(self) -> "FineTuner":
        """Nothing: Lightning sends a model to the host when a run is over, which takes seconds, and the process ends then."""
        return self

    def state_dict(self, *args, **kwargs) -> dict[str, Tensor]:  # type: ignore[override]
        """The trained weights only; asking a 4-bit layer for its state would repack it on some processors."""
        return {f"model.{name}": tensor for name, tensor in trainable_state(self.model).items()}

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        """Refuse a checkpoint of other weights than those trained here."""
        missing = self.state_dict().keys() ^ checkpoint["state_dict"].keys()
        if missing:
            raise UsageError(f"the checkpoint holds other weights than this configuration trains, for example {min(missing)}.")
        self.memory.restore(checkpoint.get("memory"))
        self.objective.load_state_dict(checkpoint.get("objective", {}))

    def configure_optimizers(self):
        """AdamW or another with LoRA+ groups; the schedule moves per optimizer step."""
        named = [(name, parameter) for name, parameter in self.model.named_parameters() if parameter.requires_grad]
        optimizer = build_optimizer(named, self.optimizer, self.lora_plus_ratio)
        if self.device.type in ("cuda", "cpu") and self.trainer.precision != "16-mixed":  # whose scaler must see gradients before clipping
            fuse(optimizer)
        if (quick := self.policy.fast) is not None:
            optimizer.register_step_post_hook(lambda *_: quick.refresh())
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
        if self.device.type == "cuda" or self.memory.fast is not None:
            self.steps.settle_memory(self.data.heaviest_step, scheduler.optimizer)
        gc.collect()
        gc.freeze()  # a collection that walks all that is there takes longer than a step

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Optimizer) -> None:
        """Lightning's turn comes after training_step, which has gradients by then."""

    def training_step(self, step: Step, batch_idx: int) -> Tensor:
        """All micro-batches of an optimizer step, forward and backward."""
        return self.steps.accumulate(step, self.trainer.optimizers[0])

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None) -> None:
        """Once per optimizer step, right before it."""
        self.steps.end(optimizer, gradient_clip_val)

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        """Nothing of a step that was not taken; and the setting, whose micro-batches round in their own way."""
        self.steps.check()
        checkpoint["memory"] = self.memory.state()
        checkpoint["objective"] = self.objective.state_dict()

    def on_train_end(self) -> None:
        """The last step too."""
        self.steps.check()
        gc.unfreeze()

    # -- validation and test ------------------------------------------------------------------------------------------------------

    def on_validation_start(self) -> None:
        """Begin the sums."""
        self.evaluation = Evaluation(self.data.val_names, self.objective, self.device)

    def on_test_start(self) -> None:
        """As in validation."""
        self.evaluation = Evaluation(self.data.test_names, self.objective, self.device)

    def validation_step(self, step: Step, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Losses and metrics, and of how many tokens or rows."""
        for batch in self.steps.collect(step).batches():
            loss, metrics = self.objective.loss(self.policy, batch.tensors(self.device))
            self.evaluation.add(loss, metrics, *self.objective.counted(batch), dataloader_idx)

    def on_validation_epoch_end(self) -> None:
        """val/loss, what follows from it, and the objective's metrics."""
        self._log_evaluation("val")

    def test_step(self, step: Step, batch_idx: int, dataloader_idx: int = 0) -> None:
        """As in validation."""
        self.validation_step(step, batch_idx, dataloader_idx)

    def on_test_epoch_end(self) -> None:
        """As in validation, as test/..."""
        self._log_evaluation("test")

    def _log_evaluation(self, stage: str) -> None:
        self.log_dict(self.evaluation.results(stage, self.steps.add_ranks), rank_zero_only=True)
        if self.trainer.state.fn == "fit":
            self.log("step", float(self.trainer.global_step), rank_zero_only=True)

    # -- prediction ---------------------------------------------------------------------------------------------------------------

    def on_predict_start(self) -> None:
        """The quick way, where there is one."""
        self.answers = answers_of(self, self.sampling, self.data.batch_size)

    def on_predict_end(self) -> None:
        """How fast it was."""
        log.info("%s", self.answers)

    def predict_step(self, batch: list, batch_idx: int) -> list[dict]:
        """Generate an answer for each prompt: {prompt, predict, label, row}."""
        decode = self.tokenizer.decode
        answers = self.answers.to([prompt.ids for prompt in batch], seeds=[(self.seed, prompt.row) for prompt in batch])
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
        self.objective.save(folder)
