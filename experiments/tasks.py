"""The tasks that can be trained, by name."""

from typing import Any

from gradmem_jax.data.kv_retrieval import KVRetrievalConfig

TASKS = {
    "kv_retrieval": KVRetrievalConfig,
}
GENERATED = ("kv_retrieval", "phone_book")  # samples are made when asked for and never repeat

# The field that says how much there is to remember, and what people call it.
SIZES = {
    "kv_retrieval": ("num_pairs", "N = {}"),
    "babi": ("task", "QA{}"),
    "text_spans": ("num_tokens", "{} tokens"),
    "phone_book": ("num_entries", "N = {}"),
}


def size_name(task: str, fields: Any) -> str:
    """Names the size of a task, such as "N = 8" or "QA2"; the task itself if it has no sizes.

    Args:
        task: a name of `TASKS`.
        fields: its `config.data`.
    """
    if task not in SIZES:
        return task
    field, name = SIZES[task]
    return name.format(fields[field])
