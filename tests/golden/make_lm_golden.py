"""Makes tests/golden/lm_*: tiny random models of transformers, and their logits.

    python tests/golden/make_lm_golden.py

Written with torch 2.13.0 and transformers 5.23.0 on CPU, in an environment of its own:
pip install torch==2.13.0 transformers. The files are made again bit by bit only with the same
versions.
"""

import pathlib

import torch
import transformers
from safetensors.torch import save_file

COMMON = dict(vocab_size=48, initializer_range=0.2)
LLAMA3 = dict(
    rope_type="llama3",
    rope_theta=1000.0,
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=32,
)
LLAMA = dict(hidden_size=16, num_hidden_layers=2, intermediate_size=24, **COMMON)
CASES = {
    "lm_llama": transformers.LlamaConfig(
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=64, **LLAMA
    ),
    "lm_llama3": transformers.LlamaConfig(
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=128,
        rope_parameters=LLAMA3,
        tie_word_embeddings=True,
        **LLAMA,
    ),
    "lm_gpt2": transformers.GPT2Config(n_embd=16, n_layer=2, n_head=4, n_positions=64, **COMMON),
    "lm_gpt_neox": transformers.GPTNeoXConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=64,
        rope_parameters=dict(rope_type="default", rope_theta=1000.0, partial_rotary_factor=0.25),
        **COMMON,
    ),
    "lm_mamba": transformers.MambaConfig(
        hidden_size=16, num_hidden_layers=2, state_size=4, time_step_rank=3, **COMMON
    ),
}

DECODER = LLAMA | dict(num_attention_heads=4, num_key_value_heads=2, eos_token_id=None)
DECODER |= dict(pad_token_id=None, bos_token_id=None, max_position_embeddings=64)
GEMMA = DECODER | dict(head_dim=8, query_pre_attn_scalar=6, sliding_window=8)
# Windows of 8 tokens, and lengths at which a scaling of rotary positions shows, in 40 tokens.
GREEDY_CASES = {
    "lm_llama_bias": transformers.LlamaConfig(
        attention_bias=True,
        mlp_bias=True,
        rope_parameters=dict(rope_type="dynamic", rope_theta=1000.0, factor=4.0),
        **DECODER | dict(max_position_embeddings=32),
    ),
    "lm_mistral": transformers.MistralConfig(sliding_window=8, **DECODER),
    "lm_qwen2": transformers.Qwen2Config(
        tie_word_embeddings=True,
        use_sliding_window=True,
        sliding_window=8,
        max_window_layers=1,
        rope_parameters=dict(
            rope_type="yarn", rope_theta=1000.0, factor=4.0, original_max_position_embeddings=16
        ),
        **DECODER,
    ),
    "lm_qwen3": transformers.Qwen3Config(head_dim=8, **DECODER),
    "lm_gemma2": transformers.Gemma2Config(
        attn_logit_softcapping=2.0, final_logit_softcapping=3.0, **GEMMA
    ),
    "lm_gemma3": transformers.Gemma3TextConfig(
        layer_types=["sliding_attention", "full_attention"],
        rope_parameters=dict(
            sliding_attention=dict(rope_type="default", rope_theta=100.0),
            full_attention=dict(rope_type="linear", rope_theta=1000.0, factor=4.0),
        ),
        **GEMMA,
    ),
    "lm_olmo2": transformers.Olmo2Config(**DECODER),
    "lm_smollm3": transformers.SmolLM3Config(no_rope_layers=[1, 0], **DECODER),
    "lm_phi3": transformers.Phi3Config(
        original_max_position_embeddings=32,
        rope_parameters=dict(
            rope_type="longrope",
            rope_theta=1000.0,
            partial_rotary_factor=0.5,
            short_factor=[1.0],
            long_factor=[3.0],
        ),
        **DECODER,
    ),
    "lm_mamba2": transformers.Mamba2Config(
        hidden_size=16,
        num_hidden_layers=2,
        state_size=4,
        num_heads=4,
        head_dim=8,
        n_groups=1,
        chunk_size=16,
        pad_token_id=None,
        eos_token_id=None,
        **COMMON,
    ),
}


def main() -> None:
    """Writes all cases."""
    torch.manual_seed(0)
    for name, config in (CASES | GREEDY_CASES).items():
        config._attn_implementation = "eager"
        model = transformers.AutoModelForCausalLM.from_config(config).eval()
        for parameter in model.parameters():  # biases start at 0 and scales at 1: show them too
            if parameter.ndim == 1:
                parameter.data += 0.2 * torch.randn_like(parameter)
        ids = torch.randint(0, config.vocab_size, (2, 40))
        with torch.no_grad():
            logits = model(ids, use_cache=False).logits
        folder = pathlib.Path(__file__).parent / name
        model.save_pretrained(folder)
        (folder / "generation_config.json").unlink(missing_ok=True)
        expected = {"ids": ids, "logits": logits}
        if name in GREEDY_CASES:
            made = model.generate(ids[:, :12], max_new_tokens=16, do_sample=False)
            expected["greedy_ids"] = made[:, 12:].contiguous()
        save_file(expected, folder / "expected.safetensors")


if __name__ == "__main__":
    main()
