import contextlib
import io
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
from functools import partial

import pytest
import torch

from ltune.apps.chat import main
from ltune.errors import UsageError
from ltune.generation.engine import generate
from ltune.generation.sampling import Sampling

LENGTH = 6  # of an answer


@pytest.fixture(scope="module")
def folder(model, tokenizer, tmp_path_factory):
    path = tmp_path_factory.mktemp("chat") / "model"
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def turn(role, text):
    return f"<|{role}|>{text}<|end|>"


def expected(model, tokenizer, prompt, length=LENGTH):
    ids = tokenizer(prompt + "<|assistant|>", add_special_tokens=False).input_ids
    return tokenizer.decode(generate(model, [ids], Sampling(max_new_tokens=length), stop_ids={0}, pad_id=0)[0])


def talk(monkeypatch, capsys, lines, *arguments):
    """Exit code, stdout, stderr of a chat that gets the lines through a pipe."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(line + "\n" for line in lines)))
    capsys.readouterr()
    code = main([*map(str, arguments), "--max-new-tokens", str(LENGTH), "--device", "cpu"])
    return code, *capsys.readouterr()


def test_history_clear_system_and_exit(monkeypatch, capsys, folder, model, tokenizer):
    lines = ["the cat", "", "the dog", "/clear", "the dog", "/system the mat", "ran", "/nonsense", "/exit", "never asked"]
    code, out, err = talk(monkeypatch, capsys, lines, folder)
    first = expected(model, tokenizer, turn("user", "the cat"))
    second = expected(model, tokenizer, turn("user", "the cat") + turn("assistant", first) + turn("user", "the dog"))
    alone = expected(model, tokenizer, turn("user", "the dog"))
    mat = turn("system", "the mat") + turn("user", "the dog") + turn("assistant", alone) + turn("user", "ran")
    assert code == 0
    assert out == "".join(f"{answer}\n" for answer in (first, second, alone, expected(model, tokenizer, mat)))
    assert second != alone
    assert "no such command: /nonsense" in err
    assert "> " not in out + err


def test_system_option(monkeypatch, capsys, folder, model, tokenizer):
    code, out, _ = talk(monkeypatch, capsys, ["ran"], folder, "--system", "the mat")
    assert (code, out) == (0, expected(model, tokenizer, turn("system", "the mat") + turn("user", "ran")) + "\n")


def test_a_models_own_template_serves_without_marks_and_its_folder_names_the_ends(monkeypatch, capsys, folder, model, tokenizer, tmp_path):
    answer = expected(model, tokenizer, turn("user", "the cat"))
    last = tokenizer(answer, add_special_tokens=False).input_ids[-1]
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "chat_template.jinja").write_text(
        tokenizer.chat_template.replace("{% generation %}", "").replace("{% endgeneration %}", "")
    )
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, last]}))
    _, out, _ = talk(monkeypatch, capsys, ["the cat"], tmp_path)
    assert out == answer[: answer.index(tokenizer.decode([last]))] + "\n"


@pytest.fixture(scope="module")
def adapter(folder, tokenizer, tmp_path_factory):
    """A PEFT folder with a visible effect; its template says "system" where the model's own says "user"."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(5)
    path = tmp_path_factory.mktemp("run") / "adapter"
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    adapted = get_peft_model(
        base, LoraConfig(r=4, target_modules=["q_proj", "v_proj", "up_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    )
    adapted.save_pretrained(path)
    (path / "chat_template.jinja").write_text(tokenizer.chat_template.replace("<|{{ message['role'] }}|>", "<|system|>"))
    return path, adapted.eval()


def test_adapter_folder_brings_its_base_and_its_template(monkeypatch, capsys, adapter, model, tokenizer):
    path, adapted = adapter
    _, out, _ = talk(monkeypatch, capsys, ["the cat"], path)
    assert out == expected(adapted, tokenizer, turn("system", "the cat")) + "\n"
    assert out != expected(model, tokenizer, turn("system", "the cat")) + "\n"


def test_adapter_option_and_template_option(monkeypatch, capsys, folder, adapter, tokenizer, tmp_path):
    path, adapted = adapter
    (tmp_path / "own.jinja").write_text(tokenizer.chat_template)
    _, out, _ = talk(monkeypatch, capsys, ["the cat"], folder, "--adapter", path, "--template", tmp_path / "own.jinja")
    assert out == expected(adapted, tokenizer, turn("user", "the cat")) + "\n"


def test_run_folder_brings_model_adapter_template_and_system(monkeypatch, capsys, folder, adapter, tokenizer, write_run):
    path, adapted = adapter
    write_run(path.parent, folder)
    _, out, _ = talk(monkeypatch, capsys, ["the cat"], path.parent)
    assert out == expected(adapted, tokenizer, turn("system", "the mat") + turn("system", "the cat")) + "\n"


@pytest.mark.parametrize("arguments", [["tiny", "--max-new", "3"], ["tiny", "--quantize", "NF5"], [], ["tiny", "--top-k", "x"]])
def test_wrong_arguments_in_a_few_lines(arguments):
    with pytest.raises(UsageError) as caught:
        main(arguments)
    assert str(caught.value).endswith("ltune chat --help  lists the options")
    assert len(str(caught.value).splitlines()) <= 5


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_gpu_asked_for_and_absent(monkeypatch, folder):
    with pytest.raises(UsageError, match="no usable GPU"):
        main([str(folder), "--device", "cuda"])


def test_real_process_through_a_pipe(folder, model, tokenizer):
    command = [sys.executable, "-m", "ltune", "chat", str(folder), "--max-new-tokens", str(LENGTH), "--device", "cpu"]
    done = subprocess.run(
        command, input="the cat 你好\n/help\nthe dog".encode(), capture_output=True, timeout=120, env=os.environ | {"LC_ALL": "C"}
    )
    first = expected(model, tokenizer, turn("user", "the cat 你好"))
    second = expected(model, tokenizer, turn("user", "the cat 你好") + turn("assistant", first) + turn("user", "the dog"))
    assert (done.returncode, done.stdout.decode()) == (0, f"{first}\n{second}\n"), done.stderr.decode()
    assert "/clear" in done.stderr.decode()


def test_control_c_stops_the_answer_and_then_the_chat(folder):
    """On a terminal: the first Ctrl-C falls into an answer of 4000 tokens, the second to the prompt."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "ltune", "chat", str(folder), "--max-new-tokens", "4000", "--device", "cpu"]
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # where the tests run in the background it is ignored, and inherited so
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=subprocess.DEVNULL, preexec_fn=heard)
    os.close(theirs)
    try:
        read_until(ours, b"> ")
        os.write(ours, b"the cat\n")
        read_until(ours, b"the cat\r\n")
        os.read(ours, 1000)  # the answer has begun
        process.send_signal(signal.SIGINT)
        read_until(ours, b"\n> ")
        assert process.poll() is None
        assert pressed_until_it_ends(process) == 130
    finally:
        process.kill()
        os.close(ours)


def pressed_until_it_ends(process):
    """Ctrl-C at the prompt. Python notices one that comes just before it begins to read only with the next key, so it is pressed again."""
    for _ in range(6):
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(timeout=10)
    return process.wait(timeout=1)


def read_until(terminal, end):
    seen = b""
    while not seen.endswith(end):
        seen += os.read(terminal, 1)
    return seen
