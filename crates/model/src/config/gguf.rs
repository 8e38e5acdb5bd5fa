//! A model's shape from the metadata of a GGUF file.

use super::{Config, ExpertsConfig, Family, Routing, Windows, wrong};
use crate::Error;
use crate::source::gguf::{Gguf, Value};

/// Key under which an exported model keeps the names of its department experts.
pub(crate) const EXPERT_NAMES: &str = "artel.experts";

/// # Errors
/// Naming file, key and value of whatever is missing, out of limits, or not supported.
pub(crate) fn from_gguf(file: &Gguf) -> Result<Config, Error> {
    let arch = file.text("general.architecture")?;
    let family = match arch {
        "llama" => Family::Llama,
        "granitemoe" if file.get(EXPERT_NAMES).is_none() => Family::GraniteMoe,
        "granitemoe" => Family::GraniteMoeShared,
        "gemma3" => Family::Gemma3,
        other => {
            let expected = "supported are llama, granitemoe and gemma3";
            let value = format!("{other:?}");
            return Err(wrong(&file.path, "general.architecture", value, expected));
        }
    };
    let keys = Keys { file, arch };
    let heads = keys.size("attention.head_count")?;
    let hidden = keys.size("embedding_length")?;
    let head_dim = match keys.get("attention.key_length") {
        Some(_) => keys.size("attention.key_length")?,
        None if heads > 0 => hidden / heads,
        None => 0,
    };
    keys.refuse_unsupported(family, head_dim)?;
    let width = keys.size("feed_forward_length")?;
    let (intermediate, experts) = match family {
        Family::Llama | Family::Gemma3 => (width, None),
        Family::GraniteMoeShared => {
            (keys.size("expert_shared_feed_forward_length")?, Some(keys.experts(width)?))
        }
        Family::GraniteMoe => (0, None),
        Family::Mixtral | Family::Qwen3Moe | Family::Glm4Moe => {
            unreachable!("no architecture is read as these")
        }
    };
    let vocab = match keys.get("vocab_size") {
        Some(_) => keys.size("vocab_size")?,
        None => file.tensor("token_embd.weight")?.shape[0],
    };
    let config = Config {
        family,
        vocab,
        hidden,
        layers: keys.size("block_count")?,
        heads,
        kv_heads: match keys.get("attention.head_count_kv") {
            Some(_) => keys.size("attention.head_count_kv")?,
            None => heads,
        },
        head_dim,
        intermediate,
        head_norms: family == Family::Gemma3,
        norm_eps: keys.number("attention.layer_norm_rms_epsilon")? as f32,
        rope_theta: keys.number_or("rope.freq_base", 10_000.0)? as f32,
        windows: (family == Family::Gemma3).then(|| keys.windows()).transpose()?,
        context: keys.size("context_length")?,
        tied_embeddings: !file.has("output.weight"),
        bos: token(file, "bos")?,
        eos: end_tokens(file)?,
        experts,
        routing: (family == Family::GraniteMoe).then(|| keys.routing(width)).transpose()?,
    };
    config.check(&file.path)?;
    Ok(config)
}

fn token(file: &Gguf, which: &str) -> Result<Option<u32>, Error> {
    let key = format!("tokenizer.ggml.{which}_token_id");
    let Some(value) = file.get(&key) else { return Ok(None) };
    let id = value.integer().and_then(|v| u32::try_from(v).ok());
    id.map(Some).ok_or_else(|| wrong(&file.path, &key, value, "must be a token id"))
}

/// The end of text, of a turn, and of a message awaiting a tool.
fn end_tokens(file: &Gguf) -> Result<Vec<u32>, Error> {
    let mut ids = vec![];
    for which in ["eos", "eot", "eom"] {
        if let Some(id) = token(file, which)?
            && !ids.contains(&id)
        {
            ids.push(id);
        }
    }
    Ok(ids)
}

/// The keys of the architecture, which all begin with its name.
struct Keys<'a> {
    file: &'a Gguf,
    arch: &'a str,
}

impl Keys<'_> {
    fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.arch)
    }

    fn get(&self, key: &str) -> Option<&Value> {
        self.file.get(&self.key(key))
    }

    fn wrong(&self, key: &str, expected: &str) -> Error {
        let value = self.get(key).map_or("missing".into(), Value::to_string);
        wrong(&self.file.path, &self.key(key), value, expected)
    }

    fn missing(&self, key: &str) -> Error {
        Error::MissingKey { path: self.file.path.clone(), key: self.key(key) }
    }

    fn size(&self, key: &str) -> Result<usize, Error> {
        let value = self.get(key).ok_or_else(|| self.missing(key))?;
        let size = value.integer().and_then(|v| usize::try_from(v).ok());
        size.ok_or_else(|| self.wrong(key, "must be a whole number, not negative"))
    }

    fn number(&self, key: &str) -> Result<f64, Error> {
        let value = self.get(key).ok_or_else(|| self.missing(key))?;
        value.number().ok_or_else(|| self.wrong(key, "must be a number"))
    }

    fn number_or(&self, key: &str, default: f64) -> Result<f64, Error> {
        self.get(key).map_or(Ok(default), |_| self.number(key))
    }

    /// What the decoder would compute wrongly is refused rather than ignored.
    fn refuse_unsupported(&self, family: Family, head_dim: usize) -> Result<(), Error> {
        for key in ["attention.value_length", "rope.dimension_count"] {
            if self.get(key).is_some() && self.size(key)? != head_dim {
                let expected = format!("only the head dimension, {head_dim}, is supported");
                return Err(self.wrong(key, &expected));
            }
        }
        if matches!(self.get("rope.scaling.type"), Some(v) if v.text() != Some("none")) {
            return Err(self.wrong("rope.scaling.type", "only \"none\" is supported"));
        }
        for key in ["rope.scaling.factor", "rope.scale_linear"] {
            // 0 stands for "none" in files of some converters.
            if ![0.0, 1.0].contains(&self.number_or(key, 1.0)?) {
                return Err(self.wrong(key, "only unscaled rotary positions are supported"));
            }
        }
        if family != Family::Gemma3 && self.number_or("attention.sliding_window", 0.0)? != 0.0 {
            return Err(self.wrong("attention.sliding_window", "is not supported"));
        }
        if family == Family::Gemma3 {
            for key in ["attn_logit_softcapping", "final_logit_softcapping"] {
                if self.number_or(key, 0.0)? != 0.0 {
                    return Err(self.wrong(key, "is not supported"));
                }
            }
        }
        let experts = matches!(family, Family::GraniteMoe | Family::GraniteMoeShared);
        if !experts && self.number_or("expert_count", 0.0)? != 0.0 {
            return Err(self.wrong("expert_count", "this family has no experts here"));
        }
        let attention = (head_dim as f64).powf(-0.5);
        let neutral = [
            ("embedding_scale", 1.0),
            ("residual_scale", 1.0),
            ("logit_scale", 1.0),
            ("attention.scale", attention),
        ];
        for (key, neutral) in neutral {
            if (self.number_or(key, neutral)? - neutral).abs() > 1e-6 * neutral {
                let expected = format!("only {neutral} is supported");
                return Err(self.wrong(key, &expected));
            }
        }
        let unsupported = |name: &&str| name.ends_with(".bias") || *name == "rope_freqs.weight";
        if let Some(name) = self.file.names().find(unsupported) {
            let problem = match name {
                "rope_freqs.weight" => "scaled rotary positions are not supported",
                _ => "biases are not supported",
            };
            let (path, name) = (self.file.path.clone(), name.into());
            return Err(Error::Tensor { path, name, problem: problem.into() });
        }
        Ok(())
    }

    /// Files do not say which layers see all, nor the base of the others' positions.
    ///
    /// **Source**: Gemma Team 2025, arXiv 2503.19786, section 2: five local layers to a global one,
    /// base 10k in local layers.
    fn windows(&self) -> Result<Windows, Error> {
        let full_every = match self.get("attention.sliding_window_pattern") {
            Some(_) => self.size("attention.sliding_window_pattern")?,
            None => 6,
        };
        Ok(Windows {
            tokens: self.size("attention.sliding_window")?,
            full_every,
            rope_theta: self.number_or("rope.freq_base_swa", 10_000.0)? as f32,
        })
    }

    /// Softmax over the best, which is the normalised softmax over all.
    fn routing(&self, width: usize) -> Result<Routing, Error> {
        if self.number_or("expert_shared_feed_forward_length", 0.0)? != 0.0 {
            let expected = "a shared expert is not supported beside unnamed ones";
            return Err(self.wrong("expert_shared_feed_forward_length", expected));
        }
        Ok(Routing {
            experts: self.size("expert_count")?,
            top_k: self.size("expert_used_count")?,
            width,
            sigmoid: false,
            normalise: true,
            scale: 1.0,
        })
    }

    fn experts(&self, width: usize) -> Result<ExpertsConfig, Error> {
        let path = &self.file.path;
        let Some(names) = self.file.get(EXPERT_NAMES) else {
            return Err(Error::MissingKey { path: path.clone(), key: EXPERT_NAMES.into() });
        };
        let Some(names) = names.texts() else {
            return Err(wrong(path, EXPERT_NAMES, names, "must be a list of names"));
        };
        if self.size("expert_count")? != names.len() + 1 {
            let expected = format!("{} named experts and the null expert must add up", names.len());
            return Err(self.wrong("expert_count", &expected));
        }
        if self.size("expert_used_count")? != 2 {
            return Err(self.wrong("expert_used_count", "only 2 is supported"));
        }
        Ok(ExpertsConfig { width, names: names.to_vec() })
    }
}
