"""ARMT and LaCT against step-by-step implementations of one sample, in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from gradmem_jax import AssociativeConfig, LaCTConfig
from gradmem_jax.lm.armt import Associations, associate, dpfp, recall
from gradmem_jax.lm.families import make_lm
from gradmem_jax.lm.lact import orthogonalize
from tests.small import numpy_params, small_params, small_writer

OPTIONS = dict(
    vocab_size=11,
    width=8,
    num_layers=1,
    num_heads=2,
    mlp_width=12,
    init="fan_in",
    dtype="float64",
    param_dtype="float64",
)
MEMORY_TOKENS = 2
with jax.enable_x64(True):
    ARMT = make_lm(AssociativeConfig(**OPTIONS, memory_width=4))


def lact(**changes):
    options = dict(chunk_size=3, window_size=3, inner_learning_rate=0.5)
    return make_lm(LaCTConfig(**OPTIONS, **(options | changes)))


def norm(x, scale, epsilon=1e-5):
    return x / jnp.sqrt((x**2).mean() + epsilon) * scale


def rotated(x, position, heads=2, base=500_000.0):
    """Rotary embedding of one vector by complex numbers."""
    x = x.reshape(heads, -1)
    half = x.shape[1] // 2
    angles = position * base ** (-jnp.arange(half) / half)
    turned = (x[:, :half] + 1j * x[:, half:]) * jnp.exp(1j * angles)
    return jnp.concatenate([turned.real, turned.imag], axis=1).reshape(-1)


def attention(queries, keys, values, window=None, heads=2):
    """One query and head at a time."""
    rows = []
    for t, query in enumerate(queries):
        first = 0 if window is None else max(0, t - window + 1)
        parts = []
        for h in range(heads):
            cut = lambda x, h=h: x.reshape(heads, -1)[h]
            scores = jnp.stack(
                [cut(query) @ cut(keys[s]) / len(cut(query)) ** 0.5 for s in range(first, t + 1)]
            )
            weights = jnp.exp(scores - scores.max())
            weights /= weights.sum()
            parts.append(sum(w * cut(values[first + i]) for i, w in enumerate(weights)))
        rows.append(jnp.concatenate(parts))
    return rows


def mlp(p, x):
    gate = x @ p["gate"]["kernel"]
    return (gate * jax.nn.sigmoid(gate) * (x @ p["up"]["kernel"])) @ p["down"]["kernel"]


def naive_armt(params, embeddings, memory):
    """Loops over tokens, heads and features; returns hidden states and the new memory."""
    p = params["layers_0"]
    matrix, normalizer = memory

    def features(x):
        both = [max_(v) for v in x] + [max_(-v) for v in x]
        count = len(both)
        return jnp.stack([both[i] * both[(i - j) % count] for j in (1, 2, 3) for i in range(count)])

    max_ = lambda v: jnp.where(v > 0, v, 0)
    xs = []
    for x in embeddings:
        query = features(x @ p["memory_query"]["kernel"])
        xs.append(x + query @ matrix / (normalizer @ query + 1e-5))
    block = p["block"]
    heads = lambda name, x: (
        norm(x, block["attention_norm"]["scale"]) @ block["attention"][name]["kernel"].reshape(8, 8)
    )
    queries = [rotated(heads("query", x), t) for t, x in enumerate(xs)]
    keys = [rotated(heads("key", x), t) for t, x in enumerate(xs)]
    attended = attention(queries, keys, [heads("value", x) for x in xs])
    output = block["attention"]["output"]["kernel"].reshape(8, 8)
    xs = [x + y @ output for x, y in zip(xs, attended, strict=True)]
    xs = [x + mlp(block, norm(x, block["mlp_norm"]["scale"])) for x in xs]
    new_matrix, new_normalizer = matrix, normalizer
    for x in xs[-MEMORY_TOKENS:]:
        key = features(x @ p["memory_key"]["kernel"])
        known = normalizer @ key
        held = key @ matrix / (known + 1e-5)
        strength = x @ p["memory_strength"]["kernel"][:, 0] + p["memory_strength"]["bias"][0]
        change = x @ p["memory_value"]["kernel"] - held
        new_matrix = new_matrix + jax.nn.sigmoid(strength) * jnp.outer(key, change)
        new = jax.lax.stop_gradient(jnp.clip(1 - known / (key @ key + 1e-5), 0, 1))
        new_normalizer = new_normalizer + new * key
    hidden = jnp.stack([norm(x, params["final_norm"]["scale"]) for x in xs])
    return hidden, (new_matrix, new_normalizer)


def naive_lact(c, params, embeddings, weights):
    """Trains fast weights by `jax.grad` of their objective, chunk by chunk, head by head."""
    p = params["layers_0"]
    names = ("gate", "out", "up")
    first = {n: p[f"fast_{n}"] for n in names}
    weights = [{n: first[n][h] for n in names} if weights is None else weights[h] for h in (0, 1)]
    ys = [norm(x, p["attention_norm"]["scale"]) for x in embeddings]
    plain = {n: [y @ p[n]["kernel"] for y in ys] for n in ("query", "key", "value")}
    attended = attention(
        [rotated(x, t) for t, x in enumerate(plain["query"])],
        [rotated(x, t) for t, x in enumerate(plain["key"])],
        plain["value"],
        c.window_size,
    )
    silu = lambda x: x * jax.nn.sigmoid(x)

    def fast(name, x, h):
        x = silu(x * p[f"fast_{name}_scale"] + p[f"fast_{name}_offset"]).reshape(2, -1)[h]
        return x / jnp.sqrt(x @ x + 1e-10)

    def f(w, x):
        return w["out"] @ (silu(w["gate"] @ x) * (w["up"] @ x))

    reads = [[None, None] for _ in ys]
    start = jnp.log(jnp.expm1(c.inner_learning_rate))
    for begin in range(0, len(ys), c.chunk_size):
        chunk = range(begin, min(begin + c.chunk_size, len(ys)))
        for h in (0, 1):
            for t in chunk:
                reads[t][h] = f(weights[h], fast("query", plain["query"][t], h))
            changed = {}
            for i, n in enumerate(names):

                def objective(w, n=n, i=i, h=h, chunk=chunk):
                    total = 0.0
                    for t in chunk:
                        rates = ys[t] @ p["rates"]["kernel"] + p["rates"]["bias"] + start
                        value = silu(plain["value"][t]).reshape(2, -1)[h]
                        key = fast("key", plain["key"][t], h)
                        rate = jax.nn.softplus(rates)[2 * i + h]
                        total += rate * f({**weights[h], n: w}, key) @ value
                    return total

                gradient = jax.grad(objective)(weights[h][n])
                if c.muon:
                    gradient = orthogonalize(gradient)
                new = weights[h][n] + gradient
                size = lambda w: jnp.sqrt((w**2).sum(axis=1, keepdims=True) + 1e-10)
                changed[n] = new / size(new) * size(first[n][h])
            weights[h] = changed
    rows = []
    for x, y, a, read in zip(embeddings, ys, attended, reads, strict=True):
        scale = silu(y @ p["fast_scale"]["kernel"] + p["fast_scale"]["bias"])
        read = [norm(r, p["fast_norm"]["scale"]) * scale[h] for h, r in enumerate(read)]
        x = x + (a + jnp.concatenate(read)) @ p["output"]["kernel"]
        x = x + mlp(p, norm(x, p["mlp_norm"]["scale"]))
        rows.append(norm(x, params["final_norm"]["scale"]))
    return jnp.stack(rows), weights


def agree(test, run, naive, params, *inputs):
    """Compares values, and gradients of a random functional of them."""
    rng = np.random.default_rng(3)
    shapes = jax.tree.leaves(jax.eval_shape(run, params, *inputs))
    directions = [rng.standard_normal(x.shape) for x in shapes]

    def gradient_and_value(f):
        def total(*arguments):
            value = f(*arguments)
            leaves = jax.tree.leaves(value)
            return sum((d * x).sum() for d, x in zip(directions, leaves, strict=True)), value

        return jax.grad(total, tuple(range(1 + len(inputs))), has_aux=True)

    got, value = jax.jit(gradient_and_value(run))(params, *inputs)
    want, wanted_value = gradient_and_value(naive)(params, *inputs)
    for one, expected in zip(jax.tree.leaves(value), jax.tree.leaves(wanted_value), strict=True):
        np.testing.assert_allclose(one, expected, atol=1e-9)
    for path, expected in jax.tree.leaves_with_path(want):
        leaf = functools.reduce(
            lambda tree, key: tree[getattr(key, "key", getattr(key, "idx", None))], path, got
        )
        np.testing.assert_allclose(leaf, expected, atol=1e-7, err_msg=str(path))


class LayerMemoryLMTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.enter_context(jax.enable_x64(True))
        self.embeddings = np.random.default_rng(1).standard_normal((5, 8))

    def test_armt_is_that_of_loops(self):
        params = numpy_params(
            lambda: ARMT.init(jax.random.key(0), jnp.zeros((1, 1), int), method="everything")
        )["params"]
        rng = np.random.default_rng(2)
        matrix = rng.standard_normal((24, 8))
        normalizer = np.abs(rng.standard_normal(24))

        def run(params, embeddings, matrix, normalizer):
            memory = Associations(matrix[None, None], normalizer[None, None])
            hidden, memory, _ = ARMT.apply(
                {"params": params},
                embeddings[None],
                memory=memory,
                write=True,
                num_memory_tokens=MEMORY_TOKENS,
            )
            return hidden[0], memory.matrix[0, 0], memory.normalizer[0, 0]

        @jax.jit
        def naive(params, embeddings, matrix, normalizer):
            hidden, memory = naive_armt(params, embeddings, (matrix, normalizer))
            return hidden, *memory

        agree(self, run, naive, params, self.embeddings, matrix, normalizer)

    @parameterized.parameters((True, 3), (False, 2), (False, 8))
    def test_lact_is_that_of_loops(self, muon, chunk_size):
        lm = lact(muon=muon, chunk_size=chunk_size)
        params = numpy_params(
            lambda: lm.init(jax.random.key(0), jnp.zeros((1, 1), int), method="everything")
        )["params"]

        def run(params, embeddings):
            hidden, memory, _ = lm.apply({"params": params}, embeddings[None], write=True)
            return hidden[0], [
                {n: getattr(memory, n)[0, 0, h] for n in ("gate", "out", "up")} for h in (0, 1)
            ]

        naive = lambda params, embeddings: naive_lact(lm.config, params, embeddings, None)
        agree(self, run, naive, params, self.embeddings)

    def test_the_delta_rule_replaces_what_was_held(self):
        keys = dpfp(jnp.asarray(np.random.default_rng(4).standard_normal((1, 1, 4))), 3)
        memory = Associations(jnp.zeros((1, 24, 8)), jnp.zeros((1, 24)))
        for value in (1.0, -2.0):
            values = jnp.full((1, 1, 8), value)
            memory = associate(memory, keys, values, jnp.ones((1, 1)))
            np.testing.assert_allclose(recall(memory, keys)[0], values, rtol=1e-3)

    def test_dpfp(self):
        x = jnp.array([1.0, -2.0])
        np.testing.assert_array_equal(dpfp(x, 1), [2, 0, 0, 0])
        np.testing.assert_array_equal(dpfp(x, 3)[:4], dpfp(x, 1))
        self.assertEqual(dpfp(x, 3).shape, (12,))

    def test_orthogonalize(self):
        gradient = np.random.default_rng(5).standard_normal((2, 6, 4))
        values = np.linalg.svd(orthogonalize(gradient), compute_uv=False)
        self.assertTrue(((values > 0.6) & (values < 1.3)).all(), values)
        np.testing.assert_array_equal(orthogonalize(np.zeros((4, 4))), 0)

    def test_the_window_and_the_memory_are_all_that_a_token_sees(self):
        lm = lact(window_size=2)
        params = numpy_params(
            lambda: lm.init(jax.random.key(0), jnp.zeros((1, 1), int), method="everything")
        )
        run = jax.jit(lambda x: lm.apply(params, x[None])[0][0])
        changed = self.embeddings.copy()
        changed[0] += 1
        moved = np.abs(run(changed) - run(self.embeddings)).max(axis=1)
        self.assertTrue((moved[:2] > 1e-3).all())
        np.testing.assert_array_equal(moved[2:], 0)

    @parameterized.parameters(
        (AssociativeConfig, dict(memory_width=0), "memory_width=0"),
        (AssociativeConfig, dict(feature_order=0), "feature_order=0"),
        (LaCTConfig, dict(chunk_size=0), "chunk_size=0"),
        (LaCTConfig, dict(num_fast_heads=3), "num_fast_heads=3"),
        (LaCTConfig, dict(num_kv_heads=1), "num_kv_heads=1"),
        (LaCTConfig, dict(inner_learning_rate=0.0), "inner_learning_rate=0.0"),
    )
    def test_refusals(self, config, changes, message):
        with self.assertRaisesRegex(ValueError, message):
            config(vocab_size=11, width=8, num_heads=2, **changes)

    def test_passes_that_are_not_taken_are_not_run(self):
        for name in ("armt", "lact"):
            model = small_writer(name)
            write = lambda p, k, model=model: model.write_memory(
                p, np.ones((1, 3), int), num_steps=k, max_steps=8
            )[0]
            self.assertIn("cond[", str(jax.make_jaxpr(write)(small_params(model), 1)), name)

    def test_token_losses_of_a_context_that_fills_all_positions(self):
        model = small_writer("lact", lm=dict(max_positions=9))
        params, ids = small_params(model), np.ones((1, 9), int)
        memory = jax.eval_shape(model.write_memory, params, ids)[0]
        jax.eval_shape(model.read_memory, params, memory, ids[:, :8])  # all that there is room for
        losses = jax.eval_shape(model.write_token_losses, params, memory, ids)
        self.assertEqual(losses.shape, (1, 9))


if __name__ == "__main__":
    absltest.main()
