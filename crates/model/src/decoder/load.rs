//! From stored tensors to a decoder.

use kernel::ops::Rotary;
use kernel::{Pool, Precision};

use super::layer::{Layer, Linear, Purpose};
use super::{Decoder, ExpertLayer, ExpertWeights};
use crate::{Config, Error, Family, Source};

impl Decoder {
    /// Reads all weights from `source`, department experts included.
    ///
    /// # Errors
    /// What [`Source`] says of a missing or misshapen tensor.
    pub fn load(source: &Source, precision: Precision, purpose: Purpose) -> Result<Self, Error> {
        let config = source.config()?;
        let pool = Pool::machine();
        let reader = Reader { source, config: &config, pool: &pool, precision, purpose };
        let embedding = source.matrix("model.embed_tokens.weight", config.vocab, config.hidden)?;
        let head = if config.tied_embeddings {
            reader.pack(&embedding.to_f32(), config.vocab, config.hidden)
        } else {
            reader.linear(&["lm_head.weight"], config.vocab, config.hidden)?
        };
        let layers = (0..config.layers).map(|l| reader.layer(l)).collect::<Result<_, _>>()?;
        let mut decoder = Decoder {
            precision,
            purpose,
            rotary: Rotary::new(config.head_dim, config.rope_theta, config.context),
            embedding,
            layers,
            norm: source.vector("model.norm.weight", config.hidden)?,
            head,
            experts: 0,
            config: config.clone(),
        };
        let experts = read_experts(source)?;
        let experts: Vec<_> = experts.iter().map(|(name, e)| (name.as_str(), e)).collect();
        decoder.attach(&pool, &experts);
        Ok(decoder)
    }
}

/// The department experts of a joined model, without the null expert; none for other models.
///
/// # Errors
/// As [`Decoder::load`].
pub fn read_experts(source: &Source) -> Result<Vec<(String, ExpertWeights)>, Error> {
    let config = source.config()?;
    let Some(experts) = &config.experts else { return Ok(Vec::new()) };
    let (count, width, hidden) = (experts.names.len(), experts.width, config.hidden);
    let mut weights = vec![ExpertWeights { width, hidden, layers: Vec::new() }; count];
    for layer in 0..config.layers {
        // The null expert stands last in each tensor.
        let tensor = |part: &str, rows, cols| {
            let name = format!("model.layers.{layer}.block_sparse_moe.{part}.weight");
            source.matrix(&name, (count + 1) * rows, cols).map(|matrix| matrix.to_f32())
        };
        let router = tensor("router.layer", 1, hidden)?;
        let gate_up = tensor("input_linear", 2 * width, hidden)?;
        let down = tensor("output_linear", hidden, width)?;
        for (index, expert) in weights.iter_mut().enumerate() {
            let part = |values: &[f32], len: usize| values[index * len..(index + 1) * len].to_vec();
            expert.layers.push(ExpertLayer {
                router: part(&router, hidden),
                gate_up: part(&gate_up, 2 * width * hidden),
                down: part(&down, hidden * width),
            });
        }
    }
    Ok(experts.names.iter().cloned().zip(weights).collect())
}

struct Reader<'a> {
    source: &'a Source,
    config: &'a Config,
    pool: &'a Pool,
    precision: Precision,
    purpose: Purpose,
}

impl Reader<'_> {
    fn layer(&self, index: usize) -> Result<Layer, Error> {
        let config = self.config;
        let (hidden, inner) = (config.hidden, config.intermediate);
        let (q, kv) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
        let name = |part: &str| format!("model.layers.{index}.{part}.weight");
        let (qn, kn, vn) =
            (name("self_attn.q_proj"), name("self_attn.k_proj"), name("self_attn.v_proj"));
        let mut qkv = self.values(&qn, q, hidden)?;
        qkv.extend(self.values(&kn, kv, hidden)?);
        qkv.extend(self.values(&vn, kv, hidden)?);
        let (gate_up, down) = match config.family {
            Family::Llama => (
                self.linear(&[&name("mlp.gate_proj"), &name("mlp.up_proj")], inner, hidden)?,
                self.linear(&[&name("mlp.down_proj")], hidden, inner)?,
            ),
            Family::GraniteMoeShared => (
                self.linear(&[&name("shared_mlp.input_linear")], 2 * inner, hidden)?,
                self.linear(&[&name("shared_mlp.output_linear")], hidden, inner)?,
            ),
        };
        Ok(Layer {
            attention_norm: self.source.vector(&name("input_layernorm"), hidden)?,
            qkv: self.pack(&qkv, q + 2 * kv, hidden),
            attention_out: self.linear(&[&name("self_attn.o_proj")], hidden, q)?,
            feed_forward_norm: self.source.vector(&name("post_attention_layernorm"), hidden)?,
            gate_up,
            down,
            mixture: None,
        })
    }

    fn values(&self, name: &str, rows: usize, cols: usize) -> Result<Vec<f32>, Error> {
        Ok(self.source.matrix(name, rows, cols)?.to_f32())
    }

    /// Tensors of the same shape, stacked.
    fn linear(&self, names: &[&str], rows: usize, cols: usize) -> Result<Linear, Error> {
        let mut values = Vec::with_capacity(names.len() * rows * cols);
        for name in names {
            values.extend(self.values(name, rows, cols)?);
        }
        Ok(self.pack(&values, names.len() * rows, cols))
    }

    fn pack(&self, values: &[f32], rows: usize, cols: usize) -> Linear {
        Linear::new(self.pool, self.precision, self.purpose, values, rows, cols)
    }
}
