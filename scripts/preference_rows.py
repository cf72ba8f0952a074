"""Write the embedded rows of preferences: `python scripts/preference_rows.py`. Deterministic; the words are ltune's own.

The preference: an answer in words of one list is better than one in words of the other. Which word is in which list was drawn, so a model
knows nothing of it beforehand; what it has learned shows on combinations that it has not seen.
"""

import json
import random
from pathlib import Path

ASSETS = Path(__file__).resolve().parents[1] / "ltune" / "assets"
ROWS = 160
WORDS = {
    "thing": "house garden river dog cat horse ship road town school book song tree bridge farm hill lake door table chair clock coat boat",
    "better": "sad bad dark stale fresh hard cold bright kind good dirty gentle",
    "worse": "clean rough warm mean loud sour soft sweet happy poor fine calm",
}
THINGS, BETTER, WORSE = (words.split() for words in WORDS.values())


def answer(draw: random.Random, thing: str, words: list[str]) -> str:
    """ "The house is kind and bright." """
    first, second = draw.sample(words, 2)
    return f"The {thing} is {first} and {second}."


def pairs(draw: random.Random) -> list[dict]:
    """Two answers to a question."""
    rows = []
    for _ in range(ROWS):
        thing = draw.choice(THINGS)
        rows.append(
            {"instruction": f"What is the {thing} like?", "chosen": answer(draw, thing, BETTER), "rejected": answer(draw, thing, WORSE)}
        )
    return rows


def rated(draw: random.Random) -> list[dict]:
    """An answer that is good or bad."""
    rows = []
    for _ in range(ROWS):
        thing, good = draw.choice(THINGS), draw.random() < 0.5
        rows.append(
            {"instruction": f"What is the {thing} like?", "output": answer(draw, thing, BETTER if good else WORSE), "kto_tag": good}
        )
    return rows


def main() -> None:
    """Both files."""
    for name, made in (("pairs", pairs(random.Random(1))), ("rated", rated(random.Random(2)))):
        (ASSETS / f"quickstart_{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made), encoding="utf-8")


if __name__ == "__main__":
    main()
