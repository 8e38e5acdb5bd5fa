use std::path::{Path, PathBuf};

use kernel::Matrix;
use kernel::quant::Format;
use model::{Config, Error, Export, Scaling, Source, TensorInfo};

use crate::decoder::FAMILIES;
use crate::{fixtures, message};

const FIXTURES: [&str; 3] = ["llama", "llama_untied", "granitemoeshared"];
/// With a block that predicts the token after the next.
const WITH_MTP: [&str; 2] = ["glm4_moe_mtp", "deepseek_v3_mtp"];

/// Writes a model as it is read from `source`.
pub(crate) fn export(source: &Source, format: Format, to: &Path) -> Result<(), Error> {
    export_as(&source.config()?, source, format, to)
}

/// As [`export`], with another configuration of the same tensors.
fn export_as(config: &Config, source: &Source, format: Format, to: &Path) -> Result<(), Error> {
    let (tokenizer, template) = (source.tokenizer()?, source.template()?);
    let export =
        Export { name: "tiny", config, tokenizer: &tokenizer, template: &template, format };
    let mut tensors = |info: &TensorInfo| {
        let (rows, cols) = info.rows_cols();
        match info.shape.len() {
            1 => Ok(Matrix::from_f32(1, cols, source.vector(&info.name, cols)?)),
            _ => source.matrix(&info.name, rows, cols),
        }
    };
    if to.extension().is_some_and(|e| e == "gguf") {
        export.write_gguf(to, &mut tensors)
    } else {
        std::fs::create_dir_all(to).unwrap();
        export.write_huggingface(to, &mut tensors)
    }
}

/// All tensors, in the order of the configuration.
fn tensors(source: &Source) -> Vec<(TensorInfo, Matrix)> {
    let with_matrix = |info: TensorInfo| {
        let (rows, cols) = info.rows_cols();
        let matrix = match info.shape.len() {
            1 => Matrix::from_f32(1, cols, source.vector(&info.name, cols).unwrap()),
            _ => source.matrix(&info.name, rows, cols).unwrap(),
        };
        (info, matrix)
    };
    source.config().unwrap().tensors().into_iter().map(with_matrix).collect()
}

fn same_model(a: &Source, b: &Source) {
    let config = a.config().unwrap();
    assert_eq!(config, b.config().unwrap());
    for ((info, a), (_, b)) in tensors(a).iter().zip(tensors(b)) {
        let (a, b) = (a.to_f32(), b.to_f32());
        // Gemma's files hold norms as their distance from 1.
        let near = config.windows.is_some() && info.name.ends_with("norm.weight");
        let fits = match near {
            true => a.iter().zip(&b).all(|(a, b)| (a - b).abs() < 1e-6),
            false => a == b,
        };
        assert!(fits, "{:?}: {}", config.family, info.name);
    }
    let text = "Stop the pump of line 2<|im_end|>\n  every 12 weeks; don't…";
    let ids = |s: &Source| s.tokenizer().unwrap().encode(text).unwrap();
    assert_eq!(ids(a), ids(b));
    let (a, b) = (a.template().unwrap(), b.template().unwrap());
    assert_eq!((a.source(), a.bos(), a.eos()), (b.source(), b.bos(), b.eos()));
}

#[test]
fn families_are_written_in_the_huggingface_layout() {
    for name in FAMILIES.into_iter().chain(WITH_MTP) {
        let folder = tempfile::tempdir().unwrap();
        let original = Source::open(&fixtures().join(name)).unwrap();
        export(&original, Format::F32, folder.path()).unwrap();
        same_model(&original, &Source::open(folder.path()).unwrap());
    }
}

/// The configuration of a fixture, but for what GGUF cannot express of it.
fn expressible(name: &str, mut config: Config) -> Config {
    if let Some(routing) = &mut config.routing
        && name == "qwen3_moe"
    {
        routing.normalise = true;
    }
    if name == "gemma3_text" {
        config.scales.attention = None;
    }
    // Left out rather than refused.
    config.mtp &= name == "glm4_moe_mtp";
    if let Some(Scaling::Yarn(yarn)) = &mut config.rope.scaling
        && name == "deepseek_v2"
    {
        yarn.mscale = yarn.mscale_all;
    }
    config
}

#[test]
fn families_are_written_as_gguf() {
    for name in FAMILIES.into_iter().chain(WITH_MTP) {
        let folder = tempfile::tempdir().unwrap();
        let path = |file: &str| folder.path().join(file);
        let original = Source::open(&fixtures().join(name)).unwrap();
        let own = original.config().unwrap();
        let config = expressible(name, own.clone());
        if config != own && !own.mtp {
            let refused = export(&original, Format::F32, &path("refused.gguf")).unwrap_err();
            assert!(refused.to_string().contains("GGUF cannot express"), "{name}: {refused}");
        }
        export_as(&config, &original, Format::F32, &path("model.gguf")).unwrap();
        let gguf = Source::open(&path("model.gguf")).unwrap();
        if name == "llama3" {
            // The file holds what the scaling computes.
            let found = gguf.config().unwrap();
            let Some(Scaling::Factors(factors)) = found.rope.scaling else { panic!("{found:?}") };
            assert_eq!((factors.len(), factors[0]), (8, 1.0));
            let refused = export(&gguf, Format::F32, &path("huggingface")).unwrap_err();
            assert!(refused.to_string().contains("a list of factors"), "{refused}");
            continue;
        }
        export_as(&config, &original, Format::F32, &path("huggingface")).unwrap();
        same_model(&Source::open(&path("huggingface")).unwrap(), &gguf);
    }
}

#[test]
fn gguf_to_huggingface_and_back_is_the_same_model() {
    for name in FIXTURES {
        let folder = tempfile::tempdir().unwrap();
        let original = Source::open(&fixtures().join(name)).unwrap();
        let path = |name: &str| -> PathBuf { folder.path().join(name) };
        export(&original, Format::F32, &path("first.gguf")).unwrap();
        let gguf = Source::open(&path("first.gguf")).unwrap();
        same_model(&original, &gguf);
        export(&gguf, Format::F32, &path("huggingface")).unwrap();
        let huggingface = Source::open(&path("huggingface")).unwrap();
        same_model(&original, &huggingface);
        export(&huggingface, Format::F32, &path("second.gguf")).unwrap();
        let read = |name| std::fs::read(path(name)).unwrap();
        assert!(read("first.gguf") == read("second.gguf"), "{name}: not the same bytes");
        let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().collect();
        assert_eq!(left.len(), 3, "only whole files stay");
    }
}

#[test]
fn smaller_formats_stay_near() {
    // Half a step of the format: the last bit, or 1/127 and 1/8 of a block's largest value.
    let largest = |m: &Matrix| m.to_f32().iter().fold(0.0f32, |a, v| a.max(v.abs()));
    for (format, step) in
        [(Format::F16, 1e-3), (Format::Bf16, 8e-3), (Format::Q8_0, 8e-3), (Format::Q4_0, 0.125)]
    {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("small.gguf");
        let original = Source::open(&fixtures().join("granitemoeshared")).unwrap();
        export(&original, format, &path).unwrap();
        let small = Source::open(&path).unwrap();
        for ((info, a), (_, b)) in tensors(&original).iter().zip(tensors(&small)) {
            let bound = step * largest(a);
            for (a, b) in a.to_f32().into_iter().zip(b.to_f32()) {
                assert!((a - b).abs() <= bound, "{} in {format}: {a} and {b}", info.name);
            }
            if info.shape.len() == 1 || info.name.contains("router") {
                assert_eq!(a.to_f32(), b.to_f32(), "{} is kept in f32", info.name);
            }
        }
    }
}

#[test]
fn a_failed_export_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let source = Source::open(&fixtures().join("llama")).unwrap();
    let (config, tokenizer) = (source.config().unwrap(), source.tokenizer().unwrap());
    let template = source.template().unwrap();
    let export = |format| Export {
        name: "tiny",
        config: &config,
        tokenizer: &tokenizer,
        template: &template,
        format,
    };
    let mut short = |info: &TensorInfo| {
        let (rows, cols) = info.rows_cols();
        let rows = if info.name.ends_with("up_proj.weight") { rows - 1 } else { rows };
        Ok(Matrix::from_f32(rows, cols, vec![0.5; rows * cols]))
    };
    let mut huge = |info: &TensorInfo| {
        let (rows, cols) = info.rows_cols();
        Ok(Matrix::from_f32(rows, cols, vec![1e9; rows * cols]))
    };
    let gguf = folder.path().join("model.gguf");
    let messages = [
        message(export(Format::F16).write_gguf(&gguf, &mut short), folder.path()),
        message(export(Format::F16).write_gguf(&gguf, &mut huge), folder.path()),
        message(export(Format::Q6_K).write_gguf(&gguf, &mut short), folder.path()),
        message(export(Format::Bf16).write_huggingface(folder.path(), &mut short), folder.path()),
        message(export(Format::Q8_0).write_huggingface(folder.path(), &mut short), &fixtures()),
    ];
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    let shown = messages.join("\n").replace(&folder.path().display().to_string(), "FOLDER");
    insta::assert_snapshot!(shown);
}

/// For `tests/reference/exports.py`, which loads these files with other programs.
#[test]
#[ignore = "writes into the folder named by ARTEL_EXPORTS"]
fn writes_exports_for_other_programs() {
    let folder = std::env::var_os("ARTEL_EXPORTS").expect("set ARTEL_EXPORTS to a folder");
    for name in FIXTURES {
        let source = Source::open(&fixtures().join(name)).unwrap();
        let folder = Path::new(&folder).join(name);
        export(&source, Format::F32, &folder).unwrap();
        export(&source, Format::F32, &folder.with_extension("gguf")).unwrap();
        export(&source, Format::Q8_0, &folder.with_extension("q8_0.gguf")).unwrap();
    }
    for name in FAMILIES.into_iter().chain(WITH_MTP) {
        let source = Source::open(&fixtures().join(name)).unwrap();
        let folder = Path::new(&folder).join(name);
        let config = expressible(name, source.config().unwrap());
        export_as(&config, &source, Format::F32, &folder).unwrap();
        export_as(&config, &source, Format::F32, &folder.with_extension("gguf")).unwrap();
    }
}
