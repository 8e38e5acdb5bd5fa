//! Drafts by the model's own block: everything is as without, and what is right saves steps.

use std::path::Path;
use std::sync::{Arc, OnceLock};

use engine::{Completion, Engine, Limits, Request, Sampling};
use kernel::{Pool, Precision};
use model::{Decoder, Model, Purpose, Source, Weights};

use crate::{check_answers, settled};

/// A small random model whose layers add little to the embedding, so that both it and its block mostly
/// repeat a token.
fn model() -> Arc<Model> {
    static MODEL: OnceLock<Arc<Model>> = OnceLock::new();
    let build = || {
        let fixture = "../model/tests/fixtures/glm4_moe_mtp";
        let source = Source::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join(fixture)).unwrap();
        let config = source.config().unwrap();
        let mut weights = Weights::read(&source, &config).unwrap();
        for (info, values) in weights.tensors_mut(&config) {
            if ["o_proj", "down_proj"].iter().any(|part| info.name.contains(part)) {
                values.iter_mut().for_each(|value| *value *= 0.2);
            } else if info.name.ends_with("norm.weight") {
                values.fill(1.0);
            }
        }
        // Of one length, each token is most like itself.
        for row in weights.embedding.chunks_exact_mut(config.hidden) {
            let length = row.iter().map(|v| v * v).sum::<f32>().sqrt();
            row.iter_mut().for_each(|value| *value *= 2.0 / length);
        }
        // The embedding as it is.
        let project = &mut weights.mtp.as_mut().unwrap().project;
        for (row, values) in project.chunks_exact_mut(2 * config.hidden).enumerate() {
            values.fill(0.0);
            values[row] = 1.0;
        }
        let (pool, purpose) = (Pool::new(2), Purpose::Generation);
        Arc::new(Model {
            name: "further".to_owned(),
            decoder: Decoder::of_weights(&pool, &config, Precision::F32, purpose, &weights),
            tokenizer: source.tokenizer().unwrap(),
            template: source.template().unwrap(),
        })
    };
    Arc::clone(MODEL.get_or_init(build))
}

fn start(mtp: usize, lookup: usize) -> Engine {
    Engine::start(model(), Pool::new(2), Limits { mtp, lookup, ..Limits::default() })
}

fn requests() -> Vec<Request> {
    let encode = |text: &str| model().tokenizer.encode(text).unwrap();
    let long = "The pump of line 2 is stopped by the red switch. ".repeat(4);
    let mut requests = Vec::new();
    for seed in 0..10 {
        let prompt = match seed % 3 {
            0 => encode("The valve"),
            1 => encode(&long),
            // Begins as another one does.
            _ => encode(&format!("{long}Check the oil of pump {seed}.")),
        };
        let sampling = match seed % 4 {
            0 => Sampling::greedy(),
            1 => Sampling { temperature: 0.5, seed, ..Sampling::default() },
            2 => Sampling { seed, ..Sampling::default() },
            _ => Sampling {
                frequency_penalty: 0.3,
                repetition_penalty: 1.2,
                seed,
                ..Sampling::default()
            },
        };
        let max_tokens = [1, 2, 40, 90, 5][seed as usize % 5];
        requests.push(Request {
            prompt,
            sampling,
            max_tokens,
            logprobs: Some(2),
            ..Request::default()
        });
    }
    requests
}

#[test]
fn answers_are_the_same_with_the_block_and_without() {
    let (plain, requests) = (start(0, 0), requests());
    let expected: Vec<Completion> =
        requests.iter().map(|request| plain.generate(request.clone()).unwrap()).collect();
    for (mtp, lookup) in [(1, 0), (4, 0), (2, 16)] {
        let (engine, what) = (start(mtp, lookup), format!("{mtp} and {lookup}"));
        let load = check_answers(&engine, &requests, &expected, &what);
        let (drafted, right) = (load.drafted_tokens, load.accepted_tokens);
        assert!(
            right > 40 && right < drafted,
            "{mtp} and {lookup}: {right} of {drafted} were right"
        );
    }
}

#[test]
fn right_drafts_save_steps() {
    let engine = start(3, 0);
    let prompt = model().tokenizer.encode("valve").unwrap();
    let sampling = Sampling { logit_bias: vec![(prompt[0], 100.0)], ..Sampling::greedy() };
    let request = Request { sampling, max_tokens: 200, prompt, ..Request::default() };
    assert_eq!(engine.generate(request).unwrap().completion_tokens, 200);
    let load = settled(&engine);
    assert!(load.drafts <= 60 && load.accepted_tokens > 140, "{load:?}");
}
