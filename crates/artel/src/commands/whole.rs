//! What the trainings of whole models say: the memory they will take, their progress, and what came of
//! them.

use anyhow::Result;
use train::whole::{Ledger, Progress, Summary, available, held};

use std::collections::BTreeMap;

/// Bytes that this process holds now.
pub(super) fn held_now() -> u64 {
    held().unwrap_or_default()[1]
}

/// The memory that training will take, which must be allowed and there; `otherwise` is what to do
/// where fewer tokens at once do not help.
pub(super) fn check_memory(
    name: &str,
    ledger: &Ledger,
    memory_mb: u64,
    otherwise: &'static str,
) -> Result<()> {
    let limit = match (memory_mb, available()) {
        (0, Some(free)) => free + held_now(),
        (0, None) => u64::MAX,
        (allowed, _) => allowed << 20,
    };
    ledger.check(limit, otherwise)?;
    eprintln!("{name}: memory {ledger}");
    Ok(())
}

/// What stands beside the number of steps.
pub(super) fn note(at: &Progress) -> String {
    let rate = at.tokens as f32 / at.seconds;
    let balance = at.balance.map_or_else(String::new, |balance| {
        format!(", MaxVio {:.1}, idle experts {}", balance.max_violation, balance.idle)
    });
    format!("loss {:.2}, {rate:.0} tokens/s{balance}", at.loss)
}

/// What came of a training.
pub(super) fn tell(name: &str, ledger: &Ledger, summary: &Summary) -> BTreeMap<String, u64> {
    if let Some([peak, _]) = held() {
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
