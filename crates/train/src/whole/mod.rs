//! What all trainings of whole models share: the step on all or some weights, the loop with its
//! checkpoints and figures, and the reckoning of memory.

mod balance;
mod flops;
mod learned;
mod ledger;
mod means;
mod run;
mod step;
mod training;
mod update;

pub use balance::Balance;
pub use flops::Flops;
pub(crate) use learned::{How, Learned, Parts, Place, parts_of};
pub(crate) use ledger::states_of;
pub use ledger::{Ledger, all_states};
pub(crate) use means::Means;
pub use run::{Job, Progress, Summary};
pub(crate) use run::{run, summary, write_model};
pub use step::{Figures, Trainer};
pub use training::Training;
pub(crate) use training::is_full;
