"""`ltune templates`: the list, one conversation with its trained part marked, a model's own, and what is refused."""

import os
import pty
import subprocess
import sys
import time

import pytest

from ltune.apps.templates import main
from ltune.data.template_files import names
from ltune.errors import UsageError


def test_the_list_has_every_name_with_its_file_tools_and_thinking(capsys):
    assert main([]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["name", "file", "tools", "thinking", "default", "system", "text"]
    assert [line.split()[0] for line in lines] == list(names())
    rows = {line.split()[0]: line.split()[1:] for line in lines}
    assert rows["mllama"] == ["llama3", "llama3"]
    assert rows["qwen3"] == ["qwen", "<think>"]
    assert rows["qwen"] == ["qwen", *["You", "are", "Qwen,", "created", "by", "Alibaba", "Cloud.", "You", "are..."]]


def test_one_conversation_with_a_tool_call(capsys):
    assert main(["mistral"]) == 0
    out = capsys.readouterr()
    assert out.err == ""
    assert out.out.startswith('<BOS>[AVAILABLE_TOOLS] [{"type": "function", "function": {"name": "forecast"')
    assert out.out.endswith(
        "[INST] You are terse.\n\nWhat is the weather in Paris?[/INST]⟦ It is sunny.<EOS>⟧[INST] And tomorrow?[/INST]"
        '⟦[TOOL_CALLS] [{"name": "forecast", "arguments": {"days": 1}}]<EOS>⟧[TOOL_RESULTS] {"content": {"sky": "rain"}}[/TOOL_RESULTS]'
        "⟦ Rain.<EOS>⟧\n"
    )


def test_every_one_can_be_shown(capsys):
    for name in names():
        assert main([name]) == 0
        out = capsys.readouterr().out
        assert "It is sunny." in out, name
        assert out.count("⟦") == out.count("⟧") == 3, name


def test_a_models_own(capsys):
    assert main(["--model", "tiny"]) == 0
    assert capsys.readouterr().out == (
        "<|bos|><|system|>\nYou are terse.<|end|>\n<|user|>\nWhat is the weather in Paris?<|end|>\n<|assistant|>\n⟦It is sunny.<|end|>⟧\n"
        "<|user|>\nAnd tomorrow?<|end|>\n<|assistant|>\n⟦Rain.<|end|>⟧\n\n"
    )
    assert main(["llama2", "--model", "tiny"]) == 0
    assert "<|bos|>[INST] And tomorrow? [/INST]⟦" in capsys.readouterr().out


def test_a_models_own_without_marks(capsys, tmp_path):
    source = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}"
    source += "{% if add_generation_prompt %}[assistant]{% endif %}"
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": {"content": "</s>"}, "bos_token": null}')
    (tmp_path / "chat_template.jinja").write_text(source)
    assert main(["--model", str(tmp_path)]) == 0
    out = capsys.readouterr()
    assert out.out.endswith("[user]And tomorrow?</s>[assistant]⟦Rain.</s>⟧\n")
    assert out.err == "no {% generation %} marks: what is trained is told by prefix difference\n"


def test_a_file(capsys, tmp_path):
    (tmp_path / "mine.jinja").write_text(
        "{% for m in messages %}{{ m.role }}\x1b[31m{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
    )
    assert main([str(tmp_path / "mine.jinja")]) == 0
    assert "\\x1b[31m⟦It is sunny.⟧" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["lama3"], "there is no template lama3.\nDid you mean llama3?"),
        (["gone.jinja"], "there is no file gone.jinja"),
        (["--model", "./gone"], "there is no folder ./gone"),
        (["llama3", "--modle", "tiny"], "unrecognized arguments: --modle"),
    ],
)
def test_refused(arguments, says):
    with pytest.raises(UsageError, match=says) as error:
        main(arguments)
    assert error.value.exit_code == 2
    assert len(str(error.value).splitlines()) <= 5


def test_a_model_without_settings_or_template_is_refused(tmp_path):
    with pytest.raises(UsageError, match="cannot read .*tokenizer_config.json"):
        main(["--model", str(tmp_path)])
    (tmp_path / "tokenizer_config.json").write_text("{}")
    with pytest.raises(UsageError, match="has no chat template"):
        main(["--model", str(tmp_path)])


def test_it_answers_at_once_and_imports_nothing_heavy(ltune):
    before = time.monotonic()
    code = (
        "import sys; from ltune.cli import main; main(['templates', 'qwen']); print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[-1] == "[]"
    assert time.monotonic() - before < 3
    assert ltune("templates", "qwem", fresh=True).returncode == 2


@pytest.mark.parametrize(("environment", "sign"), [({}, "\033[32m"), ({"NO_COLOR": "1"}, "⟦")])
def test_on_a_terminal_what_is_trained_is_green(environment, sign):
    outside, inside = pty.openpty()
    environment = {key: value for key, value in os.environ.items() if key != "NO_COLOR"} | environment
    subprocess.run([sys.executable, "-m", "ltune", "templates", "vicuna"], stdout=inside, env=environment, check=True, timeout=60)
    os.close(inside)
    shown = b""
    try:
        while part := os.read(outside, 65536):
            shown += part
    except OSError:  # all is read
        pass
    os.close(outside)
    assert f"{sign}It is sunny." in shown.decode()
