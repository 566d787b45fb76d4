//! QEMU and a kernel, from the machine's own Debian packages: unpacked into the cache, not installed.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The package that depends on the newest kernel.
const KERNEL: &str = "linux-image-cloud-amd64";

/// The package with the emulator.
const EMULATOR: &str = "qemu-system-x86";

/// The emulator's program.
const PROGRAM: &str = "qemu-system-x86_64";

/// Why something cannot be had.
#[derive(Debug)]
pub enum Unavailable {
    /// The machine has it not and cannot get it: for people to read.
    Missing(String),
    /// Something went wrong here.
    Failed(std::io::Error),
}

impl From<std::io::Error> for Unavailable {
    fn from(error: std::io::Error) -> Self {
        Self::Failed(error)
    }
}

impl From<String> for Unavailable {
    fn from(what: String) -> Self {
        Self::Missing(what)
    }
}

type Result<T, E = Unavailable> = std::result::Result<T, E>;

/// A kernel to boot.
#[derive(Debug)]
pub struct Kernel {
    /// Its image.
    pub image: PathBuf,
    /// The directory with its modules, by release.
    pub modules: PathBuf,
    /// Its release, as `uname -r` says it.
    pub release: String,
}

/// The emulator, wherever it is.
#[derive(Debug)]
pub struct Emulator {
    program: PathBuf,
    /// Where its package was unpacked, if it is not installed.
    unpacked: Option<PathBuf>,
}

impl Emulator {
    /// Runs it, ended by the kernel if this process ends first.
    pub fn command(&self) -> Command {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]).arg(&self.program);
        if let Some(root) = &self.unpacked {
            let mut libraries = OsString::from(root.join("usr/lib/x86_64-linux-gnu"));
            libraries.push(":");
            libraries.push(root.join("lib/x86_64-linux-gnu"));
            command.env("LD_LIBRARY_PATH", libraries);
            for data in ["usr/share/qemu", "usr/share/seabios"] {
                command.arg("-L").arg(root.join(data));
            }
        }
        command
    }

    fn check(self) -> Result<Self> {
        match run(self.command().arg("--version")) {
            Ok(_) => Ok(self),
            Err(why) => Err(Unavailable::Missing(format!("{PROGRAM} does not run: {why}"))),
        }
    }
}

/// The emulator: the installed one, or one in the cache.
pub fn emulator(cache: &Path) -> Result<Emulator> {
    let installed = Emulator {
        program: PathBuf::from(PROGRAM),
        unpacked: None,
    };
    if let Ok(installed) = installed.check() {
        return Ok(installed);
    }
    let root = obtain(
        cache,
        EMULATOR,
        || Ok(EMULATOR.to_owned()),
        |name| {
            let arguments = ["install", "--simulate", "--no-install-recommends", name];
            Ok(to_be_installed(&apt("apt-get", &arguments)?))
        },
        |_| Ok(()),
    )?;
    let unpacked = Emulator {
        program: root.join("usr/bin").join(PROGRAM),
        unpacked: Some(root),
    };
    unpacked.check()
}

/// The newest kernel for virtual machines that the machine's Debian has; `busybox` lists its modules' dependencies.
pub fn kernel(cache: &Path, busybox: &Path) -> Result<Kernel> {
    let root = obtain(
        cache,
        "linux-image",
        || {
            let package = apt("apt-cache", &["show", "--no-all-versions", KERNEL])?;
            Ok(kernel_of(&package).ok_or_else(|| format!("{KERNEL} depends on no kernel"))?)
        },
        |name| Ok(vec![name.to_owned()]),
        |root| prepare_modules(root, busybox),
    )?;
    let (image, release) = image(&root)?;
    let modules = root.join("lib/modules");
    Ok(Kernel {
        image,
        modules,
        release,
    })
}

/// The directory below the cache in which a package is unpacked, with what it needs. `name` finds the package, `packages` what is to be
/// unpacked with it, `prepare` ends the work. What was unpacked before is taken where apt knows nothing better.
fn obtain(
    cache: &Path,
    prefix: &str,
    name: impl Fn() -> Result<String>,
    packages: impl Fn(&str) -> Result<Vec<String>>,
    prepare: impl Fn(&Path) -> Result<()>,
) -> Result<PathBuf> {
    let unpack = || -> Result<PathBuf> {
        let name = name()?;
        let said = apt("apt-cache", &["show", "--no-all-versions", &name])?;
        let version = field(&said, "Version").ok_or_else(|| format!("apt knows no version of {name}"))?;
        // A colon would end a path of LD_LIBRARY_PATH.
        let finished = cache.join(format!("{name}_{}", version.replace(':', "_")));
        if finished.exists() {
            return Ok(finished);
        }
        println!("fetching {name} {version} (once) …");
        let unfinished = cache.join("unfinished");
        download(&unfinished, &packages(&name)?)?;
        prepare(&unfinished)?;
        fs::rename(&unfinished, &finished)?;
        Ok(finished)
    };
    let first = match unpack() {
        Err(Unavailable::Missing(why)) => why,
        done => return done,
    };
    // Lists that are missing or old are no reason to give up.
    let why = match apt("apt-get", &["update", "-qq"]) {
        Err(why) => format!("{first}; {why}"),
        Ok(_) => match unpack() {
            Err(Unavailable::Missing(why)) => why,
            done => return done,
        },
    };
    newest(cache, prefix)?.ok_or_else(|| Unavailable::Missing(format!("no package {prefix}: {why}")))
}

/// Downloads packages and unpacks them into a directory, which is new.
fn download(root: &Path, packages: &[String]) -> Result<()> {
    if root.exists() {
        fs::remove_dir_all(root)?;
    }
    let archives = root.join("archives");
    fs::create_dir_all(&archives)?;
    run(Command::new("apt-get")
        .args(["download", "-qq"])
        .args(packages)
        .current_dir(&archives))?;
    for archive in fs::read_dir(&archives)? {
        run(Command::new("dpkg-deb").arg("-x").arg(archive?.path()).arg(root))?;
    }
    Ok(fs::remove_dir_all(&archives)?)
}

/// Brings a kernel's modules to where they are looked for and to the form that everybody reads.
fn prepare_modules(root: &Path, busybox: &Path) -> Result<()> {
    let (_, release) = image(root)?;
    if !root.join("lib").exists() {
        std::os::unix::fs::symlink("usr/lib", root.join("lib"))?;
    }
    run(Command::new("find").arg(root.join("lib/")).args([
        "-name",
        "*.ko.xz",
        "-exec",
        "xz",
        "--decompress",
        "{}",
        "+",
    ]))?;
    run(Command::new(busybox)
        .args(["depmod", "-b"])
        .arg(root)
        .arg(release))?;
    Ok(())
}

/// A kernel's image and its release.
fn image(root: &Path) -> Result<(PathBuf, String)> {
    for entry in fs::read_dir(root.join("boot"))? {
        let entry = entry?;
        let name = entry.file_name();
        if let Some(release) = name.to_string_lossy().strip_prefix("vmlinuz-") {
            return Ok((entry.path(), release.to_owned()));
        }
    }
    Err(Unavailable::Missing(format!("no kernel in {}", root.display())))
}

/// What was last unpacked of the packages whose names begin so.
fn newest(cache: &Path, prefix: &str) -> std::io::Result<Option<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(cache)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(prefix) {
            found.push((entry.metadata()?.modified()?, entry.path()));
        }
    }
    Ok(found.into_iter().max().map(|(_, path)| path))
}

fn apt(program: &str, arguments: &[&str]) -> Result<String, String> {
    run(Command::new(program).args(arguments))
}

/// Runs a command; what it says, or how it failed.
fn run(command: &mut Command) -> Result<String, String> {
    let line = std::iter::once(command.get_program())
        .chain(command.get_args().take(4))
        .map(std::ffi::OsStr::to_string_lossy)
        .collect::<Vec<_>>()
        .join(" ");
    let output = command
        .env("LC_ALL", "C")
        .output()
        .map_err(|error| format!("cannot run `{line}`: {error}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let errors = String::from_utf8_lossy(&output.stderr);
    let last = errors.trim().lines().next_back().unwrap_or_default();
    Err(format!("`{line}` ended with {}: {last}", output.status))
}

/// A field of a package's description.
fn field<'a>(package: &'a str, name: &str) -> Option<&'a str> {
    package
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        .map(str::trim)
}

/// The kernel package that a package depends on, by its description.
fn kernel_of(package: &str) -> Option<String> {
    field(package, "Depends")?
        .split([',', '|'])
        .filter_map(|dependency| dependency.split_whitespace().next())
        .find(|name| name.starts_with("linux-image-"))
        .map(str::to_owned)
}

/// The packages that apt-get would install, by what it says. The C library stays the machine's own, which runs the rest.
fn to_be_installed(said: &str) -> Vec<String> {
    said.lines()
        .filter_map(|line| line.strip_prefix("Inst ")?.split(' ').next())
        .filter(|name| !["libc6", "libc-bin"].contains(name))
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_kernel_behind_its_name() {
        let package = "Package: linux-image-cloud-amd64\nVersion: 6.1.192-3\nPre-Depends: dpkg\n\
                       Depends: linux-base, linux-image-6.1.0-57-cloud-amd64 (= 6.1.192-3)\nDescription: x\n";
        assert_eq!(
            kernel_of(package).as_deref(),
            Some("linux-image-6.1.0-57-cloud-amd64")
        );
        assert_eq!(field(package, "Version"), Some("6.1.192-3"));
        assert_eq!(kernel_of("Depends: libc6\n"), None);
    }

    #[test]
    fn lists_what_is_missing_of_the_emulator() {
        let said = "Reading package lists...\nInst libfdt1 (1.6.1-4+b1 Debian:12 [amd64])\n\
                    Inst libc6 [2.36-9] (2.36-10 Debian:12 [amd64])\nInst qemu-system-x86 (1:7.2 Debian:12 [amd64])\n\
                    Conf libfdt1 (1.6.1-4+b1 Debian:12 [amd64])\n";
        assert_eq!(to_be_installed(said), ["libfdt1", "qemu-system-x86"]);
    }
}
