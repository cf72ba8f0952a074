"""Named templates are files with facts at their beginning, or aliases of one; a file of one's own is checked."""

import pytest

from ltune.data.template_files import FOLDER, Facts, from_path, named, names, suggestion, tool_formats
from ltune.errors import UsageError


def test_files_and_aliases():
    assert names()["mllama"] == "llama3"
    assert names()["llama3"] == "llama3"
    assert {path.stem for path in FOLDER.glob("*.jinja")} == set(names().values())
    assert named("mllama").source == named("llama3").source
    assert named("qwen").facts.default_system == "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
    assert named("qwen3_nothink").facts == Facts(None, ("<|im_end|>",), "qwen")
    assert named("glm4_7").facts.no_thinking == "</think>"
    assert named("qwen3").facts.no_thinking == "<think>\n\n</think>\n\n"


def test_tool_formats():
    assert {"default", "llama3", "qwen", "mistral", "glm4"} <= set(tool_formats())
    assert {named(name).facts.tool_format for name in names()} <= set(tool_formats())


def test_no_two_files_are_the_same():
    bodies = [path.read_text(encoding="utf-8") for path in FOLDER.glob("*.jinja")]
    assert len(set(bodies)) == len(bodies)


def test_unknown_name():
    with pytest.raises(UsageError, match="there is no template chatm1.\nDid you mean chatml?"):
        named("chatm1")
    assert suggestion("~~~").startswith("ltune templates  lists them")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{#- stop_words: [a\n-#}", "is not YAML"),
        ("{#- stop_words: a -#}", "stop_words must be a list of texts"),
        ("{#- stop_words: [1] -#}", "stop_words must be a list of texts"),
        ("{#-\nstop_words: []\nstop_word: [a]\n-#}", "has stop_word; known are .*\nDid you mean stop_words?"),
        ("{#- default_system: [a] -#}", "default_system must be text"),
        ("{#- tool_format: qwem -#}", "tool_format must be one of default, "),
        ("{#- thinking: <think> -#}", "thinking must be two texts"),
        ("{#- no_thinking: 3 -#}", "no_thinking must be text"),
    ],
)
def test_wrong_facts(tmp_path, text, says):
    (tmp_path / "mine.jinja").write_text(text)
    with pytest.raises(UsageError, match=says) as error:
        from_path(tmp_path / "mine.jinja")
    assert len(str(error.value).splitlines()) <= 5


def test_files_that_are_none(tmp_path):
    (tmp_path / "latin.jinja").write_bytes("é".encode("latin-1"))
    with pytest.raises(UsageError, match="not UTF-8"):
        from_path(tmp_path / "latin.jinja")
    (tmp_path / "large.jinja").write_bytes(b"a" * (1 << 20) + b"a")
    with pytest.raises(UsageError, match="has 1,048,577 bytes"):
        from_path(tmp_path / "large.jinja")
    for path in (tmp_path, tmp_path / "gone.jinja", tmp_path / ("a" * 300)):
        with pytest.raises(UsageError, match="there is no file|cannot be read"):
            from_path(path)


def test_a_comment_that_is_not_ours_says_nothing(tmp_path):
    (tmp_path / "mine.jinja").write_text("{# Copyright: somebody #}\n{{ messages[0].content }}")
    file = from_path(tmp_path / "mine.jinja")
    assert file.source == "{# Copyright: somebody #}\n{{ messages[0].content }}"
    assert file.facts == Facts()


def test_the_one_in_the_documentation_is_read(tmp_path):
    page = (FOLDER.parents[2] / "docs" / "templates.md").read_text(encoding="utf-8")
    (tmp_path / "mine.jinja").write_text(page.split("```jinja\n")[1].split("```")[0])
    facts = from_path(tmp_path / "mine.jinja").facts
    assert facts == Facts(
        "You are a helpful assistant.", ("<|im_end|>",), "qwen", ("<think>\n", "\n</think>\n\n"), "<think>\n\n</think>\n\n"
    )


def test_a_file_of_ones_own_may_use_what_the_named_ones_use(tmp_path):
    (tmp_path / "mine.jinja").write_text("{# tool_format: qwen #}\n{{ system }}{{ turns[0].content }}")
    file = from_path(tmp_path / "mine.jinja")
    assert file.facts.tool_format == "qwen"
    assert "{%- macro said(message) -%}" in file.source
    (tmp_path / "saved.jinja").write_text(file.source)
    assert from_path(tmp_path / "saved.jinja").source == file.source
