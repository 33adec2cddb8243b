//! The driver library: probing it without a panic, starting it, and describing its devices.

use std::fmt;
use std::sync::OnceLock;

use cudarc::driver::sys as cu;
use cudarc::driver::sys::CUdevice_attribute_enum as Attribute;
use serde::Serialize;

use super::{check, loader_reason};
use crate::error::{Error, Result};

/// Every driver function this crate calls. [`Driver::probe`] looks each of them up, since cudarc panics when one
/// is missing at its first call. A test holds this list against the sources.
pub(crate) const SYMBOLS: &[&str] = &[
    "cuCtxSetCurrent",
    "cuCtxSynchronize",
    "cuDeviceGet",
    "cuDeviceGetAttribute",
    "cuDeviceGetCount",
    "cuDeviceGetName",
    "cuDevicePrimaryCtxRelease_v2",
    "cuDevicePrimaryCtxRetain",
    "cuDeviceTotalMem_v2",
    "cuDriverGetVersion",
    "cuEventCreate",
    "cuEventDestroy_v2",
    "cuEventElapsedTime_v2",
    "cuEventQuery",
    "cuEventRecord",
    "cuEventSynchronize",
    "cuFuncGetAttribute",
    "cuFuncGetParamInfo",
    "cuFuncSetAttribute",
    "cuGetErrorName",
    "cuGetErrorString",
    "cuGraphAddEmptyNode",
    "cuGraphAddMemcpyNode",
    "cuGraphAddMemsetNode",
    "cuGraphAddNode_v2",
    "cuGraphConditionalHandleCreate",
    "cuGraphCreate",
    "cuGraphDestroy",
    "cuGraphExecDestroy",
    "cuGraphInstantiateWithParams",
    "cuGraphLaunch",
    "cuGraphUpload",
    "cuInit",
    "cuLaunchKernel",
    "cuMemAlloc_v2",
    "cuMemFreeHost",
    "cuMemFree_v2",
    "cuMemGetInfo_v2",
    "cuMemHostAlloc",
    "cuMemHostGetDevicePointer_v2",
    "cuMemcpyDtoDAsync_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuMemcpyDtoH_v2",
    "cuMemcpyHtoDAsync_v2",
    "cuMemcpyHtoD_v2",
    "cuMemsetD32Async",
    "cuMemsetD8Async",
    "cuModuleGetFunction",
    "cuModuleLoadData",
    "cuModuleUnload",
    "cuOccupancyMaxActiveBlocksPerMultiprocessor",
    "cuStreamCreate",
    "cuStreamDestroy_v2",
    "cuStreamQuery",
    "cuStreamSynchronize",
    "cuStreamWaitEvent",
    "cuTensorMapEncodeTiled",
];

/// The CUDA version from which cubins made by NVRTC 13 load (driver 580).
pub const MIN_CUDA_FOR_NVRTC_13: CudaVersion = CudaVersion { major: 13, minor: 0 };

/// A CUDA version, such as 13.0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct CudaVersion {
    /// Major version.
    pub major: u32,
    /// Minor version.
    pub minor: u32,
}

impl fmt::Display for CudaVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// Proof that the driver was found whole and started. Cheap to copy; every other object starts from it.
#[derive(Debug, Clone, Copy)]
pub struct Driver {
    version: CudaVersion,
}

impl Driver {
    /// Looks for `libcuda` and for every function this crate calls, without starting the driver.
    ///
    /// # Errors
    /// [`Error::NoDriver`], [`Error::DriverTooOld`].
    pub fn probe() -> Result<()> {
        // The names cudarc itself will try, in its order, so that both find the same file.
        let names = cudarc::get_lib_name_candidates("cuda");
        let mut detail = String::from("the dynamic loader knows none of its names");
        for name in &names {
            // SAFETY: loading libcuda runs its initialisers; it is the driver this process is about to use.
            match unsafe { libloading::Library::new(name) } {
                Ok(library) => {
                    let missing = SYMBOLS.iter().find(|symbol| {
                        // SAFETY: the symbol is only looked up, never called through this type.
                        unsafe { library.get::<unsafe extern "C" fn()>(symbol.as_bytes()) }.is_err()
                    });
                    // libcuda does not survive being unloaded and loaded again in one process.
                    std::mem::forget(library);
                    return missing.map_or(Ok(()), |symbol| Err(Error::DriverTooOld { symbol }));
                }
                Err(error) if name.ends_with("libcuda.so.1") => detail = loader_reason(&error),
                Err(_) => {}
            }
        }
        Err(Error::NoDriver { detail })
    }

    /// Probes and starts the driver, once per process; later calls return the first call's answer.
    ///
    /// # Errors
    /// As [`Driver::probe`]; [`Error::NoDevice`]; [`Error::Cuda`] from `cuInit`.
    pub fn init() -> Result<Driver> {
        static STATE: OnceLock<Result<Driver>> = OnceLock::new();
        STATE
            .get_or_init(|| {
                Self::probe()?;
                // SAFETY: probed above; the flags must be 0.
                let started = unsafe { call!(cuInit(0)) };
                if started.1 == cu::CUresult::CUDA_ERROR_NO_DEVICE {
                    return Err(Error::NoDevice);
                }
                check(started)?;
                let mut raw = 0;
                // SAFETY: writes one integer.
                check(unsafe { call!(cuDriverGetVersion(&mut raw)) })?;
                let raw = raw.unsigned_abs();
                Ok(Driver { version: CudaVersion { major: raw / 1000, minor: raw % 1000 / 10 } })
            })
            .clone()
    }

    /// The newest CUDA version this driver supports (13.0 for driver 580).
    pub fn cuda_version(self) -> CudaVersion {
        self.version
    }

    /// The driver's release, such as `580.95.05`, where the kernel says so.
    pub fn release(self) -> Option<String> {
        parse_release(&std::fs::read_to_string("/proc/driver/nvidia/version").ok()?)
    }

    /// How many GPUs this process may use.
    ///
    /// # Errors
    /// [`Error::Cuda`].
    pub fn device_count(self) -> Result<usize> {
        let mut count = 0;
        // SAFETY: writes one integer; the driver is started.
        check(unsafe { call!(cuDeviceGetCount(&mut count)) })?;
        Ok(usize::try_from(count).unwrap_or(0))
    }

    /// Describes one GPU.
    ///
    /// # Errors
    /// [`Error::NoDevice`], [`Error::NoSuchDevice`], [`Error::Cuda`].
    pub fn device(self, ordinal: usize) -> Result<Device> {
        let count = self.device_count()?;
        if count == 0 {
            return Err(Error::NoDevice);
        }
        let index = i32::try_from(ordinal).ok().filter(|_| ordinal < count);
        let index = index.ok_or(Error::NoSuchDevice { ordinal, count })?;
        let mut raw = 0;
        // SAFETY: writes one device handle.
        check(unsafe { call!(cuDeviceGet(&mut raw, index)) })?;

        let mut name = [0u8; 256];
        // SAFETY: writes at most 255 bytes and a NUL into `name`.
        check(unsafe { call!(cuDeviceGetName(name.as_mut_ptr().cast(), 255, raw)) })?;
        let name =
            String::from_utf8_lossy(name.split(|&byte| byte == 0).next().unwrap_or_default()).into_owned();

        let mut memory_bytes = 0;
        // SAFETY: writes one size.
        check(unsafe { call!(cuDeviceTotalMem_v2(&mut memory_bytes, raw)) })?;

        let attribute = |which: Attribute| -> Result<u32> {
            let mut value = 0;
            // SAFETY: writes one integer.
            check(unsafe { call!(cuDeviceGetAttribute(&mut value, which, raw)) })?;
            Ok(u32::try_from(value).unwrap_or(0))
        };
        Ok(Device {
            raw,
            ordinal,
            name,
            compute_major: attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            compute_minor: attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
            sm_count: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            memory_bytes: memory_bytes as u64,
            shared_per_block_optin: attribute(
                Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN,
            )?,
            shared_per_sm: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR)?,
            registers_per_sm: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_MULTIPROCESSOR)?,
            threads_per_sm: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR)?,
            l2_bytes: attribute(Attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)?,
        })
    }

    /// Describes every GPU.
    ///
    /// # Errors
    /// [`Error::Cuda`].
    pub fn devices(self) -> Result<Vec<Device>> {
        (0..self.device_count()?).map(|ordinal| self.device(ordinal)).collect()
    }
}

/// One GPU, as the driver describes it. Only [`Driver::device`] makes one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Device {
    #[serde(skip)]
    pub(super) raw: cu::CUdevice,
    /// Its place in this process's list.
    pub ordinal: usize,
    /// Product name.
    pub name: String,
    /// Compute capability, major part (9 for Hopper).
    pub compute_major: u32,
    /// Compute capability, minor part.
    pub compute_minor: u32,
    /// Streaming multiprocessors.
    pub sm_count: u32,
    /// Memory in bytes; what is free is in [`super::context::Context::memory`].
    pub memory_bytes: u64,
    /// Most shared memory one block may ask for, in bytes (static and dynamic together).
    pub shared_per_block_optin: u32,
    /// Shared memory of one SM, in bytes.
    pub shared_per_sm: u32,
    /// 32-bit registers of one SM.
    pub registers_per_sm: u32,
    /// Most resident threads of one SM.
    pub threads_per_sm: u32,
    /// L2 cache in bytes.
    pub l2_bytes: u32,
}

impl Device {
    /// The architecture in its portable form, such as `sm_90`.
    pub fn arch(&self) -> String {
        format!("sm_{}{}", self.compute_major, self.compute_minor)
    }

    /// The architecture with its own instructions (wgmma, tcgen05), such as `sm_90a`; `sm_89` and older have none.
    pub fn specific_arch(&self) -> String {
        format!("{}{}", self.arch(), if self.compute_major >= 9 { "a" } else { "" })
    }
}

/// The release in the text of `/proc/driver/nvidia/version`.
fn parse_release(text: &str) -> Option<String> {
    let line = text.lines().find(|line| line.starts_with("NVRM version"))?;
    let is_release = |word: &&str| {
        word.split('.').count() >= 2
            && word.split('.').all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()))
    };
    line.split_whitespace().find(is_release).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every `cuXxx(` in the sources of `sys` is probed for, and nothing else.
    #[test]
    fn the_symbol_list_matches_the_calls() {
        let sources = [
            include_str!("mod.rs"),
            include_str!("context.rs"),
            include_str!("driver.rs"),
            include_str!("graph.rs"),
            include_str!("graph_nodes.rs"),
            include_str!("memory.rs"),
            include_str!("module.rs"),
            include_str!("stream.rs"),
            include_str!("tensor_map.rs"),
        ];
        let mut called = std::collections::BTreeSet::new();
        for source in sources {
            let code = source.lines().filter(|line| !line.trim_start().starts_with("//"));
            for line in code {
                let mut rest = line;
                while let Some(open) = rest.find('(') {
                    let head = &rest[..open];
                    let start = head.rfind(|c: char| !c.is_alphanumeric() && c != '_').map_or(0, |at| at + 1);
                    let word = &head[start..];
                    if word.starts_with("cu") && word.as_bytes().get(2).is_some_and(u8::is_ascii_uppercase) {
                        called.insert(word.to_owned());
                    }
                    rest = &rest[open + 1..];
                }
            }
        }
        let listed: std::collections::BTreeSet<String> =
            SYMBOLS.iter().map(|&symbol| symbol.to_owned()).collect();
        called.remove("cuXxx");
        assert_eq!(called, listed);
    }

    #[test]
    fn release_is_read_from_both_kernel_modules() {
        let closed =
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 2024\nGCC version: 12.2";
        let open = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build";
        assert_eq!(parse_release(closed).as_deref(), Some("550.54.15"));
        assert_eq!(parse_release(open).as_deref(), Some("580.95.05"));
        assert_eq!(parse_release("nothing"), None);
    }
}
