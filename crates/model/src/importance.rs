//! How much the columns of each matrix matter: the mean square of what they are multiplied with.
//!
//! Where a weight is rounded, the output's expected squared error is the weight's, times this.
//!
//! **Source**: Frantar et al. 2022, arXiv 2210.17323, section 3 (the diagonal of the Hessian of a
//! layer's squared error); for the file, llama.cpp `imatrix.cpp`.

use std::collections::BTreeMap;
use std::path::Path;

use kernel::Pool;
use kernel::quant::dequantise;

use crate::source::gguf::Gguf;
use crate::{Decoder, Error, ExpertSet, Input, KvCache};

/// Mean squares of the inputs of a model's matrices, by their names in GGUF files.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Importance {
    matrices: BTreeMap<String, Columns>,
}

#[derive(Clone, Debug, Default, PartialEq)]
struct Columns {
    /// `[parts, cols]`: of each expert, or of the one matrix.
    sums: Vec<f64>,
    /// `[parts]`: rows seen.
    counts: Vec<f64>,
}

/// Tokens of a window; the context of a model may be shorter.
const WINDOW: usize = 512;

/// Largest number of tensors' values that a file may hold, far above any model's.
const MAX_VALUES: usize = 1 << 28;

impl Importance {
    /// Runs the model over the tokens in windows, with all of its experts; `begin` stands before
    /// each window. `progress` is told how many tokens are done.
    ///
    /// # Panics
    /// If a token lies beyond the vocabulary.
    pub fn collect(
        decoder: &Decoder,
        pool: &Pool,
        tokens: &[u32],
        begin: Option<u32>,
        progress: &mut dyn FnMut(usize),
    ) -> Self {
        let mut found = Importance::default();
        let window = WINDOW.min(decoder.config().context).max(2) - usize::from(begin.is_some());
        let experts = ExpertSet::all(decoder.experts());
        for (index, piece) in tokens.chunks(window).enumerate() {
            let piece: Vec<u32> = begin.into_iter().chain(piece.iter().copied()).collect();
            let mut cache = KvCache::new(decoder.config());
            let input = Input { tokens: &piece, cache: &mut cache, experts };
            found = decoder.observe(pool, &mut [input], found);
            progress((index + 1) * window);
        }
        found
    }

    /// Adds rows `[rows, cols]` that are multiplied with part `part` of `parts` of the matrix.
    pub(crate) fn add(&mut self, name: String, rows: &[f32], cols: usize, part: [usize; 2]) {
        let [part, parts] = part;
        let columns = self.matrices.entry(name).or_default();
        if columns.sums.is_empty() {
            columns.sums = vec![0.0; parts * cols];
            columns.counts = vec![0.0; parts];
        }
        let sums = &mut columns.sums[part * cols..(part + 1) * cols];
        for row in rows.chunks_exact(cols) {
            sums.iter_mut().zip(row).for_each(|(sum, v)| *sum += f64::from(*v) * f64::from(*v));
        }
        columns.counts[part] += (rows.len() / cols) as f64;
    }

    /// Of a matrix, by its name in GGUF files: `[parts, cols]`, 0 where nothing was seen.
    pub(crate) fn of(&self, name: &str) -> Option<Vec<f32>> {
        let columns = self.matrices.get(name)?;
        let cols = columns.sums.len() / columns.counts.len().max(1);
        let mean = |(index, sum): (usize, &f64)| {
            (sum / columns.counts[index / cols.max(1)].max(1.0)) as f32
        };
        Some(columns.sums.iter().enumerate().map(mean).collect())
    }

    /// How many matrices it knows of.
    pub fn len(&self) -> usize {
        self.matrices.len()
    }

    pub fn is_empty(&self) -> bool {
        self.matrices.is_empty()
    }

    /// Reads a file of llama.cpp's `llama-imatrix`, in its GGUF form.
    ///
    /// # Errors
    /// When it is no such file, or its tensors contradict each other.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let file = Gguf::open(path)?;
        let mut found = Importance::default();
        let names: Vec<&str> =
            file.names().filter_map(|name| name.strip_suffix(".in_sum2")).collect();
        for name in names {
            let sums = floats(&file, &format!("{name}.in_sum2"))?;
            let counts = floats(&file, &format!("{name}.counts"))?;
            if counts.is_empty() || !sums.len().is_multiple_of(counts.len()) {
                let problem = format!("{} sums and {} counts", sums.len(), counts.len());
                return Err(Error::Tensor { path: path.into(), name: name.into(), problem });
            }
            found.matrices.insert(name.into(), Columns { sums, counts });
        }
        if found.is_empty() {
            let problem = "a GGUF file without sums of squares (.in_sum2): no importance matrix";
            return Err(Error::NotAModel { path: path.into(), problem: problem.into() });
        }
        Ok(found)
    }
}

fn floats(file: &Gguf, name: &str) -> Result<Vec<f64>, Error> {
    let tensor = file.tensor(name)?;
    let count: usize = tensor.shape.iter().product();
    let problem = |problem: String| {
        let (path, name) = (file.path.clone(), name.into());
        Error::Tensor { path, name, problem }
    };
    if count > MAX_VALUES {
        return Err(problem(format!("{count} values, above the limit of {MAX_VALUES}")));
    }
    let mut values = vec![0.0; count];
    let read = dequantise(tensor.format, file.bytes(tensor), &mut values);
    read.map_err(|error| problem(error.to_string()))?;
    if let Some(value) = values.iter().find(|value| !(value.is_finite() && **value >= 0.0)) {
        return Err(problem(format!("{value} is no sum of squares")));
    }
    Ok(values.into_iter().map(f64::from).collect())
}
