//! Docker, and Podman behind the same API, as a [`tranship_core::Engine`].
//!
//! [`DockerEngine`] speaks to the engine's unix socket. Two things set it apart from a thin client:
//!
//! * **Nothing is lost that this version does not know.** Containers and networks are read and made as plain JSON
//!   ([`recreate`]); only what must not travel is taken out, by name, and what was made is compared with what should have
//!   been before anyone starts it.
//! * **Images leave by the short way.** With root on the node and Docker's classic image store, layers are put together
//!   straight from the engine's storage, exactly those that are missing at the other side, checked by digest on the way
//!   out. With containerd's, its blobs go as they are kept. Elsewhere the engine's own `save` is used, filtered as it streams.
//!
//! | module | |
//! |---|---|
//! | `docker` | the adapter: one method per action of the port |
//! | `raw`, `fault` | documents over HTTP, errors in the port's words |
//! | `describe` | documents → typed view |
//! | [`recreate`] | documents → bodies, and comparing |
//! | `store`, `tarsplit`, `export` | the image store on disk |
//! | `containerd` | images and containers' layers where containerd keeps them |
//! | `images` | layers held, archives out and in |
//! | `layers` | what a registry asks: the list, configurations, single layers, containerd's blobs |
//! | `filter` | leaving layers out of a `docker save` |
//! | `changes` | what a container wrote into its layer |
//! | `volume` | volumes, their attributes and users |
//! | `place`, `confined` | where a storage element's files are |
//! | `files` | files of a container through the archive API |
//! | `cgroups` | whose a process is |
//! | `processes` | pausing, killing, running a command |
//! | `programs` | running podman, runtimes and CRIU |
//! | `shim` | waiting for the runtime to let go of a container's last run |
//! | `podman` | what is different with Podman |
//! | `memory` | dumps and restores of memory, and what stands in their way |

mod cgroups;
mod changes;
mod confined;
mod containerd;
mod containers;
mod describe;
mod docker;
mod export;
mod fault;
mod files;
mod filter;
mod images;
mod json;
mod layers;
mod memory;
mod networks;
mod place;
mod podman;
mod processes;
mod programs;
mod raw;
pub mod recreate;
mod shim;
mod store;
mod tarsplit;
mod volume;

pub use docker::DockerEngine;
