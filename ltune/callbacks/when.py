"""When a callback should act: after an optimizer step, and after one that is logged. Both are the same on every rank."""

from lightning.pytorch import Trainer


def stepped(trainer: Trainer) -> bool:
    """In a training batch's hooks: whether this micro-batch is the one that finishes an optimizer step."""
    return not trainer.fit_loop._should_accumulate()


def at_log_step(trainer: Trainer) -> bool:
    """In on_train_batch_end: whether the optimizer step just taken is logged: the first, and every log_every_n_steps-th.

    Lightning hands the metrics of the first to the loggers only if log_every_n_steps is 1; the progress display shows them.
    """
    every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
    return every > 0 and stepped(trainer) and (trainer.global_step == 1 or trainer.global_step % every == 0)
