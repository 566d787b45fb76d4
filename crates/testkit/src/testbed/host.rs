//! What the host must bring: rights, kernel features and a handful of programs.

use std::fs;
use std::path::Path;

use super::error::{Error, Result};
use super::paths::{Dirs, Lock};
use super::run::{HOST, PATH, checked, host, output};

/// Programs the testbed runs on the host, or files it reads there, each with the Debian package that brings it.
const TOOLS: [(&str, &str); 19] = [
    ("debootstrap", "debootstrap"),
    ("chroot", "coreutils"),
    ("ip", "iproute2"),
    ("tc", "iproute2"),
    ("mkfs.ext4", "e2fsprogs"),
    ("mount", "mount"),
    ("losetup", "mount"),
    ("nsenter", "util-linux"),
    ("setsid", "util-linux"),
    ("unshare", "util-linux"),
    ("ssh", "openssh-client"),
    ("ssh-keygen", "openssh-client"),
    ("tar", "tar"),
    // What tests of files compare with.
    ("bsdtar", "libarchive-tools"),
    ("getfacl", "acl"),
    ("python3", "python3"),
    ("rsync", "rsync"),
    ("setfattr", "attr"),
    (
        "/usr/share/keyrings/debian-archive-trixie-stable.gpg",
        "debian-archive-keyring",
    ),
];

/// Kernel modules the nodes use. Loaded by the host, as nodes bring no modules; where they are built in or load by
/// themselves, nothing is lost.
const MODULES: [&str; 20] = [
    "overlay",
    "bridge",
    "veth",
    "br_netfilter",
    "loop",
    "tun",
    "fuse",
    "sch_tbf",
    "nf_tables",
    "nft_compat",
    "nft_chain_nat",
    "nf_nat",
    "nf_conntrack",
    "nf_conntrack_netlink",
    "xt_addrtype",
    "xt_comment",
    "xt_conntrack",
    "xt_MASQUERADE",
    "xt_multiport",
    "xt_tcpudp",
];

/// The programs that the testbed runs on its host, and files that it reads there by their paths, as they are looked for.
pub fn required_programs() -> impl Iterator<Item = &'static str> {
    TOOLS.iter().map(|(tool, _)| *tool)
}

/// What keeps this machine from carrying a testbed, if anything: a name for the reason a test is skipped.
#[must_use]
pub fn missing_capability() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("the testbed needs root".to_owned());
    }
    let namespaces = ["mnt", "pid", "net", "uts", "ipc", "cgroup"];
    if let Some(name) = namespaces
        .iter()
        .find(|name| !Path::new("/proc/self/ns").join(name).exists())
    {
        return Some(format!("the kernel has no {name} namespaces"));
    }
    let mut probe = host("unshare");
    probe.args([
        "--mount", "--pid", "--net", "--uts", "--ipc", "--cgroup", "--fork", "true",
    ]);
    match output(HOST, &mut probe) {
        Ok(result) if !result.success() => {
            return Some(format!("namespaces can't be made here: {}", result.stderr.trim()));
        }
        // A missing program can be installed; that is not for here to say.
        _ => {}
    }
    load_modules();
    let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    if !known.split_whitespace().any(|name| name == "overlay") {
        return Some("the kernel has no overlay file system".to_owned());
    }
    super::cgroup::Cgroups::detect()
        .err()
        .map(|error| error.to_string())
}

/// Makes sure that rights, kernel features and programs are there; installs programs by apt-get on Debian.
///
/// # Errors
///
/// [`Error::Unsupported`] for what can't be helped, [`Error::MissingTools`] where nothing can be installed, and the
/// failed apt-get where it could have been.
pub(crate) fn prepare(dirs: &Dirs) -> Result<()> {
    if let Some(reason) = missing_capability() {
        return Err(Error::Unsupported(reason));
    }
    let missing = || -> Vec<_> { TOOLS.iter().filter(|(tool, _)| !present(tool)).collect() };
    if missing().is_empty() {
        return Ok(());
    }
    // Who comes second finds them installed; apt-get would end at once because another runs.
    let _lock = Lock::take(&dirs.state.join("install.lock"))?;
    let missing = missing();
    if missing.is_empty() {
        return Ok(());
    }
    let join = |mut names: Vec<&str>| {
        names.dedup();
        names.join(" ")
    };
    let programs = join(missing.iter().map(|(tool, _)| *tool).collect());
    let packages = join(missing.iter().map(|(_, package)| *package).collect());
    if !present("apt-get") {
        return Err(Error::MissingTools { programs, packages });
    }
    tracing::info!("missing on this machine: {programs}; installing {packages} with apt-get");
    checked(HOST, host("apt-get").args(["update", "-qq"]))?;
    let mut install = host("apt-get");
    install.env("DEBIAN_FRONTEND", "noninteractive").args([
        "install",
        "-y",
        "-qq",
        "--no-install-recommends",
    ]);
    checked(HOST, install.args(packages.split(' ')))?;
    match TOOLS.iter().find(|(tool, _)| !present(tool)) {
        None => Ok(()),
        Some((tool, package)) => Err(Error::MissingTools {
            programs: (*tool).to_owned(),
            packages: (*package).to_owned(),
        }),
    }
}

/// Whether a program is in [`PATH`], or a file where it should be.
fn present(tool: &str) -> bool {
    if tool.starts_with('/') {
        return Path::new(tool).exists();
    }
    PATH.split(':')
        .any(|directory| Path::new(directory).join(tool).exists())
}

fn load_modules() {
    let Ok(release) = fs::read_to_string("/proc/sys/kernel/osrelease") else {
        return;
    };
    if !Path::new("/lib/modules").join(release.trim()).exists() || !present("modprobe") {
        return;
    }
    for module in MODULES {
        if !Path::new("/sys/module").join(module).exists() {
            // Built-in or absent modules fail; what is really missing shows where it is used.
            let _ = output(HOST, host("modprobe").args(["-q", module]));
        }
    }
}
