//! HTML: the main content, without navigation, scripts, styles and cookie notices.

use encoding_rs::Encoding;
use scraper::{ElementRef, Html, Node, node::Element};
use tunesmith_contract::documents::QuarantineReason;

use super::Extracted;
use crate::{encoding::decode, limits::Limits, outline::Outline};

/// Elements whose content is never part of the text.
const SKIPPED: [&str; 22] = [
    "script", "style", "noscript", "template", "nav", "footer", "aside", "form", "button", "select", "iframe",
    "object", "svg", "canvas", "audio", "video", "head", "menu", "dialog", "math", "input", "textarea",
];

/// Elements that end a line of text before and after them.
const BLOCKS: [&str; 34] = [
    "p",
    "div",
    "section",
    "article",
    "main",
    "header",
    "ul",
    "ol",
    "li",
    "dl",
    "dt",
    "dd",
    "table",
    "caption",
    "tr",
    "pre",
    "blockquote",
    "figure",
    "figcaption",
    "h1",
    "h2",
    "h3",
    "h4",
    "h5",
    "h6",
    "hr",
    "address",
    "details",
    "summary",
    "body",
    "thead",
    "tbody",
    "tfoot",
    "fieldset",
];

/// Elements without an end tag, or whose end tag may be left out: they say nothing about nesting.
const UNCLOSED: [&str; 30] = [
    "area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr", "p", "li",
    "dt", "dd", "tr", "td", "th", "thead", "tbody", "tfoot", "option", "optgroup", "colgroup", "html", "head", "body",
    "frame",
];

/// Words in `id`, `class` or `role` that mark page furniture.
const FURNITURE: [&str; 22] = [
    "cookie",
    "consent",
    "gdpr",
    "breadcrumb",
    "breadcrumbs",
    "navigation",
    "navbar",
    "nav",
    "sidebar",
    "newsletter",
    "advertisement",
    "banner",
    "contentinfo",
    "footer",
    "navheader",
    "navfooter",
    "toc",
    "toctree",
    "headerlink",
    "sphinxsidebar",
    "related",
    "skiplink",
];

/// Fewest characters of text before a `main` or `article` element is believed to hold the content.
const MIN_MAIN_CHARS: usize = 200;

/// Reads HTML. Headings `h1`–`h6` make the outline, list items get `- ` or their number, table rows become `a | b`.
pub fn extract(bytes: &[u8], limits: &Limits) -> Result<Extracted, QuarantineReason> {
    let text = decode_html(bytes)?;
    let depth = deepest_nesting(&text);
    if depth > limits.html_depth {
        return Err(QuarantineReason::Damaged {
            detail: format!("{depth} elements inside each other, the limit is {}", limits.html_depth),
        });
    }
    let html = Html::parse_document(&text);
    let root = html.root_element();
    let mut reader = Reader { outline: Outline::new(limits), text: String::new(), lists: Vec::new(), pre: 0 };
    reader.element(main_element(root))?;
    reader.flush()?;
    let (sections, heading) = reader.outline.finish();
    let title = find(root, "title").map(|t| crate::outline::one_line(&t.text().collect::<String>()));
    Ok(Extracted { title: heading.or(title), sections, ..Extracted::default() })
}

/// Honours `<meta charset>` (HTML standard 13.2.3.2: within the first 1,024 bytes) where the bytes are not UTF-8.
fn decode_html(bytes: &[u8]) -> Result<String, QuarantineReason> {
    decode(bytes).or_else(|refused| {
        let head = String::from_utf8_lossy(&bytes[..bytes.len().min(1024)]).to_lowercase();
        let label = head.split_once("charset=").map(|(_, rest)| rest.trim_start_matches(['"', '\'']));
        let label =
            label.and_then(|rest| rest.split(|c: char| !c.is_ascii_alphanumeric() && c != '-' && c != '_').next());
        let encoding = label.and_then(|l| Encoding::for_label(l.as_bytes())).filter(|e| *e != encoding_rs::UTF_8);
        let text = encoding.and_then(|e| e.decode_without_bom_handling_and_without_replacement(bytes));
        text.filter(|t| !t.contains('\0')).map(std::borrow::Cow::into_owned).ok_or(refused)
    })
}

/// The single `main`, `role=main` or `article` element when it holds the content, else the body.
fn main_element(root: ElementRef<'_>) -> ElementRef<'_> {
    let candidates = |test: &dyn Fn(&Element) -> bool| {
        let mut found = root.descendants().filter_map(ElementRef::wrap).filter(|e| test(e.value()));
        found.next().filter(|_| found.next().is_none())
    };
    candidates(&|e| e.name() == "main" || e.attr("role") == Some("main"))
        .or_else(|| candidates(&|e| e.name() == "article"))
        .filter(|e| e.text().map(|t| t.trim().len()).sum::<usize>() >= MIN_MAIN_CHARS)
        .or_else(|| find(root, "body"))
        .unwrap_or(root)
}

fn find<'a>(root: ElementRef<'a>, name: &str) -> Option<ElementRef<'a>> {
    root.descendants().filter_map(ElementRef::wrap).find(|e| e.value().name() == name)
}

/// An upper estimate of how deep elements nest, from the tags alone: what the tree builder would have to hold open.
fn deepest_nesting(text: &str) -> usize {
    let (mut open, mut deepest) = (0usize, 0usize);
    for tag in text.split('<').skip(1) {
        let (closes, tag) = tag.strip_prefix('/').map_or((false, tag), |rest| (true, rest));
        let end = tag.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(tag.len()).min(16);
        if end == 0 || !tag.as_bytes()[0].is_ascii_alphabetic() {
            continue;
        }
        let name = tag[..end].to_ascii_lowercase();
        if UNCLOSED.contains(&name.as_str()) {
            continue;
        }
        if closes {
            open = open.saturating_sub(1);
        } else if !tag.split_once('>').is_some_and(|(inside, _)| inside.ends_with('/')) {
            open += 1;
            deepest = deepest.max(open);
        }
    }
    deepest
}

struct Reader<'a> {
    outline: Outline<'a>,
    text: String,
    lists: Vec<Option<u64>>,
    pre: usize,
}

impl Reader<'_> {
    /// Walks one subtree without recursion: its depth is the uploader's choice.
    fn element(&mut self, root: ElementRef<'_>) -> Result<(), QuarantineReason> {
        use walk::{Edge, walk};
        let mut edges = walk(root);
        while let Some(edge) = edges.next_edge() {
            match edge {
                Edge::Open(node) => match node.value() {
                    Node::Text(text) => self.push(text),
                    Node::Element(element) if node.id() != root.id() && skipped(element) => edges.skip(node),
                    Node::Element(element) => self.open(element)?,
                    _ => {}
                },
                Edge::Close(node) => {
                    if let Node::Element(element) = node.value() {
                        self.close(element)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn open(&mut self, element: &Element) -> Result<(), QuarantineReason> {
        let name = element.name();
        match name {
            "br" => self.text.push('\n'),
            "ul" | "ol" => {
                if self.lists.is_empty() {
                    self.flush()?;
                }
                let first = element.attr("start").and_then(|s| s.parse().ok()).unwrap_or(1);
                self.lists.push((name == "ol").then_some(first));
            }
            "li" => {
                self.new_line();
                self.text.push_str(&"  ".repeat(self.lists.len().saturating_sub(1).min(8)));
                match self.lists.last_mut() {
                    Some(Some(number)) => {
                        self.text.push_str(&format!("{number}. "));
                        *number = number.saturating_add(1);
                    }
                    _ => self.text.push_str("- "),
                }
            }
            "tr" => self.new_line(),
            "pre" => {
                self.flush()?;
                self.pre += 1;
            }
            "dd" => self.text.push('\n'),
            "img" => {
                if let Some(alt) = element.attr("alt") {
                    self.push(alt);
                }
            }
            _ if BLOCKS.contains(&name) && self.lists.is_empty() && !in_table(name) => self.flush()?,
            _ => {}
        }
        Ok(())
    }

    fn close(&mut self, element: &Element) -> Result<(), QuarantineReason> {
        let name = element.name();
        match name {
            "h1" | "h2" | "h3" | "h4" | "h5" | "h6" => {
                let text = std::mem::take(&mut self.text);
                let level = name.as_bytes()[1] - b'0';
                // Generators mark their permanent links with these signs.
                self.outline.heading(level, text.trim().trim_end_matches(['¶', '#', '🔗']))?;
            }
            "ul" | "ol" => {
                self.lists.pop();
                if self.lists.is_empty() {
                    self.flush()?;
                }
            }
            "td" | "th" => {
                let end = self.text.trim_end().len();
                self.text.truncate(end);
                self.text.push_str(" | ");
            }
            "tr" => {
                let end = self.text.trim_end_matches([' ', '|', '\n']).len();
                self.text.truncate(end);
                self.text.push('\n');
            }
            "pre" => {
                self.flush()?;
                self.pre -= 1;
            }
            "dt" => self.new_line(),
            _ if BLOCKS.contains(&name) && self.lists.is_empty() && !in_table(name) => self.flush()?,
            _ if BLOCKS.contains(&name) => self.new_line(),
            _ => {}
        }
        Ok(())
    }

    /// Adds text with white space folded, except inside `pre`.
    fn push(&mut self, text: &str) {
        if self.pre > 0 {
            self.text.push_str(text);
            return;
        }
        for (index, word) in text.split(|c: char| c.is_whitespace() && c != '\u{a0}').enumerate() {
            if index > 0 && !self.text.ends_with([' ', '\n']) && !self.text.is_empty() {
                self.text.push(' ');
            }
            self.text.push_str(word);
        }
    }

    fn new_line(&mut self) {
        let end = self.text.trim_end_matches(' ').len();
        self.text.truncate(end);
        if !self.text.is_empty() && !self.text.ends_with('\n') {
            self.text.push('\n');
        }
    }

    fn flush(&mut self) -> Result<(), QuarantineReason> {
        let text = std::mem::take(&mut self.text);
        if self.pre > 0 {
            return self.outline.block(&text);
        }
        let lines: Vec<&str> = text.lines().map(str::trim_end).filter(|l| !l.trim().is_empty()).collect();
        self.outline.block(&lines.join("\n"))
    }
}

/// Parts of a table that do not end a block by themselves.
fn in_table(name: &str) -> bool {
    matches!(name, "tr" | "thead" | "tbody" | "tfoot" | "dd" | "dt")
}

fn skipped(element: &Element) -> bool {
    if SKIPPED.contains(&element.name())
        || element.attr("hidden").is_some()
        || element.attr("aria-hidden") == Some("true")
    {
        return true;
    }
    if matches!(element.name(), "body" | "main" | "article" | "html") {
        return false;
    }
    let marks = ["id", "class", "role"].into_iter().filter_map(|name| element.attr(name));
    marks
        .flat_map(|value| value.split([' ', '_', '-']))
        .any(|word| FURNITURE.iter().any(|mark| word.eq_ignore_ascii_case(mark)))
}

/// A walk over a subtree that can skip what lies below a node.
mod walk {
    use scraper::ElementRef;

    type NodeRef<'a> = <ElementRef<'a> as std::ops::Deref>::Target;

    /// Entering or leaving a node.
    pub enum Edge<'a> {
        Open(NodeRef<'a>),
        Close(NodeRef<'a>),
    }

    /// The walk's position.
    pub struct Walk<'a> {
        root: NodeRef<'a>,
        next: Option<(NodeRef<'a>, bool)>,
    }

    /// Begins at `root`.
    pub fn walk(root: ElementRef<'_>) -> Walk<'_> {
        Walk { root: *root, next: Some((*root, true)) }
    }

    impl<'a> Walk<'a> {
        pub fn next_edge(&mut self) -> Option<Edge<'a>> {
            let (node, opening) = self.next.take()?;
            if opening {
                self.next = node.first_child().map_or(Some((node, false)), |child| Some((child, true)));
                return Some(Edge::Open(node));
            }
            if node.id() != self.root.id() {
                self.after(node);
            }
            Some(Edge::Close(node))
        }

        /// Goes on behind `node`, without its content and without leaving it.
        pub fn skip(&mut self, node: NodeRef<'a>) {
            self.after(node);
        }

        fn after(&mut self, node: NodeRef<'a>) {
            self.next = match node.next_sibling() {
                Some(sibling) => Some((sibling, true)),
                None => node.parent().map(|parent| (parent, false)),
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sections(html: &str) -> Vec<(String, String)> {
        let extracted = extract(html.as_bytes(), &Limits::default()).unwrap();
        extracted.sections.into_iter().map(|s| (s.headings.join("/"), s.text)).collect()
    }

    #[test]
    fn navigation_scripts_and_cookie_notices_go() {
        let html = "<html><head><title>T</title><style>p{}</style></head><body><nav><a>Home</a></nav>\
            <div class=\"cookie-notice\">We use cookies</div><h1>Ferry <b>rules</b> <a>¶</a></h1><p>Be on  time.<br>Really.</p>\
            <ul><li>one<li>two<ol><li>deep</ol></ul><table><tr><th>Day<th>Time</tr><tr><td>Mon<td> 8:00</tr></table>\
            <script>alert(1)</script><pre>a\n  b</pre><footer>(c)</footer></body></html>";
        let got = sections(html);
        assert_eq!(got.len(), 1);
        assert_eq!(got[0].0, "Ferry rules");
        assert_eq!(got[0].1, "Be on time.\nReally.\n\n- one\n- two\n  1. deep\n\nDay | Time\nMon | 8:00\n\na\n  b");
    }

    #[test]
    fn the_main_element_wins_when_it_holds_the_text() {
        let long = "The crew meets at the pier. ".repeat(12);
        let html = format!("<body><div>Related: other pages</div><main><h2>Crew</h2><p>{long}</p></main></body>");
        assert_eq!(sections(&html), [("Crew".to_owned(), long.trim().to_owned())]);
    }

    #[test]
    fn a_declared_charset_is_honoured() {
        let html = b"<html><head><meta charset=\"iso-8859-1\"></head><body>caf\xE9</body></html>";
        assert_eq!(extract(html, &Limits::default()).unwrap().sections[0].text, "café");
    }

    #[test]
    fn a_tower_of_elements_is_refused_before_a_tree_is_built() {
        let html = "<div>".repeat(200_000);
        assert!(matches!(extract(html.as_bytes(), &Limits::default()), Err(QuarantineReason::Damaged { .. })));
        let flat = "<p>x".repeat(20_000);
        assert_eq!(extract(flat.as_bytes(), &Limits::default()).unwrap().sections[0].text.matches('x').count(), 20_000);
    }
}
