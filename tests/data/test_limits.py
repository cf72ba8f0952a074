"""Limits of time and memory that are set once for many pieces of work."""

import resource
import signal
import threading
import time
from itertools import cycle, islice

import pytest

from ltune.data.limits import MEMORY, SECONDS, limited, together
from ltune.data.pieces import Conversation, PieceMaker
from ltune.data.rendering import Template
from ltune.data.rows import BadRow, Message
from ltune.data.sane_values import TooMuch
from ltune.data.tokens import Tokens
from ltune.models.tokenizer import load_tokenizer

PLAIN = "{% for m in messages %}{{ m.content }}{% endfor %}"
SLOW = "{% for m in messages %}{{ m.content }}{% if m.content == 'slow' %}{% for a in range(99999) %}{% for b in range(9999) %}" + (
    "{% endfor %}{% endfor %}{% endif %}{% endfor %}"
)


def busy(seconds):
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass


def row(name, *texts):
    return Conversation(name, tuple(Message(role, text) for role, text in zip(("user", "assistant"), texts, strict=False)))


def maker(source):
    return PieceMaker(Template("mine", source), Tokens(load_tokenizer("tiny")), "encode")


def all_rendered(rows):
    made = maker(PLAIN)
    with together():
        return [made.render(one) for one in rows]


def test_each_piece_has_its_own_second():
    with together():
        for _ in range(4):
            limited(lambda: busy(0.4 * SECONDS))
            busy(0.1)  # what goes on in between is not limited
    assert signal.getitimer(signal.ITIMER_VIRTUAL)[0] == 0


def test_the_row_that_takes_too_long_is_told_and_the_next_ones_go_on():
    with together():
        with pytest.raises(TooMuch, match="not done after 1 s"):
            limited(lambda: busy(5 * SECONDS))
        assert limited(lambda: 1) == 1
    with pytest.raises(BadRow, match="(?s)second.*not done after 1 s"):
        maker(SLOW).pieces([row("first", "a"), row("second", "slow"), row("third", "b")])


def test_another_thread_does_not_give_more_time():
    def work():
        other = threading.Thread(target=lambda: limited(lambda: None))
        other.start()
        other.join()
        busy(5 * SECONDS)

    with together(), pytest.raises(TooMuch, match="not done after 1 s"):
        limited(work)


def test_rows_that_are_huge_together_are_made_one_by_one(monkeypatch):
    long = "word " * 40_000
    rows = [row(f"row {number}", long[number:], long) for number in range(8)]
    made = maker(PLAIN).pieces(rows)
    monkeypatch.setattr("ltune.data.limits.MEMORY", MEMORY // 512)
    limits = resource.getrlimit(resource.RLIMIT_AS)
    assert [row.ids.tolist() for row, _ in maker(PLAIN).pieces(rows)] == [row.ids.tolist() for row, _ in made]
    assert [asked.row.place for asked in maker(PLAIN)._ask_all(rows * 40)] == [row.place for row in rows * 40]
    with pytest.raises(MemoryError):
        all_rendered(islice(cycle(rows), 3000))
    assert resource.getrlimit(resource.RLIMIT_AS) == limits
