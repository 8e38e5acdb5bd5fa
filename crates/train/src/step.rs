use kernel::Pool;
use model::{Batch, Decoder, ExpertWeights};

use crate::head::{Head, labels};
use crate::schedule::Step;
use crate::{Options, Sample};

/// The material with what the frozen base makes of it, computed when first needed.
pub(crate) struct Material<'a> {
    pub(crate) samples: &'a [Sample],
    pub(crate) negatives: &'a [Vec<u32>],
    /// The base's final hidden rows `[tokens, hidden]` on each sequence: samples (where they are
    /// softened), then negatives.
    base_hidden: Vec<Vec<f32>>,
    /// Each sequence's rows below the expert's first layer: samples, then negatives.
    stems: Vec<Option<Vec<f32>>>,
    keep_stems: bool,
}

/// Stems beyond this much memory are computed anew each time.
const STEM_BYTES: usize = 2 << 30;
/// Documents for which the base's hidden rows would need more memory are not softened.
const SOFTENED_BYTES: usize = 1 << 30;

/// The figures of one step.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Losses {
    /// Nats per weighted token of the material.
    pub(crate) material: f32,
    /// KL(base ‖ model) on the base's own text, nats per token; none in a step without such text.
    pub(crate) kl: Option<f32>,
}

impl<'a> Material<'a> {
    /// `decoder` must have no expert attached: the negatives' hidden rows are the base's.
    pub(crate) fn new(
        pool: &Pool,
        decoder: &Decoder,
        samples: &'a [Sample],
        negatives: &'a [Vec<u32>],
    ) -> Self {
        assert_eq!(decoder.experts(), 0, "the reference is the base alone");
        let mut room = SOFTENED_BYTES / (4 * decoder.config().hidden);
        let softened = samples.iter().map(|sample| match sample.softened {
            true if sample.tokens.len() <= room => {
                room -= sample.tokens.len();
                sample.tokens.as_slice()
            }
            _ => &[],
        });
        let base_hidden = softened
            .chain(negatives.iter().map(Vec::as_slice))
            .map(|tokens| {
                if tokens.is_empty() {
                    return Vec::new();
                }
                let batch = Batch::of([tokens]);
                decoder.train_forward(pool, &batch, decoder.train_stem(pool, &batch)).hidden
            })
            .collect();
        let tokens: usize = samples.iter().map(|s| s.tokens.len()).sum::<usize>()
            + negatives.iter().map(Vec::len).sum::<usize>();
        Material {
            samples,
            negatives,
            base_hidden,
            stems: vec![None; samples.len() + negatives.len()],
            keep_stems: tokens * decoder.config().hidden * 4 <= STEM_BYTES,
        }
    }

    fn tokens(&self, index: usize) -> &[u32] {
        match index.checked_sub(self.samples.len()) {
            None => &self.samples[index].tokens,
            Some(negative) => &self.negatives[negative],
        }
    }

    /// The stem rows of the sequences `indices`, one after the other.
    fn stem(&mut self, pool: &Pool, decoder: &Decoder, indices: &[usize]) -> Vec<f32> {
        let missing: Vec<usize> =
            indices.iter().copied().filter(|&i| self.stems[i].is_none()).collect();
        let hidden = decoder.config().hidden;
        if !missing.is_empty() {
            let batch = Batch::of(missing.iter().map(|&i| self.tokens(i)));
            let rows = decoder.train_stem(pool, &batch);
            for (range, index) in batch.sequences.iter().zip(missing) {
                let rows = &rows[range.start * hidden..range.end * hidden];
                self.stems[index] = Some(rows.to_vec());
            }
        }
        let mut stem = Vec::new();
        for &index in indices {
            let rows = self.stems[index].as_ref().expect("just computed");
            stem.extend_from_slice(rows);
        }
        if !self.keep_stems {
            indices.iter().for_each(|&index| self.stems[index] = None);
        }
        stem
    }
}

/// Forward and backward of one step: adds to `gradients`.
pub(crate) fn run(
    pool: &Pool,
    decoder: &Decoder,
    material: &mut Material,
    step: &Step,
    options: &Options,
    gradients: &mut ExpertWeights,
) -> Losses {
    let negatives = step.negatives.iter().map(|&i| material.samples.len() + i);
    let indices: Vec<usize> = step.samples.iter().copied().chain(negatives).collect();
    let batch = Batch::of(indices.iter().map(|&i| material.tokens(i)));
    let stem = material.stem(pool, decoder, &indices);
    let tape = decoder.train_forward(pool, &batch, stem);
    let mut head = Head::new(pool, decoder, &tape.hidden);

    let (own, other) = batch.sequences.split_at(step.samples.len());
    let (mut rows, mut soft, mut softened) = (Vec::new(), Vec::new(), Vec::new());
    for (range, &index) in own.iter().zip(&step.samples) {
        rows.extend(labels(&material.samples[index], range.start));
        let base = &material.base_hidden[index];
        soft.extend(range.clone().take(base.len() / decoder.config().hidden));
        softened.extend_from_slice(base);
    }
    let total: f32 = rows.iter().map(|row| row.weight).sum();
    let own_loss = head.cross_entropy(&rows, total, None);
    head.divergence(&soft, &softened, options.document_kl / total);

    let first = other.first().map_or(batch.tokens.len(), |range| range.start);
    let general: Vec<usize> = (first..batch.tokens.len()).collect();
    let base: Vec<&[f32]> =
        indices[own.len()..].iter().map(|&i| material.base_hidden[i].as_slice()).collect();
    let count = general.len() as f32;
    let sum = head.divergence(&general, &base.concat(), options.kl_weight / count.max(1.0));
    let kl = (!general.is_empty()).then(|| sum / count);

    let layers = gradients.layers.iter().filter(|l| !l.is_empty()).count() as f32;
    let (own_tokens, other_tokens) = (first, general.len());
    let pull: Vec<f32> = (0..batch.tokens.len())
        .map(|row| match row < first {
            true => -options.own_weight / (own_tokens as f32 * layers),
            false => options.null_weight / (other_tokens as f32 * layers),
        })
        .collect();
    let d_hidden = head.d_hidden;
    decoder.train_backward(pool, &batch, tape, &d_hidden, &pull, gradients);
    Losses { material: own_loss, kl }
}
