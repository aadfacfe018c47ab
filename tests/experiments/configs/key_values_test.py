"""Configurations of KV retrieval: they can be built, and refuse what is not in their tables."""

from absl.testing import absltest, parameterized

from experiments.configs import default, kv_paper, kv_quick, kv_scaling, kv_small
from tests.experiments.tiny_run import target_stage


class KeyValuesTest(parameterized.TestCase):
    @parameterized.parameters(
        (kv_quick, None),
        (kv_quick, "rmt"),
        (kv_quick, "full_context"),
        (kv_paper, "full_context_n64_k1"),
        (kv_paper, "n96_k5"),
        (kv_paper, "rmt_n32_k3"),
        (kv_paper, "kv_prefix_n8_k2"),
        (kv_paper, "n8_k2_m4"),
        (kv_small, "gradmem_n8_k2_t4"),
        (kv_small, "ttt_linear_n4"),
        (kv_scaling, "n16"),
        (default, None),
    )
    def test_configs_can_be_built(self, module, argument):
        config = module.get_config(argument) if argument else module.get_config()
        self.assertEqual(target_stage(config).task.num_pairs, config.data.num_pairs)

    @parameterized.parameters(
        ("n5_k2", "no gradmem row N=5"),
        ("mamba_n8_k2", "no mamba row N=8, K=2"),
        ("n8_k2_m3", "m=3 is none of"),
        ("mamba_n8_m4", "has no memory tokens"),
        *(
            (text, "must look like")
            for text in ("k2", "n8_k2_", "n8n8", "lstm_n8", "n8_n4", "n8_t2")
        ),
    )
    def test_config_arguments_are_checked(self, argument, message):
        with self.assertRaisesRegex(ValueError, message):
            kv_paper.get_config(argument)


if __name__ == "__main__":
    absltest.main()
