//! Tensor maps: what the copy engine has to know of a matrix to copy tiles of it (`cuTensorMapEncodeTiled`).

use cudarc::driver::sys as cu;
use weft_ir::dtype::DType;
use weft_ir::kernel::SWIZZLED_ROW;

use super::check;
use super::memory::DeviceBuffer;
use crate::error::{Error, Result};

/// A row-major matrix of 16-bit floats, and the tiles that are copied of it: so many rows by 64 columns, swizzled rows of
/// 128 bytes in shared memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Matrix {
    /// Element type, f16 or bf16.
    pub dtype: DType,
    /// Rows; what lies beyond is zero in a tile.
    pub rows: usize,
    /// Elements of a row; likewise.
    pub columns: usize,
    /// Rows of a tile, at most 256.
    pub tile_rows: u32,
}

impl DeviceBuffer {
    /// The tensor map of a matrix that begins at a byte of the buffer: a kernel takes it by value.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] for a matrix beyond the buffer, [`Error::BadArgument`] for one that has no map: other types
    /// than 16-bit floats, rows that are no multiple of 16 bytes, tiles of too many rows; [`Error::Cuda`].
    pub fn tensor_map(&self, offset: usize, m: &Matrix) -> Result<Vec<u8>> {
        let row = m.columns.saturating_mul(m.dtype.size());
        let address = self.range("tensor map", offset, m.rows.saturating_mul(row))?;
        let dtype = match m.dtype {
            DType::F16 => cu::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
            DType::BF16 => cu::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
            DType::F32 | DType::I64 | DType::I32 | DType::U32 | DType::Bool => {
                return Err(Error::bad("tensor map", format!("tiles of {}", m.dtype)));
            }
        };
        if !row.is_multiple_of(16)
            || !address.is_multiple_of(16)
            || !(1..=256).contains(&m.tile_rows)
            || m.rows == 0
        {
            let why = format!(
                "{} × {} {} at byte {offset} in tiles of {} rows: rows of whole 16 bytes and tiles of 1 to 256 rows have one",
                m.rows, m.columns, m.dtype, m.tile_rows
            );
            return Err(Error::bad("tensor map", why));
        }
        let mut map = cu::CUtensorMap { opaque: [0; 16] };
        let (sizes, strides) = ([m.columns as u64, m.rows as u64], [row as u64]);
        let (tile, steps) = ([SWIZZLED_ROW, m.tile_rows], [1, 1]);
        self.context().bind()?;
        // SAFETY: all pointers are to values that outlive the call, which writes the map alone; two sizes, one stride, two
        // lengths of the tile and two steps are what rank 2 reads. The address is only encoded.
        check(unsafe {
            call!(cuTensorMapEncodeTiled(
                &mut map,
                dtype,
                2,
                address as *mut core::ffi::c_void,
                sizes.as_ptr(),
                strides.as_ptr(),
                tile.as_ptr(),
                steps.as_ptr(),
                cu::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                cu::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
                cu::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
                cu::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            ))
        })?;
        Ok(map.opaque.iter().flat_map(|word| word.to_ne_bytes()).collect())
    }
}
