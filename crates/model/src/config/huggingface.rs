//! `config.json` of the Hugging Face layout, read and written.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::{Config, ExpertsConfig, Family, wrong};
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
        other => {
            let expected = "supported are llama and granitemoeshared";
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
    let (intermediate, experts) = match family {
        Family::Llama => (keys.size("intermediate_size")?, None),
        Family::GraniteMoeShared => {
            (keys.size("shared_intermediate_size")?, Some(keys.experts(head_dim)?))
        }
        Family::Gemma3 => unreachable!("read from GGUF files only"),
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
        norm_eps: keys.number("rms_norm_eps")? as f32,
        rope_theta: keys.rope_theta()? as f32,
        windows: None,
        context: keys.size("max_position_embeddings")?,
        tied_embeddings: keys.flag("tie_word_embeddings")?,
        bos: keys.ids("bos_token_id")?.first().copied(),
        eos,
        experts,
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
            Family::Gemma3 => unreachable!("`Export` refuses to write it"),
        };
        // Through the shortest decimal, so that 1e-5 is not written as 9.999999747378752e-6.
        let shortest = |v: f32| v.to_string().parse::<f64>().unwrap_or(f64::from(v));
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
        json
    }
}

/// One id stands alone, as transformers writes it; none is null.
pub(crate) fn ids_json(ids: &[u32]) -> Value {
    match ids {
        [] => Value::Null,
        [id] => (*id).into(),
        ids => ids.into(),
    }
}
