//! The activation of a gated feed-forward.

use crate::cpu::multiversion;
use crate::ops::{self, sigmoid};
use crate::pool::Pool;

/// What the gate half goes through before it multiplies the other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Gate {
    /// `x · sigmoid(x)`.
    Silu,
    /// GELU in its tanh form. **Source**: Hendrycks and Gimpel 2016, arXiv 1606.08415, section 2.
    GeluTanh,
}

/// `out = gate(g) · u`, g and u side by side.
///
/// **Shapes**: out `[tokens, width]`; gate_up `[tokens, 2·width]`.
/// **Source**: Shazeer 2020, arXiv 2002.05202, eq. 5.
pub fn gated(pool: &Pool, out: &mut [f32], gate_up: &[f32], width: usize, gate: Gate) {
    match gate {
        Gate::Silu => ops::swiglu(pool, out, gate_up, width),
        Gate::GeluTanh => {
            assert_eq!(gate_up.len(), 2 * out.len());
            pool.pieces(out, width, |index, out| {
                let (gates, ups) = gate_up[2 * index * width..][..2 * width].split_at(width);
                out.copy_from_slice(gates);
                multiply(gate, out, ups);
            });
        }
    }
}

/// As [`gated`], over the gates themselves.
pub(crate) fn gate_tiles<const N: usize>(gate: Gate, gates: &mut [[f32; N]], ups: &[[f32; N]]) {
    multiply(gate, gates.as_flattened_mut(), ups.as_flattened());
}

multiversion! {
fn multiply(gate: Gate, gates: &mut [f32], ups: &[f32]) {
    match gate {
        Gate::Silu => {
            for (g, u) in gates.iter_mut().zip(ups) {
                *g = *g * sigmoid(*g) * u;
            }
        }
        Gate::GeluTanh => {
            // (1 + tanh(z)) / 2 is the sigmoid of 2z; this is 2·√(2/π).
            const TWICE: f32 = 1.595_769;
            for (g, u) in gates.iter_mut().zip(ups) {
                let inner = TWICE * (*g + 0.044_715 * *g * *g * *g);
                *g = *g * sigmoid(inner) * u;
            }
        }
    }
}
}
