"""Numbers that cannot be meant, whatever else is set: told with their line, before anything heavy is imported. Rules between options are
in checks.py; what a class's own constructor refuses is there."""

LEAST = {  # and the largest, where there is one
    "seed_everything": (0, 2**32 - 1),
    "data.processes": (1, None),
    "data.workers": (0, None),
    "checkpoint.every": (1, None),
    "checkpoint.keep": (1, None),
    "trainer.max_epochs": (-1, None),
    "trainer.min_epochs": (0, None),
    "trainer.max_steps": (-1, None),
    "trainer.min_steps": (0, None),
    "trainer.num_nodes": (1, None),
    "trainer.accumulate_grad_batches": (1, None),
    "trainer.gradient_clip_val": (0, None),
    "trainer.log_every_n_steps": (0, None),
    "trainer.val_check_interval": (0, None),
    "trainer.check_val_every_n_epoch": (1, None),
    "trainer.num_sanity_val_steps": (-1, None),
    "trainer.limit_train_batches": (0, None),
    "trainer.limit_val_batches": (0, None),
    "trainer.limit_test_batches": (0, None),
    "trainer.limit_predict_batches": (0, None),
}
UNLIMITED = "; -1: no limit"


def out_of_range(path: str, text: str) -> str | None:
    """What is wrong with a number at a dotted path; None where it is sound, or no number."""
    if path == "run":
        return None if text.strip() else "run is the folder that the run is written to, got nothing; for example  runs/mine"
    try:
        number = float(text)
    except ValueError:
        return None
    least, most = LEAST.get(path, (None, None))
    if number != number or number in (float("inf"), float("-inf")):
        return f"{path} wants a number, got {text!r}"
    if least is not None and number < least:
        return f"{path} is at least {least}{UNLIMITED if least == -1 else ''}, got {text}"
    return f"{path} is at most {most}, got {text}" if most is not None and number > most else None
