import math
from pathlib import Path

import pytest

from ltune.errors import DataError, UsageError
from ltune.objectives.rewards import Answer, ExactMatch, Length, Matches, PythonFunction, names_of, scored, weighted


def answer(text, label=None, place="rows.jsonl:3", **columns):
    return Answer(place, ({"role": "user", "content": "How many?"},), text, tuple(range(len(text.split()))), label, columns)


@pytest.fixture
def function(tmp_path, monkeypatch):
    """A reward function in a file of the current folder."""
    monkeypatch.chdir(tmp_path)

    def write(body: str, arguments: str = "answers, **others", weight: float = 1.0) -> PythonFunction:
        Path("my_rewards.py").write_text(f"def reward({arguments}):\n    {body}\n")
        return PythonFunction("my_rewards.py:reward", weight)

    return write


def test_exact_match_is_with_the_rows_answer_or_a_column():
    answers = [answer(" 12\n", "12"), answer("13", "12"), answer("Yes", "yes")]
    assert ExactMatch().scores(answers) == [1.0, 0.0, 0.0]
    assert ExactMatch(ignore_case=True).scores(answers) == [1.0, 0.0, 1.0]
    assert ExactMatch("solution").scores([answer("7", "8", solution=7)]) == [1.0]


def test_a_row_without_the_right_answer_is_named():
    with pytest.raises(DataError, match=r"ExactMatch raised .*\n.*rows.jsonl:5") as caught:
        scored([ExactMatch()], [answer("12", "12"), answer("12", place="rows.jsonl:5")])
    assert "rows.jsonl:5: the row has no answer of its own to compare with" in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 5


def test_a_regular_expression_may_have_to_hold_the_right_answer():
    pattern = r".*<answer>(.*)</answer>"
    answers = [
        answer("so\n<answer> 4 </answer>", "4"),
        answer("<answer>5</answer>", "4"),
        answer("4", "4"),
        answer("<answer>4</answer>.", "4"),
    ]
    assert Matches(pattern).scores(answers) == [1.0, 1.0, 0.0, 0.0]
    assert Matches(pattern, whole=False).scores(answers) == [1.0, 1.0, 0.0, 1.0]
    assert Matches(pattern, column="label").scores(answers) == [1.0, 0.0, 0.0, 0.0]
    assert Matches("([0-9])", column="solution").scores([answer("5", "4", solution="5")]) == [1.0]


def test_length_is_best_at_its_target():
    answers = [answer("one two three four"), answer("one two"), answer("one two three four five six"), answer("x " * 20)]
    assert Length(4).scores(answers) == [1.0, 0.5, 0.5, 0.0]
    assert Length(18, "characters").scores(answers[:1]) == [1.0]
    assert Length(2, "words").scores(answers[1:2]) == [1.0]


def test_a_python_function_gets_what_it_names(function):
    given = [answer("a b", "x", level=2), answer("c", None, level=5)]
    assert function("return [len(a) + l for a, l in zip(answers, level)]", "answers, level").scores(given) == [5.0, 6.0]
    assert function("return [0.0 if l is None else None for l in labels]", "labels").scores(given) == [None, 0.0]
    trl = "completions, level, **kwargs"
    assert function("return [len(c[0]['content']) * l for c, l in zip(completions, level)]", trl).scores(given) == [6.0, 5.0]
    assert function("return [len(p) + len(i) for p, i in zip(prompts, completion_ids)]", "prompts, completion_ids").scores(given) == [
        3.0,
        2.0,
    ]


def test_a_function_is_found_by_its_module_in_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("rewards_of_mine.py").write_text("def short(answers):\n    return [1.0 / (1 + len(a)) for a in answers]\n")
    one = PythonFunction("rewards_of_mine.short")
    assert one.scores([answer("abc")]) == [0.25]
    assert one.name == "short"


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("nothing", "give"),
        ("no_such_module_at_all.reward", "importing no_such_module_at_all failed: ModuleNotFoundError"),
        ("missing.py:reward", "there is no file missing.py"),
        ("math.no_such_function", "there is no function no_such_function in math"),
    ],
)
def test_a_function_that_is_not_there_is_refused(path, said):
    with pytest.raises(UsageError, match=said):
        PythonFunction(path)


@pytest.mark.parametrize(
    ("body", "arguments", "said"),
    [
        (
            "return [1 / len(a.strip()) for a in answers]",
            "answers",
            r"reward raised ZeroDivisionError: division by zero\nrow: rows.jsonl:7",
        ),
        ("return [float('nan') if not a else 1.0 for a in answers]", "answers", r"reward gave nan, .*\nrow: rows.jsonl:7"),
        ("return [float('inf') if not a else 1.0 for a in answers]", "answers", r"reward gave inf, .*\nrow: rows.jsonl:7"),
        ("return [1.0]", "answers", r"it must return a list of one number an answer; got 1 numbers for 2 answers\nrow: none alone"),
        ("return 1.0", "answers", r"it must return a list of one number an answer; got 1.0"),
        ("return ['good' for a in answers]", "answers", r"raised ValueError: could not convert string to float: 'good'\nrow: rows.jsonl:3"),
        ("return [1.0]", "answers, solution", r"it asks for solution; there are prompts, answers"),
    ],
)
def test_what_a_function_does_wrong_names_it_and_the_row(function, body, arguments, said):
    one = function(body, arguments)
    with pytest.raises(DataError, match=said) as caught:
        scored([Length(3), one], [answer("fine"), answer("", place="rows.jsonl:7")])
    assert len(str(caught.value).splitlines()) <= 5
    assert caught.value.exit_code == 3


def test_several_add_up_by_their_weights_and_none_says_nothing(function):
    functions = [Length(2, "words", weight=0.5), function("return [None if 'b' in a else 4.0 for a in answers]", weight=2.0)]
    scores = scored(functions, [answer("a c"), answer("a b"), answer("b")])
    assert weighted(scores, functions) == [8.5, 0.5, 0.25]
    nothing = [function("return [None for a in answers]")]
    assert math.isnan(weighted(scored(nothing, [answer("a")]), nothing)[0])


def test_two_of_a_kind_have_two_names():
    assert names_of([Length(2), ExactMatch(), Length(5), Length(6, name="six")]) == ["Length", "ExactMatch", "Length 2", "six"]


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: Matches("(a"), "pattern"),
        (lambda: Matches("a", column="label"), "first group"),
        (lambda: Length(0), "target"),
        (lambda: ExactMatch(weight=math.nan), "weight"),
    ],
)
def test_wrong_knobs_are_refused(build, said):
    with pytest.raises(UsageError, match=said):
        build()
