//! Tuning of the model crate's tiny checkpoints.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use kernel::{Pool, Precision};
use model::{ExpertSet, Input, KvCache, Message, Model, Source, Weights};
use serde_json::Value;
use train::tune::{ADAPTER_FOLDER, Method, Options, Score, replay, tune};
use train::whole::{Job, Progress, Summary};
use train::{Error, Language, Material, Optimizer};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/tests/fixtures").join(name)
}

fn options(method: Method) -> Options {
    Options {
        method,
        rank: 4,
        alpha: 8.0,
        share: 0.4,
        learning_rate: Some(1e-2),
        passes: 4,
        question_passes: 4,
        batch_tokens: 96,
        micro_batch_tokens: 64,
        sequence_tokens: 48,
        checkpoint_seconds: 0,
        ..Options::default()
    }
}

fn material() -> Vec<Material> {
    let message = |role: &str, content: String| Message { role: role.into(), content };
    let mut material = Vec::new();
    for (part, weeks) in [("red valve", 12), ("blue pump", 7), ("grey filter", 30)] {
        let text = format!("The {part} is checked every {weeks} weeks. ");
        material.push(Material::Document(text.repeat(3)));
        material.push(Material::Chat(vec![
            message("user", format!("How often is the {part} checked?")),
            message("assistant", format!("Every {weeks} weeks.")),
        ]));
    }
    material
}

/// Tunes until the step `stop`, where the test stops it; 0 is never.
fn run(
    base: &str,
    folder: &Path,
    threads: usize,
    options: &Options,
    stop: usize,
) -> Result<Summary, Error> {
    let source = Source::open(&fixture(base)).unwrap();
    let (tokenizer, template) = (source.tokenizer().unwrap(), source.template().unwrap());
    let language = Language { tokenizer: &tokenizer, template: &template };
    let samples = train::samples(language, &material(), &options.reading())?;
    let config = source.trainable_config().unwrap();
    let job = Job {
        name: "tuned",
        folder,
        config: &config,
        tokenizer: &tokenizer,
        template: &template,
        samples: &samples,
    };
    let weights = Weights::read(&source, &config).unwrap();
    let pool = Pool::new(threads);
    tune(&job, (base, weights), options, &pool, Precision::best(), &mut |at: &Progress| {
        assert!(at.step != stop, "stopped by the test");
    })
}

fn lines(folder: &Path) -> Vec<Progress> {
    store::lines::read(&folder.join("metrics.jsonl")).unwrap()
}

/// The names of the tensors that differ between two models, and the ranges of those that are stacked.
fn changed(base: &str, folder: &Path) -> BTreeSet<String> {
    let weights = |path: &Path| {
        let source = Source::open(path).unwrap();
        let config = source.trainable_config().unwrap();
        let weights = Weights::read(&source, &config).unwrap();
        (config, weights)
    };
    let ((config, before), (_, after)) = (weights(&fixture(base)), weights(folder));
    let mut names = BTreeSet::new();
    for ((info, before), (_, after)) in
        before.tensors(&config).into_iter().zip(after.tensors(&config))
    {
        let parts = if let [count, _, _] = info.shape[..] { count } else { 1 };
        let size = info.len() / parts;
        for (part, (before, after)) in before.chunks(size).zip(after.chunks(size)).enumerate() {
            if before != after {
                names.insert(if parts > 1 {
                    format!("{}.{part}", info.name)
                } else {
                    info.name.clone()
                });
            }
        }
    }
    names
}

fn falls(folder: &Path, summary: &Summary, what: &str) {
    let lines = lines(folder);
    assert_eq!(lines.len(), summary.steps);
    assert!(summary.loss < lines[0].loss - 0.2, "{what}: {} to {}", lines[0].loss, summary.loss);
    assert!(summary.alarms.is_empty(), "{what}: {:?}", summary.alarms);
    assert!(
        !std::fs::read_dir(folder).unwrap().any(|entry| {
            entry.unwrap().file_name().to_string_lossy().starts_with("checkpoint")
        })
    );
}

#[test]
fn all_weights_are_tuned() {
    for (base, optimizer) in [
        ("llama", Optimizer::AdamW),
        ("granitemoe", Optimizer::Muon),
        ("glm4_moe", Optimizer::AdamW),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let options = Options { optimizer, ..options(Method::Full) };
        let summary = run(base, folder.path(), 2, &options, 0).unwrap();
        falls(folder.path(), &summary, base);
        let changed = changed(base, folder.path());
        assert!(changed.iter().any(|name| name.contains("q_proj")), "{changed:?}");
        let bias = changed.iter().any(|name| name.contains("e_score_correction_bias"));
        assert!(!bias, "the balance of the base stays");
        let model = Model::load(folder.path(), Precision::F32).unwrap();
        let tokens = model.tokenizer.encode_plain("The red valve is checked every").unwrap();
        let mut cache = KvCache::new(model.config());
        let input = Input { tokens: &tokens, cache: &mut cache, experts: ExpertSet::NONE };
        model.decoder.forward(&Pool::new(1), &mut [input]);
    }
}

#[test]
fn an_adapter_is_tuned_beside_its_targets_alone() {
    for (base, optimizer) in [("llama", Optimizer::AdamW), ("qwen3_moe", Optimizer::Muon)] {
        let folder = tempfile::tempdir().unwrap();
        let targets = vec!["q_proj".to_string(), "o_proj".into()];
        let options = Options { optimizer, targets, ..options(Method::Lora) };
        let summary = run(base, folder.path(), 2, &options, 0).unwrap();
        falls(folder.path(), &summary, base);
        let changed = changed(base, folder.path());
        let targeted = |name: &String| name.contains("q_proj") || name.contains("o_proj");
        assert!(!changed.is_empty() && changed.iter().all(targeted), "{changed:?}");

        // The adapter on disk, merged with the base, is the model on disk.
        let [source, model] =
            [&fixture(base), folder.path()].map(|path| Source::open(path).unwrap());
        let adapter = folder.path().join(ADAPTER_FOLDER);
        assert!(replay(&Pool::new(1), &adapter, &source, &model).unwrap());
        assert!(!replay(&Pool::new(1), &adapter, &source, &source).unwrap(), "the base is another");
        let path = folder.path().join(ADAPTER_FOLDER).join("adapter_config.json");
        let written: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        assert_eq!(written["target_modules"], serde_json::json!(["o_proj", "q_proj"]));
        assert_eq!((&written["r"], &written["lora_alpha"]), (&4.into(), &8.0.into()));
    }
}

#[test]
fn no_targets_are_all_of_attention_and_feed_forward() {
    let folder = tempfile::tempdir().unwrap();
    run("llama", folder.path(), 1, &options(Method::Lora), 0).unwrap();
    let changed = changed("llama", folder.path());
    assert!(changed.iter().all(|name| name.ends_with("_proj.weight")), "{changed:?}");
    assert_eq!(changed.len() % 7, 0, "{changed:?}");
}

#[test]
fn experts_are_chosen_and_tuned_alone() {
    for (base, score) in [
        ("qwen3_moe", Score::Gate),
        ("granitemoe", Score::Token),
        ("mixtral", Score::Gate),
        ("deepseek_v3", Score::Token),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let options = Options { score, ..options(Method::Experts) };
        let summary = run(base, folder.path(), 2, &options, 0).unwrap();
        let file = std::fs::read(folder.path().join("expert_cfg.json")).unwrap();
        let written: Value = serde_json::from_slice(&file).unwrap();
        assert_eq!(written["shared_experts"], false);
        let layers = written["experts"].as_object().unwrap();
        let chosen: BTreeSet<(String, u64)> = layers
            .iter()
            .flat_map(|(layer, experts)| {
                experts.as_array().unwrap().iter().map(|e| (layer.clone(), e.as_u64().unwrap()))
            })
            .collect();
        let config = Source::open(&fixture(base)).unwrap().config().unwrap();
        let routing = config.routing.unwrap();
        assert_eq!(layers.len(), config.layers - routing.dense_layers);
        let routed = routing.experts * layers.len();
        assert!(chosen.len() < routed, "{base}: all {routed} experts");
        assert_eq!(summary.parameters, chosen.len() * 3 * routing.width * config.hidden, "{base}");
        for name in changed(base, folder.path()) {
            let parts: Vec<&str> = name.split('.').collect();
            let expert = match parts.iter().position(|part| *part == "experts") {
                Some(at) => parts[at + 1],
                None => parts.last().unwrap(),
            };
            let expert = (parts[2].to_string(), expert.parse().unwrap());
            assert!(chosen.contains(&expert), "{base}: {name} is not among {chosen:?}");
        }
        let lines = lines(folder.path());
        assert!(summary.loss < lines[0].loss, "{base}: {} to {}", lines[0].loss, summary.loss);
    }
}

#[test]
fn stopped_runs_continue_to_the_same_bits_on_any_number_of_threads() {
    for (base, method) in
        [("llama", Method::Full), ("llama", Method::Lora), ("granitemoe", Method::Experts)]
    {
        let options = Options { passes: 3, ..options(method) };
        let whole = tempfile::tempdir().unwrap();
        run(base, whole.path(), 1, &options, 0).unwrap();
        let stopped = tempfile::tempdir().unwrap();
        for stop in [3, 4] {
            let result = std::panic::catch_unwind(|| run(base, stopped.path(), 2, &options, stop));
            assert!(result.is_err(), "the run was stopped");
            assert!(!stopped.path().join("model.safetensors").exists());
        }
        run(base, stopped.path(), 3, &options, 0).unwrap();
        let files = match method {
            Method::Full => &["model.safetensors"][..],
            Method::Lora => &["model.safetensors", "adapter/adapter_model.safetensors"],
            Method::Experts => &["model.safetensors", "expert_cfg.json"],
        };
        for file in files {
            let read = |folder: &Path| std::fs::read(folder.join(file)).unwrap();
            assert!(read(whole.path()) == read(stopped.path()), "{method:?}: {file} differs");
        }
        let steps: Vec<usize> = lines(stopped.path()).iter().map(|line| line.step).collect();
        assert_eq!(steps, (1..=steps.len()).collect::<Vec<_>>(), "each step is recorded once");
    }
}

#[test]
fn what_cannot_work_is_refused_with_the_value() {
    let refused = |base: &str, options: Options| {
        let folder = tempfile::tempdir().unwrap();
        run(base, folder.path(), 1, &options, 0).unwrap_err().to_string()
    };
    let (lora, experts) = (options(Method::Lora), options(Method::Experts));
    insta::assert_snapshot!(refused("llama", experts.clone()), @"option method is experts; the base has no experts of its own; use full or lora");
    insta::assert_snapshot!(refused("mixtral", Options { share: 0.0, ..experts }), @"option share is 0; use a share of the scores above 0, at most 1");
    insta::assert_snapshot!(refused("llama", Options { rank: 0, ..lora.clone() }), @"option rank is 0; use 1 to 4096, 16 for instance");
    insta::assert_snapshot!(refused("llama", Options { alpha: f32::NAN, ..lora.clone() }), @"option alpha is NaN; use a number above 0");
    let targets = vec!["q_proj".to_string(), "c_attn".into()];
    insta::assert_snapshot!(refused("llama", Options { targets, ..lora.clone() }), @"option targets is c_attn; the model's matrices are down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj");
    let targets = vec!["gate_proj".to_string()];
    insta::assert_snapshot!(refused("mixtral", Options { targets, ..lora.clone() }), @"option targets is gate_proj; the model's matrices are k_proj, o_proj, q_proj, v_proj");
    insta::assert_snapshot!(refused("llama", Options { batch_tokens: 8, ..lora.clone() }), @"option batch_tokens is 8 with sequence_tokens 48; a step must hold a sequence");
    let long = Options {
        sequence_tokens: 1 << 20,
        batch_tokens: 1 << 20,
        micro_batch_tokens: 1 << 20,
        ..lora.clone()
    };
    insta::assert_snapshot!(refused("llama", long), @"option sequence_tokens is 1048576; the base reads 256 tokens");
    insta::assert_snapshot!(refused("llama", Options { learning_rate: Some(2.0), ..lora }), @"option learning_rate is 2; use a rate between 0 and 1, 3e-3 for instance");
}
