"""Recurrent language models: against token by token loops, in pieces, with padding, in dtypes."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from gradmem_jax.lm.families import make_lm
from gradmem_jax.lm.mamba import MambaConfig, MambaState
from gradmem_jax.lm.mamba2 import Mamba2Config, Mamba2State
from gradmem_jax.lm.ttt_linear import TTTLayerState, TTTLinearConfig, TTTState

BASE = dict(vocab_size=11, width=8, num_layers=1, init="fan_in")
SIZES = {
    MambaConfig: dict(state_size=3, conv_size=3, dt_rank=2, chunk_size=3),
    Mamba2Config: dict(state_size=3, conv_size=3, head_width=4, chunk_size=3),
    TTTLinearConfig: dict(num_heads=2, mlp_width=6, mini_batch_size=4, rope_base=50.0),
}
FAMILIES = tuple(SIZES)
BATCH, LENGTH = 3, 10
STEP = 1e-3  # of the central differences
LENGTHS = np.array([10, 7, 4])
REAL = np.arange(LENGTH) < LENGTHS[:, None]


def make(config_class, **changes):
    return make_lm(config_class(**(BASE | SIZES[config_class] | changes)))


def draw_params(lm, seed=0):
    """Parameters in which nothing is zero, equal, or the identity."""
    rng = np.random.default_rng(seed)
    ids = np.zeros((1, 1), np.int32)
    init = lambda: lm.init(jax.random.key(0), ids, method="everything")["params"]

    def draw(path, x):
        values = rng.standard_normal(x.shape)
        if "scale" in path[-1].key or path[-1].key == "D":
            values = 1 + 0.1 * values
        elif x.ndim > 1:
            values = values / np.sqrt(lm.config.width)
        else:
            values = 0.3 * values
        return values.astype(x.dtype)

    return jax.tree.map_with_path(draw, jax.eval_shape(init))


def draw_embeddings(dtype="float32", seed=1):
    return np.random.default_rng(seed).standard_normal((BATCH, LENGTH, 8)).astype(dtype)


def runner(lm):
    return jax.jit(
        lambda params, x, real=None, state=None: lm.apply(
            {"params": params}, x, real=real, state=state
        )
    )


def stack_layers(params):
    layers = [params[name] for name in sorted(params) if name.startswith("layers_")]
    others = {name: x for name, x in params.items() if not name.startswith("layers_")}
    return others | {"layers": jax.tree.map(lambda *leaves: np.stack(leaves), *layers)}


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def silu(x):
    return x * sigmoid(x)


def rms(p, x, eps=1e-5):
    return x / np.sqrt((x**2).mean() + eps) * p["scale"]


def layer_norm(x, scale, bias, eps=1e-5):
    return (x - x.mean()) / (x.var() + eps) ** 0.5 * scale + bias


def convolve(p, newest):
    taps = zip(p["conv_kernel"], newest, strict=True)
    return silu(p["conv_bias"] + sum(tap * x for tap, x in taps))


def mamba_by_hand(c, p, xs):
    channels, rank, size = c.channels, c.time_step_rank, c.state_size

    def take(p, x, past, h):
        projected = rms(p["norm"], x) @ p["in_proj"]["kernel"]
        newest = (*past, projected[:channels])
        u = convolve(p, newest)
        mixed = u @ p["x_proj"]["kernel"]
        step = mixed[:rank] @ p["dt_proj"]["kernel"] + p["dt_proj"]["bias"]
        step = np.log(1 + np.exp(step))
        write, read = mixed[rank : rank + size], mixed[rank + size :]
        h = np.exp(-step[:, None] * np.exp(p["A_log"])) * h + np.outer(step * u, write)
        y = (h @ read + p["D"] * u) * silu(projected[channels:])
        return x + y @ p["out_proj"]["kernel"], newest[1:], h

    outputs, past = [], (np.zeros(channels),) * (c.conv_size - 1)
    h = np.zeros((channels, size))
    for x in xs:
        y, past, h = take(p, x, past, h)
        outputs.append(y)
    return outputs, MambaState(np.stack(past), h)


def mamba2_by_hand(c, p, xs):
    channels, size, width = c.channels, c.state_size, c.head_width
    mixed = channels + 2 * size

    def take(p, x, past, h):
        projected = rms(p["norm"], x) @ p["in_proj"]["kernel"]
        newest = (*past, projected[channels : channels + mixed])
        u = convolve(p, newest)
        write, read = u[channels : channels + size], u[channels + size :]
        steps = np.log(1 + np.exp(projected[channels + mixed :] + p["dt_bias"]))
        heads, ys = [], []
        for i in range(c.num_heads):
            v = u[i * width : (i + 1) * width]
            decay = np.exp(-steps[i] * np.exp(p["A_log"][i]))
            heads.append(decay * h[i] + steps[i] * np.outer(v, write))
            ys.append(heads[-1] @ read + p["D"][i] * v)
        y = rms(p["gated_norm"], np.concatenate(ys) * silu(projected[:channels]))
        return x + y @ p["out_proj"]["kernel"], newest[1:], heads

    outputs, past = [], (np.zeros(mixed),) * (c.conv_size - 1)
    h = [np.zeros((width, size))] * c.num_heads
    for x in xs:
        y, past, h = take(p, x, past, h)
        outputs.append(y)
    return outputs, Mamba2State(np.stack(past), np.stack(h))


def turn(x, position, base):
    """Rotary embedding by complex numbers."""
    half = len(x) // 2
    angles = position * base ** (-2 * np.arange(half) / len(x))
    pairs = (x[:half] + 1j * x[half:]) * np.exp(1j * angles)
    return np.concatenate([pairs.real, pairs.imag])


def inner_model(inner, norm, z):
    return layer_norm(inner[0].T @ z + inner[1], *norm)


@jax.jit
@jax.grad
def inner_gradient(inner, norm, key, value):
    return 0.5 * ((inner_model(inner, norm, key) - (value - key)) ** 2).sum()


def ttt_by_hand(c, p, xs):
    def take(p, x, t, past, starts, sums):
        q, ys, now = p["ttt"], [], []
        newest = (*past, rms(p["conv_norm"], x))
        taps = zip(p["conv_kernel"], newest, strict=True)
        x = x + p["conv_bias"] + sum(tap * z for tap, z in taps)
        z = rms(p["ttt_norm"], x)
        rates = sigmoid(z @ q["inner_rate"]["kernel"] + q["inner_rate"]["bias"])
        step = np.maximum(1 / (t + 1) + q["step_offsets"][t], 0)
        for i in range(c.num_heads):
            norm = q["inner_norm_scale"][i], q["inner_norm_bias"][i]
            query = turn(z @ q["query"]["kernel"][:, i], t, c.rope_base)
            key = turn(z @ q["key"]["kernel"][:, i], t, c.rope_base)
            value = z @ q["value"]["kernel"][:, i]
            rate = c.inner_learning_rate / c.head_width * rates[i]
            gradient = inner_gradient(starts[i], norm, key, value)
            sums[i] = jax.tree.map(
                lambda a, g, rate=rate: a + rate * np.asarray(g), sums[i], gradient
            )
            now.append(jax.tree.map(lambda w, a: w - step * a, starts[i], sums[i]))
            ys.append(query + inner_model(now[i], norm, query))
        y = layer_norm(np.concatenate(ys), q["output_norm"]["scale"], q["output_norm"]["bias"])
        x = x + y @ q["output"]["kernel"]
        z = rms(p["mlp_norm"], x)
        gated = silu(z @ p["gate"]["kernel"]) * (z @ p["up"]["kernel"])
        return x + gated @ p["down"]["kernel"], newest[1:], now, sums

    nothing = (np.zeros((c.head_width, c.head_width)), np.zeros(c.head_width))
    starts = [(p["ttt"]["inner_weights"][i], p["ttt"]["inner_bias"][i]) for i in range(c.num_heads)]
    sums = [nothing] * c.num_heads
    outputs, past = [], (np.zeros(c.width),) * (c.conv_size - 1)
    for s, x in enumerate(xs):
        y, past, now, sums = take(p, x, s % c.mini_batch_size, past, starts, sums)
        if (s + 1) % c.mini_batch_size == 0:
            starts, sums = now, [nothing] * c.num_heads
        outputs.append(y)
    over_heads = [
        np.stack(leaves) for inner in (starts, sums) for leaves in zip(*inner, strict=True)
    ]
    inner = TTTState(*over_heads, len(xs) % c.mini_batch_size)
    return outputs, TTTLayerState(np.stack(past), inner)


BY_HAND = {
    MambaConfig: mamba_by_hand,
    Mamba2Config: mamba2_by_hand,
    TTTLinearConfig: ttt_by_hand,
}


class DefinitionTest(parameterized.TestCase):
    """In float64 with one sample and one layer."""

    def setUp(self):
        super().setUp()
        self.enter_context(jax.enable_x64(True))

    @parameterized.named_parameters(
        ("mamba", MambaConfig, {}),
        ("mamba2", Mamba2Config, {}),
        ("ttt", TTTLinearConfig, dict(inner_learning_rate=1.7)),
        ("ttt_one_token", TTTLinearConfig, dict(mini_batch_size=1)),
        ("ttt_long_mini_batch", TTTLinearConfig, dict(mini_batch_size=64)),
    )
    def test_outputs_state_and_gradients(self, config_class, changes):
        lm = make(config_class, dtype="float64", param_dtype="float64", **changes)
        params = draw_params(lm)
        x = draw_embeddings("float64")[0, :6]

        def ours(params, x):
            hidden, state = lm.apply({"params": params}, x[None])
            return hidden[0], jax.tree.map(lambda leaf: leaf[0, 0], state)

        def by_hand(params, x):
            outputs, state = BY_HAND[config_class](lm.config, params["layers_0"], x)
            return np.stack([rms(params["final_norm"], y) for y in outputs]), state

        def loss(function, params_and_x):
            out = function(*params_and_x)
            rng = np.random.default_rng(5)
            leaves = [leaf for leaf in jax.tree.leaves(out) if np.ndim(leaf)]
            return sum((rng.standard_normal(leaf.shape) * leaf).sum() for leaf in leaves), out

        ours_and_gradient = jax.value_and_grad(functools.partial(loss, ours), has_aux=True)
        (_, got), gradient = jax.jit(ours_and_gradient)((params, x))
        chex.assert_trees_all_close(got, by_hand(params, x), rtol=1e-9, atol=1e-9)

        leaves, tree = jax.tree.flatten((params, x))
        for i, got in enumerate(jax.tree.leaves(gradient)):  # central differences of sixth order
            direction = np.random.default_rng(i).standard_normal(leaves[i].shape)
            moved = lambda by, i=i, d=direction: [*leaves[:i], leaves[i] + by * d, *leaves[i + 1 :]]
            value = lambda by, m=moved: loss(by_hand, tree.unflatten(m(by)))[0]
            weights = ((1, 45 / 60), (2, -9 / 60), (3, 1 / 60))
            want = sum(w * (value(n * STEP) - value(-n * STEP)) / STEP for n, w in weights)
            np.testing.assert_allclose((got * direction).sum(), want, rtol=1e-7, atol=1e-8)
        used = [np.abs(leaf).max() > 1e-6 for leaf in jax.tree.leaves(gradient)]
        self.assertEqual(used.count(False), 2)  # embedding and head

    @parameterized.parameters(MambaConfig, Mamba2Config)
    def test_chunks_change_nothing(self, config_class):
        results = []
        for chunk_size in (1, 3, 64):
            lm = make(config_class, chunk_size=chunk_size, dtype="float64", param_dtype="float64")
            hidden, state = runner(lm)(draw_params(lm), draw_embeddings("float64"), REAL)
            results.append((hidden[REAL], state))
        chex.assert_trees_all_close(results[0], results[1], rtol=1e-9, atol=1e-12)
        chex.assert_trees_all_close(results[0], results[2], rtol=1e-9, atol=1e-12)


class StateTest(parameterized.TestCase):
    @parameterized.parameters(*FAMILIES)
    def test_pieces_are_the_same_as_one_call(self, config_class):
        lm = make(config_class)
        run, params, x = runner(lm), draw_params(lm), draw_embeddings()
        hidden, state = run(params, x, REAL)
        for cuts in (
            np.array([[0, 5, 10], [0, 3, 7], [0, 1, 4]]),  # 1, 3 and 1 tokens in a mini-batch of 4
            np.array([[0, 3, 9, 10], [0, 1, 1, 7], [0, 4, 4, 4]]),
            np.minimum(np.arange(11), LENGTHS[:, None]),
        ):
            got, pieces = None, np.zeros_like(hidden)
            for piece in range(cuts.shape[1] - 1):
                lengths = cuts[:, piece + 1] - cuts[:, piece]
                width = 6 if lengths.max() > 1 else 1  # few widths, few compiles
                places = cuts[:, piece, None] + np.arange(width)
                real = np.arange(width) < lengths[:, None]
                rows, inside = np.arange(BATCH)[:, None], np.minimum(places, LENGTH - 1)
                y, got = run(params, x[rows, inside], real, got)
                pieces[np.broadcast_to(rows, real.shape)[real], places[real]] = np.asarray(y)[real]
            chex.assert_trees_all_close(got, state, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(pieces[REAL], hidden[REAL], rtol=1e-4, atol=1e-5)

    @parameterized.parameters(*FAMILIES)
    def test_padding_and_batch_mates_change_nothing(self, config_class):
        lm = make(config_class)
        run, params, x = runner(lm), draw_params(lm), draw_embeddings()
        hidden, state = run(params, x, REAL)
        other = np.where(REAL[..., None], x, draw_embeddings(seed=2))
        chex.assert_trees_all_equal(run(params, other, REAL)[1], state)
        alone, own = run(params, x[1:2, : LENGTHS[1]])
        np.testing.assert_allclose(alone[0], hidden[1, : LENGTHS[1]], rtol=1e-4, atol=1e-5)
        mine = jax.tree.map(lambda leaf: leaf[:, 1:2], state)
        chex.assert_trees_all_close(own, mine, rtol=1e-4, atol=1e-5)
        _, empty = run(params, x, np.zeros_like(REAL))
        _, later = run(params, x, REAL, empty)
        chex.assert_trees_all_close(later, state, rtol=1e-4, atol=1e-5)

    @parameterized.parameters(*FAMILIES)
    def test_scanned_layers_change_nothing(self, config_class):
        loop = make(config_class, num_layers=2)
        scan = make(config_class, num_layers=2, scan_layers=True)
        x = draw_embeddings()

        def loss(lm, params):
            hidden, state = lm.apply({"params": params}, x, real=REAL)
            return (hidden * REAL[..., None]).var(), state

        grad = lambda lm: jax.jit(jax.value_and_grad(functools.partial(loss, lm), has_aux=True))
        params = draw_params(loop)
        value, gradient = grad(loop)(params)
        got, stacked = grad(scan)(stack_layers(params))
        chex.assert_trees_all_close(got, value, rtol=1e-4, atol=1e-5)
        chex.assert_trees_all_close(stacked, stack_layers(gradient), rtol=1e-3, atol=1e-5)

    @parameterized.parameters(*FAMILIES)
    def test_bfloat16_keeps_its_state_in_float32(self, config_class):
        lm = make(config_class, dtype="bfloat16")
        run, params, x = runner(lm), draw_params(lm), draw_embeddings()
        hidden, state = run(params, x[:, :6], REAL[:, :6])
        later, state = run(params, x[:, 6:], REAL[:, 6:], state)
        self.assertEqual(hidden.dtype, jnp.bfloat16)
        for leaf in jax.tree.leaves((hidden, later, state)):
            self.assertTrue(np.isfinite(np.asarray(leaf, np.float32)).all())
        state = state._replace(conv=None) if hasattr(state, "conv") else state
        floats = [x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating)]
        self.assertEqual({str(x.dtype) for x in floats}, {"float32"})

    def test_first_inner_weights_have_unit_scale(self):
        lm = make(TTTLinearConfig, width=64, init="normal")
        params = jax.jit(lambda key: lm.init(key, np.ones((1, 1), int), method="everything"))(
            jax.random.key(0)
        )
        weights = params["params"]["layers_0"]["ttt"]["inner_weights"]
        np.testing.assert_allclose(np.std(weights), 32**-0.5, rtol=0.1)


class ConfigTest(parameterized.TestCase):
    @parameterized.parameters(
        (MambaConfig, dict(chunk_size=0), "chunk_size=0 must be an integer >= 1"),
        (Mamba2Config, dict(state_size=0), "state_size=0 must be an integer >= 1"),
        (Mamba2Config, dict(head_width=3), "= 16 is not a multiple of head_width=3"),
        (TTTLinearConfig, dict(mini_batch_size=0), "mini_batch_size=0 must be an integer >= 1"),
        (TTTLinearConfig, dict(num_heads=3), "width=8 is not a multiple of num_heads=3"),
        (TTTLinearConfig, dict(num_heads=8), "make heads of 1; a head must be even"),
        (TTTLinearConfig, dict(mlp_width=0), "mlp_width=0 must be an integer >= 1"),
        (TTTLinearConfig, dict(inner_learning_rate=0), "inner_learning_rate=0.0 must be greater"),
        (TTTLinearConfig, dict(rope_base=-1.0), "rope_base=-1.0 must be greater than 0"),
        (TTTLinearConfig, dict(vocab_size=0), "vocab_size=0 must be an integer >= 1"),
    )
    def test_refusals(self, config_class, changes, message):
        with self.assertRaisesRegex(ValueError, message):
            config_class(**(BASE | changes))


if __name__ == "__main__":
    absltest.main()
