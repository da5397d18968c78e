//! Runs the text operators of a page's content stream (ISO 32000-1, 9.4) and says which words stand where.

use std::{collections::HashMap, rc::Rc};

use lopdf::{Dictionary, Document, Object, ObjectId};
use tunesmith_contract::documents::QuarantineReason as Reason;

use super::{
    font::Font,
    lexer::{Lexer, Token},
};
use crate::limits::Limits;

/// Deepest nesting of form XObjects; more is a loop.
const MAX_FORM_DEPTH: usize = 8;

/// Most operands of one operator that are remembered; the specification allows 33.
const MAX_OPERANDS: usize = 64;

/// Most items of one array operand: a line of text has a few hundred.
const MAX_ARRAY: usize = 100_000;

/// Most fragments of one page; beyond, a page is no page. A newspaper page has about 20,000.
const MAX_FRAGMENTS: usize = 300_000;

/// A piece of text in one font at one place. Coordinates are those of the page, in points, y upwards.
#[derive(Debug, Clone)]
pub struct Fragment {
    pub text: String,
    pub x: f64,
    pub y: f64,
    /// Advance along the direction of writing.
    pub width: f64,
    /// Font size after all scaling.
    pub size: f64,
    /// Direction of writing in quarter turns: 0 is left to right.
    pub turn: u8,
    pub bold: bool,
}

/// An affine map [a b c d e f], as PDF writes it.
type Matrix = [f64; 6];

const IDENTITY: Matrix = [1.0, 0.0, 0.0, 1.0, 0.0, 0.0];

/// `first`, then `second`.
fn then(first: &Matrix, second: &Matrix) -> Matrix {
    let [a, b, c, d, e, f] = *first;
    let [p, q, r, s, t, u] = *second;
    [a * p + b * r, a * q + b * s, c * p + d * r, c * q + d * s, e * p + f * r + t, e * q + f * s + u]
}

/// Reads pages of one document; fonts are read once.
pub struct Interpreter<'a> {
    document: &'a Document,
    limits: &'a Limits,
    fonts: HashMap<ObjectId, Rc<Font>>,
    /// Operators so far; reading a font and unpacking a form count as many.
    work: u64,
    text_bytes: u64,
}

/// The parts of the graphics state that matter to text (8.4, 9.3).
#[derive(Clone)]
struct State {
    ctm: Matrix,
    font: Option<Rc<Font>>,
    size: f64,
    char_spacing: f64,
    word_spacing: f64,
    scale: f64,
    leading: f64,
    rise: f64,
}

/// One running content stream.
struct Run<'d> {
    resources: Vec<&'d Dictionary>,
    states: Vec<State>,
    state: State,
    text: Matrix,
    line: Matrix,
}

/// An operand.
enum Operand<'t> {
    Number(f64),
    String(Vec<u8>),
    Name(&'t [u8]),
    /// Strings and adjustments of `TJ`.
    Array(Vec<Operand<'t>>),
}

impl<'a> Interpreter<'a> {
    pub fn new(document: &'a Document, limits: &'a Limits) -> Self {
        Self { document, limits, fonts: HashMap::new(), work: 0, text_bytes: 0 }
    }

    /// The fragments of one page, in the order they are drawn.
    pub fn page(&mut self, page: ObjectId) -> Result<Vec<Fragment>, Reason> {
        let content =
            self.document.get_page_content_with_limit(page, self.limits.pdf_page_bytes).map_err(super::damaged)?;
        let mut resources = Vec::new();
        if let Ok((own, inherited)) = self.document.get_page_resources(page) {
            resources.extend(own);
            resources.extend(inherited.iter().filter_map(|id| self.document.get_dictionary(*id).ok()));
        }
        let state = State {
            ctm: IDENTITY,
            font: None,
            size: 0.0,
            char_spacing: 0.0,
            word_spacing: 0.0,
            scale: 1.0,
            leading: 0.0,
            rise: 0.0,
        };
        let mut out = Vec::new();
        self.stream(
            &content,
            Run { resources, states: Vec::new(), state, text: IDENTITY, line: IDENTITY },
            0,
            &mut out,
        )?;
        Ok(out)
    }

    fn stream(
        &mut self,
        content: &[u8],
        mut run: Run<'a>,
        depth: usize,
        out: &mut Vec<Fragment>,
    ) -> Result<(), Reason> {
        let mut operands: Vec<Operand<'_>> = Vec::new();
        let mut array: Option<Vec<Operand<'_>>> = None;
        let mut lexer = Lexer::new(content);
        while let Some(token) = lexer.next() {
            let operand = match token {
                Token::Number(n) => Operand::Number(n),
                Token::String(s) => Operand::String(s),
                Token::Name(n) => Operand::Name(n),
                Token::ArrayOpen => {
                    array = Some(Vec::new());
                    continue;
                }
                Token::ArrayClose => Operand::Array(array.take().unwrap_or_default()),
                Token::DictionaryOpen | Token::DictionaryClose => continue,
                Token::Word(b"ID") => {
                    lexer.skip_inline_image();
                    operands.clear();
                    continue;
                }
                Token::Word(operator) => {
                    self.count_operator()?;
                    array = None;
                    if operator == b"Do" {
                        self.form(&operands, &run, depth, out)?;
                    } else {
                        self.operator(operator, &operands, &mut run, out)?;
                    }
                    operands.clear();
                    continue;
                }
            };
            match array.as_mut() {
                Some(array) if array.len() < MAX_ARRAY => array.push(operand),
                Some(_) => {}
                None if operands.len() < MAX_OPERANDS => operands.push(operand),
                None => {}
            }
        }
        Ok(())
    }

    fn count_operator(&mut self) -> Result<(), Reason> {
        self.work += 1;
        if self.work <= self.limits.pdf_operators {
            return Ok(());
        }
        let detail = format!("more than {} drawing operators; split the file", self.limits.pdf_operators);
        Err(Reason::Damaged { detail })
    }

    /// Graphics state, place and showing of text: ISO 32000-1, 8.4.4, 9.4.2 and 9.4.3.
    fn operator(
        &mut self,
        operator: &[u8],
        operands: &[Operand<'_>],
        run: &mut Run<'a>,
        out: &mut Vec<Fragment>,
    ) -> Result<(), Reason> {
        let n = |index: usize| number(operands, index);
        match operator {
            // The depth bound of graphics states: viewers stop at 28 (annex C); some producers nest deeper.
            b"q" if run.states.len() < 512 => run.states.push(run.state.clone()),
            b"Q" => {
                if let Some(state) = run.states.pop() {
                    run.state = state;
                }
            }
            b"cm" => run.state.ctm = then(&[n(0), n(1), n(2), n(3), n(4), n(5)], &run.state.ctm),
            b"BT" => {
                run.text = IDENTITY;
                run.line = IDENTITY;
            }
            b"Td" => run.next_line(n(0), n(1)),
            b"TD" => {
                run.state.leading = -n(1);
                run.next_line(n(0), n(1));
            }
            b"Tm" => {
                run.line = [n(0), n(1), n(2), n(3), n(4), n(5)];
                run.text = run.line;
            }
            b"T*" => run.next_line(0.0, -run.state.leading),
            b"Tj" | b"TJ" => self.show_all(operands, run, out)?,
            b"'" => {
                run.next_line(0.0, -run.state.leading);
                self.show_all(operands, run, out)?;
            }
            b"\"" => {
                run.state.word_spacing = n(0);
                run.state.char_spacing = n(1);
                run.next_line(0.0, -run.state.leading);
                self.show_all(operands.get(2..).unwrap_or_default(), run, out)?;
            }
            _ => self.text_state(operator, operands, run),
        }
        Ok(())
    }

    /// Font, spacing and rise: ISO 32000-1, 9.3. Every other operator draws what is no text.
    fn text_state(&mut self, operator: &[u8], operands: &[Operand<'_>], run: &mut Run<'a>) {
        let n = |index: usize| number(operands, index);
        match operator {
            b"Tf" => {
                if let [Operand::Name(name), Operand::Number(size), ..] = operands {
                    run.state.font = self.font(&run.resources, name);
                    run.state.size = *size;
                }
            }
            b"Tc" => run.state.char_spacing = n(0),
            b"Tw" => run.state.word_spacing = n(0),
            b"Tz" => run.state.scale = n(0) / 100.0,
            b"TL" => run.state.leading = n(0),
            b"Ts" => run.state.rise = n(0),
            _ => {}
        }
    }

    fn show_all(&mut self, operands: &[Operand<'_>], run: &mut Run<'a>, out: &mut Vec<Fragment>) -> Result<(), Reason> {
        for operand in operands {
            match operand {
                Operand::String(bytes) => self.show(bytes, run, out)?,
                Operand::Number(adjustment) => run.advance(-adjustment / 1000.0 * run.state.size * run.state.scale),
                Operand::Array(items) => self.show_all(items, run, out)?,
                Operand::Name(_) => {}
            }
        }
        Ok(())
    }

    /// One string is one fragment: what is spaced inside it is spaced by its own space characters.
    fn show(&mut self, bytes: &[u8], run: &mut Run<'a>, out: &mut Vec<Fragment>) -> Result<(), Reason> {
        let Some(font) = run.state.font.clone() else { return Ok(()) };
        let state = &run.state;
        let at = then(&[state.size * state.scale, 0.0, 0.0, state.size, 0.0, state.rise], &then(&run.text, &state.ctm));
        let mut text = String::new();
        let mut width = 0.0;
        for glyph in font.decode(bytes) {
            let spacing = state.char_spacing + if glyph.is_space { state.word_spacing } else { 0.0 };
            width += (glyph.width * state.size + spacing) * state.scale;
            text.push_str(&glyph.text);
        }
        run.advance(width);
        self.text_bytes += text.len() as u64;
        if self.text_bytes > self.limits.text_bytes {
            return Err(Reason::ZipBomb { unpacked: self.text_bytes, limit: self.limits.text_bytes });
        }
        let end = run.origin();
        let (x, y) = (at[4], at[5]);
        let size = at[2].hypot(at[3]);
        let advanced = (end.0 - x).hypot(end.1 - y);
        if !text.is_empty()
            && [x, y, size, advanced].iter().all(|v| v.is_finite() && v.abs() < 1e6)
            && size > 0.1
            && out.len() < MAX_FRAGMENTS
        {
            out.push(Fragment { text, x, y, width: advanced, size, turn: quarter_turn(at[0], at[1]), bold: font.bold });
        }
        Ok(())
    }

    fn font(&mut self, resources: &[&'a Dictionary], name: &[u8]) -> Option<Rc<Font>> {
        let document = self.document;
        let entry = resources
            .iter()
            .find_map(|r| r.get_deref(b"Font", document).and_then(Object::as_dict).ok()?.get(name).ok())?;
        let (id, font) = document.dereference(entry).ok()?;
        let font = font.as_dict().ok()?;
        match id {
            Some(id) => Some(self.fonts.entry(id).or_insert_with(|| Rc::new(Font::read(document, font))).clone()),
            None => {
                // Written in place, so it is read each time: that is work, too.
                self.work += 10_000;
                Some(Rc::new(Font::read(document, font)))
            }
        }
    }

    fn form(
        &mut self,
        operands: &[Operand<'_>],
        run: &Run<'a>,
        depth: usize,
        out: &mut Vec<Fragment>,
    ) -> Result<(), Reason> {
        let [Operand::Name(name), ..] = operands else { return Ok(()) };
        if depth >= MAX_FORM_DEPTH {
            return Ok(());
        }
        let document = self.document;
        let find = |r: &&'a Dictionary| {
            r.get_deref(b"XObject", document).and_then(Object::as_dict).ok()?.get_deref(name, document).ok()
        };
        let Some(Ok(stream)) = run.resources.iter().find_map(find).map(Object::as_stream) else { return Ok(()) };
        if !stream.dict.get(b"Subtype").and_then(Object::as_name).is_ok_and(|s| s == b"Form") {
            return Ok(());
        }
        let content = match stream.decompressed_content_with_limit(self.limits.pdf_page_bytes) {
            Ok(content) => content,
            Err(error @ lopdf::Error::Decompress(lopdf::DecompressError::MemoryLimitExceeded { .. })) => {
                return Err(super::damaged(error));
            }
            Err(_) => return Ok(()),
        };
        // Unpacking counts as work too: a form may be drawn thousands of times.
        self.work += content.len() as u64 / 16;
        let mut state = run.state.clone();
        if let Ok(matrix) = stream.dict.get_deref(b"Matrix", document).and_then(Object::as_array) {
            let numbers: Vec<f64> = matrix.iter().filter_map(|m| m.as_float().ok().map(f64::from)).collect();
            if let Ok(matrix) = <Matrix>::try_from(numbers) {
                state.ctm = then(&matrix, &state.ctm);
            }
        }
        let mut resources: Vec<&'a Dictionary> =
            stream.dict.get_deref(b"Resources", document).and_then(Object::as_dict).into_iter().collect();
        resources.extend(&run.resources);
        let inner = Run { resources, states: Vec::new(), state, text: IDENTITY, line: IDENTITY };
        self.stream(&content, inner, depth + 1, out)
    }
}

impl Run<'_> {
    /// Where the next glyph's baseline begins on the page.
    fn origin(&self) -> (f64, f64) {
        let at = then(&[1.0, 0.0, 0.0, 1.0, 0.0, self.state.rise], &then(&self.text, &self.state.ctm));
        (at[4], at[5])
    }

    fn next_line(&mut self, x: f64, y: f64) {
        self.line = then(&[1.0, 0.0, 0.0, 1.0, x, y], &self.line);
        self.text = self.line;
    }

    fn advance(&mut self, x: f64) {
        self.text = then(&[1.0, 0.0, 0.0, 1.0, x, 0.0], &self.text);
    }
}

/// The operand, or 0 where it is missing or no number.
fn number(operands: &[Operand<'_>], index: usize) -> f64 {
    match operands.get(index) {
        Some(Operand::Number(number)) => *number,
        _ => 0.0,
    }
}

fn quarter_turn(a: f64, b: f64) -> u8 {
    if a.abs() >= b.abs() {
        if a >= 0.0 { 0 } else { 2 }
    } else if b > 0.0 {
        1
    } else {
        3
    }
}
