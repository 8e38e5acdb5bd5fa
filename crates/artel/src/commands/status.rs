//! `artel status`: the stages and their state.

use anyhow::{Result, anyhow, bail};
use serde_json::json;
use store::Kind;

use crate::Setup;
use crate::failure::Hint;
use crate::stages::Stages;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// One JSON object a line, for scripts
    #[arg(long)]
    json: bool,
    /// What an artifact descends from, down to the documents
    #[arg(long, value_name = "KIND/NAME")]
    lineage: Option<String>,
}

pub(crate) fn run(args: &Args, setup: &Setup) -> Result<()> {
    let config = setup.config()?;
    let stages = Stages::new(&config, setup);
    match &args.lineage {
        Some(name) => lineage(&stages, name, args.json),
        None => {
            table(&stages, args.json);
            Ok(())
        }
    }
}

fn table(stages: &Stages, json: bool) {
    for (stage, state) in stages.survey() {
        let (kind, name) = stages.target(&stage);
        let artifact = format!("{}/{name}", kind.folder());
        let manifest = stages.workspace.open(kind, &name).ok().map(|artifact| artifact.manifest);
        let counts = manifest.map(|manifest| manifest.counts).unwrap_or_default();
        if json {
            let line = json!({
                "stage": stage.verb(), "artifact": artifact, "state": state.word(),
                "reason": state.reason(), "counts": counts,
            });
            println!("{line}");
            continue;
        }
        let counts: Vec<String> = counts.iter().map(|(k, v)| format!("{k} {v}")).collect();
        let about =
            if state.reason().is_empty() { counts.join(", ") } else { state.reason().into() };
        let line = format!("{:<11} {artifact:<28} {:<8} {about}", stage.verb(), state.word());
        println!("{}", line.trim_end());
    }
    if !json {
        for department in stages.config.departments.iter().filter(|d| d.withdrawn) {
            println!("{:<11} {:<28} withdrawn", "", department.name);
        }
    }
}

fn lineage(stages: &Stages, name: &str, json: bool) -> Result<()> {
    let (kind, rest) = find_kind(name)?;
    for link in stages.workspace.lineage(kind, rest)? {
        if json {
            let line = json!({
                "depth": link.depth, "name": link.name, "hash": link.hash, "current": link.current,
            });
            println!("{line}");
        } else {
            let note = if link.current { "" } else { "  (changed since)" };
            println!("{}{}  {}{note}", "  ".repeat(link.depth - 1), link.name, link.hash.short());
        }
    }
    Ok(())
}

fn find_kind(name: &str) -> Result<(Kind, &str)> {
    let Some((folder, rest)) = name.split_once('/') else {
        let kinds: Vec<&str> = Kind::ALL.iter().map(|kind| kind.folder()).collect();
        return Err(anyhow!("{name:?} is not of the form KIND/NAME")
            .context(Hint::new(format!("kinds: {}", kinds.join(", ")))));
    };
    match Kind::ALL.into_iter().find(|kind| kind.folder() == folder) {
        Some(kind) => Ok((kind, rest)),
        None => bail!("{folder:?} is no kind of artifact"),
    }
}
