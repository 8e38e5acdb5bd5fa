//! Setting `withdrawn = true` in `artel.toml`, and leaving all else in the file as it is.

use std::path::Path;

use anyhow::{Context, Result, anyhow, ensure};

use crate::config::{Config, FILE};
use crate::failure::Hint;

/// Marks the department as withdrawn in `root/artel.toml`.
///
/// # Errors
/// The file cannot be edited line by line (an inline table, for instance); it is then unchanged.
pub(crate) fn write(root: &Path, department: &str) -> Result<()> {
    let path = root.join(FILE);
    let text =
        std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let edited = edit(&text, department, root)?;
    let beside = root.join(format!(".{FILE}.new"));
    std::fs::write(&beside, edited)
        .and_then(|()| std::fs::rename(&beside, &path))
        .with_context(|| format!("write {}", path.display()))
}

/// The text with the department withdrawn.
///
/// # Errors
/// As [`write`].
pub(crate) fn edit(text: &str, department: &str, root: &Path) -> Result<String> {
    let headers = [
        format!("[departments.{department}]"),
        format!("[departments.\"{department}\"]"),
        format!("[departments.'{department}']"),
    ];
    let without_comment = |line: &str| line.split('#').next().unwrap_or("").trim().to_owned();
    let mut lines: Vec<&str> = text.lines().collect();
    let by_hand = || {
        anyhow!("{FILE} cannot be edited for {department:?}").context(Hint::new(format!(
            "put `withdrawn = true` into the table of departments.{department} by hand, then \
             `artel join`"
        )))
    };
    let at = lines
        .iter()
        .position(|line| headers.contains(&without_comment(line)))
        .ok_or_else(by_hand)?;
    let end = lines[at + 1..]
        .iter()
        .position(|line| line.trim_start().starts_with('['))
        .map_or(lines.len(), |offset| at + 1 + offset);
    let own = at + 1..end;
    let key = |line: &str| line.split('=').next().unwrap_or("").trim() == "withdrawn";
    match own.clone().find(|&index| key(lines[index])) {
        Some(index) => lines[index] = "withdrawn = true",
        None => lines.insert(at + 1, "withdrawn = true"),
    }
    let edited = lines.join("\n") + "\n";
    let config = Config::parse(&edited, root).map_err(|_| by_hand())?;
    ensure!(config.department(department)?.withdrawn, by_hand());
    Ok(edited)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_departments_own_table_is_touched() {
        let text = "base.model = \"m\"\n\n[departments.b]\ndocuments = [\"x\"]\n\n# the first\n\
                    [departments.a] # note\ndocuments = [\"d\"]\nwithdrawn = false\n";
        let check = |department, expected: &str| {
            let edited = edit(text, department, Path::new("/r")).unwrap();
            let changed: Vec<&str> =
                edited.lines().filter(|line| !text.lines().any(|l| l == *line)).collect();
            assert_eq!(changed, ["withdrawn = true"]);
            let config = Config::parse(&edited, Path::new("/r")).unwrap();
            for department in &config.departments {
                assert_eq!(department.withdrawn, department.name == expected);
            }
            assert!(edited.contains("# the first") && edited.contains("# note"));
        };
        check("a", "a");
        check("b", "b");
    }

    #[test]
    fn what_cannot_be_edited_is_left_alone() {
        let text = "base.model = \"m\"\ndepartments.a = { documents = [\"d\"] }\n";
        let error = edit(text, "a", Path::new("/r")).unwrap_err();
        assert!(crate::failure::report(&error).contains("by hand"));
    }
}
