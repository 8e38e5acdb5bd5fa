//! `config.json` of the Hugging Face layout, read and written.

mod experts;
mod positions;
mod write;

use std::path::Path;

use serde_json::{Map, Value};

use super::{Config, Family, HeadNorms, Latent, Scales, wrong};
use crate::Error;

pub(crate) use write::ids_json;

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
    let model_type = keys.text("model_type")?;
    let named = |family: &&Family| family.huggingface().0 == model_type;
    let Some(&family) = Family::ALL.iter().find(named) else {
        let names = Family::ALL.map(|family| family.huggingface().0).join(", ");
        let expected = format!("supported are {names}");
        return Err(wrong(path, "model_type", format!("{model_type:?}"), &expected));
    };
    keys.refuse_unsupported(family)?;
    let heads = keys.size("num_attention_heads")?;
    let hidden = keys.size("hidden_size")?;
    let latent = keys.latent(family)?;
    let head_dim = match keys.get("head_dim") {
        _ if latent.is_some() => {
            keys.size("qk_nope_head_dim")?.saturating_add(keys.size("qk_rope_head_dim")?)
        }
        Some(_) => keys.size("head_dim")?,
        None if heads > 0 => hidden / heads,
        None => 0,
    };
    let experts = match family {
        Family::GraniteMoeShared => Some(keys.experts()?),
        _ => None,
    };
    let routing = keys.routing(family)?;
    let intermediate = match family {
        Family::Llama | Family::Qwen2 | Family::Qwen3 | Family::Gemma3 => {
            keys.size("intermediate_size")?
        }
        Family::GraniteMoeShared => keys.size("shared_intermediate_size")?,
        Family::Mixtral | Family::Qwen3Moe | Family::Olmoe | Family::GraniteMoe => 0,
        Family::Glm4Moe | Family::DeepseekV2 | Family::DeepseekV3 => {
            keys.size("n_shared_experts")?.saturating_mul(keys.size("moe_intermediate_size")?)
        }
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
        mtp: family.has_mtp()
            && keys.get("num_nextn_predict_layers").is_some()
            && keys.size("num_nextn_predict_layers")? == 1,
        heads,
        kv_heads: match keys.get("num_key_value_heads") {
            Some(_) => keys.size("num_key_value_heads")?,
            None => heads,
        },
        head_dim,
        intermediate,
        head_norms: match family {
            Family::Qwen3 | Family::Qwen3Moe | Family::Gemma3 => HeadNorms::Each,
            Family::Glm4Moe if keys.flag("use_qk_norm")? => HeadNorms::Each,
            Family::Olmoe => HeadNorms::Whole,
            _ => HeadNorms::None,
        },
        attention_bias: match family {
            Family::Qwen2 => true,
            Family::Glm4Moe => keys.flag("attention_bias")?,
            _ => false,
        },
        norm_eps: keys.number("rms_norm_eps")? as f32,
        rope: keys.rope(family, head_dim)?,
        scales: keys.scales(family, hidden, head_dim)?,
        windows: keys.windows(family)?,
        latent,
        context: keys.size("max_position_embeddings")?,
        tied_embeddings: match keys.get("tie_word_embeddings") {
            // Files need not say what is the family's default.
            None => family == Family::Gemma3,
            Some(_) => keys.flag("tie_word_embeddings")?,
        },
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

    fn flag_or(&self, key: &str, default: bool) -> Result<bool, Error> {
        if self.get(key).is_none() { Ok(default) } else { self.flag(key) }
    }

    /// What the decoder would compute wrongly is refused rather than ignored.
    fn refuse_unsupported(&self, family: Family) -> Result<(), Error> {
        let (_, expected_class) = family.huggingface();
        if let Some(Value::Array(classes)) = self.get("architectures")
            && !classes.iter().any(|c| c == expected_class)
        {
            let expected = format!("only {expected_class} is supported");
            return Err(self.wrong("architectures", &expected));
        }
        for (key, activation) in
            [("hidden_act", "silu"), ("hidden_activation", "gelu_pytorch_tanh")]
        {
            if self.get(key).is_some_and(|v| v != activation) {
                return Err(self.wrong(key, &format!("only {activation:?} is supported")));
            }
        }
        let biases = ["attention_bias", "mlp_bias"];
        let own = usize::from(matches!(family, Family::Glm4Moe | Family::Qwen2));
        for key in &biases[own..] {
            if self.flag(key)? {
                return Err(self.wrong(key, "models with biases are not supported"));
            }
        }
        if self.flag("use_sliding_window")? {
            return Err(self.wrong("use_sliding_window", "only false is supported"));
        }
        let unused = self.get("use_sliding_window").is_some() || family == Family::Gemma3;
        let absent = [
            "quantization_config",
            "clip_qkv",
            "attn_logit_softcapping",
            "final_logit_softcapping",
        ];
        for key in absent.into_iter().chain((!unused).then_some("sliding_window")) {
            if self.get(key).is_some() {
                return Err(self.wrong(key, "is not supported; it must be null or absent"));
            }
        }
        if self.flag("use_bidirectional_attention")? {
            return Err(self.wrong("use_bidirectional_attention", "only false is supported"));
        }
        if self.get("position_embedding_type").is_some_and(|v| v != "rope") {
            return Err(self.wrong("position_embedding_type", "only \"rope\" is supported"));
        }
        Ok(())
    }

    fn latent(&self, family: Family) -> Result<Option<Latent>, Error> {
        if !matches!(family, Family::DeepseekV2 | Family::DeepseekV3) {
            return Ok(None);
        }
        Ok(Some(Latent {
            query_rank: match self.get("q_lora_rank") {
                Some(_) => self.size("q_lora_rank")?,
                None => 0,
            },
            rank: self.size("kv_lora_rank")?,
            value_dim: self.size("v_head_dim")?,
            interleaved: family == Family::DeepseekV2 || self.flag_or("rope_interleave", true)?,
        }))
    }

    fn scales(&self, family: Family, hidden: usize, head_dim: usize) -> Result<Scales, Error> {
        let number = |key| self.number_or(key, 1.0).map(|number| number as f32);
        match family {
            Family::Gemma3 => {
                let scalar = self.number_or("query_pre_attn_scalar", 256.0)? as f32;
                let usual = scalar == head_dim as f32;
                Ok(Scales {
                    embedding: (hidden as f32).sqrt(),
                    attention: (!usual).then(|| 1.0 / scalar.sqrt()),
                    ..Scales::default()
                })
            }
            Family::GraniteMoe | Family::GraniteMoeShared => {
                let usual = (head_dim as f64).powf(-0.5);
                let multipliers = [
                    ("embedding_multiplier", 1.0),
                    ("residual_multiplier", 1.0),
                    ("logits_scaling", 1.0),
                    ("attention_multiplier", usual),
                ];
                for (key, neutral) in multipliers {
                    let off = (self.number_or(key, 1.0)? - neutral).abs() > 1e-6 * neutral;
                    // A joined model's experts were trained beside a base without.
                    if off && family == Family::GraniteMoeShared {
                        return Err(self.wrong(key, &format!("only {neutral} is supported")));
                    }
                }
                let attention = self.number_or("attention_multiplier", 1.0)?;
                let own = (attention - usual).abs() > 1e-6 * usual;
                Ok(Scales {
                    embedding: number("embedding_multiplier")?,
                    residual: number("residual_multiplier")?,
                    logits: number("logits_scaling")?,
                    attention: own.then_some(attention as f32),
                })
            }
            _ => Ok(Scales::default()),
        }
    }
}
