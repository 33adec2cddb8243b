//! Loaded cubins, their kernels, and launches on a stream.

use std::ffi::{CString, c_void};
use std::sync::Arc;

use cudarc::driver::sys as cu;
use cudarc::driver::sys::CUfunction_attribute_enum as Attribute;
use serde::Serialize;

use super::check;
use super::context::Context;
use super::stream::Stream;
use crate::error::{Error, Result};

/// A loaded cubin. Clones share it; the last one, and the last function or graph that uses it, unloads it.
#[derive(Debug, Clone)]
pub struct Module {
    inner: Arc<Loaded>,
}

/// The loaded code behind [`Module`] and [`Function`].
#[derive(Debug)]
pub(super) struct Loaded {
    raw: cu::CUmodule,
    context: Context,
}

// SAFETY: module handles may be used from any thread; the driver locks internally.
unsafe impl Send for Loaded {}
// SAFETY: as above.
unsafe impl Sync for Loaded {}

impl Module {
    /// Loads a cubin; `name` (the kernel's or the file's) goes into errors.
    ///
    /// # Errors
    /// [`Error::BadArgument`] for bytes that are no whole ELF file; [`Error::Cuda`], such as
    /// `CUDA_ERROR_NO_BINARY_FOR_GPU` for another architecture's code.
    pub fn load(context: &Context, cubin: &[u8], name: &str) -> Result<Module> {
        check_elf(cubin).map_err(|why| Error::bad(format!("cubin of `{name}`"), why))?;
        // The driver takes no length and reads the headers in place: give it an aligned copy.
        let mut image = vec![0u64; cubin.len().div_ceil(8)];
        // SAFETY: the copy stays within both allocations, which do not overlap.
        unsafe { std::ptr::copy_nonoverlapping(cubin.as_ptr(), image.as_mut_ptr().cast(), cubin.len()) };
        context.bind()?;
        let mut raw = std::ptr::null_mut();
        // SAFETY: the image is a whole ELF file, so what its headers point at lies inside; the driver copies it.
        check(unsafe { call!(cuModuleLoadData(&mut raw, image.as_ptr().cast())) })
            .map_err(|error| error.for_kernel(name))?;
        Ok(Module { inner: Arc::new(Loaded { raw, context: context.clone() }) })
    }

    /// Looks up a kernel by its name in the cubin (`extern "C"` names are plain).
    ///
    /// # Errors
    /// [`Error::Cuda`], `CUDA_ERROR_NOT_FOUND` among them.
    pub fn function(&self, name: &str) -> Result<Function> {
        let c_name = CString::new(name).map_err(|_| Error::bad("kernel name", "it holds a NUL byte"))?;
        self.inner.context.bind()?;
        let mut raw = std::ptr::null_mut();
        // SAFETY: the module is loaded, the name is NUL-terminated; writes one handle.
        check(unsafe { call!(cuModuleGetFunction(&mut raw, self.inner.raw, c_name.as_ptr())) })
            .map_err(|error| error.for_kernel(name))?;
        let parameters = parameter_sizes(raw).map_err(|error| error.for_kernel(name))?;
        Ok(Function {
            raw,
            module: Arc::clone(&self.inner),
            name: name.into(),
            parameters: parameters.into(),
        })
    }
}

impl Drop for Loaded {
    fn drop(&mut self) {
        // Its kernels may still run; errors cannot be returned from here.
        let _ = self.context.synchronize();
        // SAFETY: loaded once, unloaded once, and the device is done with it.
        let _ = check(unsafe { call!(cuModuleUnload(self.raw)) });
    }
}

/// What the driver says of a loaded kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct FunctionAttributes {
    /// Registers a thread.
    pub registers: u32,
    /// Local memory a thread (stack and spills), in bytes.
    pub local_bytes: u32,
    /// Static shared memory a block, in bytes.
    pub static_shared_bytes: u32,
    /// Dynamic shared memory that a launch may ask for, in bytes.
    pub max_dynamic_shared_bytes: u32,
    /// Most threads a block can have.
    pub max_threads_per_block: u32,
}

/// The size of a launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LaunchDims {
    /// Blocks in x, y, z.
    pub grid: [u32; 3],
    /// Threads of a block in x, y, z.
    pub block: [u32; 3],
    /// Dynamic shared memory of a block, in bytes.
    pub shared_bytes: u32,
}

impl LaunchDims {
    /// A one-dimensional launch without dynamic shared memory.
    pub fn linear(blocks: u32, threads: u32) -> Self {
        Self { grid: [blocks, 1, 1], block: [threads, 1, 1], shared_bytes: 0 }
    }

    /// The same launch with dynamic shared memory, in bytes.
    #[must_use]
    pub fn with_shared(mut self, bytes: u32) -> Self {
        self.shared_bytes = bytes;
        self
    }
}

/// One argument of a kernel, passed by value.
#[derive(Debug, Clone, PartialEq)]
pub enum KernelArg {
    /// A device address.
    Ptr(u64),
    /// A signed 32-bit integer.
    I32(i32),
    /// An unsigned 32-bit integer.
    U32(u32),
    /// A signed 64-bit integer.
    I64(i64),
    /// An unsigned 64-bit integer.
    U64(u64),
    /// A 32-bit float.
    F32(f32),
    /// A struct passed by value (`__grid_constant__` parameters, tensor maps), in the device's layout.
    Bytes(Vec<u8>),
}

impl KernelArg {
    /// Size in bytes.
    pub fn size(&self) -> usize {
        match self {
            KernelArg::I32(_) | KernelArg::U32(_) | KernelArg::F32(_) => 4,
            KernelArg::Ptr(_) | KernelArg::I64(_) | KernelArg::U64(_) => 8,
            KernelArg::Bytes(bytes) => bytes.len(),
        }
    }

    /// Where its value lies; good while `self` is borrowed.
    fn pointer(&self) -> *mut c_void {
        let pointer: *const c_void = match self {
            KernelArg::Ptr(value) | KernelArg::U64(value) => std::ptr::from_ref(value).cast(),
            KernelArg::I64(value) => std::ptr::from_ref(value).cast(),
            KernelArg::I32(value) => std::ptr::from_ref(value).cast(),
            KernelArg::U32(value) => std::ptr::from_ref(value).cast(),
            KernelArg::F32(value) => std::ptr::from_ref(value).cast(),
            KernelArg::Bytes(bytes) => bytes.as_ptr().cast(),
        };
        pointer.cast_mut()
    }
}

/// A kernel of a loaded module. Keeps the module loaded.
#[derive(Debug, Clone)]
pub struct Function {
    raw: cu::CUfunction,
    pub(super) module: Arc<Loaded>,
    name: Arc<str>,
    parameters: Arc<[usize]>,
}

// SAFETY: function handles may be used from any thread while their module is loaded, which `module` ensures.
unsafe impl Send for Function {}
// SAFETY: as above.
unsafe impl Sync for Function {}

impl Function {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The size of each parameter in bytes, as compiled.
    pub fn parameters(&self) -> &[usize] {
        &self.parameters
    }

    /// What the driver says of it.
    ///
    /// # Errors
    /// [`Error::Cuda`].
    pub fn attributes(&self) -> Result<FunctionAttributes> {
        self.module.context.bind()?;
        let get = |which: Attribute| -> Result<u32> {
            let mut value = 0;
            // SAFETY: the function's module is loaded; writes one integer.
            check(unsafe { call!(cuFuncGetAttribute(&mut value, which, self.raw)) })
                .map_err(|error| error.for_kernel(&self.name))?;
            Ok(u32::try_from(value).unwrap_or(0))
        };
        Ok(FunctionAttributes {
            registers: get(Attribute::CU_FUNC_ATTRIBUTE_NUM_REGS)?,
            local_bytes: get(Attribute::CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES)?,
            static_shared_bytes: get(Attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES)?,
            max_dynamic_shared_bytes: get(Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES)?,
            max_threads_per_block: get(Attribute::CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK)?,
        })
    }

    /// Allows launches with up to `bytes` of dynamic shared memory; needed above 48 KiB.
    ///
    /// # Errors
    /// [`Error::Cuda`] when the device has less, or static and dynamic together exceed it.
    pub fn set_max_dynamic_shared(&self, bytes: u32) -> Result<()> {
        let value = i32::try_from(bytes).map_err(|_| {
            Error::bad(format!("dynamic shared memory of `{}`", self.name), format!("{bytes} bytes"))
        })?;
        self.module.context.bind()?;
        let which = Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        // SAFETY: the function's module is loaded.
        check(unsafe { call!(cuFuncSetAttribute(self.raw, which, value)) })
            .map_err(|error| error.for_kernel(&self.name))
    }

    /// How many blocks of this size fit on one SM at a time.
    ///
    /// # Errors
    /// [`Error::Cuda`].
    pub fn blocks_per_sm(&self, threads: u32, dynamic_shared_bytes: u32) -> Result<u32> {
        self.module.context.bind()?;
        let mut blocks = 0;
        let threads = i32::try_from(threads).unwrap_or(i32::MAX);
        // SAFETY: the function's module is loaded; writes one integer.
        check(unsafe {
            call!(cuOccupancyMaxActiveBlocksPerMultiprocessor(
                &mut blocks,
                self.raw,
                threads,
                dynamic_shared_bytes as usize
            ))
        })
        .map_err(|error| error.for_kernel(&self.name))?;
        Ok(u32::try_from(blocks).unwrap_or(0))
    }

    /// Launches on a stream. The arguments are copied before this returns.
    ///
    /// # Errors
    /// [`Error::BadArgument`] when the arguments do not fit the kernel's parameters; [`Error::Cuda`].
    pub fn launch(&self, stream: &Stream, dims: LaunchDims, args: &[KernelArg]) -> Result<()> {
        let mut pointers = self.argument_pointers(args)?;
        stream.context().bind()?;
        let ([grid_x, grid_y, grid_z], [block_x, block_y, block_z]) = (dims.grid, dims.block);
        // SAFETY: count and sizes of the arguments were checked against the kernel; they outlive the call, which
        // copies them.
        check(unsafe {
            call!(cuLaunchKernel(
                self.raw,
                grid_x,
                grid_y,
                grid_z,
                block_x,
                block_y,
                block_z,
                dims.shared_bytes,
                stream.raw(),
                pointers.as_mut_ptr(),
                std::ptr::null_mut()
            ))
        })
        .map_err(|error| error.for_kernel(&self.name))
    }

    /// Pointers to the arguments, after checking them against the kernel's parameters.
    pub(super) fn argument_pointers(&self, args: &[KernelArg]) -> Result<Vec<*mut c_void>> {
        let sizes: Vec<usize> = args.iter().map(KernelArg::size).collect();
        if *sizes != *self.parameters {
            return Err(Error::bad(
                format!("arguments of `{}`", self.name),
                format!("sizes {sizes:?} bytes were given, the kernel takes {:?}", self.parameters),
            ));
        }
        Ok(args.iter().map(KernelArg::pointer).collect())
    }

    pub(super) fn raw(&self) -> cu::CUfunction {
        self.raw
    }

    pub(super) fn context(&self) -> &Context {
        &self.module.context
    }
}

/// The size of each of a kernel's parameters.
fn parameter_sizes(function: cu::CUfunction) -> Result<Vec<usize>> {
    let mut sizes = Vec::new();
    loop {
        let (mut offset, mut size) = (0, 0);
        // SAFETY: the function was just looked up; writes two sizes.
        let answer = unsafe { call!(cuFuncGetParamInfo(function, sizes.len(), &mut offset, &mut size)) };
        // This is how the driver says that there are no more.
        if answer.1 == cu::CUresult::CUDA_ERROR_INVALID_VALUE {
            return Ok(sizes);
        }
        check(answer)?;
        sizes.push(size);
    }
}

/// Checks that bytes are a whole 64-bit little-endian ELF file: the driver reads what the headers point at.
fn check_elf(bytes: &[u8]) -> Result<(), String> {
    let word = |at: usize, len: usize| -> u64 {
        bytes[at..at + len].iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte))
    };
    if bytes.len() < 64 || !bytes.starts_with(b"\x7fELF\x02\x01") {
        return Err(format!("{} bytes that are no 64-bit ELF file", bytes.len()));
    }
    let table = |offset: usize, entry: usize, count: usize| {
        word(entry, 2).checked_mul(word(count, 2)).and_then(|size| size.checked_add(word(offset, 8)))
    };
    // e_phoff, e_phentsize, e_phnum; e_shoff, e_shentsize, e_shnum.
    for end in [table(32, 54, 56), table(40, 58, 60)] {
        if end.is_none_or(|end| end > bytes.len() as u64) {
            return Err(format!("the ELF file is cut short at {} bytes", bytes.len()));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_elf_files_reach_the_driver() {
        assert!(check_elf(b"").is_err());
        assert!(check_elf(b".version 8.0\n").is_err());
        let mut elf = vec![0u8; 192];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        elf[40..48].copy_from_slice(&64u64.to_le_bytes());
        elf[58..60].copy_from_slice(&64u16.to_le_bytes());
        elf[60..62].copy_from_slice(&2u16.to_le_bytes());
        assert_eq!(check_elf(&elf), Ok(()));
        assert!(check_elf(&elf[..191]).is_err());
    }

    #[test]
    fn arguments_know_their_size() {
        let args =
            [KernelArg::Ptr(1), KernelArg::I32(2), KernelArg::F32(3.0), KernelArg::Bytes(vec![0; 128])];
        assert_eq!(args.iter().map(KernelArg::size).collect::<Vec<_>>(), [8, 4, 4, 128]);
    }
}
