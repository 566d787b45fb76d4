//! Builds archives that no writer would write.

/// Name, archive, code.
pub type Case = (&'static str, Vec<u8>, &'static str);

/// A header whose fields a test may set to anything.
pub struct Header(pub [u8; 512]);

impl Header {
    pub fn new(kind: u8, name: &str, size: u64) -> Self {
        let mut header = Self([0; 512]);
        header
            .put(0, name.as_bytes())
            .put(100, b"0000644\0")
            .put(108, b"0000000\0")
            .put(116, b"0000000\0");
        header
            .put(124, format!("{size:011o}\0").as_bytes())
            .put(136, b"00000000000\0")
            .put(156, &[kind]);
        header.put(257, b"ustar\x0000");
        header
    }

    pub fn put(&mut self, at: usize, bytes: &[u8]) -> &mut Self {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
        self
    }

    pub fn sealed(&self) -> Vec<u8> {
        let mut block = self.0;
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        block.to_vec()
    }
}

pub fn padded(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

pub fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while rest + length.to_string().len() != length {
        length += 1;
    }
    [format!("{length} {key}=").as_bytes(), value, b"\n"].concat()
}

pub fn extension(kind: u8, content: &[u8]) -> Vec<u8> {
    [
        Header::new(kind, "ext", content.len() as u64).sealed(),
        padded(content),
    ]
    .concat()
}

pub fn pax(records: &[(&str, &[u8])]) -> Vec<u8> {
    let content: Vec<u8> = records
        .iter()
        .flat_map(|(key, value)| record(key, value))
        .collect();
    extension(b'x', &content)
}

pub fn plain(name: &str, content: &[u8]) -> Vec<u8> {
    [
        Header::new(b'0', name, content.len() as u64).sealed(),
        padded(content),
    ]
    .concat()
}

pub fn ended(parts: &[Vec<u8>]) -> Vec<u8> {
    [parts.concat(), vec![0; 1024]].concat()
}

/// An entry whose header has one field replaced.
pub fn with(at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut header = Header::new(b'0', "f", 0);
    header.put(at, bytes);
    ended(&[header.sealed()])
}

pub fn of_kind(kind: u8, name: &str, size: u64) -> Vec<u8> {
    let mut header = Header::new(kind, name, size);
    header
        .put(157, b"target")
        .put(329, b"0000001\0")
        .put(337, b"0000003\0");
    ended(&[header.sealed(), vec![0; size.next_multiple_of(512) as usize]])
}

pub fn sparse_records(records: &[(&str, &str)], content: &[u8]) -> Vec<u8> {
    let records: Vec<(String, &[u8])> = records
        .iter()
        .map(|(key, value)| (format!("GNU.sparse.{key}"), value.as_bytes()))
        .collect();
    let records: Vec<(&str, &[u8])> = records
        .iter()
        .map(|(key, value)| (key.as_str(), *value))
        .collect();
    ended(&[pax(&records), plain("f", content)])
}

pub fn sparse_1_0(map: &str, size: &str, data: &[u8]) -> Vec<u8> {
    let content = [padded(map.as_bytes()), data.to_vec()].concat();
    sparse_records(
        &[("major", "1"), ("minor", "0"), ("name", "n"), ("realsize", size)],
        &content,
    )
}

pub fn old_gnu(extents: &[(&str, &str)], more: u8, real: &str, then: &[u8], data: &[u8]) -> Vec<u8> {
    let mut header = Header::new(b'S', "f", data.len() as u64);
    header.put(257, b"ustar  \0");
    for (index, (offset, length)) in extents.iter().enumerate() {
        header
            .put(386 + index * 24, offset.as_bytes())
            .put(398 + index * 24, length.as_bytes());
    }
    header.put(482, &[more]).put(483, real.as_bytes());
    ended(&[header.sealed(), then.to_vec(), padded(data)])
}
