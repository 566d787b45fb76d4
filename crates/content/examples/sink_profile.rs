//! Feeds the sink alone.
#[path = "../tests/support/mod.rs"]
mod support;
use std::time::Instant;
use support::*;
use tranship_content::entry::*;
use tranship_content::message::*;

fn main() {
    let mut args = std::env::args().skip(1);
    let what = args.next().unwrap();
    let root = std::path::PathBuf::from(args.next().unwrap());
    let durable = args.next().as_deref() != Some("nosync");
    let _ = std::fs::remove_dir_all(&root);
    std::fs::create_dir_all(root.join("root")).unwrap();
    let mtime = Timestamp {
        seconds: 1_600_000_000,
        nanos: 5,
    };
    let entry = |path: String, kind| Entry {
        mode: if kind == EntryKind::Directory {
            0o755
        } else {
            0o644
        },
        path: path.into_bytes(),
        kind,
        uid: 0,
        gid: 0,
        mtime,
        xattrs: vec![],
    };
    let mut bodies: Vec<Vec<u8>> = vec![vec![]];
    let mut tree = tranship_content::tree::TreeWriter::new(std::io::sink());
    let top = entry(String::new(), EntryKind::Directory);
    tree.push(&top).unwrap();
    Operation::Make(top).put(&mut bodies[0]);
    let mut data = vec![0_u8; 64 << 10];
    let mut seed = 1_u64;
    let mut fill = |data: &mut [u8]| {
        for word in data.chunks_exact_mut(8) {
            seed = seed
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            word.copy_from_slice(&(seed ^ seed >> 29).to_le_bytes());
        }
    };
    if what == "small" {
        for d in 0..100 {
            let directory = entry(format!("d{d:03}"), EntryKind::Directory);
            tree.push(&directory).unwrap();
            Operation::Make(directory).put(bodies.last_mut().unwrap());
            for f in 0..1000 {
                fill(&mut data[..4096]);
                let id = id(&data[..4096]);
                let file = entry(
                    format!("d{d:03}/f{f:04}"),
                    EntryKind::File {
                        size: 4096,
                        extents: vec![Extent::Chunk { length: 4096, id }],
                    },
                );
                tree.push(&file).unwrap();
                let body = bodies.last_mut().unwrap();
                put_whole(body, &file, &id, &data[..4096]);
                if body.len() > 1 << 20 {
                    bodies.push(vec![]);
                }
            }
        }
    } else {
        let n = (2_u64 << 30) >> 18;
        let mut extents = vec![];
        data.resize(256 << 10, 0);
        Operation::File {
            entry: entry(
                "big".into(),
                EntryKind::File {
                    size: 2_u64 << 30,
                    extents: vec![],
                },
            ),
            write: Write::Replace,
        }
        .put(&mut bodies[0]);
        for _ in 0..n {
            fill(&mut data);
            let id = id(&data);
            extents.push(Extent::Chunk {
                length: 256 << 10,
                id,
            });
            let mut body = Vec::with_capacity(data.len() + 64);
            put_data_head(&mut body, &id, data.len());
            body.extend_from_slice(&data);
            bodies.push(body);
        }
        Operation::FileEnd.put(bodies.last_mut().unwrap());
        tree.push(&entry(
            "big".into(),
            EntryKind::File {
                size: 2_u64 << 30,
                extents,
            },
        ))
        .unwrap();
    }
    let summary = tree.finish().unwrap().0;
    let at = Instant::now();
    let (report, last) = with_sink(&root.join("root"), &root.join("work"), |peer| {
        peer.open(Wants {
            frozen: true,
            durable,
        });
        for body in bodies {
            peer.out.parts(DELTA, &[&body]).unwrap();
        }
        println!("sent after {:?}", at.elapsed());
        peer.end(&summary)
    });
    report.unwrap();
    assert!(matches!(last, Message::Applied(_)));
    println!("{what} durable={durable}: {:?}", at.elapsed());
}
