//! What the guest said: whether its tests ran, and how they ended.

/// What the guest's script prints before each reason of a test that did not run.
const SKIPPED: &str = "guest: skipped: ";

/// What it prints last, before the tests' exit status.
const ENDED: &str = "guest: the tests ended with status ";

/// Whether the tests began at all.
pub fn began(said: &str) -> bool {
    said.lines().any(|line| line.starts_with("running "))
}

/// How many tests passed.
///
/// # Errors
///
/// For people to read: what failed, that something was skipped, or that nothing ran.
pub fn judge(said: &str) -> Result<u32, String> {
    let status = said.lines().rev().find_map(|line| {
        let rest = line.strip_prefix(ENDED)?;
        rest.split(' ').next()?.parse::<i32>().ok()
    });
    let (passed, failed) = counts(said);
    match status {
        None => return Err("the guest ended before its tests did".to_owned()),
        Some(0) => {}
        Some(_) if failed > 0 => return Err(format!("tests that failed in the guest: {failed}")),
        Some(status) => return Err(format!("the tests ended with status {status} in the guest")),
    }
    let skipped: Vec<&str> = said
        .lines()
        .filter_map(|line| line.strip_prefix(SKIPPED))
        .collect();
    if !skipped.is_empty() {
        return Err(format!("skipped in the guest: {}", skipped.join("; ")));
    }
    if passed == 0 {
        return Err("no test has such a name, so none ran".to_owned());
    }
    Ok(passed)
}

/// How many tests passed and failed, by libtest's last lines.
fn counts(said: &str) -> (u32, u32) {
    let number = |line: &str, what: &str| {
        let number = line
            .split([';', '.'])
            .find_map(|part| part.trim().strip_suffix(what));
        number
            .and_then(|number| number.trim().parse::<u32>().ok())
            .unwrap_or(0)
    };
    said.lines()
        .filter_map(|line| line.strip_prefix("test result: "))
        .fold((0, 0), |(passed, failed), line| {
            (passed + number(line, "passed"), failed + number(line, "failed"))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "running 2 tests\ntest a ... ok\ntest b ... ok\n\n\
                        test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 190 filtered out; finished in 61.27s\n\n";

    #[test]
    fn counts_what_passed() {
        assert_eq!(judge(&format!("{GOOD}{ENDED}0 after 80.12 s\n")), Ok(2));
    }

    #[test]
    fn a_guest_that_ends_early_proves_nothing() {
        assert!(judge(GOOD).unwrap_err().contains("before its tests"));
        assert!(judge("").is_err());
    }

    #[test]
    fn failures_are_counted() {
        let said = format!(
            "test result: FAILED. 3 passed; 1 failed; 0 ignored; finished in 9.10s\n{ENDED}101 after 9 s\n"
        );
        assert_eq!(judge(&said), Err("tests that failed in the guest: 1".to_owned()));
        let killed = judge(&format!("{ENDED}137 after 9 s\n"));
        assert_eq!(
            killed,
            Err("the tests ended with status 137 in the guest".to_owned())
        );
    }

    #[test]
    fn skipping_is_failing() {
        let said = format!("{GOOD}{SKIPPED}no dirty tracking\n{ENDED}0 after 80.12 s\n");
        assert!(judge(&said).unwrap_err().contains("no dirty tracking"));
    }

    #[test]
    fn nothing_is_no_success() {
        let said = format!(
            "test result: ok. 0 passed; 0 failed; 0 ignored; 0 measured; 192 filtered out\n{ENDED}0 after 8 s\n"
        );
        assert!(judge(&said).unwrap_err().contains("none ran"));
    }
}
