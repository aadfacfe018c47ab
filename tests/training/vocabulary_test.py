"""Parameters for another vocabulary: known tokens keep what they had, whatever their ids are."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from gradmem_jax.training.vocabulary import change_vocabulary
from tests.small import small_model

TOKENS = {"[PAD]": 0, "a": 1, "b": 2, "c": 3, "only here": 4}
WANTED = {"[PAD]": 0, "c": 1, "new": 2, "a": 3, "b": 4, "newer": 5}


def gradmem(vocab_size, **fields):
    return small_model(lm={"vocab_size": vocab_size, "num_layers": 2} | fields)


class VocabularyTest(parameterized.TestCase):
    def changed(self, **fields):
        old, new = gradmem(len(TOKENS), **fields), gradmem(len(WANTED), **fields)
        params, drawn = old.init(jax.random.key(0)), new.init(jax.random.key(1))
        return old, new, params, drawn, change_vocabulary(params, drawn, TOKENS, WANTED)

    @parameterized.parameters({}, {"tied_head": True}, {"scan_layers": True})
    def test_a_text_of_known_tokens_is_read_as_before(self, **fields):
        old, new, params, _, changed = self.changed(**fields)
        text = [["a", "b", "b"], ["c", "a", "[PAD]"]]
        known = sorted(TOKENS.keys() & WANTED.keys())

        def logits(model, params, ids):
            context = jnp.array([[ids[token] for token in row] for row in text])
            hidden = model.apply_lm(params, model.embed(params, context))[0]
            return model.apply_lm(params, hidden, method="unembed")[..., [ids[t] for t in known]]

        chex.assert_trees_all_close(
            logits(old, params, TOKENS), logits(new, changed, WANTED), rtol=1e-6
        )
        np.testing.assert_array_equal(
            changed["write_head"][:, [WANTED[t] for t in known]],
            params["write_head"][:, [TOKENS[t] for t in known]],
        )

    def test_new_tokens_are_drawn_and_the_rest_stays(self):
        _, new, params, drawn, changed = self.changed()
        new.check_params(changed)
        fresh = [WANTED["new"], WANTED["newer"]]
        np.testing.assert_array_equal(
            changed["lm"]["embedding"][jnp.array(fresh)], drawn["lm"]["embedding"][jnp.array(fresh)]
        )
        chex.assert_trees_all_equal(changed["initial_memory"], params["initial_memory"])
        chex.assert_trees_all_equal(changed["lm"]["layers_0"], params["lm"]["layers_0"])

    def test_bad_input(self):
        _, _, params, drawn, _ = self.changed()
        with self.assertRaisesRegex(ValueError, "no token in common"):
            change_vocabulary(params, drawn, TOKENS, {"other": 0})
        with self.assertRaisesRegex(
            ValueError, "lm/embedding has rows of 5 ids, .* 0 to 5; is this"
        ):
            change_vocabulary(params, drawn, WANTED, WANTED)
        wider = gradmem(len(WANTED), width=16).init(jax.random.key(1))
        with self.assertRaisesRegex(ValueError, r"shape .* only the number of tokens may differ"):
            change_vocabulary(params, wider, TOKENS, WANTED)
        del drawn["write_head"]
        with self.assertRaisesRegex(ValueError, r"same parts; \['write_head'\] are in one"):
            change_vocabulary(params, drawn, TOKENS, WANTED)


if __name__ == "__main__":
    absltest.main()
