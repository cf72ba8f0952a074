"""Which rounds of a conversation that is too long are trained. A round is a message of the user and all up to the user's next.

A conversation without its first rounds is rendered anew, as if it had begun later: the system text and the tools stay, in the place
where the template has them.
"""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import accumulate, takewhile

import numpy as np

from ltune.data import truncation as cut
from ltune.data.pieces import Conversation, PieceMaker, Pieces, shielded_conversation, texts_of
from ltune.data.rows import Message

Round = tuple[Message, ...]


class Shortener:
    """Conversations to pieces that fit.

    Args:
        maker: Renders and tokenises.
        max_length: Tokens allowed.
    """

    def __init__(self, maker: PieceMaker, max_length: int) -> None:
        self.maker, self.max_length = maker, max_length

    def left(self, conversation: Conversation, tokens: int) -> Pieces | None:
        """What is kept of a conversation of so many tokens. The last answer with its end token is never cut.

        1. The oldest rounds go, as few as possible; the system text and the tools stay.
        2. A last round that is too long loses the beginning of its user's text; headers and the system text stay.
        3. If nothing of the user's text were left, the round's oldest tool calls go with their results, as few as possible.
        4. If that is not enough, older answers of that round go, then the beginning of the prompt, system text and all, but for the
           begin token.

        Returns:
            None if the last answer does not fit with at least one token of prompt.
        """
        head, rounds = rounds_of(conversation.messages)
        guess = self._guess(conversation, tokens, rounds[::-1])
        kept = _most(len(rounds) - 1, guess, lambda count: self._fit(_with(conversation, head, rounds[-count:])))
        return kept[1] if kept else self._last_round(_with(conversation, head, rounds[-1:]), len(head))

    def split(self, conversation: Conversation, tokens: int) -> tuple[list[Pieces], bool]:
        """The conversation in parts, each of as many rounds as fit, with the system text before each. A round that is too long by itself
        is cut as by ``left``.

        Returns:
            The parts, and whether something was cut off.
        """
        head, rounds = rounds_of(conversation.messages)
        parts: list[Pieces] = []
        cut_off = False
        while rounds:
            fit = partial(self._fit_first, conversation, head, rounds)
            kept = _most(len(rounds), self._guess(conversation, tokens, rounds), fit)
            count, part = kept or (1, self._last_round(_with(conversation, head, rounds[:1]), len(head)))
            cut_off |= not kept
            if part is not None and any(part.trained):
                parts.append(part)
            rounds = rounds[count:]
        return parts, cut_off

    def _fit_first(self, conversation: Conversation, head: Round, rounds: list[Round], count: int) -> Pieces | None:
        return self._fit(_with(conversation, head, rounds[:count]))

    def _fit(self, conversation: Conversation) -> Pieces | None:
        ((pieces, _),) = self.maker.pieces([conversation])
        return fitting(pieces, self.max_length)

    def _guess(self, conversation: Conversation, tokens: int, rounds: list[Round]) -> int:
        """How many of the rounds will fit, by their share of the characters."""
        allowed = self.max_length * _size(conversation.messages) / tokens
        return sum(1 for _ in takewhile(lambda size: size <= allowed, accumulate(map(_size, rounds))))

    def _last_round(self, conversation: Conversation, first: int) -> Pieces | None:
        for shorter in _without_calls(conversation, first):
            if (pieces := self._fit(shorter) or self._cut_text(shorter, first)) is not None:
                return pieces
        ((pieces, _),) = self.maker.pieces([conversation])
        turns = pieces.turns()
        kept = cut.left(turns, self.max_length, self.maker.tokens.bos_id) if turns else None
        return None if kept is None else Pieces.of(kept)

    def _cut_text(self, conversation: Conversation, chosen: int) -> Pieces | None:
        """The beginning of one message's text cut off; None if that is not enough, or the template does not write it as it is."""
        maker, shield = self.maker, self.maker.shield(conversation)
        segments = maker.render(shielded_conversation(conversation, shield, chosen))
        while segments and not segments[-1].trained:
            segments.pop()
        if not segments or segments[0].trained or segments[0].text.count(shield.begin) != 1 or segments[0].text.count(shield.end) != 1:
            return None
        before, text = segments[0].text.split(shield.begin)
        after = text.split(shield.end)[1]
        texts = [before, text, after, *(segment.text for segment in segments[1:])]
        ids, lengths = maker.tokens.encode_shielded(texts, shield, maker.roles)
        room = self.max_length - lengths[0] - sum(lengths[3:])
        if room <= lengths[2]:
            return None
        head, prompt, _, rest = np.split(ids, np.cumsum(lengths[:3]))
        prompt = prompt[max(0, len(prompt) - room) :]
        trained = [segment.trained for segment in segments]
        return Pieces(np.concatenate([head, prompt, rest]), [len(head) + len(prompt), *lengths[3:]], trained)


def fitting(pieces: Pieces, max_length: int) -> Pieces | None:
    """The pieces, without what comes after the last answer if only so they fit."""
    if len(pieces.ids) <= max_length:
        return pieces
    pieces = pieces.without_tail()
    return pieces if len(pieces.ids) <= max_length else None


def rounds_of(messages: tuple[Message, ...]) -> tuple[Round, list[Round]]:
    """The system text, and the rounds up to the last answer."""
    first = next((number for number, message in enumerate(messages) if message.role != "system"), len(messages))
    last = max((number for number, message in enumerate(messages) if message.role == "assistant"), default=len(messages) - 1)
    begins = [number for number in range(first, last + 1) if number == first or messages[number].role == "user"]
    return messages[:first], [messages[begin:end] for begin, end in zip(begins, [*begins[1:], last + 1], strict=True)]


def _without_calls(conversation: Conversation, first: int) -> Iterator[Conversation]:
    """The one round behind so many messages: whole, without its first call and the results, without its first two ..."""
    messages = conversation.messages
    answers = [number for number in range(first + 1, len(messages)) if messages[number].role == "assistant"]
    for number in answers or [first + 1]:
        yield conversation._replace(messages=messages[: first + 1] + messages[number:])


def _with(conversation: Conversation, head: Round, rounds: list[Round]) -> Conversation:
    return conversation._replace(messages=(*head, *(message for one in rounds for message in one)))


def _size(messages: Round) -> int:
    return sum(16 + sum(map(len, texts_of(Conversation("", (message,))))) for message in messages)


def _most(most: int, guess: int, fit: Callable[[int], Pieces | None]) -> tuple[int, Pieces] | None:
    """The greatest number from 1 to ``most`` for which there is a fit, looked for from the guess on, and the fit."""
    count = min(max(guess, 1), most)
    if count < 1:
        return None
    found = fit(count)
    if found is None:
        while found is None and count > 1:
            count -= 1
            found = fit(count)
        return None if found is None else (count, found)
    while count < most and (more := fit(count + 1)) is not None:
        count, found = count + 1, more
    return count, found
