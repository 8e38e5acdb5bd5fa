//! The weights that training begins with.

use model::{Config, Weights};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Deviation of the embedding's values.
const EMBEDDING: f32 = 0.02;

/// Norms are 1; matrices are uniform with the deviation (inputs)^-½ / 2, those that add to the
/// residual divided by √(2 · layers), so that its size does not grow with the depth.
pub fn initial(config: &Config, seed: u64) -> Weights {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut weights = Weights::zeros(config);
    for (info, values) in weights.tensors_mut(config) {
        let name = info.name.as_str();
        if name.ends_with("e_score_correction_bias") {
            continue;
        }
        if let [_] = info.shape[..] {
            values.fill(1.0);
            continue;
        }
        let (_, inputs) = info.rows_cols();
        let mut deviation = 0.5 / (inputs as f32).sqrt();
        if name.contains("embed_tokens") {
            deviation = EMBEDDING;
        } else if name.contains("o_proj") || name.contains("down_proj") {
            deviation /= (2.0 * config.layers as f32).sqrt();
        }
        let limit = deviation * 3.0f32.sqrt();
        values.iter_mut().for_each(|value| *value = rng.random_range(-limit..limit));
    }
    weights
}
