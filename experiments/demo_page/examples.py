"""Texts and questions that the page offers, by task of the model."""

from typing import NamedTuple


class Examples(NamedTuple):
    """What a model can be tried with.

    Attributes:
        texts: to write.
        questions: to ask about any of them.
    """

    texts: tuple[str, ...]
    questions: tuple[str, ...]


_BY_TASK = {
    "babi": Examples(
        (
            "Mary went to the kitchen. Mary got the milk there. John moved to the office. "
            "Mary travelled to the garden.",
            "John took the milk. John went to the bathroom. John dropped the milk. John journeyed "
            "to the garden. Mary went to the hallway.",
            "Sandra went to the bedroom. John moved to the office. Sandra took the milk. Sandra "
            "travelled to the bathroom. Mary moved to the garden.",
        ),
        ("Where is the milk?", "Who has the milk?", "Where is John?"),
    ),
    "kv_retrieval": Examples(
        ("!i7:cj!!yC:cf!!qk:5v!!ep:mu!|", "!aa:b1!!cc:d2!!ee:f3!!gg:h4!|"),
        ("?!qk:", "?!i7:", "?!cc:"),
    ),
}
_PROSE = Examples(
    (
        "Tom had a red boat and a blue hat. He put the hat in the boat and went to the sea with "
        "his dog Max.",
        "The lighthouse keeper counted forty ships before breakfast. Only one of them had green "
        "sails.",
    ),
    ("Tom had a red", "The lighthouse keeper counted"),
)


def examples_of(task: str) -> Examples:
    """The examples for models of a task; "" is a pretrained one, which goes on with a text."""
    return _BY_TASK.get(task, _PROSE)
