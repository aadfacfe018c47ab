"""Text that somebody else chose, such as a name in a file, made fit for a message or a terminal."""

import json
from typing import Any

LONGEST_MESSAGE = 2000  # characters, about a screen
_LONGEST_VALUE = 120


def printable(text: str) -> str:
    r"""Escapes what a terminal would obey, as JSON does: `\u001b` for the escape character.

    Line breaks and tabs stay. Text that has nothing to escape is returned as it is.
    """
    return "".join(c if c.isprintable() or c in "\n\t" else _escaped(c) for c in text)


def one_line(text: str, longest: int = LONGEST_MESSAGE) -> str:
    """Makes a text one line that can be printed, and takes out of its middle what is too long."""
    return printable(shortened(text, longest)).replace("\n", r"\n").replace("\t", r"\t")


def shortened(text: str, longest: int = LONGEST_MESSAGE) -> str:
    """Takes out of the middle of a text what is too long, and says how much."""
    if len(text) <= longest:
        return text
    end = longest // 3
    left_out = f" [... {len(text) - longest} characters ...] "
    return text[: longest - end] + left_out + text[-end:]


def is_text(text: str) -> bool:
    """Whether a text can be said in UTF-8; wrong bytes and halves of characters cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def shown(value: Any) -> str:
    """How a message shows a value: its `repr`, one line of it."""
    try:
        return one_line(repr(value), _LONGEST_VALUE)
    except Exception as error:  # such as of a whole number with too many digits
        return f"a {type(value).__name__} that cannot be shown ({type(error).__name__})"


def _escaped(character: str) -> str:
    return json.dumps(character)[1:-1] if ord(character) != 0x7F else r"\u007f"
