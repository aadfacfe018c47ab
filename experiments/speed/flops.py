"""How many floating point operations a training step takes, counted from its matrix products.

Of one sequence, W operations are products with weights and A those of attention, queries with keys
and weights with values, in all that its blocks do not skip. A multiplication is 2 operations.

| pass | weights | attention |
|---|---|---|
| forward | 1 W | 1 A |
| WRITE gradient, with respect to memory only | 2 W | 3 A |
| its mixed-mode pullback: tangents of forward, of both backward products | 6 W | 9 A |
| the same of the last of one or two steps, whose linearised gradient is kept | 4 W | 6 A |
| WRITE step, reverse over reverse, forward pass included | 6 W | 9 A |
| READ, forward and backward | 3 W | 3 A |

What the context's tokens find among one another in the first layer is computed once in a WRITE,
whatever K, and W and A of its steps are without it.
Recomputation by remat is not counted, nor is what is no matrix product; nor is it that remat
has the last step compute its gradient again.
"""

import dataclasses
from typing import NamedTuple

from experiments.speed.setting import Setting
from gradmem_jax.lm.attention import causal_blocks
from gradmem_jax.lm.llama import LlamaConfig
from gradmem_jax.memory.inner_loop import MAX_STEPS_TO_KEEP_LAST


class Products(NamedTuple):
    """Operations of one forward pass over one sequence.

    Attributes:
        weights: of the products with weights.
        attention: of the products of attention.
    """

    weights: int
    attention: int

    def times(self, weights: int, attention: int) -> int:
        """Operations of so many passes."""
        return weights * self.weights + attention * self.attention


def forward_products(lm: LlamaConfig, length: int, predictions: int, cached: int = 0) -> Products:
    """Counts one forward pass.

    Args:
        lm: the language model.
        length: tokens of the sequence, memory included.
        predictions: tokens whose logits are computed.
        cached: tokens before them whose keys and values are there.
    """
    heads, kv_heads = lm.num_heads * lm.head_size, lm.kv_heads * lm.head_size
    layer = lm.width * (2 * heads + 2 * kv_heads + 3 * lm.mlp_size)
    head = lm.width * lm.vocab_size
    pairs = sum((end - start) * (cached + end) for start, end in causal_blocks(length))
    return Products(
        weights=2 * (length * lm.num_layers * layer + predictions * head),
        attention=4 * lm.num_layers * heads * pairs,
    )


class SampleProducts(NamedTuple):
    """Operations of the forward passes of one sample.

    Attributes:
        within_context: what the context's tokens find among one another in the first layer.
        write: a WRITE step, without that.
        reads: the READs of all queries.
    """

    within_context: Products
    write: Products
    reads: Products


def sample_products(setting: Setting) -> SampleProducts:
    """Counts the forward passes of a sample; several queries share one pass over the memory."""
    s, lm, prefix = setting, setting.lm_config(), setting.model_config().prefix_length
    context = s.context_tokens - 1  # the last one is only predicted
    whole = forward_products(lm, prefix + context, s.context_tokens)
    first_layer = dataclasses.replace(lm, num_layers=1)
    heads = (lm.num_heads + 2 * lm.kv_heads) * lm.head_size

    def among(length: int) -> int:
        return forward_products(first_layer, length, 0).attention

    seen = 4 * lm.num_heads * lm.head_size * context * prefix
    within_context = Products(2 * context * lm.width * heads, among(context))
    write = Products(
        whole.weights - within_context.weights,
        whole.attention - among(prefix + context) + among(prefix) + seen,
    )
    queries, tokens = s.queries_per_context, s.query_tokens
    if queries == 1:
        return SampleProducts(
            within_context, write, forward_products(lm, prefix + tokens, tokens + 1)
        )
    shared = forward_products(lm, prefix, 0)
    each = forward_products(lm, tokens, tokens + 1, cached=prefix)
    reads = (once + queries * count for once, count in zip(shared, each, strict=True))
    return SampleProducts(within_context, write, Products(*reads))


def training_flops(products: SampleProducts, write_steps: int, mixed: bool = True) -> int:
    """Operations of a sample's part of a training step.

    Args:
        products: forward passes of the sample.
        write_steps: K.
        mixed: whether the meta-gradient is in mixed mode, or else reverse over reverse.
    """
    within_context, write, reads = products
    if not write_steps:
        return reads.times(3, 3)
    linearized_once = write.times(6, 9)
    earlier = write.times(8, 12) if mixed else linearized_once
    last = linearized_once if write_steps <= MAX_STEPS_TO_KEEP_LAST else earlier
    return within_context.times(3, 3) + (write_steps - 1) * earlier + last + reads.times(3, 3)


def step_flops(setting: Setting) -> int:
    """Operations of one training step on a whole batch."""
    s = setting
    mixed = s.meta_gradient == "mixed"
    return s.batch_size * training_flops(sample_products(s), s.write_steps, mixed)


def inference_flops(setting: Setting) -> int:
    """Operations of WRITE and READ of a whole batch."""
    s = setting
    within_context, write, reads = sample_products(s)
    once = sum(within_context) if s.write_steps else 0
    return s.batch_size * (once + s.write_steps * write.times(2, 3) + sum(reads))
