//! A cursor over a GGUF file: values, arrays and tensor entries, every length checked before it is used.

use super::{Array, Value};
use crate::error::{Error, Result};
use std::collections::BTreeMap;
use std::path::Path;

/// Dimensions that a tensor may have (`GGML_MAX_DIMS`).
const MAX_DIMS: u32 = 4;
/// Arrays within arrays that are followed.
const MAX_DEPTH: u32 = 4;

/// Name, dimensions (outermost first), ggml type and offset from the start of the data.
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) shape: Vec<usize>,
    pub(super) kind: u32,
    pub(super) offset: u64,
}

/// A cursor over the file that never passes its end.
pub(super) struct Reader<'a> {
    pub(super) path: &'a Path,
    pub(super) data: &'a [u8],
    pub(super) at: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn take(&mut self, n: usize, what: &str) -> Result<&'a [u8]> {
        let end = self.at.checked_add(n);
        let Some(bytes) = end.and_then(|end| self.data.get(self.at..end)) else {
            let problem = format!("needs {n} bytes at {}, the file ends at {}", self.at, self.data.len());
            return Err(Error::damaged(self.path, what, problem));
        };
        self.at += n;
        Ok(bytes)
    }

    fn fixed<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        let bytes = self.take(N, what)?;
        bytes.try_into().map_err(|_| Error::damaged(self.path, what, "cut short"))
    }

    pub(super) fn u32(&mut self, what: &str) -> Result<u32> {
        self.fixed(what).map(u32::from_le_bytes)
    }

    /// A count of things that take at least `least` bytes each in what remains of the file.
    pub(super) fn count(&mut self, least: usize, what: &str) -> Result<usize> {
        let n = self.fixed(what).map(u64::from_le_bytes)?;
        let room = (self.data.len() - self.at) / least.max(1);
        match usize::try_from(n) {
            Ok(n) if n <= room => Ok(n),
            _ => {
                let problem = format!("{n} is more than the rest of the file can hold ({room})");
                Err(Error::damaged(self.path, what, problem))
            }
        }
    }

    pub(super) fn string(&mut self, what: &str) -> Result<String> {
        let n = self.count(1, what)?;
        let bytes = self.take(n, what)?;
        match std::str::from_utf8(bytes) {
            Ok(s) => Ok(s.to_owned()),
            Err(e) => Err(Error::damaged(self.path, what, format!("not UTF-8: {e}"))),
        }
    }

    pub(super) fn scalar(&mut self, kind: u32, key: &str) -> Result<Value> {
        Ok(match kind {
            0 => Value::Unsigned(u8::from_le_bytes(self.fixed(key)?).into()),
            1 => Value::Signed(i8::from_le_bytes(self.fixed(key)?).into()),
            2 => Value::Unsigned(u16::from_le_bytes(self.fixed(key)?).into()),
            3 => Value::Signed(i16::from_le_bytes(self.fixed(key)?).into()),
            4 => Value::Unsigned(self.u32(key)?.into()),
            5 => Value::Signed(i32::from_le_bytes(self.fixed(key)?).into()),
            6 => Value::F32(f32::from_le_bytes(self.fixed(key)?)),
            7 => match self.fixed(key)? {
                [0] => Value::Bool(false),
                [1] => Value::Bool(true),
                [b] => return Err(Error::damaged(self.path, key, format!("bool stored as {b}"))),
            },
            8 => Value::Text(self.string(key)?),
            10 => Value::Unsigned(u64::from_le_bytes(self.fixed(key)?)),
            11 => Value::Signed(i64::from_le_bytes(self.fixed(key)?)),
            12 => Value::F64(f64::from_le_bytes(self.fixed(key)?)),
            other => return Err(Error::damaged(self.path, key, format!("unknown value type {other}"))),
        })
    }

    /// Walks past an array, checking that it lies in the file.
    fn array(&mut self, key: &str, depth: u32) -> Result<Array> {
        if depth > MAX_DEPTH {
            let problem = format!("arrays nested deeper than {MAX_DEPTH}");
            return Err(Error::damaged(self.path, key, problem));
        }
        let kind = self.u32(key)?;
        let size = match kind {
            0 | 1 | 7 => Some(1),
            2 | 3 => Some(2),
            4..=6 => Some(4),
            10..=12 => Some(8),
            8 | 9 => None,
            other => return Err(Error::damaged(self.path, key, format!("unknown element type {other}"))),
        };
        let len = self.count(size.unwrap_or(8), key)?;
        let start = self.at;
        match size {
            Some(size) => {
                self.take(len * size, key)?;
            }
            None if kind == 8 => {
                for _ in 0..len {
                    let n = self.count(1, key)?;
                    self.take(n, key)?;
                }
            }
            None => {
                for _ in 0..len {
                    self.array(key, depth + 1)?;
                }
            }
        }
        Ok(Array { kind, len, extent: start..self.at })
    }

    pub(super) fn metadata(&mut self, count: usize) -> Result<BTreeMap<String, Value>> {
        let mut out = BTreeMap::new();
        for i in 0..count {
            let key = self.string(&format!("key of metadata entry {i}"))?;
            let kind = self.u32(&key)?;
            let value = match kind {
                9 => Value::Array(self.array(&key, 1)?),
                kind => self.scalar(kind, &key)?,
            };
            if out.contains_key(&key) {
                return Err(Error::damaged(self.path, key, "the key appears twice"));
            }
            out.insert(key, value);
        }
        Ok(out)
    }

    pub(super) fn tensor_entries(&mut self, count: usize) -> Result<Vec<Entry>> {
        let mut out = Vec::with_capacity(count);
        for i in 0..count {
            let name = self.string(&format!("name of tensor {i}"))?;
            let field = format!("tensor {name:?}");
            let dims = self.u32(&field)?;
            if dims > MAX_DIMS {
                let problem = format!("{dims} dimensions, at most {MAX_DIMS} allowed");
                return Err(Error::damaged(self.path, field, problem));
            }
            let mut shape = Vec::with_capacity(dims as usize);
            for _ in 0..dims {
                let dim = u64::from_le_bytes(self.fixed(&field)?);
                shape.push(usize::try_from(dim).map_err(|_| {
                    Error::damaged(self.path, &field, format!("dimension {dim} does not fit in memory"))
                })?);
            }
            shape.reverse();
            let kind = self.u32(&field)?;
            let offset = u64::from_le_bytes(self.fixed(&field)?);
            out.push(Entry { name, shape, kind, offset });
        }
        Ok(out)
    }
}
