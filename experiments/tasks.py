"""The tasks that a configuration can name."""

from gradmem_jax.data.babi import BabiConfig
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
