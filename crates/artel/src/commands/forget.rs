//! `artel forget`: the joined model without one department.

use anyhow::{Result, ensure};
use store::Kind;

use crate::Setup;
use crate::failure::Hint;
use crate::stages::{Stage, Stages};
use crate::withdrawal;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The department to withdraw
    department: String,
    /// Delete its expert, examples and collection too; its documents are yours and stay
    #[arg(long)]
    delete_expert: bool,
}

pub(crate) fn run(args: &Args, setup: &Setup) -> Result<()> {
    let config = setup.config()?;
    let department = config.department(&args.department)?;
    let name = &department.name;
    let others = config.departments.iter().filter(|d| !d.withdrawn && d.name != *name).count();
    if others == 0 {
        let base = config.base_name();
        return Err(anyhow::anyhow!("{name:?} is the only department of the joined model")
            .context(Hint::new(format!(
                "without it the model is the base: `artel serve --model {base}`"
            ))));
    }
    let sources: Vec<String> = Stages::new(&config, setup)
        .workspace
        .lineage(Kind::Expert, name)
        .map(|links| links.into_iter().map(|link| link.name).collect())
        .unwrap_or_default();
    withdrawal::write(&config.root, name)?;
    let config = setup.config()?;
    let stages = Stages::new(&config, setup);
    let done = stages.perform(&Stage::Join)?;
    super::run::tell(&stages, &Stage::Join, &done);
    let lineage = stages.workspace.lineage(Kind::Model, &config.name)?;
    ensure!(
        !lineage.iter().any(|link| link.name == format!("experts/{name}")),
        "the joined model still descends from experts/{name}"
    );
    if args.delete_expert {
        for kind in [Kind::Expert, Kind::Examples, Kind::Collection] {
            stages.workspace.remove(kind, name)?;
        }
    }
    println!("{}", done.artifact.path.display());
    let documents = sources.iter().filter(|source| !is_artifact(source)).count();
    eprintln!(
        "{name} is withdrawn: artel.toml says so, and the joined model no longer descends from \
         experts/{name}{}.",
        if documents > 0 { format!(" and its {documents} documents") } else { String::new() }
    );
    if args.delete_expert {
        eprintln!(
            "Its expert, examples and collection are deleted; its documents are still there."
        );
    } else {
        eprintln!("experts/{name} is still on disk; `--delete-expert` deletes it.");
    }
    eprintln!(
        "A running server keeps the old model until it is restarted. Copies and exports stay."
    );
    Ok(())
}

fn is_artifact(name: &str) -> bool {
    Kind::ALL.iter().any(|kind| name.starts_with(&format!("{}/", kind.folder())))
}
