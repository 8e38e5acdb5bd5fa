//! From stored tensors to a decoder.

use kernel::{Arena, Matrix, Pool, Precision};

use super::attention::Attention;
use super::embedding::Embedding;
use super::feed_forward::FeedForward;
use super::layer::Layer;
use super::linear::{Linear, Purpose};
use super::mtp::Mtp;
use super::{Decoder, ExpertLayer, ExpertWeights, Weights, rotaries};
use crate::{Config, Error, Family, Source};

impl Decoder {
    /// Reads all weights from `source`, department experts included; the block that predicts the token
    /// after the next, to generate text.
    ///
    /// # Errors
    /// What [`Source`] says of a missing or misshapen tensor.
    pub fn load(source: &Source, precision: Precision, purpose: Purpose) -> Result<Self, Error> {
        Decoder::load_within(source, precision, purpose, u64::MAX)
    }

    /// As [`Decoder::load`]. Where a GGUF file is larger than `memory` bytes, experts of its own lie in
    /// another file beside it to generate text: see [`Arena::in_file`].
    ///
    /// # Errors
    /// As [`Decoder::load`]; [`Error::Io`] if there is no room for that file.
    pub fn load_within(
        source: &Source,
        precision: Precision,
        purpose: Purpose,
        memory: u64,
    ) -> Result<Self, Error> {
        let mut config = source.config()?;
        config.mtp &= purpose == Purpose::Generation;
        refuse_untrainable(source, &config, purpose)?;
        let pool = Pool::machine();
        // What is read as it is stored.
        let generated = purpose == Purpose::Generation && config.latent.is_none();
        if purpose == Purpose::WholeTraining || (config.routing.is_some() && !generated) {
            let weights = Weights::read(source, &config)?;
            return Ok(Decoder::of_weights(&pool, &config, precision, purpose, &weights));
        }
        let expert_arena = match config.routing {
            Some(_) => source.arena_beside(memory)?,
            None => None,
        };
        let (config, pool, arena) = (&config, &pool, Arena::new());
        let mut reader = Reader { source, config, pool, precision, purpose, arena, expert_arena };
        let embedding = source.matrix("model.embed_tokens.weight", config.vocab, config.hidden)?;
        let head = if config.tied_embeddings {
            reader.stack(&[&embedding])
        } else {
            reader.linear(&["lm_head.weight"], config.vocab, config.hidden)?
        };
        let embedding = match head {
            Linear::Tiled(_) if config.tied_embeddings => Embedding::Head,
            _ => Embedding::Own(embedding),
        };
        let layers = (0..config.layers).map(|l| reader.layer(l)).collect::<Result<_, _>>()?;
        let mtp = config.mtp.then(|| reader.mtp()).transpose()?;
        let (rotary, window_rotary) = rotaries(config);
        let mut decoder = Decoder {
            precision,
            purpose,
            rotary,
            window_rotary,
            embedding,
            layers,
            mtp,
            norm: Vec::new(),
            head,
            experts: 0,
            config: config.clone(),
        };
        decoder.set_norm(&source.vector("model.norm.weight", config.hidden)?);
        let experts = read_experts(source)?;
        let experts: Vec<_> = experts.iter().map(|(name, e)| (name.as_str(), e)).collect();
        decoder.attach(pool, &experts);
        Ok(decoder)
    }
}

impl Source {
    /// The shape of the model, if all of it can be trained; a block that predicts the token after the
    /// next is left out, since it belongs to the model as it was.
    ///
    /// # Errors
    /// [`Error::NotAModel`] if not, with the reason.
    pub fn trainable_config(&self) -> Result<Config, Error> {
        let config = Config { mtp: false, ..self.config()? };
        refuse_untrainable(self, &config, Purpose::WholeTraining)?;
        Ok(config)
    }
}

/// What has no backward pass.
fn refuse_untrainable(source: &Source, config: &Config, purpose: Purpose) -> Result<(), Error> {
    let departments = config.family == Family::GraniteMoeShared;
    let problem = match purpose {
        Purpose::Inference | Purpose::Generation => return Ok(()),
        Purpose::WholeTraining if departments => {
            "a joined model is trained expert by expert, not as a whole"
        }
        Purpose::WholeTraining if !config.intermediate.is_multiple_of(2) => {
            "only feed-forwards of an even width are trained as a whole"
        }
        Purpose::Training | Purpose::WholeTraining => return Ok(()),
    };
    Err(source.refuse(problem))
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

pub(super) struct Reader<'a> {
    pub(super) source: &'a Source,
    pub(super) config: &'a Config,
    pub(super) pool: &'a Pool,
    pub(super) precision: Precision,
    pub(super) purpose: Purpose,
    pub(super) arena: Arena,
    /// Of routed experts, where they have one of their own.
    pub(super) expert_arena: Option<Arena>,
}

impl Reader<'_> {
    fn mtp(&mut self) -> Result<Mtp, Error> {
        let Config { hidden, layers, .. } = *self.config;
        let name = |part: &str| format!("model.layers.{layers}.{part}.weight");
        let project = self.linear(&[&name("eh_proj")], hidden, 2 * hidden)?;
        let mut mtp = Mtp::new(self.config, project, self.layer(layers)?);
        for (norm, part) in mtp.norms.iter_mut().zip(["enorm", "hnorm"]) {
            norm.weight = self.source.vector(&name(part), hidden)?;
        }
        mtp.norm = self.source.vector(&name("shared_head.norm"), hidden)?;
        Ok(mtp)
    }

    fn layer(&mut self, index: usize) -> Result<Layer, Error> {
        let config = self.config;
        let hidden = config.hidden;
        let (q, kv) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
        let name = |part: &str| format!("model.layers.{index}.{part}.weight");
        let (qn, kn, vn) =
            (name("self_attn.q_proj"), name("self_attn.k_proj"), name("self_attn.v_proj"));
        let source = self.source;
        let qkv = [
            source.matrix(&qn, q, hidden)?,
            source.matrix(&kn, kv, hidden)?,
            source.matrix(&vn, kv, hidden)?,
        ];
        let feed_forward = self.feed_forward(index)?;
        let norm = |part: &str, len: usize| source.vector(&name(part), len);
        let outer = config.family.outer_norms();
        let own = |part: &str| outer.then(|| norm(part, hidden)).transpose();
        let qkv = self.stack(&qkv.each_ref());
        let out = self.linear(&[&name("self_attn.o_proj")], hidden, q)?;
        let mut attention = Attention::new(config, qkv, out, None);
        attention.window = config.window(index);
        for (part, target) in ["q_norm", "k_norm"].iter().zip(&mut attention.norms) {
            target.weight = norm(&format!("self_attn.{part}"), target.weight.len())?;
        }
        if config.attention_bias {
            for (part, len) in [("q_proj", q), ("k_proj", kv), ("v_proj", kv)] {
                let name = format!("model.layers.{index}.self_attn.{part}.bias");
                attention.bias.extend(source.vector(&name, len)?);
            }
        }
        Ok(Layer {
            attention_norm: norm("input_layernorm", hidden)?,
            attention,
            attention_out_norm: own("post_attention_layernorm")?,
            down_norm: own("post_feedforward_layernorm")?,
            feed_forward_norm: norm(
                if outer { "pre_feedforward_layernorm" } else { "post_attention_layernorm" },
                hidden,
            )?,
            feed_forward,
            mixture: None,
        })
    }

    fn feed_forward(&mut self, index: usize) -> Result<FeedForward, Error> {
        let config = self.config;
        if config.routed(index).is_some() {
            return self.experts(index);
        }
        let (hidden, inner) = (config.hidden, config.common_width(index));
        let name = |part: &str| format!("model.layers.{index}.{part}.weight");
        let (gate_up, down) = match config.family {
            Family::GraniteMoeShared => (
                self.linear(&[&name("shared_mlp.input_linear")], 2 * inner, hidden)?,
                self.linear(&[&name("shared_mlp.output_linear")], hidden, inner)?,
            ),
            _ => (
                self.linear(&[&name("mlp.gate_proj"), &name("mlp.up_proj")], inner, hidden)?,
                self.linear(&[&name("mlp.down_proj")], hidden, inner)?,
            ),
        };
        Ok(FeedForward::Plain { gate_up, down, gate: config.family.gate() })
    }

    /// Tensors of the same shape, stacked.
    fn linear(&mut self, names: &[&str], rows: usize, cols: usize) -> Result<Linear, Error> {
        let matrices: Vec<Matrix> = names
            .iter()
            .map(|name| self.source.matrix(name, rows, cols))
            .collect::<Result<_, _>>()?;
        Ok(self.stack(&matrices.iter().collect::<Vec<_>>()))
    }

    fn stack(&mut self, matrices: &[&Matrix]) -> Linear {
        Linear::stacked(self.pool, self.precision, self.purpose, &mut self.arena, matrices)
    }
}
