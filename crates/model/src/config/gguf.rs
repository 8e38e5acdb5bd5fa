//! A model's shape from the metadata of a GGUF file.

mod routing;

use super::rope::{Rope, Scaling, Yarn};
use super::{Config, Family, HeadNorms, Latent, Scales, Windows, wrong};
use crate::Error;
use crate::source::gguf::{Gguf, Value};

/// Key under which an exported model keeps the names of its department experts.
pub(crate) const EXPERT_NAMES: &str = "artel.experts";
/// The tensor of what each frequency is divided by, and its pairs.
pub(crate) const ROPE_FACTORS: &str = "rope_freqs.weight";

/// # Errors
/// Naming file, key and value of whatever is missing, out of limits, or not supported.
pub(crate) fn from_gguf(file: &Gguf) -> Result<Config, Error> {
    let arch = file.text("general.architecture")?;
    let keys = Keys { file, arch };
    let family = keys.family()?;
    let heads = keys.size("attention.head_count")?;
    let hidden = keys.size("embedding_length")?;
    let latent = keys.latent(family)?;
    let key_length =
        ["attention.key_length_mla", "attention.key_length"].into_iter().find(|k| keys.has(k));
    let head_dim = match key_length {
        Some(key) => keys.size(key)?,
        None if heads > 0 => hidden / heads,
        None => 0,
    };
    keys.refuse_unsupported(family, head_dim)?;
    let routing = keys.routing(family)?;
    let (intermediate, experts) = match family {
        Family::GraniteMoeShared => {
            let width = keys.size("feed_forward_length")?;
            (keys.size("expert_shared_feed_forward_length")?, Some(keys.experts(width)?))
        }
        Family::Glm4Moe | Family::DeepseekV2 | Family::DeepseekV3 => {
            let width = routing.map_or(0, |routing| routing.width);
            (keys.size("expert_shared_count")?.saturating_mul(width), None)
        }
        _ if routing.is_some() => (0, None),
        _ => (keys.size("feed_forward_length")?, None),
    };
    let vocab = match keys.get("vocab_size") {
        Some(_) => keys.size("vocab_size")?,
        None => file.tensor("token_embd.weight")?.shape[0],
    };
    // Blocks that predict further tokens stand last.
    let further = keys.size_or("nextn_predict_layers", 0)?;
    let layers = keys.size("block_count")?.saturating_sub(further);
    let config = Config {
        family,
        vocab,
        hidden,
        layers,
        mtp: family.has_mtp()
            && further == 1
            && file.has(&format!("blk.{layers}.nextn.eh_proj.weight")),
        heads,
        kv_heads: match keys.get("attention.head_count_kv") {
            // Latent keys count as one head, of which each gets its own.
            _ if latent.is_some() => heads,
            Some(_) => keys.size("attention.head_count_kv")?,
            None => heads,
        },
        head_dim,
        intermediate,
        head_norms: match family {
            Family::Gemma3 | Family::Qwen3 | Family::Qwen3Moe => HeadNorms::Each,
            Family::Glm4Moe if file.has("blk.0.attn_q_norm.weight") => HeadNorms::Each,
            Family::Olmoe => HeadNorms::Whole,
            _ => HeadNorms::None,
        },
        attention_bias: file.has("blk.0.attn_q.bias"),
        latent,
        norm_eps: keys.number("attention.layer_norm_rms_epsilon")? as f32,
        rope: keys.rope(head_dim, latent.is_some())?,
        scales: keys.scales(family, hidden, heads, head_dim, layers)?,
        windows: (family == Family::Gemma3).then(|| keys.windows()).transpose()?,
        context: keys.size("context_length")?,
        tied_embeddings: !file.has("output.weight"),
        bos: token(file, "bos")?,
        eos: end_tokens(file)?,
        experts,
        routing,
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

    fn has(&self, key: &str) -> bool {
        self.get(key).is_some()
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

    fn size_or(&self, key: &str, default: usize) -> Result<usize, Error> {
        if self.has(key) { self.size(key) } else { Ok(default) }
    }

    fn number(&self, key: &str) -> Result<f64, Error> {
        let value = self.get(key).ok_or_else(|| self.missing(key))?;
        value.number().ok_or_else(|| self.wrong(key, "must be a number"))
    }

    fn number_or(&self, key: &str, default: f64) -> Result<f64, Error> {
        self.get(key).map_or(Ok(default), |_| self.number(key))
    }

    /// Some architectures stand for several families.
    fn family(&self) -> Result<Family, Error> {
        let named = |family: &&Family| family.gguf() == self.arch;
        let Some(&family) = Family::ALL.iter().find(named) else {
            let mut names = Family::ALL.map(Family::gguf).to_vec();
            names.sort_unstable();
            names.dedup();
            let expected = format!("supported are {}", names.join(", "));
            let value = format!("{:?}", self.arch);
            return Err(wrong(&self.file.path, "general.architecture", value, &expected));
        };
        Ok(match family {
            Family::Llama if self.size_or("expert_count", 0)? > 0 => Family::Mixtral,
            Family::GraniteMoe if self.file.get(EXPERT_NAMES).is_some() => Family::GraniteMoeShared,
            Family::DeepseekV2 if self.size_or("expert_gating_func", 1)? == 2 => Family::DeepseekV3,
            family => family,
        })
    }

    /// What the decoder would compute wrongly is refused rather than ignored.
    fn refuse_unsupported(&self, family: Family, head_dim: usize) -> Result<(), Error> {
        let latent = matches!(family, Family::DeepseekV2 | Family::DeepseekV3);
        let key = "attention.value_length";
        if !latent && self.has(key) && self.size(key)? != head_dim {
            let expected = format!("only the head dimension, {head_dim}, is supported");
            return Err(self.wrong(key, &expected));
        }
        let key = "rope.dimension_count";
        let part = latent || family == Family::Glm4Moe;
        if !part && self.has(key) && self.size(key)? != head_dim {
            let expected = format!("only the head dimension, {head_dim}, is supported");
            return Err(self.wrong(key, &expected));
        }
        if family != Family::Gemma3 && self.number_or("attention.sliding_window", 0.0)? != 0.0 {
            return Err(self.wrong("attention.sliding_window", "is not supported"));
        }
        for key in ["attn_logit_softcapping", "final_logit_softcapping", "attention.clamp_kqv"] {
            if self.number_or(key, 0.0)? != 0.0 {
                return Err(self.wrong(key, "is not supported"));
            }
        }
        for key in ["embedding_scale", "residual_scale", "logit_scale", "attention.scale"] {
            let neutral = if key == "attention.scale" { (head_dim as f64).powf(-0.5) } else { 1.0 };
            let neutral_too = (self.number_or(key, neutral)? - neutral).abs() <= 1e-6 * neutral;
            if family != Family::GraniteMoe && !neutral_too {
                return Err(self.wrong(key, &format!("only {neutral} is supported")));
            }
        }
        if family == Family::GraniteMoe && self.has("expert_shared_feed_forward_length") {
            let expected = "shared experts are read in models with named department experts only";
            return Err(self.wrong("expert_shared_feed_forward_length", expected));
        }
        let known = |name: &str| {
            let attention = [".attn_q.bias", ".attn_k.bias", ".attn_v.bias"];
            let biased = matches!(family, Family::Qwen2 | Family::Glm4Moe);
            (biased && attention.iter().any(|part| name.ends_with(part)))
                || name.ends_with(".exp_probs_b.bias")
        };
        if let Some(name) = self.file.names().find(|n| n.ends_with(".bias") && !known(n)) {
            let (path, name) = (self.file.path.clone(), name.into());
            let problem = "biases are not supported here".into();
            return Err(Error::Tensor { path, name, problem });
        }
        Ok(())
    }

    fn latent(&self, family: Family) -> Result<Option<Latent>, Error> {
        if !matches!(family, Family::DeepseekV2 | Family::DeepseekV3) {
            return Ok(None);
        }
        let value = "attention.value_length_mla";
        let value = if self.has(value) { value } else { "attention.value_length" };
        Ok(Some(Latent {
            query_rank: self.size_or("attention.q_lora_rank", 0)?,
            rank: self.size("attention.kv_lora_rank")?,
            value_dim: self.size(value)?,
            interleaved: true,
        }))
    }

    fn rope(&self, head_dim: usize, latent: bool) -> Result<Rope, Error> {
        let theta = self.number_or("rope.freq_base", 10_000.0)? as f32;
        let dim = self.size_or("rope.dimension_count", head_dim)?;
        let linear = self.number_or("rope.scale_linear", 1.0)? as f32;
        let factor = self.number_or("rope.scaling.factor", f64::from(linear))? as f32;
        // 0 stands for "none" in files of some converters.
        let plain = factor == 0.0 || factor == 1.0;
        let scaling = match self.get("rope.scaling.type").map(Value::text) {
            _ if self.file.has(ROPE_FACTORS) => Some(Scaling::Factors(self.rope_factors()?)),
            Some(Some("yarn")) => Some(Scaling::Yarn(self.yarn(factor, latent)?)),
            Some(Some("none")) => None,
            None | Some(Some("linear")) if plain => None,
            None | Some(Some("linear")) => Some(Scaling::Linear { factor }),
            Some(_) => {
                let expected = "supported are \"none\", \"linear\" and \"yarn\"";
                return Err(self.wrong("rope.scaling.type", expected));
            }
        };
        Ok(Rope { theta, dim, scaling })
    }

    fn rope_factors(&self) -> Result<Vec<f32>, Error> {
        let tensor = self.file.tensor(ROPE_FACTORS)?;
        let mut values = vec![0.0; tensor.shape.iter().product()];
        let read = kernel::quant::dequantise(tensor.format, self.file.bytes(tensor), &mut values);
        let (path, name) = (self.file.path.clone(), ROPE_FACTORS.into());
        read.map_err(|error| Error::Tensor { path, name, problem: error.to_string() })?;
        Ok(values)
    }

    /// **Source**: llama.cpp, `ggml_rope_ext` and its `deepseek2`: what is rotated there keeps its
    /// size, as if both of DeepSeek's scales were equal.
    fn yarn(&self, factor: f32, latent: bool) -> Result<Yarn, Error> {
        let number = |key: &str, default| {
            self.number_or(&format!("rope.scaling.{key}"), default).map(|number| number as f32)
        };
        let magnitude = number("attn_factor", 1.0)?;
        let paper = if factor <= 1.0 { 1.0 } else { 0.1 * factor.ln() + 1.0 };
        let mscale = if latent { 10.0 * number("yarn_log_multiplier", 0.0)? } else { 0.0 };
        Ok(Yarn {
            factor,
            original: match self.has("rope.scaling.original_context_length") {
                true => self.size("rope.scaling.original_context_length")?,
                false => self.size("context_length")?,
            },
            beta_fast: number("yarn_beta_fast", 32.0)?,
            beta_slow: number("yarn_beta_slow", 1.0)?,
            magnitude: (magnitude != 1.0).then_some(magnitude * paper),
            mscale,
            mscale_all: mscale,
            truncate: true,
        })
    }

    fn scales(
        &self,
        family: Family,
        hidden: usize,
        heads: usize,
        head_dim: usize,
        layers: usize,
    ) -> Result<Scales, Error> {
        let number = |key: &str| self.number_or(key, 1.0).map(|number| number as f32);
        // Of Gemma 3's sizes, only the one of 62 layers has a scale of its own, which files do not
        // say. Source: llama.cpp, `gemma3`.
        let large = family == Family::Gemma3 && layers == 62 && heads > 0;
        Ok(match family {
            Family::Gemma3 => Scales {
                embedding: (hidden as f32).sqrt(),
                attention: large.then(|| 1.0 / ((hidden / heads) as f32).sqrt()),
                ..Scales::default()
            },
            Family::GraniteMoe => {
                let usual = (head_dim as f32).powf(-0.5);
                let attention = self.number_or("attention.scale", f64::from(usual))? as f32;
                let own = (attention - usual).abs() > 1e-6 * usual;
                Scales {
                    embedding: number("embedding_scale")?,
                    residual: number("residual_scale")?,
                    logits: number("logit_scale")?,
                    attention: own.then_some(attention),
                }
            }
            _ => Scales::default(),
        })
    }

    /// Files do not say which layers see all, nor the base of the others' positions.
    ///
    /// **Source**: Gemma Team 2025, arXiv 2503.19786, section 2: five local layers to a global one,
    /// base 10k in local layers.
    fn windows(&self) -> Result<Windows, Error> {
        Ok(Windows {
            tokens: self.size("attention.sliding_window")?,
            full_every: self.size_or("attention.sliding_window_pattern", 6)?,
            rope_theta: self.number_or("rope.freq_base_swa", 10_000.0)? as f32,
        })
    }
}
