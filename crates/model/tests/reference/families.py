"""Small random checkpoints of the families in ../fixtures/, by name: what each is to show.

Used by gradients.py, which writes them with their logits, gradients and loads.
"""

import torch
from transformers import (
    DeepseekV2Config,
    DeepseekV2ForCausalLM,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    Glm4MoeConfig,
    Glm4MoeForCausalLM,
    GraniteMoeConfig,
    GraniteMoeForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    OlmoeConfig,
    OlmoeForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from checkpoints import SHAPE

SMALL = {**SHAPE, "num_hidden_layers": 2, "tie_word_embeddings": False}
TINY = {
    **SHAPE, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "tie_word_embeddings": True,
}


def scaled(kind, **parameters):
    """Positions of a model that was trained on 64 tokens, then stretched to 256."""
    original = {} if kind in ("linear", "dynamic") else {"original_max_position_embeddings": 64}
    rope = {"rope_type": kind, "rope_theta": 5000.0, "factor": 4.0, **original, **parameters}
    return {"rope_parameters": rope}


def mixtral():
    config = MixtralConfig(
        **SMALL, head_dim=8, intermediate_size=12, num_local_experts=5, num_experts_per_tok=2,
        sliding_window=None,
    )
    return MixtralForCausalLM(config)


def qwen3_moe():
    config = Qwen3MoeConfig(
        **SMALL, head_dim=8, moe_intermediate_size=12, num_experts=5, num_experts_per_tok=2,
        norm_topk_prob=False, intermediate_size=32,
    )
    return Qwen3MoeForCausalLM(config)


def glm4_moe():
    config = Glm4MoeConfig(
        **{**SMALL, "rope_parameters": {**SHAPE["rope_parameters"], "partial_rotary_factor": 1.0}},
        head_dim=8, moe_intermediate_size=12, n_routed_experts=5, num_experts_per_tok=2,
        n_shared_experts=1, first_k_dense_replace=0, use_qk_norm=True, norm_topk_prob=True,
        routed_scaling_factor=1.5, intermediate_size=32,
    )
    model = Glm4MoeForCausalLM(config)
    for i, layer in enumerate(model.model.layers):
        # Large enough to change which experts are chosen.
        layer.mlp.gate.e_score_correction_bias = torch.tensor([0.2, -0.1, 0.0, 0.3, -0.2]) * (1 - i)
    return model


def glm4_moe_partial():
    """As GLM 4.5: positions in half of each head, biases, a dense layer first."""
    rope = {**SHAPE["rope_parameters"], "partial_rotary_factor": 0.5}
    config = Glm4MoeConfig(
        **{**TINY, "rope_parameters": rope}, head_dim=8, moe_intermediate_size=8,
        n_routed_experts=4, num_experts_per_tok=2, n_shared_experts=1, first_k_dense_replace=1,
        use_qk_norm=False, attention_bias=True, norm_topk_prob=True, intermediate_size=24,
    )
    model = Glm4MoeForCausalLM(config)
    model.model.layers[1].mlp.gate.e_score_correction_bias = torch.tensor([0.2, -0.1, 0.1, -0.2])
    return model


def llama3():
    rope = scaled("llama3", low_freq_factor=1.0, high_freq_factor=4.0)
    return LlamaForCausalLM(LlamaConfig(**{**TINY, **rope}, head_dim=16, intermediate_size=24))


def llama_linear():
    return LlamaForCausalLM(LlamaConfig(**{**TINY, **scaled("linear")}, intermediate_size=24))


def qwen2():
    return Qwen2ForCausalLM(Qwen2Config(**TINY, intermediate_size=24, use_sliding_window=False))


def qwen3():
    config = Qwen3Config(**{**TINY, **scaled("yarn")}, head_dim=8, intermediate_size=24)
    return Qwen3ForCausalLM(config)


def gemma3_text():
    rope = {
        "sliding_attention": {"rope_type": "default", "rope_theta": 1000.0},
        "full_attention": {"rope_type": "linear", "rope_theta": 5000.0, "factor": 4.0},
    }
    config = Gemma3TextConfig(
        **{**TINY, "num_hidden_layers": 3, "rope_parameters": rope}, head_dim=8,
        intermediate_size=24, query_pre_attn_scalar=12, sliding_window=4,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    )
    return Gemma3ForCausalLM(config)


def olmoe():
    config = OlmoeConfig(
        **{**TINY, "num_key_value_heads": 4}, intermediate_size=8, num_experts=5,
        num_experts_per_tok=2, norm_topk_prob=False,
    )
    return OlmoeForCausalLM(config)


def granitemoe():
    config = GraniteMoeConfig(
        **TINY, intermediate_size=8, num_local_experts=5, num_experts_per_tok=2,
        embedding_multiplier=3.0, residual_multiplier=0.6, logits_scaling=1.5,
        attention_multiplier=0.3,
    )
    return GraniteMoeForCausalLM(config)


LATENT = dict(
    num_key_value_heads=4, kv_lora_rank=10, qk_nope_head_dim=6, qk_rope_head_dim=4, v_head_dim=8,
    intermediate_size=24, moe_intermediate_size=8, n_routed_experts=6, num_experts_per_tok=2,
    first_k_dense_replace=1, n_group=3, topk_group=2,
)


def deepseek_v2():
    config = DeepseekV2Config(
        **{**TINY, **LATENT, **scaled("yarn", mscale=0.7, mscale_all_dim=1.1)}, q_lora_rank=None,
        n_shared_experts=2, topk_method="group_limited_greedy", routed_scaling_factor=1.5,
    )
    return DeepseekV2ForCausalLM(config)


def deepseek_v3():
    config = DeepseekV3Config(
        **{**TINY, **LATENT}, q_lora_rank=12, n_shared_experts=1, routed_scaling_factor=1.5,
        norm_topk_prob=True, num_nextn_predict_layers=0,
    )
    model = DeepseekV3ForCausalLM(config)
    bias = torch.tensor([0.2, -0.1, 0.0, 0.3, -0.2, 0.1])
    model.model.layers[1].mlp.gate.e_score_correction_bias = bias
    return model


FAMILIES = {
    21: mixtral, 22: qwen3_moe, 23: glm4_moe, 24: glm4_moe_partial, 25: llama3, 26: llama_linear,
    27: qwen2, 28: qwen3, 29: gemma3_text, 30: olmoe, 31: granitemoe, 32: deepseek_v2,
    33: deepseek_v3,
}
