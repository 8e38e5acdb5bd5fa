use model::{Family, Source};
use serde_json::{Value, json};

use crate::decoder::FAMILIES;
use crate::{copy, fixtures, message};

fn open(name: &str) -> model::Config {
    Source::open(&fixtures().join(name)).unwrap().config().unwrap()
}

#[test]
fn reads_what_transformers_wrote() {
    let config = open("llama");
    assert_eq!(config.family, Family::Llama);
    assert_eq!((config.vocab, config.hidden, config.layers), (300, 32, 3));
    assert_eq!((config.heads, config.kv_heads, config.head_dim), (4, 2, 8));
    assert_eq!((config.intermediate, config.context), (64, 256));
    assert_eq!((config.norm_eps, config.rope.theta), (1e-5, 5000.0));
    assert_eq!((config.bos, config.eos.as_slice()), (Some(1), [2].as_slice()));
    assert!(config.tied_embeddings && !open("llama_untied").tied_embeddings);

    let config = open("granitemoeshared");
    let experts = config.experts.unwrap();
    assert_eq!((config.intermediate, experts.width), (32, 16));
    assert_eq!(experts.names, ["maintenance", "sales"]);
}

#[test]
fn has_every_tensor_of_its_layout_in_its_shape() {
    for name in ["llama", "llama_untied", "granitemoeshared"].iter().chain(&FAMILIES) {
        let source = Source::open(&fixtures().join(name)).unwrap();
        for info in source.config().unwrap().tensors() {
            let (rows, cols) = info.rows_cols();
            assert!(source.has(&info.name), "{name}: {}", info.name);
            source.matrix(&info.name, rows, cols).unwrap();
        }
    }
}

#[test]
fn reads_the_keys_that_older_files_have() {
    let folder = copy("llama");
    let path = folder.path().join("config.json");
    let mut json: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let object = json.as_object_mut().unwrap();
    for key in ["rope_parameters", "head_dim", "attention_bias", "num_key_value_heads"] {
        object.remove(key);
    }
    object.insert("rope_theta".into(), json!(777));
    object.insert("rope_scaling".into(), Value::Null);
    object.insert("eos_token_id".into(), json!([2, 0]));
    std::fs::write(&path, json.to_string()).unwrap();
    let config = Source::open(folder.path()).unwrap().config().unwrap();
    assert_eq!((config.rope.theta, config.head_dim, config.kv_heads), (777.0, 8, 4));
    assert_eq!(config.eos, [2, 0]);
}

/// The error that a changed `config.json` gives; `null` takes a key away.
fn refuse(fixture: &str, key: &str, value: Value) -> String {
    let folder = copy(fixture);
    let path = folder.path().join("config.json");
    let mut json: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    json[key] = value;
    std::fs::write(&path, json.to_string()).unwrap();
    message(Source::open(folder.path()), folder.path())
}

#[test]
fn refuses_what_the_decoder_would_compute_wrongly() {
    let cases = [
        ("llama", "model_type", json!("mamba")),
        ("llama", "model_type", json!(null)),
        ("llama", "architectures", json!(["LlamaForSequenceClassification"])),
        ("llama", "hidden_act", json!("gelu")),
        ("llama", "attention_bias", json!(true)),
        ("llama", "mlp_bias", json!(true)),
        ("llama", "sliding_window", json!(4096)),
        ("llama", "quantization_config", json!({ "bits": 4 })),
        ("qwen2", "use_sliding_window", json!(true)),
        ("qwen2", "rope_parameters", json!({ "rope_type": "llama3", "factor": 8.0 })),
        ("qwen2", "rope_parameters", json!({ "rope_type": "longrope", "factor": 8.0 })),
        ("qwen2", "rope_parameters", json!({ "rope_type": "linear", "factor": 0.0 })),
        ("olmoe", "clip_qkv", json!(8.0)),
        ("granitemoe", "residual_multiplier", json!(0.0)),
        ("gemma3_text", "layer_types", json!(["full_attention", "sliding_attention"])),
        ("gemma3_text", "hidden_activation", json!("gelu")),
        ("gemma3_text", "final_logit_softcapping", json!(30.0)),
        ("deepseek_v2", "norm_topk_prob", json!(true)),
        ("deepseek_v2", "v_head_dim", json!(16)),
        ("deepseek_v3", "n_group", json!(4)),
        ("deepseek_v3", "topk_group", json!(9)),
        ("deepseek_v3", "first_k_dense_replace", json!(3)),
        ("deepseek_v3", "attention_bias", json!(true)),
        ("llama", "rope_parameters", json!({ "rope_theta": 1e4, "partial_rotary_factor": 0.5 })),
        ("granitemoeshared", "embedding_multiplier", json!(12.0)),
        ("granitemoeshared", "residual_multiplier", json!(0.22)),
        ("granitemoeshared", "logits_scaling", json!(6.0)),
        ("granitemoeshared", "attention_multiplier", json!(0.015625)),
        ("granitemoeshared", "artel", json!(null)),
        ("granitemoeshared", "artel", json!({ "experts": [] })),
        ("granitemoeshared", "artel", json!({ "experts": ["sales", "sales"] })),
        ("granitemoeshared", "artel", json!({ "experts": ["sales"] })),
        ("granitemoeshared", "num_experts_per_tok", json!(1)),
    ];
    let messages: Vec<String> =
        cases.into_iter().map(|(fixture, key, value)| refuse(fixture, key, value)).collect();
    insta::assert_snapshot!(messages.join("\n"));
}

#[test]
fn refuses_sizes_that_are_missing_absurd_or_contradictory() {
    let cases = [
        ("hidden_size", json!(null)),
        ("hidden_size", json!(-32)),
        ("hidden_size", json!("wide")),
        ("num_hidden_layers", json!(0)),
        ("num_hidden_layers", json!(u64::MAX)),
        ("vocab_size", json!(1e30)),
        ("num_attention_heads", json!(0)),
        ("num_key_value_heads", json!(3)),
        ("head_dim", json!(7)),
        ("rms_norm_eps", json!(0.0)),
        ("rope_parameters", json!({ "rope_theta": -1.0 })),
        ("eos_token_id", json!(300)),
        ("eos_token_id", json!("end")),
        ("tie_word_embeddings", json!("yes")),
    ];
    let messages: Vec<String> =
        cases.into_iter().map(|(key, value)| refuse("llama", key, value)).collect();
    insta::assert_snapshot!(messages.join("\n"));
}

#[test]
fn says_what_is_no_model() {
    let folder = tempfile::tempdir().unwrap();
    let mut messages = vec![message(Source::open(folder.path()), folder.path())];
    std::fs::write(folder.path().join("config.json"), "{ \"model_type\": ").unwrap();
    messages.push(message(Source::open(folder.path()), folder.path()));
    std::fs::write(folder.path().join("config.json"), "[]").unwrap();
    messages.push(message(Source::open(folder.path()), folder.path()));
    messages.push(message(Source::open(&folder.path().join("nowhere")), folder.path()));
    let shown = messages.join("\n").replace(&folder.path().display().to_string(), "FOLDER");
    insta::assert_snapshot!(shown);
}
