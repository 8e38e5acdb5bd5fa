//! Content streams of a PDF: the words of a page with their places, and its ruled lines.
//!
//! Source: ISO 32000-1, §8.4, §9.4.

use std::collections::HashMap;
use std::rc::Rc;

use lopdf::content::Content;
use lopdf::{Dictionary, Document, Object, ObjectId, Stream};

use super::font::{Font, dictionary};
use crate::read::{MAX_UNPACKED_BYTES, Unusable};

/// Form XObjects within each other.
const MAX_FORM_DEPTH: usize = 12;
/// Saved graphics states.
const MAX_STATES: usize = 512;
/// What one page may make the reader do, form XObjects included.
const MAX_OPERATIONS: usize = 5_000_000;
/// A gap of this many font sizes separates words.
const WORD_GAP: f32 = 0.15;

/// Letters without a gap. Coordinates are points; y grows upwards.
#[derive(Clone, Debug)]
pub(super) struct Word {
    pub(super) text: String,
    pub(super) x0: f32,
    pub(super) x1: f32,
    /// Of the baseline.
    pub(super) y: f32,
    pub(super) size: f32,
    pub(super) bold: bool,
    pub(super) mono: bool,
}

/// A thin line or the edge of a box.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rule {
    pub(super) x0: f32,
    pub(super) y0: f32,
    pub(super) x1: f32,
    pub(super) y1: f32,
}

#[derive(Default)]
pub(super) struct Page {
    pub(super) words: Vec<Word>,
    pub(super) rules: Vec<Rule>,
    pub(super) height: f32,
    /// Codes that no font gave a character for.
    pub(super) unmapped: usize,
}

/// Fonts by their object, read once for the whole document.
#[derive(Default)]
pub(super) struct Fonts(HashMap<ObjectId, Rc<Font>>);

type Matrix = [f32; 6];
const IDENTITY: Matrix = [1.0, 0.0, 0.0, 1.0, 0.0, 0.0];

/// `a` applied before `b`.
fn product(a: &Matrix, b: &Matrix) -> Matrix {
    [
        a[0] * b[0] + a[1] * b[2],
        a[0] * b[1] + a[1] * b[3],
        a[2] * b[0] + a[3] * b[2],
        a[2] * b[1] + a[3] * b[3],
        a[4] * b[0] + a[5] * b[2] + b[4],
        a[4] * b[1] + a[5] * b[3] + b[5],
    ]
}

fn apply(m: &Matrix, x: f32, y: f32) -> (f32, f32) {
    (x * m[0] + y * m[2] + m[4], x * m[1] + y * m[3] + m[5])
}

/// Reads a page.
///
/// # Errors
/// [`Unusable::TooLarge`] for a page beyond the limits. A page whose content is broken is read as
/// far as it goes.
pub(super) fn page(document: &Document, id: ObjectId, fonts: &mut Fonts) -> Result<Page, Unusable> {
    let content = match document.get_page_content_with_limit(id, MAX_UNPACKED_BYTES) {
        Ok(content) => content,
        Err(lopdf::Error::Decompress(lopdf::DecompressError::MemoryLimitExceeded { .. })) => {
            let limit = MAX_UNPACKED_BYTES as u64;
            return Err(Unusable::TooLarge {
                what: "a page".into(),
                limit,
                unit: "bytes when unpacked",
            });
        }
        Err(_) => Vec::new(),
    };
    let (rotation, height) = frame(document, id);
    let mut interpreter = Interpreter {
        document,
        fonts,
        state: State { matrix: rotation, ..State::default() },
        states: Vec::new(),
        text: IDENTITY,
        line: IDENTITY,
        path: Vec::new(),
        start: (0.0, 0.0),
        at: (0.0, 0.0),
        word: None,
        marks: Vec::new(),
        operations: 0,
        page: Page { height, ..Page::default() },
        sideways: Vec::new(),
    };
    let resources = resources(document, id);
    interpreter.run(&content, &resources, 0)?;
    interpreter.end_word();
    Ok(interpreter.finish())
}

/// The matrix that turns the page upright, and the upright page's height.
fn frame(document: &Document, id: ObjectId) -> (Matrix, f32) {
    let inherited = |key: &[u8]| inherited(document, id, key);
    let media: Vec<f32> = inherited(b"MediaBox")
        .and_then(|object| object.as_array().ok())
        .map(|numbers| {
            numbers.iter().filter_map(|n| document.dereference(n).ok()?.1.as_float().ok()).collect()
        })
        .unwrap_or_default();
    let &[x0, y0, x1, y1] = media.as_slice() else { return (IDENTITY, 792.0) };
    let (x0, y0, x1, y1) = (x0.min(x1), y0.min(y1), x0.max(x1), y0.max(y1));
    let turns =
        inherited(b"Rotate").and_then(|object| object.as_i64().ok()).unwrap_or(0).rem_euclid(360);
    match turns {
        90 => ([0.0, -1.0, 1.0, 0.0, -y0, x1], x1 - x0),
        180 => ([-1.0, 0.0, 0.0, -1.0, x1, y1], y1 - y0),
        270 => ([0.0, 1.0, -1.0, 0.0, y1, -x0], x1 - x0),
        _ => ([1.0, 0.0, 0.0, 1.0, -x0, -y0], y1 - y0),
    }
}

/// Page trees are not deep.
const MAX_PARENTS: usize = 64;

fn inherited<'a>(document: &'a Document, id: ObjectId, key: &[u8]) -> Option<&'a Object> {
    let mut node = document.get_dictionary(id).ok()?;
    for _ in 0..MAX_PARENTS {
        if let Ok(value) = node.get_deref(key, document) {
            return Some(value);
        }
        node = dictionary(document, node, b"Parent")?;
    }
    None
}

fn resources(document: &Document, id: ObjectId) -> Dictionary {
    let found = inherited(document, id, b"Resources").and_then(|object| object.as_dict().ok());
    found.cloned().unwrap_or_default()
}

#[derive(Clone)]
struct State {
    matrix: Matrix,
    font: Option<Rc<Font>>,
    size: f32,
    character_spacing: f32,
    word_spacing: f32,
    scale: f32,
    leading: f32,
    rise: f32,
}

impl Default for State {
    fn default() -> Self {
        State {
            matrix: IDENTITY,
            font: None,
            size: 0.0,
            character_spacing: 0.0,
            word_spacing: 0.0,
            scale: 1.0,
            leading: 0.0,
            rise: 0.0,
        }
    }
}

struct Interpreter<'a> {
    document: &'a Document,
    fonts: &'a mut Fonts,
    state: State,
    states: Vec<State>,
    text: Matrix,
    line: Matrix,
    path: Vec<Rule>,
    start: (f32, f32),
    at: (f32, f32),
    /// The word that is being written, and whether a space came after it.
    word: Option<(Word, bool)>,
    /// Open marked content: whether it is an artifact (a running header, a page number).
    marks: Vec<bool>,
    operations: usize,
    page: Page,
    /// Words whose baseline runs upwards (true) or downwards, in upright coordinates of their own.
    sideways: Vec<(bool, Word)>,
}

impl Interpreter<'_> {
    fn run(
        &mut self,
        content: &[u8],
        resources: &Dictionary,
        depth: usize,
    ) -> Result<(), Unusable> {
        for operation in Content::decode_iter(content) {
            let Ok(operation) = operation else { break };
            self.operations += 1;
            if self.operations > MAX_OPERATIONS {
                let limit = MAX_OPERATIONS as u64;
                return Err(Unusable::TooLarge {
                    what: "a page".into(),
                    limit,
                    unit: "operations",
                });
            }
            let operands = operation.operands.as_slice();
            match operation.operator.as_str() {
                "Do" => self.form(operands, resources, depth)?,
                "Tf" => self.set_font(operands, resources),
                operator
                    if operator.starts_with('T')
                        || matches!(operator, "'" | "\"" | "BT" | "ET") =>
                {
                    self.text_operator(operator, operands);
                }
                operator => self.graphics_operator(operator, operands),
            }
        }
        Ok(())
    }

    fn graphics_operator(&mut self, operator: &str, operands: &[Object]) {
        let n = numbers(operands);
        match (operator, n.as_slice()) {
            ("q", _) if self.states.len() < MAX_STATES => self.states.push(self.state.clone()),
            ("Q", _) => {
                if let Some(state) = self.states.pop() {
                    self.state = state;
                }
            }
            ("cm", &[a, b, c, d, e, f]) => {
                self.state.matrix = product(&[a, b, c, d, e, f], &self.state.matrix)
            }
            ("BMC" | "BDC", _) => {
                self.marks.push(
                    matches!(operands.first(), Some(Object::Name(tag)) if tag == b"Artifact"),
                );
            }
            ("EMC", _) => {
                self.marks.pop();
            }
            ("m", &[x, y]) => {
                self.at = apply(&self.state.matrix, x, y);
                self.start = self.at;
            }
            ("l", &[x, y]) => {
                let to = apply(&self.state.matrix, x, y);
                self.segment(self.at, to);
                self.at = to;
            }
            ("h", _) => self.segment(self.at, self.start),
            ("re", &[x, y, w, h]) => self.rectangle(x, y, w, h),
            ("S" | "s" | "f" | "F" | "f*" | "B" | "B*" | "b" | "b*", _) => {
                self.page.rules.append(&mut self.path)
            }
            ("n", _) => self.path.clear(),
            _ => {}
        }
    }

    fn segment(&mut self, from: (f32, f32), to: (f32, f32)) {
        self.path.push(Rule {
            x0: from.0.min(to.0),
            y0: from.1.min(to.1),
            x1: from.0.max(to.0),
            y1: from.1.max(to.1),
        });
    }

    /// A thin rectangle is a line; of a box the edges count.
    fn rectangle(&mut self, x: f32, y: f32, width: f32, height: f32) {
        let (a, c) =
            (apply(&self.state.matrix, x, y), apply(&self.state.matrix, x + width, y + height));
        let (wide, high) = ((c.0 - a.0).abs(), (c.1 - a.1).abs());
        if wide < 3.0 || high < 3.0 {
            self.segment(a, c);
        } else {
            self.segment(a, (c.0, a.1));
            self.segment((a.0, c.1), c);
            self.segment(a, (a.0, c.1));
            self.segment((c.0, a.1), c);
        }
    }

    fn text_operator(&mut self, operator: &str, operands: &[Object]) {
        let n = numbers(operands);
        match (operator, n.as_slice()) {
            ("BT", _) => (self.text, self.line) = (IDENTITY, IDENTITY),
            ("Tc", &[spacing]) => self.state.character_spacing = spacing,
            ("Tw", &[spacing]) => self.state.word_spacing = spacing,
            ("Tz", &[percent]) => self.state.scale = percent / 100.0,
            ("TL", &[leading]) => self.state.leading = leading,
            ("Ts", &[rise]) => self.state.rise = rise,
            ("Td", &[x, y]) => self.next_line(x, y),
            ("TD", &[x, y]) => {
                self.state.leading = -y;
                self.next_line(x, y);
            }
            ("Tm", &[a, b, c, d, e, f]) => {
                self.line = [a, b, c, d, e, f];
                self.text = self.line;
            }
            ("T*", _) => self.next_line(0.0, -self.state.leading),
            ("Tj", _) => self.show_all(operands),
            ("TJ", _) => {
                if let Some(Object::Array(parts)) = operands.first() {
                    self.show_all(parts);
                }
            }
            ("'", _) => {
                self.next_line(0.0, -self.state.leading);
                self.show_all(operands);
            }
            ("\"", _) => {
                if let [word, character] = n[..] {
                    (self.state.word_spacing, self.state.character_spacing) = (word, character);
                }
                self.next_line(0.0, -self.state.leading);
                self.show_all(&operands[operands.len().min(2)..]);
            }
            _ => {}
        }
    }

    fn next_line(&mut self, x: f32, y: f32) {
        self.line = product(&[1.0, 0.0, 0.0, 1.0, x, y], &self.line);
        self.text = self.line;
    }

    fn set_font(&mut self, operands: &[Object], resources: &Dictionary) {
        let [Object::Name(name), size] = operands else { return };
        self.state.size = size.as_float().unwrap_or(0.0);
        let Some(fonts) = dictionary(self.document, resources, b"Font") else { return };
        let Ok(entry) = fonts.get(name) else { return };
        let Some(dict) = dictionary(self.document, fonts, name) else { return };
        self.state.font = Some(match entry.as_reference() {
            Ok(id) => {
                let read = || Rc::new(Font::new(self.document, dict));
                self.fonts.0.entry(id).or_insert_with(read).clone()
            }
            Err(_) => Rc::new(Font::new(self.document, dict)),
        });
    }

    fn form(
        &mut self,
        operands: &[Object],
        resources: &Dictionary,
        depth: usize,
    ) -> Result<(), Unusable> {
        let document = self.document;
        let stream = (|| -> Option<&Stream> {
            let name = operands.first()?.as_name().ok()?;
            let forms = dictionary(document, resources, b"XObject")?;
            let stream = forms.get_deref(name, document).ok()?.as_stream().ok()?;
            let subtype = stream.dict.get_deref(b"Subtype", document).ok()?.as_name().ok()?;
            (subtype == b"Form").then_some(stream)
        })();
        let Some(stream) = stream.filter(|_| depth < MAX_FORM_DEPTH) else { return Ok(()) };
        let Ok(content) = stream.get_plain_content_with_limit(MAX_UNPACKED_BYTES) else {
            return Ok(());
        };
        let saved = (self.state.clone(), self.text, self.line, self.marks.len());
        let matrix = stream.dict.get_deref(b"Matrix", document).and_then(Object::as_array);
        if let Ok(&[a, b, c, d, e, f]) = matrix.map(|m| numbers(m)).as_deref() {
            self.state.matrix = product(&[a, b, c, d, e, f], &self.state.matrix);
        }
        let own = dictionary(document, &stream.dict, b"Resources").unwrap_or(resources);
        self.run(&content, own, depth + 1)?;
        self.marks.truncate(saved.3);
        (self.state, self.text, self.line) = (saved.0, saved.1, saved.2);
        Ok(())
    }

    fn show_all(&mut self, parts: &[Object]) {
        for part in parts {
            match part {
                Object::String(bytes, _) => self.show(bytes),
                other => {
                    if let Ok(adjustment) = other.as_float() {
                        self.advance(-adjustment / 1000.0 * self.state.size);
                    }
                }
            }
        }
    }

    /// Moves along the baseline by a distance in text space before scaling.
    fn advance(&mut self, distance: f32) {
        let x = distance * self.state.scale;
        self.text = product(&[1.0, 0.0, 0.0, 1.0, x, 0.0], &self.text);
    }

    fn show(&mut self, bytes: &[u8]) {
        let Some(font) = self.state.font.clone() else { return };
        for glyph in font.glyphs(bytes) {
            let spacing = self.state.character_spacing
                + if glyph.is_space { self.state.word_spacing } else { 0.0 };
            if glyph.text.is_empty() {
                self.page.unmapped += 1;
            } else if !self.marks.contains(&true) {
                self.glyph(glyph.text, glyph.width * self.state.size, &font);
            }
            self.advance(glyph.width * self.state.size + spacing);
        }
    }

    fn glyph(&mut self, text: &str, width: f32, font: &Font) {
        if text.chars().all(|c| c.is_whitespace() || c == '\u{200b}') {
            if let Some((_, spaced)) = &mut self.word {
                *spaced = true;
            }
            return;
        }
        let full = product(&self.text, &self.state.matrix);
        let (x0, y) = apply(&full, 0.0, self.state.rise);
        let (x1, y1) = apply(&full, width * self.state.scale, self.state.rise);
        let size = self.state.size.abs() * full[2].hypot(full[3]);
        if !(x0.is_finite() && y.is_finite() && size.is_finite()) || size < 0.5 {
            return;
        }
        // Text that runs up or down the page gets coordinates in which it lies.
        let upwards = y1 - y > (x1 - x0).abs();
        let downwards = y - y1 > (x1 - x0).abs();
        let (x0, x1, y) = match (upwards, downwards) {
            (true, _) => (y, y1, -x0),
            (_, true) => (-y, -y1, x0),
            _ => (x0, x1, y),
        };
        let word = Word { text: text.into(), x0, x1, y, size, bold: font.bold, mono: font.mono };
        let direction = match (upwards, downwards) {
            (true, _) => Some(true),
            (_, true) => Some(false),
            _ => None,
        };
        if let Some((last, spaced)) = &mut self.word {
            let gap = word.x0 - last.x1;
            let joined = direction.is_none()
                && !*spaced
                && (word.y - last.y).abs() < 0.1 * size
                && (word.size - last.size).abs() < 0.2 * size
                && gap < WORD_GAP * size
                && gap > -0.4 * size;
            if joined {
                last.text.push_str(text);
                last.x1 = last.x1.max(word.x1);
                return;
            }
        }
        self.end_word();
        match direction {
            None => self.word = Some((word, false)),
            Some(upwards) => self.sideways_glyph(upwards, word),
        }
    }

    fn sideways_glyph(&mut self, upwards: bool, word: Word) {
        if let Some((direction, last)) = self.sideways.last_mut()
            && *direction == upwards
            && (word.y - last.y).abs() < 0.1 * word.size
            && (-0.4 * word.size..WORD_GAP * word.size).contains(&(word.x0 - last.x1))
        {
            last.text.push_str(&word.text);
            last.x1 = word.x1;
            return;
        }
        self.sideways.push((upwards, word));
    }

    fn end_word(&mut self) {
        if let Some((word, _)) = self.word.take() {
            self.page.words.push(word);
        }
    }

    /// A page that is mostly sideways was turned by its maker and is read turned back; on others
    /// sideways text is a stamp or a label in a drawing.
    fn finish(self) -> Page {
        let mut page = self.page;
        if self.sideways.len() > 2 * page.words.len() {
            let up = self.sideways.iter().filter(|(upwards, _)| *upwards).count();
            let most = 2 * up >= self.sideways.len();
            let turned = self.sideways.into_iter().filter(|(upwards, _)| *upwards == most);
            page.words = turned.map(|(_, word)| word).collect();
            page.rules.clear();
            // Coordinates may be negative now; only differences matter from here on.
            let lowest = page.words.iter().map(|word| word.y).fold(f32::INFINITY, f32::min);
            page.words.iter_mut().for_each(|word| word.y -= lowest - 36.0);
            page.height = page.words.iter().map(|word| word.y).fold(0.0, f32::max) + 36.0;
        }
        page
    }
}

fn numbers(operands: &[Object]) -> Vec<f32> {
    operands.iter().filter_map(|operand| operand.as_float().ok()).collect()
}
