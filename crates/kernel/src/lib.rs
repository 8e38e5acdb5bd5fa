//! The arithmetic: the only crate with `unsafe` code.
//!
//! Each operation is one safe function that checks lengths, then dispatches once to the best
//! version for this CPU; the scalar version is the oracle that the others are tested against.

mod arena;
pub mod attention;
mod bandwidth;
mod buffer;
pub mod cpu;
mod gate;
mod gemm;
pub mod logits;
pub mod loss;
mod mapped;
mod memory;
pub mod ops;
mod peak;
mod pool;
pub mod quant;
mod router;

pub use arena::Arena;
pub use bandwidth::Readable;
pub use buffer::Buffer;
pub use gate::{Gate, gated, gated_backward};
pub use gemm::{
    ExpertGradients, Experts, Kept, Kernel, Lanes, Left, Output, Packed, Routes, matmul,
    matmul_transposed,
};
pub use mapped::MappedFile;
pub use memory::{
    available_memory, give_back_freed_memory, held_memory, huge_pages, keep_freed_memory,
};
pub use peak::peak;
pub use pool::Pool;
pub use quant::Matrix;
pub use router::{Choice, Groups, Router, Scores, SequenceBalance};

/// The type in which matrices are multiplied. Sums are f32 in both.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Precision {
    F32,
    Bf16,
}

impl Precision {
    /// bf16 where the CPU multiplies it natively, else f32: emulated bf16 is far slower than f32.
    pub fn best() -> Self {
        #[cfg(target_arch = "x86_64")]
        if cpu::level() == cpu::Level::Avx512 && std::arch::is_x86_feature_detected!("avx512bf16") {
            return Precision::Bf16;
        }
        Precision::F32
    }
}
