"""`ltune preview`, as it is called: rows in tokens as text, JSON lines or a page, and the report."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import pytest

from ltune.cli import main
from ltune.models.tokenizer import load_tokenizer

HARD = "é<|end|>"  # a control token's name in the text
ATTACK = "</div><script>document.title = 'owned'</script><img src=x onerror=\"document.title = 'owned'\">&amp;\u202e\x07"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Two conversations and a configuration."""
    rows = [
        {"messages": [{"role": "user", "content": "Hi 😀"}, {"role": "assistant", "content": HARD}]},
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b " * 30}]},
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "job.yaml").write_text("model: {model: tiny}\ndata: {datasets: [rows.jsonl], max_length: 64}\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def preview(capsys, *arguments):
    """Exit code, stdout, stderr."""
    code = main(["preview", "--config", "job.yaml", *map(str, arguments)])
    out, err = capsys.readouterr()
    return code, out, err


def test_json_is_a_row_a_line(folder, capsys):
    code, out, _ = preview(capsys, "--json", "-n", 1)
    assert code == 0
    assert out.count("\n") == 1
    answer = [133, 108, 33, 97, 74, 271, 97, 35, 2]  # é is two tokens; <|end|> is six as text, and 2 as the template's
    prompt = [1, 4, 204, 45, 78, 226, 178, 259, 252, 228, 2, 204, 5, 204]  # the emoji is 178, 259, 252, 228
    assert json.loads(out) == {
        "input_ids": [*prompt, *answer, 204],
        "labels": [*[-100] * len(prompt), *answer, -100],
        "segments": [
            {"text": "<|bos|><|user|>\nHi 😀<|end|>\n<|assistant|>\n", "trained": False},
            {"text": "é<|end|><|end|>", "trained": True},
            {"text": "\n", "trained": False},
        ],
    }


def test_json_of_all_rows_and_of_one(folder, capsys):
    tokenizer = load_tokenizer("tiny")
    rows = [json.loads(line) for line in preview(capsys, "--json")[1].splitlines()]
    assert len(rows) == 2
    for row in rows:
        assert "".join(segment["text"] for segment in row["segments"]) == tokenizer.decode(row["input_ids"])
        assert all(label in (-100, id) for id, label in zip(row["input_ids"], row["labels"], strict=True))
    for begin in ("2", "rows.jsonl:2"):
        assert json.loads(preview(capsys, "--json", "--row", begin)[1]) == rows[1]
    assert preview(capsys, "--json", "-n", 0)[1] == ""


def test_a_character_between_trained_and_ignored_tokens_is_whole(folder, capsys):
    """LLaMA-Factory's truncation may cut an answer within a character."""
    answer = json.dumps({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "😀" * 9}]})
    (folder / "rows.jsonl").write_text(answer + "\n")
    tokenizer = load_tokenizer("tiny")
    for length in range(12, 24):
        out = preview(capsys, "--json", "--data.truncation", "llamafactory", "--data.max_length", length)[1]
        row = json.loads(out)
        assert len(row["input_ids"]) == length
        assert "".join(segment["text"] for segment in row["segments"]) == tokenizer.decode(row["input_ids"])


def test_text_is_marked_and_the_report_follows(folder, capsys):
    code, out, _ = preview(capsys)
    assert code == 0
    assert (
        "--- row 1 of 2, rows.jsonl:1: 24 tokens, 9 trained\n‹<|bos|>›‹<|user|>›\nHi 😀‹<|end|>›\n‹<|assistant|>›\n⟦é<|end|>‹<|end|>›⟧\n"
        in out
    )
    assert "\033" not in out
    assert re.search(r"^rows +2 to train on$", out, re.M)
    assert re.search(r"^control tokens +1 row \(50.0%\)", out, re.M)
    assert not (folder / "runs").exists()
    assert sorted(file.name for file in folder.iterdir()) == ["job.yaml", "rows.jsonl"]


def test_colour_on_a_terminal_unless_it_is_unwanted(folder, capsys, monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(type(sys.stdout), "isatty", lambda self: True, raising=False)
    out = preview(capsys)[1]
    assert "\033[36m<|bos|><|user|>\033[0m" in out
    assert "\033[32mé<|end|>\033[0m\033[1;32m<|end|>\033[0m" in out
    assert "⟦" not in out
    monkeypatch.setenv("NO_COLOR", "1")
    out = preview(capsys)[1]
    assert "\033" not in out
    assert "⟦é<|end|>‹<|end|>›⟧" in out


def test_padding_is_shown_where_rows_are_padded(folder, capsys):
    assert "padding" not in preview(capsys)[1]
    out = preview(capsys, "--data.layout", "padded", "--data.batch_size", 2)[1]
    lengths = [int(found) for found in re.findall(r": (\d+) tokens", out)]
    assert re.findall(r"(\d+) × padding", out) == [str(max(lengths) - min(lengths))]
    assert "padding" not in preview(capsys, "--data.layout", "padded", "--data.batch_size", 1)[1]
    assert "padding" not in preview(capsys, "--data.tokens_per_batch", 64)[1]


def test_rows_of_a_mix_come_in_its_order(folder, capsys):
    shutil.copy("rows.jsonl", "more.jsonl")
    names = ["rows.jsonl", "more.jsonl"]
    for mix, order, places in (
        ("Concatenate", "the files", ["rows.jsonl:1", "rows.jsonl:2", "more.jsonl:1", "more.jsonl:2"]),
        ("Interleave", "data.mix: Interleave", ["rows.jsonl:1", "more.jsonl:1", "rows.jsonl:2", "more.jsonl:2"]),
    ):
        out = preview(capsys, f"--data.datasets={names}", "--data.mix", mix, "-n", 4)[1]
        assert f"; rows in the order of {order}\n" in out
        assert re.findall(r"--- row \d of 4, (\S+):", out) == places


def test_every_option_of_fit_can_be_given(folder, capsys):
    out = preview(capsys, "--data.template", "chatml", "--data.val_size", 1)[1]
    assert "<|im_start|>" in out
    assert "1 to train on, 1 held out for validation" in out


def test_plain_text_is_trained_but_for_its_first_token(folder, capsys):
    (folder / "text.jsonl").write_text(json.dumps({"text": "Hi 😀"}) + "\n")
    row = json.loads(preview(capsys, "--model.objective", "Pretrain", "--data.datasets=[text.jsonl]", "--json")[1])
    assert row["labels"] == [-100, *row["input_ids"][1:]]
    assert "".join(segment["text"] for segment in row["segments"]).endswith("Hi 😀<|end|>")


def test_the_rows_are_tokenised_once_for_preview_and_fit(folder, capsys):
    from ltune.apps.rehearsal import Rehearsal

    cache = folder / "cache"
    preview(capsys, "--data.cache", cache)
    (kept,) = cache.iterdir()
    begun = kept.stat().st_mtime_ns
    rehearsal = Rehearsal(["--config", "job.yaml", "--data.cache", str(cache), "--data.batch_size", "7"])
    rehearsal.build()
    rehearsal.prepare()
    assert [file for file in cache.iterdir() if not file.name.startswith(".")] == [kept]
    assert kept.stat().st_mtime_ns == begun
    assert rehearsal.datamodule.prepared["all"].key == kept.name


def test_what_is_worth_a_second_look_is_said(folder, capsys):
    line = "1 of 2 rows (50.0%) are cut at data.max_length; raise it, or choose another data.truncation"
    (folder / "rows.jsonl").write_text(
        json.dumps({"messages": [{"role": "user", "content": "a " * 90}, {"role": "assistant", "content": "b"}]})
        + "\n"
        + json.dumps({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "c"}]})
        + "\n"
    )
    assert f"! {line}\n" in preview(capsys)[1]
    _, out, err = preview(capsys, "--json")
    assert line not in out
    assert line in err


# -- the page -------------------------------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """Tags, and the text of the rows."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.rows, self.inside = [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag == "div":
            self.inside = ("class", "row") in attrs
            if self.inside:
                self.rows.append("")

    def handle_endtag(self, tag):
        self.inside = self.inside and tag != "div"

    def handle_data(self, data):
        if self.inside:
            self.rows[-1] += data


def test_the_page_is_one_file_that_needs_nothing_and_holds_the_rows(folder, capsys):
    code, out, _ = preview(capsys, "--html", "page.html")
    assert (code, out) == (0, "page.html\n")
    text = (folder / "page.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.rows[0] == "<|bos|><|user|>\nHi 😀<|end|>\n<|assistant|>\né<|end|><|end|>\n"
    assert not {"script", "link", "img", "iframe"} & set(page.tags)
    assert not re.search(r"https?://|url\(|@import", text)
    assert 'title="id 45, label -100 (ignored)">H</span>' in text
    assert 'title="id 133, label 133\nid 108, label 108">é</span>' in text
    assert '<span class="trained control" title="id 2, label 2">&lt;|end|&gt;</span>' in text
    assert page.tags.count("rect") >= 1


def test_a_row_cannot_become_part_of_the_page(folder, capsys):
    row = {"messages": [{"role": "user", "content": ATTACK}, {"role": "assistant", "content": ATTACK + "x"}]}
    (folder / "<i>rows.jsonl").write_text(json.dumps(row) + "\n")
    assert preview(capsys, "--html", "page.html", "--data.max_length", 2048, "--data.datasets=['<i>rows.jsonl']")[0] == 0
    page = Page((folder / "page.html").read_text(encoding="utf-8"))
    assert not {"script", "img", "i"} & set(page.tags)
    assert page.rows[0].count(ATTACK) == 2


@pytest.mark.skipif(shutil.which("chromium") is None, reason="Chromium is not installed")
def test_a_row_is_harmless_in_a_real_browser(folder, capsys):
    row = {"messages": [{"role": "user", "content": ATTACK}, {"role": "assistant", "content": ATTACK + "x"}]}
    (folder / "rows.jsonl").write_text(json.dumps(row) + "\n")
    preview(capsys, "--html", "page.html", "--data.max_length", 2048)
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}/browser", "--dump-dom"]
    shown = subprocess.run([*command, f"file://{folder}/page.html"], capture_output=True, text=True, timeout=60).stdout
    assert "<title>ltune preview: rows.jsonl</title>" in shown
    assert "<script" not in shown
    assert "<img" not in shown


# -- what is wrong --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--data.template", "chatmk"], "Did you mean chatml?"),
        (["--data.layout", "padded", "--data.tokens_per_batch", "64"], "set  data.layout: flat"),
        (["--data.datasets=[none.jsonl]"], "none.jsonl"),
        (["--data.max_length", "1"], "data.max_length is at least 2, got 1"),
        (["--data.truncation", "rihgt"], "data.truncation"),
        (["--data.val_size", "1", "--data.val_datasets=[rows.jsonl]"], "two ways to get validation rows"),
        (["--data.val_size", "2"], "none would be left to train on"),
        (["--htlm", "x"], 'did you mean "--html"?'),
        (["-n", "-1"], "-n is not negative, got -1"),
        (["-n", "many"], "invalid int value: 'many'"),
        (["--row", "3"], "--row 3: there are training rows 1 to 2"),
        (["--row", "rows.jsonl:9"], "--row rows.jsonl:9: no training row comes from there"),
        (["--html", "nowhere/page.html"], "there is no folder"),
        (["--html", "."], "is a folder; give a file"),
    ],
)
def test_what_fit_would_refuse_is_refused(folder, capsys, arguments, said):
    code, out, err = preview(capsys, *arguments)
    assert (code, out) == (2, "")
    assert said in err
    assert len(err.splitlines()) <= 5


def test_a_broken_file_is_refused_with_its_line(folder, capsys):
    with (folder / "rows.jsonl").open("a") as file:
        file.write("{broken\n")
    code, out, err = preview(capsys, "--json")
    assert (code, out) == (2, "")
    assert "rows.jsonl:3" in err


def test_as_a_process_results_and_log_are_apart(folder, ltune):
    done = ltune("preview", "--config", "job.yaml", "--json", "--data.template", "chatml", env={"LC_ALL": "C"}, fresh=True)
    assert done.returncode == 0, done.stderr
    assert [list(json.loads(line)) for line in done.stdout.splitlines()] == [["input_ids", "labels", "segments"]] * 2
    assert "chatml" in done.stderr


def test_text_is_utf8_whatever_the_locale(folder, monkeypatch):
    stdout = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stdout)
    assert main(["preview", "--config", "job.yaml"]) == 0
    stdout.flush()
    assert "⟦é" in stdout.buffer.getvalue().decode("utf-8")


def test_help(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["preview", "--help"])
    assert ended.value.code == 0
    out = capsys.readouterr().out
    assert all(option in out for option in ("-n ROWS", "--row", "--html", "--json", "ltune fit --help"))
    assert os.linesep in out
