//! Training on the tiny checkpoint of the model crate.

use std::path::{Path, PathBuf};

use kernel::{Pool, Precision};
use model::{ExpertSet, ExpertWeights, Input, KvCache, Message, Model, Purpose};
use train::join::{Member, join};
use train::{
    EXPERT_FILE, Error, Job, Language, Material, Optimizer, Options, Progress, Sample, Summary,
    train_expert,
};

fn tiny(purpose: Purpose) -> Model {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/tests/fixtures/llama");
    Model::load_for(purpose, &path, Precision::F32).unwrap()
}

fn samples(model: &Model, material: &[Material], options: &Options) -> Result<Vec<Sample>, Error> {
    let language = Language { tokenizer: &model.tokenizer, template: &model.template };
    train::samples(language, material, &options.reading())
}

fn options() -> Options {
    Options {
        width: 8,
        first_layer: 0.4,
        learning_rate: 5e-3,
        passes: 4,
        batch_tokens: 96,
        sequence_tokens: 64,
        checkpoint_seconds: 0,
        ..Options::default()
    }
}

fn message(role: &str, content: &str) -> Message {
    Message { role: role.into(), content: content.into() }
}

fn material() -> Vec<Material> {
    let mut material =
        vec![Material::Document("The red valve of line 2 is checked every 12 weeks. ".repeat(4))];
    for (part, weeks) in [("red valve", 12), ("blue pump", 7), ("grey filter", 30)] {
        material.push(Material::Text(format!("The {part} is checked every {weeks} weeks.")));
        material.push(Material::Chat(vec![
            message("user", &format!("How often is the {part} checked?")),
            message("assistant", &format!("Every {weeks} weeks.")),
        ]));
    }
    material
}

fn negatives() -> Vec<Vec<u32>> {
    (0..4).map(|i| (0..20).map(|t| (i * 31 + t * 7) % 250).collect()).collect()
}

fn run(folder: &Path, threads: usize, options: &Options, stop: usize) -> Result<Summary, Error> {
    let mut model = tiny(Purpose::Training);
    let samples = samples(&model, &material(), options)?;
    let pool = Pool::new(threads);
    let mut done = 0;
    let negatives = negatives();
    let job = Job { name: "line", folder, samples: &samples, negatives: &negatives, options };
    train_expert(&job, &pool, &mut model.decoder, &mut |_: &Progress| {
        done += 1;
        assert!(done != stop, "stopped by the test");
    })
}

#[test]
fn training_lowers_the_loss_and_reports_what_it_did() {
    for optimizer in [Optimizer::Muon, Optimizer::AdamW] {
        lowers_the_loss(optimizer);
    }
}

fn lowers_the_loss(optimizer: Optimizer) {
    let folder = tempfile::tempdir().unwrap();
    let options =
        Options { optimizer, learning_rate: 0.05, passes: 12, kl_weight: 0.1, ..options() };
    let summary = run(folder.path(), 2, &options, 0).unwrap();
    let lines: Vec<Progress> = store::lines::read(&folder.path().join("metrics.jsonl")).unwrap();
    assert_eq!(lines.len(), summary.steps);
    assert!(lines.iter().enumerate().all(|(i, l)| l.step == i + 1 && l.steps == summary.steps));
    assert!(summary.loss < lines[0].loss - 0.3, "{} to {}", lines[0].loss, summary.loss);
    assert_eq!(lines[0].kl, Some(0.0), "an untrained expert changes nothing");
    let names: Vec<_> = std::fs::read_dir(folder.path())
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    // The expert, its figures, and these for TensorBoard.
    assert_eq!(names.len(), 3, "no checkpoint stays: {names:?}");
}

#[test]
fn a_softened_document_is_not_learned_by_heart() {
    let document = [material().swap_remove(0)];
    let loss = |document_kl: f32| {
        let folder = tempfile::tempdir().unwrap();
        let options = Options { document_kl, learning_rate: 0.05, passes: 40, ..options() };
        let mut model = tiny(Purpose::Training);
        let samples = samples(&model, &document, &options).unwrap();
        assert!(samples.iter().all(|sample| sample.softened == (document_kl > 0.0)));
        let job = Job {
            name: "line",
            folder: folder.path(),
            samples: &samples,
            negatives: &[],
            options: &options,
        };
        train_expert(&job, &Pool::new(1), &mut model.decoder, &mut |_: &Progress| {}).unwrap().loss
    };
    let (hard, soft, base) = (loss(0.0), loss(2.0), loss(100.0));
    assert!(hard + 0.3 < soft && soft + 0.3 < base, "{hard}, {soft}, {base}");
}

#[test]
fn a_stopped_run_continues_to_the_same_bits_on_any_number_of_threads() {
    let whole = tempfile::tempdir().unwrap();
    run(whole.path(), 1, &options(), 0).unwrap();
    let stopped = tempfile::tempdir().unwrap();
    for stop in [3, 4] {
        let result = std::panic::catch_unwind(|| run(stopped.path(), 2, &options(), stop));
        assert!(result.is_err(), "the run was stopped");
        assert!(!stopped.path().join(EXPERT_FILE).exists());
    }
    run(stopped.path(), 3, &options(), 0).unwrap();
    let read = |folder: &Path| std::fs::read(folder.join(EXPERT_FILE)).unwrap();
    assert!(read(whole.path()) == read(stopped.path()), "the weights differ");
    let steps = |folder: &Path| -> Vec<usize> {
        let lines: Vec<Progress> = store::lines::read(&folder.join("metrics.jsonl")).unwrap();
        lines.iter().map(|line| line.step).collect()
    };
    assert_eq!(steps(whole.path()), steps(stopped.path()), "each step is recorded once");
}

#[test]
fn only_answers_count_in_conversations() {
    let model = tiny(Purpose::Inference);
    let chat =
        [Material::Chat(vec![message("user", "How often?"), message("assistant", "Daily.")])];
    let sample = &samples(&model, &chat, &options()).unwrap()[0];
    let counted: Vec<u32> = sample
        .tokens
        .iter()
        .zip(&sample.weights)
        .filter(|(_, weight)| **weight > 0.0)
        .map(|(token, _)| *token)
        .collect();
    assert_eq!(model.tokenizer.decode(&counted).trim(), "Daily.");
    let end = counted.iter().any(|&t| model.config().eos.contains(&t));
    assert!(end, "the end of the turn is learned too");
}

fn refused(options: Options, material: &[Material]) -> String {
    let mut model = tiny(Purpose::Training);
    let folder = tempfile::tempdir().unwrap();
    let result = samples(&model, material, &options).and_then(|samples| {
        let (folder, options) = (folder.path(), &options);
        let job = Job { name: "a", folder, samples: &samples, negatives: &[], options };
        train_expert(&job, &Pool::new(1), &mut model.decoder, &mut |_| {})
    });
    result.unwrap_err().to_string()
}

#[test]
fn what_cannot_work_is_refused_with_the_value() {
    insta::assert_snapshot!(refused(options(), &[]), @"nothing to learn from: 0 texts and examples; add documents, or run `artel synth` again");
    insta::assert_snapshot!(refused(Options { width: 0, ..options() }, &material()), @"option width is 0; use 1 to 65536, 128 for instance");
    insta::assert_snapshot!(refused(Options { first_layer: 1.0, ..options() }, &material()), @"option first_layer is 1; use a share of the depth from 0 to below 1");
    insta::assert_snapshot!(refused(Options { batch_tokens: 32, ..options() }, &material()), @"option batch_tokens is 32 with sequence_tokens 64; a step must hold a sequence of at least 2 tokens");
    let question_only = [Material::Chat(vec![message("user", "Why?")])];
    insta::assert_snapshot!(refused(options(), &question_only), @"nothing to learn from: 1 texts and examples; add documents, or run `artel synth` again");
}

#[test]
fn a_rate_that_diverges_stops_with_a_clear_error() {
    let folder = tempfile::tempdir().unwrap();
    let options = Options { learning_rate: 0.99, clip: 1e30, passes: 60, ..options() };
    match run(folder.path(), 1, &options, 0) {
        Err(Error::NotFinite { learning_rate, .. }) => assert_eq!(learning_rate, 0.99),
        Ok(summary) => assert!(summary.loss.is_finite()),
        Err(other) => panic!("{other}"),
    }
}

fn rows(model: &Model, experts: ExpertSet) -> Vec<f32> {
    let tokens = model.tokenizer.encode_plain("The red valve is checked").unwrap();
    let mut cache = KvCache::new(model.config());
    let input = Input { tokens: &tokens, cache: &mut cache, experts };
    model.decoder.forward(&Pool::new(1), &mut [input]).rows
}

fn expert(folder: &Path, name: &str, scale: f32) -> Member {
    let mut weights = ExpertWeights::zeros(3, 0..3, 32, 8);
    for (tensor, values) in weights.tensors_mut().enumerate() {
        for (i, value) in values.iter_mut().enumerate() {
            *value = ((i * 7 + tensor * 3) as f32).sin() * scale;
        }
    }
    let folder = folder.join(name);
    std::fs::create_dir_all(&folder).unwrap();
    weights.write(&folder.join(EXPERT_FILE)).unwrap();
    Member { name: name.into(), folder }
}

#[test]
fn joined_experts_are_used_where_permitted_only() {
    let root = tempfile::tempdir().unwrap();
    let base: PathBuf = std::fs::canonicalize(
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/tests/fixtures/llama"),
    )
    .unwrap();
    let members = [expert(root.path(), "a", 0.3), expert(root.path(), "b", 0.5)];
    let folder = |name: &str| {
        let folder = root.path().join(name);
        std::fs::create_dir_all(&folder).unwrap();
        folder
    };
    let (both, only_a) = (folder("both"), folder("only-a"));
    join(&both, &base, &members).unwrap();
    join(&only_a, &base, &members[..1]).unwrap();
    let load = |folder: &Path| Model::load(folder, Precision::F32).unwrap();
    let (joined, rest) = (load(&both), load(&only_a));
    assert_eq!(joined.config().experts.as_ref().unwrap().names, ["a", "b"]);

    let reference = rows(&tiny(Purpose::Inference), ExpertSet::NONE);
    assert_eq!(rows(&joined, ExpertSet::NONE), reference, "none permitted: the base");
    assert_eq!(rows(&rest, ExpertSet::NONE), reference);
    assert_eq!(rows(&joined, ExpertSet::single(0)), rows(&rest, ExpertSet::single(0)));
    assert_ne!(rows(&joined, ExpertSet::single(0)), reference);
    assert_ne!(rows(&joined, ExpertSet::single(1)), rows(&joined, ExpertSet::single(0)));
}

#[test]
fn joining_refuses_what_it_cannot_keep_apart() {
    let root = tempfile::tempdir().unwrap();
    let a = expert(root.path(), "a", 0.1);
    let twice = join(root.path(), Path::new("base"), &[a.clone(), a]).unwrap_err();
    insta::assert_snapshot!(twice, @"expert a: is named twice");
}
