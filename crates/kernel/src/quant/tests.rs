//! Against fixtures that `tests/reference/quant.py` made with GGML's reference.

use std::path::PathBuf;

use super::*;

pub(super) fn fixture(name: &str) -> Vec<u8> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/quant");
    std::fs::read(folder.join(name)).unwrap()
}

fn floats(name: &str) -> Vec<f32> {
    fixture(name).as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

#[test]
fn reads_every_format_as_the_reference_does() {
    for format in Format::ALL.into_iter().filter(|&f| f != Format::F32) {
        let expected = floats(&format!("{format}.values"));
        let mut found = vec![0.0; expected.len()];
        dequantise(format, &fixture(&format!("{format}.blocks")), &mut found).unwrap();
        assert_eq!(bits(&found), bits(&expected), "{format}");
    }
}

#[test]
fn writes_as_the_reference_does() {
    let values = floats("input.values");
    for format in [Format::F16, Format::Bf16, Format::Q8_0, Format::Q4_0] {
        let mut found = vec![];
        quantise(format, &values, &mut found).unwrap();
        assert_eq!(found, fixture(&format!("{format}.written")), "{format}");
    }
}

#[test]
fn f32_round_trips_every_bit_pattern() {
    let values = [0.0, -0.0, f32::MIN_POSITIVE, f32::NAN, f32::NEG_INFINITY, 1e-44];
    let matrix = Matrix::from_f32(2, 3, values.to_vec());
    assert_eq!(bits(&matrix.to_f32()), bits(&values));
}

#[test]
fn converts_and_selects_whole_rows() {
    let values: Vec<f32> = (0..96).map(|i| i as f32).collect();
    let matrix = Matrix::from_f32(3, 32, values).to_format(Format::Q8_0).unwrap();
    let turned = matrix.select_rows([2, 0]);
    assert_eq!((turned.rows, turned.cols), (2, 32));
    let expected = [&matrix.to_f32()[64..], &matrix.to_f32()[..32]].concat();
    assert_eq!(turned.to_f32(), expected);
}

#[test]
fn errors_say_what_does_not_fit() {
    let message = |error: Error| error.to_string();
    let mut out = vec![7];
    let partial = message(quantise(Format::Q8_0, &[1.0; 40], &mut out).unwrap_err());
    assert_eq!(partial, "q8_0 stores 32 values at a time, which 40 values are no multiple of");
    let mut values = [1.0; 64];
    values[40] = 1e8;
    let overflow = message(quantise(Format::Q8_0, &values, &mut out).unwrap_err());
    assert_eq!(overflow, "100000000 does not fit q8_0; write bf16 or f32");
    values[40] = f32::NAN;
    let nan = message(quantise(Format::Q4_0, &values, &mut out).unwrap_err());
    assert_eq!(nan, "NaN does not fit q4_0; write bf16 or f32");
    let readonly = message(quantise(Format::Q6_K, &[0.0; 256], &mut out).unwrap_err());
    assert_eq!(readonly, "q6_k can be read but not written; write f32, f16, bf16, q8_0 or q4_0");
    assert_eq!(out, [7], "an error appends nothing");

    let short = message(dequantise(Format::Q4_K, &[0; 143], &mut [0.0; 256]).unwrap_err());
    assert_eq!(short, "256 values in q4_k take 144 bytes, but there are 143");
    let huge = message(Matrix::new(usize::MAX, 2, Format::F32, vec![]).unwrap_err());
    assert_eq!(
        huge,
        "a matrix of 18446744073709551615 × 2 is larger than this machine can address"
    );
}
