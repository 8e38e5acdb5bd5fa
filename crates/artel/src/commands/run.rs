//! `artel run`: every stage that is not up to date, in order.

use anyhow::Result;
use serde_json::json;

use crate::Setup;
use crate::progress::duration;
use crate::stages::{Done, Stage, Stages};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// One JSON object per stage on stdout, for scripts
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args, setup: &Setup) -> Result<()> {
    let config = setup.config()?;
    config.select(&[])?;
    let stages = Stages::new(&config, setup);
    stages.require_base()?;
    for stage in stages.all() {
        let done = stages.perform(&stage)?;
        tell(&stages, &stage, &done);
        if args.json {
            println!("{}", to_json(&stages, &stage, &done));
        }
    }
    if !args.json {
        super::eval::print_table(&stages, &config.name)?;
    }
    Ok(())
}

/// One line on stderr about a stage.
pub(crate) fn tell(stages: &Stages, stage: &Stage, done: &Done) {
    let (_, name) = stages.target(stage);
    let counts = &done.artifact.manifest.counts;
    let counts: Vec<String> = counts.iter().map(|(key, count)| format!("{key} {count}")).collect();
    let state = match done.time {
        Some(time) => format!("done in {}", duration(time)),
        None => "fresh".into(),
    };
    eprintln!("{:<11} {name:<16} {state:<16} {}", stage.verb(), counts.join(", "));
}

fn to_json(stages: &Stages, stage: &Stage, done: &Done) -> serde_json::Value {
    let (kind, name) = stages.target(stage);
    json!({
        "stage": stage.verb(),
        "artifact": format!("{}/{name}", kind.folder()),
        "state": if done.time.is_some() { "done" } else { "fresh" },
        "seconds": done.time.map_or(0.0, |time| (time.as_secs_f64() * 10.0).round() / 10.0),
        "counts": done.artifact.manifest.counts,
    })
}

/// Runs the named departments' stage of one kind; what the stage commands share.
pub(crate) fn stage_of_each(
    departments: &[String],
    setup: &Setup,
    stage: fn(String) -> Stage,
) -> Result<()> {
    let config = setup.config()?;
    let stages = Stages::new(&config, setup);
    for department in config.select(departments)? {
        let stage = stage(department.name.clone());
        let done = stages.perform(&stage)?;
        tell(&stages, &stage, &done);
        println!("{}", done.artifact.path.display());
    }
    Ok(())
}
