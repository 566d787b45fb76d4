//! Compressed streams: every format, whole, in members, cut, damaged, and too large.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that panics has failed"
)]

use std::io::{self, Read, Write};

use tranship_archive::compression::{CompressionError, DecodeOptions, Decoder, Encoder, Format};
use tranship_core::fault::Explain as _;

fn compress(format: Format, data: &[u8]) -> Vec<u8> {
    match format {
        Format::Identity | Format::Gzip | Format::Zstd => {
            let mut encoder = Encoder::new(Vec::new(), format, None).unwrap();
            encoder.write_all(data).unwrap();
            encoder.finish().unwrap()
        }
        Format::Bzip2 => {
            let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::best());
            encoder.write_all(data).unwrap();
            encoder.finish().unwrap()
        }
        Format::Xz => {
            let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 6);
            encoder.write_all(data).unwrap();
            encoder.finish().unwrap()
        }
    }
}

fn decode(bytes: &[u8], options: DecodeOptions) -> Result<(Format, Vec<u8>), io::Error> {
    let mut decoder = Decoder::new(bytes, options).map_err(io::Error::other)?;
    let mut out = Vec::new();
    decoder.read_to_end(&mut out)?;
    Ok((decoder.format(), out))
}

fn code(error: &io::Error) -> &'static str {
    error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<CompressionError>())
        .unwrap_or_else(|| panic!("{error:?} is not typed"))
        .code()
}

const COMPRESSED: [Format; 4] = [Format::Gzip, Format::Bzip2, Format::Xz, Format::Zstd];

fn text() -> Vec<u8> {
    let mut state = 1_u32;
    (0..200_000_u32)
        .map(|at| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            if at % 3 == 0 { (state >> 24) as u8 } else { b'x' }
        })
        .collect()
}

#[test]
fn every_format_is_found_out_and_read() {
    let data = text();
    for format in COMPRESSED.into_iter().chain([Format::Identity]) {
        let bytes = compress(format, &data);
        assert_eq!(
            decode(&bytes, DecodeOptions::default()).unwrap(),
            (format, data.clone())
        );
    }
    assert_eq!(
        decode(b"", DecodeOptions::default()).unwrap(),
        (Format::Identity, Vec::new())
    );
    assert_eq!(decode(b"BZ", DecodeOptions::default()).unwrap().1, b"BZ");
}

#[test]
fn members_one_after_the_other_are_one_stream() {
    for format in COMPRESSED {
        let mut bytes = compress(format, b"one ");
        bytes.extend(compress(format, b""));
        bytes.extend(compress(format, b"two"));
        assert_eq!(
            decode(&bytes, DecodeOptions::default()).unwrap().1,
            b"one two",
            "{format}"
        );
    }
}

#[test]
fn every_cut_is_an_error() {
    for format in COMPRESSED {
        let bytes = compress(format, &text()[..900]);
        for cut in MAGIC..bytes.len() {
            let error = decode(&bytes[..cut], DecodeOptions::default()).unwrap_err();
            assert_eq!(code(&error), "archive.compressed-truncated", "{format} at {cut}");
        }
    }
}
const MAGIC: usize = 6;

#[test]
fn garbage_after_the_end_is_an_error_but_zeros_are_padding() {
    for format in [Format::Gzip, Format::Bzip2] {
        let mut bytes = compress(format, b"data");
        bytes.extend([0; 10_000]);
        assert_eq!(decode(&bytes, DecodeOptions::default()).unwrap().1, b"data");
        bytes.push(1);
        let error = decode(&bytes, DecodeOptions::default()).unwrap_err();
        assert_eq!(code(&error), "archive.compressed-trailing");
    }
    for format in COMPRESSED {
        let mut bytes = compress(format, b"data");
        bytes.extend(b"garbage garbage garbage");
        let error = decode(&bytes, DecodeOptions::default()).unwrap_err();
        assert!(
            ["archive.compressed-trailing", "archive.compressed-corrupt"].contains(&code(&error)),
            "{format}: {error}"
        );
    }
}

#[test]
fn damage_is_found() {
    for format in COMPRESSED {
        let good = compress(format, &text()[..900]);
        // A flip may hit a field that says nothing (gzip's time); the content is never a different one.
        for at in MAGIC..good.len() {
            let mut bytes = good.clone();
            bytes[at] ^= 0x10;
            match decode(&bytes, DecodeOptions::default()) {
                Ok((_, out)) => assert_eq!(out, text()[..900], "{format} at {at}"),
                Err(error) => {
                    code(&error);
                }
            }
        }
    }
}

#[test]
fn large_windows_are_refused_unless_allowed() {
    let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 3).unwrap();
    encoder.window_log(26).unwrap();
    encoder.long_distance_matching(true).unwrap();
    encoder.write_all(&text()).unwrap();
    let bytes = encoder.finish().unwrap();
    let error = decode(&bytes, DecodeOptions::default()).unwrap_err();
    assert_eq!(code(&error), "archive.compressed-memory");
    let large = DecodeOptions {
        zstd_window_log: 26,
        ..DecodeOptions::default()
    };
    assert_eq!(decode(&bytes, large).unwrap().1, text());
    let too_large = DecodeOptions {
        zstd_window_log: 28,
        ..DecodeOptions::default()
    };
    assert!(decode(&bytes, too_large).is_err());
    let tight = DecodeOptions {
        xz_memory: 1 << 20,
        ..DecodeOptions::default()
    };
    let error = decode(&compress(Format::Xz, &text()), tight).unwrap_err();
    assert_eq!(code(&error), "archive.compressed-memory");
}

#[test]
fn output_is_limited_where_asked() {
    let options = DecodeOptions {
        output: Some(1 << 20),
        ..DecodeOptions::default()
    };
    for format in COMPRESSED {
        let bomb = compress(format, &vec![0; 16 << 20]);
        assert!(bomb.len() < 100_000);
        let error = decode(&bomb, options).unwrap_err();
        assert_eq!(code(&error), "archive.output-limit", "{format}");
    }
}

struct Broken;
impl Read for Broken {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Err(io::Error::from_raw_os_error(5))
    }
}

#[test]
fn errors_of_the_stream_below_are_passed_on() {
    for format in COMPRESSED {
        let bytes = compress(format, &text());
        let half = &bytes[..bytes.len() / 2];
        let mut decoder = Decoder::new(half.chain(Broken), DecodeOptions::default()).unwrap();
        let error = io::copy(&mut decoder, &mut io::sink()).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(5), "{format}: {error:?}");
    }
    assert_eq!(
        Decoder::new(Broken, DecodeOptions::default())
            .err()
            .unwrap()
            .code(),
        "archive.read-failed"
    );
}

#[test]
fn levels_are_checked() {
    for (format, level) in [
        (Format::Gzip, Some(10)),
        (Format::Zstd, Some(0)),
        (Format::Zstd, Some(20)),
        (Format::Xz, None),
    ] {
        assert!(Encoder::new(Vec::new(), format, level).is_err());
    }
}
