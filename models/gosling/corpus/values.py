# ruff: noqa: E501 - a wording, or a list of words, stays on its line
"""Values that fill slots: names, places, words, numbers. A tenth of each, by hash, is held out.

Most values are invented from syllables or random letters, so the supply never ends and a value is
something to be copied, not known.
"""

from collections.abc import Callable, Sequence
from random import Random

from .wording import Split, belongs, held_out

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

# Words that the vocabulary has with the blank before them, as beginnings of longer ones.
SHORT = """a an as at am and are be by can do for go get had has have he hi how i if in is it let like list live long me my
name new no note now number of oh old on or order pin place play put read room say see set so sort son spell store sum talk
tell text the then they this time to up use user wait was we well what who will word write yes you""".split()
NOUNS = """age arguments assistant chocolate computer count date description engine function garden history language letter
machine mail member memory message model mountain music painting parameters person project question reminder schema sentence
server sleep sport story string team telephone title translate village weather window winter""".split()

# Words that training knows, whole or as its own sentences have them; no part of a held-out word is among them.
MIXABLE = [
    w for w in (*LISTED, *PIECES_OF_TEXT, *NOUNS) if not held_out(w) and not held_out(w.capitalize()) and len(w) > 2
]
MIXED_SHARE = 0.35


def invented(rng: Random) -> str:
    """A lower-case word nobody has said before: two or three syllables, now and then a vowel before them."""
    word = "".join(rng.choices(SYLLABLES, k=rng.choice((2, 2, 2, 3))))
    return rng.choice(("", "", "", "", "", "", "a", "e", "i", "o")) + word + rng.choice(CODAS)


def letters(rng: Random, at_least: int, at_most: int) -> str:
    return "".join(rng.choices(LETTERS, k=rng.randint(at_least, at_most)))


def mixed(rng: Random) -> str:
    """A word that begins like one and goes on like none: what follows its first pieces must be copied, not known.

    Pieces of the vocabulary are whole words in places, with the blank before them (` a`, ` the`, ` pin`), so a word that
    begins with one is written in other pieces after a blank than after a quotation mark.
    """
    one, other = rng.choice(MIXABLE), rng.choice(MIXABLE)
    kind = rng.random()
    if kind < 0.35:
        word = one[: rng.randint(1, len(one) - 1)] + other[rng.randint(1, len(other) - 1) :]
    elif kind < 0.6:
        word = rng.choice(SHORT) + rng.choice((invented(rng), letters(rng, 1, 4), other[rng.randint(0, 2) :]))
    elif kind < 0.75:
        at = rng.randrange(len(one))
        word = one[:at] + rng.choice(LETTERS) + one[at + 1 :]
    elif kind < 0.9:
        word = one[: rng.randint(1, len(one))] + letters(rng, 1, 3)
    else:
        word = letters(rng, 1, 2) + other[rng.randint(0, len(other) - 2) :]
    return word[:12]


def _drawn(draw: Callable[[Random], str]) -> Value:
    """Draw until the value belongs to the split."""

    def value(rng: Random, split: Split) -> str:
        while not belongs(text := draw(rng), split):
            pass
        return text

    return value


def _word(draw: Callable[[Random], str], *, capital: bool = False) -> Value:
    """As drawn; training writes a good part of the words in pieces that the evaluation does not ask for."""

    def more(rng: Random) -> str:
        return mixed(rng).capitalize() if capital else mixed(rng)

    plain, harder = _drawn(draw), _drawn(more)

    def value(rng: Random, split: Split) -> str:
        return (harder if split == "train" and rng.random() < MIXED_SHARE else plain)(rng, split)

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


person = _word(_proper(FIRST_NAMES), capital=True)
place = _word(_proper(CITIES), capital=True)
word = _word(lambda rng: invented(rng) if rng.random() < 0.7 else letters(rng, 3, 7))
colour = _word(_common(COLOURS))
food = _word(_common(FOODS))
drink = _word(_common(DRINKS))
fruit = _word(_common(FRUITS))
animal = _word(_common(ANIMALS))
sport = _word(_common(SPORTS))
instrument = _word(_common(INSTRUMENTS))
job = _word(_common(JOBS))
language = _word(_proper(LANGUAGES), capital=True)
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
