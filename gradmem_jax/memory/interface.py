"""What every way of writing a memory answers: `init`, `write_memory`, `read_memory`."""

import dataclasses
import functools
import typing
from typing import Any, ClassVar, Generic

import jax
import jax.numpy as jnp
import numpy as np
import typing_extensions
from jax.typing import ArrayLike

from gradmem_jax.array_checks import (
    as_array,
    check_ids,
    check_key,
    check_length,
    check_params,
    check_per_sample,
    numbers_per_sample,
    resolve_steps,
)
from gradmem_jax.checks import (
    AUTOMATIC,
    check_fields,
    is_symbolic,
    require,
    require_count,
    require_instance,
    require_integer,
    require_number,
)
from gradmem_jax.lm.families import make_lm
from gradmem_jax.lm.language_model import LMConfig
from gradmem_jax.lm.transformer import TransformerConfig
from gradmem_jax.losses import IGNORE, token_losses
from gradmem_jax.memory.inner_loop import WriteInfo, WriteSettings
from gradmem_jax.memory.programs import kept, program, shared
from gradmem_jax.parallel.any_mesh import on_any_mesh
from gradmem_jax.parallel.micro_batches import write_in_parts
from gradmem_jax.parallel.sharding import whole_layers
from gradmem_jax.precision import at_model_precision
from gradmem_jax.trees import Params, PyTree


@dataclasses.dataclass(frozen=True)
class MemoryConfig:
    """What every way of writing a memory has.

    Attributes:
        lm: the language model that writes and reads.
        num_write_steps: K, steps of one WRITE; can be changed at call time.
        inner_loss_weight: weight of the WRITE loss in the outer loss.
        pad_id: token id that fills contexts and queries up to a common length, on the right.

    Examples:
        >>> gradmem_jax.GradMemConfig(lm=small, num_write_steps=2, inner_loss_weight=0.1).lm.width
        8
    """

    model_name: ClassVar[str | None] = None  # the class it is for; a base of that refuses it
    has_write_loss: ClassVar[bool] = False
    lm_keeps: ClassVar[str] = "keys and values"
    takes_lm_without_cache: ClassVar[bool] = False
    # Fields that READ of a memory does not depend on: how parameters start, and how WRITE runs.
    not_in_read: ClassVar[tuple[str, ...]] = (
        "memory_init_std",
        "num_write_steps",
        "inner_loss_weight",
    )

    lm: LMConfig
    num_write_steps: int = 1
    inner_loss_weight: float = 0.0
    pad_id: int = 0

    def __post_init__(self) -> None:
        check_fields(self)
        require(
            self.lm.keeps == self.lm_keeps
            or (self.lm.keeps == "nothing" and self.takes_lm_without_cache),
            f"lm={type(self.lm).__name__} keeps {self.lm.keeps} of what it reads; a "
            f"{type(self).__name__} needs a language model that keeps {self.lm_keeps}.",
        )
        require_integer("num_write_steps", self.num_write_steps, 0)
        require_number("inner_loss_weight", self.inner_loss_weight)
        require(
            self.inner_loss_weight >= 0,
            f"inner_loss_weight={self.inner_loss_weight} must not be negative.",
        )
        require(
            self.has_write_loss or not self.inner_loss_weight,
            f"inner_loss_weight={self.inner_loss_weight} must be 0: this WRITE has no loss.",
        )
        require_integer("pad_id", self.pad_id, 0)
        require(
            self.pad_id < self.lm.vocab_size,
            f"pad_id={self.pad_id} is outside the vocabulary of {self.lm.vocab_size} ids.",
        )


Memory = Any  # of a model whose class is not known
MemoryT = typing_extensions.TypeVar("MemoryT", default=Any)
DecodingState = Any


def memory_floats(memory: Memory) -> int:
    """Size of the memory of one sample: how many floating numbers it holds (the paper's Table 6).

    Args:
        memory: a memory of B samples, or its shapes from `jax.eval_shape`.

    Examples:
        >>> gradmem_jax.memory_floats(memory)  # m * d
        16
    """
    leaves = jax.tree.leaves(memory)
    require(
        bool(leaves) and all(getattr(x, "shape", ()) for x in leaves),
        f"memory={memory!r} must have arrays with a leading batch axis, as write_memory returns.",
    )
    leaves = [x for x in leaves if jnp.issubdtype(x.dtype, jnp.floating)]
    return sum(int(np.prod(x.shape[1:])) for x in leaves)


def kv_cache_floats(config: LMConfig, num_tokens: int) -> int:
    """Size of the key-value cache that a Transformer keeps of a context: floating numbers.

    Args:
        config: the language model.
        num_tokens: length of the context.

    Raises:
        ValueError: the language model is not a Transformer.

    Examples:
        >>> gradmem_jax.kv_cache_floats(small, num_tokens=100)  # keys and values
        1600
    """
    require(
        isinstance(config, TransformerConfig),
        f"a language model with {type(config).__name__} keeps no key-value cache.",
    )
    assert isinstance(config, TransformerConfig)
    num_tokens = require_integer("num_tokens", num_tokens, 0)
    return 2 * config.num_layers * config.kv_heads * config.head_size * num_tokens


def swap_batch_and_layers(tree: Any) -> Any:
    """Leaves [B, L, ...], as a memory has them, as [L, B, ...], as layers have them, and back."""
    return jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), tree)


def _write(
    model: "MemoryModel[MemoryT]", params: Params, *batch: Any, max_steps: int
) -> tuple[MemoryT, WriteInfo]:
    """`run_steps` on parts of a batch: contexts, memory and settings."""

    def write(
        params: Params, context_ids: jax.Array, memory: MemoryT | None, settings: WriteSettings
    ) -> tuple[MemoryT, WriteInfo]:
        run = functools.partial(model.run_steps, params, max_steps=max_steps)
        return write_in_parts(run, context_ids, memory, settings, model.num_write_parts)

    context_ids, memory, _ = batch
    batch_axes = (0, WriteInfo._make((1, 1, 0)))
    return on_any_mesh(write, (context_ids, memory), batch_axes, params, *batch)


def _read(
    model: "MemoryModel[MemoryT]", params: Params, memory: MemoryT, query_ids: jax.Array
) -> jax.Array:
    def read(params: Params, memory: MemoryT, query_ids: jax.Array) -> jax.Array:
        read_any = model.read_logits if query_ids.ndim == 2 else model.read_several
        return read_any(params, memory, query_ids)[0]

    return on_any_mesh(read, (query_ids, memory), 0, params, memory, query_ids)


@dataclasses.dataclass(frozen=True)
class MemoryModel(Generic[MemoryT]):
    """Base of all memory writers; pure functions of (params, arrays).

    A memory is a pytree whose leaves have a leading batch axis.

    Attributes:
        config: the model.
        num_write_parts: into how many parts, written one after the other, WRITE splits a batch. -1
            takes it whole, but on CPU in parts of some 500 tokens, which is faster.
        one_pass: whether WRITE reads a context once, so that K > 1 is no more than K = 1.

    Examples:
        >>> def memory_after(model: gradmem_jax.MemoryModel, params: gradmem_jax.Params, k: int):
        ...     return model.write_memory(params, context_ids, num_steps=k)[0]
        >>> memory_after(model, params, 2).shape  # [B, m, d]
        (2, 2, 8)
    """

    one_pass: ClassVar[bool] = False

    config: MemoryConfig
    num_write_parts: int = dataclasses.field(default=AUTOMATIC, kw_only=True)

    def __post_init__(self) -> None:
        kind = typing.get_type_hints(type(self))["config"]
        require_instance("config", self.config, kind)
        wanted = self.config.model_name
        require(
            wanted is None or wanted in [base.__name__ for base in type(self).__mro__],
            f"config is a {type(self.config).__name__}, which {type(self).__name__} would take "
            f"for a {kind.__name__}; use the class {wanted}.",
        )
        require_count("num_write_parts", self.num_write_parts)

    @property
    def write_positions(self) -> int:
        """Positions that a WRITE needs beside the tokens of the context."""
        return 0

    @property
    def lm(self) -> Any:
        """The language model, a Flax module without parameters."""
        return make_lm(self.config.lm)

    def init_lm(self, key: jax.Array, lm_params: Params | None = None) -> Params:
        """Draws the parameters of the language model, or takes those given; see `init`."""
        check_key(key)

        def draw() -> Params:
            return self.lm.init(key, jnp.zeros((1, 1), jnp.int32), method="everything")

        if lm_params is None:
            return draw()["params"]
        check_params(lm_params, jax.eval_shape(draw)["params"])
        # A copy: training donates parameters, and those given are not to be deleted with them.
        return jax.tree.map(lambda x: jnp.array(x, self.config.lm.param_dtype), lm_params)

    @at_model_precision
    def apply_lm(self, params: Params, *args: Any, **kwargs: Any) -> Any:
        """Calls the language model, or the `method` of it, with its part of the parameters."""
        return self.lm.apply({"params": params["lm"]}, *args, **kwargs)

    def embed(self, params: Params, ids: jax.Array) -> jax.Array:
        """Token embeddings [B, S, d] of ids [B, S]."""
        return self.apply_lm(params, ids, method="embed")

    def training_params(self, params: Params, key: jax.Array) -> Params:
        """The parameters as one training step uses them: dropout is a transform of them.

        Args:
            params: parameters of `init`.
            key: a JAX random key, another one for each step.

        Returns:
            Parameters like `params`.
        """
        del key
        return params

    def param_metrics(self, params: Params) -> dict[str, jax.Array]:
        """What is worth watching of the parameters in training: float scalars by name."""
        del params
        return {}

    def init(self, key: jax.Array, lm_params: Params | None = None) -> Params:
        """Draws all parameters.

        Args:
            key: a JAX random key.
            lm_params: parameters of a pretrained language model of `config.lm`, in place of drawn
                ones.

        Returns:
            Nested dict, with the language model's parameters under "lm".

        Raises:
            ValueError: `lm_params` are not those of `config.lm`.
        """
        raise NotImplementedError

    @shared
    def write_memory(
        self,
        params: Params,
        context_ids: ArrayLike,
        *,
        memory: MemoryT | None = None,
        num_steps: ArrayLike | None = None,
        max_steps: int | None = None,
    ) -> tuple[MemoryT, WriteInfo]:
        """Writes contexts into memory (the paper's WRITE).

        A sample's memory depends on its own context only, not on its batch nor on padding. It is
        compiled once for all equal models, shapes, and numbers of steps.

        Args:
            params: parameters of `init`; they do not change.
            context_ids: int [B, S], padded on the right with `config.pad_id` to any length.
            memory: where to start, for writing on; an empty memory by default.
            num_steps: K, one number or one for each sample [B]; `config.num_write_steps` by
                default. A traced value needs `max_steps`.
            max_steps: static upper bound of a traced `num_steps`.

        Returns:
            The memory, and a `WriteInfo`; `run_steps` says what is in it.

        Raises:
            ValueError: wrong shapes, ids outside the vocabulary, a context longer than the model's
                positions, or a wrong number of steps.
        """
        return self.write(params, context_ids, memory, num_steps, max_steps)

    def write(
        self,
        params: Params,
        context_ids: ArrayLike,
        memory: MemoryT | None,
        num_steps: ArrayLike | None,
        max_steps: int | None,
        *,
        loss_tolerance: ArrayLike | None = None,
        write_learning_rate: ArrayLike | None = None,
        loss_data: PyTree = None,
    ) -> tuple[MemoryT, WriteInfo]:
        """Checks the arguments of `write_memory`, and calls `run_steps` on parts of the batch.

        See `write_memory`, and for the last three `GradMem.write_memory`.
        """
        num_steps = self.config.num_write_steps if num_steps is None else num_steps
        context_ids = self.check_write(params, memory, context_ids)
        batch_size = context_ids.shape[0]
        max_steps, steps = resolve_steps(num_steps, max_steps, batch_size)
        settings = WriteSettings(
            steps,
            numbers_per_sample("loss_tolerance", loss_tolerance, batch_size),
            numbers_per_sample(
                "write_learning_rate", write_learning_rate, batch_size, is_rate=True
            ),
            check_per_sample("loss_data", loss_data, batch_size),
        )
        write = program(_write, self, static_argnames=("max_steps",))
        return write(params, context_ids, memory, settings, max_steps=max_steps)

    def run_steps(
        self,
        params: Params,
        context_ids: jax.Array,
        memory: MemoryT | None,
        settings: WriteSettings,
        max_steps: int,
    ) -> tuple[MemoryT, WriteInfo]:
        """Writes contexts, the arguments being right; what a way of writing has to say.

        Args:
            params: parameters of `init`.
            context_ids: int [B, S], a batch or a part of it.
            memory: where to start; None is an empty memory.
            settings: numbers of steps, if samples differ, and what else the writer takes.
            max_steps: steps to compile, and to take if `settings` has no number.
        """
        raise NotImplementedError

    def outer_write_loss(self, info: WriteInfo) -> jax.Array:
        """The WRITE loss [B] that `inner_loss_weight` adds to the outer loss; zero here."""
        return jnp.zeros(info.num_steps.shape)

    @at_model_precision
    def write_token_losses(
        self, params: Params, memory: MemoryT, context_ids: jax.Array
    ) -> jax.Array:
        """Loss of every context token given a memory: here, of reading the context back from it.

        Args:
            params: parameters of `init`.
            memory: a memory of B samples.
            context_ids: int [B, S].

        Returns:
            [B, S] in nats, 0 on padding.

        Raises:
            ValueError: wrong shapes, ids outside the vocabulary, or a memory of another model.
        """
        positions = self.num_memory_positions(memory)
        context_ids = self.check_losses(params, memory, context_ids, positions - 1)
        length = context_ids.shape[1]
        if is_symbolic(length):
            check_length("context_ids", length, positions, self.config.lm.max_positions)
            before = context_ids
        else:
            before = context_ids[:, : max(length - 1, 1)]  # the last token may have no position
        logits, _ = self.read_logits(params, memory, before)
        labels = jnp.where(context_ids == self.config.pad_id, IGNORE, context_ids)
        return token_losses(logits[:, :length], labels)

    def check_losses(
        self, params: Params, memory: MemoryT, context_ids: ArrayLike, positions: int
    ) -> jax.Array:
        """Checks what `write_token_losses` is given; see `check_context` and `check_memory`."""
        context_ids = self.check_context(params, context_ids, positions)
        self.check_memory(params, memory, context_ids.shape[0])
        return context_ids

    def scored_tokens(self, context_ids: jax.Array) -> jax.Array:
        """Of which context tokens `write_token_losses` has a loss: here of all but padding.

        Args:
            context_ids: int [..., S], contexts or segments of them.

        Returns:
            Bool like context_ids.
        """
        return context_ids != self.config.pad_id

    def write_view(self, params: Params) -> tuple["MemoryModel[MemoryT]", Params]:
        """The model as WRITE sees it: its READ predicts a context as the WRITE loss does.

        With it `read_memory` and `generate` show what a memory holds of its context.

        Args:
            params: parameters of `init`.

        Returns:
            A model and its parameters, for the memories of this one.
        """
        return self, params

    def check_memory(self, params: Params, memory: MemoryT, batch_size: int) -> None:
        """Raises ValueError unless `memory` is one of this model, for `batch_size` samples."""
        raise NotImplementedError

    def without_padding(self, memory: MemoryT) -> MemoryT:
        """The same memory without what it keeps of padding; here it keeps nothing of it.

        Args:
            memory: a memory of B samples, its values known.
        """
        return memory

    def num_memory_positions(self, memory: MemoryT) -> int:
        """Positions that a memory takes before the first query token."""
        raise NotImplementedError

    def read_logits(
        self,
        params: Params,
        memory: MemoryT,
        query_ids: jax.Array,
        max_new_tokens: int | None = None,
    ) -> tuple[jax.Array, DecodingState]:
        """One forward pass over memory and queries.

        Args:
            params: parameters of `init`.
            memory: a memory of B samples.
            query_ids: int [B, Q], padded on the right.
            max_new_tokens: if decoding follows, how many more tokens it may add.

        Returns:
            Logits [B, Q + 1, V], the first from memory alone; and with `max_new_tokens` what
            `decode_token` starts from, as it is after the last real token of each query.
        """
        raise NotImplementedError

    def decode_token(
        self, params: Params, state: DecodingState, ids: jax.Array
    ) -> tuple[jax.Array, DecodingState]:
        """Takes one more token of each sample.

        Args:
            params: parameters of `init`.
            state: that of `read_logits`, or of the token before; here a `KVCache`.
            ids: int [B].

        Returns:
            Logits [B, V] of the next token, and the new state.
        """
        hidden, state = self.apply_lm(params, self.embed(params, ids[:, None]), cache=state)
        return self.apply_lm(params, hidden[:, 0], method="unembed"), state

    def query_lengths(self, query_ids: jax.Array) -> jax.Array:
        """Tokens of each query without its padding: int32 [B] of int [B, Q]."""
        return (query_ids != self.config.pad_id).sum(axis=1).astype(jnp.int32)

    @shared
    def read_memory(self, params: Params, memory: MemoryT, query_ids: ArrayLike) -> jax.Array:
        """Predicts the tokens of queries from memory alone (the paper's READ).

        It is compiled once for all models that read alike (`reader`), and shapes.

        Args:
            params: parameters of `init`.
            memory: what `write_memory` returned for B samples.
            query_ids: int [B, Q], or [B, R, Q] for R queries of each sample; padded on the right.

        Returns:
            Logits [B, Q + 1, V] or [B, R, Q + 1, V]. Position i predicts query token i; the last
            one predicts the token behind the query.

        Raises:
            ValueError: wrong shapes, or ids outside the vocabulary.
        """
        query_ids = self.check_read(params, memory, query_ids)
        return program(_read, self.reader)(params, memory, query_ids)

    @functools.cached_property
    def reader(self) -> typing.Self:
        """This model without what matters to WRITE alone: models that read alike have equal ones.

        Its parameters have the same shapes.
        """
        c = self.config
        defaults = {x.name: x.default for x in dataclasses.fields(c) if x.name in c.not_in_read}
        config = dataclasses.replace(c, **typing.cast(dict[str, Any], defaults))
        return dataclasses.replace(self, config=config, num_write_parts=AUTOMATIC)

    def read_several(
        self,
        params: Params,
        memory: MemoryT,
        query_ids: jax.Array,
        max_new_tokens: int | None = None,
    ) -> tuple[jax.Array, DecodingState]:
        """Runs R queries of each sample; see `read_logits`.

        Args:
            params: parameters of `init`.
            memory: a memory of B samples.
            query_ids: int [B, R, Q], padded on the right.
            max_new_tokens: if decoding follows, how many more tokens it may add to each.

        Returns:
            Logits [B, R, Q + 1, V]; and with `max_new_tokens` R states, along a first axis of their
            leaves.
        """

        def read(ids: jax.Array) -> tuple[jax.Array, DecodingState]:
            return self.read_logits(params, memory, ids, max_new_tokens)

        return jax.vmap(read, 1, (1, 0))(query_ids)

    def check_params(self, params: Params) -> None:
        """Raises ValueError unless `params` are those of `init`; there may be more beside them."""
        own, lm = self.own_params(params) or params, self.config.lm
        if getattr(lm, "gather", "step") == "layer":
            own = whole_layers(own, lm.width)
        check_params(own, self.param_shapes())

    def own_params(self, params: Params) -> Params:
        """The parameters without what stands beside those of `init`."""
        if not isinstance(params, dict):
            return params
        return {name: params[name] for name in self.param_shapes() if name in params}

    def param_shapes(self) -> Params:
        """Shapes of the parameters of `init`."""

        def evaluate() -> Params:
            return jax.eval_shape(lambda: self.reader.init(jax.random.key(0)))

        return kept(self.reader, "param_shapes", evaluate)

    def check_write(
        self, params: Params, memory: MemoryT | None, context_ids: ArrayLike
    ) -> jax.Array:
        """Returns context_ids as int [B, S], or refuses them, the parameters or the memory.

        Args:
            params: parameters of `init`.
            memory: where to start; None is an empty memory.
            context_ids: int [B, S].

        Raises:
            ValueError: wrong shapes, ids outside the vocabulary, or a context too long.
        """
        context_ids = self.check_context(params, context_ids, self.write_positions)
        if memory is not None:
            self.check_memory(params, memory, context_ids.shape[0])
        return context_ids

    def check_context(self, params: Params, context_ids: ArrayLike, positions: int) -> jax.Array:
        """Returns context_ids as int [B, S], or refuses them or the parameters.

        Args:
            params: parameters of `init`.
            context_ids: int [B, S].
            positions: what the WRITE needs beside the context.

        Raises:
            ValueError: wrong shapes, ids outside the vocabulary, or a context too long.
        """
        lm, pad_id = self.config.lm, self.config.pad_id
        self.check_params(params)
        context_ids = check_ids("context_ids", context_ids, ("B", "S"), lm.vocab_size, pad_id)
        check_length("context_ids", context_ids.shape[1], positions, lm.max_positions)
        return context_ids

    def check_read(self, params: Params, memory: MemoryT, query_ids: ArrayLike) -> jax.Array:
        """Returns query_ids as int [B, Q] or [B, R, Q], or refuses them or the memory.

        Args:
            params: parameters of `init`.
            memory: a memory of B samples.
            query_ids: int [B, Q] or [B, R, Q].

        Raises:
            ValueError: wrong shapes, or ids outside the vocabulary.
        """
        lm, pad_id = self.config.lm, self.config.pad_id
        self.check_params(params)
        query_ids = as_array("query_ids", query_ids, "int ids of shape [B, Q] or [B, R, Q]")
        axes = ("B", "R", "Q") if np.ndim(query_ids) == 3 else ("B", "Q")
        query_ids = check_ids("query_ids", query_ids, axes, lm.vocab_size, pad_id)
        self.check_memory(params, memory, query_ids.shape[0])
        positions = self.num_memory_positions(memory)
        check_length("query_ids", query_ids.shape[-1], positions, lm.max_positions)
        return query_ids
