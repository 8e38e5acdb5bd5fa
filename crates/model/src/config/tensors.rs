//! What a model of some [`Config`] holds, under its Hugging Face names.

use super::{Config, Family, HeadNorms, Latent, Routing};

/// A tensor that a model of some [`Config`] has, under its Hugging Face name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    pub name: String,
    /// `[len]`, `[rows, cols]`, or `[experts, rows, cols]`.
    pub shape: Vec<usize>,
}

impl TensorInfo {
    /// How many values it has.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Rows and columns when all leading dimensions are taken as one.
    pub fn rows_cols(&self) -> (usize, usize) {
        let (cols, leading) = self.shape.split_last().expect("no tensor is a scalar");
        (leading.iter().product(), *cols)
    }
}

impl Config {
    /// Every tensor of such a model, in the order in which they are written.
    ///
    /// The department experts' tensors include the null expert, whose rows are zero and stand last.
    pub fn tensors(&self) -> Vec<TensorInfo> {
        let mut list = Tensors::default();
        list.add("model.embed_tokens.weight", &[self.vocab, self.hidden]);
        for layer in 0..self.layers {
            list.prefix = format!("model.layers.{layer}.");
            self.layer(&mut list, layer);
        }
        if self.mtp {
            list.prefix = format!("model.layers.{}.", self.layers);
            list.add("enorm.weight", &[self.hidden]);
            list.add("hnorm.weight", &[self.hidden]);
            list.add("eh_proj.weight", &[self.hidden, 2 * self.hidden]);
            list.add("shared_head.norm.weight", &[self.hidden]);
            self.layer(&mut list, self.layers);
        }
        list.prefix.clear();
        list.add("model.norm.weight", &[self.hidden]);
        if !self.tied_embeddings {
            list.add("lm_head.weight", &[self.vocab, self.hidden]);
        }
        list.list
    }

    fn layer(&self, list: &mut Tensors, layer: usize) {
        self.attention(list);
        match (self.routed(layer), &self.experts) {
            (Some(routing), _) => self.mixture(list, routing),
            (None, Some(_)) => self.departments(list),
            (None, None) => feed_forward(list, "mlp.", self.common_width(layer), self.hidden),
        }
    }

    fn attention(&self, list: &mut Tensors) {
        let Config { hidden, heads, kv_heads, head_dim, .. } = *self;
        list.add("input_layernorm.weight", &[hidden]);
        let (queries, keys) = (heads * head_dim, kv_heads * head_dim);
        let rows = [("q_proj", queries), ("k_proj", keys), ("v_proj", keys)];
        match &self.latent {
            Some(latent) => self.latent(list, latent),
            None => {
                for (part, rows) in rows {
                    list.add(&format!("self_attn.{part}.weight"), &[rows, hidden]);
                }
            }
        }
        if self.attention_bias {
            for (part, rows) in rows {
                list.add(&format!("self_attn.{part}.bias"), &[rows]);
            }
        }
        if self.latent.is_none() && self.head_norms != HeadNorms::None {
            let [queries, keys] = self.head_norm_lengths();
            list.add("self_attn.q_norm.weight", &[queries]);
            list.add("self_attn.k_norm.weight", &[keys]);
        }
        list.add("self_attn.o_proj.weight", &[hidden, self.attended_width()]);
        list.add("post_attention_layernorm.weight", &[hidden]);
        if self.family.outer_norms() {
            list.add("pre_feedforward_layernorm.weight", &[hidden]);
            list.add("post_feedforward_layernorm.weight", &[hidden]);
        }
    }

    fn latent(&self, list: &mut Tensors, latent: &Latent) {
        let Latent { query_rank, rank, value_dim, .. } = *latent;
        let queries = self.heads * self.head_dim;
        match query_rank {
            0 => list.add("self_attn.q_proj.weight", &[queries, self.hidden]),
            _ => list.add("self_attn.q_a_proj.weight", &[query_rank, self.hidden]),
        }
        let shared = [rank + self.rope.dim, self.hidden];
        list.add("self_attn.kv_a_proj_with_mqa.weight", &shared);
        if query_rank > 0 {
            list.add("self_attn.q_a_layernorm.weight", &[query_rank]);
        }
        list.add("self_attn.kv_a_layernorm.weight", &[rank]);
        if query_rank > 0 {
            list.add("self_attn.q_b_proj.weight", &[queries, query_rank]);
        }
        let rows = self.heads * (self.head_dim - self.rope.dim + value_dim);
        list.add("self_attn.kv_b_proj.weight", &[rows, rank]);
    }

    fn mixture(&self, list: &mut Tensors, routing: &Routing) {
        let Routing { experts, width, .. } = *routing;
        if self.family.stacked_experts() {
            list.add("block_sparse_moe.router.layer.weight", &[experts, self.hidden]);
            list.add("block_sparse_moe.input_linear.weight", &[experts, 2 * width, self.hidden]);
            list.add("block_sparse_moe.output_linear.weight", &[experts, self.hidden, width]);
            return;
        }
        let mixtral = self.family == Family::Mixtral;
        let place = if mixtral { "block_sparse_moe" } else { "mlp" };
        list.add(&format!("{place}.gate.weight"), &[experts, self.hidden]);
        if routing.sigmoid {
            list.add(&format!("{place}.gate.e_score_correction_bias"), &[experts]);
        }
        let names = match mixtral {
            true => ["w1", "w3", "w2"],
            false => ["gate_proj", "up_proj", "down_proj"],
        };
        let shapes = [[width, self.hidden], [width, self.hidden], [self.hidden, width]];
        // All that lies in one matrix of the decoder stands together: gates and up, then down.
        for parts in [0..2, 2..3] {
            for expert in 0..experts {
                for part in parts.clone() {
                    let name = format!("{place}.experts.{expert}.{}.weight", names[part]);
                    list.add(&name, &shapes[part]);
                }
            }
        }
        if self.intermediate > 0 {
            feed_forward(list, "mlp.shared_experts.", self.intermediate, self.hidden);
        }
    }

    fn departments(&self, list: &mut Tensors) {
        let (hidden, width) = (self.hidden, self.intermediate);
        let Some(experts) = &self.experts else { return };
        let count = experts.names.len() + 1;
        list.add("block_sparse_moe.router.layer.weight", &[count, hidden]);
        list.add("block_sparse_moe.input_linear.weight", &[count, 2 * experts.width, hidden]);
        list.add("block_sparse_moe.output_linear.weight", &[count, hidden, experts.width]);
        list.add("shared_mlp.input_linear.weight", &[2 * width, hidden]);
        list.add("shared_mlp.output_linear.weight", &[hidden, width]);
    }
}

fn feed_forward(list: &mut Tensors, place: &str, width: usize, hidden: usize) {
    list.add(&format!("{place}gate_proj.weight"), &[width, hidden]);
    list.add(&format!("{place}up_proj.weight"), &[width, hidden]);
    list.add(&format!("{place}down_proj.weight"), &[hidden, width]);
}

#[derive(Default)]
struct Tensors {
    prefix: String,
    list: Vec<TensorInfo>,
}

impl Tensors {
    fn add(&mut self, name: &str, shape: &[usize]) {
        let name = format!("{}{name}", self.prefix);
        self.list.push(TensorInfo { name, shape: shape.to_vec() });
    }
}
