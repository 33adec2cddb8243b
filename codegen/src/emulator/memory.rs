//! Memory of emulated launches: typed buffers whose bytes know whether they were written.

use super::value;
use weft_ir::dtype::DType;

/// A buffer of global memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// Element type, which is also the granularity of race detection.
    pub dtype: DType,
    /// Contents, little-endian.
    pub bytes: Vec<u8>,
    /// Whether each byte has been written.
    pub initialised: Vec<bool>,
    /// Whether a kernel has written each byte since the step began ([`Buffer::settle`]).
    fresh: Vec<bool>,
}

impl Buffer {
    /// A buffer of `len` elements that nothing has written.
    pub fn uninitialised(dtype: DType, len: usize) -> Self {
        let n = len * dtype.size();
        Buffer { dtype, bytes: vec![0; n], initialised: vec![false; n], fresh: vec![false; n] }
    }

    /// A buffer with contents.
    pub fn new(dtype: DType, bytes: Vec<u8>) -> Self {
        let (initialised, fresh) = (vec![true; bytes.len()], vec![false; bytes.len()]);
        Buffer { dtype, bytes, initialised, fresh }
    }

    /// Begins a step: what is there was written by earlier ones.
    pub fn settle(&mut self) {
        self.fresh.fill(false);
    }

    /// Elements.
    pub fn len(&self) -> usize {
        self.bytes.len() / self.dtype.size()
    }

    /// Whether the buffer has no elements.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Bits of `size` bytes at a byte offset; zero outside.
    pub(super) fn get(&self, at: usize, size: usize) -> u64 {
        let mut word = [0u8; 8];
        if let (Some(from), Some(to)) = (self.bytes.get(at..at + size), word.get_mut(..size)) {
            to.copy_from_slice(from);
        }
        u64::from_le_bytes(word)
    }

    /// Writes `size` bytes and marks them written; nothing outside.
    pub(super) fn set(&mut self, at: usize, size: usize, bits: u64) {
        if let Some(to) = self.bytes.get_mut(at..at + size) {
            to.copy_from_slice(&bits.to_le_bytes()[..size]);
            self.initialised[at..at + size].fill(true);
            self.fresh[at..at + size].fill(true);
        }
    }

    pub(super) fn is_settled(&self, at: usize, size: usize) -> bool {
        self.fresh.get(at..at + size).is_some_and(|s| s.iter().all(|b| !*b))
    }

    pub(super) fn is_initialised(&self, at: usize, size: usize) -> bool {
        self.initialised.get(at..at + size).is_some_and(|s| s.iter().all(|b| *b))
    }

    /// Bits of an element, when all its bytes have been written.
    pub fn element(&self, index: usize) -> Option<u64> {
        let size = self.dtype.size();
        self.is_initialised(index * size, size).then(|| self.get(index * size, size))
    }
}

/// The global memory of launches.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// Buffers; launch arguments are positions in this list.
    pub buffers: Vec<Buffer>,
}

impl Memory {
    /// No buffers.
    pub fn new() -> Self {
        Memory::default()
    }

    /// Adds a buffer and gives its index.
    pub fn add(&mut self, buffer: Buffer) -> usize {
        self.buffers.push(buffer);
        self.buffers.len() - 1
    }

    /// Adds a buffer of `len` elements that nothing has written.
    pub fn uninitialised(&mut self, dtype: DType, len: usize) -> usize {
        self.add(Buffer::uninitialised(dtype, len))
    }

    /// Adds a buffer of `len` zeros.
    pub fn zeros(&mut self, dtype: DType, len: usize) -> usize {
        self.add(Buffer::new(dtype, vec![0; len * dtype.size()]))
    }

    /// Adds values, converted to the type with one rounding.
    pub fn floats(&mut self, dtype: DType, values: &[f32]) -> usize {
        let bits = values.iter().map(|v| value::cast(DType::F32, dtype, u64::from(v.to_bits())));
        self.bits(dtype, bits)
    }

    /// Adds integers, converted to the type.
    pub fn ints(&mut self, dtype: DType, values: &[i64]) -> usize {
        self.bits(dtype, values.iter().map(|v| value::cast(DType::I64, dtype, *v as u64)))
    }

    fn bits(&mut self, dtype: DType, bits: impl Iterator<Item = u64>) -> usize {
        let bytes = bits.flat_map(|b| b.to_le_bytes().into_iter().take(dtype.size())).collect();
        self.add(Buffer::new(dtype, bytes))
    }

    /// Values of a buffer as f32; elements that nothing has written are `None`.
    pub fn read_floats(&self, buffer: usize) -> Vec<Option<f32>> {
        self.read(buffer, |dtype, bits| f32::from_bits(value::cast(dtype, DType::F32, bits) as u32))
    }

    /// Values of a buffer as i64; elements that nothing has written are `None`.
    pub fn read_ints(&self, buffer: usize) -> Vec<Option<i64>> {
        self.read(buffer, |dtype, bits| value::cast(dtype, DType::I64, bits) as i64)
    }

    fn read<T>(&self, buffer: usize, convert: impl Fn(DType, u64) -> T) -> Vec<Option<T>> {
        let elements =
            |b: &Buffer| (0..b.len()).map(|i| b.element(i).map(|bits| convert(b.dtype, bits))).collect();
        self.buffers.get(buffer).map(elements).unwrap_or_default()
    }
}
