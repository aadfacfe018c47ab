"""Language models of one's own: what WRITE, READ and decoding find is a plain forward pass's."""

import dataclasses
from typing import Any, ClassVar

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl.testing import absltest, parameterized
from flax import linen as nn
from jax import export

from gradmem_jax import (
    RMT,
    FullContext,
    FullContextConfig,
    GPT2Config,
    GPTNeoXConfig,
    GradMem,
    GradMemConfig,
    KVPrefixConfig,
    LlamaConfig,
    RMTConfig,
    StateSpace,
    StateSpaceConfig,
    WarmStart,
    WarmStartConfig,
    generate,
    load_memory,
    reconstruct,
    register_lm,
    save_memory,
)
from gradmem_jax.lm import (
    Block,
    Llama,
    LMConfig,
    RecurrentLM,
    Transformer,
    TransformerConfig,
    dense,
    make_lm,
    rms_norm,
    rotary_frequencies,
    rotate,
    self_attention,
    swiglu,
)
from gradmem_jax.parallel import sharding
from gradmem_jax.training.step import init_state, make_train_step
from tests.small import numpy_params, random_ids, small_batch, small_params

SIZES = dict(vocab_size=11, width=8, num_layers=2, num_heads=2, max_positions=40)
SLOPES = np.array([0.5, 0.125])
WINDOW = 4


@dataclasses.dataclass(frozen=True)
class OwnConfig(LlamaConfig):
    """A Llama whose layers may have a mask and a bias."""

    def layer_options(self):
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class WindowConfig(OwnConfig):
    def layer_options(self):
        return {"mask": lambda query, key: query - key < WINDOW}


@dataclasses.dataclass(frozen=True)
class SinkConfig(OwnConfig):
    """Every token sees the first ones, and a window."""

    def layer_options(self):
        return {"mask": lambda query, key: (key < 3) | (query - key < 2)}


@dataclasses.dataclass(frozen=True)
class AlibiConfig(OwnConfig):
    def layer_options(self):
        return {"bias": lambda query, key: -jnp.array(SLOPES)[:, None, None] * (query - key)}


@dataclasses.dataclass(frozen=True)
class BlindConfig(OwnConfig):
    """The first token sees nothing, others see it."""

    def layer_options(self):
        return {"mask": lambda query, key: key < query}


class OwnBlock(Block):
    @nn.compact
    def __call__(self, x, inputs, state):
        c = self.config
        y, new = OwnAttention(c, name="attention")(rms_norm(c, "attention_norm")(x), inputs, state)
        x = x + y
        return x + swiglu(c, c.mlp_size, rms_norm(c, "mlp_norm")(x)), new


@dataclasses.dataclass(frozen=True)
class RelativeConfig(OwnConfig):
    """A learned bias of each distance."""


class OwnAttention(nn.Module):
    config: OwnConfig

    @nn.compact
    def __call__(self, x, inputs, state):
        c = self.config
        if isinstance(c, RelativeConfig):
            table = self.param("table", nn.initializers.normal(1.0), (5, c.num_heads))
            places = lambda query, key: jnp.clip(query - key, 0, 4)[:, 0]
            options = {"bias": lambda *at: table[places(*at)].transpose(0, 3, 1, 2)}
        else:
            options = c.layer_options()
        if not isinstance(c, AlibiConfig):
            frequencies = rotary_frequencies(c.head_size, c.rope_base)
            options["rotary"] = lambda x, positions: rotate(x, positions, frequencies)
        return self_attention(c, x, inputs, state, **options)


@register_lm(OwnConfig)
class OwnLM(Llama):
    layer_class = OwnBlock


@dataclasses.dataclass(frozen=True)
class WholePrefixConfig(LlamaConfig):
    """The first tokens, which are the memory, see each other."""

    num_whole: int = 3


@register_lm(WholePrefixConfig)
class WholePrefixLM(Llama):
    def __call__(self, embeddings, *, mask=None, cache=None, **options):
        length = embeddings.shape[1]
        if mask is None and (cache is None or cache.keys.shape[3] == length):
            token = jnp.arange(length)
            mask = (token <= token[:, None]) | (token < self.config.num_whole)
        return super().__call__(embeddings, mask=mask, cache=cache, **options)


@dataclasses.dataclass(frozen=True)
class ShiftedConfig(LlamaConfig):
    """Embeddings are changed on their way in."""


@register_lm(ShiftedConfig)
class ShiftedLM(Llama):
    def __call__(self, embeddings, **options):
        return super().__call__(1 + embeddings, **options)


class DecayLayer(nn.Module):
    """A decaying sum of the tokens so far."""

    config: LMConfig

    @nn.compact
    def __call__(self, x, real, state):
        def step(total, token):
            x, real = token
            total = jnp.where(real[:, None], 0.5 * total + x, total)
            return total, total

        first = jnp.zeros_like(x[:, 0]) if state is None else state
        tokens = (jnp.swapaxes(x, 0, 1), real.T)
        state, totals = jax.lax.scan(step, first, tokens)
        return x + dense(self.config, x.shape[-1], "down")(jnp.swapaxes(totals, 0, 1)), state


@dataclasses.dataclass(frozen=True)
class DecayConfig(LMConfig):
    keeps: ClassVar[str] = "a state"


@register_lm(DecayConfig)
class DecayLM(RecurrentLM):
    layer_class = DecayLayer


class FeedForwardLayer(nn.Module):
    """Mixes tokens by a mean over those before, and ignores the state."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x, inputs, state):
        length = x.shape[1]
        seen = jnp.tril(jnp.ones((length, length))) if inputs.mask is None else inputs.mask[:, 0]
        mean = seen @ x / seen.sum(-1, keepdims=True)
        return x + dense(self.config, x.shape[-1], "down")(nn.tanh(x + mean)), None


@dataclasses.dataclass(frozen=True)
class StatelessConfig(TransformerConfig):
    keeps: ClassVar[str] = "nothing"


@register_lm(StatelessConfig)
class StatelessLM(Transformer):
    layer_class = FeedForwardLayer


@dataclasses.dataclass(frozen=True)
class GRUConfig(LMConfig):
    keeps: ClassVar[str] = "nothing"


@register_lm(GRUConfig)
class GRULM(nn.Module):
    """A module of Flax that knows nothing of this library."""

    config: GRUConfig

    def setup(self):
        self.table = nn.Embed(self.config.vocab_size, self.config.width)
        self.query = nn.Dense(self.config.width)
        self.rnn = nn.RNN(nn.GRUCell(self.config.width))

    def embed(self, ids):
        return self.table(ids)

    def __call__(self, embeddings):
        return self.rnn(self.query(embeddings))

    def unembed(self, hidden):
        return hidden @ self.head_kernel()

    def head_kernel(self):
        return 2 * self.table.embedding.T


FEWER_SIZES = {name: SIZES[name] for name in ("vocab_size", "width", "max_positions")}
SIZES_OF = {"gru": FEWER_SIZES, "window": SIZES}
MODELS = {
    "llama": LlamaConfig(**SIZES),
    "gpt2": GPT2Config(**SIZES),
    "gpt_neox": GPTNeoXConfig(**SIZES, rotary_fraction=0.5),
    "window": WindowConfig(**SIZES, num_kv_heads=1),
    "window_scanned": WindowConfig(**SIZES, scan_layers=True, remat="full"),
    "sink": SinkConfig(**SIZES),
    "alibi": AlibiConfig(**SIZES),
    "relative": RelativeConfig(**SIZES),
    "whole_prefix": WholePrefixConfig(**SIZES),
    "shifted": ShiftedConfig(**SIZES),
    "stateless": StatelessConfig(**SIZES),
    "gru": GRUConfig(**FEWER_SIZES),
}

# How queries of a sample are laid out does not depend on what a layer makes of them.
ALIKE_FOR_ONE_QUERY = tuple(name for name in MODELS if name not in ("window", "stateless", "gru"))


def seen_and_added(config, length):
    """Mask [S, S] and bias [H, S, S] of a model, said once more."""
    query, key = np.arange(length)[:, None], np.arange(length)
    seen, added = key <= query, np.zeros((2, length, length))
    if isinstance(config, WindowConfig):
        seen = seen & (key > query - WINDOW)
    if isinstance(config, SinkConfig):
        seen = seen & ((key < 3) | (key >= query - 1))
    if isinstance(config, AlibiConfig):
        added = -SLOPES[:, None, None] * (query - key)
    if isinstance(config, WholePrefixConfig):
        seen = seen | (key < 3)
    return seen, added


def norm(x, scale):
    return x / jnp.sqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-5) * scale


def plain_llama(config, params, x):
    """Hidden states [B, S, d] of a Llama, without cache, blocks and shortcuts."""
    seen, added = seen_and_added(config, x.shape[1])
    frequencies = rotary_frequencies(4, config.rope_base)
    turned = 0 if isinstance(config, AlibiConfig) else jnp.arange(x.shape[1])
    x = 1 + x if isinstance(config, ShiftedConfig) else x
    for i in range(2):
        p = params.get(f"layers_{i}")
        if p is None:
            p = jax.tree.map(lambda leaf, i=i: leaf[i], params["layers"])
        y = norm(x, p["attention_norm"]["scale"])
        q, k, v = (
            jnp.einsum("bsd,dhe->bshe", y, p["attention"][name]["kernel"])
            for name in ("query", "key", "value")
        )
        q, k = (rotate(y, turned + 0 * jnp.arange(x.shape[1]), frequencies) for y in (q, k))
        k, v = (jnp.repeat(y, 2 // y.shape[2], axis=2) for y in (k, v))
        if isinstance(config, RelativeConfig):
            place = np.arange(x.shape[1])
            distances = np.clip(place[:, None] - place, 0, 4)
            added = jnp.moveaxis(p["attention"]["table"][distances], -1, 0)
        scores = jnp.einsum("bshe,bthe->bhst", q, k) / 2 + added
        weights = jax.nn.softmax(jnp.where(seen, scores, -jnp.inf), axis=-1)
        y = jnp.einsum("bhst,bthe->bshe", weights, v)
        x = x + jnp.einsum("bshe,hed->bsd", y, p["attention"]["output"]["kernel"])
        y = norm(x, p["mlp_norm"]["scale"])
        gate, up = (y @ p[name]["kernel"] for name in ("gate", "up"))
        x = x + (nn.silu(gate) * up) @ p["down"]["kernel"]
    return norm(x, params["final_norm"]["scale"])


def plain_logits(config, params, memory, ids):
    """Logits [B, S + 1, V] of all tokens behind a memory, by one forward pass."""
    lm = make_lm(config)
    variables = {"params": params["lm"]}
    tokens = lm.apply(variables, ids, method="embed")
    x = jnp.concatenate([memory, tokens], axis=1)
    if isinstance(config, LlamaConfig):
        hidden = plain_llama(config, params["lm"], x)
    else:
        hidden, _ = lm.apply(variables, x)  # without a cache, partial attention and blocks
    return lm.apply(variables, hidden[:, memory.shape[1] - 1 :], method="unembed")


def gradmem(config, **options):
    options = {"num_memory_tokens": 3, "num_write_steps": 2, "write_head": False} | options
    model = GradMem(GradMemConfig(lm=config, write_learning_rate=2.0, **options))
    return model, small_params(model)


@dataclasses.dataclass(frozen=True)
class NewConfig(LMConfig):
    pass


@dataclasses.dataclass(frozen=True)
class NewStateless(LMConfig):
    keeps: ClassVar[str] = "nothing"


@dataclasses.dataclass(frozen=True)
class NewUnknown(LMConfig):
    keeps: ClassVar[str] = "memories"


class PlainForwardPassTest(parameterized.TestCase):
    @parameterized.named_parameters((name, name) for name in MODELS)
    @pytest.mark.slow_cases("gpt2", "gpt_neox")  # parity_test.py has their numbers of others
    def test_write_is_plain_descent(self, name):
        model, params = gradmem(MODELS[name])
        ids = random_ids(0, 2, 7)

        @jax.jit
        def descend(memory):
            def loss(memory):
                logits = plain_logits(MODELS[name], params, memory, ids)[:, :-1]
                each = optax.softmax_cross_entropy_with_integer_labels(logits, ids).mean(axis=1)
                return each.sum(), each

            gradient, losses = jax.grad(loss, has_aux=True)(memory)
            return memory - 2.0 * gradient, losses

        first = model.initial_memory(params, 2)
        second, losses = descend(first)
        third, more_losses = descend(second)
        memory, info = jax.jit(model.write_memory)(params, ids)
        np.testing.assert_allclose(info.losses, [losses, more_losses], rtol=2e-5)
        np.testing.assert_allclose(memory, third, atol=1e-4)
        self.assertGreater(np.abs(third - first).max(), 0.01)

    @parameterized.parameters(*MODELS)
    def test_read_and_decoding_are_plain(self, name):
        model, params = gradmem(MODELS[name])
        memory = np.random.default_rng(1).standard_normal((2, 3, 8)).astype(np.float32)
        queries = random_ids(2, 2, 2, 6)
        queries[0, 1, 4:] = 0
        read = jax.jit(lambda ids: plain_logits(MODELS[name], params, memory, ids))
        logits = jax.jit(model.read_memory)(params, memory, queries)
        answers = generate(model, params, memory, queries, 3)
        for r in range(2):
            ids = np.pad(queries[:, r], ((0, 0), (0, 3)))
            np.testing.assert_allclose(read(ids)[:, :7], logits[:, r], atol=2e-5)
            lengths = (queries[:, r] > 0).sum(axis=1)
            for i, tokens in enumerate(answers[:, r].T):
                rows = np.arange(2), lengths + i
                np.testing.assert_array_equal(read(ids)[rows][:, 1:].argmax(-1) + 1, tokens)
                ids[rows] = tokens

    @parameterized.named_parameters((name, name) for name in MODELS)
    @pytest.mark.slow_cases(*ALIKE_FOR_ONE_QUERY)
    def test_one_query_is_answered_as_one_of_many(self, name):
        model, params = gradmem(MODELS[name])
        memory = np.random.default_rng(1).standard_normal((2, 3, 8)).astype(np.float32)
        queries = random_ids(2, 2, 2, 6)
        queries[0, 1, 4:] = 0

        @jax.jit
        def use(queries):
            logits = model.read_memory(params, memory, queries)
            return logits, generate(model, params, memory, queries, 3)

        logits, answers = use(queries)
        one_logits, one_answers = use(queries[:, 1])
        np.testing.assert_allclose(one_logits, logits[:, 1], atol=2e-5)
        np.testing.assert_array_equal(one_answers, answers[:, 1])


class OtherUsesTest(parameterized.TestCase):
    @parameterized.parameters("stateless", "gru")
    def test_exported_with_an_open_batch(self, name):
        model, params = gradmem(MODELS[name])

        def answer(params, contexts, queries):
            memory, _ = model.write_memory(params, contexts)
            return generate(model, params, memory, queries, 3)

        (batch,) = export.symbolic_shape("b")
        shapes = [jax.ShapeDtypeStruct((batch, *x), jnp.int32) for x in ((5,), (2, 4))]
        made = export.export(jax.jit(answer))(params, *shapes)
        ids = [random_ids(i, 3, *x).astype(np.int32) for i, x in enumerate(((5,), (2, 4)))]
        np.testing.assert_array_equal(made.call(params, *ids), answer(params, *ids))

    def test_what_a_mask_or_a_bias_changes(self):
        _, params = gradmem(MODELS["llama"])
        embeddings = np.random.default_rng(0).standard_normal((2, 9, 8)).astype(np.float32)

        def run(name):
            config = dataclasses.replace(MODELS[name], num_kv_heads=None)
            return jax.jit(lambda x: plain_llama(config, params["lm"], x))(embeddings)

        plain = run("llama")
        for name in (
            "window",
            "sink",
            "alibi",
            "whole_prefix",
            "shifted",
        ):  # others say it in params
            self.assertGreater(np.abs(plain - run(name)).max(), 0.05)

    @parameterized.parameters("window", "alibi", "relative")
    def test_rmt_skips_padding(self, name):
        config = RMTConfig(lm=MODELS[name], num_memory_tokens=3)
        model = RMT(config)
        params = small_params(model)
        ids = random_ids(0, 2, 7)
        padded = np.pad(ids, ((0, 0), (0, 3)))
        write = jax.jit(model.write_memory)
        memory, _ = write(params, ids)
        first = model.initial_memory(params, 2)
        tokens = model.embed(params, ids)
        plain = plain_llama(config.lm, params["lm"], jnp.concatenate([first, tokens, first], 1))
        np.testing.assert_allclose(memory, plain[:, -3:], atol=2e-5)
        np.testing.assert_allclose(write(params, padded)[0], memory, atol=2e-5)

    @parameterized.parameters("window", "alibi")
    def test_full_context_goes_on(self, name):
        model = FullContext(FullContextConfig(lm=MODELS[name]))
        params = small_params(model)
        ids = random_ids(0, 2, 7)
        ids[0, 5:] = 0
        query = random_ids(1, 2, 4)
        memory, _ = jax.jit(model.write_memory)(params, ids)
        logits = jax.jit(model.read_memory)(params, memory, query)

        @jax.jit
        def read(ids):
            hidden = plain_llama(MODELS[name], params["lm"], model.embed(params, ids))
            return model.apply_lm(params, hidden, method="unembed")

        for b, length in enumerate((5, 7)):
            joined = np.ones((1, 11), int)
            joined[0, : length + 4] = [*ids[b, :length], *query[b]]
            want = read(joined)[0, length - 1 : length + 4]
            np.testing.assert_allclose(logits[b], want, atol=2e-5)

    def test_training_gradient_is_finite_where_a_token_sees_nothing(self):
        model, params = gradmem(BlindConfig(**SIZES))
        ids = random_ids(0, 2, 5)

        def outer_loss(params):
            memory, info = model.write_memory(params, ids)
            return model.read_memory(params, memory, ids).mean() + info.losses.sum()

        for leaf in jax.tree.leaves(jax.jit(jax.grad(outer_loss))(params)):
            self.assertTrue(np.isfinite(leaf).all())

    def test_who_sees_nothing_gets_nothing(self):
        lm = make_lm(BlindConfig(**SIZES))
        init = lambda: lm.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32), method="everything")
        params = numpy_params(init)
        ids = random_ids(0, 2, 5)
        run = jax.jit(lambda ids: lm.apply(params, ids, method="everything"))
        changed = np.array(ids)
        changed[:, 1:] = 12 - changed[:, 1:] % 11 - 1
        np.testing.assert_array_equal(run(ids)[:, 0], run(changed)[:, 0])

    @parameterized.parameters(
        (lambda query, key: -1e9 * (key < query), None, "mask is float32; it must be bool"),
        (None, lambda query, key: key < query, "bias is bool; it must be numbers"),
        (lambda query, key: (key < query)[..., :1, :2], None, r"mask has shape .*\[B, H, S, T\]"),
        (None, lambda query, key: jnp.zeros((3, 1, 1)), r"bias has shape \(3, 1, 1\)"),
    )
    def test_wrong_masks_are_refused(self, mask, bias, message):
        class Config(OwnConfig):
            def layer_options(self):
                return {"mask": mask, "bias": bias}

        lm = make_lm(Config(**SIZES))
        with self.assertRaisesRegex(ValueError, message):
            jax.eval_shape(
                lambda: lm.init(jax.random.key(0), jnp.ones((2, 5), int), method="everything")
            )

    def test_a_mask_of_numbers_is_refused(self):
        lm = make_lm(LlamaConfig(**SIZES))
        with self.assertRaisesRegex(ValueError, "mask is float32; it must be bool"):
            jax.eval_shape(
                lambda: lm.init(jax.random.key(0), jnp.ones((2, 5, 8)), mask=jnp.zeros((5, 5)))
            )

    @parameterized.parameters(
        (OwnBlock, {}, WindowConfig, "mask cannot be heeded"),
        (OwnBlock, {}, AlibiConfig, "bias cannot be heeded"),
        (Block, {"__call__": WholePrefixLM.__call__}, WholePrefixConfig, "inputs.mask cannot"),
    )
    def test_a_shortcut_that_is_wrong_is_refused(self, layer, methods, base, message):
        config_class = dataclasses.dataclass(frozen=True)(type("Config", (base,), {}))
        lm_class = type("ClaimsToo", (Llama,), {"layer_class": layer, "attends_apart": True})
        if methods:

            class ClaimsToo(WholePrefixLM):
                attends_apart: ClassVar[bool] = True

            lm_class = ClaimsToo
        register_lm(config_class, lm_class)
        model, params = gradmem(config_class(**SIZES))
        with self.assertRaisesRegex(ValueError, f"{message}.*take attends_apart = True out"):
            jax.eval_shape(model.write_memory, params, random_ids(0, 2, 7))

    def test_other_ways_to_write_without_a_cache(self):
        ids = random_ids(0, 2, 7)
        model = RMT(RMTConfig(lm=MODELS["stateless"], num_memory_tokens=3))
        params = small_params(model)
        write = jax.jit(model.write_memory)
        memory, _ = write(params, ids)
        np.testing.assert_allclose(
            write(params, np.pad(ids, ((0, 0), (0, 3))))[0], memory, atol=2e-5
        )
        for make in (
            lambda: RMT(RMTConfig(lm=MODELS["gru"])),
            lambda: WarmStart(WarmStartConfig(lm=MODELS["gru"])).write_positions,
        ):
            with self.assertRaisesRegex(ValueError, "lm=GRUConfig .* takes no positions and mask"):
                make()
        for config in (KVPrefixConfig, FullContextConfig):
            with self.assertRaisesRegex(ValueError, "StatelessConfig keeps nothing of what"):
                config(lm=MODELS["stateless"])

    @parameterized.parameters("gru", "window")
    def test_memory_files(self, name):
        model, params = gradmem(MODELS[name])
        memory, _ = model.write_memory(params, random_ids(0, 2, 7))
        path = self.create_tempdir().full_path + "/memory.safetensors"
        save_memory(path, memory, model, params)
        np.testing.assert_array_equal(load_memory(path, model, params), memory)
        with self.assertRaisesRegex(ValueError, "lm.class '(GRU|Window)Config' in"):
            load_memory(path, *gradmem(MODELS["llama"]))

        @dataclasses.dataclass(frozen=True)
        class UnstorableConfig(type(MODELS[name])):
            function: Any = abs

        model, params = gradmem(UnstorableConfig(**SIZES_OF[name], function=sum))
        with self.assertRaisesRegex(ValueError, "UnstorableConfig cannot be stored.*function"):
            save_memory(path, memory, model, params)

    @parameterized.parameters("gru", "window")
    def test_a_training_step_on_a_mesh(self, name):
        model, params = gradmem(MODELS[name], num_write_steps=1)
        optimizer = optax.sgd(0.1)
        batch = small_batch(8)
        state = init_state(params, optimizer)
        want, metrics = jax.jit(make_train_step(model, optimizer))(state, batch)
        mesh = sharding.make_mesh(sharding.MeshConfig(data=2, fsdp=2, tensor=2))
        where = sharding.shardings(state, mesh)
        step = jax.jit(make_train_step(model, optimizer, mesh=mesh))
        placed = sharding.place(batch, sharding.batch_sharding(mesh))
        got, metrics_there = step(sharding.place(state, where), placed)
        chex.assert_trees_all_close(jax.device_get(got.params), want.params, atol=2e-5)
        np.testing.assert_allclose(metrics_there["loss"], metrics["loss"], rtol=1e-5)

    def test_a_state(self):
        model = StateSpace(StateSpaceConfig(lm=DecayConfig(**FEWER_SIZES, num_layers=2)))
        params = small_params(model)
        ids = random_ids(0, 2, 10)
        memory, _ = jax.jit(model.write_memory)(params, np.pad(ids[:, :6], ((0, 0), (0, 2))))
        logits = jax.jit(model.read_memory)(params, memory, ids[:, 6:])
        everything = jax.jit(lambda ids: model.apply_lm(params, ids, method="everything"))
        np.testing.assert_allclose(logits, everything(ids)[:, 5:], atol=2e-5)
        joined = np.array(ids)
        for i, token in enumerate(generate(model, params, memory, ids[:, 6:8], 2).T):
            np.testing.assert_array_equal(everything(joined)[:, 7 + i, 1:].argmax(-1) + 1, token)
            joined[:, 8 + i] = token

    def test_reading_back(self):
        model, params = gradmem(MODELS["stateless"], write_head=True)
        ids = random_ids(0, 2, 5)
        memory, _ = jax.jit(model.write_memory)(params, ids)
        self.assertEqual(reconstruct(model, params, memory, ids).ids.shape, (2, 5))
        model, params = gradmem(MODELS["gru"], write_head=True)
        with self.assertRaisesRegex(ValueError, "lm=GRUConfig .* set write_head=False"):
            reconstruct(model, params, memory, ids)

    def test_adapters_that_nothing_adds_are_refused(self):
        options = dict(write_lora_rank=2, write_lora_targets=("query", "down"))
        gradmem(MODELS["stateless"], **options)
        with self.assertRaisesRegex(ValueError, "query would leave out an adapter of WRITE"):
            gradmem(MODELS["gru"], **options)

    def test_layers_without_keys_and_values_are_refused(self):
        @dataclasses.dataclass(frozen=True)
        class Config(TransformerConfig):
            pass

        register_lm(Config, StatelessLM)
        model, params = gradmem(Config(**SIZES))
        memory = model.initial_memory(params, 2)
        with self.assertRaisesRegex(ValueError, 'StatelessLM return no keys .* keeps = "nothing"'):
            generate(model, params, memory, random_ids(0, 2, 3), 2)

    def test_registering(self):
        @dataclasses.dataclass(frozen=True)
        class Config(GRUConfig):
            pass

        self.assertIs(register_lm(Config, GRULM), GRULM)
        self.assertIs(register_lm(Config)(GRULM), GRULM)

        @dataclasses.dataclass(frozen=True)
        class Derived(Config):
            note: str = ""

        self.assertIsInstance(make_lm(Derived(vocab_size=11)).lm, GRULM)
        for config_class in (Config, Derived):
            with self.assertRaisesRegex(ValueError, "has the language model GRULM already"):
                register_lm(config_class, type("Other", (GRULM,), {}))

    @parameterized.parameters(
        (int, GRULM, "config_class=.* must be a subclass of LMConfig"),
        (type("Plain", (GRUConfig,), {}), GRULM, "must be a subclass of LMConfig that is a data"),
        (NewConfig, GRULM, 'must be a subclass of Transformer, as .* Say keeps = "nothing"'),
        (NewStateless, abs, "lm_class=<built-in function abs> must be a subclass of Module"),
        (NewStateless, nn.Module, "Module has no method embed, __call__, unembed, head_kernel"),
        (NewUnknown, GRULM, "NewUnknown.keeps='memories' is not known; choose one of"),
    )
    def test_registrations_are_refused(self, config_class, lm_class, message):
        with self.assertRaisesRegex(ValueError, message):
            register_lm(config_class, lm_class)


if __name__ == "__main__":
    absltest.main()
