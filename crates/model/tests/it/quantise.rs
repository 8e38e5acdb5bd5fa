use std::path::Path;

use kernel::quant::Format;
use kernel::{Matrix, Pool, Precision};
use model::{
    ExpertSet, Export, Importance, Input, KvCache, Mix, Model, Purpose, Quantise, Source,
    StoredTensor, TensorInfo,
};

use crate::write::export;
use crate::{fixtures, message};

/// A fixture as a GGUF file of f32.
fn original(name: &str, folder: &Path) -> std::path::PathBuf {
    let path = folder.join(format!("{name}.gguf"));
    export(&Source::open(&fixtures().join(name)).unwrap(), Format::F32, &path).unwrap();
    path
}

fn quantise(
    mix: &str,
    importance: Option<&Importance>,
    from: &Path,
    to: &Path,
) -> Result<Vec<StoredTensor>, model::Error> {
    let mix = Mix::named(mix).unwrap();
    Quantise { mix, importance }.write(&Pool::new(2), from, to, &mut |_, _| {})
}

fn importance(path: &Path) -> Importance {
    let model = Model::load(path, Precision::F32).unwrap();
    let tokens: Vec<u32> = (0..200).map(|i| 3 + i * i % 250).collect();
    Importance::collect(&model.decoder, &Pool::new(2), &tokens, Some(1), &mut |_| {})
}

/// The squared difference of the weights, as a share of their squares.
fn error(a: &Source, b: &Source) -> f64 {
    let (mut sum, mut all) = (0.0, 0.0);
    for info in a.config().unwrap().tensors().iter().filter(|info| info.shape.len() > 1) {
        let (rows, cols) = info.rows_cols();
        let values = |source: &Source| source.matrix(&info.name, rows, cols).unwrap().to_f32();
        let pairs = values(a).into_iter().zip(values(b));
        for (a, b) in pairs {
            sum += f64::from(a - b).powi(2);
            all += f64::from(a).powi(2);
        }
    }
    sum / all
}

#[test]
fn a_quantised_file_is_the_same_model_in_fewer_bits() {
    for name in ["llama", "llama_untied", "granitemoeshared"] {
        let folder = tempfile::tempdir().unwrap();
        let from = original(name, folder.path());
        let source = Source::open(&from).unwrap();
        let mut last = 0.0;
        for mix in ["q8_0", "q5_1", "q5_0", "q4_1", "iq4_nl"] {
            let to = folder.path().join("small.gguf");
            let written = quantise(mix, None, &from, &to).unwrap();
            let small = Source::open(&to).unwrap();
            assert_eq!(small.config().unwrap(), source.config().unwrap());
            let json = |source: &Source| source.tokenizer().unwrap().json().to_owned();
            assert_eq!(json(&small), json(&source));
            assert_eq!(small.template().unwrap().source(), source.template().unwrap().source());
            let error = error(&source, &small);
            assert!(error > last, "{name}: {mix} has {error}, the one before {last}");
            last = error;
            let bytes: usize = written.iter().map(StoredTensor::bytes).sum();
            let file = std::fs::metadata(&to).unwrap().len() as usize;
            assert!(bytes < file && bytes > file / 2, "{bytes} of {file}");
            for tensor in written {
                let router = tensor.name.contains("ffn_gate_inp");
                let vector = tensor.shape.len() == 1;
                assert_eq!(tensor.kept, router || vector, "{}", tensor.name);
            }
        }
        // Sixteen levels for what is bell-shaped or even.
        assert!(last < 0.01, "{name}: {last}");
    }
}

#[test]
fn rows_that_do_not_fill_blocks_get_smaller_ones_and_a_second_time_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let from = original("llama", folder.path());
    let [first, second] = ["first", "second"].map(|name| folder.path().join(name));
    // Rows are shorter than the 256 values of a block.
    let written = quantise("q4_k_m", None, &from, &first).unwrap();
    for tensor in written.iter().filter(|tensor| !tensor.kept) {
        assert!(tensor.fell_back, "{}", tensor.name);
        assert!([Format::Q5_0, Format::Q8_0].contains(&tensor.format), "{}", tensor.name);
    }
    let written = quantise("q4_k_m", None, &first, &second).unwrap();
    assert!(written.iter().all(|tensor| tensor.kept));
    assert_eq!(std::fs::read(&first).unwrap(), std::fs::read(&second).unwrap());
}

#[test]
fn importance_knows_every_matrix_of_the_file_and_is_refused_with_another() {
    let folder = tempfile::tempdir().unwrap();
    for (name, matrices) in [("llama", 7), ("granitemoeshared", 10)] {
        let from = original(name, folder.path());
        let found = importance(&from);
        let layers = Source::open(&from).unwrap().config().unwrap().layers;
        assert_eq!(found.len(), matrices * layers + 1, "{name}");
        let to = folder.path().join("weighed.gguf");
        let plain = folder.path().join("plain.gguf");
        quantise("q4_0", Some(&found), &from, &to).unwrap();
        quantise("q4_0", None, &from, &plain).unwrap();
        assert_ne!(std::fs::read(&to).unwrap(), std::fs::read(&plain).unwrap(), "{name}");
    }
    // Its rows are eight times as long.
    let other = importance(&fixtures().join("low_bits"));
    let from = original("llama", folder.path());
    let to = folder.path().join("never.gguf");
    let refused = message(quantise("q4_0", Some(&other), &from, &to), folder.path());
    assert!(refused.contains("it is of another model"), "{refused}");
    assert!(!to.exists() && !to.with_extension("gguf.partial").exists());
}

#[test]
fn experts_beyond_the_memory_lie_in_a_file_and_give_the_same_bits() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["mixtral", "glm4_moe"] {
        // As the fixture, but with experts wide enough for tiles.
        let source = Source::open(&fixtures().join(name)).unwrap();
        let mut config = source.config().unwrap();
        let routing = config.routing.as_mut().unwrap();
        (routing.width, config.intermediate) = (32, 32);
        let (tokenizer, template) = (source.tokenizer().unwrap(), source.template().unwrap());
        let export = Export {
            name,
            config: &config,
            tokenizer: &tokenizer,
            template: &template,
            format: Format::Q8_0,
        };
        let path = folder.path().join("large.gguf");
        let mut wave = |info: &TensorInfo| {
            let (rows, cols) = info.rows_cols();
            let values = (0..info.len()).map(|i| ((i * i) as f32 * 0.37).sin());
            Ok(Matrix::from_f32(rows, cols, values.collect()))
        };
        export.write_gguf(&path, &mut wave).unwrap();
        let files = || std::fs::read_dir(folder.path()).unwrap().count();
        let before = files();
        let rows = |memory: u64| {
            let purpose = Purpose::Generation;
            let model = Model::load_within(purpose, &path, Precision::F32, memory).unwrap();
            let bytes = model.decoder.bytes_in_file();
            assert_eq!(bytes > 0, memory < 10_000, "{name}: {bytes} bytes");
            assert!(bytes < model.decoder.bytes());
            assert_eq!(files(), before, "the file has no name");
            let mut cache = KvCache::new(model.config());
            let tokens: Vec<u32> = (4..40).collect();
            let input = Input { tokens: &tokens, cache: &mut cache, experts: ExpertSet::NONE };
            model.decoder.forward(&Pool::new(2), &mut [input]).rows
        };
        assert!(rows(u64::MAX) == rows(1000), "{name}");
    }
}

#[test]
fn importance_of_other_programs_is_read() {
    let found = Importance::read(&fixtures().join("importance.gguf")).unwrap();
    assert_eq!(found.len(), 2);
    let refused = message(Importance::read(&fixtures().join("gemma3/gemma3.gguf")), &fixtures());
    assert!(refused.contains("no importance matrix"), "{refused}");
}
