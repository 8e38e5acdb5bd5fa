//! Training of whole models from random weights, on the tokenizer of the model crate's checkpoint.

use std::path::Path;

use kernel::{Pool, Precision};
use model::{ExpertSet, Input, KvCache, Model, Purpose, Source};
use train::scratch::{Options, sequences, train};
use train::whole::{Balance, Job, Progress, Summary};
use train::{Error, Optimizer, Sample, Shape};

fn base() -> Source {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/tests/fixtures/llama");
    Source::open(&path).unwrap()
}

fn options(experts: usize) -> Options {
    Options {
        hidden: 32,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        context: 48,
        width: 16,
        experts,
        top_k: 2,
        expert_width: 8,
        learning_rate: 1e-2,
        passes: 6,
        batch_tokens: 160,
        micro_batch_tokens: 96,
        checkpoint_seconds: 0,
        ..Options::default()
    }
}

fn texts() -> Vec<String> {
    let line = |n: usize| format!("The red valve of line {n} is checked every {} weeks. ", n + 3);
    (0..12).map(|n| line(n).repeat(3)).collect()
}

fn samples(options: &Options) -> Result<Vec<Sample>, Error> {
    let (samples, bytes) = sequences(&base().tokenizer().unwrap(), &texts(), Some(2), options)?;
    assert!(options.tokens > 0 || bytes == texts().concat().len());
    Ok(samples)
}

/// Trains with `precision` until the step `stop`, where the test stops it; 0 is never.
fn run(
    folder: &Path,
    threads: usize,
    precision: Precision,
    options: &Options,
    stop: usize,
) -> Result<Summary, Error> {
    let base = base();
    let (tokenizer, template) = (base.tokenizer().unwrap(), base.template().unwrap());
    let of_base = base.config().unwrap();
    let config = options.config(of_base.vocab, of_base.bos, of_base.eos);
    let samples = samples(options)?;
    let job = Job {
        name: "own",
        folder,
        config: &config,
        tokenizer: &tokenizer,
        template: &template,
        samples: &samples,
    };
    train(&job, options, &Pool::new(threads), precision, &mut |at: &Progress| {
        assert!(at.step != stop, "stopped by the test");
    })
}

fn lines(folder: &Path) -> Vec<Progress> {
    store::lines::read(&folder.join("metrics.jsonl")).unwrap()
}

#[test]
fn a_model_is_trained_and_can_be_loaded() {
    for (experts, optimizer, schedule, state_bits) in [
        (0, Optimizer::Muon, Shape::Wsd, 32),
        (4, Optimizer::Muon, Shape::Cosine, 8),
        (4, Optimizer::AdamW, Shape::Wsd, 32),
        (4, Optimizer::AdamW, Shape::Wsd, 8),
    ] {
        let options = Options { optimizer, schedule, state_bits, ..options(experts) };
        let folder = tempfile::tempdir().unwrap();
        let summary = run(folder.path(), 2, Precision::best(), &options, 0).unwrap();
        let lines = lines(folder.path());
        assert_eq!(lines.len(), summary.steps);
        // Of 300 tokens, 5.7 nats by chance.
        assert!((lines[0].loss - 5.7).abs() < 0.3, "begins at {}", lines[0].loss);
        assert!(summary.loss < 2.5, "{optimizer:?}, {experts} experts: ends at {}", summary.loss);
        assert!(lines.iter().all(|line| line.balance.is_some() == (experts > 0)));

        let model = Model::load(folder.path(), Precision::F32).unwrap();
        assert_eq!(model.config().routing.is_some(), experts > 0);
        let tokens = model.tokenizer.encode_plain("The red valve of line 4 is").unwrap();
        let mut cache = KvCache::new(model.config());
        let input = Input { tokens: &tokens, cache: &mut cache, experts: ExpertSet::NONE };
        let pool = Pool::new(1);
        let rows = model.decoder.forward(&pool, &mut [input]).rows;
        let last = &rows[rows.len() - options.hidden..];
        let logits = model.decoder.logits(&pool, last);
        let best = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap();
        let next = model.tokenizer.decode(&[best as u32]);
        assert!(" checked".starts_with(&next), "it says {next:?}");
        assert!(!folder.path().join("checkpoint.tmp").exists());
    }
}

#[test]
fn a_block_learns_the_token_after_the_next() {
    let options = Options { mtp: 0.3, ..options(4) };
    let folder = tempfile::tempdir().unwrap();
    let summary = run(folder.path(), 2, Precision::best(), &options, 0).unwrap();
    let lines = lines(folder.path());
    let further = |line: &Progress| line.mtp_loss.unwrap();
    let (first, last) = (further(&lines[0]), further(&lines[lines.len() - 1]));
    assert!((first - 5.7).abs() < 0.3 && last < 3.0, "from {first} to {last}");
    assert!(summary.loss < 2.5, "ends at {}", summary.loss);
    // Balanced as the layers are.
    let source = Source::open(folder.path()).unwrap();
    let config = source.config().unwrap();
    assert!(config.mtp && config.layers == 2);
    let bias = source.vector("model.layers.2.mlp.gate.e_score_correction_bias", 4).unwrap();
    assert!(bias.iter().any(|bias| *bias != 0.0));
    // Who does not generate text leaves it out.
    let load = |purpose| Model::load_for(purpose, folder.path(), Precision::F32).unwrap();
    assert!(load(Purpose::Generation).config().mtp);
    assert!(!load(Purpose::Inference).config().mtp);
}

#[test]
fn a_stopped_run_continues_to_the_same_bits_on_any_number_of_threads() {
    let adamw = Options { optimizer: Optimizer::AdamW, ..options(0) };
    let runs = [
        options(4),
        Options { mtp: 0.3, ..options(4) },
        adamw.clone(),
        Options { state_bits: 8, ..adamw },
    ];
    for options in runs {
        let options = Options { passes: 2, ..options };
        let whole = tempfile::tempdir().unwrap();
        run(whole.path(), 1, Precision::best(), &options, 0).unwrap();
        let stopped = tempfile::tempdir().unwrap();
        for stop in [3, 4] {
            let result = std::panic::catch_unwind(|| {
                run(stopped.path(), 2, Precision::best(), &options, stop)
            });
            assert!(result.is_err(), "the run was stopped");
            assert!(!stopped.path().join("model.safetensors").exists());
        }
        run(stopped.path(), 3, Precision::best(), &options, 0).unwrap();
        let read = |folder: &Path| std::fs::read(folder.join("model.safetensors")).unwrap();
        assert!(read(whole.path()) == read(stopped.path()), "the weights differ");
        let steps: Vec<usize> = lines(stopped.path()).iter().map(|line| line.step).collect();
        assert_eq!(steps, (1..=steps.len()).collect::<Vec<_>>(), "each step is recorded once");
    }
}

#[test]
fn gradients_of_micro_batches_add_up() {
    let first_loss = |micro_batch_tokens: usize| {
        let options = Options { micro_batch_tokens, mtp: 0.3, passes: 1, ..options(4) };
        let folder = tempfile::tempdir().unwrap();
        run(folder.path(), 1, Precision::F32, &options, 0).unwrap();
        let line = lines(folder.path()).swap_remove(0);
        ([line.loss, line.mtp_loss.unwrap()], line.gradient_norm, line.balance.unwrap())
    };
    let (whole, parts) = (first_loss(1 << 20), first_loss(48));
    let mut losses = whole.0.iter().zip(parts.0);
    assert!(losses.all(|(w, p)| (w - p).abs() < 1e-4), "losses {:?} and {:?}", whole.0, parts.0);
    assert!((whole.1 / parts.1 - 1.0).abs() < 1e-3, "norms {} and {}", whole.1, parts.1);
    let loads = |balance: Balance| (balance.max_violation, balance.idle);
    assert_eq!(loads(whole.2), loads(parts.2), "loads are counted over the step");
    let sequence = whole.2.sequence - parts.2.sequence;
    assert!(sequence.abs() < 1e-4, "{:?} and {:?}", whole.2, parts.2);
}

#[test]
fn the_balance_loss_spreads_each_sequence_over_the_experts() {
    let last = |sequence_balance: f32| {
        let options = Options { sequence_balance, balance_rate: 0.0, ..options(4) };
        let folder = tempfile::tempdir().unwrap();
        run(folder.path(), 2, Precision::best(), &options, 0).unwrap();
        lines(folder.path()).pop().unwrap().balance.unwrap().sequence
    };
    let (without, with) = (last(0.0), last(1.0));
    assert!(with < without - 0.01 && with < 1.1, "{without} without the loss, {with} with it");
}

#[test]
fn experts_that_are_not_used_raise_an_alarm() {
    // One expert for each token, of 64, in steps of 48 tokens.
    let options = Options {
        experts: 64,
        top_k: 1,
        batch_tokens: 48,
        micro_batch_tokens: 48,
        passes: 1,
        ..options(64)
    };
    let folder = tempfile::tempdir().unwrap();
    let summary = run(folder.path(), 1, Precision::best(), &options, 0).unwrap();
    assert!(summary.alarms[0].contains("got no token"), "{:?}", summary.alarms);
}

#[test]
fn as_many_tokens_are_drawn_as_asked_for() {
    let tokens = |samples: &[Sample]| samples.iter().map(|s| s.tokens.len()).sum::<usize>();
    let drawn = |seed, tokens| samples(&Options { seed, tokens, ..options(0) }).unwrap();
    let all = tokens(&samples(&options(0)).unwrap());
    assert_eq!(tokens(&drawn(1, 200)), 200);
    assert_eq!(tokens(&drawn(1, all + 1)), all);
    assert_ne!(drawn(1, 200), drawn(2, 200));
    let (some, more) = (drawn(1, 200), drawn(1, 300));
    let same = some.iter().zip(&more).take_while(|(a, b)| a == b).count();
    assert!(same + 1 >= some.len(), "more tokens hold the fewer");
}

#[test]
fn what_cannot_work_is_refused_with_the_value() {
    let refused = |options: Options| {
        let folder = tempfile::tempdir().unwrap();
        run(folder.path(), 1, Precision::F32, &options, 0).unwrap_err().to_string()
    };
    insta::assert_snapshot!(refused(Options { heads: 5, ..options(0) }), @"option hidden is 32; each of 5 heads must have the same even size");
    insta::assert_snapshot!(refused(Options { top_k: 5, ..options(4) }), @"option top_k is 5 of 4 experts; use at least 1, and no more than there are");
    insta::assert_snapshot!(refused(Options { width: 12, ..options(4) }), @"option expert_width is 8 beside a width of 12; it must be even, and divide the width");
    insta::assert_snapshot!(refused(Options { batch_tokens: 8, ..options(0) }), @"option batch_tokens is 8 with context 48; a step must hold a sequence");
    insta::assert_snapshot!(refused(Options { state_bits: 16, ..options(0) }), @"option state_bits is 16; use 32, or 8");
    insta::assert_snapshot!(refused(Options { mtp: 0.3, ..options(0) }), @"option mtp is 0.3; no layout for dense models has the block; use experts, or 0");
    let none = sequences(&base().tokenizer().unwrap(), &[], None, &options(0));
    insta::assert_snapshot!(none.unwrap_err(), @"nothing to learn from: 0 texts; add documents, or run `artel synth` again");
}
