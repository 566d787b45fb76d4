//! Boots a kernel in QEMU and passes on what it says.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use super::packages::{Emulator, Kernel};

/// What the guest has of memory: two hosts with container engines, and what they move.
const MEMORY: &str = "6G";

/// How a guest may end.
#[derive(Debug, Clone, Copy)]
pub enum End {
    /// The guest switched itself off.
    Off,
    /// It was ended, because time was up.
    TimeUp,
}

/// A process that ends when this value does.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself; that is what we want anyway.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Boots the kernel on a disk and waits until it ends. What the guest's second serial line says is shown as it comes, and returned; the log
/// has that and what the kernel says.
pub fn boot(
    emulator: &Emulator,
    kernel: &Kernel,
    initrd: &Path,
    disk: File,
    log: &Path,
    limit: Duration,
) -> std::io::Result<(End, String)> {
    let deadline = Instant::now() + limit;
    let errors = File::options().append(true).open(log)?;
    let mut echo = errors.try_clone()?;
    let mut command = emulator.command();
    configure(&mut command, kernel, initrd, log);
    command.stdin(disk).stdout(Stdio::piped()).stderr(errors);
    let mut running = Running(command.spawn()?);
    let Some(mut output) = running.0.stdout.take() else {
        return Err(std::io::Error::other("the emulator has no output"));
    };
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        // It ends with the emulator, or when nobody listens any more.
        while let Ok(length @ 1..) = output.read(&mut buffer) {
            if sender.send(buffer[..length].to_vec()).is_err() {
                return;
            }
        }
    });
    let mut said = Vec::new();
    let end = loop {
        match receiver.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(bytes) => {
                let mut terminal = std::io::stdout();
                terminal.write_all(&bytes)?;
                terminal.flush()?;
                echo.write_all(&bytes)?;
                said.extend(bytes);
            }
            Err(RecvTimeoutError::Disconnected) => break End::Off,
            Err(RecvTimeoutError::Timeout) => break End::TimeUp,
        }
    };
    Ok((end, String::from_utf8_lossy(&said).into_owned()))
}

fn configure(command: &mut Command, kernel: &Kernel, initrd: &Path, log: &Path) {
    let processors = std::thread::available_parallelism().map_or(2, |count| count.get().clamp(2, 4));
    command
        .args(["-nodefaults", "-display", "none", "-nic", "none", "-no-reboot"])
        .args(["-accel", "tcg,thread=multi", "-cpu", "max", "-m", MEMORY])
        .args(["-smp", &processors.to_string()])
        .arg("-kernel")
        .arg(&kernel.image)
        .arg("-initrd")
        .arg(initrd)
        // A panic ends the guest. An emulated clock is not to be measured.
        .args(["-append", "console=ttyS0 tsc=unstable panic=-1"])
        // The disk has no name: it is gone when nobody has it open.
        .args(["-drive", "file=/proc/self/fd/0,if=virtio,format=raw,cache=unsafe"])
        .arg("-chardev")
        .arg(format!("file,id=kernel,append=on,path={}", log.display()))
        .args(["-serial", "chardev:kernel"])
        .args(["-chardev", "file,id=tests,path=/proc/self/fd/1"])
        .args(["-serial", "chardev:tests"]);
}
