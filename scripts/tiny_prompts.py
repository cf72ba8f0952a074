"""Prompts for reinforcement learning: questions that the tiny model can answer, each asking for an answer in capital letters.

It has seen that asked for of single short words only, and mostly answers with a sentence: there is something to learn that a regular
expression can check.
"""

import random

import tiny_text as text

Row = dict[str, str]  # {"prompt", "solution"}

FORMS = (*["{} In capital letters."] * 3, "{} Answer in capital letters.")


def prompt_rows() -> list[Row]:
    """All rows, in an order that does not matter."""
    asked = [(f"What is the opposite of {word}?", other) for word, other in text.OPPOSITES.items()]
    asked += [(f"What is the opposite of {other}?", word) for word, other in text.OPPOSITES.items()]
    asked += [(f"What is the capital of {country}?", city) for country, city in text.CAPITALS.items()]
    asked += [(f"What is the plural of {word}?", many) for word, many in text.PLURALS.items()]
    asked += [(f"What colour is {text.article(thing)}?", hue) for thing, (hue, *_) in text.THINGS.items()]
    for unit, names in (("day", text.DAYS), ("month", text.MONTHS)):
        asked += [(f"Which {unit} comes after {name}?", names[(place + 1) % len(names)]) for place, name in enumerate(names)]
    random.Random(0).shuffle(asked)
    return [
        {"prompt": FORMS[number % len(FORMS)].format(question), "solution": answer.upper()}
        for number, (question, answer) in enumerate(asked)
    ]
