"""`ltune chat`: talk to a run, an adapter or a model, on a terminal or through a pipe."""

from __future__ import annotations

import argparse
import io
import json
import logging
import sys
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from ltune.errors import ResourceError, UsageError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from ltune.data.rows import Message
    from ltune.data.templates import Template
    from ltune.generation.sampling import Sampling
    from ltune.models.quantize import Quantizer

HELP = """/clear        forget the conversation
/system TEXT  set the system text from here on; without TEXT the template's own
/exit         leave (so does end of input)
/help         this"""
NO_LIMIT = sys.maxsize


def main(argv: list[str]) -> int:
    """Returns 0, or 130 after Ctrl-C at the prompt. Raises LtuneError for what the user can mend."""
    options = _parse(argv)
    source = find_source(options.source, options.adapter)
    _quiet()
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


# -- what to talk to ------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Source:
    """What a run, an adapter folder or a model says about how it wants to be loaded and addressed."""

    model: str
    revision: str | None = None
    trust_remote_code: str | None = None
    quantize: dict[str, Any] | None = None  # {class_path, init_args}
    precision: str | None = None  # the trainer's; None: the device's usual one
    adapter: Path | None = None
    template: str | None = None
    system: str | None = None
    sampling: dict[str, Any] = field(default_factory=dict)


def find_source(name: str, adapter: Path | None = None) -> Source:
    """The source that the user's name stands for: a folder is looked into, anything else is a model's name.

    Raises UsageError for an unfinished run and for an adapter folder that is none.
    """
    folder = Path(name)
    if (folder / "config.yaml").is_file():
        source = _run_source(folder, needs_result=adapter is None)
    elif (folder / "adapter_config.json").is_file():
        source = _with_adapter(Source(model=""), folder)
    else:
        source = Source(model=name)
    return _with_adapter(source, adapter) if adapter else source


def _run_source(run: Path, needs_result: bool) -> Source:
    config = _read_config(run / "config.yaml")
    model, data = config["model"], config["data"]
    source = Source(
        model=model["model"],
        revision=model.get("revision"),
        trust_remote_code=model.get("trust_remote_code"),
        quantize=model.get("quantize"),
        precision=str((config.get("trainer") or {}).get("precision") or "32-true"),
        template=data.get("template"),
        system=data.get("system"),
        sampling=model.get("sampling") or {},
    )
    if (run / "adapter").is_dir():
        return _with_adapter(source, run / "adapter")
    if (run / "model").is_dir():  # all weights were trained: the folder stands for itself
        return replace(source, model=str(run / "model"), revision=None, trust_remote_code=None, quantize=None)
    if needs_result:
        raise UsageError(
            f"{run}: the run has not finished, it has neither adapter/ nor model/.\n"
            f"Finish it with the same command again:  ltune fit --config {run / 'config.yaml'}"
        )
    return source


def _read_config(path: Path) -> dict[str, Any]:
    import yaml

    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise UsageError(f"{path} is not readable as YAML: {' '.join(str(error).split())}") from error
    sections = isinstance(config, dict) and isinstance(config.get("model"), dict) and isinstance(config.get("data"), dict)
    if not sections or "model" not in config["model"]:
        raise UsageError(
            f"{path}: not the configuration of a run (model.model and data are missing).\nGive a folder that `ltune fit` wrote."
        )
    return config


def _with_adapter(source: Source, folder: Path) -> Source:
    """The adapter's saved template is the one it was trained with; a source without a model gets the adapter's base."""
    if not (folder / "adapter_config.json").is_file():
        inside = " (a run? its adapter is in adapter/)" if (folder / "adapter").is_dir() else ""
        raise UsageError(f"{folder}: no adapter_config.json there{inside}.\nGive a PEFT folder.")
    if not (folder / "adapter_model.safetensors").is_file():
        raise UsageError(f"{folder}: no adapter_model.safetensors there; pickled weights are not loaded.")
    saved = folder / "chat_template.jinja"
    source = replace(source, adapter=folder, template=str(saved) if saved.is_file() else source.template)
    if source.model:
        return source
    base = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    if not base.get("base_model_name_or_path"):
        raise UsageError(f"{folder}: its adapter_config.json names no base model.\nName it:  ltune chat MODEL --adapter {folder}")
    return replace(source, model=base["base_model_name_or_path"], revision=base.get("revision"))


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
    _note(f"{source.model}, adapter {source.adapter or 'none'}, {stored}, template {template.name}, {device}")
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


def _stop_ids(template: Template, tokenizer: PreTrainedTokenizerBase, model: Any) -> set[int]:
    """The template's; where it has no marks, and so does not show what ends an answer, those that the model's folder names."""
    from ltune.data.templates import MARKS

    if MARKS.search(template.source):
        return template.stop_ids(tokenizer)
    named = model.generation_config.eos_token_id
    return {tokenizer.eos_token_id, *(named if isinstance(named, list) else [] if named is None else [named])}


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

    origin = {"revision": source.revision, "trust_remote_code": source.trust_remote_code}
    model: Any = load_model(source.model, dtype=dtype, quantize=quantizer, device=device, **origin)
    if source.adapter:
        model = continue_adapter(model, source.adapter)
    return model.eval()


def _context(model: Any) -> int:
    """Positions the model knows; some architectures have no limit and no such field."""
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return limit or NO_LIMIT


# -- talking --------------------------------------------------------------------------------------------------------------------------


class Conversation:
    """The turns so far, and the model that answers. `context` is the model's limit in tokens."""

    def __init__(
        self, model: Any, tokenizer: PreTrainedTokenizerBase, template: Template, sampling: Sampling, system: str | None, context: int
    ) -> None:
        from ltune.data.encode import Encoder

        self.model, self.tokenizer, self.sampling, self.system, self.context = model, tokenizer, sampling, system, context
        self.encoder = Encoder(template, tokenizer, max_length=NO_LIMIT, truncation="left", train_on="assistant", system=None)
        self.stop_ids = _stop_ids(template, tokenizer, model)
        self.turns: list[Message] = []  # user, assistant, user, assistant ...

    def reply(self, question: str) -> Generator[str, None, None]:
        """Pieces of the answer as they come. What was said, if anything, is kept as a turn, also when the caller stops early."""
        from ltune.data.rows import Message
        from ltune.generation.engine import stream

        asked = Message("user", question)
        ids = self._fit(asked)
        sampling = replace(self.sampling, max_new_tokens=min(self.sampling.max_new_tokens, self.context - len(ids)))
        said = ""
        try:
            with closing(stream(self.model, ids, sampling, self.stop_ids, pad_id=0)) as tokens:  # a single prompt is never padded
                for piece in pieces(tokens, self._decode):
                    said += piece
                    yield piece
        finally:
            if said:
                self.turns += [asked, Message("assistant", said)]

    def _decode(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def _fit(self, asked: Message) -> list[int]:
        """Prompt ids that leave room for an answer, after dropping as many of the oldest turns as that takes."""
        room = min(self.sampling.max_new_tokens, self.context // 4)
        dropped = 0
        while len(ids := self._encode(asked)) + room > self.context and self.turns:
            del self.turns[:2]
            dropped += 1
        if dropped:
            _note(f"the model reads at most {self.context} tokens: forgot the oldest {dropped} question(s) with their answers")
        if len(ids) >= self.context:
            raise UsageError(
                f"the question has {len(ids)} tokens with its system text, the model reads at most {self.context}: not answered"
            )
        return ids

    def _encode(self, asked: Message) -> list[int]:
        from ltune.data.rows import Chat, Message

        system = [Message("system", self.system)] if self.system else []
        ids, _ = self.encoder.prompt(Chat(place="chat", messages=(*system, *self.turns, asked)))
        return ids


def pieces(tokens: Iterable[int], decode: Callable[[list[int]], str]) -> Iterator[str]:
    """Text from ids, as soon as it is certain.

    One character may take several ids, and decoding half of it gives U+FFFD: such an end is held back until it is whole (or
    dropped, if the ids end there). Ids since the last certain point are decoded together with the stretch before it, as a
    word's leading space depends on what stands before.
    """
    before: list[int] = []  # ids of the last certain stretch
    held: list[int] = []  # ids after it
    for token in tokens:
        held.append(token)
        known, text = decode(before), decode(before + held)
        if len(text) > len(known) and not text.endswith("\ufffd"):
            yield text[len(known) :]
            before, held = held, []
    if held:
        known, text = decode(before), decode(before + held).rstrip("\ufffd")
        if len(text) > len(known):
            yield text[len(known) :]


def _talk(conversation: Conversation) -> int:
    terminal = sys.stdin.isatty() and sys.stdout.isatty()
    _speak_utf8()
    if terminal:
        import readline  # noqa: F401 (gives input() its line editing)

        _note("/help lists the commands")
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
        _note(str(problem))
    except KeyboardInterrupt:
        print(flush=True)
        return False
    print(flush=True)
    return True


def _command(conversation: Conversation, line: str) -> None:
    name, _, text = line.partition(" ")
    if name == "/clear":
        conversation.turns.clear()
        _note("the conversation is forgotten")
    elif name == "/system":
        conversation.system = text.strip() or None
        _note("system text: " + (conversation.system or "the template's own"))
    elif name == "/help":
        print(HELP, file=sys.stderr)
    else:
        _note(f"no such command: {name} (/help lists them)")


def _quiet() -> None:
    """Libraries' advice to programmers is not for whoever talks to a model."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _speak_utf8() -> None:
    """Whatever the locale; bytes that are no UTF-8 become U+FFFD instead of ending the conversation."""
    for file in (sys.stdin, sys.stdout):
        if isinstance(file, io.TextIOWrapper):
            file.reconfigure(encoding="utf-8", errors="replace")
