//! An upload cut into chunks, each of which one copy brings to the device.

/// Bytes that go to one place of the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Item {
    /// First byte in the target.
    pub at: usize,
    /// Bytes.
    pub len: usize,
}

/// What a chunk holds of an item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Position in the list of items.
    pub item: usize,
    /// First byte in the item.
    pub from: usize,
    /// First byte in the chunk.
    pub to: usize,
    /// Bytes.
    pub len: usize,
}

/// A run of the target, with parts of one or many items in ascending order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// First byte in the target.
    pub at: usize,
    /// Bytes, padding between items included.
    pub len: usize,
    /// What it holds.
    pub parts: Vec<Part>,
}

/// Chunks of at most `size` bytes for items in ascending order. An item is cut at multiples of 256 bytes, counted from
/// its beginning, if items and `size` begin at such multiples: so never inside an element.
pub fn chunks(items: &[Item], size: usize) -> Vec<Chunk> {
    let mut out: Vec<Chunk> = Vec::new();
    for (item, &Item { at, len }) in items.iter().enumerate() {
        let mut from = 0;
        while from < len {
            // Behind what the last chunk holds, unless it is full.
            let open = out.last_mut().filter(|c| at + from < c.at + size);
            let chunk = match open {
                Some(chunk) => chunk,
                None => {
                    out.push(Chunk { at: at + from, len: 0, parts: Vec::new() });
                    match out.last_mut() {
                        Some(chunk) => chunk,
                        None => return out,
                    }
                }
            };
            let to = at + from - chunk.at;
            let part = (size - to).min(len - from);
            chunk.parts.push(Part { item, from, to, len: part });
            chunk.len = to + part;
            from += part;
        }
    }
    out
}
