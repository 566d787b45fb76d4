//! `cargo xtask kernel`: end-to-end tests on a kernel that this machine does not run, in an emulated machine.

mod boot;
mod initrd;
mod outcome;
mod packages;

use std::error::Error;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use tranship_testkit::testbed::{self, Dirs, Lock};

use crate::build::{self, EndToEnd};
use boot::End;
use packages::{Emulator, Kernel, Unavailable};

/// How large the guest's disk may become. What it does not use takes no place.
const DISK_SIZE: &str = "8G";

const DISK_SCRIPT: &str = include_str!("disk.sh");
const GUEST_SCRIPT: &str = include_str!("guest.sh");

/// `cargo xtask kernel`
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Which end-to-end tests run: those whose names contain one of these.
    #[arg(default_value = "live::tracked")]
    filters: Vec<String>,
    /// How many minutes the guest may take. It has no help of the processor, and takes several times as long as the machine would.
    #[arg(long, default_value_t = 25, value_parser = clap::value_parser!(u16).range(1..))]
    minutes: u16,
}

impl Args {
    /// What a change has to pass: there and back, with Docker. All of them take a quarter of an hour.
    pub fn of_ci() -> Self {
        Self {
            filters: vec!["live::tracked::every_page_is_right_at_the_other_host".to_owned()],
            minutes: 25,
        }
    }
}

/// What a run needs beyond what cargo builds.
struct Kit {
    emulator: Emulator,
    kernel: Kernel,
    tree: PathBuf,
    images: PathBuf,
    initrd: PathBuf,
    /// An empty directory to mount on.
    stage: PathBuf,
}

/// Boots the newest kernel for virtual machines of the machine's Debian and runs tests there. Where that cannot be had, that is said and counted
/// as skipped.
pub fn run(args: &Args) -> Result<(), Box<dyn Error>> {
    let kit = match prepare()? {
        Ok(kit) => kit,
        Err(missing) => {
            println!("SKIPPED: no other kernel can be tried here: {missing}");
            println!("1 skipped");
            return Ok(());
        }
    };
    println!("building the end-to-end tests …");
    let built = build::end_to_end()?;
    let begin = Instant::now();
    let disk = make_disk(&kit, &built, &args.filters)?;
    println!(
        "made the guest's disk in {:.0} s; booting Linux {} without help of the processor …",
        begin.elapsed().as_secs_f64(),
        kit.kernel.release
    );
    let log = build::target_directory()?.join("kernel.log");
    File::create(&log)?;
    let limit = Duration::from_secs(60 * u64::from(args.minutes));
    let (end, said) = boot::boot(&kit.emulator, &kit.kernel, &kit.initrd, disk, &log, limit)?;
    let outcome = match end {
        End::Off => outcome::judge(&said),
        End::TimeUp => {
            // It was in the middle of a line.
            println!();
            Err(format!("the guest was ended after {} min", args.minutes))
        }
    };
    match outcome {
        Ok(passed) => {
            println!(
                "{passed} passed on Linux {}, in {:.0} s",
                kit.kernel.release,
                begin.elapsed().as_secs_f64()
            );
            Ok(())
        }
        Err(why) => {
            if !outcome::began(&said) {
                println!("the guest's log ends:\n{}", tail(&log, 20)?);
            }
            Err(format!("{why}; what its kernel said is in {}", log.display()).into())
        }
    }
}

/// The last lines of a file.
fn tail(path: &Path, lines: usize) -> std::io::Result<String> {
    let text = String::from_utf8_lossy(&std::fs::read(path)?).into_owned();
    let all: Vec<&str> = text.lines().collect();
    Ok(all[all.len().saturating_sub(lines)..].join("\n"))
}

/// Gets everything that is the same in each run, and keeps it in the testbed's cache; or says what is missing.
fn prepare() -> Result<Result<Kit, String>, Box<dyn Error>> {
    if std::env::consts::ARCH != "x86_64" {
        return Ok(Err(
            "the emulated machine is of the kind x86_64, and this one is not".to_owned(),
        ));
    }
    if let Some(missing) = testbed::missing_capability() {
        return Ok(Err(missing));
    }
    let dirs = Dirs::default();
    let images = testbed::ensure_images(&dirs, None)?;
    let tree = testbed::ensure_tree(&dirs, None)?;
    let cache = dirs.cache.join("kernel");
    let stage = cache.join("stage");
    std::fs::create_dir_all(&stage)?;
    let _lock = Lock::take(&dirs.cache.join("kernel.lock"))?;
    let busybox = tree.join("root/usr/bin/busybox");
    let found = packages::emulator(&cache)
        .and_then(|emulator| packages::kernel(&cache, &busybox).map(|kernel| (emulator, kernel)));
    let (emulator, kernel) = match found {
        Ok(found) => found,
        Err(Unavailable::Missing(what)) => return Ok(Err(what)),
        Err(Unavailable::Failed(error)) => return Err(error.into()),
    };
    let initrd = cache.join("initrd");
    let unfinished = cache.join("initrd.new");
    std::fs::write(&unfinished, initrd::build(&busybox, &kernel.modules)?)?;
    std::fs::rename(&unfinished, &initrd)?;
    Ok(Ok(Kit {
        emulator,
        kernel,
        tree,
        images,
        initrd,
        stage,
    }))
}

/// Makes the guest's disk: a file without a name, of which nothing is left however this process ends.
fn make_disk(kit: &Kit, built: &EndToEnd, filters: &[String]) -> Result<File, Box<dyn Error>> {
    let disk = tempfile::tempfile_in(&Dirs::default().state)?;
    let output = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-c", DISK_SCRIPT])
        .env("TB_STAGE", &kit.stage)
        .env("TB_TREE", &kit.tree)
        .env("TB_IMAGES", &kit.images)
        .env("TB_MODULES", &kit.kernel.modules)
        .env("TB_TESTS", &built.tests)
        .env("TB_PROGRAM", &built.program)
        .env("TB_GUEST", GUEST_SCRIPT)
        .env("TB_SETTINGS", settings(&built.program, filters))
        .env("TB_SIZE", DISK_SIZE)
        .stdin(disk.try_clone()?)
        .output()?;
    if output.status.success() {
        return Ok(disk);
    }
    let errors = String::from_utf8_lossy(&output.stderr);
    Err(format!("the guest's disk cannot be made: {}", errors.trim()).into())
}

/// What the guest's script is told, as a script.
fn settings(program: &Path, filters: &[String]) -> String {
    let tools: Vec<&str> = testbed::required_programs().collect();
    let filters: Vec<String> = filters.iter().map(|filter| quoted(filter)).collect();
    format!(
        "PROGRAM={}\nTOOLS={}\nset -- {}\n",
        quoted(&program.to_string_lossy()),
        quoted(&tools.join(" ")),
        filters.join(" ")
    )
}

/// A word of the shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guest_reads_its_settings_as_they_are_meant() {
        let settings = settings(Path::new("/t/it's"), &["live::a".to_owned(), "b $(c)".to_owned()]);
        let script = format!("{settings}printf '%s|' \"$PROGRAM\" \"$@\"");
        let output = Command::new("sh").args(["-c", &script]).output();
        assert_eq!(output.unwrap().stdout, b"/t/it's|live::a|b $(c)|");
        assert!(settings.contains(" mkfs.ext4 "), "{settings}");
    }
}
