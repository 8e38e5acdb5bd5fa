//! Readers: a file's bytes become Markdown blocks, each under its section path.
//!
//! A reader never panics on bad bytes and never returns half a document: it gives all blocks, or
//! the reason why the file is [`Unusable`].

mod docx;
mod html;
mod markdown;
mod pdf;
mod text;

use std::path::Path;

use serde::{Deserialize, Serialize};

/// The largest file that is read, in bytes. It is held in memory as a whole.
pub const MAX_FILE_BYTES: u64 = 1 << 30;
/// What a compressed part of a file (a DOCX entry, a PDF stream) may grow to, in bytes.
pub(crate) const MAX_UNPACKED_BYTES: usize = 256 << 20;

/// The formats that are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Markdown,
    Text,
    Html,
    Pdf,
    Docx,
}

impl Format {
    /// The format that the file's extension names.
    pub fn of(path: &Path) -> Option<Self> {
        let extension = path.extension()?.to_str()?.to_ascii_lowercase();
        Some(match extension.as_str() {
            "md" | "markdown" => Format::Markdown,
            "txt" | "text" => Format::Text,
            "html" | "htm" | "xhtml" => Format::Html,
            "pdf" => Format::Pdf,
            "docx" => Format::Docx,
            _ => return None,
        })
    }

    pub fn name(self) -> &'static str {
        match self {
            Format::Markdown => "markdown",
            Format::Text => "text",
            Format::Html => "html",
            Format::Pdf => "pdf",
            Format::Docx => "docx",
        }
    }
}

/// A document as it was read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Document {
    pub title: String,
    pub blocks: Vec<Block>,
}

/// What a block's Markdown is, which decides where it may be cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum BlockKind {
    Paragraph,
    /// Items begin at the start of a line with `- ` or `1. `; what belongs to them is indented.
    List,
    /// A header line, a rule line, and a line a row.
    Table,
    /// Lines of the form `**Term**: definition`, a blank line between them.
    Definitions,
    /// Fenced.
    Code,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Block {
    pub kind: BlockKind,
    /// The headings above it, outermost first.
    pub section: Vec<String>,
    /// Counted from 1, in formats that have pages.
    pub page: Option<u32>,
    pub text: String,
}

/// Why a file gives no document. The text before the first colon is the same for all files with
/// the same trouble, so that it can be counted.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Unusable {
    #[error("empty file")]
    Empty,
    #[error("binary content named .{extension}")]
    Binary { extension: String },
    #[error("encrypted {format}: save it without a password")]
    Encrypted { format: &'static str },
    #[error("broken {format}: {detail}")]
    Broken { format: &'static str, detail: String },
    #[error("too large: {what} has more than {limit} {unit}")]
    TooLarge { what: String, limit: u64, unit: &'static str },
    #[error("no text: {detail}")]
    NoText { detail: String },
}

/// Reads a file of the given format. `path` serves messages and the title of last resort.
///
/// # Errors
/// [`Unusable`].
pub fn read(format: Format, path: &Path, bytes: &[u8]) -> Result<Document, Unusable> {
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Err(Unusable::Empty);
    }
    let mut document = match format {
        Format::Markdown => markdown::read(&text::decode(path, bytes)?),
        Format::Text => text::read(&text::decode(path, bytes)?),
        Format::Html => html::read(&text::decode(path, bytes)?),
        Format::Pdf => pdf::read(bytes)?,
        Format::Docx => docx::read(bytes)?,
    };
    if document.blocks.is_empty() {
        return Err(Unusable::NoText { detail: "nothing is left after its markup".into() });
    }
    if document.title.is_empty() {
        document.title = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    }
    Ok(document)
}

impl Document {
    /// The whole document as Markdown, headings included.
    pub fn markdown(&self) -> String {
        let mut text = format!("# {}\n", self.title);
        let mut above: &[String] = &[];
        for block in &self.blocks {
            let shared = above.iter().zip(&block.section).take_while(|(a, b)| a == b).count();
            for (depth, heading) in block.section.iter().enumerate().skip(shared) {
                let marks = "#".repeat((depth + 2).min(6));
                text.push_str(&format!("\n{marks} {heading}\n"));
            }
            above = &block.section;
            text.push_str(&format!("\n{}\n", block.text));
        }
        text
    }
}

/// Collects blocks and keeps the section path.
#[derive(Default)]
pub(crate) struct Outline {
    title: String,
    headings: Vec<(usize, String)>,
    blocks: Vec<Block>,
    page: Option<u32>,
}

impl Outline {
    pub(crate) fn set_title(&mut self, title: &str) {
        self.title = one_line(title);
    }

    pub(crate) fn set_page(&mut self, page: u32) {
        self.page = Some(page);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.blocks.is_empty() && self.headings.is_empty()
    }

    /// Enters a section. Levels need not be consecutive.
    pub(crate) fn heading(&mut self, level: usize, text: &str) {
        let text = one_line(text);
        if text.is_empty() {
            return;
        }
        self.headings.retain(|(above, _)| *above < level);
        self.headings.push((level, text));
    }

    pub(crate) fn add(&mut self, kind: BlockKind, text: String) {
        let text = match kind {
            BlockKind::Code => text,
            _ => text.trim().to_owned(),
        };
        if text.trim().is_empty() {
            return;
        }
        let section = self.headings.iter().map(|(_, heading)| heading.clone()).collect();
        self.blocks.push(Block { kind, section, page: self.page, text });
    }

    /// Appends rows to the table before them if it is of the same section and has the same header.
    pub(crate) fn continue_table(&mut self, markdown: &str) -> bool {
        let header: Vec<&str> = markdown.lines().take(2).collect();
        let Some(last) = self.blocks.last_mut().filter(|block| block.kind == BlockKind::Table)
        else {
            return false;
        };
        let same = last.text.lines().take(2).eq(header.iter().copied());
        let here = last.section.iter().eq(self.headings.iter().map(|(_, heading)| heading));
        if same && here {
            for row in markdown.lines().skip(2) {
                last.text.push('\n');
                last.text.push_str(row);
            }
        }
        same && here
    }

    /// The document. A single heading above all blocks is its title, not a section.
    pub(crate) fn finish(mut self) -> Document {
        let first = self.blocks.first().and_then(|b| b.section.first()).cloned();
        if let Some(first) = first
            && self.blocks.iter().all(|b| b.section.first() == Some(&first))
            && (self.title.is_empty() || self.blocks.iter().any(|b| b.section.len() > 1))
        {
            for block in &mut self.blocks {
                block.section.remove(0);
            }
            self.title = first;
        }
        Document { title: self.title, blocks: self.blocks }
    }
}

/// White space, line ends too, becomes single spaces.
pub(crate) fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for word in text.split_whitespace() {
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    line
}

/// A pipe table. The first row is the header; rows are filled up to the widest.
pub(crate) fn pipe_table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    if columns == 0 {
        return String::new();
    }
    let mut text = String::new();
    for (index, row) in rows.iter().enumerate() {
        text.push('|');
        for column in 0..columns {
            let cell = row.get(column).map(|c| one_line(c).replace('|', "\\|")).unwrap_or_default();
            text.push_str(&format!(" {cell} |"));
        }
        text.push('\n');
        if index == 0 {
            text.push('|');
            text.push_str(&" --- |".repeat(columns));
            text.push('\n');
        }
    }
    text.trim_end().to_owned()
}

/// A fenced block whose fence is longer than any in the code.
pub(crate) fn fenced(code: &str) -> String {
    let code = code.trim_end().trim_start_matches('\n');
    let longest = code.lines().map(|l| l.trim_start().bytes().take_while(|&b| b == b'`').count());
    let fence = "`".repeat(longest.max().unwrap_or(0).max(2) + 1);
    format!("{fence}\n{code}\n{fence}")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `ARTEL_DOCUMENT=manual.pdf cargo test --release -p corpus -- --ignored --nocapture one_document`
    /// writes what is read as Markdown to stdout and figures to stderr.
    #[test]
    #[ignore = "reads the file that ARTEL_DOCUMENT names"]
    fn one_document() {
        let path = std::env::var("ARTEL_DOCUMENT").expect("ARTEL_DOCUMENT names a file");
        let path = Path::new(&path);
        let bytes = std::fs::read(path).unwrap();
        let start = std::time::Instant::now();
        let document = read(Format::of(path).expect("a known extension"), path, &bytes).unwrap();
        let seconds = start.elapsed().as_secs_f64();
        let text = document.markdown();
        println!("{text}");
        eprintln!(
            "{} blocks, {} words, {seconds:.1} s",
            document.blocks.len(),
            crate::chunk::words(&text)
        );
    }
}
