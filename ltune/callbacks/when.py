"""When a callback should act: after an optimizer step that is logged, which is the same on every rank."""

from lightning.pytorch import Trainer


def at_log_step(trainer: Trainer) -> bool:
    """In on_train_batch_end: whether the optimizer step just taken is logged: the first, and every log_every_n_steps-th.

    Lightning hands the metrics of the first to the loggers only if log_every_n_steps is 1; the progress display shows them.
    """
    every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
    step = trainer.global_step
    return every > 0 and (step == 1 or step % every == 0)
