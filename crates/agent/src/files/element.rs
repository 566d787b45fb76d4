//! One storage element as an archive, by a filter: what a request over a whole container is split into.

use std::sync::Arc;

use tranship_archive::confined::{Devices, ExportOptions, ExtractOptions, Extractor, export_element};
use tranship_archive::filter::FilterSpec;
use tranship_archive::path::TreePath;
use tranship_archive::writer::Writer;
use tranship_core::Fault;
use tranship_core::fault::FaultKind;

use super::bridge::{self, Pieces, StreamReader};
use super::live_way::then;
use super::{Holder, Unpacked, Way, blocking, rewrite};
use crate::state::Agent;

fn only_directly(holder: &Holder) -> Fault {
    Fault::new(
        "content.route",
        FaultKind::Environment,
        format!("the {holder} is reached through the engine only, which knows no filters"),
    )
    .with_hint("log in as root there")
}

impl Agent {
    /// What of a storage element a filter lets through, under the names that it gives.
    ///
    /// # Errors
    /// `volume.not-found`; `content.route` where the files are not reached directly.
    pub async fn pack_element(
        self: &Arc<Self>,
        holder: &Holder,
        spec: FilterSpec,
        headers_only: bool,
    ) -> Result<Pieces, Fault> {
        let opened = self.open(holder).await?;
        let Way::Live(root) = &opened.way else {
            self.close(opened).await;
            return Err(only_directly(holder));
        };
        let root = Arc::clone(root);
        let packed = bridge::writer(move |out| {
            let options = ExportOptions {
                headers_only,
                ..ExportOptions::default()
            };
            let mut writer = Writer::new(out);
            export_element(&root, &spec, &mut writer, &options)?;
            writer.finish()?;
            Ok(())
        })
        .await;
        match packed {
            Ok(pieces) => {
                let agent = Arc::clone(self);
                Ok(then(pieces, async move { agent.close(opened).await }))
            }
            Err(fault) => {
                self.close(opened).await;
                Err(fault)
            }
        }
    }

    /// Unpacks what of an archive a filter lets through, under the names that it gives.
    ///
    /// # Errors
    /// As [`Agent::pack_element`]; what is wrong with the archive.
    pub async fn unpack_element(
        self: &Arc<Self>,
        holder: &Holder,
        spec: FilterSpec,
        archive: StreamReader,
    ) -> Result<Unpacked, Fault> {
        let opened = self.open(holder).await?;
        let Way::Live(root) = &opened.way else {
            self.close(opened).await;
            return Err(only_directly(holder));
        };
        let root = Arc::clone(root);
        let done = blocking(move || {
            let options = ExtractOptions {
                devices: Devices::Create,
                ..ExtractOptions::default()
            };
            let mut reader = rewrite::open(archive)?;
            let mut extractor = Extractor::new(&root, TreePath::root(), options)?;
            let mut buffer = vec![0; 262_144];
            while let Some(entry) = reader.next_entry()? {
                let Some(entry) = spec.apply(&entry)? else {
                    continue;
                };
                extractor.start(&entry)?;
                while let Some(extent) = reader.read_extent(&mut buffer)? {
                    let length = usize::try_from(extent.length).unwrap_or(usize::MAX);
                    extractor.write(extent.offset, buffer.get(..length).unwrap_or_default())?;
                }
            }
            let report = extractor.end()?;
            Ok(Unpacked {
                entries: report.entries,
                bytes: report.bytes,
                skipped: Vec::new(),
            })
        })
        .await;
        self.close(opened).await;
        done
    }
}
