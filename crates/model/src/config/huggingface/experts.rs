//! Experts in a `config.json`: the model's own, and departments'.

use serde_json::Value;

use super::Keys;
use crate::Error;
use crate::config::{ExpertsConfig, Family, Groups, Routing};

impl Keys<'_> {
    /// The experts of the model's own, in families that have them.
    pub(super) fn routing(&self, family: Family) -> Result<Option<Routing>, Error> {
        let (experts, width) = match family {
            Family::Llama
            | Family::Qwen2
            | Family::Qwen3
            | Family::Gemma3
            | Family::GraniteMoeShared => return Ok(None),
            Family::Mixtral | Family::GraniteMoe => ("num_local_experts", "intermediate_size"),
            Family::Olmoe => ("num_experts", "intermediate_size"),
            // transformers writes it under either name.
            Family::Qwen3Moe if self.get("num_experts").is_none() => {
                ("num_local_experts", "moe_intermediate_size")
            }
            Family::Qwen3Moe => ("num_experts", "moe_intermediate_size"),
            Family::Glm4Moe | Family::DeepseekV2 | Family::DeepseekV3 => {
                ("n_routed_experts", "moe_intermediate_size")
            }
        };
        self.refuse_unsupported_routing(family)?;
        let grouped = matches!(family, Family::Glm4Moe | Family::DeepseekV2 | Family::DeepseekV3);
        let dense_layers = match self.get("first_k_dense_replace") {
            Some(_) if grouped => self.size("first_k_dense_replace")?,
            // The default of GLM and, here, of files that do not say.
            None if family == Family::Glm4Moe => 1,
            _ => 0,
        };
        Ok(Some(Routing {
            experts: self.size(experts)?,
            top_k: self.size("num_experts_per_tok")?,
            width: self.size(width)?,
            sigmoid: matches!(family, Family::Glm4Moe | Family::DeepseekV3),
            normalise: match family {
                Family::Mixtral | Family::GraniteMoe => true,
                Family::DeepseekV2 => false,
                Family::Glm4Moe | Family::DeepseekV3 => self.flag_or("norm_topk_prob", true)?,
                _ => self.flag("norm_topk_prob")?,
            },
            scale: if grouped { self.number_or("routed_scaling_factor", 1.0)? as f32 } else { 1.0 },
            groups: self.groups(family)?,
            dense_layers,
            dense_width: if dense_layers > 0 { self.size("intermediate_size")? } else { 0 },
        }))
    }

    fn groups(&self, family: Family) -> Result<Option<Groups>, Error> {
        let plain = match family {
            Family::DeepseekV2 => match self.get("topk_method") {
                Some(_) => self.text("topk_method")? == "greedy",
                None => true,
            },
            Family::Glm4Moe | Family::DeepseekV3 => false,
            _ => true,
        };
        if plain || self.get("n_group").is_none() || self.size("n_group")? == 1 {
            return Ok(None);
        }
        Ok(Some(Groups { count: self.size("n_group")?, top_k: self.size("topk_group")? }))
    }

    /// Layers with and without experts in turn, and ways of choosing that no reference agrees on.
    fn refuse_unsupported_routing(&self, family: Family) -> Result<(), Error> {
        if family == Family::Qwen3Moe {
            if self.number_or("decoder_sparse_step", 1.0)? != 1.0 {
                return Err(self.wrong("decoder_sparse_step", "only 1 is supported"));
            }
            if self
                .get("mlp_only_layers")
                .is_some_and(|v| v.as_array().is_none_or(|l| !l.is_empty()))
            {
                let expected = "layers without experts are not supported";
                return Err(self.wrong("mlp_only_layers", expected));
            }
        }
        if family == Family::DeepseekV2 {
            // The first implementation normalises then, transformers does not.
            if self.flag("norm_topk_prob")? {
                return Err(self.wrong("norm_topk_prob", "only false is supported in this family"));
            }
            let methods = ["greedy", "group_limited_greedy"];
            if self.get("topk_method").is_some_and(|v| methods.iter().all(|m| v != m)) {
                return Err(self.wrong("topk_method", &format!("supported are {methods:?}")));
            }
        }
        if self.number_or("moe_layer_freq", 1.0)? != 1.0 {
            return Err(self.wrong("moe_layer_freq", "only 1 is supported"));
        }
        if family == Family::DeepseekV3 && self.get("topk_method").is_some_and(|v| v != "noaux_tc")
        {
            return Err(self.wrong("topk_method", "only \"noaux_tc\" is supported"));
        }
        Ok(())
    }

    pub(super) fn experts(&self) -> Result<ExpertsConfig, Error> {
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
