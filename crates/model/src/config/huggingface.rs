//! `config.json` of the Hugging Face layout, read and written.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::{Config, ExpertsConfig, Family, Routing, wrong};
use crate::Error;

/// Reads `config.json`; `generation` is `generation_config.json`, whose end tokens count too.
///
/// # Errors
/// Naming `path`, key and value of whatever is missing, out of limits, or not supported.
pub(crate) fn from_huggingface(
    path: &Path,
    json: &Value,
    generation: Option<&Value>,
) -> Result<Config, Error> {
    let Some(object) = json.as_object() else {
        return Err(wrong(path, "the whole file", "no JSON object", "config.json is one"));
    };
    let keys = Keys { path, object };
    let (family, expected_class) = match keys.text("model_type")?.as_str() {
        "llama" => (Family::Llama, "LlamaForCausalLM"),
        "granitemoeshared" => (Family::GraniteMoeShared, "GraniteMoeSharedForCausalLM"),
        "mixtral" => (Family::Mixtral, "MixtralForCausalLM"),
        "qwen3_moe" => (Family::Qwen3Moe, "Qwen3MoeForCausalLM"),
        "glm4_moe" => (Family::Glm4Moe, "Glm4MoeForCausalLM"),
        other => {
            let expected = "supported are llama, granitemoeshared, mixtral, qwen3_moe and glm4_moe";
            return Err(wrong(path, "model_type", format!("{other:?}"), expected));
        }
    };
    keys.refuse_unsupported(expected_class)?;
    let heads = keys.size("num_attention_heads")?;
    let hidden = keys.size("hidden_size")?;
    let head_dim = match keys.get("head_dim") {
        Some(_) => keys.size("head_dim")?,
        None if heads > 0 => hidden / heads,
        None => 0,
    };
    let experts = match family {
        Family::GraniteMoeShared => Some(keys.experts(head_dim)?),
        _ => None,
    };
    let routing = keys.routing(family)?;
    let intermediate = match family {
        Family::Llama => keys.size("intermediate_size")?,
        Family::GraniteMoeShared => keys.size("shared_intermediate_size")?,
        Family::Mixtral | Family::Qwen3Moe => 0,
        Family::Glm4Moe => {
            keys.size("n_shared_experts")?.saturating_mul(keys.size("moe_intermediate_size")?)
        }
        Family::Gemma3 | Family::GraniteMoe => unreachable!("read from GGUF files only"),
    };
    let mut eos = keys.ids("eos_token_id")?;
    if let Some(object) = generation.and_then(Value::as_object) {
        let path = path.with_file_name("generation_config.json");
        for id in (Keys { path: &path, object }).ids("eos_token_id")? {
            if !eos.contains(&id) {
                eos.push(id);
            }
        }
    }
    let config = Config {
        family,
        vocab: keys.size("vocab_size")?,
        hidden,
        layers: keys.size("num_hidden_layers")?,
        heads,
        kv_heads: match keys.get("num_key_value_heads") {
            Some(_) => keys.size("num_key_value_heads")?,
            None => heads,
        },
        head_dim,
        intermediate,
        head_norms: match family {
            Family::Qwen3Moe => true,
            Family::Glm4Moe => keys.flag("use_qk_norm")?,
            _ => false,
        },
        norm_eps: keys.number("rms_norm_eps")? as f32,
        rope_theta: keys.rope_theta()? as f32,
        windows: None,
        context: keys.size("max_position_embeddings")?,
        tied_embeddings: keys.flag("tie_word_embeddings")?,
        bos: keys.ids("bos_token_id")?.first().copied(),
        eos,
        experts,
        routing,
    };
    config.check(path)?;
    Ok(config)
}

struct Keys<'a> {
    path: &'a Path,
    object: &'a Map<String, Value>,
}

impl Keys<'_> {
    /// The value, unless it is null, which Python writes for "not given".
    fn get(&self, key: &str) -> Option<&Value> {
        self.object.get(key).filter(|v| !v.is_null())
    }

    fn need(&self, key: &str) -> Result<&Value, Error> {
        let missing = || Error::MissingKey { path: self.path.into(), key: key.into() };
        self.get(key).ok_or_else(missing)
    }

    fn wrong(&self, key: &str, expected: &str) -> Error {
        let value = self.get(key).map_or("null".into(), Value::to_string);
        wrong(self.path, key, value, expected)
    }

    fn text(&self, key: &str) -> Result<String, Error> {
        let value = self.need(key)?.as_str();
        value.map(str::to_owned).ok_or_else(|| self.wrong(key, "must be a string"))
    }

    fn size(&self, key: &str) -> Result<usize, Error> {
        let value = self.need(key)?.as_u64().and_then(|v| usize::try_from(v).ok());
        value.ok_or_else(|| self.wrong(key, "must be a whole number, not negative"))
    }

    fn number(&self, key: &str) -> Result<f64, Error> {
        self.need(key)?.as_f64().ok_or_else(|| self.wrong(key, "must be a number"))
    }

    fn number_or(&self, key: &str, default: f64) -> Result<f64, Error> {
        self.get(key).map_or(Ok(default), |_| self.number(key))
    }

    fn flag(&self, key: &str) -> Result<bool, Error> {
        let Some(value) = self.get(key) else { return Ok(false) };
        value.as_bool().ok_or_else(|| self.wrong(key, "must be true or false"))
    }

    /// One token id or a list of them; absent gives none.
    fn ids(&self, key: &str) -> Result<Vec<u32>, Error> {
        let values = match self.get(key) {
            None => return Ok(vec![]),
            Some(Value::Array(values)) => values.as_slice(),
            Some(value) => std::slice::from_ref(value),
        };
        let id = |v: &Value| v.as_u64().and_then(|v| u32::try_from(v).ok());
        let ids: Option<Vec<u32>> = values.iter().map(id).collect();
        ids.ok_or_else(|| self.wrong(key, "must be a token id or a list of them"))
    }

    /// What the decoder would compute wrongly is refused rather than ignored.
    fn refuse_unsupported(&self, expected_class: &str) -> Result<(), Error> {
        if let Some(Value::Array(classes)) = self.get("architectures")
            && !classes.iter().any(|c| c == expected_class)
        {
            let expected = format!("only {expected_class} is supported");
            return Err(self.wrong("architectures", &expected));
        }
        if self.get("hidden_act").is_some_and(|v| v != "silu") {
            return Err(self.wrong("hidden_act", "only \"silu\" is supported"));
        }
        for key in ["attention_bias", "mlp_bias"] {
            if self.flag(key)? {
                return Err(self.wrong(key, "models with biases are not supported"));
            }
        }
        for key in ["sliding_window", "quantization_config"] {
            if self.get(key).is_some() {
                return Err(self.wrong(key, "is not supported; it must be null or absent"));
            }
        }
        if self.get("position_embedding_type").is_some_and(|v| v != "rope") {
            return Err(self.wrong("position_embedding_type", "only \"rope\" is supported"));
        }
        for key in ["rope_scaling", "rope_parameters"] {
            let Some(value) = self.get(key) else { continue };
            let kind = value.get("rope_type").or_else(|| value.get("type"));
            let partial =
                value.get("partial_rotary_factor").is_some_and(|v| v.as_f64() != Some(1.0));
            // An object of rope_theta alone is the default kind.
            if !value.is_object() || kind.is_some_and(|k| k != "default") || partial {
                return Err(self.wrong(key, "only unscaled rotary positions are supported"));
            }
        }
        Ok(())
    }

    /// Newer files keep it in `rope_parameters`, older ones beside it.
    fn rope_theta(&self) -> Result<f64, Error> {
        match self.get("rope_parameters").and_then(|r| r.get("rope_theta")) {
            Some(value) => value
                .as_f64()
                .ok_or_else(|| self.wrong("rope_parameters", "rope_theta must be a number")),
            None => self.number_or("rope_theta", 10_000.0),
        }
    }

    /// The experts of the model's own, in families that have them.
    fn routing(&self, family: Family) -> Result<Option<Routing>, Error> {
        let (experts, width) = match family {
            Family::Llama | Family::GraniteMoe | Family::GraniteMoeShared | Family::Gemma3 => {
                return Ok(None);
            }
            Family::Mixtral => ("num_local_experts", "intermediate_size"),
            // transformers writes it under either name.
            Family::Qwen3Moe if self.get("num_experts").is_none() => {
                ("num_local_experts", "moe_intermediate_size")
            }
            Family::Qwen3Moe => ("num_experts", "moe_intermediate_size"),
            Family::Glm4Moe => ("n_routed_experts", "moe_intermediate_size"),
        };
        self.refuse_unsupported_routing(family)?;
        let glm = family == Family::Glm4Moe;
        Ok(Some(Routing {
            experts: self.size(experts)?,
            top_k: self.size("num_experts_per_tok")?,
            width: self.size(width)?,
            sigmoid: glm,
            normalise: family == Family::Mixtral || self.flag("norm_topk_prob")?,
            scale: if glm { self.number("routed_scaling_factor")? as f32 } else { 1.0 },
        }))
    }

    /// Layers without experts, experts chosen by groups, and positions of a part of each head.
    fn refuse_unsupported_routing(&self, family: Family) -> Result<(), Error> {
        let mut only = vec![];
        if family == Family::Qwen3Moe {
            only.push(("decoder_sparse_step", 1.0, 1.0));
            if self
                .get("mlp_only_layers")
                .is_some_and(|v| v.as_array().is_none_or(|l| !l.is_empty()))
            {
                let expected = "layers without experts are not supported";
                return Err(self.wrong("mlp_only_layers", expected));
            }
        }
        if family == Family::Glm4Moe {
            only.extend([("first_k_dense_replace", 1.0, 0.0), ("n_group", 1.0, 1.0)]);
            let positions =
                self.get("rope_parameters").and_then(|r| r.get("partial_rotary_factor"));
            // The family's default is one half.
            if positions.or(self.get("partial_rotary_factor")).and_then(Value::as_f64) != Some(1.0)
            {
                let expected = "only 1 is supported";
                return Err(self.wrong("partial_rotary_factor", expected));
            }
        }
        for (key, default, supported) in only {
            if self.number_or(key, default)? != supported {
                return Err(self.wrong(key, &format!("only {supported} is supported")));
            }
        }
        Ok(())
    }

    fn experts(&self, head_dim: usize) -> Result<ExpertsConfig, Error> {
        let neutral = [
            ("embedding_multiplier", 1.0),
            ("residual_multiplier", 1.0),
            ("logits_scaling", 1.0),
            ("attention_multiplier", (head_dim as f64).powf(-0.5)),
        ];
        for (key, neutral) in neutral {
            if (self.number_or(key, 1.0)? - neutral).abs() > 1e-6 * neutral {
                let expected = format!("only {neutral} is supported");
                return Err(self.wrong(key, &expected));
            }
        }
        let list = self.need("artel")?.get("experts").and_then(Value::as_array);
        let names: Option<Vec<String>> =
            list.and_then(|l| l.iter().map(|n| n.as_str().map(str::to_owned)).collect());
        let Some(names) = names else {
            return Err(self.wrong("artel", "must hold \"experts\", the list of their names"));
        };
        if self.size("num_local_experts")? != names.len() + 1 {
            let expected = format!("{} named experts and the null expert must add up", names.len());
            return Err(self.wrong("num_local_experts", &expected));
        }
        if self.size("num_experts_per_tok")? != 2 {
            return Err(self.wrong("num_experts_per_tok", "only 2 is supported"));
        }
        Ok(ExpertsConfig { width: self.size("intermediate_size")?, names })
    }
}

impl Config {
    /// The content of a `config.json` that transformers and this crate read as this model.
    ///
    /// `dtype` is the name of the type in which the weights are stored: `float32`, `bfloat16`.
    pub fn to_huggingface(&self, dtype: &str) -> Value {
        let (model_type, class) = match self.family {
            Family::Llama => ("llama", "LlamaForCausalLM"),
            Family::GraniteMoeShared => ("granitemoeshared", "GraniteMoeSharedForCausalLM"),
            Family::Mixtral => ("mixtral", "MixtralForCausalLM"),
            Family::Qwen3Moe => ("qwen3_moe", "Qwen3MoeForCausalLM"),
            Family::Glm4Moe => ("glm4_moe", "Glm4MoeForCausalLM"),
            Family::Gemma3 | Family::GraniteMoe => {
                unreachable!("`Export` refuses to write it")
            }
        };
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
            "rope_theta": shortest(self.rope_theta),
            "rope_scaling": null,
            "attention_bias": false,
            "mlp_bias": false,
            "tie_word_embeddings": self.tied_embeddings,
            "bos_token_id": self.bos,
            "eos_token_id": ids_json(&self.eos),
            "torch_dtype": dtype,
        });
        if let Some(experts) = &self.experts {
            json["intermediate_size"] = experts.width.into();
            json["shared_intermediate_size"] = self.intermediate.into();
            json["num_local_experts"] = (experts.names.len() + 1).into();
            json["num_experts_per_tok"] = 2.into();
            json["embedding_multiplier"] = 1.0.into();
            json["residual_multiplier"] = 1.0.into();
            json["logits_scaling"] = 1.0.into();
            json["attention_multiplier"] = (self.head_dim as f64).powf(-0.5).into();
            json["artel"] = json!({ "experts": experts.names });
        }
        if let Some(routing) = &self.routing {
            self.routing_keys(routing, &mut json);
        }
        json
    }

    fn routing_keys(&self, routing: &Routing, json: &mut Value) {
        json["num_experts_per_tok"] = routing.top_k.into();
        if self.family == Family::Mixtral {
            json["num_local_experts"] = routing.experts.into();
            json["intermediate_size"] = routing.width.into();
            return;
        }
        json["moe_intermediate_size"] = routing.width.into();
        json["norm_topk_prob"] = routing.normalise.into();
        if self.family == Family::Qwen3Moe {
            json["num_experts"] = routing.experts.into();
            json["decoder_sparse_step"] = 1.into();
            json["mlp_only_layers"] = json!([]);
            return;
        }
        json["n_routed_experts"] = routing.experts.into();
        json["n_shared_experts"] = (self.intermediate / routing.width).into();
        json["routed_scaling_factor"] = shortest(routing.scale).into();
        json["use_qk_norm"] = self.head_norms.into();
        json["first_k_dense_replace"] = 0.into();
        json["n_group"] = 1.into();
        json["topk_group"] = 1.into();
        json["partial_rotary_factor"] = 1.0.into();
    }
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
