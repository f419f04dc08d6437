# ruff: noqa: E501 - a wording, or a list of words, stays on its line
"""Values that fill slots: names, places, words, numbers. A tenth of each, by hash, is held out.

Most values are invented from syllables or random letters, so the supply never ends and a value is
something to be copied, not known.
"""

from collections.abc import Callable, Sequence
from random import Random

from .wording import Split, belongs

Value = Callable[[Random, Split], str]

SYLLABLES = [onset + vowel for onset in "bdfgklmnprstvz" for vowel in "aeiou"]
CODAS = ["", "", "", "n", "r", "l", "s", "m", "t", "nd", "x", "ck"]
LETTERS = "abcdefghijklmnopqrstuvwxyz"

FIRST_NAMES = """Ada Alice Amir Ana Anna Anton Ben Bianca Boris Carla Carlos Cem Chen Chloe Clara Dana Daniel David Diego
Dora Elena Eli Elif Ella Emil Emily Emma Eric Erik Eva Fatima Felix Finn Frank Freya George Greta Hana Hannah Hans Harry Hugo
Ida Igor Ines Ingrid Irene Isaac Ivan Jack Jakob James Jan Jane Jenny Joe John Jonas Julia Julian Karim Karl Kate Kenji Lara
Laura Lea Leo Lily Lina Linus Liu Lucas Lucy Luis Lukas Luna Maja Marco Maria Marie Mark Martin Marta Mary Max Maya Mia Michael
Mila Mohamed Mona Nadia Nina Noah Nora Oleg Olga Olivia Omar Oscar Otto Pablo Paul Paula Pedro Peter Petra Priya Rahul Raj Rita
Robert Rosa Ruth Sam Samira Sandra Sara Sarah Sofia Sophie Stefan Susan Tanja Tara Theo Thomas Tim Tina Tom Uma Vera Victor Viola
Wei William Yara Yuki Yusuf Zara Zoe""".split()
CITIES = """Aachen Accra Amman Athens Bamako Basel Bergen Berlin Bern Bogota Boston Bremen Brno Bristol Cairo Cape Chicago
Cork Dakar Delhi Denver Dublin Durban Florence Geneva Genoa Ghent Graz Hanoi Havana Helsinki Kigali Krakow Kyiv Lagos Leeds Leiden Lima
Lisbon London Lyon Madrid Malmo Manila Milan Minsk Munich Nairobi Naples Oslo Osaka Ottawa Oxford Paris Perth Porto Prague Quito Riga
Rome Seoul Seville Sofia Split Sydney Tallinn Tampere Tirana Tokyo Toronto Turin Utrecht Vienna Vilnius Warsaw York Zagreb""".split()
COLOURS = """red blue green yellow orange purple pink brown black white grey violet turquoise silver gold beige crimson
indigo teal olive maroon amber ivory scarlet""".split()
FOODS = """pizza pasta rice soup bread cheese sushi salad curry beans noodles pancakes dumplings lentils potatoes porridge
waffles risotto tacos falafel hummus stew omelette toast ramen lasagne""".split()
DRINKS = "tea coffee milk water juice cocoa lemonade cider mate kefir soda cola beer wine".split()
FRUITS = """apple pear plum cherry mango banana peach grape lemon melon kiwi fig quince papaya apricot orange strawberry
raspberry pineapple""".split()
ANIMALS = """cat dog horse goose duck owl fox wolf bear otter rabbit lynx whale dolphin hedgehog badger heron crow eagle
tiger lion zebra giraffe koala penguin seal""".split()
SPORTS = """tennis football chess rowing running swimming cycling hockey judo boxing golf volleyball climbing sailing
fencing handball basketball skiing surfing""".split()
INSTRUMENTS = """piano violin guitar flute cello harp drums trumpet oboe clarinet organ banjo accordion mandolin
saxophone""".split()
JOBS = """baker teacher nurse doctor painter gardener tailor carpenter pilot miner farmer barber cook waiter driver
sailor plumber lawyer librarian painter potter welder butcher joiner dentist chemist welder writer singer dancer""".split()
LANGUAGES = """Spanish French German Italian Finnish Polish Czech Turkish Greek Arabic Hindi Japanese Korean Swahili Dutch
Danish Latin Welsh Irish Hungarian Chinese""".split()
MONTHS = """January February March April May June July August September October November December""".split()
PIECES_OF_TEXT = """river hill stone bridge winter garden lamp paper window table letter candle forest market station
island cloud road kitchen ladder basket mirror village harbour mountain summer evening morning tower shadow""".split()


LISTED = sorted(
    {
        word.lower()
        for words in (
            *(COLOURS, FOODS, DRINKS, FRUITS, ANIMALS, SPORTS, INSTRUMENTS, JOBS, LANGUAGES),
            *(FIRST_NAMES, CITIES),
        )
        for word in words
    }
)


def invented(rng: Random) -> str:
    """A lower-case word nobody has said before: two or three syllables, now and then a vowel before them."""
    word = "".join(rng.choices(SYLLABLES, k=rng.choice((2, 2, 2, 3))))
    return rng.choice(("", "", "", "", "", "", "a", "e", "i", "o")) + word + rng.choice(CODAS)


def letters(rng: Random, at_least: int, at_most: int) -> str:
    return "".join(rng.choices(LETTERS, k=rng.randint(at_least, at_most)))


def _drawn(draw: Callable[[Random], str]) -> Value:
    """Draw until the value belongs to the split."""

    def value(rng: Random, split: Split) -> str:
        while not belongs(text := draw(rng), split):
            pass
        return text

    return value


def _proper(known: Sequence[str]) -> Callable[[Random], str]:
    """Capitalised: known ones, words of any other list, inventions, random letters."""

    def draw(rng: Random) -> str:
        kind = rng.random()
        if kind < 0.30:
            return rng.choice(known)
        if kind < 0.42:
            return rng.choice(LISTED).capitalize()
        if kind < 0.78:
            return invented(rng).capitalize()
        return letters(rng, 3, 7).capitalize()

    return draw


def _common(known: Sequence[str]) -> Callable[[Random], str]:
    """Lower case, mixed alike. A colour may be called `pizza`: it is what was said that counts."""

    def draw(rng: Random) -> str:
        kind = rng.random()
        if kind < 0.35:
            return rng.choice(known)
        if kind < 0.55:
            return rng.choice(LISTED)
        return invented(rng) if kind < 0.85 else letters(rng, 3, 7)

    return draw


def digits(at_least: int, at_most: int) -> Value:
    """Decimal numbers of so many digits, not beginning with 0."""

    def draw(rng: Random) -> str:
        count = rng.randint(at_least, at_most)
        return str(rng.randrange(10 ** (count - 1), 10**count))

    return _drawn(draw)


person = _drawn(_proper(FIRST_NAMES))
place = _drawn(_proper(CITIES))
word = _drawn(lambda rng: invented(rng) if rng.random() < 0.7 else letters(rng, 3, 7))
colour = _drawn(_common(COLOURS))
food = _drawn(_common(FOODS))
drink = _drawn(_common(DRINKS))
fruit = _drawn(_common(FRUITS))
animal = _drawn(_common(ANIMALS))
sport = _drawn(_common(SPORTS))
instrument = _drawn(_common(INSTRUMENTS))
job = _drawn(_common(JOBS))
language = _drawn(lambda rng: _proper(LANGUAGES)(rng))
date = _drawn(lambda rng: f"{rng.randint(1, 28)} {rng.choice(MONTHS)}")
clock = _drawn(lambda rng: f"{rng.randint(6, 22)}:{rng.randrange(60):02d}")
password = _drawn(lambda rng: letters(rng, 3, 6) + str(rng.randrange(10, 100)))
age = digits(2, 2)
code = digits(4, 4)
number = digits(1, 3)
phone = digits(5, 6)


def string(rng: Random, split: Split) -> str:
    """Something to be copied: 2 to 16 letters or digits."""
    kind = rng.random()
    if kind < 0.4:
        draw = _drawn(lambda r: letters(r, 2, 16))
    elif kind < 0.7:
        draw = _drawn(lambda r: "".join(r.choices(SYLLABLES, k=r.randint(1, 8))))
    elif kind < 0.85:
        draw = _drawn(lambda r: "".join(r.choices(LETTERS + "0123456789", k=r.randint(2, 16))))
    else:
        draw = digits(2, 16)
    return draw(rng, split)
