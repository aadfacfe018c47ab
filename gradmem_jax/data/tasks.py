"""The tasks that can be trained, by name."""

from typing import Any, NamedTuple

from gradmem_jax.data.babi.task import BabiConfig
from gradmem_jax.data.kv_retrieval import KVRetrievalConfig
from gradmem_jax.data.phone_book import PhoneBookConfig
from gradmem_jax.data.squad import SquadConfig
from gradmem_jax.data.text_spans import TextSpansConfig
from gradmem_jax.data.wikitext import WikiTextConfig

TASKS = {
    "babi": BabiConfig,
    "kv_retrieval": KVRetrievalConfig,
    "phone_book": PhoneBookConfig,
    "squad": SquadConfig,
    "text_spans": TextSpansConfig,
    "wikitext": WikiTextConfig,
}
"""The tasks by name; a line of your own adds one.

Examples:
    >>> from gradmem_jax.data.tasks import TASKS
    >>> TASKS["kv_retrieval"](num_pairs=8).num_pairs
    8
"""
GENERATED = ("kv_retrieval", "phone_book")  # samples are made when asked for and never repeat


class Size(NamedTuple):
    """The field of a task that says how much there is to remember.

    Attributes:
        field: its name.
        text: how people write it, with a place for the value.
        axis: label of an axis.
    """

    field: str
    text: str
    axis: str


SIZES = {
    "kv_retrieval": Size("num_pairs", "N = {}", "pairs N"),
    "babi": Size("qa", "QA{}", "bAbI task"),
    "text_spans": Size("num_tokens", "{} tokens", "tokens of a span"),
    "phone_book": Size("num_entries", "N = {}", "entries N"),
}


def size_name(task: str, fields: Any) -> str:
    """Names the size of a task, such as "N = 8" or "QA2"; the task itself if it has no sizes.

    Args:
        task: a name of `TASKS`.
        fields: its `config.data`.
    """
    if task not in SIZES:
        return task
    return SIZES[task].text.format(fields[SIZES[task].field])
