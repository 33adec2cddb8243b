//! NVRTC's C interface, loaded by path. [`crate::nvrtc`] is the part to use.
//!
//! cudarc's own NVRTC layer looks for the library by bare names only and cannot be told where it is, while ours
//! usually comes from a wheel's folder; so the few functions needed are looked up here, with results as plain
//! integers.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::Path;

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_LAZY, RTLD_LOCAL, RTLD_NOW};

use super::loader_reason;

type RawProgram = *mut c_void;
type ReadSize = unsafe extern "C" fn(RawProgram, *mut usize) -> c_int;
type ReadBytes = unsafe extern "C" fn(RawProgram, *mut c_char) -> c_int;

/// An error code of an NVRTC call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) call: &'static str,
    pub(crate) code: i32,
}

/// The code for a program that does not compile.
pub(crate) const ERROR_COMPILATION: i32 = 6;

/// The loaded library. It is never unloaded: it keeps state for the threads that used it.
pub(crate) struct Functions {
    version: unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int,
    error_string: unsafe extern "C" fn(c_int) -> *const c_char,
    num_archs: unsafe extern "C" fn(*mut c_int) -> c_int,
    archs: unsafe extern "C" fn(*mut c_int) -> c_int,
    create: unsafe extern "C" fn(
        *mut RawProgram,
        *const c_char,
        *const c_char,
        c_int,
        *const *const c_char,
        *const *const c_char,
    ) -> c_int,
    compile: unsafe extern "C" fn(RawProgram, c_int, *const *const c_char) -> c_int,
    destroy: unsafe extern "C" fn(*mut RawProgram) -> c_int,
    log_size: ReadSize,
    log: ReadBytes,
    cubin_size: ReadSize,
    cubin: ReadBytes,
    ptx_size: ReadSize,
    ptx: ReadBytes,
}

/// Loads a library for good, with its symbols visible to libraries loaded later.
pub(crate) fn preload(path: &Path) -> Result<(), String> {
    // SAFETY: the file is NVRTC's builtins library (the caller matched its name), whose initialisers are plain.
    let library = unsafe { Library::open(Some(path), RTLD_LAZY | RTLD_GLOBAL) }
        .map_err(|error| loader_reason(&error))?;
    std::mem::forget(library);
    Ok(())
}

impl Functions {
    /// Loads the library at a path, or by a bare name through the system's search, and looks its functions up.
    pub(crate) fn load(path: &Path) -> Result<Functions, String> {
        // SAFETY: the file is named as NVRTC (by the caller or the user); loading runs its initialisers.
        let library = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_LOCAL) }
            .map_err(|error| loader_reason(&error))?;
        macro_rules! symbol {
            ($name:literal) => {
                // SAFETY: the type of the field is the function's signature in nvrtc.h, unchanged from CUDA 11 to 13.
                *unsafe { library.get($name.as_bytes()) }
                    .map_err(|_| concat!("it has no ", $name, ": too old").to_owned())?
            };
        }
        let functions = Functions {
            version: symbol!("nvrtcVersion"),
            error_string: symbol!("nvrtcGetErrorString"),
            num_archs: symbol!("nvrtcGetNumSupportedArchs"),
            archs: symbol!("nvrtcGetSupportedArchs"),
            create: symbol!("nvrtcCreateProgram"),
            compile: symbol!("nvrtcCompileProgram"),
            destroy: symbol!("nvrtcDestroyProgram"),
            log_size: symbol!("nvrtcGetProgramLogSize"),
            log: symbol!("nvrtcGetProgramLog"),
            cubin_size: symbol!("nvrtcGetCUBINSize"),
            cubin: symbol!("nvrtcGetCUBIN"),
            ptx_size: symbol!("nvrtcGetPTXSize"),
            ptx: symbol!("nvrtcGetPTX"),
        };
        std::mem::forget(library);
        Ok(functions)
    }

    /// Major and minor version.
    pub(crate) fn version(&self) -> Result<(u32, u32), Failure> {
        let (mut major, mut minor) = (0, 0);
        // SAFETY: writes two integers.
        ok("nvrtcVersion", unsafe { (self.version)(&mut major, &mut minor) })?;
        Ok((major.unsigned_abs(), minor.unsigned_abs()))
    }

    /// The compute capabilities it compiles for: 90 for `sm_90`.
    pub(crate) fn archs(&self) -> Result<Vec<u32>, Failure> {
        let mut count = 0;
        // SAFETY: writes one integer.
        ok("nvrtcGetNumSupportedArchs", unsafe { (self.num_archs)(&mut count) })?;
        let mut archs = vec![0 as c_int; usize::try_from(count).unwrap_or(0)];
        // SAFETY: writes as many integers as it just announced.
        ok("nvrtcGetSupportedArchs", unsafe { (self.archs)(archs.as_mut_ptr()) })?;
        Ok(archs.into_iter().map(c_int::unsigned_abs).collect())
    }

    /// The name of an error code.
    pub(crate) fn error_name(&self, code: i32) -> String {
        // SAFETY: takes any integer; returns a static string.
        let name = unsafe { (self.error_string)(code) };
        if name.is_null() {
            return "unknown".into();
        }
        // SAFETY: a static NUL-terminated string.
        unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned()
    }

    /// Makes a program from source text; `name` is the file name in its log.
    pub(crate) fn program(&self, source: &CStr, name: &CStr) -> Result<Program<'_>, Failure> {
        let mut raw = std::ptr::null_mut();
        // SAFETY: both strings are NUL-terminated and copied; no headers are given.
        let code = unsafe {
            (self.create)(&mut raw, source.as_ptr(), name.as_ptr(), 0, std::ptr::null(), std::ptr::null())
        };
        ok("nvrtcCreateProgram", code)?;
        Ok(Program { raw, functions: self })
    }
}

/// One compilation. Programs are independent: several may compile at a time, each on one thread.
pub(crate) struct Program<'a> {
    raw: RawProgram,
    functions: &'a Functions,
}

impl Program<'_> {
    /// Compiles. After [`ERROR_COMPILATION`] the log says why.
    pub(crate) fn compile(&self, options: &[CString]) -> Result<(), Failure> {
        let pointers: Vec<*const c_char> = options.iter().map(|option| option.as_ptr()).collect();
        let count = c_int::try_from(pointers.len()).unwrap_or(c_int::MAX);
        // SAFETY: the program lives; the options are `count` NUL-terminated strings that outlive the call.
        ok("nvrtcCompileProgram", unsafe { (self.functions.compile)(self.raw, count, pointers.as_ptr()) })
    }

    /// The log, empty if there is none.
    pub(crate) fn log(&self) -> String {
        let text =
            self.read("nvrtcGetProgramLog", self.functions.log_size, self.functions.log).unwrap_or_default();
        c_text(text)
    }

    /// The machine code.
    pub(crate) fn cubin(&self) -> Result<Vec<u8>, Failure> {
        self.read("nvrtcGetCUBIN", self.functions.cubin_size, self.functions.cubin)
    }

    /// The PTX text.
    pub(crate) fn ptx(&self) -> Result<String, Failure> {
        Ok(c_text(self.read("nvrtcGetPTX", self.functions.ptx_size, self.functions.ptx)?))
    }

    fn read(&self, call: &'static str, size: ReadSize, read: ReadBytes) -> Result<Vec<u8>, Failure> {
        let mut len = 0;
        // SAFETY: the program lives; writes one size.
        ok(call, unsafe { size(self.raw, &mut len) })?;
        let mut bytes = vec![0u8; len];
        if len > 0 {
            // SAFETY: writes the `len` bytes just announced.
            ok(call, unsafe { read(self.raw, bytes.as_mut_ptr().cast()) })?;
        }
        Ok(bytes)
    }
}

impl Drop for Program<'_> {
    fn drop(&mut self) {
        // SAFETY: made in `program`, destroyed once.
        let _ = unsafe { (self.functions.destroy)(&mut self.raw) };
    }
}

/// Text without its final NUL.
fn c_text(mut bytes: Vec<u8>) -> String {
    while bytes.last() == Some(&0) {
        bytes.pop();
    }
    String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}

fn ok(call: &'static str, code: c_int) -> Result<(), Failure> {
    if code == 0 { Ok(()) } else { Err(Failure { call, code }) }
}
