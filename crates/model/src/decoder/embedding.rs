use kernel::Matrix;

use super::linear::Linear;

/// The input embedding, `[vocab, hidden]`.
pub(super) enum Embedding {
    /// As stored.
    Own(Matrix),
    /// The output matrix in tiles, whose rows can be read exactly: kept once.
    Head,
}

impl Embedding {
    /// Writes the row of `token`.
    pub(super) fn row(&self, head: &Linear, token: usize, out: &mut [f32]) {
        match (self, head) {
            (Embedding::Own(matrix), _) => {
                kernel::quant::dequantise(matrix.format, matrix.row(token), out)
                    .expect("a row of the embedding has the hidden size");
            }
            (Embedding::Head, Linear::Tiled(tiles)) => tiles.row(token, out),
            (Embedding::Head, Linear::Packed { .. }) => {
                unreachable!("a packed output matrix has its embedding beside it")
            }
        }
    }

    /// Memory held besides the output matrix, in bytes.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Embedding::Own(matrix) => matrix.bytes.len(),
            Embedding::Head => 0,
        }
    }
}
