use kernel::quant::{self, Activations, Isa, Tiles};
use kernel::{Arena, Buffer, Gate, Lanes, Left, Matrix, Output, Packed, Pool, Precision, matmul};

/// What the weights are prepared for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Purpose {
    /// Scoring, where numbers are compared: products of the weights' values in the [`Precision`].
    Inference,
    /// Text, where speed is felt: block formats stay as the file stores them, and activations are
    /// rounded to 8 bits. Other weights are as for `Inference`.
    Generation,
    /// Training an expert beside frozen weights: as `Inference`, also laid out for the backward
    /// pass, at twice the memory.
    Training,
    /// Training all weights.
    WholeTraining,
}

/// A weight matrix `[outputs, inputs]`, laid out for its products.
pub(super) enum Linear {
    Packed { precision: Precision, forward: Packed, backward: Option<Packed> },
    Tiled(Tiles),
}

impl Linear {
    /// From values `[outputs, inputs]`.
    pub(super) fn new(
        pool: &Pool,
        precision: Precision,
        purpose: Purpose,
        values: &[f32],
        outputs: usize,
        inputs: usize,
    ) -> Self {
        let mut linear = Linear::unset(precision, purpose, outputs, inputs);
        linear.fill(pool, values);
        linear
    }

    /// Room for values `[outputs, inputs]`.
    pub(super) fn unset(
        precision: Precision,
        purpose: Purpose,
        outputs: usize,
        inputs: usize,
    ) -> Self {
        let train = matches!(purpose, Purpose::Training | Purpose::WholeTraining);
        Linear::Packed {
            precision,
            forward: Packed::unset(precision, outputs, inputs),
            backward: train.then(|| Packed::unset(precision, inputs, outputs)),
        }
    }

    /// Lays out new values `[outputs, inputs]`.
    pub(super) fn fill(&mut self, pool: &Pool, values: &[f32]) {
        let Linear::Packed { forward, backward, .. } = self else {
            unreachable!("tiles are for generation, never trained");
        };
        forward.fill_rows(pool, values);
        if let Some(backward) = backward {
            backward.fill_columns(pool, values);
        }
    }

    /// From stored matrices, stacked.
    pub(super) fn stacked(
        pool: &Pool,
        precision: Precision,
        purpose: Purpose,
        arena: &mut Arena,
        matrices: &[&Matrix],
    ) -> Self {
        if purpose == Purpose::Generation
            && let Ok(tiles) = Tiles::new(pool, arena, matrices)
        {
            return Linear::Tiled(tiles);
        }
        let values: Vec<f32> = matrices.iter().flat_map(|matrix| matrix.to_f32()).collect();
        let outputs = matrices.iter().map(|matrix| matrix.rows).sum();
        Linear::new(pool, precision, purpose, &values, outputs, matrices[0].cols)
    }

    pub(super) fn inputs(&self) -> usize {
        match self {
            Linear::Packed { forward, .. } => forward.k(),
            Linear::Tiled(tiles) => tiles.cols(),
        }
    }

    pub(super) fn outputs(&self) -> usize {
        match self {
            Linear::Packed { forward, .. } => forward.n(),
            Linear::Tiled(tiles) => tiles.rows(),
        }
    }

    pub(super) fn precision(&self) -> Precision {
        match self {
            Linear::Packed { precision, .. } => *precision,
            Linear::Tiled(_) => unreachable!("tiles are for generation, never trained"),
        }
    }

    pub(super) fn forward(&self, pool: &Pool, out: &mut [f32], x: &[f32], mode: Output) {
        match self {
            Linear::Packed { forward, .. } => matmul(pool, out, Left::Rows(x), forward, mode),
            Linear::Tiled(tiles) => {
                quant::product(pool, out, &Activations::new(pool, x, tiles.cols()), tiles, mode);
            }
        }
    }

    /// `x · Wᵀ` as a new matrix.
    pub(super) fn apply<'a>(&self, pool: &'a Pool, x: &[f32]) -> Buffer<'a> {
        let mut out = pool.buffer(x.len() / self.inputs() * self.outputs());
        self.forward(pool, &mut out, x, Output::Replace);
        out
    }

    /// As [`Linear::apply`], of rows that are also needed for the weight's gradient.
    pub(super) fn apply_lanes<'a>(&self, pool: &'a Pool, x: &Lanes) -> Buffer<'a> {
        let Linear::Packed { forward, .. } = self else {
            unreachable!("tiles are for generation, never trained");
        };
        let mut out = pool.buffer(x.rows() * self.outputs());
        matmul(pool, &mut out, Left::Lanes(x), forward, Output::Replace);
        out
    }

    /// Rows as its products read them.
    pub(super) fn lanes<'a>(&self, pool: &'a Pool, rows: Buffer<'a>, cols: usize) -> Lanes<'a> {
        Lanes::owned(pool, self.precision(), rows, cols)
    }

    /// As [`Linear::lanes`], of rows that stay.
    pub(super) fn lanes_of<'a>(&self, pool: &'a Pool, rows: &'a [f32], cols: usize) -> Lanes<'a> {
        Lanes::new(pool, self.precision(), rows, cols)
    }

    /// `gate(x · Gᵀ) · (x · Uᵀ)`, the rows of `G` standing before those of `U`.
    pub(super) fn apply_gated<'a>(&self, pool: &'a Pool, x: &[f32], gate: Gate) -> Buffer<'a> {
        let width = self.outputs() / 2;
        let mut out = pool.buffer(x.len() / self.inputs() * width);
        match self {
            // A gate and its up-row must stand at the same place of their tiles.
            Linear::Tiled(tiles) if width.is_multiple_of(Tiles::ROWS) => {
                let x = Activations::new(pool, x, tiles.cols());
                quant::gated_product(pool, &mut out, &x, tiles, gate);
            }
            _ => kernel::gated(pool, &mut out, &self.apply(pool, x), width, gate),
        }
        out
    }

    /// `dx = dy · W`.
    pub(super) fn backward(&self, pool: &Pool, dx: &mut [f32], dy: Left, mode: Output) {
        let Linear::Packed { backward: Some(packed), .. } = self else {
            panic!("the decoder was not loaded for training");
        };
        matmul(pool, dx, dy, packed, mode);
    }

    pub(super) fn product_name(&self) -> &'static str {
        match self {
            Linear::Packed { precision: Precision::F32, .. } => "f32",
            Linear::Packed { precision: Precision::Bf16, .. } => "bf16",
            Linear::Tiled(_) => Isa::best().name(),
        }
    }

    pub(super) fn bytes(&self) -> usize {
        match self {
            Linear::Packed { forward, backward, .. } => {
                forward.bytes() + backward.as_ref().map_or(0, Packed::bytes)
            }
            Linear::Tiled(tiles) => tiles.bytes(),
        }
    }
}
