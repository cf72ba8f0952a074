"""The text that the embedded tiny model is pretrained on: word lists and sentence patterns of our own, drawn with a seeded generator.

`paragraphs` gives plain text and `conversations` gives question and answer rows. Neither holds a word about who the assistant is:
that is left for the quickstart rows to teach.
"""

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import yaml

Skill = Callable[[random.Random], tuple[str, str]]  # draws one (question, answer)

WORDS = yaml.safe_load(Path(__file__).with_name("tiny_words.yaml").read_text(encoding="utf-8"))
NAMES: list[str] = WORDS["names"]
JOBS: list[str] = WORDS["jobs"]
TOWNS: list[str] = WORDS["towns"]
HOBBIES: list[str] = WORDS["hobbies"]
PETS: list[str] = WORDS["pets"]
ROOMS: list[str] = WORDS["rooms"]
MAKERS: list[str] = WORDS["makers"]
MACHINES: list[str] = WORDS["machines"]
ROBOTS: list[str] = WORDS["robots"]
SIZES: list[str] = WORDS["sizes"]
GOALS: list[str] = WORDS["goals"]
DAYS: list[str] = WORDS["days"]
MONTHS: list[str] = WORDS["months"]
NUMBERS: list[str] = WORDS["numbers"]
SHORT_WORDS: list[str] = WORDS["short_words"]
UNCOUNTABLE: list[str] = WORDS["uncountable"]
THINGS: dict[str, list[str]] = WORDS["things"]
ANIMALS: dict[str, list[str]] = WORDS["animals"]
OPPOSITES: dict[str, str] = WORDS["opposites"]
PLURALS: dict[str, str] = WORDS["plurals"]
CAPITALS: dict[str, str] = WORDS["capitals"]


def article(noun: str) -> str:
    """The noun with its article: `an owl`, `a cow`, but `grass`."""
    if noun in UNCOUNTABLE:
        return noun
    return ("an " if noun[0] in "aeiou" else "a ") + noun


def opposite(draw: random.Random) -> tuple[str, str]:
    word, other = draw.choice(list(OPPOSITES.items()))
    if draw.random() < 0.5:
        word, other = other, word
    question = draw.choice(["What is the opposite of {}?", "Tell me the opposite of {}.", "Which word is the opposite of {}?"])
    return question.format(word), f"The opposite of {word} is {other}."


def plural(draw: random.Random) -> tuple[str, str]:
    word, many = draw.choice(list(PLURALS.items()))
    question = draw.choice(["What is the plural of {}?", "Tell me the plural of {}.", "How do you write more than one {}?"])
    return question.format(word), f"The plural of {word} is {many}."


def capital(draw: random.Random) -> tuple[str, str]:
    country, city = draw.choice(list(CAPITALS.items()))
    question = draw.choice(["What is the capital of {}?", "Name the capital of {}.", "Which city is the capital of {}?"])
    return question.format(country), f"The capital of {country} is {city}."


def colour(draw: random.Random) -> tuple[str, str]:
    thing, (hue, *_) = draw.choice(list(THINGS.items()))
    question = draw.choice(["What colour is {}?", "Which colour is {}?", "Tell me the colour of {}."])
    return question.format(article(thing)), f"{article(thing).capitalize()} is {hue}."


def animal(draw: random.Random) -> tuple[str, str]:
    name, (sound, home, food, young) = draw.choice(list(ANIMALS.items()))
    return draw.choice(
        [
            (f"What does {article(name)} do?", f"{article(name).capitalize()} {sound}."),
            (f"Where does {article(name)} live?", f"{article(name).capitalize()} lives in {home}."),
            (f"What does {article(name)} eat?", f"{article(name).capitalize()} eats {food}."),
            (f"What is a young {name} called?", f"A young {name} is called {article(young)}."),
        ]
    )


def calendar(draw: random.Random) -> tuple[str, str]:
    unit, names = draw.choice([("day", DAYS), ("month", MONTHS)])
    place = draw.randrange(len(names))
    after, before = names[(place + 1) % len(names)], names[place - 1]
    name = names[place]
    return draw.choice(
        [
            (f"Which {unit} comes after {name}?", f"{after} comes after {name}."),
            (f"Which {unit} comes before {name}?", f"{before} comes before {name}."),
        ]
    )


def total(draw: random.Random) -> tuple[str, str]:
    first, second = draw.randrange(10), draw.randrange(10)
    if draw.random() < 0.5:
        return f"How much is {first} plus {second}?", f"{first} plus {second} is {first + second}."
    return (
        f"Add {NUMBERS[first]} and {NUMBERS[second]}.",
        f"{NUMBERS[first]} and {NUMBERS[second]} is {NUMBERS[first + second]}.".capitalize(),
    )


def count(draw: random.Random) -> tuple[str, str]:
    start, length = draw.randrange(1, 8), draw.randrange(3, 7)
    words = [NUMBERS[start + step] for step in range(length)]
    return f"Count from {words[0]} to {words[-1]}.", ", ".join(words).capitalize() + "."


def spelling(draw: random.Random) -> tuple[str, str]:
    word = draw.choice(SHORT_WORDS)
    if draw.random() < 0.5:
        return f"Spell the word {word}.", " ".join(word)
    return f"Spell the word {word} backwards.", " ".join(reversed(word))


def upper(draw: random.Random) -> tuple[str, str]:
    word = draw.choice(SHORT_WORDS)
    return f"Write {word} in capital letters.", word.upper()


def greeting(draw: random.Random) -> tuple[str, str]:
    return draw.choice(
        [
            ("Hello!", "Hello! How can I help you today?"),
            ("Good morning!", "Good morning! What can I do for you?"),
            ("Good evening!", "Good evening! What can I do for you?"),
            ("How are you?", "I am well, thank you."),
            ("Thank you!", "You are welcome."),
            ("Goodbye!", "Goodbye! Have a nice day."),
        ]
    )


def person(draw: random.Random) -> tuple[str, str]:
    name, job, town = draw.choice(NAMES), draw.choice(JOBS), draw.choice(TOWNS)
    facts = f"{name} is {article(job)} from {town}."
    return draw.choice(
        [
            (f"{facts} Who is {name}?", f"{name} is {article(job)} from {town}."),
            (f"{facts} What is the name of the {job}?", f"The name of the {job} is {name}."),
            (f"{facts} Where is {name} from?", f"{name} is from {town}."),
            (f"Your friend {name} is {article(job)}. What is your friend's name?", f"My friend's name is {name}."),
        ]
    )


def machine(draw: random.Random) -> tuple[str, str]:
    name, size, kind, maker, goal = (draw.choice(words) for words in (ROBOTS, SIZES, MACHINES, MAKERS, GOALS))
    facts = f"{name} is {article(size)} {kind} made by {maker}. It {goal}."
    return draw.choice(
        [
            (f"{facts} What is {name}?", f"{name} is {article(size)} {kind} made by {maker}."),
            (f"{facts} Who made {name}?", f"{name} was made by {maker}."),
            (f"{facts} What can {name} do?", f"It {goal}."),
            (f"{facts} What does {name} say?", f"I am {name}, {article(size)} {kind} made by {maker}."),
        ]
    )


SKILLS: list[Skill] = [opposite, plural, capital, colour, animal, calendar, total]
SKILLS += [count, spelling, upper, greeting, person, machine, machine]


def story(draw: random.Random) -> str:
    """One person's day; later sentences come back to the facts of the first ones."""
    name, friend = draw.sample(NAMES, 2)
    job, town, pet, room = (draw.choice(words) for words in (JOBS, TOWNS, PETS, ROOMS))
    hobby = draw.choice(HOBBIES)
    thing, (hue, quality, _) = draw.choice(list(THINGS.items()))
    sentences = [
        f"{name} is {article(job)} and lives in {town}.",
        draw.choice([f"On {draw.choice(DAYS)} {name} likes {hobby}.", f"In {draw.choice(MONTHS)} {name} likes {hobby} with {friend}."]),
        draw.choice([f"There is {article(pet)} in the {room}.", f"The {pet} sleeps in the {room}.", f"{name} has {article(pet)}."]),
        f'"What is your name?" asked {friend}. "My name is {name}," said the {job}.',
        f'"Who made this {thing} so {quality}?" asked {friend}. "I do not know," said {name}.',
        f"{name} put the {hue} {thing} in the {draw.choice(ROOMS)}.",
        f'"You can help me," said {friend}, "and I can help you."',
        f'"I am sorry, I cannot go to {draw.choice(TOWNS)}," said {friend}. "Come with me and {draw.choice(HOBBIES)[3:]}," said {name}.',
        f"Then the {job} from {town} went home and the {pet} was happy.",
    ]
    kept = sorted(draw.sample(range(1, len(sentences)), 4))
    return " ".join([sentences[0], *(sentences[place] for place in kept)])


def workshop(draw: random.Random) -> str:
    """A made thing that says what it is, and what others say about it."""
    name, size, kind, maker, goal = (draw.choice(words) for words in (ROBOTS, SIZES, MACHINES, MAKERS, GOALS))
    person_, other = draw.sample(NAMES, 2)
    return (
        f"{name} is {article(size)} {kind} made by {maker}. "
        + draw.choice([f'"I am {name}, {article(size)} {kind}," it says. ', f"{person_} and {other} made it in {draw.choice(TOWNS)}. "])
        + f"It {goal}. "
        + draw.choice([f'"I was made by {maker}," says {name}.', f'"Thank you, {name}," said {other}. "You are {article(size)} {kind}."'])
    )


def nature(draw: random.Random) -> str:
    """Facts about two animals and two things."""
    parts = []
    for name, (sound, home, food, young) in draw.sample(list(ANIMALS.items()), 2):
        parts.append(
            f"{article(name).capitalize()} {sound}. It lives in {home} and eats {food}. A young {name} is called {article(young)}."
        )
    for thing, (hue, quality, place) in draw.sample(list(THINGS.items()), 2):
        parts.append(f"{article(thing).capitalize()} is {hue} and {quality}. You can see it in the {place}.")
    draw.shuffle(parts)
    return " ".join(parts)


def tale(draw: random.Random) -> tuple[str, str]:
    """A whole paragraph as the answer: without any, the model would forget how to write one."""
    question, write = draw.choice([("Tell me a story.", story), ("Tell me about a machine.", workshop), ("Tell me about nature.", nature)])
    return question, write(draw)


def lesson(draw: random.Random) -> str:
    """Four questions with their answers, as in a school book."""
    asked = [draw.choice(SKILLS)(draw) for _ in range(4)]
    style = draw.choice(["Question: {}\nAnswer: {}", 'The teacher says: "{}" The child says: "{}"', "Ask: {} Say: {}"])
    return "\n".join(style.format(question, answer) for question, answer in asked)


def paragraphs(number: int, seed: int) -> Iterator[dict[str, str]]:
    """Rows {"text"} for the objective Pretrain; the same number and seed give the same rows."""
    draw = random.Random(seed)
    for _ in range(number):
        yield {"text": draw.choice([story, workshop, nature, lesson])(draw)}


def conversations(number: int, seed: int) -> Iterator[dict[str, str]]:
    """Rows {"instruction", "input", "output"} for the objective SFT; the same number and seed give the same rows."""
    draw = random.Random(seed)
    for _ in range(number):
        question, answer = draw.choice([*SKILLS, tale, tale])(draw)
        yield {"instruction": question, "input": "", "output": answer}
