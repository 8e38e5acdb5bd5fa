//! DOCX: WordprocessingML in a zip archive. Headings by style, tables, numbered lists; tracked
//! insertions are text, tracked deletions are not.
//!
//! Source: ECMA-376, part 1, §17.

use std::collections::HashMap;
use std::io::{Cursor, Read};

use quick_xml::XmlVersion;
use quick_xml::events::{BytesStart, Event};
use quick_xml::reader::Reader;
use zip::ZipArchive;

use super::{BlockKind, Document, MAX_UNPACKED_BYTES, Outline, Unusable, one_line, pipe_table};

const FORMAT: &str = "DOCX";
/// Entries an archive may list.
const MAX_ENTRIES: usize = 100_000;
/// Tables within tables beyond this are taken as text of the outer cell.
const MAX_TABLE_DEPTH: usize = 16;

pub(super) fn read(bytes: &[u8]) -> Result<Document, Unusable> {
    // An encrypted DOCX is an OLE container, not a zip archive.
    if bytes.starts_with(&[0xd0, 0xcf, 0x11, 0xe0, 0xa1, 0xb1, 0x1a, 0xe1]) {
        return Err(Unusable::Encrypted { format: FORMAT });
    }
    let mut archive = ZipArchive::new(Cursor::new(bytes)).map_err(|e| broken(&e))?;
    if archive.len() > MAX_ENTRIES {
        let limit = MAX_ENTRIES as u64;
        return Err(Unusable::TooLarge { what: "its archive".into(), limit, unit: "entries" });
    }
    let Some(body) = entry(&mut archive, "word/document.xml")? else {
        return Err(Unusable::Broken { format: FORMAT, detail: "no word/document.xml".into() });
    };
    let styles = match entry(&mut archive, "word/styles.xml")? {
        Some(xml) => styles(&xml)?,
        None => HashMap::new(),
    };
    let numbering = match entry(&mut archive, "word/numbering.xml")? {
        Some(xml) => numbering(&xml)?,
        None => Numbering::default(),
    };
    let mut reading = Reading {
        styles,
        numbering,
        outline: Outline::default(),
        counters: HashMap::new(),
        list: String::new(),
        list_id: String::new(),
        tables: Vec::new(),
        paragraph: Paragraph::default(),
        deleted: 0,
        skipped: 0,
        in_text: false,
    };
    if let Some(core) = entry(&mut archive, "docProps/core.xml")? {
        reading.outline.set_title(&core_title(&core)?);
    }
    reading.document(&body)?;
    reading.end_list();
    Ok(reading.outline.finish())
}

fn broken(error: &dyn std::fmt::Display) -> Unusable {
    Unusable::Broken { format: FORMAT, detail: error.to_string() }
}

/// An entry's text, which the archive may compress beyond measure: reading stops at the limit,
/// whatever size the archive states.
fn entry(archive: &mut ZipArchive<Cursor<&[u8]>>, name: &str) -> Result<Option<String>, Unusable> {
    let file = match archive.by_name(name) {
        Ok(file) => file,
        Err(zip::result::ZipError::FileNotFound) => return Ok(None),
        Err(e) => return Err(broken(&e)),
    };
    let mut bytes = Vec::new();
    let limit = MAX_UNPACKED_BYTES as u64;
    file.take(limit + 1).read_to_end(&mut bytes).map_err(|e| broken(&format!("{name}: {e}")))?;
    if bytes.len() as u64 > limit {
        return Err(Unusable::TooLarge { what: name.into(), limit, unit: "bytes when unpacked" });
    }
    let (text, _, _) = encoding_rs::UTF_8.decode(&bytes);
    Ok(Some(text.into_owned()))
}

/// The value of an attribute, whatever its namespace prefix.
fn attribute(element: &BytesStart, name: &str) -> Option<String> {
    let found = element.attributes().flatten().find(|a| a.key.local_name().as_ref() == name);
    Some(found?.normalized_value(XmlVersion::Implicit1_0).ok()?.into_owned())
}

/// `<w:b/>` and `<w:b w:val="1"/>` switch on, `"0"` and `"false"` off.
fn is_on(element: &BytesStart) -> bool {
    !matches!(attribute(element, "val").as_deref(), Some("0" | "false" | "off" | "none"))
}

/// What a paragraph style says: its heading level, and its list.
#[derive(Clone, Default)]
struct Style {
    level: Option<usize>,
    is_title: bool,
    is_toc: bool,
    list: Option<(String, usize)>,
}

fn styles(xml: &str) -> Result<HashMap<String, Style>, Unusable> {
    let mut styles = HashMap::new();
    let mut parents: HashMap<String, String> = HashMap::new();
    let mut id = String::new();
    let mut style = Style::default();
    let mut reader = Reader::from_str(xml);
    loop {
        match reader.read_event().map_err(|e| broken(&e))? {
            Event::Start(e) | Event::Empty(e) => match e.local_name().as_ref() {
                "style" => {
                    id = attribute(&e, "styleId").unwrap_or_default();
                    style = Style::default();
                }
                "name" => {
                    let name = attribute(&e, "val").unwrap_or_default().to_ascii_lowercase();
                    style.is_title = name == "title";
                    style.is_toc = name.starts_with("toc ");
                    let level = name.strip_prefix("heading ").and_then(|n| n.trim().parse().ok());
                    style.level = level.or(style.level);
                }
                "basedOn" => {
                    parents.insert(id.clone(), attribute(&e, "val").unwrap_or_default());
                }
                "outlineLvl" => style.level = style.level.or_else(|| outline_level(&e)),
                "numId" => {
                    style.list = attribute(&e, "val").map(|list| (list, 0));
                }
                _ => {}
            },
            Event::End(e) if e.local_name().as_ref() == "style" => {
                styles.insert(std::mem::take(&mut id), style.clone());
            }
            Event::Eof => break,
            _ => {}
        }
    }
    let inherited: Vec<(String, Style)> =
        styles.keys().map(|id| (id.clone(), inherit(id, &styles, &parents))).collect();
    Ok(inherited.into_iter().collect())
}

/// Levels 0 to 8 are headings, 9 is body text.
fn outline_level(element: &BytesStart) -> Option<usize> {
    let level: usize = attribute(element, "val")?.parse().ok()?;
    (level < 9).then_some(level + 1)
}

fn inherit(id: &str, styles: &HashMap<String, Style>, parents: &HashMap<String, String>) -> Style {
    let mut style = styles.get(id).cloned().unwrap_or_default();
    let mut above = parents.get(id);
    // A chain longer than the number of styles is a circle.
    for _ in 0..styles.len() {
        let Some(parent) = above.and_then(|id| styles.get(id)) else { break };
        style.level = style.level.or(parent.level);
        style.list = style.list.or_else(|| parent.list.clone());
        style.is_toc |= parent.is_toc;
        above = above.and_then(|id| parents.get(id));
    }
    style
}

/// Which lists count: (list, level) → first number.
#[derive(Default)]
struct Numbering {
    lists: HashMap<String, String>,
    ordered: HashMap<(String, usize), u64>,
}

impl Numbering {
    fn start(&self, list: &str, level: usize) -> Option<u64> {
        let definition = self.lists.get(list)?;
        self.ordered.get(&(definition.clone(), level)).copied()
    }
}

fn numbering(xml: &str) -> Result<Numbering, Unusable> {
    let mut numbering = Numbering::default();
    let (mut definition, mut list, mut level, mut start) = (String::new(), String::new(), 0, 1);
    let mut reader = Reader::from_str(xml);
    loop {
        match reader.read_event().map_err(|e| broken(&e))? {
            Event::Start(e) | Event::Empty(e) => {
                let number = |name| attribute(&e, name).and_then(|v| v.parse().ok());
                match e.local_name().as_ref() {
                    "abstractNum" => {
                        definition = attribute(&e, "abstractNumId").unwrap_or_default()
                    }
                    "lvl" => (level, start) = (number("ilvl").unwrap_or(0) as usize, 1),
                    "start" => start = number("val").unwrap_or(1),
                    "numFmt"
                        if !matches!(attribute(&e, "val").as_deref(), Some("bullet" | "none")) =>
                    {
                        numbering.ordered.insert((definition.clone(), level), start);
                    }
                    "num" => list = attribute(&e, "numId").unwrap_or_default(),
                    "abstractNumId" => {
                        numbering
                            .lists
                            .insert(list.clone(), attribute(&e, "val").unwrap_or_default());
                    }
                    _ => {}
                }
            }
            Event::Eof => return Ok(numbering),
            _ => {}
        }
    }
}

fn core_title(xml: &str) -> Result<String, Unusable> {
    let mut reader = Reader::from_str(xml);
    let mut title = String::new();
    let mut inside = false;
    loop {
        match reader.read_event().map_err(|e| broken(&e))? {
            Event::Start(e) => inside = e.local_name().as_ref() == "title",
            Event::Text(t) if inside => title.push_str(&t),
            Event::GeneralRef(r) if inside => title.push_str(&reference(&r)),
            Event::End(_) => inside = false,
            Event::Eof => return Ok(title),
            _ => {}
        }
    }
}

/// `&amp;`, `&#8211;`: the characters that XML itself names.
fn reference(entity: &quick_xml::events::BytesRef) -> String {
    if let Ok(Some(character)) = entity.resolve_char_ref() {
        return character.to_string();
    }
    let name: &str = entity;
    quick_xml::escape::resolve_xml_entity(name).unwrap_or_default().to_owned()
}

#[derive(Default)]
struct Paragraph {
    text: String,
    style: String,
    level: Option<usize>,
    /// The list's id and the level in it.
    list: Option<String>,
    list_level: Option<usize>,
}

struct Table {
    rows: Vec<Vec<String>>,
    cell: String,
    /// How many columns the current cell spans, and whether it goes on from the row above.
    across: usize,
    continued: bool,
    header_rows: usize,
}

struct Reading {
    styles: HashMap<String, Style>,
    numbering: Numbering,
    outline: Outline,
    /// (list, level) → the last number given.
    counters: HashMap<(String, usize), u64>,
    /// The list that is being read, as Markdown, and its id.
    list: String,
    list_id: String,
    tables: Vec<Table>,
    paragraph: Paragraph,
    /// Open elements whose text was deleted, and open elements that are fallbacks for others.
    deleted: usize,
    skipped: usize,
    in_text: bool,
}

/// Cells that a span may stand for.
const MAX_SPAN: usize = 100;

impl Reading {
    fn document(&mut self, xml: &str) -> Result<(), Unusable> {
        let mut reader = Reader::from_str(xml);
        loop {
            match reader.read_event().map_err(|e| broken(&e))? {
                Event::Start(e) => self.start(&e),
                Event::Empty(e) => {
                    self.start(&e);
                    self.end(e.local_name().as_ref());
                }
                Event::End(e) => self.end(e.local_name().as_ref()),
                Event::Text(t) if self.takes_text() => {
                    self.paragraph.text.push_str(&t);
                }
                Event::GeneralRef(r) if self.takes_text() => {
                    self.paragraph.text.push_str(&reference(&r));
                }
                Event::Eof => return Ok(()),
                _ => {}
            }
        }
    }

    fn takes_text(&self) -> bool {
        self.in_text && self.deleted == 0 && self.skipped == 0
    }

    fn start(&mut self, e: &BytesStart) {
        match e.local_name().as_ref() {
            "del" | "moveFrom" => self.deleted += 1,
            // The same content again, for older programs.
            "Fallback" => self.skipped += 1,
            _ if self.skipped > 0 => {}
            "t" => self.in_text = true,
            "tab" if self.deleted == 0 => self.paragraph.text.push(' '),
            "br" | "cr" if self.deleted == 0 => self.paragraph.text.push(' '),
            "noBreakHyphen" if self.deleted == 0 => self.paragraph.text.push('-'),
            "pStyle" => self.paragraph.style = attribute(e, "val").unwrap_or_default(),
            "outlineLvl" => self.paragraph.level = outline_level(e),
            "numId" => self.paragraph.list = attribute(e, "val"),
            "ilvl" => {
                self.paragraph.list_level = attribute(e, "val").and_then(|v| v.parse().ok());
            }
            "tbl" if self.tables.len() < MAX_TABLE_DEPTH => {
                self.end_list();
                self.tables.push(Table {
                    rows: Vec::new(),
                    cell: String::new(),
                    across: 1,
                    continued: false,
                    header_rows: 0,
                });
            }
            "tbl" => self.skipped += 1,
            name => self.start_in_table(name, e),
        }
    }

    fn start_in_table(&mut self, name: &str, e: &BytesStart) {
        let Some(table) = self.tables.last_mut() else { return };
        match name {
            "tr" => table.rows.push(Vec::new()),
            "tc" => (table.across, table.continued) = (1, false),
            "gridSpan" => {
                let across = attribute(e, "val").and_then(|v| v.parse().ok()).unwrap_or(1);
                table.across = usize::clamp(across, 1, MAX_SPAN);
            }
            "vMerge" => table.continued = attribute(e, "val").as_deref() != Some("restart"),
            "tblHeader" if is_on(e) => table.header_rows = table.rows.len(),
            _ => {}
        }
    }

    fn end(&mut self, name: &str) {
        match name {
            "del" | "moveFrom" => self.deleted = self.deleted.saturating_sub(1),
            "Fallback" => self.skipped = self.skipped.saturating_sub(1),
            "tbl" if self.skipped > 0 => self.skipped -= 1,
            _ if self.skipped > 0 => {}
            "t" => self.in_text = false,
            "p" => self.end_paragraph(),
            "tc" => self.end_cell(),
            "tbl" => self.end_table(),
            _ => {}
        }
    }

    fn end_paragraph(&mut self) {
        let paragraph = std::mem::take(&mut self.paragraph);
        let text = one_line(&paragraph.text);
        if text.is_empty() {
            return;
        }
        let style = self.styles.get(&paragraph.style).cloned().unwrap_or_default();
        if style.is_toc {
            return;
        }
        let list = match &paragraph.list {
            Some(list) if list == "0" => None,
            Some(list) => Some((list.clone(), paragraph.list_level.unwrap_or(0))),
            None => style.list.map(|(list, level)| (list, paragraph.list_level.unwrap_or(level))),
        };
        let level = paragraph.level.or(style.level);
        if let Some(table) = self.tables.last_mut() {
            if !table.cell.is_empty() {
                table.cell.push_str(if list.is_some() { "; " } else { " " });
            }
            table.cell.push_str(&text);
        } else if style.is_title {
            self.end_list();
            self.outline.set_title(&text);
        } else if let Some(level) = level {
            self.end_list();
            self.outline.heading(level, &text);
        } else if let Some((list, level)) = list {
            self.item(list, level, &text);
        } else {
            self.end_list();
            self.outline.add(BlockKind::Paragraph, text);
        }
    }

    fn item(&mut self, list: String, level: usize, text: &str) {
        let level = level.min(8);
        if level == 0 && self.list_id != list {
            self.end_list();
            self.list_id.clone_from(&list);
        }
        for deeper in level + 1..9 {
            self.counters.remove(&(list.clone(), deeper));
        }
        let marker = match self.numbering.start(&list, level) {
            Some(start) => {
                let last = self.counters.entry((list, level)).or_insert(start.saturating_sub(1));
                *last = last.saturating_add(1);
                format!("{last}.")
            }
            None => "-".into(),
        };
        // The first item of a block stands at the start of its line, whatever its level.
        let indent = if self.list.is_empty() { 0 } else { level * 3 };
        self.list.push_str(&format!("{}{marker} {text}\n", " ".repeat(indent)));
    }

    fn end_list(&mut self) {
        let list = std::mem::take(&mut self.list);
        self.outline.add(BlockKind::List, list);
    }

    fn end_cell(&mut self) {
        let Some(table) = self.tables.last_mut() else { return };
        let mut text = one_line(&std::mem::take(&mut table.cell));
        let above = table.rows.len().checked_sub(2);
        let Some(column) = table.rows.last().map(Vec::len) else { return };
        if table.continued
            && let Some(above) = above.and_then(|row| table.rows[row].get(column))
        {
            text = above.clone();
        }
        let across = table.across;
        let header = table.header_rows == table.rows.len();
        if let Some(row) = table.rows.last_mut() {
            row.push(text.clone());
            row.extend((1..across).map(|_| if header { text.clone() } else { String::new() }));
        }
    }

    fn end_table(&mut self) {
        let Some(mut table) = self.tables.pop() else { return };
        table.rows.retain(|row| row.iter().any(|cell| !cell.is_empty()));
        if let Some(outer) = self.tables.last_mut() {
            let text = table.rows.concat().join("; ");
            outer.cell.push_str(&format!(" {text}"));
        } else if table.rows.iter().all(|row| row.len() == 1) {
            // A box around text, not a table.
            for row in table.rows {
                self.outline.add(BlockKind::Paragraph, row.concat());
            }
        } else {
            self.outline.add(BlockKind::Table, pipe_table(&table.rows));
        }
    }
}
