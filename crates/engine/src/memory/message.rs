//! CRIU's images as far as they are read and written here: two magic numbers of 4 bytes, then messages of protocol buffers, each after its
//! length, all little-endian. Which fields mean what, the modules know that use this.

/// `IMG_COMMON_MAGIC` of CRIU's `magic.h`.
pub(super) const COMMON_MAGIC: u32 = 0x5456_4319;
/// Bytes of both magic numbers.
pub(super) const HEAD: usize = 8;

/// What is wrong with an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Damaged(pub(super) &'static str);

/// One field of a message.
pub(super) struct Field<'a> {
    pub(super) number: u64,
    pub(super) value: Value<'a>,
    /// As it stands in the message, key included.
    pub(super) raw: &'a [u8],
}

/// What a field holds.
pub(super) enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    Other,
}

/// Whether an image begins as those with this magic number do.
pub(super) fn begins_with(image: &[u8], magic: u32) -> bool {
    let word = |at: usize| {
        let bytes = image.get(at..at + 4).and_then(|b| b.try_into().ok());
        bytes.map(u32::from_le_bytes)
    };
    word(0) == Some(COMMON_MAGIC) && word(4) == Some(magic)
}

/// The next message of an image.
pub(super) fn take_message<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8], Damaged> {
    let (length, after) = rest
        .split_first_chunk::<4>()
        .ok_or(Damaged("it ends in the length of an entry"))?;
    let length = usize::try_from(u32::from_le_bytes(*length)).unwrap_or(usize::MAX);
    let message = after.get(..length).ok_or(Damaged("it ends in an entry"))?;
    *rest = after.get(length..).unwrap_or_default();
    Ok(message)
}

/// Adds a message to an image.
pub(super) fn put_message(to: &mut Vec<u8>, message: &[u8]) -> Result<(), Damaged> {
    let length = u32::try_from(message.len()).map_err(|_| Damaged("an entry is too long"))?;
    to.extend_from_slice(&length.to_le_bytes());
    to.extend_from_slice(message);
    Ok(())
}

/// The fields of a message, in order.
pub(super) fn fields(message: &[u8]) -> impl Iterator<Item = Result<Field<'_>, Damaged>> {
    let mut rest = message;
    let mut failed = false;
    std::iter::from_fn(move || {
        if rest.is_empty() || failed {
            return None;
        }
        let field = take_field(&mut rest);
        failed = field.is_err();
        Some(field)
    })
}

fn take_field<'a>(rest: &mut &'a [u8]) -> Result<Field<'a>, Damaged> {
    let whole = *rest;
    let key = take_number(rest)?;
    let value = match key & 7 {
        0 => Value::Number(take_number(rest)?),
        2 => {
            let length = usize::try_from(take_number(rest)?).unwrap_or(usize::MAX);
            Value::Bytes(take(rest, length)?)
        }
        1 => {
            take(rest, 8)?;
            Value::Other
        }
        5 => {
            take(rest, 4)?;
            Value::Other
        }
        _ => return Err(Damaged("a field is of no known type")),
    };
    let length = whole.len() - rest.len();
    Ok(Field {
        number: key >> 3,
        value,
        raw: whole.get(..length).unwrap_or_default(),
    })
}

fn take<'a>(rest: &mut &'a [u8], length: usize) -> Result<&'a [u8], Damaged> {
    let taken = rest.get(..length).ok_or(Damaged("a field is cut short"))?;
    *rest = rest.get(length..).unwrap_or_default();
    Ok(taken)
}

/// A number of up to 64 bits in groups of seven, lowest first.
fn take_number(rest: &mut &[u8]) -> Result<u64, Damaged> {
    let mut number = 0u64;
    for shift in (0..64).step_by(7) {
        let (byte, after) = rest.split_first().ok_or(Damaged("a number is cut short"))?;
        *rest = after;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(number);
        }
    }
    Err(Damaged("a number is too long"))
}

fn put_varint(to: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        to.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    to.push(number as u8);
}

/// A field with a number.
pub(super) fn put_number(to: &mut Vec<u8>, field: u64, number: u64) {
    put_varint(to, field << 3);
    put_varint(to, number);
}

/// A field with bytes.
pub(super) fn put_bytes(to: &mut Vec<u8>, field: u64, bytes: &[u8]) {
    put_varint(to, field << 3 | 2);
    put_varint(to, bytes.len() as u64);
    to.extend_from_slice(bytes);
}
