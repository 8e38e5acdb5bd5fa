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

impl Gate {
    /// The gate of x is `x · sigmoid(z)`: z, and its slope at x.
    #[inline(always)]
    pub(crate) fn inner(self, x: f32) -> (f32, f32) {
        match self {
            Gate::Silu => (x, 1.0),
            Gate::GeluTanh => {
                // (1 + tanh(z)) / 2 is the sigmoid of 2z; this is 2·√(2/π).
                const TWICE: f32 = 1.595_769;
                (TWICE * (x + 0.044_715 * x * x * x), TWICE * (1.0 + 3.0 * 0.044_715 * x * x))
            }
        }
    }
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

/// The gradient of [`gated`]: writes over `gate_up` the gradient with respect to it.
///
/// **Shapes**: gate_up `[tokens, 2·width]`; d_out `[tokens, width]`.
pub fn gated_backward(pool: &Pool, gate_up: &mut [f32], d_out: &[f32], width: usize, gate: Gate) {
    match gate {
        Gate::Silu => ops::swiglu_backward(pool, gate_up, d_out, width),
        Gate::GeluTanh => {
            assert_eq!(gate_up.len(), 2 * d_out.len());
            pool.pieces(gate_up, 2 * width, |index, row| {
                row_backward(gate, row, &d_out[index * width..][..width]);
            });
        }
    }
}

multiversion! {
fn row_backward(gate: Gate, gate_up: &mut [f32], d_out: &[f32]) {
    let (gates, ups) = gate_up.split_at_mut(d_out.len());
    for ((g, u), d) in gates.iter_mut().zip(ups).zip(d_out) {
        let (z, slope) = gate.inner(*g);
        let s = sigmoid(z);
        let d_gate = d * *u * s * (1.0 + *g * (1.0 - s) * slope);
        *u = d * *g * s;
        *g = d_gate;
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
            for (g, u) in gates.iter_mut().zip(ups) {
                *g = *g * sigmoid(gate.inner(*g).0) * u;
            }
        }
    }
}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gradients_are_the_numeric_ones() {
        let pool = Pool::new(2);
        let x: Vec<f32> = (0..3 * 14).map(|i| (i as f32 * 0.7).sin() * 2.0).collect();
        let d_out: Vec<f32> = (0..3 * 7).map(|i| (i as f32 * 0.3).cos()).collect();
        for gate in [Gate::Silu, Gate::GeluTanh] {
            let value = |x: &[f32]| -> f64 {
                let mut out = vec![0.0; d_out.len()];
                gated(&pool, &mut out, x, 7, gate);
                out.iter().zip(&d_out).map(|(o, d)| f64::from(*o) * f64::from(*d)).sum()
            };
            let mut d = x.clone();
            gated_backward(&pool, &mut d, &d_out, 7, gate);
            for i in 0..x.len() {
                let at = |offset: f32| {
                    let mut moved = x.clone();
                    moved[i] += offset;
                    value(&moved)
                };
                let numeric = (at(1e-2) - at(-1e-2)) / 2e-2;
                assert!((f64::from(d[i]) - numeric).abs() < 2e-3, "{gate:?} {i}: {}", d[i]);
            }
        }
    }
}
