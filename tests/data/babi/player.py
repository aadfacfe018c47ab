"""A second player of bAbI stories, to compare with."""

import re

from gradmem_jax.data.babi.copies import PLACES, SYNONYMS

MOVES, TAKES, LEAVES, GIVES = ("|".join(group) for group in SYNONYMS)


def answers(context, question):
    """Plays a story and returns what may be answered."""
    place, holder, places, gifts, relations = {}, {}, {}, [], []

    def moved(thing, where):
        if where and places.setdefault(thing, [where])[-1] != where:
            places[thing].append(where)

    for statement in re.findall(r"[^.]+", context):
        words = re.fullmatch(rf" ?(\w+) (?:{MOVES}) the (\w+)", statement)
        if words:
            place[words[1]] = words[2]
            for thing in (thing for thing, owner in holder.items() if owner == words[1]):
                moved(thing, words[2])
            continue
        words = re.fullmatch(rf" ?(\w+) (?:{TAKES}) the (\w+)(?: there)?", statement)
        if words:
            holder[words[2]] = words[1]
            moved(words[2], place.get(words[1]))
            continue
        words = re.fullmatch(rf" ?(\w+) (?:{LEAVES}) the (\w+)(?: there)?", statement)
        if words:
            holder[words[2]] = "nobody"
            moved(words[2], place.get(words[1]))
            continue
        words = re.fullmatch(rf" ?(\w+) (?:{GIVES}) the (\w+) to (\w+)", statement)
        if words:
            holder[words[2]] = words[3]
            gifts.append((words[1], words[2], words[3]))
            continue
        words = re.fullmatch(r" ?The (\w+) is (\w+) of the (\w+)", statement)
        relations.append((words[1], words[2], words[3]))

    last = lambda *wanted: next(
        gift
        for gift in reversed(gifts)
        if all(w in (None, g) for w, g in zip(wanted, gift, strict=True))
    )
    if words := re.fullmatch(r"Where is (\w+)\?", question):
        return {place[words[1]]}
    if words := re.fullmatch(r"Where is the (\w+)\?", question):
        return {places[words[1]][-1]}
    if words := re.fullmatch(r"Who has the (\w+)\?", question):
        return {holder[words[1]]}
    if words := re.fullmatch(r"Where was the (\w+) before the (\w+)\?", question):
        visited = places[words[1]]
        return {visited[max(i for i, p in enumerate(visited) if p == words[2]) - 1]}
    if words := re.fullmatch(r"What did (\w+) give to (\w+)\?", question):
        return {last(words[1], None, words[2])[1]}
    if words := re.fullmatch(r"Who received the (\w+)\?", question):
        return {last(None, words[1], None)[2]}
    if words := re.fullmatch(r"Who did (\w+) give the (\w+) to\?", question):
        return {last(words[1], words[2], None)[2]}
    if words := re.fullmatch(r"Who gave the (\w+)\?", question):
        return {last(None, words[1], None)[0]}
    if words := re.fullmatch(r"Who gave the (\w+) to (\w+)\?", question):
        return {last(None, words[1], words[2])[0]}
    at = lambda a, way, b: (a, way, b) in relations
    opposite = {"north": "south", "south": "north", "east": "west", "west": "east"}
    is_way = lambda a, way, b: at(a, way, b) or at(b, opposite[way], a)
    if words := re.fullmatch(r"What is the (\w+) (\w+) of\?", question):
        return {b for b in PLACES if is_way(words[1], words[2], b)}
    words = re.fullmatch(r"What is (\w+) of the (\w+)\?", question)
    return {a for a in PLACES if is_way(a, words[1], words[2])}
