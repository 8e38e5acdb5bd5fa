//! The metadata of an exported model.

use kernel::quant::Format;

use crate::config::EXPERT_NAMES;
use crate::source::gguf::{ALIGNMENT, DEFAULT_ALIGNMENT};
use crate::{Config, Error, Export, Family, Routing, Scaling, tokenizer};

impl Export<'_> {
    pub(super) fn metadata(&self) -> Result<Metadata, Error> {
        let mut data = Metadata::default();
        let config = self.config;
        let arch = config.family.gguf();
        data.text("general.architecture", arch);
        data.text("general.type", "model");
        data.text("general.name", self.name);
        data.u32(ALIGNMENT, DEFAULT_ALIGNMENT as u32);
        data.u32("general.file_type", file_type(self.format));
        data.u32("general.quantization_version", 2);
        let key = |key: &str| format!("{arch}.{key}");
        data.u32(&key("vocab_size"), config.vocab as u32);
        data.u32(&key("context_length"), config.context as u32);
        data.u32(&key("embedding_length"), config.hidden as u32);
        data.u32(&key("block_count"), (config.layers + usize::from(config.mtp)) as u32);
        if config.mtp {
            data.u32(&key("nextn_predict_layers"), 1);
        }
        data.u32(&key("attention.head_count"), config.heads as u32);
        data.u32(&key("attention.head_count_kv"), config.kv_heads as u32);
        data.u32(&key("attention.key_length"), config.head_dim as u32);
        let values = config.latent.map_or(config.head_dim, |latent| latent.value_dim);
        data.u32(&key("attention.value_length"), values as u32);
        data.u32(&key("rope.dimension_count"), config.rope.dim as u32);
        data.f32(&key("rope.freq_base"), config.rope.theta);
        data.f32(&key("attention.layer_norm_rms_epsilon"), config.norm_eps);
        let width = match (&config.experts, &config.routing) {
            (Some(experts), _) => experts.width,
            (None, Some(routing)) if routing.dense_layers > 0 => routing.dense_width,
            (None, Some(routing)) => routing.width,
            (None, None) => config.intermediate,
        };
        data.u32(&key("feed_forward_length"), width as u32);
        if let Some(experts) = &config.experts {
            let shared = config.intermediate as u32;
            data.u32(&key("expert_shared_feed_forward_length"), shared);
            data.u32(&key("expert_count"), experts.names.len() as u32 + 1);
            data.u32(&key("expert_used_count"), 2);
            data.texts(EXPERT_NAMES, &experts.names);
        }
        if let Some(routing) = &config.routing {
            routing_metadata(config, routing, &mut data);
        }
        family_metadata(config, &mut data);
        scaling_metadata(config, &mut data);
        self.tokenizer_metadata(&mut data)?;
        Ok(data)
    }

    fn tokenizer_metadata(&self, data: &mut Metadata) -> Result<(), Error> {
        let vocabulary = tokenizer::vocabulary(self.tokenizer, self.config.vocab)?;
        let (model, pre) = match &vocabulary.kind {
            tokenizer::Kind::Bytes { pre, .. } => ("gpt2", *pre),
            tokenizer::Kind::Pieces { .. } => ("llama", "default"),
        };
        data.text("tokenizer.ggml.model", model);
        data.text("tokenizer.ggml.pre", pre);
        data.texts("tokenizer.ggml.tokens", &vocabulary.tokens);
        data.i32s("tokenizer.ggml.token_type", &vocabulary.types);
        let prefix = match &vocabulary.kind {
            tokenizer::Kind::Bytes { merges, .. } => {
                data.texts("tokenizer.ggml.merges", merges);
                false
            }
            tokenizer::Kind::Pieces { scores, prefix } => {
                data.f32s("tokenizer.ggml.scores", scores);
                *prefix
            }
        };
        if let Some(id) = self.config.bos {
            data.u32("tokenizer.ggml.bos_token_id", id);
        }
        // The format has three names for what ends an answer.
        for (which, id) in ["eos", "eot", "eom"].iter().zip(&self.config.eos) {
            data.u32(&format!("tokenizer.ggml.{which}_token_id"), *id);
        }
        // The template writes what stands at the beginning.
        data.bool("tokenizer.ggml.add_bos_token", false);
        data.bool("tokenizer.ggml.add_space_prefix", prefix);
        data.text("tokenizer.chat_template", self.template.source());
        Ok(())
    }
}

fn routing_metadata(config: &Config, routing: &Routing, data: &mut Metadata) {
    let key = |key: &str| format!("{}.{key}", config.family.gguf());
    data.u32(&key("expert_count"), routing.experts as u32);
    data.u32(&key("expert_used_count"), routing.top_k as u32);
    if matches!(config.family, Family::Mixtral | Family::Olmoe | Family::GraniteMoe) {
        return;
    }
    data.u32(&key("expert_feed_forward_length"), routing.width as u32);
    if config.family == Family::Qwen3Moe {
        return;
    }
    data.u32(&key("expert_shared_count"), (config.intermediate / routing.width) as u32);
    data.u32(&key("leading_dense_block_count"), routing.dense_layers as u32);
    data.f32(&key("expert_weights_scale"), routing.scale);
    data.bool(&key("expert_weights_norm"), routing.normalise);
    data.u32(&key("expert_gating_func"), if routing.sigmoid { 2 } else { 1 });
    if let Some(groups) = routing.groups {
        data.u32(&key("expert_group_count"), groups.count as u32);
        data.u32(&key("expert_group_used_count"), groups.top_k as u32);
    }
}

fn family_metadata(config: &Config, data: &mut Metadata) {
    let key = |key: &str| format!("{}.{key}", config.family.gguf());
    if matches!(config.family, Family::GraniteMoe | Family::GraniteMoeShared) {
        let usual = (config.head_dim as f64).powf(-0.5) as f32;
        data.f32(&key("attention.scale"), config.scales.attention.unwrap_or(usual));
        data.f32(&key("embedding_scale"), config.scales.embedding);
        data.f32(&key("residual_scale"), config.scales.residual);
        data.f32(&key("logit_scale"), config.scales.logits);
    }
    if let Some(windows) = &config.windows {
        data.u32(&key("attention.sliding_window"), windows.tokens as u32);
        data.u32(&key("attention.sliding_window_pattern"), windows.full_every as u32);
        data.f32(&key("rope.freq_base_swa"), windows.rope_theta);
    }
    if let Some(latent) = &config.latent {
        if latent.query_rank > 0 {
            data.u32(&key("attention.q_lora_rank"), latent.query_rank as u32);
        }
        data.u32(&key("attention.kv_lora_rank"), latent.rank as u32);
    }
}

/// Factors of single frequencies are a tensor instead.
fn scaling_metadata(config: &Config, data: &mut Metadata) {
    let key = |key: &str| format!("{}.rope.scaling.{key}", config.family.gguf());
    match &config.rope.scaling {
        Some(Scaling::Linear { factor }) => {
            data.text(&key("type"), "linear");
            data.f32(&key("factor"), *factor);
        }
        Some(Scaling::Yarn(yarn)) => {
            data.text(&key("type"), "yarn");
            data.f32(&key("factor"), yarn.factor);
            data.u32(&key("original_context_length"), yarn.original as u32);
            data.f32(&key("yarn_beta_fast"), yarn.beta_fast);
            data.f32(&key("yarn_beta_slow"), yarn.beta_slow);
            if let Some(magnitude) = yarn.magnitude {
                let usual = if yarn.factor <= 1.0 { 1.0 } else { 0.1 * yarn.factor.ln() + 1.0 };
                data.f32(&key("attn_factor"), magnitude / usual);
            }
            if yarn.mscale_all != 0.0 {
                data.f32(&key("yarn_log_multiplier"), 0.1 * yarn.mscale_all);
            }
        }
        Some(Scaling::Llama3 { .. } | Scaling::Factors(_) | Scaling::Dynamic { .. }) | None => {}
    }
}

/// What the format, as other programs read it, has no place for.
pub(super) fn problem(config: &Config) -> Option<&'static str> {
    let normalised = config.routing.map(|routing| routing.normalise);
    match config.family {
        Family::Gemma3 if config.scales.attention.is_some() => {
            Some("a scale of attention scores that is not the heads'")
        }
        Family::Qwen3Moe if normalised == Some(false) => {
            Some("experts of qwen3_moe whose weights are not normalised")
        }
        Family::Olmoe if normalised == Some(true) => {
            Some("experts of olmoe whose weights are normalised")
        }
        _ => match (&config.rope.scaling, &config.latent) {
            (Some(Scaling::Yarn(yarn)), _) if !yarn.truncate => {
                Some("borders of scaled positions between dimensions")
            }
            (Some(Scaling::Yarn(yarn)), Some(_)) if yarn.mscale != yarn.mscale_all => {
                Some("two different scales of positions' logarithm")
            }
            (_, Some(latent)) if !latent.interleaved => {
                Some("latent attention that rotates the halves of heads")
            }
            _ => None,
        },
    }
}

/// llama.cpp's number for a file whose matrices are mostly in this format.
fn file_type(format: Format) -> u32 {
    match format {
        Format::F32 => 0,
        Format::Q4_0 => 2,
        Format::Q8_0 => 7,
        Format::Bf16 => 32,
        // The others are not written.
        _ => 1,
    }
}

#[derive(Default)]
pub(in crate::write) struct Metadata {
    count: u64,
    bytes: Bytes,
}

impl Metadata {
    /// Their number, then the keys with their values.
    pub(in crate::write) fn append_to(&self, header: &mut Bytes) {
        header.u64(self.count);
        header.0.extend_from_slice(&self.bytes.0);
    }

    /// A key with its value as another file has them.
    pub(in crate::write) fn copy(&mut self, entry: &[u8]) {
        self.count += 1;
        self.bytes.0.extend_from_slice(entry);
    }

    fn key(&mut self, key: &str, kind: u32) -> &mut Bytes {
        self.count += 1;
        self.bytes.text(key);
        self.bytes.u32(kind);
        &mut self.bytes
    }

    pub(in crate::write) fn u32(&mut self, key: &str, value: u32) {
        self.key(key, 4).u32(value);
    }

    fn f32(&mut self, key: &str, value: f32) {
        self.key(key, 6).0.extend_from_slice(&value.to_le_bytes());
    }

    fn bool(&mut self, key: &str, value: bool) {
        self.key(key, 7).0.push(u8::from(value));
    }

    fn text(&mut self, key: &str, value: &str) {
        self.key(key, 8).text(value);
    }

    fn texts(&mut self, key: &str, values: &[String]) {
        let bytes = self.key(key, 9);
        bytes.u32(8);
        bytes.u64(values.len() as u64);
        values.iter().for_each(|value| bytes.text(value));
    }

    fn f32s(&mut self, key: &str, values: &[f32]) {
        let bytes = self.key(key, 9);
        bytes.u32(6);
        bytes.u64(values.len() as u64);
        values.iter().for_each(|value| bytes.0.extend_from_slice(&value.to_le_bytes()));
    }

    fn i32s(&mut self, key: &str, values: &[i32]) {
        let bytes = self.key(key, 9);
        bytes.u32(5);
        bytes.u64(values.len() as u64);
        values.iter().for_each(|value| bytes.0.extend_from_slice(&value.to_le_bytes()));
    }
}

#[derive(Default)]
pub(in crate::write) struct Bytes(pub(in crate::write) Vec<u8>);

impl Bytes {
    pub(in crate::write) fn u32(&mut self, value: u32) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    pub(in crate::write) fn u64(&mut self, value: u64) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    pub(in crate::write) fn text(&mut self, value: &str) {
        self.u64(value.len() as u64);
        self.0.extend_from_slice(value.as_bytes());
    }

    pub(in crate::write) fn pad(&mut self) {
        self.0.resize(self.0.len().next_multiple_of(DEFAULT_ALIGNMENT), 0);
    }
}
