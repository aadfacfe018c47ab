"""What a tokenizer of a stranger may make of a text, in memory and in time.

A tokenizer.json holds patterns and replacements of its author's, which the library `tokenizers`
carries out without bounds.
"""

import base64
import binascii
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from gradmem_jax.checks import require
from gradmem_jax.foreign_text import shown

# Characters that one may become. The normalizer of XLM-R can make 36, but of usual texts no more
# than a few; that is looked at when it works.
_MOST_GROWTH = {"normalizer": 100, "pre_tokenizer": 10, "decoder": 100}
_USUAL_GROWTH, _ALWAYS_ACCEPTED = 4, 1000
_LONGEST_WORD = 1000  # characters; cutting one takes their square or cube
_LONGEST_AFFIX = 64
_MOST_PIECES_SQUARED = 2**27  # sum of squared lengths, a few times that of Gemma's 262,000 pieces
_MOST_IDS_WITHOUT_TOKEN = 1024  # beside one for each token
# The most that a part makes of a character. Unicode's longest decomposition has 18.
_UNICODE = {
    "NFC": 3,
    "NFD": 4,
    "NFKC": 18,
    "NFKD": 18,
    "Lowercase": 3,
    "BertNormalizer": 12,
    **dict.fromkeys(("Strip", "StripAccents", "Nmt"), 1),
}
_OTHERS = {"ByteLevel": 5, "Metaspace": 2, "WordPiece": 2}
_PARTS = ("normalizers", "pretokenizers", "decoders")

LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_PATTERN = LLAMA3_PATTERN.replace(r"\p{N}{1,3}", r"\p{N}")
EVERY_CHARACTER = r"[\s\S]"
SPACES_AROUND = r"\A +|[ \u2581]+\z"  # SentencePiece writes blanks as U+2581
_O200K_PATTERN = (  # of GPT-4o
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Patterns that take no long time on any text; others are watched.
_KNOWN_PATTERNS = {
    EVERY_CHARACTER,
    LLAMA3_PATTERN,
    QWEN2_PATTERN,
    _O200K_PATTERN,
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",  # GPT-2
    " {2,}",
    SPACES_AROUND,
    r"\s+",
}
_SECONDS, _CHARACTERS_IN_SECOND = 5.0, 20_000  # usual tokenizers cut a million in a second


class Watch(NamedTuple):
    """What is to be watched when a tokenizer works.

    Attributes:
        time: it has patterns that are not known, which may take for ever.
        size: its normalizer can make much of a text.
    """

    time: bool = False
    size: bool = False


def check_content(content: Any) -> Watch:
    """Checks a tokenizer.json before `tokenizers` makes anything of it.

    Args:
        content: what it holds.

    Returns:
        What is to be watched when it works.

    Raises:
        ValueError: it could make too much of a text, or is no tokenizer.
    """
    require(isinstance(content, dict), "it holds no object")
    growth = {name: _growth(content.get(name), name) for name in _MOST_GROWTH}
    for name, most in _MOST_GROWTH.items():
        require(
            growth[name] <= most,
            f"its {name} may make {growth[name]} characters or more of one; {most} are accepted",
        )
    model = content.get("model")
    require(isinstance(model, dict), "it has no model")
    longest = model.get("max_input_chars_per_word", 0)
    require(
        isinstance(longest, int) and longest <= _LONGEST_WORD,
        f"model.max_input_chars_per_word={shown(longest)}; {_LONGEST_WORD} are accepted",
    )
    for name in ("continuing_subword_prefix", "end_of_word_suffix"):
        affix = model.get(name) or ""
        require(len(affix) <= _LONGEST_AFFIX, f"model.{name} is longer than {_LONGEST_AFFIX}")
    vocabulary = model.get("vocab") or ()
    check_pieces(piece if isinstance(piece, str) else piece[0] for piece in vocabulary)
    size = growth["normalizer"] > _USUAL_GROWTH
    added = content.get("added_tokens") or ()
    require(
        {*_patterns(content.get("normalizer"))} <= _KNOWN_PATTERNS
        or not (size or any(token.get("normalized") for token in added)),
        "its normalizer has a pattern that is not known here, and either makes much of a text or "
        "is used on added tokens; that may take for ever",
    )
    return Watch(not {*_patterns(content)} <= _KNOWN_PATTERNS, size)


def check_size(normalizer: Any, text: str) -> None:
    """Refuses a text of which a normalizer makes far more than is usual."""
    size = len(limited(lambda: normalizer.normalize_str(text), "normalize a text", len(text)))
    most = _USUAL_GROWTH * len(text) + _ALWAYS_ACCEPTED
    require(
        size <= most,
        f"the tokenizer makes {size} characters of a text of {len(text)}; {most} are accepted. Use "
        "another tokenizer.",
    )


def check_pieces(pieces: Iterable[str]) -> None:
    """Refuses pieces so long that to find them takes too much time or memory."""
    work = sum(len(piece) ** 2 for piece in pieces)
    require(work <= _MOST_PIECES_SQUARED, "its pieces are too long, taken together")


def check_ids(ids: Iterable[int]) -> None:
    """Refuses ids that would make a vocabulary much larger than the tokens are many."""
    ids = list(ids)
    require(len(ids) == len(set(ids)), "the tokenizer has two tokens with one id.")
    most = 2 * len(ids) + _MOST_IDS_WITHOUT_TOKEN
    require(
        max(ids, default=0) < most,
        f"the tokenizer has {len(ids)} tokens and the id {max(ids, default=0)}; ids below {most} "
        "are accepted. Number its tokens without such gaps.",
    )


def limited(
    call: Callable[[], Any], what: str, num_characters: int, is_watched: bool = False
) -> Any:
    """Returns what a call into `tokenizers` does, which may fail in any way or take for ever.

    A call that is watched runs in a thread, which nothing can end but the end of the process.

    Args:
        call: the call; it must let other threads run if it is watched.
        what: what it does, for messages.
        num_characters: how much text it gets.
        is_watched: whether it is given up after a time.

    Raises:
        ValueError: it failed, or took too long.
    """
    if not is_watched:
        return _result(call, what)
    ended: list[Any] = []

    def run() -> None:
        try:
            ended.append((_result(call, what), None))
        except ValueError as error:
            ended.append((None, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    seconds = _SECONDS + num_characters / _CHARACTERS_IN_SECOND
    thread.join(seconds)
    require(
        bool(ended),
        f"the tokenizer takes more than {seconds:.0f} seconds to {what} of {num_characters} "
        "characters: its patterns are bad ones. Use another tokenizer.",
    )
    ((result, error),) = ended
    if error is not None:
        raise error
    return result


def _result(call: Callable[[], Any], what: str) -> Any:
    try:
        return call()
    except BaseException as error:  # a failure inside of `tokenizers` is a PanicException
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ValueError(f"the tokenizer cannot {what}: {error}") from error


def _growth(part: Any, name: str) -> int:
    """The most characters that a part of a tokenizer makes of one."""
    growth = in_row = 1
    for leaf in _leaves(part, name):
        if leaf["type"] in _UNICODE:  # several in a row make no more of a character than one
            in_row = max(in_row, _UNICODE[leaf["type"]])
        else:
            growth = min(growth * in_row * _own_growth(leaf), 1000)
            in_row = 1
    return growth * in_row


def _own_growth(part: Mapping[str, Any]) -> int:
    if part["type"] == "Replace":
        old, new = part["pattern"].get("String"), part["content"]
        return max(1, -(-len(new) // len(old))) if old else 1 + len(new)
    if part["type"] == "Prepend":
        return 1 + len(part["prepend"])
    if part["type"] == "Precompiled":
        return check_charsmap(part["precompiled_charsmap"])
    return _OTHERS.get(part["type"], 1)


def _leaves(part: Any, name: str) -> Iterator[Mapping[str, Any]]:
    """The parts of a part of a tokenizer that have no parts, in the order of their work."""
    if part is None:
        return
    require(
        isinstance(part, dict) and isinstance(part.get("type"), str),
        f"its {name} has a part without a type",
    )
    inner = [inner for key in _PARTS for inner in part.get(key, ())]
    if not inner:
        yield part
    for each in inner:
        yield from _leaves(each, name)


def check_charsmap(charsmap: str) -> int:
    """The longest text that a precompiled table of SentencePiece puts in place of another.

    Args:
        charsmap: the table in base 64.

    Raises:
        ValueError: it is none.
    """
    try:
        table = base64.b64decode(charsmap, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"its precompiled_charsmap is damaged: {error}") from error
    texts = table[4 + int.from_bytes(table[:4], "little") :].split(b"\0")
    return max(1, *(len(text.decode("utf-8", "ignore")) for text in texts))


def _patterns(part: Any) -> Iterator[str]:
    """The regular expressions in a tokenizer.json or a part of it."""
    if isinstance(part, dict):
        pattern = part.get("Regex")
        if isinstance(pattern, str):
            yield pattern
        for name, inner in part.items():
            if name != "vocab":
                yield from _patterns(inner)
    elif isinstance(part, list):
        for inner in part:
            if isinstance(inner, dict):
                yield from _patterns(inner)
