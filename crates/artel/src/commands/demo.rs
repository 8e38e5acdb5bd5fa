//! `artel demo`: the whole path on the bundled example company.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::Setup;
use crate::config::{Config, FILE};
use crate::failure::Hint;
use crate::progress::duration;
use crate::stages::Stages;
use crate::withdrawal;

use super::{eval, pull, run};

/// The example company, as it was when this binary was built.
mod company {
    include!(concat!(env!("OUT_DIR"), "/company.rs"));
}

#[derive(clap::Args)]
pub(crate) struct Args {
    /// How many departments, or which ones (all: maintenance,operations,quality)
    #[arg(long, default_value = "2")]
    departments: String,
    /// The figures as one JSON object in the last line
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args, setup: &Setup) -> Result<()> {
    let begun = Instant::now();
    let folder = setup.folder_or("demo");
    if !folder.join(FILE).is_file() {
        copy_company(&folder, &args.departments)?;
        eprintln!("The example company is in {}.", folder.display());
    }
    let config = Config::read(&folder)?;
    let stages = Stages::new(&config, setup);
    eprintln!("Every stage can be interrupted (Ctrl-C); `artel demo` then goes on where it was.\n");
    pull::pull(&stages.workspace, &config.base, &config.base_name(), "main", false)?;
    for stage in stages.all() {
        let done = stages.perform(&stage)?;
        run::tell(&stages, &stage, &done);
    }
    eprintln!("\nAll of it took {}.\n", duration(begun.elapsed()));
    eval::print_table(&stages, &stages.config.name)?;
    eprint!("{}", what_next(&folder));
    if args.json {
        println!(
            "{}",
            to_json(
                &eval::read_report(&stages, &stages.config.name)?,
                begun.elapsed().as_secs_f64()
            )
        );
    }
    Ok(())
}

/// Writes the company's files into a new folder, with the departments that are wanted.
fn copy_company(folder: &Path, departments: &str) -> Result<()> {
    let empty = fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_none());
    ensure!(
        empty || !folder.exists(),
        "{} exists and is no demo: it has no {FILE}; choose another with `-C FOLDER`",
        folder.display()
    );
    let parent: PathBuf = match folder.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.into(),
        _ => ".".into(),
    };
    // Made beside its place and renamed: a folder with an artel.toml is whole.
    let draft = tempfile::Builder::new()
        .prefix(".artel-demo-")
        .tempdir_in(&parent)
        .with_context(|| format!("make a folder in {}", parent.display()))?;
    for (name, bytes) in company::FILES {
        let path = draft.path().join(name);
        let parent = path.parent().unwrap_or(draft.path());
        fs::create_dir_all(parent)
            .and_then(|()| fs::write(&path, bytes))
            .with_context(|| format!("write {}", path.display()))?;
    }
    choose(draft.path(), departments)?;
    fs::rename(draft.path(), folder).with_context(|| format!("make {}", folder.display()))?;
    // Renamed away: there is nothing left to remove.
    let _ = draft.keep();
    Ok(())
}

/// Withdraws the departments that the demo leaves out.
fn choose(folder: &Path, wanted: &str) -> Result<()> {
    let config = Config::read(folder)?;
    let all: Vec<&str> = config.departments.iter().map(|d| d.name.as_str()).collect();
    let chosen: Vec<&str> = match wanted.parse::<usize>() {
        Ok(count) => all.iter().copied().take(count).collect(),
        Err(_) => wanted.split(',').map(str::trim).collect(),
    };
    if chosen.is_empty() || chosen.iter().any(|name| !all.contains(name)) {
        return Err(anyhow::anyhow!("--departments {wanted:?} is no choice of departments")
            .context(Hint::new(format!("1 to {}, or names: {}", all.len(), all.join(",")))));
    }
    for name in all.iter().filter(|name| !chosen.contains(name)) {
        withdrawal::write(folder, name)?;
    }
    Ok(())
}

fn what_next(folder: &Path) -> String {
    format!(
        "\nTalk to it:               artel -C {0} chat\n\
         Serve it:                 artel -C {0} serve\n\
         Train what was left out:  delete `withdrawn = true` in {0}/{FILE}, then artel -C {0} run\n\
         Your own documents:       artel new mycompany\n\
         (artel is target/release/artel where it is not installed)\n",
        folder.display()
    )
}

fn to_json(report: &::eval::Report, seconds: f64) -> Value {
    let departments: Vec<Value> = report
        .departments
        .iter()
        .filter_map(|department| {
            let compared = department.calibrated.as_ref()?;
            let interval = compared.difference.interval.as_ref();
            Some(json!({
                "name": department.name,
                "questions": compared.after.total,
                "before": compared.before.value,
                "after": compared.after.value,
                "low": interval.map(|interval| interval.low),
                "high": interval.map(|interval| interval.high),
            }))
        })
        .collect();
    json!({
        "departments": departments,
        "forgetting_nats": report.forgetting.as_ref().map(|f| f.divergence.value),
        // The evaluation refuses to write a report where it is not so.
        "base_exact": true,
        "seconds": (seconds * 10.0).round() / 10.0,
    })
}
