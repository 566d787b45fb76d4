//! The few messages of containerd's API that are used here, written and read by hand: its generated client would want a compiler
//! of protocol buffers at build time.
//!
//! Encoding: <https://protobuf.dev/programming-guides/encoding/>. Groups, which nobody writes any more, are refused.

/// A message that is not one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Malformed;

/// What a field holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Field<'a> {
    /// Text, bytes or a message.
    Bytes(&'a [u8]),
    /// A number of variable length.
    Number(u64),
    /// Numbers of other kinds: none of them is needed.
    Fixed,
}

/// The numbers of fields that hold a length and bytes, and of the others.
const VARINT: u64 = 0;
const FIXED_64: u64 = 1;
const LENGTH: u64 = 2;
const FIXED_32: u64 = 5;

/// Appends a field of text.
pub(crate) fn put_text(message: &mut Vec<u8>, field: u64, text: &str) {
    put_number(message, field << 3 | LENGTH);
    put_number(message, text.len() as u64);
    message.extend_from_slice(text.as_bytes());
}

fn put_number(message: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        // Seven bits at a time, and a mark that more follow.
        message.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    message.push(number as u8);
}

/// The fields of a message in the order in which they come.
pub(crate) fn fields(mut message: &[u8]) -> Result<Vec<(u64, Field<'_>)>, Malformed> {
    let mut found = Vec::new();
    while !message.is_empty() {
        let key = take_number(&mut message)?;
        let value = match key & 7 {
            VARINT => take_number(&mut message).map(Field::Number)?,
            FIXED_64 => take(&mut message, 8).map(|_| Field::Fixed)?,
            FIXED_32 => take(&mut message, 4).map(|_| Field::Fixed)?,
            LENGTH => {
                let length = take_number(&mut message)?;
                Field::Bytes(take(&mut message, length)?)
            }
            _ => return Err(Malformed),
        };
        found.push((key >> 3, value));
    }
    Ok(found)
}

/// All values of a repeated field, or of one that may be there once.
pub(crate) fn each(message: &[u8], field: u64) -> Result<Vec<&[u8]>, Malformed> {
    let bytes = |(number, value)| match value {
        Field::Bytes(bytes) if number == field => Some(bytes),
        _ => None,
    };
    Ok(fields(message)?.into_iter().filter_map(bytes).collect())
}

/// The text of a field: the last one where there are several, and nothing where there is none.
pub(crate) fn text(message: &[u8], field: u64) -> Result<String, Malformed> {
    let last = each(message, field)?.pop().unwrap_or_default();
    String::from_utf8(last.to_vec()).map_err(|_| Malformed)
}

/// The number in a field: the last one where there are several, and zero, which is not sent, where there is none.
pub(crate) fn number(message: &[u8], field: u64) -> Result<u64, Malformed> {
    let number = |(number, value)| match value {
        Field::Number(value) if number == field => Some(value),
        _ => None,
    };
    Ok(fields(message)?
        .into_iter()
        .rev()
        .find_map(number)
        .unwrap_or_default())
}

fn take<'a>(message: &mut &'a [u8], length: u64) -> Result<&'a [u8], Malformed> {
    let length = usize::try_from(length).map_err(|_| Malformed)?;
    let (taken, rest) = message.split_at_checked(length).ok_or(Malformed)?;
    *message = rest;
    Ok(taken)
}

fn take_number(message: &mut &[u8]) -> Result<u64, Malformed> {
    let mut number = 0_u64;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = message.split_first().ok_or(Malformed)?;
        *message = rest;
        let bits = u64::from(byte & 0x7f);
        if bits << shift >> shift != bits {
            return Err(Malformed);
        }
        number |= bits << shift;
        if byte & 0x80 == 0 {
            return Ok(number);
        }
    }
    Err(Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_written_as_others_read_them() {
        let mut message = Vec::new();
        put_text(&mut message, 1, "overlayfs");
        put_text(&mut message, 2, &"k".repeat(300));
        assert_eq!(&message[..11], b"\x0a\x09overlayfs");
        assert_eq!(&message[11..14], b"\x12\xac\x02");
        assert_eq!(text(&message, 1).unwrap(), "overlayfs");
        assert_eq!(text(&message, 2).unwrap().len(), 300);
        assert_eq!(text(&message, 3).unwrap(), "");
    }

    #[test]
    fn fields_of_other_kinds_are_passed_over() {
        let message = b"\x08\x96\x01\x11ABCDEFGH\x1dABCD\x22\x01x\x22\x01y";
        assert_eq!(each(message, 4).unwrap(), [b"x", b"y"]);
        assert_eq!(text(message, 4).unwrap(), "y");
        assert_eq!(fields(message).unwrap()[0], (1, Field::Number(150)));
        assert_eq!(number(message, 1).unwrap(), 150);
        assert_eq!((number(message, 3), number(message, 9)), (Ok(0), Ok(0)));
        assert_eq!(number(b"\x08\x01\x08\x02", 1), Ok(2));
    }

    #[test]
    fn what_is_no_message_is_refused() {
        for bytes in [
            &b"\x0a"[..],
            b"\x0a\x05abc",
            b"\x0b\x0c",
            b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
            b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
            b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f",
            b"\x09ABC",
            b"\x0d",
        ] {
            assert_eq!(fields(bytes), Err(Malformed), "{bytes:?}");
        }
        assert_eq!(text(b"\x0a\x01\xff", 1), Err(Malformed));
    }
}
