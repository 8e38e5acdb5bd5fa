//! Gradients of all weights against those of transformers; see `../reference/gradients.py`.

use kernel::loss::{self, Goal};
use kernel::{Output, Pool, Precision};
use model::{Batch, Decoder, Keep, Purpose, Source, TensorInfo, Weights};
use safetensors::SafeTensors;

use crate::decoder::{FAMILIES, fixture, floats, load};

fn integers(file: &SafeTensors, name: &str) -> Vec<u32> {
    let data = file.tensor(name).unwrap().data().to_vec();
    data.as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b)).collect()
}

/// The two sequences of the file.
fn batch(file: &SafeTensors) -> Batch {
    let (tokens, lengths) = (integers(file, "tokens"), integers(file, "lengths"));
    let (first, second) = tokens.split_at(lengths[0] as usize);
    assert_eq!(second.len(), lengths[1] as usize);
    Batch::of([first, second])
}

/// What the loss of the token after the next counts, as in `../reference/mtp.py`.
const MTP_WEIGHT: f32 = 0.3;

/// Mean cross-entropy of the tokens that hidden rows predict, of those that predict one, and its
/// gradient with respect to the rows, times `weight`; that of the output matrix is set, or added.
fn predict(
    decoder: &Decoder,
    pool: &Pool,
    (hidden, targets): (&[f32], &[Option<u32>]),
    weight: f32,
    (gradients, mode): (&mut Weights, Output),
) -> (f32, Vec<f32>) {
    let mut rows = pool.buffer(hidden.len());
    rows.copy_from_slice(hidden);
    let x = decoder.head_lanes(pool, rows);
    let mut logits = decoder.train_logits(pool, &x);
    let labels = targets.iter().flatten().count() as f32;
    let goal = |target: &Option<u32>| Goal {
        target: target.map(|target| (target, weight / labels)),
        reference: None,
    };
    let goals: Vec<Goal> = targets.iter().map(goal).collect();
    let mut d_logits = decoder.d_logits(pool, goals.len());
    let losses = loss::losses(pool, (&mut d_logits, 0), &mut logits, &mut [], &goals);
    decoder.head_gradient(pool, gradients, &d_logits, &x, mode);
    let d_hidden = decoder.logits_backward(pool, &d_logits).to_vec();
    (losses.iter().map(|loss| loss.cross_entropy / labels).sum(), d_hidden)
}

/// Mean cross-entropy over both sequences, of the next token and of the one after it, and the tokens of
/// each expert, layer by layer; the gradients are set, or added.
fn run(
    decoder: &Decoder,
    pool: &Pool,
    batch: &Batch,
    gradients: &mut Weights,
    mode: Output,
    keep: Keep,
) -> ([f32; 2], Vec<u32>) {
    let tape = decoder.train_forward(pool, batch, decoder.train_stem(pool, batch), keep);
    let sequences = batch.sequences.iter().map(|sequence| &batch.tokens[sequence.clone()]);
    // Nothing is predicted after a sequence's last token.
    let next = |tokens: &[u32]| tokens[1..].iter().copied().map(Some).chain([None]).collect();
    let next: Vec<_> = sequences.clone().flat_map::<Vec<Option<u32>>, _>(next).collect();
    let further: Vec<_> = sequences.flat_map(|tokens| &tokens[2..]).copied().map(Some).collect();
    let (loss, d_hidden) =
        predict(decoder, pool, (&tape.hidden, &next), 1.0, (&mut *gradients, mode));
    let (further_loss, d_mtp) = match tape.mtp_hidden() {
        [] => (0.0, Vec::new()),
        hidden => {
            let gradients = (&mut *gradients, Output::Add);
            predict(decoder, pool, (hidden, &further), MTP_WEIGHT, gradients)
        }
    };
    let loads = tape.loads().flatten().map(|load| load as u32).collect();
    decoder.train_backward_whole(pool, batch, tape, [&d_hidden, &d_mtp], gradients, mode);
    ([loss, further_loss], loads)
}

fn norm(values: &[f32]) -> f32 {
    values.iter().map(|v| v * v).sum::<f32>().sqrt()
}

fn check(name: &str) {
    let source = Source::open(&fixture(name)).unwrap();
    let config = source.config().unwrap();
    let weights = Weights::read(&source, &config).unwrap();
    let (purpose, pool) = (Purpose::WholeTraining, Pool::new(2));
    let decoder = Decoder::of_weights(&pool, &config, Precision::F32, purpose, &weights);
    let bytes = std::fs::read(fixture(name).join("gradients.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let batch = batch(&file);
    let mut gradients = Weights::zeros(&config);
    // What stands there is replaced.
    gradients.tensors_mut(&config).into_iter().for_each(|(_, values)| values.fill(7.0));
    let mut again = gradients.clone();
    let replace = Output::Replace;
    let (loss, loads) = run(&decoder, &pool, &batch, &mut gradients, replace, Keep::All);
    if !loads.is_empty() {
        assert_eq!(loads, integers(&file, "loads"), "{name}: tokens of each expert");
    }
    let mut expected = floats(&file, "loss");
    expected.extend(if config.mtp { floats(&file, "mtp_loss") } else { vec![0.0] });
    let near = loss.iter().zip(&expected).all(|(loss, expected)| (loss - expected).abs() < 1e-4);
    assert!(near, "{name}: losses {loss:?}, not {expected:?}");
    for (TensorInfo { name: tensor, .. }, found) in gradients.tensors(&config) {
        if tensor.ends_with("e_score_correction_bias") {
            continue;
        }
        let wanted = floats(&file, &tensor);
        let difference: Vec<f32> = found.iter().zip(&wanted).map(|(f, w)| f - w).collect();
        // An expert without tokens has no gradient.
        let relative = norm(&difference) / norm(&wanted).max(1e-6);
        assert!(relative < 1e-3, "{name}: {tensor}: off by {relative} of its norm");
    }
    run(&decoder, &pool, &batch, &mut again, replace, Keep::Inputs);
    assert!(gradients == again, "{name}: layers computed again give other gradients");
    let mut twice = gradients.clone();
    run(&decoder, &pool, &batch, &mut twice, Output::Add, Keep::All);
    for ((info, once), (_, twice)) in gradients.tensors(&config).iter().zip(twice.tensors(&config))
    {
        let difference: Vec<f32> = once.iter().zip(twice).map(|(o, t)| 2.0 * o - t).collect();
        let fits = norm(&difference) <= 1e-5 * norm(once) || info.name.ends_with("bias");
        assert!(fits, "{name}: {} is not added to", info.name);
    }
}

#[test]
fn gradients_of_dense_models_agree_with_transformers() {
    check("llama");
    check("llama_untied");
}

#[test]
fn gradients_of_families_agree_with_transformers() {
    FAMILIES.iter().for_each(|family| check(family));
}

#[test]
fn gradients_of_the_token_after_the_next_agree_with_transformers() {
    for name in ["glm4_moe_mtp", "deepseek_v3_mtp"] {
        assert!(Source::open(&fixture(name)).unwrap().config().unwrap().mtp);
        check(name);
    }
}

/// A sequence of three tokens or fewer has one row for the block, or none.
#[test]
fn short_sequences_have_no_token_after_the_next() {
    let source = Source::open(&fixture("glm4_moe_mtp")).unwrap();
    let config = source.config().unwrap();
    let weights = Weights::read(&source, &config).unwrap();
    let (purpose, pool) = (Purpose::WholeTraining, Pool::new(1));
    let decoder = Decoder::of_weights(&pool, &config, Precision::F32, purpose, &weights);
    let gradients = |sequences: &[&[u32]]| {
        let mut gradients = Weights::zeros(&config);
        gradients.tensors_mut(&config).into_iter().for_each(|(_, values)| values.fill(7.0));
        let batch = Batch::of(sequences.iter().copied());
        let (losses, _) = run(&decoder, &pool, &batch, &mut gradients, Output::Replace, Keep::All);
        (losses, gradients.mtp.unwrap())
    };
    let ([_, none], short) = gradients(&[&[5, 6], &[7, 8]]);
    assert_eq!(none, 0.0);
    assert!([&short.project, &short.norm, &short.layer.qkv].iter().all(|g| norm(g) == 0.0));
    let ([_, among], long) = gradients(&[&[5, 6], &[7, 8, 9]]);
    let ([_, alone], _) = gradients(&[&[7, 8, 9]]);
    assert!(among == alone && norm(&long.project) > 0.0, "{among} and {alone}");
}

#[test]
fn gradients_do_not_depend_on_the_threads() {
    let decoder = load("glm4_moe", Purpose::WholeTraining).decoder;
    let bytes = std::fs::read(fixture("glm4_moe").join("gradients.safetensors")).unwrap();
    let batch = batch(&SafeTensors::deserialize(&bytes).unwrap());
    let gradients = |threads: usize| {
        let mut gradients = Weights::zeros(decoder.config());
        let pool = Pool::new(threads);
        run(&decoder, &pool, &batch, &mut gradients, Output::Replace, Keep::All);
        gradients
    };
    assert!(gradients(1) == gradients(3));
}

#[test]
fn weights_are_read_and_written_whole() {
    for name in ["llama", "glm4_moe_mtp"].iter().chain(&FAMILIES) {
        let source = Source::open(&fixture(name)).unwrap();
        let config = source.config().unwrap();
        let weights = Weights::read(&source, &config).unwrap();
        assert_eq!(
            weights.parameters(),
            config.tensors().iter().map(TensorInfo::len).sum::<usize>()
        );
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("weights.safetensors");
        weights.write_file(&config, &path).unwrap();
        assert!(Weights::read_file(&config, &path).unwrap() == weights);
        let other = Source::open(&fixture("llama_untied")).unwrap().config().unwrap();
        assert!(Weights::read_file(&other, &path).is_err(), "another model's file");
    }
}

#[test]
fn what_cannot_be_trained_whole_is_refused() {
    let path = fixture("granitemoeshared");
    let model = model::Model::load_for(Purpose::WholeTraining, &path, Precision::F32);
    insta::assert_snapshot!(crate::message(model, &crate::fixtures()), @"granitemoeshared: a joined model is trained expert by expert, not as a whole");
}

/// The balance loss alone: with no gradient from the output, that of its sum is left.
#[test]
fn the_balance_loss_reaches_all_that_the_router_reads() {
    let source = Source::open(&fixture("glm4_moe")).unwrap();
    let config = source.config().unwrap();
    let weights = Weights::read(&source, &config).unwrap();
    let bytes = std::fs::read(fixture("glm4_moe").join("gradients.safetensors")).unwrap();
    let batch = batch(&SafeTensors::deserialize(&bytes).unwrap());
    let pool = Pool::new(2);
    let layers = config.layers - config.routing.unwrap().dense_layers;
    let run = |weights: &Weights, gradients: Option<&mut Weights>| {
        let purpose = Purpose::WholeTraining;
        let decoder = Decoder::of_weights(&pool, &config, Precision::F32, purpose, weights);
        let mut tape =
            decoder.train_forward(&pool, &batch, decoder.train_stem(&pool, &batch), Keep::Inputs);
        let loss = decoder.balance_sequences(&pool, &batch, &mut tape, 1.0).unwrap();
        if let Some(gradients) = gradients {
            let zero = vec![0.0; tape.hidden.len()];
            let mode = Output::Add;
            decoder.train_backward_whole(&pool, &batch, tape, [&zero, &[]], gradients, mode);
        }
        loss * (layers * batch.tokens.len()) as f32
    };
    let mut gradients = Weights::zeros(&config);
    let loss = run(&weights, Some(&mut gradients));
    assert!(loss > 0.9 * (layers * batch.tokens.len()) as f32, "{loss}");
    // A step along a tensor's gradient changes the loss by its length, so small a step that no expert is
    // chosen instead of another.
    for part in ["router", "o_proj", "input_layernorm", "v_proj"] {
        let at = |step: f32| {
            let mut moved = weights.clone();
            let tensors = moved.tensors_mut(&config).into_iter().zip(gradients.tensors(&config));
            let mut length = 0.0;
            for ((info, values), (_, gradient)) in tensors {
                let found = info.name.replace("mlp.gate.weight", "router");
                if found.contains(part) && !info.name.contains("layers.1.") {
                    length += f64::from(norm(gradient));
                    let scale = step / norm(gradient).max(1e-9);
                    values.iter_mut().zip(gradient).for_each(|(v, g)| *v += scale * g);
                }
            }
            (f64::from(run(&moved, None)), length)
        };
        let step = 2e-4;
        let ((up, length), (down, _)) = (at(step), at(-step));
        let numeric = (up - down) / f64::from(2.0 * step);
        assert!(length > 0.0, "{part} has no gradient");
        assert!((numeric / length - 1.0).abs() < 0.05, "{part}: {numeric}, not {length}");
    }
}
