use kernel::Gate;
use serde::{Deserialize, Serialize};

/// Which layout of layers a model has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Family {
    /// Grouped-query attention and a SwiGLU feed-forward: Llama, SmolLM2, and their like.
    Llama,
    /// The same with a bias of queries, keys and values.
    Qwen2,
    /// Llama with normed queries and keys.
    Qwen3,
    /// Gemma 3's text model: norms before and behind each part, normed queries and keys, GELU, and
    /// layers that see a window only.
    Gemma3,
    /// Llama with routed experts in place of the feed-forward.
    Mixtral,
    /// The same with normed queries and keys.
    Qwen3Moe,
    /// The same, where all heads are normed as one.
    Olmoe,
    /// Mixtral with multipliers of embedding, residual, scores and logits.
    GraniteMoe,
    /// Llama with department experts beside the feed-forward, which is shared by all tokens.
    GraniteMoeShared,
    /// Routed experts with sigmoid scores whose balance a bias keeps, and a shared expert.
    Glm4Moe,
    /// Latent attention; routed experts of the best groups, by softmax, and shared ones.
    DeepseekV2,
    /// The same with sigmoid scores whose balance a bias keeps.
    DeepseekV3,
}

impl Family {
    pub(crate) const ALL: [Family; 12] = [
        Family::Llama,
        Family::Qwen2,
        Family::Qwen3,
        Family::Gemma3,
        Family::Mixtral,
        Family::Qwen3Moe,
        Family::Olmoe,
        Family::GraniteMoe,
        Family::GraniteMoeShared,
        Family::Glm4Moe,
        Family::DeepseekV2,
        Family::DeepseekV3,
    ];

    /// `model_type` and class in a Hugging Face `config.json`.
    pub(crate) fn huggingface(self) -> (&'static str, &'static str) {
        match self {
            Family::Llama => ("llama", "LlamaForCausalLM"),
            Family::Qwen2 => ("qwen2", "Qwen2ForCausalLM"),
            Family::Qwen3 => ("qwen3", "Qwen3ForCausalLM"),
            Family::Gemma3 => ("gemma3_text", "Gemma3ForCausalLM"),
            Family::Mixtral => ("mixtral", "MixtralForCausalLM"),
            Family::Qwen3Moe => ("qwen3_moe", "Qwen3MoeForCausalLM"),
            Family::Olmoe => ("olmoe", "OlmoeForCausalLM"),
            Family::GraniteMoe => ("granitemoe", "GraniteMoeForCausalLM"),
            Family::GraniteMoeShared => ("granitemoeshared", "GraniteMoeSharedForCausalLM"),
            Family::Glm4Moe => ("glm4_moe", "Glm4MoeForCausalLM"),
            Family::DeepseekV2 => ("deepseek_v2", "DeepseekV2ForCausalLM"),
            Family::DeepseekV3 => ("deepseek_v3", "DeepseekV3ForCausalLM"),
        }
    }

    /// The architecture in a GGUF file, which some families share.
    pub(crate) fn gguf(self) -> &'static str {
        match self {
            Family::Llama | Family::Mixtral => "llama",
            Family::Qwen2 => "qwen2",
            Family::Qwen3 => "qwen3",
            Family::Gemma3 => "gemma3",
            Family::Qwen3Moe => "qwen3moe",
            Family::Olmoe => "olmoe",
            Family::GraniteMoe | Family::GraniteMoeShared => "granitemoe",
            Family::Glm4Moe => "glm4moe",
            Family::DeepseekV2 | Family::DeepseekV3 => "deepseek2",
        }
    }

    /// Whether GGUF files have the rows of a head's halves in turn, in queries and keys.
    pub(crate) fn interleaved(self) -> bool {
        matches!(
            self,
            Family::Llama | Family::Mixtral | Family::GraniteMoe | Family::GraniteMoeShared
        )
    }

    /// The activation of feed-forwards and experts.
    pub(crate) fn gate(self) -> Gate {
        if self == Family::Gemma3 { Gate::GeluTanh } else { Gate::Silu }
    }

    /// Whether attention and feed-forward are normed behind, too, before they join the residual.
    pub fn outer_norms(self) -> bool {
        self == Family::Gemma3
    }

    /// Whether a Hugging Face file holds the weights of norms as their distance from 1.
    pub(crate) fn norms_from_one(self) -> bool {
        self == Family::Gemma3
    }

    /// Whether files may hold a block that predicts the token after the next.
    pub(crate) fn has_mtp(self) -> bool {
        matches!(self, Family::Glm4Moe | Family::DeepseekV3)
    }

    /// Whether a layer's experts are stacked in one tensor in Hugging Face files, too.
    pub(crate) fn stacked_experts(self) -> bool {
        self == Family::GraniteMoe
    }
}
