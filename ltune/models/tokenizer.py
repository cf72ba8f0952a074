"""From a model's name to its folder or hub id, and to its tokenizer."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltune.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

EMBEDDED = Path(__file__).resolve().parent.parent / "assets" / "tiny"
VOCABULARIES = ("tokenizer.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.json", "vocab.txt", "tekken.json")
# Tokens that exist to pad, or that no text ever contains; in order of preference
PADS = ("<|finetune_right_pad_id|>", "<pad>", "<|pad|>", "[PAD]", "<|PAD_TOKEN|>", "<|vision_pad|>", "<|reserved_special_token_0|>")

log = logging.getLogger(__name__)


def resolve_model(name: str) -> str:
    """The folder of the embedded model for "tiny", an existing folder as a path, anything else as a hub id.

    Raises:
        UsageError: the name looks like a path (it starts with ".", "/" or "~") and there is no such folder.
    """
    if name == "tiny":
        return str(EMBEDDED)
    path = Path(name).expanduser()
    if path.is_dir():
        return str(path)
    if path.exists():
        raise UsageError(f"model: {name} is a file.\nGive the folder that holds config.json, or a hub id.")
    if name.startswith((".", "/", "~")):
        raise UsageError(f"model: there is no folder {name}.\nGive an existing folder, a hub id, or tiny.")
    return name


def hub_arguments(name: str, revision: str | None, trust_remote_code: str | None) -> dict[str, Any]:
    """`revision` and `trust_remote_code` as `from_pretrained` takes them.

    Code from a repository runs only if `trust_remote_code` names exactly this model and this revision, as "repository@revision".

    Raises:
        UsageError: a revision for a folder, or trust in something else than what is loaded.
    """
    is_folder = Path(resolve_model(name)).is_dir()
    if is_folder and revision is not None:
        raise UsageError(f"model: {name} is a folder, so revision: {revision} means nothing.\nRemove it, or give the hub id.")
    if trust_remote_code is None:
        return {"revision": revision, "trust_remote_code": False}
    if is_folder or revision is None or trust_remote_code != f"{name}@{revision}":
        raise UsageError(
            f"trust_remote_code: {trust_remote_code} is not the model that is loaded: {name}, revision {revision}.\n"
            "It holds for one hub repository at one revision: give model and revision, and trust_remote_code: repository@revision."
        )
    return {"revision": revision, "code_revision": revision, "trust_remote_code": True}


def unobtainable(name: str, revision: str | None, what: str, error: Exception) -> UsageError:
    """The answer when a hub repository or folder does not yield `what`."""
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    place = f"folder {name}" if Path(resolve_model(name)).is_dir() else f"repository {name}, revision {revision or 'main'}"
    advice = "\nIf the machine is offline, give a folder or fill the hub cache first." if place.startswith("repository") else ""
    return UsageError(f"model: cannot get the {what} of {place}.\n{first[:300]}{advice}")


def load_tokenizer(name: str, revision: str | None = None, trust_remote_code: str | None = None) -> "PreTrainedTokenizerBase":
    """The tokenizer of a model, certain to have an end token and a padding token.

    Where it has no padding token, one that its vocabulary reserves is used, else the end token: both are safe, because
    padding is masked by position (attention mask, label -100) and never by token id.

    Raises:
        UsageError: no such folder, no tokenizer in it, a repository that cannot be had, or code that nobody trusted.
    """
    from transformers import AutoTokenizer

    source = resolve_model(name)
    arguments = hub_arguments(name, revision, trust_remote_code)
    if Path(source).is_dir():
        require_vocabulary(name, Path(source))
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **arguments)
    except (OSError, ValueError, ImportError) as error:
        raise unobtainable(name, revision, "tokenizer", error) from error
    if tokenizer.vocab_size == 0:
        raise UsageError(f"model: {name} has an empty tokenizer.\nA tokenizer is one of {', '.join(VOCABULARIES)}.")
    ensure_padding(name, tokenizer)
    return tokenizer


def require_vocabulary(name: str, folder: Path) -> None:
    """Without this, transformers 5 makes an empty tokenizer from config.json alone."""
    if any((folder / file).is_file() for file in VOCABULARIES) or any(folder.glob("*.tiktoken")):
        return
    raise UsageError(
        f"model: the folder {name} has no tokenizer.\n"
        "Missing: tokenizer.json (or tokenizer.model, or vocab.json with merges.txt), and tokenizer_config.json.\n"
        "Copy them from the model's repository."
    )


def ensure_padding(name: str, tokenizer: "PreTrainedTokenizerBase") -> None:
    if tokenizer.eos_token is None:
        raise UsageError(f"model: the tokenizer of {name} has no end token.\nSet eos_token in its tokenizer_config.json.")
    if tokenizer.pad_token is None:
        vocabulary = tokenizer.get_vocab()
        tokenizer.pad_token = next((token for token in PADS if token in vocabulary), tokenizer.eos_token)
        log.info("%s has no padding token: %s is used", name, tokenizer.pad_token)
