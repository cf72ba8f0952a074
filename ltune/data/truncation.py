"""What is cut off turns in tokens, [(prompt ids, answer ids), ...], that are longer than ``max_length``. Whole rounds: rounds.py."""

from typing import Literal

Turn = tuple[list[int], list[int]]
Policy = Literal["left", "drop", "error", "split", "llamafactory"]


def length(turns: list[Turn]) -> int:
    """Tokens in all turns."""
    return sum(len(prompt) + len(answer) for prompt, answer in turns)


def left(turns: list[Turn], max_length: int, bos_id: int | None) -> list[Turn] | None:
    """Oldest turns go first, then the beginning of the prompt that remains. The last answer with its end token is never cut.

    Args:
        turns: At least one.
        max_length: Tokens allowed.
        bos_id: Begin token; where the row begins with it, what is kept does too.

    Returns:
        The turns that fit; None if the last answer does not fit with at least one token of prompt.
    """
    if length(turns) <= max_length:
        return turns
    begin = [bos_id] if bos_id is not None and turns[0][0][:1] == [bos_id] else []
    kept = list(turns)
    while len(kept) > 1 and length(kept) > max_length:
        prompt, answer = kept[1]
        kept[:2] = [(begin + prompt, answer)]
    prompt, answer = kept[0]
    if length(kept) <= max_length:
        return kept
    room = max_length - len(answer) - len(begin)
    if room + len(begin) < 1:
        return None
    return [(begin + prompt[len(prompt) - max(room, 0) :], answer)]


def llamafactory(turns: list[Turn], max_length: int, last_first: bool) -> list[Turn]:
    """LLaMA-Factory's: turn by turn on what is left of the budget, both sides cut at the right. It can cut headers and end tokens.

    Args:
        turns: In order.
        max_length: The budget in tokens.
        last_first: The last turn is served first; so LLaMA-Factory has it where only the last is trained.

    Returns:
        The turns, in order, that got something.
    """
    kept: list[Turn] = []
    for prompt, answer in reversed(turns) if last_first else turns:
        budget = max_length - length(kept)
        if budget <= 0:
            break
        prompt_length, answer_length = share(len(prompt), len(answer), budget)
        kept.append((prompt[:prompt_length], answer[:answer_length]))
    return kept[::-1] if last_first else kept


def share(prompt: int, answer: int, budget: int) -> tuple[int, int]:
    """Tokens that prompt and answer may keep: the shorter side is kept whole, else in proportion."""
    if answer * 2 < budget:
        room = budget
    elif prompt * 2 < budget:
        room = budget - prompt
    else:
        room = int(budget * (answer / (prompt + answer)))
    kept = min(room, answer)
    return min(max(budget - kept, 0), prompt), kept


def ends_cut(turns: list[Turn], kept: list[Turn], only_last: bool) -> int:
    """How many of the trained answers that were kept lost their end; ``only_last``: the last one alone is trained, and was served first."""
    pairs = zip(turns[-1:] if only_last else turns, kept[-1:] if only_last else kept, strict=False)
    return sum(len(short) < len(answer) for (_, answer), (_, short) in pairs)
