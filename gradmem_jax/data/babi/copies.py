"""Varied copies of bAbI stories, tasks 1 to 5: other names, words and order, the same answers."""

import functools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from gradmem_jax.checks import require
from gradmem_jax.data.records import Record

# Names that can change places everywhere in a story and its question.
PEOPLE = ("Bill", "Daniel", "Fred", "Jeff", "John", "Mary", "Sandra")
PLACES = ("bathroom", "bedroom", "garden", "hallway", "kitchen", "office")
THINGS = ("apple", "football", "milk")
# Words that mean the same in a story.
SYNONYMS = (
    ("went to", "went back to", "journeyed to", "travelled to", "moved to"),
    ("picked up", "grabbed", "got", "took"),
    ("left", "discarded", "dropped", "put down"),
    ("gave", "passed", "handed"),
)


def varied_copies(records: Sequence[Record], count: int) -> Iterator[Record]:
    """Makes copies of stories with a question; the same ones for ever.

    A copy has its people, its places and its things exchanged, each verb replaced by one of its
    synonyms, and its statements in another order in which those that share somebody or something
    keep theirs. So it differs from its original in all that tells stories apart and decides no
    answer. Words that no story has are not used.

    Args:
        records: the stories.
        count: copies of each.

    Raises:
        ValueError: the stories have no name that is known here.
    """
    text = " ".join(record.context for record in records)
    groups = [_known(words, text) for words in (PEOPLE, PLACES, THINGS)]
    require(
        any(groups),
        f"varied_copies={count}: the stories have none of {PEOPLE + PLACES + THINGS}.",
    )
    names = _any_of(name for group in groups for name in group)
    owners = _any_of((*PEOPLE, *THINGS))
    known_verbs = [_known(group, text) for group in SYNONYMS]
    synonyms = {word: group for group in known_verbs for word in group}
    verbs = _any_of(word for group in SYNONYMS for word in group)
    for index, record in enumerate(records):
        rng = np.random.default_rng(index)
        statements = re.split(r"(?<=\.) ", record.context)
        involved = [frozenset(owners.findall(statement)) for statement in statements]
        for copy in range(1, count + 1):
            new_names: dict[str, str] = {}
            for group in groups:
                new_names |= zip(group, rng.permutation(group).tolist(), strict=True)
            rename = functools.partial(names.sub, functools.partial(_other_name, new_names))
            context = rename(" ".join(statements[i] for i in _reordered(involved, rng)))
            yield Record(
                f"{record.id}, copy {copy}",
                verbs.sub(functools.partial(_other_verb, synonyms, rng), context),
                rename(record.question),
                tuple(map(rename, record.answers)),
            )


def _other_name(new_names: Mapping[str, str], found: re.Match[str]) -> str:
    return new_names[found[0]]


def _other_verb(
    synonyms: Mapping[str, Sequence[str]], rng: np.random.Generator, found: re.Match[str]
) -> str:
    words = synonyms[found[0]]
    return words[int(rng.random() * len(words))]


def _known(words: Sequence[str], text: str) -> list[str]:
    return [word for word in words if re.search(rf"\b{word}\b", text)]


def _any_of(words: Iterable[str]) -> re.Pattern[str]:
    return re.compile(rf"\b(?:{'|'.join(words)})\b")


def _reordered(involved: Sequence[frozenset[str]], rng: np.random.Generator) -> list[int]:
    """Returns a random order in which sets that share an element keep their order."""
    order: list[int] = []
    for i, draw in enumerate(rng.random(len(involved))):
        passes = 0
        while passes < i and involved[order[i - 1 - passes]].isdisjoint(involved[i]):
            passes += 1
        order.insert(i - int(draw * (passes + 1)), i)
    return order
