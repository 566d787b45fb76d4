//! Taking established connections out of a dump, so that a restore closes them in place of asking for their old addresses.
//!
//! CRIU restores connections closed if it is told to (`tcp-close`), but an engine that drives a restore has no way to pass that on. What
//! a closed socket is in a dump is simple: no ports, and the state `CLOSE`. So `files.img` is written anew with that.
//!
//! The format is CRIU's (`images/fdinfo.proto`, `images/sk-inet.proto`): two magic numbers of 4 bytes, then messages of protocol
//! buffers, each after its length, all little-endian. Fields that are not known here are copied as they are.

use super::message::{
    Damaged, HEAD, Value, begins_with, fields, put_bytes, put_message, put_number, take_message,
};

/// `FILES_MAGIC` of CRIU's `magic.h`.
const FILES_MAGIC: u32 = 0x5630_3138;

/// Field of a `file_entry` that holds an internet socket.
const FILE_INET: u64 = 4;
/// Fields of an `inet_sk_entry`.
const FAMILY: u64 = 3;
const PROTOCOL: u64 = 5;
const STATE: u64 = 6;
const SOURCE_PORT: u64 = 7;
const DESTINATION_PORT: u64 = 8;
const SOURCE_ADDRESS: u64 = 11;

/// `AF_INET` and `AF_INET6` of Linux.
const INET: u64 = 2;
const INET6: u64 = 10;
/// `IPPROTO_TCP`, `IPPROTO_UDP` and `IPPROTO_UDPLITE`.
const TCP: u64 = 6;
const DATAGRAMS: [u64; 2] = [17, 136];
/// `TCP_CLOSE` and `TCP_LISTEN` of Linux.
const CLOSE: u64 = 7;
const LISTEN: u64 = 10;

/// `files.img` with all connections closed, and how many there were. Datagram sockets that have a peer lose their own address, which
/// the kernel had chosen for the way to it, and keep their port.
pub(super) fn close_connections(image: &[u8]) -> Result<(Vec<u8>, usize), Damaged> {
    if !begins_with(image, FILES_MAGIC) {
        return Err(Damaged("it does not begin as an image of open files does"));
    }
    let mut written = image.get(..HEAD).unwrap_or_default().to_vec();
    let mut rest = image.get(HEAD..).unwrap_or_default();
    let mut closed = 0;
    while !rest.is_empty() {
        let entry = take_message(&mut rest)?;
        let mut message = Vec::with_capacity(entry.len());
        for field in fields(entry) {
            let field = field?;
            match field.value {
                Value::Bytes(socket) if field.number == FILE_INET => {
                    let (socket, changed) = close_socket(socket)?;
                    closed += usize::from(changed);
                    put_bytes(&mut message, FILE_INET, &socket);
                }
                _ => message.extend_from_slice(field.raw),
            }
        }
        put_message(&mut written, &message)?;
    }
    Ok((written, closed))
}

/// An `inet_sk_entry`, closed if it was a connection; and whether it was.
fn close_socket(socket: &[u8]) -> Result<(Vec<u8>, bool), Damaged> {
    let mut known = [0u64; 9];
    for field in fields(socket) {
        let field = field?;
        let place = usize::try_from(field.number).ok().and_then(|n| known.get_mut(n));
        if let (Value::Number(number), Some(place)) = (field.value, place) {
            *place = number;
        }
    }
    let of = |number: u64| {
        let place = usize::try_from(number).ok().and_then(|n| known.get(n));
        place.copied().unwrap_or_default()
    };
    // One that was reset is closed, and still names its peer, by which CRIU takes it for a connection.
    let connection =
        of(PROTOCOL) == TCP && (of(DESTINATION_PORT) != 0 || !matches!(of(STATE), CLOSE | LISTEN));
    let towards = DATAGRAMS.contains(&of(PROTOCOL)) && of(DESTINATION_PORT) != 0;
    if !connection && !towards {
        return Ok((socket.to_vec(), false));
    }
    let words = match of(FAMILY) {
        INET => 1,
        INET6 => 4,
        _ => return Err(Damaged("a socket is of no family of the internet")),
    };
    let mut written = Vec::with_capacity(socket.len());
    for field in fields(socket) {
        let field = field?;
        match field.number {
            STATE if connection => put_number(&mut written, STATE, CLOSE),
            SOURCE_PORT if connection => put_number(&mut written, SOURCE_PORT, 0),
            DESTINATION_PORT if connection => put_number(&mut written, DESTINATION_PORT, 0),
            SOURCE_ADDRESS if towards => {}
            _ => written.extend_from_slice(field.raw),
        }
    }
    if towards {
        for _ in 0..words {
            put_number(&mut written, SOURCE_ADDRESS, 0);
        }
    }
    Ok((written, connection))
}

#[cfg(test)]
mod tests {
    use super::super::message::COMMON_MAGIC;
    use super::*;

    fn socket(protocol: u64, state: u64, from: u64, to: u64) -> Vec<u8> {
        let mut socket = Vec::new();
        for (field, number) in [
            (1, 5),
            (2, 70_000),
            (FAMILY, INET),
            (4, 1),
            (PROTOCOL, protocol),
            (STATE, state),
            (SOURCE_PORT, from),
            (DESTINATION_PORT, to),
            (9, 0x802),
            (10, 0),
            (SOURCE_ADDRESS, 0x0200_11ac),
            (12, 0x0100_11ac),
        ] {
            put_number(&mut socket, field, number);
        }
        put_bytes(&mut socket, 13, b"\x08\x00");
        socket
    }

    fn image(sockets: &[Vec<u8>]) -> Vec<u8> {
        let mut image = COMMON_MAGIC.to_le_bytes().to_vec();
        image.extend_from_slice(&FILES_MAGIC.to_le_bytes());
        for (number, socket) in sockets.iter().enumerate() {
            let mut entry = Vec::new();
            put_number(&mut entry, 1, 9);
            put_number(&mut entry, 2, number as u64);
            put_bytes(&mut entry, FILE_INET, socket);
            image.extend_from_slice(&u32::try_from(entry.len()).unwrap().to_le_bytes());
            image.extend_from_slice(&entry);
        }
        image
    }

    #[test]
    fn connections_are_closed_and_nothing_else_is_touched() {
        let listener = socket(TCP, LISTEN, 6379, 0);
        let idle = socket(TCP, CLOSE, 0, 0);
        let datagrams = socket(17, CLOSE, 53, 0);
        let open = socket(TCP, 1, 6379, 57616);
        let reset = socket(TCP, CLOSE, 6379, 57616);
        let before = image(&[listener.clone(), open, idle.clone(), reset, datagrams.clone()]);
        let (after, closed) = close_connections(&before).unwrap();
        assert_eq!(closed, 2);
        assert_eq!(
            after,
            image(&[listener, socket(TCP, CLOSE, 0, 0), idle.clone(), idle, datagrams])
        );
        assert_eq!(close_connections(&after).unwrap(), (after.clone(), 0));
    }

    #[test]
    fn a_datagram_socket_with_a_peer_keeps_its_port_but_not_its_address() {
        let (after, closed) = close_connections(&image(&[socket(17, 1, 40_000, 53)])).unwrap();
        assert_eq!(closed, 0);
        let address = [&[(SOURCE_ADDRESS as u8) << 3][..], &[0]].concat();
        assert!(after.windows(2).any(|w| w == address), "{after:?}");
        let mut old = Vec::new();
        put_number(&mut old, SOURCE_ADDRESS, 0x0200_11ac);
        assert!(!after.windows(old.len()).any(|w| w == old));
        let mut port = Vec::new();
        put_number(&mut port, SOURCE_PORT, 40_000);
        assert!(after.windows(port.len()).any(|w| w == port));
    }

    #[test]
    fn what_is_cut_short_or_no_image_is_refused() {
        let whole = image(&[socket(TCP, 1, 6379, 57616)]);
        for length in 0..whole.len() {
            if length == HEAD {
                continue;
            }
            assert!(close_connections(&whole[..length]).is_err(), "{length} bytes");
        }
        let mut other = whole.clone();
        other[5] ^= 1;
        assert!(close_connections(&other).is_err());
        let mut strange = whole;
        let socket = HEAD + 4 + 4 + 2;
        strange[socket] = 0x0b;
        assert!(close_connections(&strange).is_err());
    }

    #[test]
    fn no_bytes_make_it_panic() {
        let whole = image(&[socket(TCP, 1, 6379, 57616), socket(17, 1, 1, 2)]);
        for at in HEAD..whole.len() {
            for value in [0u8, 0x7f, 0x80, 0xff] {
                let mut changed = whole.clone();
                changed[at] = value;
                let done = close_connections(&changed);
                assert!(done.is_err() || done.is_ok());
            }
        }
    }
}
