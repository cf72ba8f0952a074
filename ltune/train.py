"""fit, validate, test and predict: LightningCLI's, with our links, defaults and checks. The other commands never come here."""

import logging
import sys
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import Callback
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from ltune.callbacks.checkpoint import Checkpoints
from ltune.callbacks.learning_rate import LearningRate
from ltune.callbacks.loss_plot import LossPlot
from ltune.callbacks.metrics_file import JSONLines, read_metrics
from ltune.callbacks.predictions import PredictionWriter
from ltune.callbacks.progress import Progress
from ltune.callbacks.step_numbers import StepNumbers
from ltune.callbacks.stop import GracefulStop
from ltune.callbacks.tensorboard import TensorBoard
from ltune.callbacks.throughput import Throughput
from ltune.callbacks.train_metrics import TrainMetrics
from ltune.checkpoints.io import SafetensorsIO
from ltune.checkpoints.publish import other_versions, publish, read_manifest, sweep, write_atomically
from ltune.checkpoints.run import Finished, RunFolder, settings_of
from ltune.checkpoints.store import CheckpointStore
from ltune.checks import check
from ltune.data.contents import cache_folder, content_hash, hashes_in
from ltune.data.datamodule import ChatData
from ltune.errors import ResourceError, UsageError
from ltune.memory import in_one_piece
from ltune.messages import quiet
from ltune.models.card import Card
from ltune.models.precision import TruePrecision
from ltune.module import FineTuner
from ltune.schema import LINKS
from ltune.unobserved import Unprofiled
from ltune.usage import explain

log = logging.getLogger("ltune")

TRAINER_DEFAULTS = {
    "max_epochs": 3,
    "log_every_n_steps": 10,
    "use_distributed_sampler": False,  # the order of rows is ours
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
}


class Parser(LightningArgumentParser):
    """Says what is wrong in a few lines, instead of the whole usage."""

    def error(self, message: str, ex: Exception | None = None) -> None:  # type: ignore[override]
        raise UsageError(explain(message)) from ex


class TrainCLI(LightningCLI):
    """One command's parser, and the order of things around Lightning's loops."""

    command = "fit"
    default_run = "runs/fit"

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """The one command that was called: building each parser takes a second."""
        skip = {"model", "dataloaders", "train_dataloaders", "val_dataloaders", "datamodule"}
        skip |= {"weights_only", "return_predictions", "verbose"}
        return {TrainCLI.command: skip | ({"ckpt_path"} if TrainCLI.command == "fit" else set())}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The keys beside model, data and trainer."""
        parser.add_argument("--run", type=str, default=TrainCLI.default_run, help="The run folder; the same command again continues there.")
        parser.add_lightning_class_args(Checkpoints, "checkpoint")
        parser.add_argument("--resume.allow", type=list[str], default=[], help="Settings that may differ from those the run began with.")
        for target, source in LINKS.items():
            parser.link_arguments(source, target, apply_on="instantiate" if source.startswith("model.") else "parse")

    # -- before ---------------------------------------------------------------------------------------------------------------------

    def before_instantiate_classes(self) -> None:
        """Everything that can be refused without loading anything."""
        config = self.config[self.subcommand]
        if self.subcommand != "fit":
            self._take_result(config)
        self.resolved = resolved(self._parser(self.subcommand), config)
        check(self.resolved, str(self.subcommand))
        if self.subcommand == "fit":
            self.folder = RunFolder(config.run)
            self.settings = settings_of(self.resolved)
            changed = self.folder.refuse_changes(self.settings, None, None, config.resume.allow)
            changed |= self.folder.refuse_changes(self.settings, rehash(self.folder, config.data.cache), None, config.resume.allow)
            if self.folder.finished and not changed:
                raise Finished(self.folder)
            in_one_piece()

    def _take_result(self, config: Any) -> None:
        """``--ckpt_path RUN`` means the run's result, or its newest checkpoint while there is none."""
        if not config.ckpt_path:
            log.warning("no --ckpt_path: the adapter is the one that the configuration starts from, not a trained one")
            return
        path = Path(config.ckpt_path)
        if not path.is_dir():
            raise UsageError(f"--ckpt_path {path}: no such folder.\nGive a run folder, its adapter folder or one of its checkpoints.")
        if (path / "run.json").exists():
            result = next((path / name for name in ("adapter", "model") if (path / name).is_dir()), None)
            path = result or CheckpointStore(path / "checkpoints").newest_intact(log.warning) or path
        if (path / "adapter_config.json").exists():
            if not config.model.adapter.class_path.endswith(".LoRA"):
                raise UsageError(f"--ckpt_path {path} is a LoRA adapter, which this configuration does not have.\nSet  model.adapter: LoRA")
            config.model.adapter.init_args.init = str(path)
            config.ckpt_path = None
        elif (path / "config.json").exists():
            config.model.model = str(path)
            config.ckpt_path = None
        elif (path / "manifest.json").exists():
            config.ckpt_path = str(path)
        else:
            raise UsageError(
                f"--ckpt_path {path}: neither a result nor a checkpoint is in there.\nGive a run folder in which `ltune fit` has saved."
            )

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        """Our loggers, callbacks and plugins around what the YAML names."""
        config = self._get(self.config_init, "trainer")
        run = Path(self._get(self.config_init, "run"))
        if config["enable_progress_bar"] is False:
            self.trainer_defaults["callbacks"] = [one for one in self.trainer_defaults["callbacks"] if not isinstance(one, Progress)]
        plugins: list[Any] = [SafetensorsIO(), *as_list(config["plugins"])]
        if config["precision"] in ("bf16-true", "16-true"):
            plugins.append(TruePrecision(config["precision"]))
            kwargs["precision"] = None
        asked = config["logger"]
        loggers = [logger for logger in as_list(asked) if not isinstance(logger, bool | TensorBoard)]  # ours is put in below
        if self.subcommand == "fit" and asked is not False:
            loggers = [JSONLines(run), *loggers]
            if not any(isinstance(logger, TensorBoardLogger) for logger in loggers):
                loggers.append(TensorBoard(str(run)))
        # Lightning's batch is a whole step's rows, which the module divides; data.accumulate has the number
        kwargs |= {"logger": loggers or False, "plugins": plugins, "default_root_dir": str(run), "accumulate_grad_batches": 1}
        kwargs["profiler"] = config["profiler"] or Unprofiled()
        try:
            return super().instantiate_trainer(**kwargs)
        except MisconfigurationException as error:
            raise UsageError(f"trainer: {' '.join(str(error).split())[:400]}") from error

    # -- commands -------------------------------------------------------------------------------------------------------------------

    def fit(self, model: FineTuner, datamodule: ChatData, **kwargs: Any) -> None:
        """Train, from the newest intact checkpoint if there is one, and publish the result."""
        datamodule.prepare("fit")
        checkpoint = self._open_run(datamodule)
        self.trainer.fit(model, datamodule=datamodule, ckpt_path=checkpoint)
        self._publish_result(model, datamodule)

    def _open_run(self, datamodule: ChatData) -> Path | None:
        """Refuse other data, sweep up after a killed process, write the record, find where to go on."""
        allow, world_size = self._get(self.config, "resume").allow, self.trainer.world_size
        self.folder.refuse_changes(self.settings, datamodule.sources, world_size, allow)
        store = CheckpointStore(self.folder.path / "checkpoints")
        if self.trainer.is_global_zero:
            self.folder.path.mkdir(parents=True, exist_ok=True)
            sweep(self.folder.path)
            sweep(store.folder)
            facts = {"command": " ".join(["ltune", *sys.argv[1:]])}
            self.folder.record(state="running", settings=self.settings, sources=datamodule.sources, world_size=world_size, **facts)
            write_atomically(self.folder.path / "config.yaml", yaml.safe_dump(self.resolved, sort_keys=False))
            datamodule.report(self.folder.path)
        newest = store.newest_intact(log.warning)
        step = read_manifest(newest)["step"] if newest else 0
        if newest:
            log.info("resuming %s after step %d", self.folder.path, step)
            if others := other_versions(newest):
                log.warning("another environment than at that step, so the run may end in other last bits: %s", others)
        for logger in self.trainer.loggers:  # what was logged after the checkpoint is logged again
            if isinstance(logger, JSONLines):
                logger.rewind(step)
            elif isinstance(logger, TensorBoard) and newest:
                logger.resume_after(step)
        return newest

    @rank_zero_only
    def _publish_result(self, model: FineTuner, datamodule: ChatData) -> None:
        result = self.folder.path / model.result_folder
        template = datamodule.template.source if datamodule.template else None
        with publish(result, extra={"step": self.trainer.global_step}) as stage:
            model.save_result(stage, template, self._card(model, datamodule))
        self.folder.finish(result=result.name, steps=self.trainer.global_step)
        print(f"{result.name}: {result}")
        print(f"chat:    ltune chat {self.folder.path}")
        print(f"curves:  tensorboard --logdir {self.folder.path}")

    def _card(self, model: FineTuner, datamodule: ChatData) -> Card:
        file = self.folder.path / "metrics.jsonl"
        logged = read_metrics(file) if file.exists() else []
        last: dict[str, float] = {name: line[name] for line in logged for name in ("train/loss", "val/loss") if line.get(name) is not None}
        return Card(
            base_model=model.name,
            revision=model.revision,
            datasets=[source["name"] for source in datamodule.sources],
            rows=len(datamodule.train_rows),
            settings={name: value for name, value in self.settings.items() if value not in (None, False, [])},
            metrics=last,
            curve=[(line["step"], line["train/loss"]) for line in logged if "train/loss" in line],
            command=" ".join(["ltune", *sys.argv[1:]]),
        )


def rehash(folder: RunFolder, cache: str | None) -> list[dict] | None:
    """The recorded source files with the hashes they have now; None where there is no record."""
    record = folder.read()
    if record is None:
        return None
    known = hashes_in(cache_folder(cache))
    return [
        {**source, "sha256": content_hash(Path(source["path"]), known) if Path(source["path"]).exists() else "gone"}
        for source in record["sources"]
    ]


def resolved(parser: LightningArgumentParser, config: Any) -> dict[str, Any]:
    """The whole configuration as plain data, every default written out; it runs again as it is."""
    return yaml.safe_load(parser.dump(config, skip_none=False, format="yaml", skip_validation=True))


def as_list(value: Any) -> list:
    """None: empty; a single one: a list of it."""
    return [] if value is None else value if isinstance(value, list) else [value]


def main(command: str, argv: list[str]) -> int:
    """Run one of LightningCLI's commands."""
    quiet()
    try:
        TrainCLI(FineTuner, ChatData, args=[command, *argv], **cli_options(command, argv))
    except Finished as done:
        print(done)
    except ValueError as error:  # jsonargparse wraps what a class's constructor refuses, where null is allowed too
        if isinstance(error.__cause__, UsageError):
            raise error.__cause__ from error
        raise
    except torch.OutOfMemoryError as error:
        raise ResourceError(
            f"the GPU's memory is full: {str(error).splitlines()[0][:300]}\n"
            "Lower data.batch_size (and raise trainer.accumulate_grad_batches alike), or data.max_length,\n"
            "or set  model.gradient_checkpointing: true"
        ) from error
    return 0


def cli_options(command: str, argv: list[str]) -> dict[str, Any]:
    """What LightningCLI is told besides the classes and the arguments."""
    TrainCLI.command = command
    TrainCLI.default_run = default_run(argv)
    return {
        "seed_everything_default": 42,
        "parser_class": Parser,
        "parser_kwargs": {"allow_abbrev": False, command: {"allow_abbrev": False}},
        "save_config_callback": None,
        "trainer_defaults": {**TRAINER_DEFAULTS, "callbacks": always_on(command)},
        "auto_configure_optimizers": False,
        "load_from_checkpoint_support": False,
    }


def always_on(command: str) -> list[Callback]:
    """The callbacks of a command, beside those that the YAML names; the display comes after what it displays."""
    if command == "fit":
        return [TrainMetrics(), LearningRate(), Throughput(), StepNumbers(), LossPlot(), GracefulStop(), Progress()]
    return [PredictionWriter(), Progress()] if command == "predict" else [Progress()]


def default_run(argv: list[str]) -> str:
    """runs/NAME, NAME being the first configuration file's."""
    for number, argument in enumerate(argv):
        if argument in ("-c", "--config") and number + 1 < len(argv):
            return f"runs/{Path(argv[number + 1]).stem}"
        if argument.startswith("--config="):
            return f"runs/{Path(argument[9:]).stem}"
    return "runs/fit"
