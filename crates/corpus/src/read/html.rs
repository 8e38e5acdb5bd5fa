//! HTML: the main content without navigation, as blocks.

use scraper::{ElementRef, Html, Node, Selector};

use super::{BlockKind, Document, Outline, fenced, one_line, pipe_table};

/// Deeper elements are taken as plain text: no stack is worth a hostile page.
const MAX_DEPTH: usize = 200;
/// Spans beyond this are cut; a table of 2 cells may claim to have billions.
const MAX_SPAN: usize = 100;

pub(super) fn read(text: &str) -> Document {
    let page = Html::parse_document(text);
    let mut outline = Outline::default();
    if let Some(title) = first(page.root_element(), "title") {
        outline.set_title(&title.text().collect::<String>());
    }
    let root = ["main", "[role=main]", "article", "body"].iter().find_map(|selector| {
        let found = all(page.root_element(), selector);
        // Several articles are a list of them, none of which is the content.
        if found.len() == 1 { Some(found[0]) } else { None }
    });
    let mut writer = Writer { outline, inline: String::new() };
    writer.children(root.unwrap_or(page.root_element()), 0);
    writer.flush();
    writer.outline.finish()
}

struct Writer {
    outline: Outline,
    /// Text between block elements, which becomes a paragraph at the next of these.
    inline: String,
}

impl Writer {
    fn children(&mut self, parent: ElementRef, depth: usize) {
        for child in parent.children() {
            match child.value() {
                Node::Text(text) => self.inline.push_str(text),
                Node::Element(_) => {
                    if let Some(element) = ElementRef::wrap(child) {
                        self.element(element, depth + 1);
                    }
                }
                _ => {}
            }
        }
    }

    fn element(&mut self, element: ElementRef, depth: usize) {
        let name = element.value().name();
        if is_boilerplate(element) {
            return;
        }
        if depth > MAX_DEPTH {
            self.inline.extend(element.text());
            return;
        }
        if !is_block(name) {
            match has_block(element) {
                true => self.children(element, depth),
                false => inline_element(element, &mut self.inline, depth),
            }
            return;
        }
        self.flush();
        match name {
            "h1" | "h2" | "h3" | "h4" | "h5" | "h6" => {
                let level = usize::from(name.as_bytes()[1] - b'0');
                self.outline.heading(level, &inline(element, depth).replace("**", ""));
            }
            "ul" | "ol" => self.outline.add(BlockKind::List, list(element, depth)),
            "dl" => self.outline.add(BlockKind::Definitions, definitions(element, depth)),
            "pre" | "textarea" => {
                let code: String = element.text().collect();
                self.outline.add(BlockKind::Code, fence(&code));
            }
            "table" => self.table(element, depth),
            _ => self.children(element, depth),
        }
        self.flush();
    }

    fn flush(&mut self) {
        let text = std::mem::take(&mut self.inline);
        self.outline.add(BlockKind::Paragraph, one_line(&text));
    }

    /// A table is data, an admonition, a definition list in disguise (both of AsciiDoc), or mere
    /// layout.
    fn table(&mut self, table: ElementRef, depth: usize) {
        if let Some(content) = first(table, "td.content")
            && let Some(icon) = first(table, "td.icon")
        {
            let label = match first(icon, "img").and_then(|img| img.attr("alt")) {
                Some(alt) => alt.to_owned(),
                None => inline(icon, depth),
            };
            self.inline = format!("**{}**: ", label.trim().trim_matches('*'));
            self.children(content, depth);
            return;
        }
        let rows = rows(table);
        if rows
            .iter()
            .any(|row| row.iter().any(|cell| cell.value().classes().any(|c| c == "hdlist1")))
        {
            let entries = rows
                .iter()
                .filter(|row| row.len() >= 2)
                .map(|row| definition(&inline(row[0], depth), &inline(row[1], depth)));
            let text = entries.collect::<Vec<_>>().join("\n\n");
            return self.outline.add(BlockKind::Definitions, text);
        }
        let layout = table.attr("role") == Some("presentation")
            || rows.iter().all(|row| row.len() < 2)
            || ["table", "h1", "h2", "h3", "pre"].iter().any(|inner| first(table, inner).is_some());
        if layout && first(table, "th").is_none() {
            return self.children(table, depth);
        }
        if let Some(caption) = first(table, "caption") {
            let caption = one_line(&inline(caption, depth));
            self.outline.add(BlockKind::Paragraph, caption);
        }
        self.outline.add(BlockKind::Table, pipe_table(&grid(&rows, depth)));
    }
}

fn fence(code: &str) -> String {
    if code.trim().is_empty() { String::new() } else { fenced(code) }
}

fn all<'a>(element: ElementRef<'a>, selector: &str) -> Vec<ElementRef<'a>> {
    let selector = Selector::parse(selector).expect("the selectors are constants of this file");
    element.select(&selector).collect()
}

fn first<'a>(element: ElementRef<'a>, selector: &str) -> Option<ElementRef<'a>> {
    all(element, selector).into_iter().next()
}

fn is_block(name: &str) -> bool {
    matches!(
        name,
        "address"
            | "article"
            | "aside"
            | "blockquote"
            | "body"
            | "center"
            | "dd"
            | "details"
            | "div"
            | "dl"
            | "dt"
            | "fieldset"
            | "figcaption"
            | "figure"
            | "h1"
            | "h2"
            | "h3"
            | "h4"
            | "h5"
            | "h6"
            | "header"
            | "hr"
            | "li"
            | "main"
            | "ol"
            | "p"
            | "pre"
            | "section"
            | "summary"
            | "table"
            | "tbody"
            | "td"
            | "textarea"
            | "tfoot"
            | "th"
            | "thead"
            | "tr"
            | "ul"
    )
}

/// Whether an inline element (a link around a card, say) holds block elements all the same.
fn has_block(element: ElementRef) -> bool {
    element
        .descendants()
        .skip(1)
        .any(|node| node.value().as_element().is_some_and(|e| is_block(e.name())))
}

/// What a page says besides its content.
fn is_boilerplate(element: ElementRef) -> bool {
    let value = element.value();
    let named = |name: &str| {
        matches!(
            name.to_ascii_lowercase().as_str(),
            "toc"
                | "toctitle"
                | "nav"
                | "navbar"
                | "navigation"
                | "navheader"
                | "navfooter"
                | "sidebar"
                | "sphinxsidebar"
                | "breadcrumb"
                | "breadcrumbs"
                | "menu"
                | "footer"
                | "site-footer"
                | "footer-text"
                | "related"
                | "cookie-banner"
                | "skip-link"
                | "headerlink"
                | "permalink"
                | "pagination"
        )
    };
    match value.name() {
        "script" | "style" | "nav" | "footer" | "noscript" | "template" | "svg" | "head"
        | "iframe" | "form" | "button" | "select" | "object" | "audio" | "video" | "canvas"
        | "map" | "math-annotation" => return true,
        // A page's header holds its title or its menu.
        "header" => return first(element, "h1, h2, h3").is_none(),
        _ => {}
    }
    let role = matches!(
        value.attr("role"),
        Some("navigation" | "banner" | "contentinfo" | "search" | "doc-toc")
    );
    let hidden = value.attr("hidden").is_some() || value.attr("aria-hidden") == Some("true");
    role || hidden || value.id().is_some_and(named) || value.classes().any(named)
}

/// The text of an element in one piece; bold is kept, since it marks terms.
fn inline(element: ElementRef, depth: usize) -> String {
    let mut text = String::new();
    inline_children(element, &mut text, depth);
    one_line(&text)
}

fn inline_children(element: ElementRef, text: &mut String, depth: usize) {
    if depth > MAX_DEPTH {
        text.extend(element.text());
        return;
    }
    for child in element.children() {
        match child.value() {
            Node::Text(piece) => text.push_str(piece),
            Node::Element(_) => {
                if let Some(child) = ElementRef::wrap(child).filter(|c| !is_boilerplate(*c)) {
                    inline_element(child, text, depth + 1);
                }
            }
            _ => {}
        }
    }
}

fn inline_element(element: ElementRef, text: &mut String, depth: usize) {
    match element.value().name() {
        "br" | "wbr" => text.push(' '),
        "strong" | "b" => {
            let bold = inline(element, depth);
            if bold.is_empty() || bold.contains("**") {
                text.push_str(&bold);
            } else {
                // White space belongs outside the marks.
                let raw: String = element.text().collect();
                let (before, after) =
                    (raw.starts_with(char::is_whitespace), raw.ends_with(char::is_whitespace));
                text.push_str(if before { " " } else { "" });
                text.push_str(&format!("**{bold}**"));
                text.push_str(if after { " " } else { "" });
            }
        }
        // 10<sup>3</sup> is not 103; a footnote's mark is no part of the text.
        "sup" if first(element, "a").is_some() => {}
        "sup" => text.push_str(&format!("^{}", inline(element, depth))),
        "li" => {
            text.push_str("; ");
            inline_children(element, text, depth);
        }
        name if is_block(name) => {
            text.push(' ');
            inline_children(element, text, depth);
            text.push(' ');
        }
        _ => inline_children(element, text, depth),
    }
}

/// A list as Markdown; nested lists and paragraphs are indented under their item.
fn list(element: ElementRef, depth: usize) -> String {
    let ordered = element.value().name() == "ol";
    let mut number: i64 = element.attr("start").and_then(|s| s.parse().ok()).unwrap_or(1);
    let mut lines = Vec::new();
    for child in element.child_elements().filter(|c| !is_boilerplate(*c)) {
        if child.value().name() != "li" {
            // Invalid but common: a list directly in a list.
            let nested = if matches!(child.value().name(), "ul" | "ol") && depth < MAX_DEPTH {
                list(child, depth + 1)
            } else {
                inline(child, depth)
            };
            lines.extend(nested.lines().map(|l| format!("   {l}")));
            continue;
        }
        let marker = if ordered { format!("{number}.") } else { "-".into() };
        number = number.saturating_add(1);
        let parts = item_parts(child, depth);
        let indent = " ".repeat(marker.len() + 1);
        for (index, line) in parts.iter().flat_map(|part| part.lines()).enumerate() {
            let lead = if index == 0 { format!("{marker} ") } else { indent.clone() };
            lines.push(format!("{lead}{line}"));
        }
    }
    lines.join("\n")
}

/// The paragraphs, nested lists and code of a list item.
fn item_parts(item: ElementRef, depth: usize) -> Vec<String> {
    let mut parts: Vec<String> = Vec::new();
    let mut run = String::new();
    item_children(item, depth + 1, &mut run, &mut parts);
    end_run(&mut run, &mut parts);
    parts
}

fn end_run(run: &mut String, parts: &mut Vec<String>) {
    let text = one_line(&std::mem::take(run));
    if !text.is_empty() {
        parts.push(text);
    }
}

fn item_children(parent: ElementRef, depth: usize, run: &mut String, parts: &mut Vec<String>) {
    if depth > MAX_DEPTH {
        run.extend(parent.text());
        return;
    }
    for child in parent.children() {
        if let Node::Text(text) = child.value() {
            run.push_str(text);
        }
        let Some(element) = ElementRef::wrap(child).filter(|e| !is_boilerplate(*e)) else {
            continue;
        };
        let name = element.value().name();
        if !is_block(name) && !has_block(element) {
            inline_element(element, run, depth);
            continue;
        }
        end_run(run, parts);
        match name {
            "ul" | "ol" => parts.push(list(element, depth + 1)),
            "dl" => parts.push(definitions(element, depth + 1).replace("\n\n", "\n")),
            "pre" => parts.push(fence(&element.text().collect::<String>())),
            "table" => parts.push(pipe_table(&grid(&rows(element), depth))),
            _ => item_children(element, depth + 1, run, parts),
        }
        end_run(run, parts);
    }
    parts.retain(|part| !part.trim().is_empty());
}

fn definition(term: &str, text: &str) -> String {
    let term = term.replace("**", "");
    let term = term.trim().trim_end_matches(':').trim_end();
    format!("**{term}**: {}", text.trim()).trim_end().to_owned()
}

/// `**Term**: definition`, a blank line between entries. Terms that share a definition are joined.
fn definitions(list: ElementRef, depth: usize) -> String {
    let mut entries: Vec<String> = Vec::new();
    let mut terms: Vec<String> = Vec::new();
    let mut open = false;
    for child in all(list, "dt, dd") {
        // Those of a nested list are part of their definition.
        if owner_list(child) != Some(list) {
            continue;
        }
        if child.value().name() == "dt" {
            terms.push(inline(child, depth));
            open = false;
            continue;
        }
        let parts = item_parts(child, depth);
        let text = match parts.first() {
            // A definition that begins with a list has it below the term.
            Some(part)
                if part.starts_with("- ")
                    || part.starts_with("1. ")
                    || part.starts_with(['|', '`']) =>
            {
                format!("\n{}", parts.join("\n"))
            }
            _ => parts.join("\n"),
        };
        match entries.last_mut() {
            Some(entry) if open => entry.push_str(&format!("\n{text}")),
            _ => entries.push(definition_block(&terms.join(", "), &text)),
        }
        terms.clear();
        open = true;
    }
    entries.extend(terms.iter().map(|term| definition(term, "")));
    entries.join("\n\n")
}

fn definition_block(term: &str, text: &str) -> String {
    let (first, rest) = text.split_once('\n').unwrap_or((text, ""));
    format!("{}\n{rest}", definition(term, first)).trim_end().to_owned()
}

fn owner_list(element: ElementRef) -> Option<ElementRef> {
    element.ancestors().filter_map(ElementRef::wrap).find(|above| above.value().name() == "dl")
}

/// The cells of each row, without those of nested tables.
fn rows(table: ElementRef) -> Vec<Vec<ElementRef>> {
    let mut rows = Vec::new();
    for part in table.child_elements() {
        match part.value().name() {
            "tr" => rows.push(cells(part)),
            "thead" | "tbody" | "tfoot" => rows
                .extend(part.child_elements().filter(|row| row.value().name() == "tr").map(cells)),
            _ => {}
        }
    }
    rows.retain(|row| !row.is_empty());
    rows
}

fn cells(row: ElementRef) -> Vec<ElementRef> {
    row.child_elements().filter(|c| matches!(c.value().name(), "td" | "th")).collect()
}

/// Cells as text, header rows merged into one. A cell that spans rows is repeated in each, so that
/// a row can be understood alone; one that spans columns is repeated in a header.
fn grid(rows: &[Vec<ElementRef>], depth: usize) -> Vec<Vec<String>> {
    let mut grid: Vec<Vec<String>> = Vec::new();
    let mut spans: Vec<(usize, String)> = Vec::new();
    let mut header_rows = 0;
    for (index, row) in rows.iter().enumerate() {
        let header = row.iter().all(|c| c.value().name() == "th") || in_head(row[0]);
        if header && index == header_rows {
            header_rows += 1;
        }
        let mut line = Vec::new();
        for cell in row {
            take_spans(&mut spans, &mut line);
            let span =
                |name: &str| cell.attr(name).and_then(|s| s.trim().parse().ok()).unwrap_or(1usize);
            let (across, down) =
                (span("colspan").clamp(1, MAX_SPAN), span("rowspan").clamp(1, MAX_SPAN));
            let text = inline(*cell, depth).trim_start_matches("; ").to_owned();
            let text = if header { text.replace("**", "") } else { text };
            for column in 0..across {
                let repeated = if column == 0 || header { text.clone() } else { String::new() };
                spans.resize(spans.len().max(line.len() + 1), (0, String::new()));
                spans[line.len()] = (down - 1, repeated.clone());
                line.push(repeated);
            }
        }
        take_spans(&mut spans, &mut line);
        grid.push(line);
    }
    merge_headers(grid, header_rows)
}

fn in_head(cell: ElementRef) -> bool {
    cell.ancestors().take(2).filter_map(ElementRef::wrap).any(|a| a.value().name() == "thead")
}

/// Fills in the cells that reach down from rows above, up to the next free column.
fn take_spans(spans: &mut [(usize, String)], line: &mut Vec<String>) {
    while let Some((left, text)) = spans.get_mut(line.len()).filter(|(left, _)| *left > 0) {
        *left -= 1;
        line.push(text.clone());
    }
}

fn merge_headers(mut grid: Vec<Vec<String>>, header_rows: usize) -> Vec<Vec<String>> {
    if header_rows < 2 || header_rows > grid.len() {
        return grid;
    }
    let below = grid.split_off(header_rows);
    let columns = grid.iter().map(Vec::len).max().unwrap_or(0);
    let mut header = vec![String::new(); columns];
    for row in &grid {
        for (merged, cell) in header.iter_mut().zip(row) {
            if merged != cell {
                *merged = format!("{merged} {cell}").trim().to_owned();
            }
        }
    }
    let mut merged = vec![header];
    merged.extend(below);
    merged
}
