//! `config.json` as transformers and this crate read it.

use serde_json::{Value, json};

use crate::config::rope::{Rope, Scaling, Yarn};
use crate::config::{Config, Family, HeadNorms, Latent, Routing, Windows};

impl Config {
    /// The content of a `config.json` that transformers and this crate read as this model.
    ///
    /// `dtype` is the name of the type in which the weights are stored: `float32`, `bfloat16`.
    pub fn to_huggingface(&self, dtype: &str) -> Value {
        let (model_type, class) = self.family.huggingface();
        let mut json = json!({
            "architectures": [class],
            "model_type": model_type,
            "vocab_size": self.vocab,
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "max_position_embeddings": self.context,
            "rms_norm_eps": shortest(self.norm_eps),
            "rope_theta": shortest(self.rope.theta),
            "rope_scaling": self.rope.scaling.as_ref().map(scaling),
            "attention_bias": self.attention_bias,
            "mlp_bias": false,
            "tie_word_embeddings": self.tied_embeddings,
            "bos_token_id": self.bos,
            "eos_token_id": ids_json(&self.eos),
            "torch_dtype": dtype,
        });
        if self.family == Family::Qwen2 {
            json["use_sliding_window"] = false.into();
        }
        if let Some(experts) = &self.experts {
            json["intermediate_size"] = experts.width.into();
            json["shared_intermediate_size"] = self.intermediate.into();
            json["num_local_experts"] = (experts.names.len() + 1).into();
            json["num_experts_per_tok"] = 2.into();
            json["artel"] = json!({ "experts": experts.names });
        }
        if let Some(windows) = &self.windows {
            self.window_keys(windows, &mut json);
        }
        if matches!(self.family, Family::GraniteMoe | Family::GraniteMoeShared) {
            let usual = (self.head_dim as f64).powf(-0.5);
            json["embedding_multiplier"] = shortest(self.scales.embedding).into();
            json["residual_multiplier"] = shortest(self.scales.residual).into();
            json["logits_scaling"] = shortest(self.scales.logits).into();
            json["attention_multiplier"] = self.scales.attention.map_or(usual, shortest).into();
        }
        if let Some(routing) = &self.routing {
            self.routing_keys(routing, &mut json);
        }
        if let Some(latent) = &self.latent {
            latent_keys(latent, &self.rope, self.head_dim, &mut json);
        }
        json
    }

    /// Gemma's keys; the family's files have no `hidden_act`.
    fn window_keys(&self, windows: &Windows, json: &mut Value) {
        json["hidden_activation"] = "gelu_pytorch_tanh".into();
        json["hidden_act"] = Value::Null;
        json["sliding_window"] = windows.tokens.into();
        json["layer_types"] = layer_types(windows, self.layers);
        json["rope_local_base_freq"] = shortest(windows.rope_theta).into();
        let scalar = self.scales.attention.map_or(self.head_dim as f32, |scale| scale.powi(-2));
        json["query_pre_attn_scalar"] = (scalar.round() as u64).into();
    }

    fn routing_keys(&self, routing: &Routing, json: &mut Value) {
        json["num_experts_per_tok"] = routing.top_k.into();
        if matches!(self.family, Family::Mixtral | Family::GraniteMoe) {
            json["num_local_experts"] = routing.experts.into();
            json["intermediate_size"] = routing.width.into();
            return;
        }
        json["norm_topk_prob"] = routing.normalise.into();
        if self.family == Family::Olmoe {
            json["num_experts"] = routing.experts.into();
            json["intermediate_size"] = routing.width.into();
            return;
        }
        json["moe_intermediate_size"] = routing.width.into();
        if self.family == Family::Qwen3Moe {
            json["num_experts"] = routing.experts.into();
            json["decoder_sparse_step"] = 1.into();
            json["mlp_only_layers"] = json!([]);
            return;
        }
        if routing.dense_layers > 0 {
            json["intermediate_size"] = routing.dense_width.into();
        }
        json["n_routed_experts"] = routing.experts.into();
        json["n_shared_experts"] = (self.intermediate / routing.width).into();
        json["routed_scaling_factor"] = shortest(routing.scale).into();
        json["first_k_dense_replace"] = routing.dense_layers.into();
        json["n_group"] = routing.groups.map_or(1, |groups| groups.count).into();
        json["topk_group"] = routing.groups.map_or(1, |groups| groups.top_k).into();
        if self.family == Family::DeepseekV2 {
            let method = if routing.groups.is_some() { "group_limited_greedy" } else { "greedy" };
            json["topk_method"] = method.into();
        }
        if self.mtp {
            json["num_nextn_predict_layers"] = 1.into();
        }
        if self.family == Family::Glm4Moe {
            json["use_qk_norm"] = (self.head_norms == HeadNorms::Each).into();
            json["partial_rotary_factor"] = (self.rope.dim as f64 / self.head_dim as f64).into();
        }
    }
}

fn latent_keys(latent: &Latent, rope: &Rope, head_dim: usize, json: &mut Value) {
    json["q_lora_rank"] = (latent.query_rank > 0).then_some(latent.query_rank).into();
    json["kv_lora_rank"] = latent.rank.into();
    json["qk_rope_head_dim"] = rope.dim.into();
    json["qk_nope_head_dim"] = (head_dim - rope.dim).into();
    json["v_head_dim"] = latent.value_dim.into();
    json["rope_interleave"] = latent.interleaved.into();
    // The family's own meaning of it.
    json["head_dim"] = rope.dim.into();
}

fn scaling(scaling: &Scaling) -> Value {
    match scaling {
        Scaling::Linear { factor } => json!({ "rope_type": "linear", "factor": shortest(*factor) }),
        Scaling::Dynamic { factor } => {
            json!({ "rope_type": "dynamic", "factor": shortest(*factor) })
        }
        Scaling::Llama3 { factor, low_frequency, high_frequency, original } => json!({
            "rope_type": "llama3",
            "factor": shortest(*factor),
            "low_freq_factor": shortest(*low_frequency),
            "high_freq_factor": shortest(*high_frequency),
            "original_max_position_embeddings": original,
        }),
        Scaling::Yarn(yarn) => yarn_keys(yarn),
        Scaling::Factors(_) => unreachable!("`Export` refuses to write it"),
    }
}

fn yarn_keys(yarn: &Yarn) -> Value {
    let mut json = json!({
        "rope_type": "yarn",
        "factor": shortest(yarn.factor),
        "original_max_position_embeddings": yarn.original,
        "beta_fast": shortest(yarn.beta_fast),
        "beta_slow": shortest(yarn.beta_slow),
    });
    let scales = [("mscale", yarn.mscale), ("mscale_all_dim", yarn.mscale_all)];
    for (key, scale) in scales.into_iter().filter(|(_, scale)| *scale != 0.0) {
        json[key] = shortest(scale).into();
    }
    if let Some(magnitude) = yarn.magnitude {
        json["attention_factor"] = shortest(magnitude).into();
    }
    if !yarn.truncate {
        json["truncate"] = false.into();
    }
    json
}

/// The kind of each layer's attention, as transformers names them.
pub(super) fn layer_types(windows: &Windows, layers: usize) -> Value {
    let kind = |layer| if windows.cover(layer) { "sliding_attention" } else { "full_attention" };
    (0..layers).map(kind).collect()
}

/// Through the shortest decimal, so that 1e-5 is not written as 9.999999747378752e-6.
fn shortest(v: f32) -> f64 {
    v.to_string().parse::<f64>().unwrap_or(f64::from(v))
}

/// One id stands alone, as transformers writes it; none is null.
pub(crate) fn ids_json(ids: &[u32]) -> Value {
    match ids {
        [] => Value::Null,
        [id] => (*id).into(),
        ids => ids.into(),
    }
}
