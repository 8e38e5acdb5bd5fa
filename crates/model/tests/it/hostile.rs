//! Damaged files are refused or read, and never end the program.
//!
//! `ARTEL_HOSTILE_SECONDS=600 cargo test -p model --test it hostile -- --nocapture` tries for ten
//! minutes each.

use kernel::quant::Format;
use kernel::{Pool, Precision};
use model::{
    ChatTemplate, ExpertSet, Importance, Input, KvCache, Message, Mix, Model, Quantise, Source,
};

use crate::mutate::survives;
use crate::write::export;
use crate::{copy, fixtures};

/// As far as the first answer, where the file is taken for a model.
fn load(path: &std::path::Path) {
    let Ok(model) = Model::load(path, Precision::F32) else { return };
    let mut tokens = model.tokenizer.encode("Stop the pump.").unwrap_or_default();
    // What a request may not ask for is refused before it comes here.
    tokens.retain(|&token| (token as usize) < model.config().vocab);
    tokens.truncate(model.config().context);
    if !tokens.is_empty() {
        let mut cache = KvCache::new(model.config());
        let input = Input { tokens: &tokens, cache: &mut cache, experts: ExpertSet::all(2) };
        let rows = model.decoder.forward(&Pool::new(1), &mut [input]).rows;
        let _ = model.decoder.logits(&Pool::new(1), &rows);
    }
}

#[test]
fn gguf() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let source = Source::open(&fixtures().join("llama")).unwrap();
    for format in [Format::F32, Format::Q8_0] {
        export(&source, format, &path).unwrap();
        let whole = std::fs::read(&path).unwrap();
        survives(&format!("GGUF, {format:?}"), &whole, |bytes| {
            std::fs::write(&path, bytes).unwrap();
            load(&path);
        });
    }
    // Every format of few bits, scores of pieces, and a tokenizer that puts spaces before texts.
    let whole = std::fs::read(fixtures().join("low_bits/low_bits.gguf")).unwrap();
    survives("GGUF of few bits", &whole, |bytes| {
        std::fs::write(&path, bytes).unwrap();
        load(&path);
    });
}

#[test]
fn quantising() {
    let folder = tempfile::tempdir().unwrap();
    let (from, to) = (folder.path().join("model.gguf"), folder.path().join("small.gguf"));
    let source = Source::open(&fixtures().join("granitemoeshared")).unwrap();
    export(&source, Format::F32, &from).unwrap();
    let whole = std::fs::read(&from).unwrap();
    let pool = Pool::new(1);
    survives("GGUF to be quantised", &whole, |bytes| {
        std::fs::write(&from, bytes).unwrap();
        let quantise = Quantise { mix: Mix::named("q4_k_m").unwrap(), importance: None };
        if quantise.write(&pool, &from, &to, &mut |_, _| {}).is_ok() {
            load(&to);
        }
        let _ = Importance::read(&from);
    });
}

#[test]
fn each_file_of_a_folder() {
    for file in ["model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"] {
        let folder = copy("granitemoeshared");
        let path = folder.path().join(file);
        let whole = std::fs::read(&path).unwrap();
        survives(file, &whole, |bytes| {
            std::fs::write(&path, bytes).unwrap();
            load(folder.path());
        });
    }
}

#[test]
fn experts() {
    let whole = std::fs::read(fixtures().join("experts.safetensors")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("expert.safetensors");
    survives("expert", &whole, |bytes| {
        std::fs::write(&path, bytes).unwrap();
        let _ = model::ExpertWeights::read(&path);
    });
}

#[test]
fn templates_and_what_is_said() {
    let source = Source::open(&fixtures().join("llama")).unwrap();
    let template = source.template().unwrap();
    let message = |content: &str| Message { role: "user".into(), content: content.into() };
    survives("chat template", template.source().as_bytes(), |bytes| {
        let text = String::from_utf8_lossy(bytes);
        if let Ok(template) = ChatTemplate::new(&text, "<s>", "</s>") {
            let _ = template.render(&[message("Stop the pump.")], true);
        }
    });
    let tokenizer = source.tokenizer().unwrap();
    let said = "<|im_start|>user\nStop {{ the }} pump \u{1f6d1} at 12:30.<|im_end|>\n</s>";
    survives("messages", said.as_bytes(), |bytes| {
        let text = String::from_utf8_lossy(bytes);
        let rendered = template.render(&[message(&text)], true).unwrap();
        let tokens = tokenizer.encode(&rendered).unwrap();
        let _ = tokenizer.decode(&tokens);
    });
}
