//! Encryption of what rests on the disk: a stream in pieces of 64 KiB, each sealed with AES-256-GCM.
//!
//! ```text
//! magic "TSHIPCP1" (8)   salt (32)   piece   piece   …   last piece
//! ```
//!
//! Every file has a key of its own, made by HKDF-SHA-256 from the node's key, the random salt and a context, which is the document
//! that describes the checkpoint: with another description the content cannot be opened. The nonce of a piece is its number,
//! and whether it is the last one, so that pieces can be neither left out, exchanged nor added. Nothing of a piece is given out
//! before it is proved.

use std::io::{self, Read, Write};
use std::path::Path;

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::hkdf::{HKDF_SHA256, Salt};
use ring::hmac;

use super::error::CheckpointError;

const MAGIC: &[u8; 8] = b"TSHIPCP1";
const SALT: usize = 32;
/// Bytes before the first piece.
pub(super) const HEADER: usize = MAGIC.len() + SALT;
/// Bytes of a piece before it is sealed.
const PIECE: usize = 64 << 10;
/// Bytes that sealing adds to a piece.
const TAG: usize = 16;
/// What the keys are for.
const PURPOSE: &[u8] = b"tranship checkpoint 1";
const PURPOSE_OF_PROOFS: &[u8] = b"tranship checkpoint archive 1";
/// Bytes of a proof.
pub(super) const PROOF: usize = 32;

/// The key of a node, which every file's key is made from.
pub(super) struct NodeKey([u8; 32]);

impl NodeKey {
    /// Reads the key, or makes it where there is none and `make` says so. What is there and is no key is left as it is: other
    /// checkpoints may have been made with what it was.
    ///
    /// # Errors
    /// [`CheckpointError::Key`].
    pub(super) fn open(path: &Path, make: bool) -> Result<Self, CheckpointError> {
        let refused = |why: String| CheckpointError::Key {
            path: path.to_owned(),
            why,
        };
        match std::fs::read(path) {
            Ok(bytes) => <[u8; 32]>::try_from(bytes.as_slice())
                .map(Self)
                .map_err(|_| refused("it is not 32 bytes long".into())),
            Err(error) if error.kind() == io::ErrorKind::NotFound && make => {
                let key = random().map_err(|error| refused(error.to_string()))?;
                crate::store::write_durably(path, &key).map_err(|error| refused(error.to_string()))?;
                Ok(Self(key))
            }
            Err(error) => Err(refused(error.to_string())),
        }
    }

    fn of_file(&self, salt: &[u8], context: &[u8]) -> io::Result<LessSafeKey> {
        let parts = [PURPOSE, context];
        let key = Salt::new(HKDF_SHA256, salt).extract(&self.0);
        let key = key.expand(&parts, &AES_256_GCM);
        let key = key.map_err(|_| io::Error::other("no key could be made"))?;
        Ok(LessSafeKey::new(UnboundKey::from(key)))
    }

    /// The key that shows that a description was written here: HMAC-SHA-256.
    fn of_proofs(&self) -> io::Result<hmac::Key> {
        let key = Salt::new(HKDF_SHA256, &[]).extract(&self.0);
        let key = key.expand(&[PURPOSE_OF_PROOFS], hmac::HMAC_SHA256);
        Ok(key.map_err(|_| io::Error::other("no key could be made"))?.into())
    }

    /// Proves that this was written by whoever has the key.
    ///
    /// # Errors
    /// If no key could be made.
    pub(super) fn prove(&self, text: &[u8]) -> io::Result<[u8; PROOF]> {
        let tag = hmac::sign(&self.of_proofs()?, text);
        <[u8; PROOF]>::try_from(tag.as_ref()).map_err(io::Error::other)
    }

    /// Whether this was written by whoever has the key, and is what it was.
    ///
    /// # Errors
    /// If no key could be made.
    pub(super) fn is_proved(&self, text: &[u8], proof: &[u8]) -> io::Result<bool> {
        Ok(hmac::verify(&self.of_proofs()?, text, proof).is_ok())
    }
}

/// Bytes of a sealed file with so many bytes of content.
pub(super) fn sealed_bytes(content: u64) -> u64 {
    let pieces = content.div_ceil(PIECE as u64).max(1);
    HEADER as u64 + content + pieces * TAG as u64
}

fn random() -> io::Result<[u8; SALT]> {
    let mut bytes = [0u8; SALT];
    let mut filled = 0;
    while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        filled += rustix::rand::getrandom(rest, rustix::rand::GetRandomFlags::empty())?;
    }
    Ok(bytes)
}

fn nonce(number: u64, last: bool) -> Nonce {
    let mut bytes = [0u8; NONCE_LEN];
    bytes[0] = u8::from(last);
    bytes[NONCE_LEN - 8..].copy_from_slice(&number.to_be_bytes());
    Nonce::assume_unique_for_key(bytes)
}

/// Seals what is written to it.
pub(super) struct Sealing<W> {
    out: W,
    key: LessSafeKey,
    number: u64,
    piece: Vec<u8>,
}

impl<W: Write> Sealing<W> {
    /// Begins a file.
    ///
    /// # Errors
    /// What the system and the stream say.
    pub(super) fn begin(mut out: W, key: &NodeKey, context: &[u8]) -> io::Result<Self> {
        let salt = random()?;
        out.write_all(MAGIC)?;
        out.write_all(&salt)?;
        Ok(Self {
            out,
            key: key.of_file(&salt, context)?,
            number: 0,
            piece: Vec::with_capacity(PIECE + TAG),
        })
    }

    fn seal(&mut self, last: bool) -> io::Result<()> {
        let nonce = nonce(self.number, last);
        let sealed = self
            .key
            .seal_in_place_append_tag(nonce, Aad::empty(), &mut self.piece);
        sealed.map_err(|_| io::Error::other("a piece could not be sealed"))?;
        self.out.write_all(&self.piece)?;
        self.piece.clear();
        self.number += 1;
        Ok(())
    }

    /// Seals the last piece. Without it the file is no whole one.
    ///
    /// # Errors
    /// What the stream says.
    pub(super) fn finish(mut self) -> io::Result<W> {
        self.seal(true)?;
        self.out.flush()?;
        Ok(self.out)
    }
}

impl<W: Write> Write for Sealing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // Sealed only when more comes: the last piece is sealed as such.
        if self.piece.len() == PIECE {
            self.seal(false)?;
        }
        let fits = bytes.len().min(PIECE - self.piece.len());
        self.piece.extend_from_slice(&bytes[..fits]);
        Ok(fits)
    }

    fn flush(&mut self) -> io::Result<()> {
        // A piece has its length; what is not full waits for more.
        Ok(())
    }
}

/// Opens what was sealed.
pub(super) struct Opening<R> {
    input: R,
    key: LessSafeKey,
    number: u64,
    /// A piece that is open, and how much of it was given out.
    piece: Vec<u8>,
    given: usize,
    /// The sealed piece after it. Empty when there is none.
    next: Vec<u8>,
}

impl<R: Read> Opening<R> {
    /// Begins to read a file.
    ///
    /// # Errors
    /// What the stream says; `InvalidData` where it is no such file.
    pub(super) fn begin(mut input: R, key: &NodeKey, context: &[u8]) -> io::Result<Self> {
        let mut header = [0u8; HEADER];
        input.read_exact(&mut header)?;
        let (magic, salt) = header.split_at(MAGIC.len());
        if magic != MAGIC {
            return Err(invalid("it was not written by this version of tranship"));
        }
        let key = key.of_file(salt, context)?;
        let next = sealed_piece(&mut input)?;
        if next.is_empty() {
            return Err(invalid("it has no content"));
        }
        Ok(Self {
            input,
            key,
            number: 0,
            piece: Vec::new(),
            given: 0,
            next,
        })
    }

    fn open(&mut self) -> io::Result<()> {
        let mut piece = std::mem::replace(&mut self.next, sealed_piece(&mut self.input)?);
        let nonce = nonce(self.number, self.next.is_empty());
        let opened = self.key.open_in_place(nonce, Aad::empty(), &mut piece);
        let length = opened
            .map_err(|_| invalid("its content is not what was sealed, or was sealed with another key"))?
            .len();
        piece.truncate(length);
        self.number += 1;
        self.piece = piece;
        self.given = 0;
        Ok(())
    }
}

fn invalid(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

/// The next piece as it is in the file, whole unless the file ends in it.
fn sealed_piece(input: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut piece = Vec::with_capacity(PIECE + TAG);
    input.take((PIECE + TAG) as u64).read_to_end(&mut piece)?;
    Ok(piece)
}

impl<R: Read> Read for Opening<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.given == self.piece.len() {
            if self.next.is_empty() {
                return Ok(0);
            }
            self.open()?;
        }
        let left = &self.piece[self.given..];
        let fits = left.len().min(buffer.len());
        buffer[..fits].copy_from_slice(&left[..fits]);
        self.given += fits;
        Ok(fits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(byte: u8) -> NodeKey {
        NodeKey([byte; 32])
    }

    fn sealed(content: &[u8], context: &[u8]) -> Vec<u8> {
        let mut sealing = Sealing::begin(Vec::new(), &key(1), context).unwrap();
        sealing.write_all(content).unwrap();
        sealing.finish().unwrap()
    }

    fn opened(file: &[u8], node: &NodeKey, context: &[u8]) -> io::Result<Vec<u8>> {
        let mut content = Vec::new();
        Opening::begin(file, node, context)?.read_to_end(&mut content)?;
        Ok(content)
    }

    fn some_bytes(length: usize) -> Vec<u8> {
        (0..length).map(|n| (n * 7 % 251) as u8).collect()
    }

    #[test]
    fn what_is_sealed_opens_again_and_is_not_seen() {
        for length in [0, 1, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE, 3 * PIECE + 17] {
            let content = some_bytes(length);
            let file = sealed(&content, b"about");
            assert_eq!(opened(&file, &key(1), b"about").unwrap(), content, "{length}");
            let pieces = length.div_ceil(PIECE).max(1);
            assert_eq!(file.len(), HEADER + length + pieces * TAG, "{length}");
            assert_eq!(file.len() as u64, sealed_bytes(length as u64), "{length}");
        }
        let secret = b"a secret that processes know".repeat(10);
        let file = sealed(&secret, b"");
        assert!(!file.windows(8).any(|window| secret.starts_with(window)));
        assert_ne!(file, sealed(&secret, b""), "every file has a key of its own");
    }

    #[test]
    fn another_key_or_another_description_opens_nothing() {
        let file = sealed(b"content", b"about");
        assert!(opened(&file, &key(2), b"about").is_err());
        assert!(opened(&file, &key(1), b"About").is_err());
    }

    #[test]
    fn proofs_hold_for_one_text_and_one_key() {
        let proof = key(1).prove(b"about").unwrap();
        assert!(key(1).is_proved(b"about", &proof).unwrap());
        assert!(!key(1).is_proved(b"About", &proof).unwrap());
        assert!(!key(2).is_proved(b"about", &proof).unwrap());
        assert!(!key(1).is_proved(b"about", &proof[1..]).unwrap());
    }

    #[test]
    fn every_flipped_bit_is_found() {
        let content = some_bytes(PIECE + 100);
        let file = sealed(&content, b"about");
        let near_the_end = file.len() - 150;
        for at in (0..200).chain(near_the_end..file.len()) {
            for bit in 0..8 {
                let mut damaged = file.clone();
                damaged[at] ^= 1 << bit;
                assert!(
                    opened(&damaged, &key(1), b"about").is_err(),
                    "byte {at}, bit {bit}"
                );
            }
        }
    }

    #[test]
    fn pieces_cannot_be_left_out_exchanged_or_added() {
        let content = some_bytes(3 * PIECE);
        let file = sealed(&content, b"");
        let (header, pieces) = file.split_at(HEADER);
        let pieces: Vec<&[u8]> = pieces.chunks(PIECE + TAG).collect();
        let of = |order: &[usize]| {
            let body = order.iter().flat_map(|n| pieces[*n].iter());
            header.iter().chain(body).copied().collect::<Vec<u8>>()
        };
        assert_eq!(opened(&of(&[0, 1, 2]), &key(1), b"").unwrap(), content);
        let all: [&[usize]; 8] = [
            &[],
            &[0],
            &[0, 1],
            &[0, 2],
            &[1, 0, 2],
            &[0, 1, 1, 2],
            &[0, 1, 2, 2],
            &[2],
        ];
        for order in all {
            assert!(opened(&of(order), &key(1), b"").is_err(), "{order:?}");
        }
        for cut in [1, TAG, TAG + 1, PIECE] {
            assert!(opened(&file[..file.len() - cut], &key(1), b"").is_err(), "{cut}");
        }
        assert!(opened(&[&file[..], &[0]].concat(), &key(1), b"").is_err());
    }

    #[test]
    fn a_key_is_made_once_and_never_replaced() {
        use std::os::unix::fs::PermissionsExt as _;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("checkpoint.key");
        assert!(NodeKey::open(&path, false).is_err());
        let first = NodeKey::open(&path, true).unwrap();
        assert_eq!(NodeKey::open(&path, true).unwrap().0, first.0);
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        std::fs::write(&path, b"short").unwrap();
        assert!(NodeKey::open(&path, true).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"short");
    }
}
