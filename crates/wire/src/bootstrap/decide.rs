//! Which binary shall run at the other end.

use std::fmt;
use std::ops::RangeInclusive;

use semver::Version;

use super::{BootstrapError, BootstrapOptions};

/// A kind of machine, in Rust's words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Platform {
    /// The operating system, such as `linux`.
    pub os: String,
    /// The processor, such as `x86_64`.
    pub arch: String,
}

impl Platform {
    /// What this binary was built for.
    #[must_use]
    pub fn here() -> Self {
        Self {
            os: std::env::consts::OS.into(),
            arch: std::env::consts::ARCH.into(),
        }
    }

    /// What `uname` calls so.
    pub(super) fn from_uname(os: &str, arch: &str) -> Self {
        let os = match os {
            "Darwin" => "macos".to_owned(),
            other => other.to_ascii_lowercase(),
        };
        let arch = match arch {
            "amd64" => "x86_64",
            "arm64" => "aarch64",
            "i386" | "i486" | "i586" | "i686" => "x86",
            "ppc64" | "ppc64le" => "powerpc64",
            arm if arm.starts_with("armv") => "arm",
            other => other,
        };
        Self {
            os,
            arch: arch.to_owned(),
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} on {}", self.os, self.arch)
    }
}

/// A tranship that is installed at the other end: the line `tranship VERSION PROTOCOL-MIN PROTOCOL-MAX`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Installed {
    /// Its version.
    pub version: Version,
    /// The versions of the protocol that it speaks.
    pub protocols: RangeInclusive<u32>,
}

impl Installed {
    pub(super) fn parse(line: &str) -> Option<Self> {
        let mut words = line.split_ascii_whitespace();
        let (name, version, min, max) = (words.next()?, words.next()?, words.next()?, words.next()?);
        let (min, max) = (min.parse().ok()?, max.parse().ok()?);
        (name == "tranship" && min <= max).then_some(Self {
            version: Version::parse(version).ok()?,
            protocols: min..=max,
        })
    }
}

/// What the script found out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Remote {
    pub(super) platform: Platform,
    /// The line of an installed tranship, whatever it says.
    pub(super) installed: Option<String>,
    pub(super) cached: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Decision {
    RunInstalled,
    RunCached,
    Upload,
}

/// Chooses: an installed one that is as new as we are and speaks our protocol; else our own.
pub(super) fn decide(
    host: &str,
    remote: &Remote,
    own: &Version,
    options: &BootstrapOptions,
) -> Result<Decision, BootstrapError> {
    let installed = remote.installed.as_deref().and_then(Installed::parse);
    let speaks = |installed: &Installed| {
        installed.protocols.start() <= options.protocols.end()
            && options.protocols.start() <= installed.protocols.end()
    };
    if options.no_bootstrap {
        // An older one will do as long as it understands us.
        if installed.as_ref().is_some_and(speaks) {
            return Ok(Decision::RunInstalled);
        }
        return Err(BootstrapError::Refused {
            host: host.to_owned(),
            found: match (&installed, &remote.installed) {
                (Some(found), _) => format!(
                    "tranship {}, which speaks protocol {} to {} only",
                    found.version,
                    found.protocols.start(),
                    found.protocols.end()
                ),
                (None, Some(_)) => "a tranship that does not say its version".into(),
                (None, None) => "no tranship in its PATH".into(),
            },
            needed: format!(
                "tranship {own} (protocol {} to {})",
                options.protocols.start(),
                options.protocols.end()
            ),
        });
    }
    if !options.force_own
        && installed
            .as_ref()
            .is_some_and(|found| speaks(found) && found.version >= *own)
    {
        return Ok(Decision::RunInstalled);
    }
    if remote.platform != options.platform {
        return Err(BootstrapError::Architecture {
            host: host.to_owned(),
            here: options.platform.to_string(),
            there: remote.platform.to_string(),
        });
    }
    Ok(if remote.cached.is_some() {
        Decision::RunCached
    } else {
        Decision::Upload
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tranship_core::fault::Explain as _;

    fn options() -> BootstrapOptions {
        BootstrapOptions::new("1.2.0", 2..=3, "/b".into(), "0".repeat(64))
    }

    fn choose(
        installed: Option<&str>,
        cached: bool,
        change: impl FnOnce(&mut BootstrapOptions),
    ) -> Result<Decision, &'static str> {
        let mut options = options();
        change(&mut options);
        let remote = Remote {
            platform: Platform::here(),
            installed: installed.map(str::to_owned),
            cached: cached.then(|| "/c".to_owned()),
        };
        decide("h", &remote, &Version::new(1, 2, 0), &options).map_err(|error| error.code())
    }

    #[test]
    fn an_installed_one_runs_if_it_is_as_new_and_speaks_our_protocol() {
        use Decision::{RunCached, RunInstalled, Upload};
        for (installed, expected) in [
            (Some("tranship 1.2.0 2 3"), RunInstalled),
            (Some("tranship 1.10.0 3 4"), RunInstalled),
            (Some("tranship 1.1.9 2 3"), Upload),
            (Some("tranship 1.2.0-rc.1 2 3"), Upload),
            (Some("tranship 2.0.0 4 5"), Upload),
            (Some("tranship 2.0.0 3 2"), Upload),
            (Some("tranship: unknown command"), Upload),
            (Some(""), Upload),
            (None, Upload),
        ] {
            assert_eq!(choose(installed, false, |_| {}), Ok(expected), "{installed:?}");
        }
        assert_eq!(choose(None, true, |_| {}), Ok(RunCached));
        assert_eq!(
            choose(Some("tranship 1.2.0 2 3"), true, |o| o.force_own = true),
            Ok(RunCached)
        );
    }

    #[test]
    fn without_upload_an_older_one_will_do_and_nothing_else() {
        let strict = |o: &mut BootstrapOptions| o.no_bootstrap = true;
        assert_eq!(
            choose(Some("tranship 1.1.0 1 2"), false, strict),
            Ok(Decision::RunInstalled)
        );
        for installed in [None, Some(""), Some("tranship 0.9.0 1 1")] {
            assert_eq!(choose(installed, true, strict), Err("bootstrap.refused"));
        }
    }

    #[test]
    fn another_kind_of_machine_needs_its_own_binary() {
        let other = |o: &mut BootstrapOptions| o.platform.arch = "vax".into();
        assert_eq!(choose(None, true, other), Err("bootstrap.architecture"));
        assert_eq!(
            choose(Some("tranship 1.2.0 2 3"), false, other),
            Ok(Decision::RunInstalled)
        );
        assert_eq!(
            Platform::from_uname("Linux", "arm64"),
            Platform {
                os: "linux".into(),
                arch: "aarch64".into()
            }
        );
    }
}
