"""Text to ids; text in a row never becomes a control token.

A text that spells one is given a stand-in for it, and tokenised by a copy of the tokenizer that knows stand-ins only.
"""

import json
import re
from typing import TYPE_CHECKING

from ltune.errors import UsageError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

PRIVATE_USE = (0xF0000, 0x10FFFD)  # characters that no text means anything by


class Tokens:
    """Text to ids, with and without control tokens. Can be sent to another process.

    Args:
        tokenizer: Must be a fast one.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        from tokenizers import Tokenizer

        if not tokenizer.is_fast:
            raise UsageError(f"{type(tokenizer).__name__} is a slow tokenizer; ltune needs one with a tokenizer.json.")
        self.direct = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self.direct.no_padding()  # left behind by earlier calls of the tokenizer
        self.direct.no_truncation()
        self.json: str = self.direct.to_str()
        # Runs of white space are added tokens too in some tokenizers; those control nothing
        added = {token.content: id for id, token in tokenizer.added_tokens_decoder.items()}
        self.control = {content: id for content, id in added.items() if content and not content.isspace()}
        self.numbers = {content: number for number, content in enumerate(self.control)}
        self.spelled = re.compile("|".join(map(re.escape, sorted(self.control, key=len, reverse=True))) or r"(?!)")
        self.forbidden = set(self.control.values()) - {tokenizer.unk_token_id}
        self.eos_id: int = tokenizer.eos_token_id
        self.bos_id: int | None = tokenizer.bos_token_id
        self.adds_bos = self.bos_id is not None and tokenizer("a")["input_ids"][:1] == [self.bos_id]
        self._blind: dict[int, Tokenizer] = {}

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Ids of each text; control tokens in it count as such."""
        return [self.direct.encode(text, add_special_tokens=False).ids for text in texts]

    def free_range(self, texts: list[str]) -> int:
        """First of as many private characters as stand-ins are needed, none of which occurs in the texts."""
        needed = len(self.control) + 1
        used = {ord(character) for text in texts if not text.isascii() for character in text}
        starts = range(PRIVATE_USE[0], PRIVATE_USE[1] - needed, needed)
        return next(start for start in starts if used.isdisjoint(range(start, start + needed)))

    def shield(self, text: str, start: int) -> str:
        """The text with a stand-in for every control token it spells, and a mark at either end against joining with what stands beside it.

        The marks stand inside of the outer white space, so that a template can strip it.
        """
        stripped = text.strip()
        if not stripped:
            return text
        mark = chr(start + len(self.control))
        shielded = mark + self.spelled.sub(lambda match: chr(start + self.numbers[match.group()]), stripped) + mark
        before = text[: len(text) - len(text.lstrip())]
        return before + shielded + text[len(before) + len(stripped) :]

    def encode_shielded(self, text: str, start: int) -> list[int]:
        """Ids of a rendered text whose contents are shielded: control tokens in it are the template's, stand-ins are text."""
        names = list(self.control)
        swapped: list[str] = []
        controls: dict[int, int] = {}  # where a stand-in for a true control token stands, to its id
        length = 0
        either = re.compile(f"({self.spelled.pattern})|([{chr(start)}-{chr(start + len(names))}])")
        position = 0
        for match in either.finditer(text):
            piece = text[position : match.start()]
            length += len(piece)
            if match.group(1) is not None:
                controls[length] = self.control[match.group(1)]
                replacement = chr(start + self.numbers[match.group(1)])
            else:
                number = ord(match.group(2)) - start
                replacement = names[number] if number < len(names) else ""
            swapped += [piece, replacement]
            length += len(replacement)
            position = match.end()
        swapped.append(text[position:])
        encoding = self._blind_tokenizer(start).encode("".join(swapped), add_special_tokens=False)
        ids = []
        for id, (begin, end) in zip(encoding.ids, encoding.offsets, strict=True):
            found = next((controls[place] for place in range(begin, end) if place in controls), None)
            if found is None and id in self.forbidden:
                raise UsageError("this tokenizer makes a control token of ordinary text; remove the text from the row.")
            ids.append(id if found is None else found)
        return ids

    def _blind_tokenizer(self, start: int) -> "Tokenizer":
        """A copy that knows control tokens by private characters only."""
        if start not in self._blind:
            from tokenizers import AddedToken, Tokenizer

            content = json.loads(self.json)
            added = {token["content"]: token for token in content["added_tokens"]}
            content |= {"added_tokens": [], "post_processor": None, "truncation": None, "padding": None}
            if content["model"]["type"] == "Unigram":  # its best path could run through the piece "</s>"
                content["model"]["vocab"] = [[piece, -1e6 if piece in added else score] for piece, score in content["model"]["vocab"]]
            blind = Tokenizer.from_str(json.dumps(content))
            signs = []
            for name, number in self.numbers.items():
                strips = {side: added.get(name, {}).get(side, False) for side in ("lstrip", "rstrip")}
                signs.append(AddedToken(chr(start + number), normalized=False, **strips))
            blind.add_tokens(signs)
            self._blind[start] = blind
        return self._blind[start]
