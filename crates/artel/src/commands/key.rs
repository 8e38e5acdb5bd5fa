//! `artel key new`: an API key, shown once.

use std::fs::File;
use std::io::Read;

use anyhow::{Context, Result};

use crate::config::check_name;

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(clap::Subcommand)]
enum Action {
    /// Print a new secret and the lines for artel.toml
    New {
        /// Whose key it is
        name: String,
        /// The experts its requests may use
        #[arg(long, value_delimiter = ',', required = true)]
        experts: Vec<String>,
    },
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let Action::New { name, experts } = &args.action;
    check_name("key", name)?;
    for expert in experts {
        check_name("--experts", expert)?;
    }
    let secret = secret()?;
    eprintln!("The secret, shown only now; its owner sends it as `Authorization: Bearer …`:");
    println!("{secret}\n");
    eprintln!("For artel.toml:");
    println!("{}", toml_lines(name, &secret, experts));
    Ok(())
}

/// 256 random bits from the operating system.
fn secret() -> Result<String> {
    const SOURCE: &str = "/dev/urandom";
    let mut bytes = [0u8; 32];
    File::open(SOURCE)
        .and_then(|mut file| file.read_exact(&mut bytes))
        .with_context(|| format!("read random bytes from {SOURCE}"))?;
    Ok(format!("artel-{}", bytes.iter().map(|b| format!("{b:02x}")).collect::<String>()))
}

fn toml_lines(name: &str, secret: &str, experts: &[String]) -> String {
    let hash = store::Hash::of(secret.as_bytes());
    format!("[[serve.keys]]\nname = {name:?}\nhash = \"{hash}\"\nexperts = {experts:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_printed_lines_are_valid_configuration() {
        let text = format!(
            "base.model = \"b\"\ndepartments.a.documents = [\"d\"]\n{}\n",
            toml_lines("anna", &secret().unwrap(), &["a".into()])
        );
        let config = crate::config::Config::parse(&text, std::path::Path::new("/x")).unwrap();
        assert_eq!(config.serve.keys[0].experts, ["a"]);
        assert_ne!(secret().unwrap(), secret().unwrap());
    }
}
