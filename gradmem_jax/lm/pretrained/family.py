"""What is known of one kind of models of Hugging Face."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from gradmem_jax.lm.language_model import LMConfig
from gradmem_jax.lm.pretrained.shared_tensors import Fused
from gradmem_jax.lm.pretrained.tensor_layout import Layout

NEEDED = object()


def _nothing(*_: Any) -> dict[str, Any]:
    return {}


class Family(NamedTuple):
    """How Hugging Face stores the models of one kind.

    Attributes:
        config_class: their configuration here.
        model_type: their name in config.json.
        architecture: the class of the causal language model.
        base_architecture: the class without a head, whose embedding is taken for one.
        fields: field of our configuration to their key, and what an absent key means.
        fixed: their key to the values that are computed here; the first is that of an absent key.
        layout: the tensors.
        base: what stands before the names of all tensors but the head; some files leave it out.
        implied: fields of our configuration that all models of this kind have.
        fused: tensors that hold several of the layout's.
        read_more: `(config.json, configuration so far)` to further fields of ours.
        write_more: the keys for these: the inverse.
        more_keys: further keys, which `read_more` heeds or which transformers does not look at.
    """

    config_class: type[LMConfig]
    model_type: str
    architecture: str
    base_architecture: str
    fields: Mapping[str, tuple[str, Any]]
    fixed: Mapping[str, tuple[Any, ...]]
    layout: Layout
    base: str
    implied: Mapping[str, Any] = {}
    fused: Fused = {}
    read_more: Callable[[Mapping[str, Any], Any], dict[str, Any]] = _nothing
    write_more: Callable[[Any], dict[str, Any]] = _nothing
    more_keys: tuple[str, ...] = ()
