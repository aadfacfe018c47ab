"""What may be asked about a bAbI story, tasks 1 to 5, and the answers: the story is played."""

import dataclasses
import re

from gradmem_jax.checks import require
from gradmem_jax.data.babi.copies import SYNONYMS

_MOVED, _TOOK, _LEFT, _GAVE = ("|".join(verbs) for verbs in SYNONYMS)
_STATEMENT = re.compile(
    rf"(?P<mover>\w+) (?:{_MOVED}) the (?P<place>\w+)"
    rf"|(?P<taker>\w+) (?:{_TOOK}) the (?P<taken>\w+)(?: there)?"
    rf"|(?P<leaver>\w+) (?:{_LEFT}) the (?P<left>\w+)(?: there)?"
    rf"|(?P<giver>\w+) (?:{_GAVE}) the (?P<given>\w+) to (?P<receiver>\w+)"
    r"|The (?P<one>\w+) is (?P<way>\w+) of the (?P<other>\w+)"
)
NOBODY = "nobody"
_OPPOSITE = {"north": "south", "south": "north", "east": "west", "west": "east"}


@dataclasses.dataclass
class _World:
    """What is so at the end of a story.

    Attributes:
        place: where each person is.
        holder: who has each thing, or `NOBODY`.
        visited: the places of each thing, one after the other.
        gifts: who gave what to whom, the last one last.
        ways: what lies in which direction of what.
    """

    place: dict[str, str] = dataclasses.field(default_factory=dict)
    holder: dict[str, str] = dataclasses.field(default_factory=dict)
    visited: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    gifts: list[tuple[str, str, str]] = dataclasses.field(default_factory=list)
    ways: list[tuple[str, str, str]] = dataclasses.field(default_factory=list)

    def put(self, thing: str, person: str) -> None:
        """The thing is where the person is, if that is known."""
        place = self.place.get(person)
        visited = self.visited.setdefault(thing, [])
        if place and visited[-1:] != [place]:
            visited.append(place)


def questions(context: str, *tasks: int, holders: bool = False) -> dict[str, str]:
    """Plays a story.

    Args:
        context: its statements.
        *tasks: the bAbI tasks, 1 to 5, whose forms of questions are asked.
        holders: whether it is asked too who has each thing.

    Returns:
        All questions that have one answer, with their answers.

    Raises:
        ValueError: a statement is not one of these tasks.
    """
    world = _play(context)
    answers: dict[str, str] = {}
    for qa in tasks:
        answers |= _QUESTIONS[qa](world)
    return answers | _who_has_things(world) if holders else answers


def _play(context: str) -> _World:
    world = _World()
    for statement in filter(None, map(str.strip, context.split("."))):
        found = _STATEMENT.fullmatch(statement)
        require(found is not None, f"{statement!r} is no statement of bAbI tasks 1 to 5.")
        assert found is not None
        if found["mover"]:
            world.place[found["mover"]] = found["place"]
            for thing, holder in world.holder.items():
                if holder == found["mover"]:
                    world.put(thing, holder)
        elif found["taker"]:
            world.holder[found["taken"]] = found["taker"]
            world.put(found["taken"], found["taker"])
        elif found["leaver"]:
            world.holder[found["left"]] = NOBODY
            world.put(found["left"], found["leaver"])
        elif found["giver"]:
            world.holder[found["given"]] = found["receiver"]
            world.gifts.append((found["giver"], found["given"], found["receiver"]))
        else:
            world.ways.append((found["one"], found["way"], found["other"]))
    return world


def _where_people_are(world: _World) -> dict[str, str]:
    return {f"Where is {person}?": place for person, place in world.place.items()}


def _where_things_are(world: _World) -> dict[str, str]:
    return {
        f"Where is the {thing}?": places[-1] for thing, places in world.visited.items() if places
    }


def _where_things_were(world: _World) -> dict[str, str]:
    return {
        f"Where was the {thing} before the {place}?": before
        for thing, places in world.visited.items()
        for before, place in zip(places, places[1:], strict=False)
    }


def _who_has_things(world: _World) -> dict[str, str]:
    return {f"Who has the {thing}?": holder for thing, holder in world.holder.items()}


def _about_ways(world: _World) -> dict[str, str]:
    answers: dict[str, set[str]] = {}
    for one, way, other in world.ways:
        for a, direction, b in ((one, way, other), (other, _OPPOSITE[way], one)):
            answers.setdefault(f"What is {direction} of the {b}?", set()).add(a)
            answers.setdefault(f"What is the {a} {direction} of?", set()).add(b)
    return {question: min(found) for question, found in answers.items() if len(found) == 1}


def _about_gifts(world: _World) -> dict[str, str]:
    answers: dict[str, str] = {}
    for giver, thing, receiver in world.gifts:
        answers |= {
            f"What did {giver} give to {receiver}?": thing,
            f"Who received the {thing}?": receiver,
            f"Who did {giver} give the {thing} to?": receiver,
            f"Who gave the {thing}?": giver,
            f"Who gave the {thing} to {receiver}?": giver,
        }
    return answers


_QUESTIONS = {
    1: _where_people_are,
    2: _where_things_are,
    3: _where_things_were,
    4: _about_ways,
    5: _about_gifts,
}
