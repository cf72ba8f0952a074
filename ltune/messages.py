"""What is said on the way: our own messages and real warnings only, of all ranks' the first one's. A user looks for the one line that
matters."""

import logging
import os
import sys
import warnings

from lightning.pytorch.utilities import rank_zero_only

LOUD = ("lightning", "lightning.pytorch", "lightning.fabric", "transformers", "httpx", "datasets", "bitsandbytes", "torch")


def quiet() -> None:
    """From here on."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr, force=True)
    logging.getLogger().handlers[0].addFilter(of_ranks)
    for name in LOUD:
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def of_ranks(record: logging.LogRecord) -> bool:
    """What all ranks have to say the first one says; a warning of another tells whose it is."""
    if rank := getattr(rank_zero_only, "rank", 0):  # Lightning's, known before its processes talk to each other
        record.msg = f"rank {rank}: {record.msg}"
    return not rank or record.levelno >= logging.WARNING
