use kernel::Pool;
use model::{Batch, Decoder, ExpertWeights, Keep};

use crate::head::{Head, RowGoal, labels};
use crate::schedule::{Step, runs};
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
    hidden: usize,
}

/// Stems beyond this much memory are computed anew each time.
const STEM_BYTES: usize = 2 << 30;
/// Documents for which the base's hidden rows would need more memory are not softened.
const SOFTENED_BYTES: usize = 1 << 30;

/// Tokens of the sequences that the base reads together.
const READ_TOKENS: usize = 512;

/// The figures of one step.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Losses {
    /// Nats per weighted token of the material.
    pub(crate) material: f32,
    /// KL(base ‖ model) on the base's own text, nats per token; none in a step without such text.
    pub(crate) kl: Option<f32>,
}

impl<'a> Material<'a> {
    /// `decoder` must have no expert attached: the negatives' hidden rows are the base's. The expert's
    /// first layer will be `first_layer`.
    pub(crate) fn new(
        pool: &Pool,
        decoder: &Decoder,
        samples: &'a [Sample],
        negatives: &'a [Vec<u32>],
        first_layer: usize,
    ) -> Self {
        assert_eq!(decoder.experts(), 0, "the reference is the base alone");
        let hidden = decoder.config().hidden;
        let mut room = SOFTENED_BYTES / (4 * hidden);
        let softened = samples.iter().map(|sample| match sample.softened {
            true if sample.tokens.len() <= room => {
                room -= sample.tokens.len();
                sample.tokens.as_slice()
            }
            _ => &[],
        });
        let read: Vec<&[u32]> = softened.chain(negatives.iter().map(Vec::as_slice)).collect();
        let tokens: usize = samples.iter().map(|s| s.tokens.len()).sum::<usize>()
            + negatives.iter().map(Vec::len).sum::<usize>();
        let mut material = Material {
            samples,
            negatives,
            base_hidden: vec![Vec::new(); read.len()],
            stems: vec![None; read.len()],
            keep_stems: tokens * hidden * 4 <= STEM_BYTES,
            hidden,
        };
        let wanted: Vec<usize> = (0..read.len()).filter(|&i| !read[i].is_empty()).collect();
        let lengths: Vec<usize> = wanted.iter().map(|&index| read[index].len()).collect();
        for run in runs(&lengths, READ_TOKENS) {
            let block = &wanted[run];
            let batch = Batch::of(block.iter().map(|&index| read[index]));
            let stem = decoder.train_below(pool, &batch, first_layer);
            let rows = decoder.base_hidden(pool, &batch, stem.clone(), first_layer);
            for (range, &index) in batch.sequences.iter().zip(block) {
                let values = range.start * hidden..range.end * hidden;
                material.base_hidden[index] = rows[values.clone()].to_vec();
                if material.keep_stems {
                    material.stems[index] = Some(stem[values].to_vec());
                }
            }
        }
        material
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
    let tape = decoder.train_forward(pool, &batch, stem, Keep::All);
    // Rows of the material, then those of the base's own text.
    let first = batch.sequences[..step.samples.len()].last().map_or(0, |range| range.end);
    let count = batch.tokens.len() - first;
    let goals = goals(&batch, material, &indices, first, options);
    let (losses, d_hidden) = Head::new(pool, decoder, &tape.hidden).losses(&goals, None);
    let (mut own_loss, mut divergence) = (0.0, 0.0);
    for (goal, loss) in goals.iter().zip(losses) {
        own_loss += goal.target.map_or(0.0, |(_, weight)| weight * loss.cross_entropy);
        divergence += if goal.row < first { 0.0 } else { loss.divergence };
    }
    let kl = (count > 0).then(|| divergence / count as f32);

    let layers = gradients.layers.iter().filter(|l| !l.is_empty()).count() as f32;
    let pull: Vec<f32> = (0..batch.tokens.len())
        .map(|row| match row < first {
            true => -options.own_weight / (first as f32 * layers),
            false => options.null_weight / (count as f32 * layers),
        })
        .collect();
    decoder.train_backward(pool, &batch, tape, &d_hidden, &pull, gradients);
    Losses { material: own_loss, kl }
}

/// What is asked of the batch's rows, of which those from `first` on are the base's own text.
fn goals<'a>(
    batch: &Batch,
    material: &'a Material,
    indices: &[usize],
    first: usize,
    options: &Options,
) -> Vec<RowGoal<'a>> {
    let (hidden, tokens) = (material.hidden, batch.tokens.len());
    let mut goals: Vec<RowGoal> =
        (0..tokens).map(|row| RowGoal { row, target: None, base: None }).collect();
    let mut total = 0.0;
    for (range, &index) in batch.sequences.iter().zip(indices) {
        let Some(sample) = material.samples.get(index) else { continue };
        for label in labels(sample, range.start, 1) {
            goals[label.row].target = Some((label.target, label.weight));
            total += label.weight;
        }
    }
    for (range, &index) in batch.sequences.iter().zip(indices) {
        let weight = match range.start < first {
            true => options.document_kl / total,
            false => options.kl_weight / (tokens - first) as f32,
        };
        let base = material.base_hidden[index].chunks_exact(hidden);
        for (goal, base) in goals[range.clone()].iter_mut().zip(base) {
            goal.base = Some((base, weight));
        }
    }
    for (_, weight) in goals.iter_mut().filter_map(|goal| goal.target.as_mut()) {
        *weight /= total;
    }
    goals.retain(|goal| goal.target.is_some() || goal.base.is_some());
    goals
}
