//! Against the errors of GGML's quantisers, which `tests/reference/fit.py` wrote down.

use std::path::PathBuf;

use super::*;

const FITTED: [Format; 9] = [
    Format::Q4_0,
    Format::Q4_1,
    Format::Q5_0,
    Format::Q5_1,
    Format::Q4_K,
    Format::Q5_K,
    Format::Q6_K,
    Format::IQ4_NL,
    Format::IQ4_XS,
];

fn fixture(name: &str) -> Vec<u8> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/fit");
    std::fs::read(folder.join(name)).unwrap()
}

fn floats(name: &str) -> Vec<f32> {
    fixture(name).as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

fn error(values: &[f32], fitted: &Matrix, importance: Option<&[f32]>) -> f64 {
    let weight = |i: usize| importance.map_or(1.0, |importance| importance[i % fitted.cols]);
    let pairs = values.iter().zip(fitted.to_f32()).enumerate();
    pairs.map(|(i, (a, b))| f64::from(weight(i)) * f64::from(a - b).powi(2)).sum()
}

#[test]
fn no_format_loses_more_than_with_ggmls_quantisers() {
    let (values, importance) = (floats("rows.values"), floats("importance.values"));
    let matrix =
        Matrix::from_f32(values.len() / importance.len(), importance.len(), values.clone());
    let pool = Pool::new(2);
    let text = String::from_utf8(fixture("errors.txt")).unwrap();
    let mut seen = 0;
    for line in text.lines() {
        let [name, plain, weighted] = line.split(' ').collect::<Vec<_>>()[..] else { panic!() };
        let format = *FITTED.iter().find(|format| format.name() == name).unwrap();
        for (importance, theirs) in [(None, plain), (Some(&importance[..]), weighted)] {
            let theirs: f64 = theirs.parse().unwrap();
            let ours =
                error(&values, &matrix.fitted(&pool, format, importance).unwrap(), importance);
            println!("{name} {} {:.4}", importance.is_some(), ours / theirs);
            // Large values weigh more in what is minimised than in what is compared.
            assert!(ours <= 1.01 * theirs, "{name}: {ours} where ggml has {theirs}");
        }
        seen += 1;
    }
    assert_eq!(seen, FITTED.len());
}

#[test]
fn rows_do_not_depend_on_threads_and_experts_have_their_own_importance() {
    let (values, importance) = (floats("rows.values"), floats("importance.values"));
    let cols = importance.len();
    let matrix = Matrix::from_f32(values.len() / cols, cols, values);
    let flat = vec![1.0; cols];
    let both = [importance.clone(), flat.clone()].concat();
    for format in [Format::Q4_K, Format::Q5_0] {
        let fit = |threads, rows: std::ops::Range<usize>, importance: &[f32]| {
            let part = matrix.select_rows(rows);
            part.fitted(&Pool::new(threads), format, Some(importance)).unwrap().bytes
        };
        let all = fit(3, 0..6, &both);
        assert_eq!(all, [fit(1, 0..3, &importance), fit(1, 3..6, &flat)].concat(), "{format}");
    }
}

#[test]
fn odd_values_are_stored_or_refused() {
    for format in FITTED {
        let cols = format.block_len();
        let store = |values: &[f32], importance: Option<&[f32]>| {
            let mut bytes = vec![];
            fit(format, values, importance, &mut bytes).map(|()| {
                let mut back = vec![0.0; cols];
                dequantise(format, &bytes, &mut back).unwrap();
                back
            })
        };
        assert_eq!(store(&vec![0.0; cols], None).unwrap(), vec![0.0; cols], "{format}");
        let mut values = vec![0.0; cols];
        values[3] = -1.0;
        let back = store(&values, Some(&vec![0.0; cols])).unwrap();
        assert!((back[3] + 1.0).abs() < 0.02, "{format}: {}", back[3]);
        // What neither f16 nor f32 resolves becomes zero, or near it.
        let back = store(&vec![1e-42; cols], Some(&vec![f32::NAN; cols])).unwrap();
        assert!(back.iter().all(|v| v.abs() < 1e-6), "{format}");
        for broken in [f32::NAN, f32::INFINITY, 3e38] {
            values[5] = broken;
            let error = store(&values, None).unwrap_err();
            assert!(matches!(error, Error::Overflow { .. }), "{format} {broken}: {error}");
        }
    }
    let error = fit(Format::MXFP4, &[0.0; 32], None, &mut vec![]).unwrap_err();
    assert_eq!(error, Error::NotWritable { format: Format::MXFP4 });
}
