//! Grouped feed-forwards against plain loops in f64.

use super::*;
use crate::gemm::{ExpertGradients, Experts, Routes};

struct Case {
    experts: usize,
    top_k: usize,
    hidden: usize,
    width: usize,
    gate_up: Vec<f32>,
    down: Vec<f32>,
    x: Vec<f32>,
    dy: Vec<f32>,
    chosen: Vec<u32>,
    gates: Vec<f32>,
}

/// What a pass gives: the output, then the gradients of x, gate_up, down and the gates.
type Results = [Vec<f32>; 5];

impl Case {
    /// Expert 1 gets no token, expert 0 gets every token.
    fn new(experts: usize, top_k: usize, tokens: usize, hidden: usize, width: usize) -> Self {
        let wave = |len: usize, phase: f32, scale: f32| -> Vec<f32> {
            (0..len).map(|i| ((i * i % 9973) as f32 * 0.613 + phase).sin() * scale).collect()
        };
        let scale = 1.0 / (hidden as f32).sqrt();
        let chosen = (0..tokens * top_k).map(|place| match (place % top_k, experts) {
            (0, _) | (_, 1) => 0,
            (slot, _) => 2 + ((place / top_k * 7 + slot) % (experts - 2)) as u32,
        });
        Case {
            experts,
            top_k,
            hidden,
            width,
            gate_up: wave(experts * 2 * width * hidden, 0.1, scale),
            down: wave(experts * hidden * width, 0.7, scale),
            x: wave(tokens * hidden, 0.3, 1.5),
            dy: wave(tokens * hidden, 1.9, 1.0),
            chosen: chosen.collect(),
            gates: wave(tokens * top_k, 2.5, 0.9),
        }
    }

    fn run(&self, threads: usize, precision: Precision) -> Results {
        let pool = Pool::new(threads);
        let mut experts = Experts::new(precision, self.experts, self.hidden, self.width, true);
        experts.fill(&pool, &self.gate_up, &self.down);
        let routes = Routes::new(self.experts, self.top_k, &self.chosen, &self.gates);
        let (x, dy) = (
            Lanes::new(&pool, precision, &self.x, self.hidden),
            Lanes::new(&pool, precision, &self.dy, self.hidden),
        );
        let mut y = vec![0.0; self.x.len()];
        let kept = experts.forward(&pool, &mut y, &x, &routes);
        let (mut dx, mut d_gates) = (vec![0.0; self.x.len()], vec![0.0; self.gates.len()]);
        // What stands there is replaced.
        let mut d_gate_up = vec![7.0; self.gate_up.len()];
        let mut d_down = vec![7.0; self.down.len()];
        let gradients = ExpertGradients {
            weights: Some([&mut d_gate_up, &mut d_down]),
            gates: Some(&mut d_gates),
            mode: Output::Replace,
        };
        experts.backward(&pool, &mut dx, (&x, &dy), &routes, kept, gradients);
        [y, dx, d_gate_up, d_down, d_gates]
    }

    fn oracle(&self) -> Results {
        let (hidden, width) = (self.hidden, self.width);
        let sizes = [&self.x, &self.x, &self.gate_up, &self.down, &self.gates].map(Vec::len);
        let mut out = sizes.map(|len| vec![0.0f64; len]);
        for place in 0..self.chosen.len() {
            let (token, expert) = (place / self.top_k, self.chosen[place] as usize);
            let f = |values: &[f32], at: usize| f64::from(values[at]);
            let gate_up_at = |row: usize, h: usize| (expert * 2 * width + row) * hidden + h;
            let down_at = |h: usize, j: usize| (expert * hidden + h) * width + j;
            let dot = |row: usize| -> f64 {
                let term =
                    |h| f(&self.gate_up, gate_up_at(row, h)) * f(&self.x, token * hidden + h);
                (0..hidden).map(term).sum()
            };
            let weight = f(&self.gates, place);
            for j in 0..width {
                let (gate, up) = (dot(j), dot(width + j));
                let s = 1.0 / (1.0 + (-gate).exp());
                let inner = gate * s * up;
                let mut d = 0.0;
                for h in 0..hidden {
                    let (down, dy) =
                        (f(&self.down, down_at(h, j)), f(&self.dy, token * hidden + h));
                    out[0][token * hidden + h] += weight * down * inner;
                    out[3][down_at(h, j)] += weight * dy * inner;
                    d += down * dy;
                }
                out[4][place] += d * inner;
                let d_up = weight * d * gate * s;
                let d_gate = weight * d * up * s * (1.0 + gate * (1.0 - s));
                for h in 0..hidden {
                    let x = f(&self.x, token * hidden + h);
                    for (row, d) in [(j, d_gate), (width + j, d_up)] {
                        let weight = f(&self.gate_up, gate_up_at(row, h));
                        out[1][token * hidden + h] += d * weight;
                        out[2][gate_up_at(row, h)] += d * x;
                    }
                }
            }
        }
        out.map(|values| values.into_iter().map(|v| v as f32).collect())
    }
}

fn check(case: &Case, precision: Precision, tolerance: f32) {
    let expected = case.oracle();
    let found = case.run(2, precision);
    let names = ["y", "dx", "d_gate_up", "d_down", "d_gates"];
    for ((name, found), expected) in names.iter().zip(&found).zip(&expected) {
        let norm = |values: &[f32]| values.iter().map(|v| v * v).sum::<f32>().sqrt();
        let difference: Vec<f32> = found.iter().zip(expected).map(|(f, e)| f - e).collect();
        let relative = norm(&difference) / norm(expected);
        assert!(
            relative < tolerance,
            "{name} of {} experts in {precision:?}: off by {relative} of its norm",
            case.experts
        );
    }
}

#[test]
fn grouped_passes_agree_with_plain_loops() {
    // Tails in rows, columns and steps, several token blocks, an empty expert, a full one; a single
    // expert; one row.
    // bf16 has 8 bits: each operand is off by up to 2^-9 of itself, which sums over few terms show.
    for (case, tolerance) in [
        (Case::new(5, 2, 131, 70, 34), 1e-2),
        (Case::new(6, 3, 700, 64, 96), 1e-2),
        (Case::new(1, 1, 203, 130, 66), 1e-2),
        (Case::new(3, 2, 1, 16, 2), 5e-2),
    ] {
        check(&case, Precision::F32, 1e-5);
        check(&case, Precision::best(), tolerance);
    }
}

#[test]
fn an_expert_without_tokens_gets_no_gradient() {
    let case = Case::new(4, 2, 20, 32, 32);
    let [_, _, d_gate_up, d_down, _] = case.run(1, Precision::best());
    let of_expert = |values: &[f32], expert: usize| -> Vec<f32> {
        let size = values.len() / 4;
        values[expert * size..(expert + 1) * size].to_vec()
    };
    for values in [&d_gate_up, &d_down] {
        assert!(of_expert(values, 1).iter().all(|&v| v == 0.0));
        assert!(of_expert(values, 0).iter().any(|&v| v != 0.0));
    }
}

#[test]
fn threads_do_not_change_a_bit() {
    let case = Case::new(6, 3, 700, 64, 96);
    for precision in [Precision::F32, Precision::best()] {
        let one = case.run(1, precision);
        assert!(one == case.run(3, precision), "{precision:?}");
    }
}

#[test]
fn weights_packed_where_they_are_used_give_the_same_bits() {
    let case = Case::new(6, 3, 700, 64, 96);
    let pool = Pool::new(2);
    let routes = Routes::new(case.experts, case.top_k, &case.chosen, &case.gates);
    for precision in [Precision::F32, Precision::best()] {
        let [trained, ..] = case.run(2, precision);
        let mut laid_out = Experts::new(precision, case.experts, case.hidden, case.width, false);
        laid_out.fill(&pool, &case.gate_up, &case.down);
        let x = Lanes::new(&pool, precision, &case.x, case.hidden);
        let mut y = vec![0.0; case.x.len()];
        laid_out.forward(&pool, &mut y, &x, &routes);
        assert!(y == trained, "{precision:?}");
    }
}

#[test]
fn dense_routes_are_those_of_one_expert() {
    let routes = Routes::dense(5);
    let same = Routes::new(1, 1, &[0; 5], &[1.0; 5]);
    assert_eq!((&routes.rows, &routes.starts), (&same.rows, &same.starts));
    let routes = Routes::new(3, 2, &[2, 0, 0, 2, 0, 2], &[0.1, 0.2, 0.3, 0.4, 0.5, 0.6]);
    assert_eq!(routes.rows, [0, 1, 2, 0, 1, 2]);
    assert_eq!(routes.gates, [0.2, 0.3, 0.5, 0.1, 0.4, 0.6]);
    assert_eq!(routes.load().collect::<Vec<_>>(), [3, 0, 3]);
}
