//! NVRTC: finding the library and compiling CUDA C to cubins with it. Needs no GPU and no driver.
//!
//! Search order, the first that loads wins:
//! 1. `WEFT_NVRTC` (the library or its folder); when set, nothing else is tried.
//! 2. The folders the caller passes (`.weft/nvrtc`).
//! 3. The system's names `libnvrtc.so.13`, `.so.12`, `libnvrtc.so`, so `LD_LIBRARY_PATH` and the loader's cache.
//! 4. `/usr/local/cuda*/lib64`, then the wheels in Python's `site-packages`.

use std::ffi::{CString, OsString};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::resources::LogReport;
use crate::sys::driver::CudaVersion;
use crate::sys::nvrtc::{ERROR_COMPILATION, Failure, Functions, Program, preload};

/// Names of the library inside a folder, newest first.
const NAMES: &[&str] = &["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"];

/// Options of every compilation to a cubin, after the architecture.
const BASE_OPTIONS: &[&str] = &["--std=c++17", "-default-device", "--ptxas-options=-v"];

/// NVRTC has a cache of its own from here on (where a driver is present), and what comes from it has no report of
/// ptxas in its log: it is turned off. [`crate::cache`] keeps the report.
const FIRST_WITH_OWN_CACHE: CudaVersion = CudaVersion { major: 12, minor: 9 };

/// A loaded NVRTC. May be shared by threads; each compilation is a program of its own.
pub struct Nvrtc {
    functions: Functions,
    path: PathBuf,
    version: CudaVersion,
    archs: Vec<u32>,
}

/// A compiled program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compiled {
    /// The machine code, an ELF file.
    pub cubin: Vec<u8>,
    /// What NVRTC and ptxas said, without compile times (so that equal input gives equal text).
    pub log: String,
    /// The log's figures for each kernel, and ptxas's warnings.
    pub report: LogReport,
}

impl Nvrtc {
    /// Finds and loads NVRTC; `extra_dirs` are searched after `WEFT_NVRTC` and before the system.
    ///
    /// # Errors
    /// [`Error::NvrtcNotFound`] with every place tried and the remedy.
    pub fn load(extra_dirs: &[PathBuf]) -> Result<Nvrtc> {
        Self::load_with(std::env::var_os("WEFT_NVRTC").filter(|value| !value.is_empty()), extra_dirs)
    }

    /// As [`Nvrtc::load`], with the value of `WEFT_NVRTC` given.
    ///
    /// # Errors
    /// As [`Nvrtc::load`].
    pub fn load_with(variable: Option<OsString>, extra_dirs: &[PathBuf]) -> Result<Nvrtc> {
        let mut tried = Vec::new();
        if let Some(value) = variable {
            let path = PathBuf::from(&value);
            let found =
                if path.is_dir() { Self::from_folder(&path, &mut tried) } else { attempt(&path, &mut tried) };
            return found.ok_or_else(|| Error::NvrtcNotFound {
                tried: tried.iter().map(|place| format!("WEFT_NVRTC: {place}")).collect(),
            });
        }
        for folder in extra_dirs {
            if let Some(found) = Self::from_folder(folder, &mut tried) {
                return Ok(found);
            }
        }
        for name in NAMES {
            if let Some(found) = attempt(Path::new(name), &mut tried) {
                return Ok(found);
            }
        }
        for folder in system_folders() {
            if let Some(found) = Self::from_folder(&folder, &mut tried) {
                return Ok(found);
            }
        }
        Err(Error::NvrtcNotFound { tried })
    }

    fn from_folder(folder: &Path, tried: &mut Vec<String>) -> Option<Nvrtc> {
        let present: Vec<PathBuf> =
            NAMES.iter().map(|name| folder.join(name)).filter(|path| path.exists()).collect();
        if present.is_empty() {
            tried.push(format!("{}: no libnvrtc there", folder.display()));
        }
        present.iter().find_map(|path| attempt(path, tried))
    }

    /// Loads one file, or a bare name through the system's search; the error is the reason.
    fn open(path: &Path) -> Result<Nvrtc, String> {
        // A toolkit's `stubs` folder holds libraries to link against; calling into one crashes.
        if path.parent().is_some_and(|folder| folder.ends_with("stubs")) {
            return Err("the toolkit's stub, which is no compiler".into());
        }
        // NVRTC opens its builtins by bare name: from a folder the loader does not know (a wheel's), that only
        // works when they are loaded already.
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            for builtins in builtins_in(folder) {
                preload(&builtins)?;
            }
        }
        let functions = Functions::load(path)?;
        let reason = |failure: Failure| format!("{}: {}", failure.call, functions.error_name(failure.code));
        let (major, minor) = functions.version().map_err(reason)?;
        let archs = functions.archs().map_err(reason)?;
        let path = if path.is_absolute() { path.to_owned() } else { loaded_path(path) };
        Ok(Nvrtc { functions, path, version: CudaVersion { major, minor }, archs })
    }

    /// Its version. From 13 on, its cubins need driver 580 or newer.
    pub fn version(&self) -> CudaVersion {
        self.version
    }

    /// Where it was found.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The compute capabilities it compiles for: 90 for `sm_90`.
    pub fn supported_archs(&self) -> &[u32] {
        &self.archs
    }

    /// The options a compilation for `arch` really gets from this version, in order; part of the cache's key.
    pub fn effective_options(version: CudaVersion, arch: &str, options: &[String]) -> Vec<String> {
        let mut all = vec![format!("--gpu-architecture={arch}")];
        all.extend(BASE_OPTIONS.iter().map(|&option| option.to_owned()));
        if version >= FIRST_WITH_OWN_CACHE {
            all.push("--no-cache".into());
        }
        all.extend_from_slice(options);
        all
    }

    /// Compiles source text to a cubin for an architecture such as `sm_90a`. There are no include paths. `name` is
    /// the kernel's, for the log and errors.
    ///
    /// # Errors
    /// [`Error::Compile`] with the log when the source is at fault; [`Error::Nvrtc`]; [`Error::BadArgument`] for
    /// NUL bytes or an architecture that does not begin with `sm_`.
    pub fn compile(&self, source: &str, name: &str, arch: &str, options: &[String]) -> Result<Compiled> {
        if !arch.starts_with("sm_") {
            return Err(Error::bad(
                format!("architecture `{arch}`"),
                "a cubin needs a real one, such as sm_90a",
            ));
        }
        let (program, log) =
            self.build(source, name, arch, &Self::effective_options(self.version, arch, options))?;
        let cubin = program.cubin().map_err(|failure| self.error(failure, name, log.clone()))?;
        let log = without_times(&log);
        let report = LogReport::parse(&log);
        Ok(Compiled { cubin, log, report })
    }

    /// Compiles source text to PTX for an architecture such as `sm_90a`.
    ///
    /// # Errors
    /// As [`Nvrtc::compile`].
    pub fn ptx(&self, source: &str, name: &str, arch: &str, options: &[String]) -> Result<String> {
        let virtual_arch = arch.replacen("sm_", "compute_", 1);
        let mut all = Self::effective_options(self.version, &virtual_arch, options);
        all.retain(|option| !option.starts_with("--ptxas-options"));
        let (program, log) = self.build(source, name, arch, &all)?;
        program.ptx().map_err(|failure| self.error(failure, name, log))
    }

    fn build(
        &self,
        source: &str,
        name: &str,
        arch: &str,
        options: &[String],
    ) -> Result<(Program<'_>, String)> {
        let c_string = |text: &str, what: &str| {
            CString::new(text).map_err(|_| Error::bad(format!("{what} of `{name}`"), "it holds a NUL byte"))
        };
        let c_source = c_string(source, "source")?;
        let c_name = c_string(&format!("{name}.cu"), "name")?;
        let c_options: Vec<CString> =
            options.iter().map(|option| c_string(option, "an option")).collect::<Result<_>>()?;
        let program = self
            .functions
            .program(&c_source, &c_name)
            .map_err(|failure| self.error(failure, name, String::new()))?;
        match program.compile(&c_options) {
            Ok(()) => {
                let log = program.log();
                Ok((program, log))
            }
            Err(failure) if failure.code == ERROR_COMPILATION => {
                Err(Error::Compile { kernel: name.to_owned(), arch: arch.to_owned(), log: program.log() })
            }
            Err(failure) => {
                let log = format!("{}\n  options: {}", program.log().trim_end(), options.join(" "));
                Err(self.error(failure, name, log))
            }
        }
    }

    fn error(&self, failure: Failure, kernel: &str, log: String) -> Error {
        let Failure { call, code } = failure;
        Error::Nvrtc {
            call,
            code,
            name: self.functions.error_name(code),
            kernel: Some(kernel.to_owned()),
            log,
        }
    }
}

impl std::fmt::Debug for Nvrtc {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Nvrtc")
            .field("path", &self.path)
            .field("version", &self.version)
            .finish_non_exhaustive()
    }
}

/// Loads a candidate, or notes why not.
fn attempt(path: &Path, tried: &mut Vec<String>) -> Option<Nvrtc> {
    match Nvrtc::open(path) {
        Ok(found) => Some(found),
        Err(reason) => {
            let place = path.display().to_string();
            // The loader's own words usually begin with the name.
            tried.push(if reason.starts_with(&place) { reason } else { format!("{place}: {reason}") });
            None
        }
    }
}

/// The builtins libraries in NVRTC's folder, without the `.alt` variant.
fn builtins_in(folder: &Path) -> Vec<PathBuf> {
    let is_builtins = |path: &Path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("libnvrtc-builtins.so.")
    };
    // Links to one file (`.so.13.0` to `.so.13.0.88`) load once.
    entries(folder).into_iter().filter(|path| is_builtins(path)).collect()
}

/// Folders of toolkits and of Python wheels, in a fixed order.
fn system_folders() -> Vec<PathBuf> {
    let mut folders = Vec::new();
    let mut toolkits: Vec<PathBuf> = entries(Path::new("/usr/local"));
    toolkits.retain(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("cuda")));
    for root in toolkits {
        folders.push(root.join("lib64"));
        folders.push(root.join("targets/x86_64-linux/lib"));
        folders.push(root.join("targets/sbsa-linux/lib"));
    }
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let home = variable("HOME").map(|home| home.join(".local"));
    let roots = [
        variable("VIRTUAL_ENV"),
        variable("CONDA_PREFIX"),
        home,
        Some("/usr/local".into()),
        Some("/usr".into()),
    ];
    for lib in roots.into_iter().flatten().map(|root| root.join("lib")) {
        let mut pythons = entries(&lib);
        pythons.retain(|path| {
            path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("python3"))
        });
        for python in pythons {
            for packages in ["site-packages", "dist-packages"] {
                for wheel in ["nvidia/cu13/lib", "nvidia/cuda_nvrtc/lib"] {
                    folders.push(python.join(packages).join(wheel));
                }
            }
        }
    }
    folders.retain(|folder| folder.is_dir());
    folders
}

/// A folder's entries in order of name; none if it cannot be read.
fn entries(folder: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect();
    paths.sort();
    paths
}

/// Where the loader found a bare name: the process's memory map says. The bare name when it does not.
fn loaded_path(name: &Path) -> PathBuf {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let found = maps.lines().filter_map(|line| line.find('/').map(|at| &line[at..])).find(|path| {
        let file = Path::new(path).file_name().unwrap_or_default().to_string_lossy();
        file.starts_with("libnvrtc.so")
    });
    found.map_or_else(|| name.to_owned(), PathBuf::from)
}

/// The log without ptxas's compile times.
fn without_times(log: &str) -> String {
    let kept: Vec<&str> = log.lines().filter(|line| !line.contains("Compile time = ")).collect();
    kept.join("\n").trim_end().to_owned()
}
