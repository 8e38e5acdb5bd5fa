//! `artel join`: a base and experts become one model.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Result;
use store::{Draft, Kind};
use train::join::{Member, join};

use crate::Setup;
use crate::stages::{Stage, Stages};

#[derive(clap::Args)]
pub(crate) struct Args {}

pub(crate) fn run(_: &Args, setup: &Setup) -> Result<()> {
    let config = setup.config()?;
    config.select(&[])?;
    let stages = Stages::new(&config, setup);
    let done = stages.perform(&Stage::Join)?;
    super::run::tell(&stages, &Stage::Join, &done);
    println!("{}", done.artifact.path.display());
    Ok(())
}

pub(crate) fn stage(stages: &Stages, draft: &mut Draft) -> Result<BTreeMap<String, u64>> {
    let member = |name: &String| Member {
        name: name.clone(),
        folder: stages.workspace.path(Kind::Expert, name),
    };
    let members: Vec<Member> = stages.active().map(|d| member(&d.name)).collect();
    // Seen from models/NAME, where the draft will be.
    let base = Path::new("..").join(stages.config.base_name());
    join(draft.folder(), &base, &members)?;
    Ok(BTreeMap::from([("experts".into(), members.len() as u64)]))
}
