//! Which format each matrix of a quantised file gets.

use kernel::quant::Format;

/// What a file's matrices are stored as: mostly one format, and a better one where errors weigh
/// more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mix {
    /// `q4_k_m`, as llama.cpp calls such a file.
    pub name: &'static str,
    base: Format,
    /// Of the values' and the down projection in some layers.
    better: Format,
    /// Of the output matrix, which is often the embedding as well.
    head: Format,
    /// llama.cpp's number.
    pub(super) file_type: u32,
}

const fn mix(name: &'static str, base: Format, better: Format, head: Format, number: u32) -> Mix {
    Mix { name, base, better, head, file_type: number }
}

const fn plain(name: &'static str, format: Format, number: u32) -> Mix {
    mix(name, format, format, format, number)
}

/// A tensor of a file, as far as its format depends on it.
pub(super) struct Place<'a> {
    pub(super) name: &'a str,
    pub(super) shape: &'a [usize],
    pub(super) stored: Format,
    /// Layers of the model.
    pub(super) layers: usize,
    /// Whether the embedding is the output matrix too.
    pub(super) tied: bool,
}

/// What a tensor becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Choice {
    /// It stays as it is stored: no matrix of a product, or in no more bits already.
    Kept,
    To(Format),
    /// In place of the format that its rows are too short for.
    Instead(Format),
}

impl Mix {
    /// All that can be asked for, from many bits to few.
    pub const ALL: [Mix; 15] = [
        plain("f32", Format::F32, 0),
        plain("bf16", Format::Bf16, 32),
        plain("f16", Format::F16, 1),
        plain("q8_0", Format::Q8_0, 7),
        plain("q6_k", Format::Q6_K, 18),
        mix("q5_k_m", Format::Q5_K, Format::Q6_K, Format::Q6_K, 17),
        mix("q5_k_s", Format::Q5_K, Format::Q5_K, Format::Q6_K, 16),
        mix("q5_1", Format::Q5_1, Format::Q5_1, Format::Q6_K, 9),
        mix("q5_0", Format::Q5_0, Format::Q5_0, Format::Q6_K, 8),
        mix("q4_k_m", Format::Q4_K, Format::Q6_K, Format::Q6_K, 15),
        mix("q4_k_s", Format::Q4_K, Format::Q4_K, Format::Q6_K, 14),
        mix("q4_1", Format::Q4_1, Format::Q4_1, Format::Q6_K, 3),
        mix("q4_0", Format::Q4_0, Format::Q4_0, Format::Q6_K, 2),
        mix("iq4_nl", Format::IQ4_NL, Format::IQ4_NL, Format::Q6_K, 25),
        mix("iq4_xs", Format::IQ4_XS, Format::IQ4_XS, Format::Q6_K, 30),
    ];

    pub fn named(name: &str) -> Option<Mix> {
        Mix::ALL.into_iter().find(|mix| mix.name == name)
    }

    pub(super) fn choose(&self, place: &Place) -> Choice {
        let [.., cols] = *place.shape else { return Choice::Kept };
        if place.shape.len() == 1 || !is_matrix(place.name) {
            return Choice::Kept;
        }
        let wanted = self.wanted(place);
        let format = fallback(wanted, cols);
        let bits = |format: Format| bits(format, 1.0);
        let block = format.block_len() > 1;
        if format == place.stored || (block && bits(place.stored) <= bits(format)) {
            return Choice::Kept;
        }
        if format == wanted { Choice::To(format) } else { Choice::Instead(format) }
    }

    fn wanted(&self, place: &Place) -> Format {
        let head = if place.tied { "token_embd.weight" } else { "output.weight" };
        if place.name == head {
            return self.head;
        }
        let layer = place.name.strip_prefix("blk.").and_then(|rest| rest.split_once('.'));
        let Some((layer, part)) = layer.and_then(|(l, part)| Some((l.parse().ok()?, part))) else {
            return self.base;
        };
        let weighs = part.starts_with("attn_v.") || part.starts_with("ffn_down");
        if weighs && gets_more(layer, place.layers) { self.better } else { self.base }
    }
}

/// Bits that so many values take.
fn bits(format: Format, values: f64) -> f64 {
    values * 8.0 * format.block_bytes() as f64 / format.block_len() as f64
}

/// The matrices that are multiplied with activations of the same row length: projections and the
/// embedding, but no norm, router or convolution.
fn is_matrix(name: &str) -> bool {
    let Some(name) = name.strip_suffix(".weight") else { return false };
    let part = name.rsplit('.').next().unwrap_or(name);
    let known = ["token_embd", "output"].contains(&name)
        || part.starts_with("attn_")
        || part.starts_with("ffn_");
    known && !part.ends_with("norm") && !part.starts_with("ffn_gate_inp")
}

/// The first and the last eighth of the layers, and every third between.
///
/// **Source**: llama.cpp `llama-quant.cpp`, `use_more_bits`.
fn gets_more(layer: usize, layers: usize) -> bool {
    let eighth = layers / 8;
    layer < eighth || layer >= 7 * layers / 8 || (layer - eighth) % 3 == 2
}

/// The format for rows of `cols` values: that which is wanted, or one of smaller blocks.
///
/// **Source**: llama.cpp `llama-quant.cpp`, which takes the same.
fn fallback(format: Format, cols: usize) -> Format {
    if cols.is_multiple_of(format.block_len()) {
        return format;
    }
    let smaller = match format {
        Format::Q4_K => Format::Q5_0,
        Format::Q5_K => Format::Q5_1,
        Format::Q6_K => Format::Q8_0,
        Format::IQ4_XS => Format::IQ4_NL,
        _ => Format::F16,
    };
    if cols.is_multiple_of(smaller.block_len()) { smaller } else { Format::F16 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(mix: &str, name: &str, shape: &[usize], expected: Choice) {
        let place = Place { name, shape, stored: Format::F32, layers: 16, tied: false };
        assert_eq!(Mix::named(mix).unwrap().choose(&place), expected, "{mix} {name}");
    }

    #[test]
    fn formats_follow_what_a_matrix_is_for() {
        use Choice::{Instead, Kept, To};
        check("q4_k_m", "blk.3.attn_q.weight", &[512, 512], To(Format::Q4_K));
        check("q4_k_m", "blk.0.attn_v.weight", &[512, 512], To(Format::Q6_K));
        check("q4_k_m", "blk.2.attn_v.weight", &[512, 512], To(Format::Q4_K));
        check("q4_k_m", "blk.4.ffn_down_exps.weight", &[8, 512, 768], To(Format::Q6_K));
        check("q4_k_m", "blk.15.ffn_down.weight", &[512, 576], Instead(Format::Q8_0));
        check("q4_k_m", "output.weight", &[1000, 256], To(Format::Q6_K));
        check("q4_k_m", "token_embd.weight", &[1000, 256], To(Format::Q4_K));
        check("q4_k_m", "blk.3.ffn_up.weight", &[96, 576], Instead(Format::Q5_0));
        check("q4_k_m", "blk.3.ffn_up.weight", &[96, 100], Instead(Format::F16));
        check("iq4_xs", "blk.3.ffn_up.weight", &[96, 96], Instead(Format::IQ4_NL));
        check("q8_0", "blk.3.ffn_gate_inp.weight", &[8, 512], Kept);
        check("q8_0", "blk.3.attn_norm.weight", &[512], Kept);
        check("q8_0", "blk.3.ssm_conv1d.weight", &[512, 4], Kept);
        check("f32", "blk.3.ffn_up.weight", &[96, 100], Kept);
        check("f16", "blk.3.ffn_up.weight", &[96, 100], To(Format::F16));
    }

    #[test]
    fn what_has_fewer_bits_stays() {
        let place = |stored| Place {
            name: "token_embd.weight",
            shape: &[100, 256],
            stored,
            layers: 16,
            tied: true,
        };
        let mix = Mix::named("q4_k_m").unwrap();
        assert_eq!(mix.choose(&place(Format::Q5_0)), Choice::Kept);
        assert_eq!(mix.choose(&place(Format::Q8_0)), Choice::To(Format::Q6_K));
    }
}
