//! Patterns of paths that stay behind.
//!
//! ```text
//! cache        whatever is called cache, anywhere, with everything in it
//! /cache       cache in the root only
//! a/b          b in the root's a; a slash in the middle is an anchor too
//! cache/       directories only
//! *.log        * is any number of bytes but slashes, ? is one byte but a slash
//! **/tmp       any number of directories, none included
//! logs/**      everything in logs, but not logs itself
//! \*           a backslash takes the meaning from what follows
//! ```
//!
//! Everything else stands for itself, brackets included. Patterns that end a scan by a `!` are not known: what one pattern takes
//! out no other brings back.

use super::ScanError;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token {
    Byte(u8),
    /// `?`
    One,
    /// `*`
    Some,
    /// `**/`, at the beginning of a component. What follows it in the list is [`Token::Within`].
    Directories,
    /// In the middle of a component that [`Token::Directories`] takes.
    Within,
    /// `**` at the end.
    All,
}

#[derive(Debug, Clone)]
struct Pattern {
    tokens: Vec<Token>,
    directories_only: bool,
}

/// Patterns of paths that stay behind. The default is none.
#[derive(Debug, Clone, Default)]
pub struct Excludes {
    patterns: Vec<Pattern>,
}

impl Excludes {
    /// Reads patterns.
    ///
    /// # Errors
    ///
    /// A pattern that means nothing.
    pub fn new<T: AsRef<str>>(patterns: &[T]) -> Result<Self, ScanError> {
        let patterns = patterns
            .iter()
            .map(|pattern| parse(pattern.as_ref()))
            .collect::<Result<_, _>>()?;
        Ok(Self { patterns })
    }

    /// There are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.patterns.is_empty()
    }

    /// Whether a path below the root stays behind. What is below an excluded directory does as well, which is not asked here.
    #[must_use]
    pub fn matches(&self, path: &[u8], directory: bool) -> bool {
        !path.is_empty()
            && self
                .patterns
                .iter()
                .any(|pattern| (directory || !pattern.directories_only) && pattern.matches(path))
    }
}

fn parse(text: &str) -> Result<Pattern, ScanError> {
    let wrong = |reason| ScanError::Pattern {
        pattern: text.to_owned(),
        reason,
    };
    let mut rest = text.as_bytes();
    if rest.first() == Some(&b'!') {
        return Err(wrong("what is excluded is not brought back by a !"));
    }
    let directories_only = rest.len() > 1 && rest.ends_with(b"/") && !rest.ends_with(b"\\/");
    if directories_only {
        rest = &rest[..rest.len() - 1];
    }
    let anchored = rest.contains(&b'/');
    if let Some(after) = rest.strip_prefix(b"/") {
        rest = after;
    }
    if rest.is_empty() {
        return Err(wrong("it is empty"));
    }
    let mut tokens = Vec::new();
    if !anchored {
        tokens.extend([Token::Directories, Token::Within]);
    }
    let mut start_of_component = true;
    while let Some((&byte, after)) = rest.split_first() {
        if byte == b'/' && (start_of_component || after.is_empty()) {
            return Err(wrong("a component is empty"));
        }
        let mut at_start = byte == b'/';
        rest = after;
        match byte {
            b'*' if after.first() == Some(&b'*') && start_of_component => match &after[1..] {
                [] => {
                    tokens.push(Token::All);
                    rest = &[];
                }
                [b'/', more @ ..] => {
                    tokens.extend([Token::Directories, Token::Within]);
                    rest = more;
                    at_start = true;
                }
                _ => return Err(wrong("** is not a component of its own")),
            },
            b'*' if after.first() == Some(&b'*') => return Err(wrong("** is not a component of its own")),
            b'*' => tokens.push(Token::Some),
            b'?' => tokens.push(Token::One),
            b'\\' => {
                let (&escaped, more) = after
                    .split_first()
                    .ok_or_else(|| wrong("nothing follows the backslash"))?;
                tokens.push(Token::Byte(escaped));
                rest = more;
            }
            0 => return Err(wrong("it has a NUL byte")),
            other => tokens.push(Token::Byte(other)),
        }
        start_of_component = at_start;
    }
    if start_of_component && !matches!(tokens.last(), Some(Token::All)) {
        return Err(wrong("nothing follows the last slash"));
    }
    Ok(Pattern {
        tokens,
        directories_only,
    })
}

impl Pattern {
    /// Follows all ways through the pattern at once, so that no pattern takes longer than its length times the path's.
    fn matches(&self, path: &[u8]) -> bool {
        let end = self.tokens.len();
        let mut now = vec![false; end + 1];
        let mut next = vec![false; end + 1];
        self.enter(0, &mut now);
        for &byte in path {
            next.fill(false);
            let mut alive = false;
            for at in 0..end {
                if !now[at] {
                    continue;
                }
                let to = match self.tokens[at] {
                    Token::Byte(wanted) if wanted == byte => at + 1,
                    Token::One if byte != b'/' => at + 1,
                    Token::Some if byte != b'/' => at,
                    Token::All => at,
                    Token::Directories if byte != b'/' => at + 1,
                    Token::Within if byte == b'/' => at - 1,
                    Token::Within => at,
                    _ => continue,
                };
                alive = true;
                // `All` needs one byte at least, and has had it now.
                if self.tokens[at] == Token::All {
                    next[at] = true;
                    next[end] = true;
                } else {
                    self.enter(to, &mut next);
                }
            }
            if !alive {
                return false;
            }
            std::mem::swap(&mut now, &mut next);
        }
        now[end]
    }

    fn enter(&self, at: usize, states: &mut [bool]) {
        states[at] = true;
        match self.tokens.get(at) {
            Some(Token::Some) => self.enter(at + 1, states),
            Some(Token::Directories) => self.enter(at + 2, states),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn takes(pattern: &str, path: &str, directory: bool) -> bool {
        Excludes::new(&[pattern])
            .unwrap()
            .matches(path.as_bytes(), directory)
    }

    #[test]
    fn patterns_mean_what_the_page_says() {
        for (pattern, yes, no) in [
            (
                "cache",
                &["cache", "a/cache", "a/b/cache"][..],
                &["caches", "cache/a", "a/xcache"][..],
            ),
            ("/cache", &["cache"], &["a/cache"]),
            ("a/b", &["a/b"], &["x/a/b", "b"]),
            ("*.log", &["x.log", "a/.log", "a/b.log"], &["log", "x.log/a"]),
            ("/*.log", &["x.log"], &["a/x.log"]),
            ("?", &["a", "x/y"], &["ab", ""]),
            ("a?c", &["abc"], &["a/c", "ac"]),
            (
                "**/tmp",
                &["tmp", "a/tmp", "a/b/tmp"],
                &["xtmp", "a/xtmp", "tmp/x"],
            ),
            ("a/**/b", &["a/b", "a/x/b", "a/x/y/b"], &["a/xb", "ab", "a/x/yb"]),
            ("logs/**", &["logs/a", "logs/a/b"], &["logs", "x/logs/a"]),
            ("\\*", &["*", "a/*"], &["b"]),
            ("[a]", &["[a]"], &["a"]),
            ("a*b*c", &["abc", "aXbYc", "abbcbc"], &["ab", "a/bc"]),
            ("**", &["a", "a/b"], &[]),
        ] {
            for path in yes {
                assert!(takes(pattern, path, false), "{pattern} takes {path}");
            }
            for path in no {
                assert!(!takes(pattern, path, false), "{pattern} leaves {path}");
            }
        }
        assert!(takes("cache/", "a/cache", true));
        assert!(!takes("cache/", "a/cache", false));
        assert!(!takes("*", "", true), "the root stays");
    }

    #[test]
    fn patterns_that_mean_nothing_are_refused() {
        for pattern in ["", "/", "//", "!a", "a//b", "a/**b", "a**", "x\\", "a\0b", "**a"] {
            assert!(Excludes::new(&[pattern]).is_err(), "{pattern:?}");
        }
    }

    #[test]
    fn no_pattern_takes_forever() {
        let pattern = "a*".repeat(30) + "b";
        assert!(!takes(&pattern, &"a".repeat(5000), false));
    }
}
