//! What is different with Podman, whose API is Docker's for most verbs (`docker.rs`) and its own for documents.
//!
//! Podman has no daemon: `podman system service` answers as long as somebody asks, and what runs is held by conmon, one for each
//! container. Its Docker-compatible documents leave out much of what makes a container: fixed addresses, the order of networks, kernel
//! parameters, memory file systems, who may see what. So a container is described by three documents of Podman's own, which travel in
//! the one of [`tranship_core::ContainerSpec`] under [`KEY`]:
//!
//! | key | |
//! |---|---|
//! | `Inspect` | libpod's own inspect document |
//! | `Runtime` | the specification that the runtime was given (`config.json`), in which nothing is left out |
//! | `Wishes` | `podman generate spec`: networks with their fixed addresses, ports, mounts |
//!
//! The container is made again by libpod's API ([`body`]), and initialised once before anything of it arrives: then it has a
//! specification of its own, which is compared with the source's ([`compare`]), and Podman has made what it makes of new volumes (their
//! owner and mode, files of the image) before the data come and not after.
//!
//! | module | |
//! |---|---|
//! | `documents` | reading the three |
//! | `describe` | what the typed view gets from them |
//! | `obstacles` | what cannot be made again, for the plan |
//! | `body`, `mounts`, `ports` | the body of `create` |
//! | `compare` | whether what was made is what was asked for |
//! | `make` | making it |
//! | `ending` | ending what is paused |
//! | `health` | health checks where no systemd runs them |
//! | `networks`, `images`, `place` | networks, images in the form that keeps their id, where a layer is |

mod body;
mod compare;
mod describe;
mod documents;
mod ending;
mod health;
mod images;
mod make;
mod mounts;
mod networks;
mod obstacles;
mod place;
mod ports;
#[cfg(test)]
mod tests;

pub(crate) use health::Looks;
pub(crate) use mounts::check as check_mounts;

/// Where Podman's own API begins. Every version from 5.0 on answers there.
pub(crate) const API: &str = "/v5.0.0/libpod";

/// Under which key of a container's document Podman's own documents are.
pub(crate) const KEY: &str = "Libpod";
