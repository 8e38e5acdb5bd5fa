//! What the trainings of whole models say: the memory they will take, their progress, and what came of
//! them.

use std::collections::BTreeMap;

use anyhow::Result;
use kernel::{Kernel, Pool, Precision, available_memory, held_memory};
use model::Config;
use train::whole::{self, Ledger, Summary, Training};

use crate::progress::Progress;

/// Options that change no weight: no part of a recipe.
pub(super) const NO_WEIGHT: [&str; 3] = ["checkpoint_seconds", "memory_mb", "recompute"];

/// The memory that training will take, `states` of it for weights, gradients and running means. It
/// must be there, and within `memory_mb` (0 for no limit of its own); `otherwise` is what to do where
/// fewer tokens at once do not help.
pub(super) fn checked_memory(
    name: &str,
    (config, training, states): (&Config, &Training, u64),
    pool: &Pool,
    (memory_mb, otherwise): (u64, &'static str),
) -> Result<Ledger> {
    let [_, now] = held_memory().unwrap_or_default();
    let held = [now, states];
    let ledger = Ledger::predict(config, training, Precision::best(), pool.threads(), held);
    let limit = match (memory_mb, available_memory()) {
        (0, Some(free)) => free + now,
        (0, None) => u64::MAX,
        (allowed, _) => allowed << 20,
    };
    ledger.check(limit, otherwise)?;
    eprintln!("{name}: memory {ledger}");
    Ok(ledger)
}

/// Shows each step as it is done.
pub(super) fn shown(bar: &Progress, pool: &Pool) -> impl FnMut(&whole::Progress) {
    let peak = kernel::peak(pool, Kernel::best(Precision::best()));
    move |at| bar.set(at.step as u64, at.steps as u64, &note(at, peak))
}

/// What stands beside the number of steps; `peak` is what the machine could do, in floating-point
/// operations a second, where that is known.
fn note(at: &whole::Progress, peak: Option<f64>) -> String {
    let rate = at.tokens as f32 / at.seconds;
    let share = peak.map_or_else(String::new, |peak| {
        format!(", {:.0} % of the peak", 100.0 * at.flops / f64::from(at.seconds) / peak)
    });
    let balance = at.balance.map_or_else(String::new, |balance| {
        format!(", MaxVio {:.1}, idle experts {}", balance.max_violation, balance.idle)
    });
    let further = at.mtp_loss.map_or_else(String::new, |loss| format!(" (further {loss:.2})"));
    format!("loss {:.2}{further}, {rate:.0} tokens/s{share}{balance}", at.loss)
}

/// What came of a training.
pub(super) fn tell(name: &str, ledger: &Ledger, summary: &Summary) -> BTreeMap<String, u64> {
    if let Some([peak, _]) = held_memory() {
        let predicted = ledger.total() >> 20;
        eprintln!("{name}: {} MiB at most, {predicted} predicted", peak >> 20);
    }
    for alarm in &summary.alarms {
        eprintln!("{name}: warning: {alarm}");
    }
    BTreeMap::from([
        ("steps".into(), summary.steps as u64),
        ("tokens".into(), summary.tokens as u64),
        ("parameters".into(), summary.parameters as u64),
    ])
}
