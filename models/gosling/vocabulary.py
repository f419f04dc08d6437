"""The vocabulary in the World file format, and its greedy encoding.

Ids 1 to 256 are the single bytes 0 to 255, id 0 is end of text and has no line, the rest are pieces that the
corpus uses most. Every input can be encoded; an unknown name becomes syllables and letters.

No piece has an inner blank, two digits, or letters next to punctuation, and `\\n\\n`, `User` and `Assistant`
are pieces of their own. So a text may be cut before any blank or `User` and its parts encode as the whole
does: what the model wrote and the same text read back are the same tokens.

    python -m rookery.models.gosling.vocabulary FILE      # builds one anew

The shipped `vocab.txt` was built before values were drawn from more kinds of words. One built now differs in its
rarest pieces, and needs a model trained on it: the ids are what the weights know.
"""

import ast
import re
import sys
from collections import Counter
from pathlib import Path
from random import Random

END_OF_TEXT = 0
FILE = Path(__file__).with_name("vocab.txt")
SIZE = 1024

# Blanks begin a piece and never continue one, so parts cut here encode independently.
PARTS = re.compile(r"\n+| ?[^ \n]+| ")
WORDS = re.compile(r" ?[A-Za-z]+")


class Vocabulary:
    """Text to ids by greedy longest match over bytes, and back."""

    def __init__(self, pieces: dict[int, bytes]) -> None:
        self.pieces = pieces
        self.ids = {piece: index for index, piece in pieces.items()}
        self.longest = max(map(len, self.ids))
        self._known: dict[str, list[int]] = {}

    @classmethod
    def load(cls, path: Path = FILE) -> "Vocabulary":
        pieces = {}
        for line in path.read_text(encoding="utf-8").splitlines():
            index, rest = line.split(" ", 1)
            literal, size = rest.rsplit(" ", 1)
            value = ast.literal_eval(literal)
            piece = value.encode() if isinstance(value, str) else value
            if len(piece) != int(size):
                raise ValueError(f"{path}: token {index} has {len(piece)} bytes, not {size}")
            pieces[int(index)] = piece
        return cls(pieces)

    def save(self, path: Path) -> None:
        lines = []
        for index, piece in sorted(self.pieces.items()):
            try:
                literal = repr(piece.decode())
            except UnicodeDecodeError:
                literal = repr(piece)
            lines.append(f"{index} {literal} {len(piece)}\n")
        path.write_text("".join(lines), encoding="utf-8")

    @property
    def size(self) -> int:
        """Rows of the embedding: all ids and end of text."""
        return max(self.pieces) + 1

    def encode(self, text: str) -> list[int]:
        tokens: list[int] = []
        for part in PARTS.findall(text):
            known = self._known.get(part)
            if known is None:
                known = self._greedy(part.encode())
                if len(self._known) < 200_000:
                    self._known[part] = known
            tokens += known
        return tokens

    def _greedy(self, data: bytes) -> list[int]:
        tokens, at = [], 0
        while at < len(data):
            end = min(at + self.longest, len(data))
            while data[at:end] not in self.ids:  # a single byte always is
                end -= 1
            tokens.append(self.ids[data[at:end]])
            at = end
        return tokens

    def decode(self, tokens: list[int]) -> str:
        data = b"".join(self.pieces[token] for token in tokens if token != END_OF_TEXT)
        return data.decode("utf-8", errors="replace")


def build(seed: int = 0, documents: int = 4000) -> Vocabulary:
    """Bytes, markers, syllables, then the words that save most tokens in a sample of the corpus.

    Words that are values of slots are left out: a value is spelled from syllables whether it
    was trained or not, so held-out values look like any other.
    """
    from .corpus import values
    from .corpus.conversation import conversation

    bytes_only = {i + 1: bytes([i]) for i in range(256)}
    syllables = [s for x in values.SYLLABLES for s in (x, x.capitalize(), " " + x.capitalize())]
    pieces = [b"\n\n", b"User", b"Assistant", b" Assistant", b"System", b"```"]
    pieces += [syllable.encode() for syllable in syllables]

    known_values = {
        word.lower()
        for name in ("FIRST_NAMES", "CITIES", "COLOURS", "FOODS", "DRINKS", "FRUITS", "ANIMALS", "SPORTS",
                     "INSTRUMENTS", "JOBS", "LANGUAGES", "MONTHS")
        for word in getattr(values, name)
    }  # fmt: skip
    sample = Vocabulary(bytes_only)
    counts: Counter[str] = Counter()
    rng = Random(seed)
    for _ in range(documents):
        document = conversation(rng, sample, 800, "train")
        counts.update(set(WORDS.findall(sample.decode(document.tokens))))
    ranked = sorted(counts, key=lambda w: (-counts[w] * (len(w) - 1), w))
    for word in ranked:
        piece = word.encode()
        if 1 + 256 + len(pieces) == SIZE:
            break
        if len(word) > 1 and word.strip().lower() not in known_values and piece not in pieces:
            pieces.append(piece)
    # Longer pieces may hide a marker ("Users"), which would break the cut before it.
    clean = [p for p in pieces if not re.search(rb"(User|System).", p)]
    return Vocabulary(bytes_only | dict(enumerate(clean, start=257)))


if __name__ == "__main__":
    build().save(Path(sys.argv[1]))
