//! What of driver, GPU, NVRTC and cache is there, and what to do about the rest: the facts behind `weft doctor`.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::cache::{Cache, CacheSize};
use crate::error::{Error, REMEDY_DRIVER, REMEDY_NVRTC, Result};
use crate::nvrtc::Nvrtc;
use crate::sys::driver::{CudaVersion, Device, Driver, MIN_CUDA_FOR_NVRTC_13};

/// Whether a part is usable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// There and usable.
    Ok,
    /// Absent, or there and not usable.
    Missing,
}

/// One part, in words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// `driver`, `gpu`, `nvrtc`, `cubins` or `cache`.
    pub part: &'static str,
    /// Whether it is usable.
    pub status: Status,
    /// What was found, or why nothing was.
    pub detail: String,
    /// What to do about it; `None` when it is usable.
    pub remedy: Option<String>,
}

/// The driver.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DriverInfo {
    /// The newest CUDA version it supports.
    pub cuda: CudaVersion,
    /// Its release, such as `580.95.05`, where the kernel says so.
    pub release: Option<String>,
    /// Whether it loads cubins made by NVRTC 13 (driver 580 or newer).
    pub loads_nvrtc_13: bool,
}

/// NVRTC.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NvrtcInfo {
    /// Its version.
    pub version: CudaVersion,
    /// Where it was found.
    pub path: PathBuf,
    /// The compute capabilities it compiles for: 90 for `sm_90`.
    pub archs: Vec<u32>,
}

/// The compiled-code cache.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CacheInfo {
    /// Its folder.
    pub folder: PathBuf,
    /// Its files and their bytes.
    pub size: CacheSize,
}

/// Everything there is, for a table ([`fmt::Display`]) or JSON (serde).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// One line a part.
    pub checks: Vec<Check>,
    /// The driver, when there is one.
    pub driver: Option<DriverInfo>,
    /// The GPUs this process may use.
    pub gpus: Vec<Device>,
    /// NVRTC, when there is one.
    pub nvrtc: Option<NvrtcInfo>,
    /// The cache, when it can be used.
    pub cache: Option<CacheInfo>,
}

impl Report {
    /// Looks at everything. `nvrtc_dirs` as for [`Nvrtc::load`], `cache_folder` as for [`Cache::open`]. Makes the
    /// cache folder if it is absent; starts the driver but no GPU context.
    pub fn gather(nvrtc_dirs: &[PathBuf], cache_folder: Option<&Path>) -> Report {
        let mut report =
            Report { checks: Vec::new(), driver: None, gpus: Vec::new(), nvrtc: None, cache: None };
        report.look_at_driver();
        report.look_at_nvrtc(nvrtc_dirs);
        report.look_at_cubins();
        report.look_at_cache(cache_folder);
        report
    }

    /// True when plans can be compiled to machine code here.
    pub fn can_compile(&self) -> bool {
        self.nvrtc.is_some()
    }

    /// True when plans can run on a GPU here.
    pub fn can_run(&self) -> bool {
        self.checks.iter().all(|check| check.status == Status::Ok || check.part == "cache")
    }

    fn look_at_driver(&mut self) {
        match Driver::init() {
            Ok(driver) => {
                let cuda = driver.cuda_version();
                let info = DriverInfo {
                    cuda,
                    release: driver.release(),
                    loads_nvrtc_13: cuda >= MIN_CUDA_FOR_NVRTC_13,
                };
                let release = info.release.as_deref().unwrap_or("of unknown release");
                self.ok("driver", format!("{release}, CUDA {cuda}"));
                self.driver = Some(info);
                match driver.devices() {
                    Ok(gpus) if gpus.is_empty() => self.missing("gpu", &Error::NoDevice, ""),
                    Ok(gpus) => {
                        for gpu in &gpus {
                            self.ok("gpu", describe(gpu));
                        }
                        self.gpus = gpus;
                    }
                    Err(error) => self.missing("gpu", &error, "check nvidia-smi"),
                }
            }
            Err(error @ Error::NoDevice) => {
                self.ok("driver", "present".into());
                self.missing(
                    "gpu",
                    &error,
                    "check nvidia-smi and CUDA_VISIBLE_DEVICES, or run with --device cpu",
                );
            }
            Err(error) => {
                self.missing("driver", &error, REMEDY_DRIVER);
                self.push(
                    "gpu",
                    Status::Missing,
                    "cannot be looked for without a driver".into(),
                    Some(REMEDY_DRIVER),
                );
            }
        }
    }

    fn look_at_nvrtc(&mut self, dirs: &[PathBuf]) {
        match Nvrtc::load(dirs) {
            Ok(nvrtc) => {
                let archs: Vec<String> =
                    nvrtc.supported_archs().iter().map(|arch| format!("sm_{arch}")).collect();
                let place = nvrtc.path().display();
                self.ok("nvrtc", format!("{} at {place}, for {}", nvrtc.version(), archs.join(" ")));
                self.nvrtc = Some(NvrtcInfo {
                    version: nvrtc.version(),
                    path: nvrtc.path().to_owned(),
                    archs: nvrtc.supported_archs().to_vec(),
                });
            }
            Err(Error::NvrtcNotFound { tried }) => {
                let detail = format!("libnvrtc not found; looked at: {}", tried.join("; "));
                self.push("nvrtc", Status::Missing, detail, Some(REMEDY_NVRTC));
            }
            Err(error) => self.missing("nvrtc", &error, REMEDY_NVRTC),
        }
    }

    /// Whether what NVRTC makes loads in this driver, for these GPUs.
    fn look_at_cubins(&mut self) {
        let (Some(driver), Some(nvrtc)) = (&self.driver, &self.nvrtc) else { return };
        if driver.cuda.major < nvrtc.version.major {
            let detail = format!(
                "NVRTC {} makes cubins that a CUDA {} driver cannot load",
                nvrtc.version, driver.cuda
            );
            let remedy = if nvrtc.version.major >= 13 {
                "update the NVIDIA driver to 580 or newer, or use NVRTC 12: pip install nvidia-cuda-nvrtc-cu12"
            } else {
                "update the NVIDIA driver"
            };
            return self.push("cubins", Status::Missing, detail, Some(remedy));
        }
        let unknown =
            self.gpus.iter().find(|gpu| !nvrtc.archs.contains(&(gpu.compute_major * 10 + gpu.compute_minor)));
        if let Some(gpu) = unknown {
            let detail =
                format!("NVRTC {} does not compile for {} ({})", nvrtc.version, gpu.arch(), gpu.name);
            return self.push(
                "cubins",
                Status::Missing,
                detail,
                Some("use an NVRTC that lists this architecture"),
            );
        }
        self.ok(
            "cubins",
            format!("NVRTC {} cubins load in this driver (CUDA {})", nvrtc.version, driver.cuda),
        );
    }

    fn look_at_cache(&mut self, folder: Option<&Path>) {
        let look = || -> Result<CacheInfo> {
            let cache = Cache::open(folder)?;
            cache.check_writable()?;
            Ok(CacheInfo { folder: cache.folder().to_owned(), size: cache.size()? })
        };
        match look() {
            Ok(info) => {
                let CacheSize { entries, bytes } = info.size;
                self.ok(
                    "cache",
                    format!("{}: {entries} entries, {} KiB", info.folder.display(), bytes.div_ceil(1024)),
                );
                self.cache = Some(info);
            }
            Err(error) => self.missing("cache", &error, "set WEFT_CACHE_DIR to a folder that can be written"),
        }
    }

    fn ok(&mut self, part: &'static str, detail: String) {
        self.push(part, Status::Ok, detail, None);
    }

    fn missing(&mut self, part: &'static str, error: &Error, remedy: &str) {
        // Errors end with their remedy where they know one: it is said once, in its own place.
        let text = error.to_string();
        let detail = text.strip_suffix(remedy).unwrap_or(&text).trim_end_matches([';', ' ']).to_owned();
        let remedy = if remedy.is_empty() { "check nvidia-smi and CUDA_VISIBLE_DEVICES" } else { remedy };
        self.push(part, Status::Missing, detail, Some(remedy));
    }

    fn push(&mut self, part: &'static str, status: Status, detail: String, remedy: Option<&str>) {
        self.checks.push(Check { part, status, detail, remedy: remedy.map(str::to_owned) });
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for check in &self.checks {
            let status = match check.status {
                Status::Ok => "ok",
                Status::Missing => "missing",
            };
            writeln!(f, "{:<7} {status:<8} {}", check.part, check.detail)?;
            if let Some(remedy) = &check.remedy {
                writeln!(f, "{:<16} -> {remedy}", "")?;
            }
        }
        Ok(())
    }
}

fn describe(gpu: &Device) -> String {
    format!(
        "{}: {}, {}, {} SMs, {:.1} GiB, {} KiB shared memory a block, {} MiB L2",
        gpu.ordinal,
        gpu.name,
        gpu.arch(),
        gpu.sm_count,
        gpu.memory_bytes as f64 / (1u64 << 30) as f64,
        gpu.shared_per_block_optin / 1024,
        gpu.l2_bytes >> 20,
    )
}
