//! Drafts: several new tokens of one sequence at once, some of which are forgotten again.

use kernel::{Pool, Precision};
use model::{Batch, Decoder, ExpertSet, Input, Keep, KvCache, KvFormat, Purpose, Source, Weights};

use crate::decoder::{fixture, largest_difference, load};

fn read(decoder: &Decoder, tokens: &[u32], cache: &mut KvCache) -> Vec<f32> {
    let experts = ExpertSet::all(decoder.experts());
    decoder.forward(&Pool::new(2), &mut [Input { tokens, cache, experts }]).rows
}

fn check(folder: &str, purpose: Purpose, format: KvFormat) {
    let model = load(folder, purpose);
    let decoder = &model.decoder;
    let tokens: Vec<u32> = (0..90).map(|i| 4 + i * 7 % 240).collect();
    let mut prompt = KvCache::in_format(decoder.config(), format);
    read(decoder, &tokens[..40], &mut prompt);
    prompt.attend_one_by_one();
    let mut cache = prompt.clone();
    let alone: Vec<f32> =
        tokens[40..].iter().flat_map(|token| read(decoder, &[*token], &mut cache)).collect();
    let mut cache = prompt.clone();
    let mut rows = Vec::new();
    while cache.len() < tokens.len() {
        // Some right tokens, and some wrong ones, over the ends of pages.
        let first = cache.len();
        let right = (1 + first % 11).min(tokens.len() - first);
        let mut draft = tokens[first..first + right].to_vec();
        draft.extend((0..first as u32 % 3).map(|i| 250 - i));
        let some = read(decoder, &draft, &mut cache);
        rows.extend_from_slice(&some[..some.len() / draft.len() * right]);
        cache.truncate(first + right);
    }
    assert!(alone == rows, "{folder}: drafted rows are not those of single tokens");
}

#[test]
fn drafted_tokens_get_the_bits_that_they_would_get_alone() {
    for format in [KvFormat::F32, KvFormat::F16, KvFormat::Q8] {
        check("gemma3", Purpose::Generation, format);
        check("glm4_moe", Purpose::Generation, format);
        check("deepseek_v3", Purpose::Generation, format);
        check("granitemoeshared", Purpose::Inference, format);
    }
}

/// As `Decoder::further` gives them, a few at once, and as training does.
#[test]
fn the_block_drafts_as_it_was_trained() {
    for name in ["glm4_moe_mtp", "deepseek_v3_mtp"] {
        let source = Source::open(&fixture(name)).unwrap();
        let config = source.config().unwrap();
        let weights = Weights::read(&source, &config).unwrap();
        let (pool, purpose) = (Pool::new(2), Purpose::WholeTraining);
        let trained = Decoder::of_weights(&pool, &config, Precision::F32, purpose, &weights);
        let tokens: Vec<u32> = (0..60).map(|i| 4 + i * 7 % 240).collect();
        let batch = Batch::of([tokens.as_slice()]);
        let tape =
            trained.train_forward(&pool, &batch, trained.train_stem(&pool, &batch), Keep::All);

        let model = load(name, Purpose::Generation);
        let decoder = &model.decoder;
        let hidden = read(decoder, &tokens, &mut KvCache::new(decoder.config()));
        let mut cache = KvCache::of_mtp(decoder.config(), KvFormat::F32);
        let mut rows = Vec::new();
        for part in [0..20, 20..21, 21..23, 23..58] {
            let next = &tokens[part.start + 1..part.end + 1];
            let input = Input { tokens: next, cache: &mut cache, experts: ExpertSet::NONE };
            let width = decoder.config().hidden;
            let hidden = &hidden[part.start * width..part.end * width];
            rows.extend(decoder.further(&pool, &mut [input], hidden));
        }
        let difference = largest_difference(&rows, tape.mtp_hidden());
        assert!(difference < 1e-3, "{name}: off by {difference}");
    }
}
