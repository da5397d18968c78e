//! The tokens of PDF content streams and CMaps (ISO 32000-1, 7.2 and 7.3): one pass, no recursion, no allocation beyond
//! one string at a time. Both languages share this syntax.

/// One token. Composite objects come as their brackets.
#[derive(Debug, Clone, PartialEq)]
pub enum Token<'a> {
    Number(f64),
    String(Vec<u8>),
    Name(&'a [u8]),
    Word(&'a [u8]),
    ArrayOpen,
    ArrayClose,
    DictionaryOpen,
    DictionaryClose,
}

/// Iterates over the tokens of a stream. Never fails: what is no token is skipped, as viewers do.
pub struct Lexer<'a> {
    bytes: &'a [u8],
    at: usize,
}

const fn is_space(b: u8) -> bool {
    matches!(b, 0 | 9 | 10 | 12 | 13 | 32)
}

const fn is_delimiter(b: u8) -> bool {
    matches!(b, b'(' | b')' | b'<' | b'>' | b'[' | b']' | b'{' | b'}' | b'/' | b'%')
}

impl<'a> Lexer<'a> {
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// Skips the data of an inline image: behind the next `EI` that stands between white space (8.9.7).
    pub fn skip_inline_image(&mut self) {
        let rest = &self.bytes[self.at..];
        let end = rest
            .windows(4)
            .position(|w| is_space(w[0]) && w[1] == b'E' && w[2] == b'I' && (is_space(w[3]) || is_delimiter(w[3])));
        self.at = end.map_or(self.bytes.len(), |end| self.at + end + 3);
    }

    fn skip_space(&mut self) {
        while let Some(&b) = self.bytes.get(self.at) {
            if b == b'%' {
                let rest = &self.bytes[self.at..];
                self.at += rest.iter().position(|b| matches!(b, b'\n' | b'\r')).unwrap_or(rest.len());
            } else if is_space(b) {
                self.at += 1;
            } else {
                break;
            }
        }
    }

    fn regular(&mut self) -> &'a [u8] {
        let rest = &self.bytes[self.at..];
        let end = rest.iter().position(|&b| is_space(b) || is_delimiter(b)).unwrap_or(rest.len());
        self.at += end;
        &rest[..end]
    }

    fn literal_string(&mut self) -> Vec<u8> {
        let mut out = Vec::new();
        let mut depth = 1u32;
        while let Some(&b) = self.bytes.get(self.at) {
            self.at += 1;
            match b {
                b'(' => depth += 1,
                b')' => {
                    depth -= 1;
                    if depth == 0 {
                        break;
                    }
                }
                b'\\' => {
                    self.escape(&mut out);
                    continue;
                }
                _ => {}
            }
            out.push(b);
        }
        out
    }

    fn escape(&mut self, out: &mut Vec<u8>) {
        let Some(&b) = self.bytes.get(self.at) else { return };
        self.at += 1;
        match b {
            b'n' => out.push(b'\n'),
            b'r' => out.push(b'\r'),
            b't' => out.push(b'\t'),
            b'b' => out.push(8),
            b'f' => out.push(12),
            b'\r' => {
                if self.bytes.get(self.at) == Some(&b'\n') {
                    self.at += 1;
                }
            }
            b'\n' => {}
            b'0'..=b'7' => {
                let mut code = u32::from(b - b'0');
                for _ in 0..2 {
                    match self.bytes.get(self.at) {
                        Some(&d @ b'0'..=b'7') => {
                            code = code * 8 + u32::from(d - b'0');
                            self.at += 1;
                        }
                        _ => break,
                    }
                }
                out.push(code as u8);
            }
            other => out.push(other),
        }
    }

    fn hex_string(&mut self) -> Vec<u8> {
        let mut out = Vec::new();
        let mut high: Option<u8> = None;
        while let Some(&b) = self.bytes.get(self.at) {
            self.at += 1;
            let digit = match b {
                b'0'..=b'9' => b - b'0',
                b'a'..=b'f' => b - b'a' + 10,
                b'A'..=b'F' => b - b'A' + 10,
                b'>' => break,
                _ => continue,
            };
            match high.take() {
                Some(h) => out.push(h << 4 | digit),
                None => high = Some(digit),
            }
        }
        out.extend(high.map(|h| h << 4));
        out
    }
}

impl<'a> Iterator for Lexer<'a> {
    type Item = Token<'a>;

    fn next(&mut self) -> Option<Token<'a>> {
        loop {
            self.skip_space();
            let b = *self.bytes.get(self.at)?;
            let doubled = self.bytes.get(self.at + 1) == Some(&b);
            if is_delimiter(b) {
                self.at += 1;
                return Some(match b {
                    b'(' => Token::String(self.literal_string()),
                    b'<' if doubled => {
                        self.at += 1;
                        Token::DictionaryOpen
                    }
                    b'<' => Token::String(self.hex_string()),
                    b'>' if doubled => {
                        self.at += 1;
                        Token::DictionaryClose
                    }
                    b'[' => Token::ArrayOpen,
                    b']' => Token::ArrayClose,
                    b'/' => Token::Name(self.regular()),
                    _ => continue,
                });
            }
            let word = self.regular();
            return Some(number(word).map_or(Token::Word(word), Token::Number));
        }
    }
}

/// A number of PDF: an optional sign, digits, at most one point. Damaged ones such as `--5` or `1.2.3` are words.
fn number(word: &[u8]) -> Option<f64> {
    if !word.iter().all(|b| matches!(b, b'0'..=b'9' | b'+' | b'-' | b'.')) || word.len() > 32 {
        return None;
    }
    std::str::from_utf8(word).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_of_a_content_stream() {
        let got: Vec<_> =
            Lexer::new(b"BT /F1 12 Tf -.5 0 Td [(a\\(b\\051(c)\\101)-20<4142 4>]TJ % x\n<</K [1]>>").collect();
        use Token::*;
        assert_eq!(
            got[..8],
            [Word(b"BT"), Name(b"F1"), Number(12.0), Word(b"Tf"), Number(-0.5), Number(0.0), Word(b"Td"), ArrayOpen]
        );
        assert_eq!(
            got[8..13],
            [String(b"a(b)(c)A".to_vec()), Number(-20.0), String(b"AB@".to_vec()), ArrayClose, Word(b"TJ")]
        );
        assert_eq!(got[13..], [DictionaryOpen, Name(b"K"), ArrayOpen, Number(1.0), ArrayClose, DictionaryClose]);
    }

    #[test]
    fn an_inline_image_is_skipped() {
        let mut lexer = Lexer::new(b"ID \x00(EI(\xFF EI Q");
        assert_eq!(lexer.next(), Some(Token::Word(b"ID")));
        lexer.skip_inline_image();
        assert_eq!(lexer.next(), Some(Token::Word(b"Q")));
    }
}
