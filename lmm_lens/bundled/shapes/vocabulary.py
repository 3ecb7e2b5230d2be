"""The 90 words of the model. A token is a word, a digit or a punctuation mark; anything else is <unk>."""

from lmm_lens.bundled.shapes.questions import DIGITS, OPPOSITES, plural
from lmm_lens.bundled.shapes.scenes import COLORS, SHAPES
from lmm_lens.bundled.worlds import COLUMNS, NUMBER_WORDS, ROWS

PAD, BOS, EOS, UNK = "<pad>", "<s>", "</s>", "<unk>"
IMAGE, USER, ASSISTANT = "<image>", "USER:", "ASSISTANT:"
SPECIAL = (PAD, BOS, EOS, UNK, IMAGE, USER, ASSISTANT)
QUESTION_WORDS = (
    *("what", "where", "how", "many", "is", "are", "there", "the", "a", "at", "of"),
    *("color", "shape", "object", "objects", "nothing", "describe", "image"),
    *("plus", "minus", "comes", "after", "before", "opposite", "repeat", "word"),
)
PUNCTUATION = ("?", ".", ",")


def _numbered(words: list[str]) -> dict[str, int]:
    return {word: index for index, word in enumerate(dict.fromkeys(words))}


# the order is the checkpoints': a word's place is its row in their embeddings
VOCABULARY: dict[str, int] = _numbered(
    [
        *SPECIAL,
        *SHAPES,
        *(plural(shape) for shape in SHAPES),
        *COLORS,
        *ROWS,
        *COLUMNS,
        *DIGITS,
        *NUMBER_WORDS,
        *OPPOSITES,
        *QUESTION_WORDS,
        *PUNCTUATION,
    ]
)
