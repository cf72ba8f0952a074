"""`ltune chat`: talk to a run, an adapter or a model, on a terminal or through a pipe."""

from __future__ import annotations

import argparse
import io
import logging
import sys
import warnings
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from ltune.apps.conversation import NO_LIMIT, Conversation, note
from ltune.apps.source import Source, find_source
from ltune.errors import ResourceError, UsageError
from ltune.importing import importing

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from ltune.data.templates import Template
    from ltune.models.quantize import Quantizer

HELP = """/clear        forget the conversation
/system TEXT  set the system text from here on; without TEXT the template's own
/exit         leave (so does end of input)
/help         this"""


def main(argv: list[str]) -> int:
    """Returns 0, or 130 after Ctrl-C at the prompt. Raises LtuneError for what the user can mend."""
    options = _parse(argv)
    source = find_source(options.source, options.adapter)
    _quiet()
    with importing():
        import torch

        from ltune.models.precision import compute_dtype

    device = _device(options.device)
    dtype = compute_dtype(source.precision or ("bf16-true" if device.type == "cuda" else "32-true"))
    # An adapter's float32 weights computed in 16 bits beside the model's, as training steps do it.
    autocast = torch.autocast(device.type, dtype=dtype, enabled=source.adapter is not None and dtype is not torch.float32)
    try:
        conversation = _open_conversation(source, options, dtype, device)
        with autocast:
            return _talk(conversation)
    except torch.OutOfMemoryError as error:
        raise ResourceError(f"the GPU's memory is full: {str(error).splitlines()[0]}\nTry  --quantize NF4  or  --device cpu") from error


class _Parser(argparse.ArgumentParser):
    """Says what is wrong without the whole usage."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}\nltune chat --help  lists the options")


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = _Parser(
        prog="ltune chat",
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Talk to a model. With piped input: one question a line, the answers on stdout.",
        epilog="In the conversation:\n" + HELP,
    )
    parser.add_argument("source", metavar="RUN_OR_MODEL", help='run folder, adapter folder, model folder, hub id, or "tiny"')
    parser.add_argument("--adapter", type=Path, metavar="FOLDER", help="PEFT folder to put on the model")
    parser.add_argument("--template", metavar="NAME", help="by name, or a .jinja file (default: the training one, else the model's own)")
    parser.add_argument("--system", metavar="TEXT", help="system text (default: the training one, else the template's own)")
    parser.add_argument("--quantize", choices=["NF4", "FP4", "Int8", "none"], help="default: as in training, else none")
    parser.add_argument("--max-new-tokens", type=int, metavar="N", help="longest answer")
    parser.add_argument("--temperature", type=float, metavar="T", help="0: always the likeliest token")
    parser.add_argument("--top-p", type=float, metavar="P")
    parser.add_argument("--top-k", type=int, metavar="K", help="0: off")
    parser.add_argument("--device", choices=["cpu", "cuda"], help="default: cuda where there is one")
    return parser.parse_args(argv)


# -- loading --------------------------------------------------------------------------------------------------------------------------


def _open_conversation(source: Source, options: argparse.Namespace, dtype: torch.dtype, device: torch.device) -> Conversation:
    from ltune.generation.sampling import Sampling
    from ltune.models.tokenizer import load_tokenizer

    asked = {name: getattr(options, name) for name in ("max_new_tokens", "temperature", "top_p", "top_k")}
    sampling = Sampling(**source.sampling | {name: value for name, value in asked.items() if value is not None})
    tokenizer = load_tokenizer(source.model, revision=source.revision, trust_remote_code=source.trust_remote_code)
    template = _template(options.template or source.template, tokenizer)
    quantize = {"class_path": options.quantize} if options.quantize else source.quantize
    quantizer = _quantizer(quantize)
    stored = type(quantizer).__name__ if quantizer else dtype
    note(f"{source.model}, adapter {source.adapter or 'none'}, {stored}, template {template.name}, {device}")
    model = _load(source, quantizer, dtype, device)
    system = source.system if options.system is None else options.system
    return Conversation(model, tokenizer, template, sampling, system, _context(model))


def _template(name: str | None, tokenizer: PreTrainedTokenizerBase) -> Template:
    """As for training, but a model's own template serves without marks too: they say what is trained, not what is said."""
    from ltune.data.templates import MARKS, Template, load_template

    own = tokenizer.get_chat_template() if tokenizer.chat_template else ""
    if name is None and own and not MARKS.search(own):
        return Template("of the tokenizer", own, tokenizer.special_tokens_map)
    return load_template(name, tokenizer)


def _device(name: str | None) -> torch.device:
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: torch finds no usable GPU here.\nLeave --device out, or install a torch built for the GPU.")
    return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))


def _quantizer(spec: dict[str, Any] | None) -> Quantizer | None:
    """By the class's own name among ours: a run's file must not name any code to import."""
    from ltune.models.quantize import FP4, NF4, Int8

    if spec is None or spec["class_path"] == "none":
        return None
    name = spec["class_path"].rsplit(".", 1)[-1]
    kinds: dict[str, Callable[..., Quantizer]] = {"NF4": NF4, "FP4": FP4, "Int8": Int8}
    if name not in kinds:
        raise UsageError(f"quantize: {spec['class_path']} is none of {', '.join(kinds)}.\nChoose one with --quantize.")
    return kinds[name](**spec.get("init_args") or {})


def _load(source: Source, quantizer: Quantizer | None, dtype: torch.dtype, device: torch.device) -> Any:
    from ltune.models.adapters import continue_adapter
    from ltune.models.load import load_model

    code, revision = source.trust_remote_code, source.revision
    model: Any = load_model(source.model, dtype=dtype, quantize=quantizer, device=device, revision=revision, trust_remote_code=code)
    if source.adapter:
        model = continue_adapter(model, source.adapter)
    return model.eval()


def _context(model: Any) -> int:
    """Positions the model knows; some architectures have no limit and no such field."""
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return limit or NO_LIMIT


# -- talking --------------------------------------------------------------------------------------------------------------------------


def _talk(conversation: Conversation) -> int:
    terminal = sys.stdin.isatty() and sys.stdout.isatty()
    _speak_utf8()
    if terminal:
        import readline  # noqa: F401 (gives input() its line editing)

        note("/help lists the commands")
    while True:
        try:
            line = input("> " if terminal else "").strip()
        except EOFError:
            return 0
        except KeyboardInterrupt:
            return 130
        if line == "/exit":
            return 0
        if line.startswith("/"):
            _command(conversation, line)
        elif line and not _answer(conversation, line) and not terminal:
            return 130  # Ctrl-C ends a whole pipe, not one question of it


def _answer(conversation: Conversation, question: str) -> bool:
    """Whether the answer came to its own end."""
    try:
        with closing(conversation.reply(question)) as answer:
            for piece in answer:
                print(piece, end="", flush=True)
    except UsageError as problem:  # of this question; the conversation goes on
        note(str(problem))
    except KeyboardInterrupt:
        print(flush=True)
        return False
    print(flush=True)
    return True


def _command(conversation: Conversation, line: str) -> None:
    name, _, text = line.partition(" ")
    if name == "/clear":
        conversation.turns.clear()
        note("the conversation is forgotten")
    elif name == "/system":
        conversation.system = text.strip() or None
        note("system text: " + (conversation.system or "the template's own"))
    elif name == "/help":
        print(HELP, file=sys.stderr)
    else:
        note(f"no such command: {name} (/help lists them)")


def _quiet() -> None:
    """Libraries' advice to programmers is not for whoever talks to a model."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def _speak_utf8() -> None:
    """Whatever the locale; bytes that are no UTF-8 become U+FFFD instead of ending the conversation."""
    for file in (sys.stdin, sys.stdout):
        if isinstance(file, io.TextIOWrapper):
            file.reconfigure(encoding="utf-8", errors="replace")
