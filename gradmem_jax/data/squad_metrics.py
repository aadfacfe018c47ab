"""Exact match and F1 of answers as texts, by the rules of SQuAD v1.1."""

import collections
import re
import string
from collections.abc import Callable, Sequence

from gradmem_jax.checks import require

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize_answer(text: str) -> str:
    """Returns a text in lower case, without ASCII punctuation, articles and extra white space."""
    text = text.lower().translate(_NO_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", text).split())


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """Returns 1 if a prediction equals one of the reference answers once normalised, else 0.

    Raises:
        ValueError: there are no reference answers.
    """

    def same(answer: str) -> float:
        return float(normalize_answer(prediction) == normalize_answer(answer))

    return _best(same, answers)


def f1(prediction: str, answers: Sequence[str]) -> float:
    """Returns the F1 of a prediction's words, the best over the reference answers.

    A word counts as often as it stands in both. Without a common word it is 0, even if prediction
    and answer are both empty, as in the official evaluation.

    Raises:
        ValueError: there are no reference answers.
    """
    return _best(lambda answer: _f1(prediction, answer), answers)


def _f1(prediction: str, answer: str) -> float:
    got, want = normalize_answer(prediction).split(), normalize_answer(answer).split()
    common = sum((collections.Counter(got) & collections.Counter(want)).values())
    return 2 * common / (len(got) + len(want)) if common else 0.0


def _best(score: Callable[[str], float], answers: Sequence[str]) -> float:
    require(
        len(answers) > 0 and not isinstance(answers, str),
        f"answers={answers!r} must be one or more reference answers.",
    )
    return max(map(score, answers))
