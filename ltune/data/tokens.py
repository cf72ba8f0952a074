"""Text to ids; text in a row never becomes a control token.

A text that spells one is given a stand-in for it (shield.py), and tokenised by a blind copy of the tokenizer: one that cannot make a
control token of any text, and knows the true ones by private characters only.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from ltune.data.roles import ROLES, with_roles
from ltune.data.shield import Shield, free_range, private_characters
from ltune.errors import UsageError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

BYTE = re.compile(r"<0x[0-9A-F]{2}>")  # a piece that stands for one byte of ordinary text
WORDS = 50_000  # whose pieces a tokenizer remembers, in some 20 MB; by itself the first 10,000, and those of a thousand rows are more
COPIES = 3  # large; more than one is needed only where texts have private characters
NOTHING = re.compile(r"(?!)")


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
        _remember_words(self.direct)
        added = {token.content: id for id, token in tokenizer.added_tokens_decoder.items()}
        self.control = {content: id for content, id in added.items() if content and not _ordinary(content)}
        self.names = list(self.control)
        self.spelled = re.compile(_any_of(self.names))
        self.stems = sorted({name[:2] for name in self.names})
        self.eos_id: int = tokenizer.eos_token_id
        self.bos_id: int | None = tokenizer.bos_token_id
        self.adds_bos = self.bos_id is not None and tokenizer("a")["input_ids"][:1] == [self.bos_id]
        self.is_control = np.zeros(max([*self.direct.get_vocab().values(), *self.control.values()]) + 1, bool)
        # A character that the vocabulary lacks becomes the unknown token, which controls nothing
        self.is_control[[id for id in self.control.values() if id != tokenizer.unk_token_id]] = True
        self._shields: dict[tuple[int, bool], Shield] = {}
        self._blind: dict[int, Blind] = {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        _remember_words(self.direct)  # which is not sent along

    def found_in(self, texts: Iterable[str]) -> Counter[str]:
        """The control tokens that the texts spell, and how often."""
        found: list[str] = []
        for text in texts:
            # Most texts have not even a beginning of one, which is found out far faster
            if any(stem in text for stem in self.stems):
                found += self.spelled.findall(text)
        return Counter(found)

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, list[int]]:
        """All ids, (tokens,) int32, and how many are each text's; control tokens in a text count as such."""
        return _batch(self.direct, texts)

    def shield(self, texts: Iterable[str], allow: bool = False) -> Shield:
        """Stand-ins for control tokens, of which none occurs in the texts; ``allow``: what they spell stays, only marks are put."""
        start = free_range(private_characters(self.names), texts)
        if (start, allow) not in self._shields:
            self._shields[start, allow] = Shield(self.names, NOTHING if allow else self.spelled, start)
        return self._shields[start, allow]

    def encode_shielded(self, texts: Sequence[str], shield: Shield, roles: bool = False) -> tuple[np.ndarray, list[int]]:
        """The same for rendered texts whose contents are shielded: control tokens in them are the template's, stand-ins are text.

        ``roles``: the ids come with their roles, see roles.py.
        """
        if shield.start not in self._blind:
            if len(self._blind) == COPIES:
                del self._blind[next(iter(self._blind))]
            self._blind[shield.start] = Blind(self, shield)
        blind = self._blind[shield.start]
        return blind.encode_with_roles(texts) if roles else blind.encode(texts)


class Blind:
    """A copy of a tokenizer that knows control tokens by their stand-ins only.

    Args:
        tokens: The tokenizer.
        shield: The stand-ins.
    """

    def __init__(self, tokens: Tokens, shield: Shield) -> None:
        self.shield = shield
        marks = (shield.mark, shield.begin, shield.end, *shield.owner.values())
        self.swap = shield.sign | shield.name | dict.fromkeys(marks, "")
        last = chr(shield.start + shield.count - 1)
        self.either = re.compile(f"{tokens.spelled.pattern}|[{chr(shield.start)}-{last}]")
        self.owners = {shield.mark: 0} | {mark: ROLES.index(role) for role, mark in shield.owner.items()}
        self.tokenizer, self.true_ids = self._copy(tokens)

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, list[int]]:
        """All ids, (tokens,) int32, and how many are each text's."""
        swapped = [self.either.sub(lambda match: self.swap[match.group()], self.shield.unescape(text)) for text in texts]
        ids, counts = _batch(self.tokenizer, swapped)
        return self._true(ids), counts

    def encode_with_roles(self, texts: Sequence[str]) -> tuple[np.ndarray, list[int]]:
        """The same, each id with its role. A token that has any character of a marked text is that text's."""
        swapped, of_characters, role = [], [], 0
        for text in texts:
            written, roles, role = self._roles(self.shield.unescape(text), role)
            swapped.append(written)
            of_characters.append(roles)
        encodings = self.tokenizer.encode_batch(swapped, add_special_tokens=False)
        found = [np.empty(0, np.int32)]
        for encoding, roles in zip(encodings, of_characters, strict=True):
            begins, ends = np.array(encoding.offsets, np.int64).reshape(-1, 2).T
            at_begin, at_end = roles[begins], roles[np.maximum(ends - 1, begins)]
            found.append(with_roles(self._true(np.array(encoding.ids, np.int32)), np.where(at_begin, at_begin, at_end)))
        return np.concatenate(found), [len(encoding) for encoding in encodings]

    def _roles(self, text: str, role: int) -> tuple[str, np.ndarray, int]:
        """The text to tokenise, the role of each of its characters and of what would follow, and the role that holds at its end."""
        written: list[str] = []
        roles: list[np.ndarray] = []
        place = 0
        for match in self.either.finditer(text):
            for part in (text[place : match.start()], self.swap[match.group()]):
                written.append(part)
                roles.append(np.full(len(part), role, np.int8))
            role = self.owners.get(match.group(), role)
            place = match.end()
        written.append(text[place:])
        roles.append(np.full(len(text) - place + 1, role, np.int8))
        return "".join(written), np.concatenate(roles), role

    def _true(self, ids: np.ndarray) -> np.ndarray:
        ids = self.true_ids[ids]
        if (ids < 0).any():
            raise UsageError("this tokenizer makes a control token of ordinary text; remove the text from the row.")
        return ids

    def _copy(self, tokens: Tokens) -> "tuple[Tokenizer, np.ndarray]":
        """The copy, and the true id of each of its ids, -1 where no text may lead to it."""
        from tokenizers import AddedToken, Tokenizer

        content = json.loads(tokens.json)
        flags = {token["content"]: token for token in content["added_tokens"]}
        content |= {"added_tokens": [], "post_processor": None, "truncation": None, "padding": None}
        hide(content["model"], tokens.names)
        blind = Tokenizer.from_str(json.dumps(content))
        pieces = set(blind.get_vocab(with_added_tokens=False).values())
        known = {self.shield.sign[name]: (id, flags.get(name, {})) for name, id in tokens.control.items()}
        known |= {name: (token["id"], token) for name, token in flags.items() if name not in tokens.control}
        for name, (_, given) in known.items():
            kept = {flag: given.get(flag, False) for flag in ("lstrip", "rstrip", "single_word", "normalized")}
            # A normalizer may remove private characters
            kept["normalized"] &= blind.normalizer is None or name in blind.normalizer.normalize_str(name)
            blind.add_tokens([AddedToken(name, **kept)])
        true_ids = np.full(max([*pieces, *blind.get_vocab().values()]) + 1, -1, np.int32)
        true_ids[list(pieces)] = [-1 if id < len(tokens.is_control) and tokens.is_control[id] else id for id in pieces]
        for name, (id, _) in known.items():
            own = blind.token_to_id(name)
            if own is None or (own in pieces and own != id):
                raise UsageError("this tokenizer's vocabulary has gaps in its ids; rows that spell its control tokens cannot be encoded.")
            true_ids[own] = id
        return blind, true_ids


def hide(model: dict[str, Any], names: Iterable[str]) -> None:
    """Rename the pieces in a tokenizer's model, so that no text leads to them. Their ids stay."""
    hidden = {name: f"\U0010fff0{number}\U0010fff1" for number, name in enumerate(names)}
    if isinstance(model["vocab"], dict):
        model["vocab"] = {hidden.get(piece, piece): id for piece, id in model["vocab"].items()}
    else:  # Unigram's list of (piece, score)
        model["vocab"] = [[hidden.get(piece, piece), score] for piece, score in model["vocab"]]
    if model.get("unk_token") in hidden:
        model["unk_token"] = hidden[model["unk_token"]]
    if "merges" in model:
        pairs = (pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"])
        model["merges"] = [[one, two] for one, two in pairs if not {one, two, one + two} & hidden.keys()]


def _ordinary(content: str) -> bool:
    """Runs of white space, and bytes, are added tokens too in some tokenizers; those control nothing."""
    return content.replace("▁", " ").isspace() or BYTE.fullmatch(content) is not None


def _batch(tokenizer: "Tokenizer", texts: Sequence[str]) -> tuple[np.ndarray, list[int]]:
    encodings = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    counts = [len(encoding) for encoding in encodings]
    # One list of ids at a time: all together would not fit in the processor's caches
    ids = np.fromiter(chain.from_iterable(encoding.ids for encoding in encodings), np.int32, sum(counts))
    return ids, counts


def _remember_words(tokenizer: "Tokenizer") -> None:
    """More of them, where its kind does so at all."""
    resize = getattr(tokenizer.model, "_resize_cache", None)
    if resize is not None:
        resize(WORDS)


def _any_of(names: Iterable[str]) -> str:
    """A pattern for any of the names, the longest where several begin alike; as a tree, since some tokenizers have thousands."""
    tree: dict[str, Any] = {}
    for name in names:
        branch = tree
        for character in name:
            branch = branch.setdefault(character, {})
        branch[""] = {}
    return _pattern(tree) if tree else NOTHING.pattern


def _pattern(tree: dict[str, Any]) -> str:
    tails = []
    for character, branch in sorted(tree.items()):
        if character:
            while len(branch) == 1 and "" not in branch:  # no fork: straight on, not deeper
                ((following, branch),) = branch.items()
                character += following
            tails.append(re.escape(character) + (_pattern(branch) if branch.keys() != {""} else ""))
    together = "|".join(tails)
    return f"(?:{together})?" if "" in tree else f"(?:{together})"
