"""Keys of config.json that change nothing that is computed from ids to logits.

Whatever is neither here nor heeded is refused by name, unless it says nothing (None, false, empty).
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from gradmem_jax.checks import require
from gradmem_jax.foreign_text import shown

_DESCRIPTION = (
    "architectures auto_map bos_token bos_token_id cls_token_id custom_pipelines "
    "decoder_start_token_id dtype eos_token eos_token_id file_size finetuning_task "
    "forced_bos_token_id forced_eos_token_id id2label label2id language library_name license "
    "mask_token_id model_max_length model_type name_or_path num_labels pad_token pad_token_id "
    "padding_side problem_type sep_token_id tags task_specific_params tokenizer_class "
    "tokenizer_padding_side torch_dtype transformers_version unk_token unk_token_id"
)
_RUNNING = (
    "attn_implementation gradient_checkpointing is_decoder output_attentions output_hidden_states "
    "pretraining_tp return_dict torchscript use_cache use_bfloat16 use_flash_attn "
    "use_flash_attention use_kernels reorder_and_upcast_attn residual_in_fp32 fused_norm "
    "use_mambapy ssm_cfg rms_norm use_fused_rms_norm keys_to_ignore_at_inference n_ctx "
    "vocab_size_multiple pad_vocab_size_multiple unpadded_vocab_size is_llama_config afn n_special "
    "max_sequence_length predict_special_tokens fused_add_norm d_inner d_model n_layer"
)
_TRAINING = (
    "aux_loss_alpha ignore_index initializer_range rescale_prenorm_residual router_aux_loss_coef "
    "time_step_min time_step_max time_step_floor time_step_init_scheme time_step_scale "
    "use_cut_cross_entropy z_loss summary_activation summary_first_dropout summary_proj_to_labels "
    "summary_type summary_use_proj"
)
_GENERATION = (
    "bad_words_ids begin_suppress_tokens diversity_penalty do_sample early_stopping "
    "encoder_no_repeat_ngram_size exponential_decay_length_penalty length_penalty max_length "
    "max_new_tokens min_length no_repeat_ngram_size num_beam_groups num_beams num_return_sequences "
    "output_scores prefix remove_invalid_values repetition_penalty return_dict_in_generate "
    "suppress_tokens temperature top_k top_p typical_p"
)
_HARMLESS = frozenset(" ".join((_DESCRIPTION, _RUNNING, _TRAINING, _GENERATION)).split())
_HARMLESS_NAMES = re.compile(
    r"_|.*(dropout|_pdrop|drop)$|.*(unsloth|gradmem_jax|axolotl)|transformers\.js|neuron"
)
_PARTS = {
    "vision_config": "a model with a vision tower",
    "audio_config": "a model that hears",
    "text_config": "a model of several parts",
    "num_experts": "a mixture of experts",
    "num_local_experts": "a mixture of experts",
    "n_routed_experts": "a mixture of experts",
    "moe_intermediate_size": "a mixture of experts",
}


def refuse_parts(theirs: Mapping[str, Any]) -> None:
    """Raises ValueError if config.json says that there is more than one dense language model."""
    for key, what in _PARTS.items():
        if theirs.get(key) and theirs[key] != 1:
            raise ValueError(
                f"config.json has {key}: {what} (model_type={shown(theirs.get('model_type'))}) is "
                "not supported, only dense models of text."
            )


def refuse_unknown(theirs: Mapping[str, Any], known: Iterable[str]) -> None:
    """Raises ValueError if config.json has a key that may change what the model computes."""
    known = {*known, *_HARMLESS}
    unknown = {
        key: value
        for key, value in theirs.items()
        if key not in known
        and not _HARMLESS_NAMES.match(key)
        and value not in (None, False, "", 0)
        and value != {}
        and value != []
    }
    require(
        not unknown,
        f"config.json has keys that are not known here: {shown(unknown)}. Take out those that do "
        "not change what the model computes.",
    )
