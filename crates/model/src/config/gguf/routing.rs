//! Experts in the metadata of a GGUF file.

use super::{EXPERT_NAMES, Keys};
use crate::Error;
use crate::config::{ExpertsConfig, Family, Groups, Routing, wrong};

impl Keys<'_> {
    /// The experts of the model's own, in families that have them.
    pub(super) fn routing(&self, family: Family) -> Result<Option<Routing>, Error> {
        if matches!(
            family,
            Family::Llama
                | Family::Qwen2
                | Family::Qwen3
                | Family::Gemma3
                | Family::GraniteMoeShared
        ) {
            if family != Family::GraniteMoeShared && self.size_or("expert_count", 0)? != 0 {
                return Err(self.wrong("expert_count", "this family has no experts here"));
            }
            return Ok(None);
        }
        let width = match self.has("expert_feed_forward_length") {
            true => self.size("expert_feed_forward_length")?,
            false => self.size("feed_forward_length")?,
        };
        let dense_layers = self.size_or("leading_dense_block_count", 0)?;
        let sigmoid = match self.size_or("expert_gating_func", 0)? {
            0 => family == Family::Glm4Moe,
            1 => false,
            2 => true,
            _ => return Err(self.wrong("expert_gating_func", "only softmax and sigmoid are known")),
        };
        let groups = self.size_or("expert_group_count", 1)?;
        Ok(Some(Routing {
            experts: self.size("expert_count")?,
            top_k: self.size("expert_used_count")?,
            width,
            sigmoid,
            normalise: self.normalises(family)?,
            // 0 stands for "not scaled".
            scale: match self.number_or("expert_weights_scale", 1.0)? as f32 {
                0.0 => 1.0,
                scale => scale,
            },
            groups: match groups {
                0 | 1 => None,
                count => Some(Groups { count, top_k: self.size("expert_group_used_count")? }),
            },
            dense_layers,
            dense_width: if dense_layers > 0 { self.size("feed_forward_length")? } else { 0 },
        }))
    }

    /// What files of most families do not say is what llama.cpp computes.
    fn normalises(&self, family: Family) -> Result<bool, Error> {
        let key = "expert_weights_norm";
        match self.get(key) {
            Some(value) => value.bool().ok_or_else(|| self.wrong(key, "must be true or false")),
            None => Ok(matches!(family, Family::Mixtral | Family::Qwen3Moe | Family::GraniteMoe)),
        }
    }

    /// Department experts.
    pub(super) fn experts(&self, width: usize) -> Result<ExpertsConfig, Error> {
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
