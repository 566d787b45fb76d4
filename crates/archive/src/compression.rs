//! Compression of streams, in this process: nothing is ever run that an archive or a container could have put in place.
//!
//! Output is a stream, so a small archive of endless zeros costs time but no memory; windows and dictionaries are limited.

use std::io::{self, BufRead, BufReader, Chain, Cursor, Read, Write};

use tranship_core::fault::Explain;

/// How a stream is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Not at all.
    Identity,
    /// gzip (RFC 1952), also several members one after the other.
    Gzip,
    /// bzip2.
    Bzip2,
    /// xz.
    Xz,
    /// zstd (RFC 8878).
    Zstd,
}

impl std::fmt::Display for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Identity => "uncompressed",
            Self::Gzip => "gzip",
            Self::Bzip2 => "bzip2",
            Self::Xz => "xz",
            Self::Zstd => "zstd",
        })
    }
}

/// Bytes from which a format is known.
const MAGIC: usize = 6;

impl Format {
    /// The format of a stream that begins like this. No tar archive begins like one of them.
    #[must_use]
    pub fn detect(start: &[u8]) -> Self {
        match start {
            [0x1f, 0x8b, 8, ..] => Self::Gzip,
            [b'B', b'Z', b'h', b'1'..=b'9', ..] => Self::Bzip2,
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Self::Xz,
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            _ => Self::Identity,
        }
    }
}

/// What decompression may cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DecodeOptions {
    /// Binary logarithm of the largest zstd window in bytes, 10 to 27 (128 MiB).
    pub zstd_window_log: u32,
    /// Bytes of memory for xz.
    pub xz_memory: u64,
    /// Bytes of output.
    pub output: Option<u64>,
}

impl Default for DecodeOptions {
    /// A zstd window of 8 MiB (all levels of zstd without `--long`), 128 MiB for xz (all of its presets), any output.
    fn default() -> Self {
        Self {
            zstd_window_log: 23,
            xz_memory: 128 << 20,
            output: None,
        }
    }
}

/// A stream that could not be compressed or decompressed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CompressionError {
    /// It ends too early.
    #[error("the {format} stream ends before it is complete")]
    Truncated {
        /// What it is.
        format: Format,
    },
    /// It is damaged.
    #[error("the {format} stream is damaged")]
    Corrupt {
        /// What it is.
        format: Format,
        /// What the decoder says.
        source: io::Error,
    },
    /// It is followed by something else.
    #[error("the {format} stream is followed by something else")]
    Trailing {
        /// What it is.
        format: Format,
    },
    /// It needs more memory than allowed.
    #[error("the {format} stream needs more memory than allowed to decompress")]
    Memory {
        /// What it is.
        format: Format,
    },
    /// It becomes larger than allowed.
    #[error("the {format} stream becomes larger than {limit} bytes")]
    Output {
        /// What it is.
        format: Format,
        /// The limit, in bytes.
        limit: u64,
    },
    /// An option that cannot be.
    #[error("{what}")]
    Option {
        /// Which.
        what: &'static str,
    },
    /// The stream below could not be read or written.
    #[error("cannot read or write the stream")]
    Io(#[source] io::Error),
}

impl Explain for CompressionError {
    fn code(&self) -> &'static str {
        match self {
            Self::Truncated { .. } => "archive.compressed-truncated",
            Self::Corrupt { .. } => "archive.compressed-corrupt",
            Self::Trailing { .. } => "archive.compressed-trailing",
            Self::Memory { .. } => "archive.compressed-memory",
            Self::Output { .. } => "archive.output-limit",
            Self::Option { .. } => "archive.compression-option",
            Self::Io(_) => "archive.read-failed",
        }
    }

    fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Truncated { .. } | Self::Corrupt { .. } | Self::Trailing { .. } => {
                "the stream is damaged or incomplete; make or fetch it again"
            }
            Self::Memory { .. } => "compress it with a smaller window, for zstd without --long",
            _ => return None,
        };
        Some(hint.to_owned())
    }
}

/// Tells failures of the stream below from those of the decoder.
struct Source<R>(R);

#[derive(Debug, thiserror::Error)]
#[error(transparent)]
struct SourceFailed(io::Error);

impl<R: Read> Read for Source<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.0.read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(io::Error::new(error.kind(), SourceFailed(error))),
                read => return read,
            }
        }
    }
}

type Input<R> = BufReader<Chain<Cursor<Vec<u8>>, Source<R>>>;

enum Engine<R: Read> {
    Identity(Input<R>),
    Gzip(flate2::bufread::GzDecoder<Input<R>>),
    Bzip2(bzip2::bufread::BzDecoder<Input<R>>),
    Xz(Box<liblzma::bufread::XzDecoder<Input<R>>>),
    Zstd(zstd::stream::read::Decoder<'static, Input<R>>),
    /// The end was reached.
    Done,
    /// There was an error, which must not look like an end.
    Failed,
}

/// Decompresses a stream whose format it finds out by itself.
///
/// Errors of [`Read::read`] carry a [`CompressionError`], but for those of the stream below, which are passed on.
pub struct Decoder<R: Read> {
    engine: Engine<R>,
    format: Format,
    options: DecodeOptions,
    /// Bytes given out.
    output: u64,
}

impl<R: Read> Decoder<R> {
    /// Reads the beginning of the stream and chooses.
    ///
    /// # Errors
    ///
    /// [`CompressionError::Io`] if the stream cannot be read, [`CompressionError::Option`].
    pub fn new(reader: R, options: DecodeOptions) -> Result<Self, CompressionError> {
        if !(10..=27).contains(&options.zstd_window_log) {
            return Err(CompressionError::Option {
                what: "the binary logarithm of a zstd window is between 10 and 27",
            });
        }
        let mut source = Source(reader);
        let mut start = Vec::new();
        (&mut source)
            .take(MAGIC as u64)
            .read_to_end(&mut start)
            .map_err(|error| CompressionError::Io(unwrap_source(error)))?;
        let format = Format::detect(&start);
        let input = BufReader::with_capacity(65_536, Cursor::new(start).chain(source));
        let engine = match format {
            Format::Identity => Engine::Identity(input),
            Format::Gzip => Engine::Gzip(flate2::bufread::GzDecoder::new(input)),
            Format::Bzip2 => Engine::Bzip2(bzip2::bufread::BzDecoder::new(input)),
            Format::Xz => {
                let stream = liblzma::stream::Stream::new_stream_decoder(
                    options.xz_memory,
                    liblzma::stream::CONCATENATED,
                )
                .map_err(|error| CompressionError::Io(error.into()))?;
                Engine::Xz(Box::new(liblzma::bufread::XzDecoder::new_stream(input, stream)))
            }
            Format::Zstd => {
                let mut decoder =
                    zstd::stream::read::Decoder::with_buffer(input).map_err(CompressionError::Io)?;
                decoder
                    .window_log_max(options.zstd_window_log)
                    .map_err(CompressionError::Io)?;
                Engine::Zstd(decoder)
            }
        };
        Ok(Self {
            engine,
            format,
            options,
            output: 0,
        })
    }

    /// What the stream is.
    #[must_use]
    pub fn format(&self) -> Format {
        self.format
    }

    /// Reads on, and from one gzip or bzip2 member to the next.
    fn read_on(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let got = match &mut self.engine {
                Engine::Identity(input) => return input.read(buffer),
                Engine::Gzip(decoder) => decoder.read(buffer)?,
                Engine::Bzip2(decoder) => decoder.read(buffer)?,
                Engine::Xz(decoder) => return decoder.read(buffer),
                Engine::Zstd(decoder) => return decoder.read(buffer),
                Engine::Done => return Ok(0),
                Engine::Failed => return Err(io::ErrorKind::InvalidData.into()),
            };
            if got > 0 {
                return Ok(got);
            }
            let mut input = match std::mem::replace(&mut self.engine, Engine::Done) {
                Engine::Gzip(decoder) => decoder.into_inner(),
                Engine::Bzip2(decoder) => decoder.into_inner(),
                _ => return Ok(0),
            };
            match input.fill_buf()?.first() {
                None => return Ok(0),
                Some(0x1f) if self.format == Format::Gzip => {
                    self.engine = Engine::Gzip(flate2::bufread::GzDecoder::new(input));
                }
                Some(b'B') if self.format == Format::Bzip2 => {
                    self.engine = Engine::Bzip2(bzip2::bufread::BzDecoder::new(input));
                }
                Some(_) => return self.padding(input),
            }
        }
    }

    /// Zeros may follow: tapes and `dd` leave them.
    fn padding(&self, mut input: Input<R>) -> io::Result<usize> {
        loop {
            let bytes = input.fill_buf()?;
            if bytes.is_empty() {
                return Ok(0);
            }
            if bytes.iter().any(|&byte| byte != 0) {
                let format = self.format;
                return Err(wrap(CompressionError::Trailing { format }));
            }
            let length = bytes.len();
            input.consume(length);
        }
    }

    fn explain(&self, error: io::Error) -> io::Error {
        let format = self.format;
        let inner = error.get_ref();
        if inner.is_some_and(|inner| inner.is::<SourceFailed>()) {
            return unwrap_source(error);
        }
        if inner.is_some_and(|inner| inner.is::<CompressionError>()) {
            return error;
        }
        let lzma = inner.and_then(|inner| inner.downcast_ref::<liblzma::stream::Error>());
        let memory = matches!(lzma, Some(liblzma::stream::Error::MemLimit | liblzma::stream::Error::Mem))
            // zstd's error codes reach us as their text only: ZSTD_error_frameParameter_windowTooLarge.
            || (format == Format::Zstd && error.to_string().contains("too much memory"));
        wrap(if memory {
            CompressionError::Memory { format }
        } else if error.kind() == io::ErrorKind::UnexpectedEof {
            CompressionError::Truncated { format }
        } else {
            CompressionError::Corrupt {
                format,
                source: error,
            }
        })
    }
}

fn wrap(error: CompressionError) -> io::Error {
    let kind = match &error {
        CompressionError::Truncated { .. } => io::ErrorKind::UnexpectedEof,
        _ => io::ErrorKind::InvalidData,
    };
    io::Error::new(kind, error)
}

fn unwrap_source(error: io::Error) -> io::Error {
    match error.downcast::<SourceFailed>() {
        Ok(SourceFailed(inner)) => inner,
        Err(error) => error,
    }
}

impl<R: Read> Read for Decoder<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        let got = match self.read_on(buffer) {
            Ok(got) => got,
            Err(error) => {
                self.engine = Engine::Failed;
                return Err(self.explain(error));
            }
        };
        self.output += got as u64;
        match self.options.output {
            Some(limit) if self.output > limit => {
                self.engine = Engine::Failed;
                let format = self.format;
                Err(wrap(CompressionError::Output { format, limit }))
            }
            _ => Ok(got),
        }
    }
}

/// Compresses a stream.
pub enum Encoder<W: Write> {
    /// Not at all.
    Identity(W),
    /// gzip.
    Gzip(flate2::write::GzEncoder<W>),
    /// zstd with a checksum.
    Zstd(zstd::stream::write::Encoder<'static, W>),
}

impl<W: Write> Encoder<W> {
    /// A writer of this format at its usual level, or at the given one (gzip 0 to 9, zstd 1 to 19).
    ///
    /// # Errors
    ///
    /// [`CompressionError::Option`] for formats that are only read, and for levels that they do not have.
    pub fn new(out: W, format: Format, level: Option<i32>) -> Result<Self, CompressionError> {
        let wrong = |what| Err(CompressionError::Option { what });
        match (format, level) {
            (Format::Identity, _) => Ok(Self::Identity(out)),
            (Format::Gzip, level) => match u32::try_from(level.unwrap_or(6)) {
                Ok(level @ 0..=9) => Ok(Self::Gzip(flate2::write::GzEncoder::new(
                    out,
                    flate2::Compression::new(level),
                ))),
                _ => wrong("a gzip level is between 0 and 9"),
            },
            (Format::Zstd, level) => match level.unwrap_or(3) {
                level @ 1..=19 => {
                    let mut encoder =
                        zstd::stream::write::Encoder::new(out, level).map_err(CompressionError::Io)?;
                    encoder.include_checksum(true).map_err(CompressionError::Io)?;
                    Ok(Self::Zstd(encoder))
                }
                _ => wrong("a zstd level is between 1 and 19"),
            },
            (Format::Bzip2 | Format::Xz, _) => wrong("streams are written with gzip, zstd or not compressed"),
        }
    }

    /// Writes what is left and gives the stream back.
    ///
    /// # Errors
    ///
    /// Those of the stream.
    pub fn finish(self) -> io::Result<W> {
        let mut out = match self {
            Self::Identity(out) => out,
            Self::Gzip(encoder) => encoder.finish()?,
            Self::Zstd(encoder) => encoder.finish()?,
        };
        out.flush()?;
        Ok(out)
    }
}

impl<W: Write> Write for Encoder<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Identity(out) => out.write(bytes),
            Self::Gzip(encoder) => encoder.write(bytes),
            Self::Zstd(encoder) => encoder.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Identity(out) => out.flush(),
            Self::Gzip(encoder) => encoder.flush(),
            Self::Zstd(encoder) => encoder.flush(),
        }
    }
}
