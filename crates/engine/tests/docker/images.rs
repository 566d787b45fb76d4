//! Images out of one engine and into another.

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use tranship_core::engine::ByteStream;
use tranship_core::ids::Digest;
use tranship_core::{Engine, EngineError, ImageSpec};
use tranship_engine::DockerEngine;

use crate::hosts::{Host, hosts};

/// An image with whatever a tar can hold that is easily got wrong, its lower layers, and one more layer.
const BUILD: &str = r#"
mkdir -p /root/NAME && cd /root/NAME && cat > Dockerfile <<'FILE'
FROM tranship-test/busybox:1
RUN mkdir /d && dd if=/dev/urandom of=/d/big bs=1M count=20 2>/dev/null && ln /d/big /d/hard && ln -s /d/big /d/soft
RUN echo NAME > /d/name && mkfifo /d/pipe && mknod /d/null c 1 3 && touch /d/empty && rm /d/hard
RUN n=$(printf 'x%.0s' $(seq 1 200)) && echo long > "/d/$n" && printf 'raw' > "$(printf '/d/\377\376')"
RUN dd if=/dev/zero of=/d/sparse bs=1 count=1 seek=5000000 2>/dev/null; chmod 4711 /d/name; chown 12:34 /d/name
RUN i=0; while [ $i -lt 300 ]; do echo $i > /d/f$i; i=$((i+1)); done
FILE
DOCKER_BUILDKIT=0 docker build --network none -q -t NAME:base .
cat > Dockerfile <<'FILE'
FROM NAME:base
RUN rm -r /d/f1* && dd if=/dev/urandom of=/d/more bs=1M count=3 2>/dev/null
LABEL last=yes
FILE
DOCKER_BUILDKIT=0 docker build --network none -q -t NAME:full .
"#;

fn build(host: &Host, name: &str) {
    host.node.sh(&BUILD.replace("NAME", name)).unwrap();
}

async fn image(engine: &DockerEngine, tag: &str) -> ImageSpec {
    engine.image(tag).await.unwrap().unwrap()
}

async fn bytes_of(engine: &DockerEngine, image: &ImageSpec, tag: &str, skip: usize) -> Vec<u8> {
    let mut archive = engine.export_image(image, Some(tag), skip).await.unwrap();
    let mut bytes = Vec::new();
    while let Some(piece) = archive.stream.next().await {
        bytes.extend_from_slice(&piece.unwrap());
    }
    if let Some(length) = archive.length {
        assert_eq!(length, bytes.len() as u64);
    }
    bytes
}

fn pieces(bytes: &[u8]) -> Vec<Result<Bytes, EngineError>> {
    bytes
        .chunks(100_000)
        .map(|piece| Ok(Bytes::copy_from_slice(piece)))
        .collect()
}

fn as_stream(items: Vec<Result<Bytes, EngineError>>) -> ByteStream {
    Box::pin(stream::iter(items))
}

#[tokio::test]
async fn the_whole_image_and_the_missing_part_of_it() {
    let Some(hosts) = hosts() else { return };
    let [a, b] = hosts.connect().await;
    build(&a, "whole");
    assert!(a.engine.reads_layers_directly().await.unwrap());
    assert!(!a.indirect().reads_layers_directly().await.unwrap());
    let base = image(&a.engine, "whole:base").await;
    let full = image(&a.engine, "whole:full").await;
    assert_eq!(base.layers, full.layers[..base.layers.len()]);

    // Nothing but the small base image of the testbed is there.
    for engine in [b.engine.clone(), b.indirect()] {
        assert_eq!(engine.layers_held(&full.layers).await.unwrap(), 1);
    }
    let sizes = a.engine.archive_sizes(&full, Some("whole:full")).await.unwrap();
    assert_eq!(sizes.len(), full.layers.len() + 1);
    for (skip, size) in sizes.iter().enumerate() {
        assert_eq!(
            bytes_of(&a.engine, &full, "whole:full", skip).await.len() as u64,
            *size
        );
    }
    assert!(a.indirect().archive_sizes(&full, None).await.unwrap().is_empty());

    let archive = a.engine.export_image(&base, Some("whole:base"), 0).await.unwrap();
    b.engine.import_image(archive.stream).await.unwrap();
    assert_eq!(image(&b.engine, "whole:base").await, base);

    // The thin archive: only the last layer, by either route.
    for source in [a.engine.clone(), a.indirect()] {
        let held = b.engine.layers_held(&full.layers).await.unwrap();
        assert_eq!(held, base.layers.len());
        assert_eq!(b.indirect().layers_held(&full.layers).await.unwrap(), held);
        let thin = bytes_of(&source, &full, "whole:full", held).await;
        assert!(
            thin.len() as u64 <= sizes[held] * 102 / 100,
            "{} bytes",
            thin.len()
        );
        b.engine.import_image(as_stream(pieces(&thin))).await.unwrap();
        assert_eq!(image(&b.engine, "whole:full").await.id, full.id);
        b.docker("run --rm whole:full sh -c 'test -s /d/more && test -p /d/pipe && test ! -e /d/f10'");
        b.engine.remove_image("whole:full").await.unwrap();
        assert!(b.engine.image("whole:full").await.unwrap().is_none());
        b.engine.remove_image("whole:full").await.unwrap();
    }

    // And the whole one through the engine, without a tag.
    b.engine.remove_image("whole:base").await.unwrap();
    let archive = a.indirect().export_image(&full, None, 0).await.unwrap();
    assert_eq!(archive.length, None);
    b.engine.import_image(archive.stream).await.unwrap();
    let found = image(&b.engine, full.id.as_str()).await;
    assert_eq!((found.id.clone(), found.tags.len()), (full.id.clone(), 0));
    b.engine
        .tag_image(&full.id, "localhost:5000/x/whole:9")
        .await
        .unwrap();
    assert_eq!(image(&b.engine, "localhost:5000/x/whole:9").await.id, full.id);
    b.engine.remove_image(full.id.as_str()).await.unwrap();
    assert!(b.engine.image(full.id.as_str()).await.unwrap().is_none());
}

#[tokio::test]
async fn an_archive_that_breaks_off_leaves_nothing() {
    let Some(hosts) = hosts() else { return };
    let [a, b] = hosts.connect().await;
    build(&a, "broken");
    let full = image(&a.engine, "broken:full").await;
    let bytes = bytes_of(&a.engine, &full, "broken:full", 0).await;
    let fault = EngineError::Corrupt {
        what: "the test".into(),
        message: "on purpose".into(),
    };
    // In a layer, behind all layers, and before the very last piece.
    for cut in [bytes.len() / 2, bytes.len() - 20_000, bytes.len() - 1] {
        let mut items = pieces(&bytes[..cut]);
        items.push(Err(fault.clone()));
        let error = b.engine.import_image(as_stream(items)).await.unwrap_err();
        assert!(matches!(error, EngineError::Corrupt { .. }), "{error:?}");
        assert!(
            b.engine.image(full.id.as_str()).await.unwrap().is_none(),
            "cut at {cut}"
        );
        // An end without an error, as a careless transport would make it.
        let end = b
            .engine
            .import_image(as_stream(pieces(&bytes[..cut.min(bytes.len() - 20_000)])))
            .await;
        assert!(end.is_err(), "cut at {cut}");
        assert!(
            b.engine.image(full.id.as_str()).await.unwrap().is_none(),
            "cut at {cut}"
        );
    }
    // What is no archive at all.
    let error = b
        .engine
        .import_image(as_stream(vec![Ok(Bytes::from_static(b"hello"))]))
        .await;
    assert!(error.is_err(), "{error:?}");
    assert_eq!(b.engine.layers_held(&full.layers).await.unwrap(), 1);
    // Nor does it leave its unpacked archive lying about; others may be loading at this moment.
    let deadline = Instant::now() + Duration::from_secs(20);
    while !b.node.sh("ls /var/lib/docker/tmp").unwrap().is_empty() {
        assert!(Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn a_damaged_layer_is_noticed_before_it_counts() {
    let Some(hosts) = hosts() else { return };
    let [a, b] = hosts.connect().await;
    build(&a, "damaged");
    let full = image(&a.engine, "damaged:full").await;
    // One byte of a file, its length unchanged.
    a.node
        .sh("for f in $(grep -lx damaged /var/lib/docker/overlay2/*/diff/d/name); do printf D | dd of=$f conv=notrunc; done")
        .unwrap();
    let archive = a
        .engine
        .export_image(&full, Some("damaged:full"), 0)
        .await
        .unwrap();
    let error = b.engine.import_image(archive.stream).await.unwrap_err();
    assert!(matches!(&error, EngineError::Corrupt { .. }), "{error:?}");
    assert!(b.engine.image(full.id.as_str()).await.unwrap().is_none());
    assert!(b.engine.image("damaged:full").await.unwrap().is_none());
    // A file that is missing.
    a.node.sh("rm /var/lib/docker/overlay2/*/diff/d/f77").unwrap();
    let archive = a
        .engine
        .export_image(&full, Some("damaged:full"), 3)
        .await
        .unwrap();
    let error = b.engine.import_image(archive.stream).await.unwrap_err();
    assert!(matches!(&error, EngineError::Corrupt { .. }), "{error:?}");
}

#[tokio::test]
async fn single_layers_from_any_byte_on() {
    let Some(hosts) = hosts() else { return };
    let [a, _] = hosts.connect().await;
    build(&a, "single");
    let full = image(&a.engine, "single:full").await;
    assert!(a.engine.images().await.unwrap().contains(&full));
    let config = a.engine.image_config(&full.id).await.unwrap();
    assert_eq!(Digest::of(&config), full.id);
    let lengths = a.engine.layer_lengths(&full).await.unwrap();
    assert_eq!(lengths.len(), full.layers.len());
    for (index, digest) in full.layers.iter().enumerate() {
        let mut whole = Vec::new();
        let mut layer = a.engine.layer(&full, index, 0).await.unwrap();
        while let Some(piece) = layer.next().await {
            whole.extend_from_slice(&piece.unwrap());
        }
        assert_eq!(whole.len() as u64, lengths[index]);
        assert_eq!(Digest::of(&whole), *digest);
        let offset = whole.len() / 2 + 1;
        let mut rest = Vec::new();
        let mut layer = a.engine.layer(&full, index, offset as u64).await.unwrap();
        while let Some(piece) = layer.next().await {
            rest.extend_from_slice(&piece.unwrap());
        }
        assert_eq!(rest, &whole[offset..]);
    }
    // Without the storage it is said, and nothing is made up.
    let refused = a.indirect().layer_lengths(&full).await.unwrap_err();
    assert!(matches!(refused, EngineError::Unsupported { .. }), "{refused}");
}
