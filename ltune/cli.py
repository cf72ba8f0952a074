"""The table of commands. Imports nothing heavy: help and usage errors answer at once."""

import atexit
import difflib
import gc
import importlib
import os
import signal
import sys
from dataclasses import dataclass

from ltune.errors import LtuneError, UsageError
from ltune.importing import importing


@dataclass(frozen=True)
class Command:
    """Where a command lives, and what it is for."""

    module: str
    about: str
    trains: bool = False  # LightningCLI's: takes --config and the options of model, data and trainer


COMMANDS = {
    "fit": Command("ltune.train", "train; the same command again goes on where it was", trains=True),
    "validate": Command("ltune.train", "loss on the validation rows", trains=True),
    "test": Command("ltune.train", "loss on the test rows", trains=True),
    "predict": Command("ltune.train", "answer the rows, with scores; --ckpt_path RUN", trains=True),
    "preview": Command("ltune.apps.preview", "training rows as they will be trained, and the report of all of them"),
    "plan": Command("ltune.apps.plan", "memory that a run needs, and what to change where there is too little"),
    "check": Command("ltune.apps.check", "all that can be found wrong before training, on one page"),
    "chat": Command("ltune.apps.chat", "talk with a run, an adapter or a model"),
    "templates": Command("ltune.apps.templates", "list the chat templates, or show what one makes of a conversation"),
    "import": Command("ltune.apps.import_config", "turn a LLaMA-Factory configuration into one of ours"),
    "version": Command("ltune.apps.version", "versions of ltune and of what it stands on"),
}


def usage() -> str:
    """The help page."""
    commands = "\n".join(f"  {name:<10}{command.about}" for name, command in COMMANDS.items())
    return (
        "usage: ltune COMMAND ...\n\nFine-tune language models: one YAML, from rows to an adapter that answers.\n\n"
        f"commands:\n{commands}\n\n"
        "  ltune fit --config configs/quickstart.yaml            train what the file says\n"
        "  ltune fit -c configs/sft.yaml --data.batch_size 4     any key can be given on the command line; later wins\n"
        "  ltune fit --help                                      all options;  ltune fit -c FILE --print_config  as resolved\n"
    )


def main(argv: list[str] | None = None) -> int:
    """Run one command; the exit code says how it ended (0 done as asked, 2 bad usage, 3 data, 4 memory, 5 not finite, 128 + signal)."""
    arguments = sys.argv[1:] if argv is None else argv
    atexit.register(gc.freeze)  # else Python walks all that was imported twice more before it ends
    signal.signal(signal.SIGTERM, lambda signum, frame: sys.exit(128 + signum))
    try:
        return run(arguments)
    except LtuneError as error:
        if error.exit_code < 128:
            print(f"error: {error}", file=sys.stderr)
        elif os.environ.get("LOCAL_RANK", "0") == "0":  # all ranks stop at the same step
            print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output went away, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def run(arguments: list[str]) -> int:
    """Find the command and hand over."""
    if not arguments:
        raise UsageError(f"a command is missing; one of {', '.join(COMMANDS)}\nltune --help  says what they do")
    name, rest = arguments[0], arguments[1:]
    if name in ("-h", "--help", "help"):
        print(usage(), end="")
        return 0
    if name == "--version":
        name = "version"
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f'; did you mean "{near[0]}"?' if near else f"; one of {', '.join(COMMANDS)}"
        raise UsageError(f'"{name}" is not a command{hint}')
    command = COMMANDS[name]
    # Before torch is imported: it would make a folder in the temporary one, and leave it there.
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", os.path.join(caches, "ltune", "inductor"))
    # What FlashAttention-4 compiles is kept for the next run, and not where others may write
    os.environ.setdefault("FLASH_ATTENTION_CUTE_DSL_CACHE_DIR", os.path.join(caches, "ltune", "flash-attention"))
    os.environ.setdefault("FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED", "1")
    # These two set their own level when they are imported; a hub that cannot be reached fills the screen before our message.
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if not command.trains:
        return importlib.import_module(command.module).main(rest)
    from ltune.inputs import look
    from ltune.usage import precheck

    precheck(rest)
    look(name, rest)
    with importing():
        module = importlib.import_module(command.module)
    return module.main(name, rest)
