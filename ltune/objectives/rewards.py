"""What an answer is worth: one class a kind of check, a number an answer. Several add up by their weights.

They know text and the row's own columns, no tokens and no model (a trained reward model is in reward_model.py).
"""

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ltune.errors import DataError, UsageError
from ltune.objectives.python_function import loaded, taken


@dataclass(frozen=True)
class Answer:
    """An answer to a prompt, with what its row says."""

    place: str  # of the row, for messages
    prompt: tuple[dict[str, Any], ...]  # messages: role, content
    text: str
    ids: tuple[int, ...]
    label: str | None = None  # the row's own answer, if it has one
    columns: dict[str, Any] = field(default_factory=dict)  # the record's other columns
    prompt_ids: tuple[int, ...] = ()

    def wanted(self, column: str | None) -> str:
        """The right answer: the label, or what a column holds.

        Raises:
            DataError: The row has none.
        """
        if column is None and self.label is not None:
            return self.label
        if column is None or self.columns.get(column) is None:
            have = ", ".join(self.columns) or "none"
            raise DataError(f"{self.place}: the row has no {column or 'answer of its own'} to compare with; its other columns: {have}")
        return str(self.columns[column])


class RewardFunction(ABC):
    """Base; the constructor holds the knobs.

    Args:
        weight: What its numbers count in the sum.
        name: In the metrics; null: the class's.
    """

    def __init__(self, weight: float = 1.0, name: str | None = None) -> None:
        if not math.isfinite(weight):
            raise UsageError(f"{type(self).__name__}: weight is a number, got {weight}")
        self.weight, self.name = weight, name or type(self).__name__

    def extend(self, load: Callable[..., Any], device: Any) -> None:  # noqa: B027 (most need nothing)
        """Load what it needs on the device; see ``Objective.extend``."""

    def beside(self) -> list[Any]:
        """The models that it loads; see ``Objective.beside``."""
        return []

    @abstractmethod
    def scores(self, answers: Sequence[Answer]) -> Sequence[float | None]:
        """A number for each answer; None where the check has nothing to say."""


class ExactMatch(RewardFunction):
    """1 where the answer is the row's own, else 0.

    Args:
        column: That holds the right answer; null: the row's answer (its last assistant turn, output, completion).
        ignore_case: Upper and lower case count as the same.
        weight: What it counts in the sum.
        name: In the metrics; null: the class's.
    """

    def __init__(self, column: str | None = None, ignore_case: bool = False, weight: float = 1.0, name: str | None = None) -> None:
        super().__init__(weight, name)
        self.column, self.ignore_case = column, ignore_case

    def scores(self, answers: Sequence[Answer]) -> list[float]:
        """White space around is passed over."""
        return [float(self._plain(answer.text) == self._plain(answer.wanted(self.column))) for answer in answers]

    def _plain(self, text: str) -> str:
        return text.strip().casefold() if self.ignore_case else text.strip()


class Matches(RewardFunction):
    """1 where a regular expression fits the answer, else 0; with ``column``, where what its first group holds is also the right answer.

    Args:
        pattern: Python's; the dot takes line ends too.
        whole: It must fit the whole answer, else any part.
        column: That holds what group 1 must be; "label": the row's own answer; null: any.
        weight: What it counts in the sum.
        name: In the metrics; null: the class's.
    """

    def __init__(self, pattern: str, whole: bool = True, column: str | None = None, weight: float = 1.0, name: str | None = None) -> None:
        super().__init__(weight, name)
        try:
            self.pattern = re.compile(pattern, re.DOTALL)
        except re.error as error:
            raise UsageError(f"Matches: pattern: {error}; got {pattern!r}") from error
        if column is not None and not self.pattern.groups:
            raise UsageError(f"Matches: column {column!r} is compared with the pattern's first group, and {pattern!r} has none")
        self.whole, self.column = whole, column

    def scores(self, answers: Sequence[Answer]) -> list[float]:
        """0 or 1."""
        return [float(self._fits(answer)) for answer in answers]

    def _fits(self, answer: Answer) -> bool:
        found = self.pattern.fullmatch(answer.text) if self.whole else self.pattern.search(answer.text)
        if found is None or self.column is None:
            return found is not None
        return (found.group(1) or "").strip() == answer.wanted(None if self.column == "label" else self.column).strip()


class Length(RewardFunction):
    """1 for an answer of the length wanted, less the further it is from it, 0 from twice that distance on.

        1 - |length - target| / target,  at least 0

    Args:
        target: Length wanted.
        unit: tokens, characters or words.
        weight: What it counts in the sum.
        name: In the metrics; null: the class's.
    """

    def __init__(
        self, target: int, unit: Literal["tokens", "characters", "words"] = "tokens", weight: float = 1.0, name: str | None = None
    ) -> None:
        super().__init__(weight, name)
        if target < 1:
            raise UsageError(f"Length: target is 1 or more, got {target}")
        self.target, self.unit = target, unit

    def scores(self, answers: Sequence[Answer]) -> list[float]:
        """0 to 1."""
        measure: dict[str, Callable[[Answer], int]] = {
            "tokens": lambda answer: len(answer.ids),
            "characters": lambda answer: len(answer.text),
            "words": lambda answer: len(answer.text.split()),
        }
        return [max(0.0, 1 - abs(measure[self.unit](answer) - self.target) / self.target) for answer in answers]


class PythonFunction(RewardFunction):
    """Any Python function of all answers at once that returns a number, or None, for each.

    It is called with those of these keywords that it names (all, if it takes ``**others``), each a list with an entry an answer:
    ``answers`` (texts), ``labels``, ``prompts`` (messages), and every column of the rows; and as TRL does it, ``completions``
    (a list of one message each) and ``completion_ids``, so that TRL's reward functions work as they are.

    Args:
        function: "package.module.function", or "path/to/file.py:function".
        weight: What it counts in the sum.
        name: In the metrics; null: the function's.
    """

    def __init__(self, function: str, weight: float = 1.0, name: str | None = None) -> None:
        super().__init__(weight, name or re.split(r"[.:]", function)[-1])
        self.path = function
        self.function = loaded(function)

    def scores(self, answers: Sequence[Answer]) -> list[float | None]:
        """What the function returns.

        Raises:
            DataError: Not a number an answer.
        """
        found = self.function(**taken(self.function, keywords(answers)))
        if not hasattr(found, "__len__") or len(found) != len(answers):
            got = f"{len(found)} numbers" if hasattr(found, "__len__") else repr(found)[:80]
            raise DataError(f"it must return a list of one number an answer; got {got} for {len(answers)} answers")
        return [None if score is None else float(score) for score in found]


def keywords(answers: Sequence[Answer]) -> dict[str, list]:
    """What a Python function may ask for."""
    columns = dict.fromkeys(name for answer in answers for name in answer.columns)
    return {name: [answer.columns.get(name) for answer in answers] for name in columns} | {
        "prompts": [list(answer.prompt) for answer in answers],
        "answers": [answer.text for answer in answers],
        "labels": [answer.label for answer in answers],
        "completions": [[{"role": "assistant", "content": answer.text}] for answer in answers],
        "completion_ids": [list(answer.ids) for answer in answers],
    }


def scored(functions: Sequence[RewardFunction], answers: Sequence[Answer]) -> list[list[float]]:
    """What each function gives each answer, not yet weighted; NaN for None.

    Raises:
        DataError: A function raised, or gave what is no finite number; with its name, the row and the answer.
    """
    return [_checked(function, answers) for function in functions]


def _checked(function: RewardFunction, answers: Sequence[Answer]) -> list[float]:
    try:
        found = list(function.scores(answers))
    except Exception as error:  # of the user's code: whatever it is, it must name the row
        raise _refusal(function, _culprit(function, answers), f"raised {type(error).__name__}: {error}") from error
    for answer, score in zip(answers, found, strict=True):
        if score is not None and not math.isfinite(score):
            raise _refusal(function, answer, f"gave {score}, which is no finite number")
    return [math.nan if score is None else float(score) for score in found]


def _culprit(function: RewardFunction, answers: Sequence[Answer]) -> Answer | None:
    """The first answer that the function fails on alone; None if it takes several."""
    for answer in answers:
        try:
            function.scores([answer])
        except Exception:
            return answer
    return None


def _refusal(function: RewardFunction, answer: Answer | None, what: str) -> DataError:
    where = f"row: {answer.place}\nanswer: {answer.text[:200]!r}" if answer else "row: none alone, only several together"
    return DataError(
        f"the reward function {function.name} {what.splitlines()[0][:300]}\n{where}\n"
        "The optimizer step was not taken. Mend the function; the same command then goes on. None means that it has nothing to say."
    )


def weighted(scores: Sequence[Sequence[float]], functions: Sequence[RewardFunction]) -> list[float]:
    """The sum for each answer by the functions' weights, those left out that said nothing; NaN where none said anything."""
    sums = []
    for given in zip(*scores, strict=True):
        said = [function.weight * score for function, score in zip(functions, given, strict=True) if not math.isnan(score)]
        sums.append(sum(said) if said else math.nan)
    return sums


def names_of(functions: Sequence[RewardFunction]) -> list[str]:
    """For metrics; a second one of the same name is numbered."""
    names: list[str] = []
    for function in functions:
        same = sum(name == function.name or name.startswith(f"{function.name} ") for name in names)
        names.append(f"{function.name} {same + 1}" if same else function.name)
    return names
