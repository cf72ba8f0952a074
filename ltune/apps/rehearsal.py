"""What `ltune fit` does before it loads weights: the same parser, checks, classes and tokenised rows. No run folder is made."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Trainer

from ltune import checks
from ltune.checkpoints.run import RunFolder, settings_of
from ltune.data.datamodule import ChatData
from ltune.errors import UsageError
from ltune.module import FineTuner
from ltune.train import TrainCLI, cli_options, rehash, resolved

# What depends on the machine that trains, which may be another one
MACHINE = (checks.device_is_there, checks.precision_runs_there)


class Rehearsal(TrainCLI):
    """A configuration as `ltune fit` reads it. What is built of it, is built when it is asked for.

    Args:
        argv: The arguments of `ltune fit`.
        with_trainer: Whether ``build_trainer`` will be called, which needs the machine that trains.
    """

    def __init__(self, argv: list[str], with_trainer: bool = False) -> None:
        self.with_trainer = with_trainer
        self.world_size: int | None = None  # known with the trainer
        super().__init__(FineTuner, ChatData, args=["fit", *argv], **cli_options("fit", argv))

    def before_instantiate_classes(self) -> None:
        """Only what the configuration says, every default written out."""
        self.asked = self.config["fit"]
        self.resolved = resolved(self._parser("fit"), self.asked)

    def instantiate_classes(self) -> None:
        """Later; see ``build``."""

    def _run_subcommand(self, subcommand: str) -> None:
        """Nothing is trained."""

    # -- steps ----------------------------------------------------------------------------------------------------------------------

    def check(self, machine: bool) -> None:
        """The rules between options.

        Args:
            machine: Also those about this machine, which need not be the one that trains, and about the run folder.

        Raises:
            UsageError: With every problem.
        """
        if machine:
            checks.check(self.resolved, "fit")
            return
        model, data, trainer = self.resolved["model"], self.resolved["data"], self.resolved["trainer"]
        rules = [rule for rule in (*checks.RULES, *checks.FIT_RULES) if rule not in MACHINE]
        if problems := [problem for rule in rules for problem in rule(model, data, trainer)]:
            raise UsageError(checks.as_message(problems))

    def build(self) -> None:
        """The model without its weights, and the data module; with them what the YAML names for the trainer, if that is to be built."""
        config = self.config.clone()
        if not self.with_trainer:
            for key in ("callbacks", "logger", "plugins", "profiler", "strategy"):
                config["fit"]["trainer"][key] = None
        self.config_init = self.parser.instantiate_classes(config)
        self.model, self.datamodule = self._get(self.config_init, "model"), self._get(self.config_init, "data")

    def build_trainer(self) -> Trainer:
        """As `ltune fit` does; it writes nothing until it is run."""
        made = self.instantiate_trainer()
        self.world_size = made.world_size
        return made

    def prepare(self) -> None:
        """Tokenise the rows, or find them tokenised: the cache is that of `ltune fit`."""
        self.datamodule.prepare("fit")

    @property
    def report(self) -> dict[str, Any]:
        """Of the training data sets, as `ltune fit` writes it into data_report.json."""
        return self.datamodule.prepared["all"].report

    @property
    def held_out(self) -> int:
        """Rows of these that validate."""
        data = self.datamodule
        return len(data.val_rows) if data.val_rows is not None and not data.val_datasets else 0

    def run_folder(self) -> tuple[RunFolder, bool]:
        """The run folder, and whether it holds a run with other settings or data that are allowed to differ.

        Raises:
            UsageError: They are not.
        """
        folder, settings = RunFolder(self.asked.run), settings_of(self.resolved)
        data = getattr(self, "datamodule", None)
        sources = data.sources if data is not None and data.prepared else rehash(folder, self.asked.data.cache)
        return folder, folder.refuse_changes(settings, sources, self.world_size, self.asked.resume.allow)
