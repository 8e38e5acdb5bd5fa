//! What a tensor of the Hugging Face layout is called, and how it is laid out, in a GGUF file.

use kernel::Matrix;
use kernel::quant::Format;

use crate::Family;

/// How a Hugging Face tensor is stored in a GGUF file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Stored {
    Whole(String),
    /// Rows in the order of [`interleaved`].
    Interleaved(String),
    /// Two tensors, whose rows alternate in blocks, one for each expert (or one in all).
    GateUp {
        gate: String,
        up: String,
    },
    /// One expert's part of a tensor of all experts.
    Expert {
        all: String,
        expert: usize,
    },
    /// What expands latent keys and values: as it is, or, in newer files, keys (each head's matrix
    /// turned round) and values apart.
    KeyValueUp {
        whole: String,
        keys: String,
        values: String,
    },
}

/// Where a GGUF file of the families here keeps the tensor; `None` for a name it does not know.
pub(crate) fn stored(family: Family, name: &str) -> Option<Stored> {
    let whole = |name: &str| Some(Stored::Whole(name.into()));
    match name {
        "model.embed_tokens.weight" => return whole("token_embd.weight"),
        "model.norm.weight" => return whole("output_norm.weight"),
        "lm_head.weight" => return whole("output.weight"),
        _ => {}
    }
    let (layer, part) = name.strip_prefix("model.layers.")?.split_once('.')?;
    let layer: u32 = layer.parse().ok()?;
    let block = |part: &str| format!("blk.{layer}.{part}.weight");
    if let Some(part) = part.strip_suffix(".bias") {
        return Some(Stored::Whole(format!("blk.{layer}.{}.bias", attention(part)?)));
    }
    if part.ends_with(".e_score_correction_bias") {
        return Some(Stored::Whole(format!("blk.{layer}.exp_probs_b.bias")));
    }
    let part = part.strip_suffix(".weight")?;
    if let Some(expert) = expert(part) {
        let (expert, part) = expert?;
        return Some(Stored::Expert { all: block(&format!("{part}_exps")), expert });
    }
    let gate_up = |kind| Stored::GateUp {
        gate: block(&format!("ffn_gate_{kind}")),
        up: block(&format!("ffn_up_{kind}")),
    };
    let outer = family.outer_norms() || family == Family::Glm4Moe;
    Some(match part {
        "self_attn.q_proj" if family.interleaved() => Stored::Interleaved(block("attn_q")),
        "self_attn.k_proj" if family.interleaved() => Stored::Interleaved(block("attn_k")),
        "self_attn.kv_b_proj" => Stored::KeyValueUp {
            whole: block("attn_kv_b"),
            keys: block("attn_k_b"),
            values: block("attn_v_b"),
        },
        "block_sparse_moe.input_linear" => gate_up("exps"),
        "shared_mlp.input_linear" => gate_up("shexp"),
        "post_attention_layernorm" if outer => Stored::Whole(block("post_attention_norm")),
        _ => {
            let part = attention(part).or_else(|| feed_forward(part)).or_else(|| mtp(part))?;
            Stored::Whole(block(part))
        }
    })
}

fn attention(part: &str) -> Option<&'static str> {
    Some(match part {
        "input_layernorm" => "attn_norm",
        "self_attn.q_proj" => "attn_q",
        "self_attn.k_proj" => "attn_k",
        "self_attn.v_proj" => "attn_v",
        "self_attn.o_proj" => "attn_output",
        "self_attn.q_norm" => "attn_q_norm",
        "self_attn.k_norm" => "attn_k_norm",
        "self_attn.q_a_proj" => "attn_q_a",
        "self_attn.q_b_proj" => "attn_q_b",
        "self_attn.q_a_layernorm" => "attn_q_a_norm",
        "self_attn.kv_a_proj_with_mqa" => "attn_kv_a_mqa",
        "self_attn.kv_a_layernorm" => "attn_kv_a_norm",
        _ => return None,
    })
}

fn feed_forward(part: &str) -> Option<&'static str> {
    Some(match part {
        "post_attention_layernorm" | "pre_feedforward_layernorm" => "ffn_norm",
        "post_feedforward_layernorm" => "post_ffw_norm",
        "mlp.gate_proj" => "ffn_gate",
        "mlp.up_proj" => "ffn_up",
        "mlp.down_proj" => "ffn_down",
        "mlp.gate" | "block_sparse_moe.gate" | "block_sparse_moe.router.layer" => "ffn_gate_inp",
        "block_sparse_moe.output_linear" => "ffn_down_exps",
        "mlp.shared_experts.gate_proj" => "ffn_gate_shexp",
        "mlp.shared_experts.up_proj" => "ffn_up_shexp",
        "mlp.shared_experts.down_proj" | "shared_mlp.output_linear" => "ffn_down_shexp",
        _ => return None,
    })
}

/// Of the block that predicts the token after the next, besides its layer.
fn mtp(part: &str) -> Option<&'static str> {
    Some(match part {
        "enorm" => "nextn.enorm",
        "hnorm" => "nextn.hnorm",
        "eh_proj" => "nextn.eh_proj",
        "shared_head.norm" => "nextn.shared_head_norm",
        _ => return None,
    })
}

/// The expert and the part of one expert's tensor; nothing for another tensor, nothing in it for a
/// part that is not known.
fn expert(part: &str) -> Option<Option<(usize, &'static str)>> {
    let rest = part
        .strip_prefix("mlp.experts.")
        .or_else(|| part.strip_prefix("block_sparse_moe.experts."))?;
    let (expert, part) = rest.split_once('.')?;
    let part = match part {
        "gate_proj" | "w1" => "ffn_gate",
        "up_proj" | "w3" => "ffn_up",
        "down_proj" | "w2" => "ffn_down",
        _ => return Some(None),
    };
    Some(expert.parse().ok().map(|expert| (expert, part)))
}

/// Which row of the Hugging Face layout stands at each row of the GGUF layout.
///
/// Hugging Face turns the pairs `(i, i + head_dim / 2)` of a head, GGML's llama `(2i, 2i + 1)`.
/// Source: llama.cpp `convert_hf_to_gguf.py`, `LlamaModel.permute`.
pub(crate) fn interleaved(rows: usize, head_dim: usize) -> impl Iterator<Item = usize> {
    (0..rows).map(move |row| {
        let (head, at) = (row / head_dim, row % head_dim);
        head * head_dim + at % 2 * (head_dim / 2) + at / 2
    })
}

/// The inverse: which row of the GGUF layout stands at each row of the Hugging Face layout.
pub(crate) fn halves(rows: usize, head_dim: usize) -> impl Iterator<Item = usize> {
    (0..rows).map(move |row| {
        let (head, at) = (row / head_dim, row % head_dim);
        head * head_dim + at % (head_dim / 2) * 2 + at / (head_dim / 2)
    })
}

/// Alternates the blocks of two matrices of equal shape: for each of `experts`, gate then up.
///
/// Where their formats differ, the result is f32.
pub(crate) fn join_gate_up(gate: Matrix, up: Matrix, experts: usize) -> Matrix {
    if gate.format != up.format {
        let plain = |m: Matrix| Matrix::from_f32(m.rows, m.cols, m.to_f32());
        return join_gate_up(plain(gate), plain(up), experts);
    }
    let part = gate.bytes.len() / experts;
    let mut bytes = Vec::with_capacity(2 * gate.bytes.len());
    for expert in 0..experts {
        bytes.extend_from_slice(&gate.bytes[expert * part..][..part]);
        bytes.extend_from_slice(&up.bytes[expert * part..][..part]);
    }
    Matrix { rows: gate.rows + up.rows, cols: gate.cols, format: gate.format, bytes }
}

/// The gate's rows of all experts, or the up-projection's, of a matrix where they alternate.
pub(crate) fn gate_or_up(matrix: &Matrix, experts: usize, up: bool) -> Matrix {
    let width = matrix.rows / experts / 2;
    let rows = (0..experts).flat_map(|expert| {
        let start = (2 * expert + usize::from(up)) * width;
        start..start + width
    });
    matrix.select_rows(rows)
}

/// The format a tensor is given in a GGUF file whose matrices shall be in `format`.
///
/// Vectors and the router are f32, as GGML's kernels expect; a row that does not fill whole blocks
/// is f16.
pub(crate) fn gguf_format(name: &str, shape: &[usize], format: Format) -> Format {
    if shape.len() == 1 || name.ends_with("ffn_gate_inp.weight") {
        return Format::F32;
    }
    let fits = shape.last().is_some_and(|cols| cols.is_multiple_of(format.block_len()));
    if fits { format } else { Format::F16 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_a_head_interleave_its_halves() {
        let rows: Vec<usize> = interleaved(16, 8).collect();
        assert_eq!(rows, [0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15]);
        let back: Vec<usize> = halves(16, 8).map(|row| rows[row]).collect();
        assert_eq!(back, (0..16).collect::<Vec<_>>());
    }
}
