//! Documents through the readers, and folders through the stage.

// The configuration allows it in tests, but not in the functions that they share.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use corpus::read::{Format, read};
use corpus::{Collection, Error, HeldOut, Options, Summary, ingest, inputs};
use store::{Draft, Kind, Recipe, Workspace};

fn fixture(name: &str) -> Vec<u8> {
    fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)).unwrap()
}

/// A file's blocks as Markdown, with the page where it changes; or the reason why it has none.
fn reading(name: &str, bytes: &[u8]) -> String {
    let format = Format::of(Path::new(name)).expect("a known extension");
    let document = match read(format, Path::new(name), bytes) {
        Ok(document) => document,
        Err(reason) => return reason.to_string(),
    };
    let mut text = format!("title: {}\n", document.title);
    let mut page = None;
    for block in &document.blocks {
        if block.page != page {
            page = block.page;
            text.push_str(&format!("\n-- page {}\n", page.unwrap_or(0)));
        }
        text.push_str(&format!(
            "\n[{}] {:?}\n{}\n",
            block.section.join(" > "),
            block.kind,
            block.text
        ));
    }
    text
}

#[test]
fn pdf_with_bookmarks() {
    insta::assert_snapshot!(reading("manual.pdf", &fixture("manual.pdf")));
}

#[test]
fn pdf_without_bookmarks_has_the_same_sections() {
    let with = reading("manual.pdf", &fixture("manual.pdf"));
    let without = reading("manual.pdf", &fixture("manual-plain.pdf"));
    assert_eq!(with, without);
}

#[test]
fn pdf_in_two_columns() {
    insta::assert_snapshot!(reading("columns.pdf", &fixture("columns.pdf")));
}

#[test]
fn docx() {
    insta::assert_snapshot!(reading("handbook.docx", &fixture("handbook.docx")));
}

#[test]
fn html() {
    let page = r##"<!DOCTYPE html><html><head><title>Site | Valves</title><style>p{}</style></head><body>
<nav><ul><li><a href="/">Home</a></li></ul></nav>
<header><h1>Valves</h1></header>
<div id="toc"><ul><li>Kinds</li></ul></div>
<p>Valves <b>must</b> close
within 10<sup>2</sup>&nbsp;ms.<sup><a href="#f1">1</a></sup></p>
<h2>Kinds<a class="headerlink" href="#k">¶</a></h2>
<dl><dt>Ball valve</dt><dd>A quarter turn closes it.</dd>
<dt>Gate valve</dt><dt>Sluice</dt><dd><p>Many turns.</p><ul><li>slow</li><li>tight</li></ul></dd></dl>
<ol start="3"><li>Open.<ul><li>slowly</li></ul></li><li><p>Wait.</p><pre>sleep 5
  again</pre></li></ol>
<table><caption>Limits</caption><thead><tr><th rowspan="2">Valve</th><th colspan="2">Pressure</th></tr>
<tr><th>min</th><th>max</th></tr></thead>
<tr><td rowspan="2">Ball</td><td>1 bar</td><td>6 bar | hot</td></tr><tr><td>2 bar</td><td>8 bar</td></tr></table>
<div class="admonitionblock warning"><table><tr><td class="icon"><div class="title">Warning</div></td>
<td class="content">Hot surface.</td></tr></table></div>
<div class="hdlist"><table><tr><td class="hdlist1">DN</td><td class="hdlist2"><p>Nominal diameter.</p></td></tr></table></div>
<pre><code>set valve 1
  close ``` now</code></pre>
<footer>© Company</footer><script>alert(1)</script></body></html>"##;
    insta::assert_snapshot!(reading("valves.html", page.as_bytes()));
}

#[test]
fn markdown() {
    let text = "---\ntitle: \"Lathe\"\n---\n\nStart *slowly*,\nsee [the list](x.md).\n\n# Tools\n\n\
        1. Cutter\n   - left\n2. Drill\n\n## Speeds\n\n| Tool | rpm |\n|---|---:|\n| Drill | 900 |\n\n\
        **Chuck**: holds the work.\n\nTerm\n: What it means.\n\n```gcode\nG1 X5\n  F100\n```\n";
    insta::assert_snapshot!(reading("lathe.md", text.as_bytes()));
}

#[test]
fn text() {
    let text = "Night shift\n===========\n\nThe furnace is charged at nine and kept at its\ntemperature until four.\n\n\
        1. Close the door.\n2. Wait until the lamp\n   is green.\n\nWORDS\n\nCold stick - a part that sticks.\n\
        Bright line: the ring from which the wear is read.\n\nValve   DN   bar\nV1      50   6\n";
    insta::assert_snapshot!(reading("shift.txt", text.as_bytes()));
    let utf16: Vec<u8> = std::iter::once(0xfeff)
        .chain("Größe 5 µm".encode_utf16())
        .flat_map(u16::to_le_bytes)
        .collect();
    assert!(reading("a.txt", &utf16).ends_with("Größe 5 µm\n"));
    assert!(reading("a.txt", b"Gr\xf6\xdfe 5 \xb5m").ends_with("Größe 5 µm\n"));
    assert!(reading("a.txt", b"\xef\xbb\xbfGr\xc3\xb6\xc3\x9fe").ends_with("Paragraph\nGröße\n"));
}

#[test]
fn unusable_files_have_a_reason() {
    let manual = fixture("manual.pdf");
    let mut damaged = manual.clone();
    damaged.truncate(700);
    let mut reasons = String::new();
    for (name, bytes) in [
        ("empty.md", b" \n".to_vec()),
        ("binary.txt", b"\x7fELF\x02\x01\0\0\0\0".to_vec()),
        ("binary.md", (0..200u8).collect()),
        ("not.pdf", b"hello".to_vec()),
        ("damaged.pdf", damaged),
        ("encrypted.pdf", fixture("encrypted.pdf")),
        ("scan.pdf", fixture("scan.pdf")),
        ("not.docx", b"PK\x03\x04 no archive".to_vec()),
        ("other.docx", archive("readme.txt", b"hello", 1)),
        ("encrypted.docx", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1rest".to_vec()),
        ("bomb.docx", archive("word/document.xml", &[b' '; 1 << 20], 257)),
        ("torn.docx", archive("word/document.xml", b"<w:document><w:body></w:p>", 1)),
        ("bare.html", b"<html><script>x()</script></html>".to_vec()),
    ] {
        reasons.push_str(&format!("{name}: {}\n", reading(name, &bytes)));
    }
    insta::assert_snapshot!(reasons);
}

fn archive(name: &str, part: &[u8], times: usize) -> Vec<u8> {
    let mut archive = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let options = zip::write::SimpleFileOptions::default().compression_level(Some(1));
    archive.start_file(name, options).unwrap();
    for _ in 0..times {
        archive.write_all(part).unwrap();
    }
    archive.finish().unwrap().into_inner()
}

/// Whatever is cut off or changed, a reader gives a document or a reason.
#[test]
fn damaged_files_do_not_stop_a_reader() {
    for name in ["manual.pdf", "columns.pdf", "encrypted.pdf", "handbook.docx"] {
        let whole = fixture(name);
        for step in 0..60 {
            let mut bytes = whole.clone();
            let at = bytes.len() * step / 60;
            if step % 2 == 0 {
                bytes.truncate(at);
            } else {
                let end = bytes.len().min(at + 40);
                bytes[at..end]
                    .iter_mut()
                    .for_each(|byte| *byte = byte.wrapping_mul(31).wrapping_add(7));
            }
            assert!(catch_unwind(|| reading(name, &bytes)).is_ok(), "{name} damaged at {at}");
        }
    }
}

#[test]
fn deeply_nested_elements_are_read() {
    let depth = 20_000;
    let page = format!("<body>{}deep{}", "<div>".repeat(depth), "</div>".repeat(depth));
    assert!(reading("deep.html", page.as_bytes()).contains("deep"));
    let quotes = format!("{} deep", ">".repeat(depth));
    assert!(reading("deep.md", quotes.as_bytes()).contains("deep"));
}

/// A workspace with a folder `docs` of two manuals, a sheet that both share, and some useless files.
struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let place = Place { folder: tempfile::tempdir().unwrap() };
        let shared = prose(1, 120);
        place.write(
            "docs/pumps.md",
            format!("# Pumps\n\n{}\n\n## Shared\n\n{shared}\n", prose(2, 150)),
        );
        place.write(
            "docs/valves.md",
            format!("# Valves\n\n{}\n\n## Shared\n\n{shared}\n", prose(3, 150)),
        );
        place.write(
            "docs/copy of pumps.md",
            format!("# Pumps\n\n{}\n\n## Shared\n\n{shared}\n", prose(2, 150)),
        );
        place.write("docs/sub/fans.txt", prose(4, 200));
        place.write("docs/sub/held.txt", prose(5, 200));
        place.write("docs/sub/leak.txt", format!("{} {}", prose(6, 40), prose(5, 160)));
        place.write("docs/data.xyz", "?");
        place.write("docs/empty.md", "");
        place.write("docs/core.txt", "a\0b");
        place.write("docs/broken.pdf", "%PDF-1.7 nothing more");
        #[cfg(unix)]
        std::os::unix::fs::symlink("..", place.root().join("docs/sub/loop")).unwrap();
        place
    }

    fn root(&self) -> PathBuf {
        self.folder.path().into()
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>) {
        let path = self.root().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn options(&self) -> Options {
        Options {
            collection: "docs".into(),
            folders: vec!["docs".into()],
            held_out: HeldOut::Documents(vec!["sub/held*".into()]),
            root: self.root(),
            ..Options::default()
        }
    }

    fn begin(&self, options: &Options) -> Draft {
        let recipe = Recipe {
            inputs: inputs(&options.folders, &self.root()).unwrap(),
            config: serde_json::to_value(options).unwrap(),
            seed: 7,
        };
        Workspace::at(self.root()).begin(Kind::Collection, "docs", recipe).unwrap()
    }

    fn ingest(&self, options: &Options) -> Result<(Collection, Summary), Error> {
        let mut draft = self.begin(options);
        let summary = ingest(&mut draft, options, &|_| {})?;
        let artifact = draft.finish(summary.counts()).unwrap();
        Ok((Collection::open(&artifact.path)?, summary))
    }
}

/// Sentences that repeat nothing.
fn prose(seed: u64, words: u64) -> String {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut letter = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        char::from(b'a' + (state >> 59) as u8 % 26)
    };
    let words: Vec<String> = (0..words).map(|_| (0..6).map(|_| letter()).collect()).collect();
    words.chunks(12).map(|sentence| sentence.join(" ") + ". ").collect()
}

#[test]
fn a_folder_becomes_a_collection() {
    let place = Place::new();
    let (collection, summary) = place.ingest(&place.options()).unwrap();
    let mut text = String::new();
    for document in &collection.documents {
        let fate = document.dropped.as_deref().unwrap_or(if document.held_out {
            "held out"
        } else {
            "kept"
        });
        text.push_str(&format!(
            "{} ({}, {} words): {fate}\n",
            document.path, document.format, document.words
        ));
    }
    for chunk in &collection.chunks {
        let of = collection.documents.iter().find(|d| d.id == chunk.document).unwrap();
        let words = chunk.text.split_whitespace().count();
        text.push_str(&format!(
            "chunk of {} {:?}: {words} words, held out: {}\n",
            of.path, chunk.section, chunk.held_out
        ));
    }
    text.push_str(&serde_json::to_string_pretty(&summary).unwrap());
    insta::assert_snapshot!(text);
}

#[test]
fn a_run_that_was_stopped_goes_on_and_ends_the_same() {
    let place = Place::new();
    let options = place.options();
    let files = ["documents.parquet", "chunks.parquet", "report.json"];
    let contents = |folder: &Path| files.map(|file| fs::read(folder.join(file)).unwrap());
    let mut draft = place.begin(&options);
    ingest(&mut draft, &options, &|_| {}).unwrap();
    let unbroken = contents(draft.folder());
    fs::remove_dir_all(draft.folder()).unwrap();
    drop(draft);
    let mut draft = place.begin(&options);
    let stop = |progress: corpus::Progress| assert!(progress.done < 4, "stop");
    let stopped = catch_unwind(AssertUnwindSafe(|| ingest(&mut draft, &options, &stop)));
    assert!(stopped.is_err());
    drop(draft);
    let mut draft = place.begin(&options);
    assert!(draft.resumed());
    let read_again = std::cell::Cell::new(0);
    ingest(&mut draft, &options, &|_| read_again.set(read_again.get() + 1)).unwrap();
    // Of nine readable files four were read before.
    assert_eq!(read_again.get(), 5);
    assert!(contents(draft.folder()) == unbroken, "the collections differ");
    assert!(!draft.path("parsed.jsonl").exists());
}

#[test]
fn chapters_are_held_out_of_a_single_manual() {
    let place = Place { folder: tempfile::tempdir().unwrap() };
    let chapters: Vec<String> =
        (0..10).map(|i| format!("# Chapter {i}\n\n{}\n", prose(i, 100))).collect();
    place.write("docs/manual.md", chapters.join("\n"));
    let options = Options { held_out: HeldOut::Fraction(0.2), ..place.options() };
    let (collection, summary) = place.ingest(&options).unwrap();
    assert_eq!((summary.held_out_documents, summary.held_out_chunks, summary.chunks), (0, 2, 10));
    assert_eq!(place.ingest(&options).unwrap().0, collection);
}

#[test]
fn errors_of_the_stage() {
    let place = Place { folder: tempfile::tempdir().unwrap() };
    let root = place.root().display().to_string();
    let message = |result: Result<(Collection, Summary), Error>| {
        let error = result.map(|_| ()).unwrap_err();
        error.to_string().replace(&root, "ROOT")
    };
    let mut messages =
        vec![message(inputs(&["docs".into()], &place.root()).map(|_| unreachable!()))];
    fs::create_dir(place.root().join("docs")).unwrap();
    messages.push(message(place.ingest(&place.options())));
    place.write("docs/data.xyz", "?");
    place.write("docs/empty.md", "");
    place.write("docs/scan.pdf", fixture("scan.pdf"));
    messages.push(message(place.ingest(&place.options())));
    place.write("docs/a.md", prose(1, 50));
    messages.push(message(place.ingest(&place.options())));
    let (_, _) =
        place.ingest(&Options { held_out: HeldOut::Fraction(0.1), ..place.options() }).unwrap();
    let folder = place.root().join("collections/docs");
    let whole = fs::read(folder.join("chunks.parquet")).unwrap();
    fs::write(folder.join("chunks.parquet"), &whole[..whole.len() / 2]).unwrap();
    messages.push(message(Collection::open(&folder).map(|_| unreachable!())));
    fs::copy(folder.join("documents.parquet"), folder.join("chunks.parquet")).unwrap();
    messages.push(message(Collection::open(&folder).map(|_| unreachable!())));
    insta::assert_snapshot!(messages.join("\n"));
}

/// `ARTEL_FOLDER=docs ARTEL_WORKSPACE=/tmp/w cargo test --release -p corpus -- --ignored --nocapture one_folder`
#[test]
#[ignore = "reads the folder that ARTEL_FOLDER names into the workspace ARTEL_WORKSPACE"]
fn one_folder() {
    let folder = |name| PathBuf::from(std::env::var(name).expect("the variable names a folder"));
    let root = folder("ARTEL_WORKSPACE");
    let options = Options {
        collection: "docs".into(),
        folders: vec![folder("ARTEL_FOLDER")],
        root: root.clone(),
        ..Options::default()
    };
    let start = std::time::Instant::now();
    let recipe = Recipe {
        inputs: inputs(&options.folders, &root).unwrap(),
        config: serde_json::to_value(&options).unwrap(),
        seed: 1,
    };
    let mut draft = Workspace::at(&root).begin(Kind::Collection, "docs", recipe).unwrap();
    let summary =
        ingest(&mut draft, &options, &|p| eprintln!("{}/{} {}", p.done, p.total, p.file)).unwrap();
    let artifact = draft.finish(summary.counts()).unwrap();
    println!("{}", serde_json::to_string_pretty(&summary).unwrap());
    Collection::open(&artifact.path).unwrap();
    println!("{:.1} s", start.elapsed().as_secs_f64());
}
