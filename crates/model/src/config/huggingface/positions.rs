//! Rotary positions and windows in a `config.json`.

use serde_json::Value;

use super::Keys;
use super::write::layer_types;
use crate::Error;
use crate::config::rope::{Rope, Scaling, Yarn};
use crate::config::{Family, Windows, wrong};

impl Keys<'_> {
    /// The object that holds the positions' parameters, for Gemma those of one kind of layers.
    fn rope_object(&self, layers: Option<&str>) -> (&'static str, Option<Keys<'_>>) {
        let newer = self.get("rope_parameters").map(|v| layers.map_or(Some(v), |l| v.get(l)));
        let (key, value) = match newer {
            Some(value) => ("rope_parameters", value),
            None if layers == Some("sliding_attention") => ("rope_parameters", None),
            None => ("rope_scaling", self.get("rope_scaling")),
        };
        let object = value.and_then(Value::as_object);
        (key, object.map(|object| Keys { path: self.path, object }))
    }

    /// Newer files keep all in `rope_parameters`, older ones in `rope_scaling` and beside it.
    pub(super) fn rope(&self, family: Family, head_dim: usize) -> Result<Rope, Error> {
        let gemma = family == Family::Gemma3;
        let (key, inner) = self.rope_object(gemma.then_some("full_attention"));
        if inner.is_none() && self.get(key).is_some() {
            return Err(self.wrong(key, "must be an object"));
        }
        let inner = inner.as_ref();
        let theta = match inner.filter(|inner| inner.get("rope_theta").is_some()) {
            Some(inner) => inner.number("rope_theta")?,
            None => self.number_or("rope_theta", if gemma { 1_000_000.0 } else { 10_000.0 })?,
        };
        let share = match inner.filter(|inner| inner.get("partial_rotary_factor").is_some()) {
            Some(inner) => inner.number("partial_rotary_factor")?,
            // The family's default is one half.
            None if family == Family::Glm4Moe => self.number_or("partial_rotary_factor", 0.5)?,
            None => self.number_or("partial_rotary_factor", 1.0)?,
        };
        if share != 1.0 && family != Family::Glm4Moe {
            let expected = "only 1 is supported in this family";
            return Err(wrong(self.path, "partial_rotary_factor", share, expected));
        }
        let dim = match self.get("qk_rope_head_dim") {
            Some(_) => self.size("qk_rope_head_dim")?,
            None => (head_dim as f64 * share) as usize,
        };
        let scaling = inner.map(|inner| inner.scaling(self)).transpose()?.flatten();
        Ok(Rope { theta: theta as f32, dim, scaling })
    }

    /// Of the object that holds the positions' parameters; `model` is the whole file.
    fn scaling(&self, model: &Keys) -> Result<Option<Scaling>, Error> {
        let key = if self.get("rope_type").is_some() { "rope_type" } else { "type" };
        if self.get(key).is_none() {
            return Ok(None);
        }
        let kind = self.text(key)?;
        if kind == "default" {
            return Ok(None);
        }
        let original = || match self.get("original_max_position_embeddings") {
            Some(_) => self.size("original_max_position_embeddings"),
            None => model.size("max_position_embeddings"),
        };
        let factor = self.number("factor")? as f32;
        Ok(Some(match kind.as_str() {
            "linear" => Scaling::Linear { factor },
            "dynamic" => Scaling::Dynamic { factor },
            "llama3" => Scaling::Llama3 {
                factor,
                low_frequency: self.number("low_freq_factor")? as f32,
                high_frequency: self.number("high_freq_factor")? as f32,
                original: original()?,
            },
            "yarn" => Scaling::Yarn(Yarn {
                factor,
                original: original()?,
                beta_fast: self.number_or("beta_fast", 32.0)? as f32,
                beta_slow: self.number_or("beta_slow", 1.0)? as f32,
                magnitude: match self.get("attention_factor") {
                    Some(_) => Some(self.number("attention_factor")? as f32),
                    None => None,
                },
                mscale: self.number_or("mscale", 0.0)? as f32,
                mscale_all: self.number_or("mscale_all_dim", 0.0)? as f32,
                truncate: self.flag_or("truncate", true)?,
            }),
            _ => {
                let expected = "supported are default, linear, dynamic, llama3 and yarn";
                return Err(self.wrong(key, expected));
            }
        }))
    }

    pub(super) fn windows(&self, family: Family) -> Result<Option<Windows>, Error> {
        if family != Family::Gemma3 {
            return Ok(None);
        }
        let (_, inner) = self.rope_object(Some("sliding_attention"));
        let rope_theta = match &inner {
            Some(inner) => inner.number_or("rope_theta", 10_000.0)?,
            None => self.number_or("rope_local_base_freq", 10_000.0)?,
        };
        if inner.is_some_and(|inner| inner.get("rope_type").is_some_and(|v| v != "default")) {
            let expected = "layers with a window have unscaled positions";
            return Err(self.wrong("rope_parameters", expected));
        }
        let full_every = match self.get("layer_types") {
            None => match self.get("sliding_window_pattern") {
                Some(_) => self.size("sliding_window_pattern")?,
                None => 6,
            },
            Some(types) => {
                let types = types.as_array().map_or(&[][..], Vec::as_slice);
                let first = types.iter().position(|kind| kind == "full_attention");
                first.unwrap_or(types.len()) + 1
            }
        };
        let tokens = self.size("sliding_window")?;
        let windows = Windows { tokens, full_every, rope_theta: rope_theta as f32 };
        if let Some(types) = self.get("layer_types")
            && *types != layer_types(&windows, self.size("num_hidden_layers")?)
        {
            let expected =
                "every n-th layer must be \"full_attention\", all others \"sliding_attention\"";
            return Err(self.wrong("layer_types", expected));
        }
        Ok(Some(windows))
    }
}
