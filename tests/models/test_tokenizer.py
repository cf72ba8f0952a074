"""Where tokenizers come from, what is said when there is none, and what pads."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from ltune.errors import UsageError
from ltune.models.tokenizer import EMBEDDED, hub_arguments, load_tokenizer, resolve_model

NOWHERE = "nobody-at-all/no-such-model"


def save_tokenizer(folder: Path, extra: tuple[str, ...] = (), **special: str) -> str:
    words = ("<s>", "</s>", "hello", "world", *extra)
    backend = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token="hello"))
    PreTrainedTokenizerFast(tokenizer_object=backend, **special).save_pretrained(folder)
    return str(folder)


def test_a_tokenizer_with_a_padding_token_keeps_it(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(save_tokenizer(tmp_path, ("<x>",), eos_token="</s>", pad_token="<x>"))
    assert (tokenizer.pad_token, tokenizer.eos_token) == ("<x>", "</s>")


def test_without_a_padding_token_a_reserved_one_is_used(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(save_tokenizer(tmp_path, ("<|reserved_special_token_0|>", "<|finetune_right_pad_id|>"), eos_token="</s>"))
    assert (tokenizer.pad_token, tokenizer.pad_token_id) == ("<|finetune_right_pad_id|>", 5)
    assert len(tokenizer) == 6


def test_without_any_the_end_token_pads(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(save_tokenizer(tmp_path, eos_token="</s>"))
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == 1


def test_without_an_end_token_it_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no end token"):
        load_tokenizer(save_tokenizer(tmp_path))


def test_a_folder_without_a_tokenizer_names_the_missing_files(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(UsageError, match=r"(?s)no tokenizer.*Missing: tokenizer.json.*tokenizer_config.json"):
        load_tokenizer(str(tmp_path))


def test_names_resolve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    assert resolve_model("tiny") == str(EMBEDDED)
    assert resolve_model("mine") == "mine"
    assert resolve_model(NOWHERE) == NOWHERE


@pytest.mark.parametrize("name", ["./none", "/none/such", "~/none-such", "../none"])
def test_a_path_to_nothing_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="there is no folder"):
        resolve_model(name)


def test_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(UsageError, match="is a file"):
        resolve_model(str(tmp_path / "model.safetensors"))


def test_a_repository_that_cannot_be_had_is_named_with_its_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # what the variable sets, which is read at import
    with pytest.raises(UsageError, match=f"tokenizer of repository {NOWHERE}, revision v2") as refused:
        load_tokenizer(NOWHERE, revision="v2")
    assert len(str(refused.value).splitlines()) <= 5


def test_code_is_trusted_only_for_the_very_model_and_revision() -> None:
    assert hub_arguments("a/b", "r1", None) == {"revision": "r1", "trust_remote_code": False}
    assert hub_arguments("a/b", "r1", "a/b@r1")["trust_remote_code"] is True
    for name, revision, trust in (("a/b", "r1", "a/b@r2"), ("a/b", None, "a/b@main"), ("a/c", "r1", "a/b@r1"), ("a/b", "r1", "a/b")):
        with pytest.raises(UsageError, match="is not the model that is loaded"):
            hub_arguments(name, revision, trust)


def test_a_folder_has_neither_revision_nor_trust(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="means nothing"):
        hub_arguments(str(tmp_path), "main", None)
    with pytest.raises(UsageError, match="one hub repository"):
        hub_arguments(str(tmp_path), None, f"{tmp_path}@main")


def test_a_tokenizer_with_code_of_its_own_is_refused(tmp_path: Path) -> None:
    folder = save_tokenizer(tmp_path, eos_token="</s>")
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    settings |= {"tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": ["code.Mine", None]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "code.py").write_text("raise SystemExit('this ran')")
    with pytest.raises(UsageError, match="cannot get the tokenizer"):
        load_tokenizer(folder)
