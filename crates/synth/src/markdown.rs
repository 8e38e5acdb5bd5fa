//! A chunk's Markdown as a list of blocks with clean text, each with the source it stands in.

use std::ops::Range;

use pulldown_cmark::{Event, Options, Parser, Tag, TagEnd};

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Block {
    Heading(String),
    Paragraph(Span),
    List { ordered: bool, items: Vec<Span> },
    Table { header: Vec<String>, rows: Vec<Row> },
    Definition { term: String, text: Span },
}

/// Running text.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Span {
    /// Lines as they stand in the source, without markup.
    pub(crate) lines: Vec<String>,
    /// The bold, italic or code span it begins with.
    pub(crate) lead: Option<String>,
    pub(crate) source: String,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Row {
    pub(crate) cells: Vec<String>,
    pub(crate) source: String,
}

impl Span {
    /// The text on one line.
    pub(crate) fn text(&self) -> String {
        tidy(&self.lines.join(" "))
    }
}

pub(crate) fn blocks(markdown: &str) -> Vec<Block> {
    let options = Options::ENABLE_TABLES | Options::ENABLE_DEFINITION_LIST;
    let mut reader = Reader { markdown, ..Reader::default() };
    for (event, range) in Parser::new_ext(markdown, options).into_offset_iter() {
        reader.take(event, range);
    }
    reader.blocks
}

#[derive(Default)]
struct Reader<'a> {
    markdown: &'a str,
    blocks: Vec<Block>,
    text: String,
    lead: Option<String>,
    /// Set while inside a bold or code span that began its paragraph: where its text starts.
    lead_start: Option<usize>,
    depth: usize,
    items: Vec<Span>,
    item_start: Range<usize>,
    header: Vec<String>,
    rows: Vec<Row>,
    cells: Vec<String>,
    term: String,
    skip: usize,
}

impl Reader<'_> {
    fn take(&mut self, event: Event, range: Range<usize>) {
        match event {
            Event::Start(tag) => self.start(tag, range),
            Event::End(tag) => self.end(tag, range),
            _ if self.skip > 0 => {}
            Event::Text(text) => self.text.push_str(&text),
            Event::Code(code) => {
                if self.text.trim().is_empty() && self.lead.is_none() {
                    self.lead = Some(tidy(&code));
                }
                self.text.push_str(&code);
            }
            Event::InlineHtml(html) if html.to_lowercase().starts_with("<br") => {
                self.text.push('\n');
            }
            Event::SoftBreak | Event::HardBreak => self.text.push('\n'),
            _ => {}
        }
    }

    fn start(&mut self, tag: Tag, range: Range<usize>) {
        match tag {
            Tag::Paragraph | Tag::Heading { .. } if self.depth == 0 => self.clear(),
            Tag::Paragraph if !self.text.is_empty() => self.text.push('\n'),
            Tag::CodeBlock(_) | Tag::HtmlBlock | Tag::Image { .. } => self.skip += 1,
            Tag::Strong | Tag::Emphasis if self.text.trim().is_empty() && self.lead.is_none() => {
                self.lead_start = Some(self.text.len());
            }
            Tag::List(_) => {
                self.depth += 1;
                if self.depth == 1 {
                    self.items.clear();
                } else {
                    let open = self.text.trim_end().ends_with(':');
                    self.text.push_str(if open { " " } else { ": " });
                }
            }
            Tag::Item if self.depth == 1 => {
                self.clear();
                self.item_start = range;
            }
            Tag::Table(_) => {
                self.header.clear();
                self.rows.clear();
            }
            Tag::TableHead | Tag::TableRow => self.cells.clear(),
            Tag::TableCell | Tag::DefinitionListTitle | Tag::DefinitionListDefinition => {
                self.clear();
                self.depth += usize::from(matches!(tag, Tag::DefinitionListDefinition));
            }
            _ => {}
        }
    }

    fn end(&mut self, tag: TagEnd, range: Range<usize>) {
        match tag {
            TagEnd::CodeBlock | TagEnd::HtmlBlock | TagEnd::Image => self.skip -= 1,
            TagEnd::Strong | TagEnd::Emphasis => {
                if let Some(start) = self.lead_start.take() {
                    self.lead = Some(tidy(&self.text[start..]));
                }
            }
            TagEnd::Heading(_) => {
                let text = tidy(&self.text);
                self.blocks.push(Block::Heading(text));
                self.clear();
            }
            TagEnd::Paragraph if self.depth == 0 => {
                let span = self.span(range);
                self.blocks.push(Block::Paragraph(span));
            }
            TagEnd::Item if self.depth == 1 => {
                let span = self.span(range);
                self.items.push(span);
            }
            TagEnd::Item => self.text.push_str("; "),
            TagEnd::List(ordered) => {
                self.depth -= 1;
                if self.depth == 0 {
                    let items = std::mem::take(&mut self.items);
                    self.blocks.push(Block::List { ordered, items });
                }
            }
            TagEnd::TableCell => self.cells.push(tidy(&self.text)),
            TagEnd::TableHead => self.header = std::mem::take(&mut self.cells),
            TagEnd::TableRow => {
                let source = self.markdown[range].trim().to_owned();
                self.rows.push(Row { cells: std::mem::take(&mut self.cells), source });
            }
            TagEnd::Table => {
                let (header, rows) =
                    (std::mem::take(&mut self.header), std::mem::take(&mut self.rows));
                self.blocks.push(Block::Table { header, rows });
                self.clear();
            }
            TagEnd::DefinitionListTitle => self.term = tidy(&self.text),
            TagEnd::DefinitionListDefinition => {
                self.depth -= 1;
                let (term, text) = (self.term.clone(), self.span(range));
                self.blocks.push(Block::Definition { term, text });
            }
            _ => {}
        }
    }

    fn clear(&mut self) {
        self.text.clear();
        self.lead = None;
        self.lead_start = None;
    }

    fn span(&mut self, range: Range<usize>) -> Span {
        let lines: Vec<String> =
            self.text.lines().map(tidy).filter(|line| !line.is_empty()).collect();
        let lead = self.lead.take().filter(|lead| !lead.is_empty());
        let source = self.markdown[range].trim().to_owned();
        self.clear();
        Span { lines, lead, source }
    }
}

/// One space between words, none before punctuation, no dangling separators.
pub(crate) fn tidy(text: &str) -> String {
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let text = text.replace(" ;", ";").replace(": : ", ": ").replace(" : ", ": ");
    text.trim().trim_end_matches(';').trim_end().replace(".;", ";")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_keep_structure_and_lose_markup() {
        let found = blocks(
            "# Faults\n\n**Reset**: press `K7`.\nDone.\n\n1. Open *it*.\n2. Close:\n   - a\n   - b\n\n\
             | Code | Meaning |\n|---|---|\n| E-1 | **Hot** [pump](x) |\n",
        );
        insta::assert_debug_snapshot!(found);
    }
}
