//! Makes the command line that goes to the other end's login shell.

/// The script in its readable form.
const SCRIPT: &str = include_str!("script.sh");

/// What is filled into the script. Every part is checked to be made of harmless characters.
#[derive(Debug, Clone, Copy)]
pub(super) struct Parameters<'a> {
    pub(super) magic: &'a str,
    pub(super) name: &'a str,
    pub(super) hash: &'a str,
    pub(super) fallback: &'a str,
    pub(super) arguments: &'a [String],
}

/// Whether a text stands for itself in every shell.
pub(super) fn harmless(text: &str) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || "_./:=,@+%-".contains(c);
    !text.is_empty() && text.chars().all(fits)
}

/// The command for the login shell, or the part that cannot be put into it.
pub(super) fn command(parameters: &Parameters<'_>) -> Result<String, String> {
    let Parameters {
        magic,
        name,
        hash,
        fallback,
        arguments,
    } = *parameters;
    for part in [magic, name, hash, fallback]
        .into_iter()
        .chain(arguments.iter().map(String::as_str))
    {
        if !harmless(part) {
            return Err(part.to_owned());
        }
    }
    let lines: Vec<&str> = SCRIPT.lines().filter(|line| !line.starts_with('#')).collect();
    let script = lines
        .join(" ")
        .replace("@MAGIC@", magic)
        .replace("@NAME@", name)
        .replace("@HASH@", hash)
        .replace("@FALLBACK@", fallback)
        .replace("@ARGUMENTS@", &arguments.join(" "));
    Ok(format!("exec sh -c '{script}'"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parameters(arguments: &[String]) -> Parameters<'_> {
        Parameters {
            magic: "m",
            name: "n",
            hash: "h",
            fallback: "/var/tmp",
            arguments,
        }
    }

    #[test]
    fn no_login_shell_finds_anything_of_its_own_in_the_command() {
        let command = command(&parameters(&["--log=info".to_owned()])).unwrap();
        let inner = command
            .strip_prefix("exec sh -c '")
            .unwrap()
            .strip_suffix('\'')
            .unwrap();
        for bad in ['\'', '!', '\\', '\n', '\t'] {
            assert!(!inner.contains(bad), "{bad:?}");
        }
        for unfilled in ["@MAGIC@", "@NAME@", "@HASH@", "@FALLBACK@", "@ARGUMENTS@"] {
            assert!(!inner.contains(unfilled), "{unfilled}");
        }
        assert!(inner.ends_with("agent --stdio --log=info"));
    }

    #[test]
    fn an_argument_that_a_shell_would_read_is_refused() {
        for bad in [
            "", "a b", "$(id)", "`id`", "a;b", "a'b", "a\"b", "a\\b", "a\nb", "*", "~", "{a,b}", "é",
        ] {
            assert_eq!(command(&parameters(&[bad.to_owned()])), Err(bad.to_owned()));
        }
    }
}
