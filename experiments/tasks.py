"""The tasks that a configuration can name."""

from gradmem_jax.data.babi import BabiConfig
from gradmem_jax.data.kv_retrieval import KVRetrievalConfig

TASKS = {
    "babi": BabiConfig,
    "kv_retrieval": KVRetrievalConfig,
}
