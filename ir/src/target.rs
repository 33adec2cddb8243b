//! Targets (GPU families and their features) and device profiles (one GPU's figures).
//!
//! Code is specialised by feature, never by comparing architecture numbers in place.

use serde::{Deserialize, Serialize};

/// What a GPU family can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Features {
    /// `cp.async` copies to shared memory.
    pub cp_async: bool,
    /// `mma.sync` m16n8k16 on f16 and bf16.
    pub mma_sync: bool,
    /// Programmatic dependent launch (`griddepcontrol`).
    pub programmatic_launch: bool,
    /// Warpgroup `wgmma`.
    pub wgmma: bool,
    /// Bulk tensor copies (`cp.async.bulk.tensor`) and `mbarrier` transactions.
    pub tma: bool,
    /// Thread-block clusters.
    pub clusters: bool,
    /// fp8 tensor cores.
    pub fp8: bool,
    /// `tcgen05` tensor memory.
    pub tcgen05: bool,
}

/// A GPU family. Figures: CUDA C++ Programming Guide 13.0, "Compute Capabilities".
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Target {
    /// Name on the command line: `sm_90`.
    pub name: &'static str,
    /// Architecture given to NVRTC, architecture-specific features included: `sm_90a`.
    pub nvrtc_arch: &'static str,
    /// Compute capability.
    pub capability: (u32, u32),
    /// Largest shared memory of a block in bytes (opt-in).
    pub shared_bytes: u32,
    /// 32-bit registers of an SM.
    pub registers: u32,
    /// Threads that an SM holds.
    pub threads: u32,
    /// Longest row of a 16-bit matrix product that one block makes whole, in columns: with 16 rows, a quarter of
    /// the registers of its threads are accumulators.
    pub row_columns: u32,
    /// Most bytes of the right operand of such a product. Tall tiles share it as well as plain tiles do; in a small
    /// step a block reads it alone, 64 bytes a clock from L2: about 10 µs for these, 6 more than many blocks and the
    /// kernel that is saved take. Estimated, not measured.
    pub row_bytes: u32,
    /// Features.
    pub features: Features,
    /// Figures of a common GPU of this family, used when no device is named.
    pub profile: DeviceProfile,
}

/// Figures of one GPU.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DeviceProfile {
    /// Name as in `nvidia-smi`, without the vendor.
    pub name: &'static str,
    /// Multiprocessors.
    pub sms: u32,
    /// Memory bandwidth, bytes a second.
    pub bandwidth: f64,
    /// Dense 16-bit tensor-core rate, FLOP a second.
    pub tensor_flops: f64,
    /// f32 rate outside tensor cores, FLOP a second.
    pub f32_flops: f64,
    /// Cost of a launch inside a CUDA graph, seconds.
    pub launch: f64,
    /// Device memory, bytes.
    pub memory: u64,
}

const AMPERE: Features = Features {
    cp_async: true,
    mma_sync: true,
    programmatic_launch: false,
    wgmma: false,
    tma: false,
    clusters: false,
    fp8: false,
    tcgen05: false,
};
const ADA: Features = Features { fp8: true, ..AMPERE };
const HOPPER: Features =
    Features { programmatic_launch: true, wgmma: true, tma: true, clusters: true, ..ADA };
const BLACKWELL: Features = Features { wgmma: false, tcgen05: true, ..HOPPER };
const BLACKWELL_CONSUMER: Features = Features { wgmma: false, tcgen05: false, ..HOPPER };

const GIB: u64 = 1 << 30;

const fn profile(
    name: &'static str,
    sms: u32,
    bandwidth: f64,
    tensor_flops: f64,
    f32_flops: f64,
    launch: f64,
    memory: u64,
) -> DeviceProfile {
    DeviceProfile { name, sms, bandwidth, tensor_flops, f32_flops, launch, memory }
}

/// Device profiles by name. Vendor datasheets; the H200's bandwidth, rate and launch cost are measured
/// (`docs/performance.md`).
pub const PROFILES: &[(&str, DeviceProfile)] = &[
    ("sm_80", profile("A100", 108, 2.0e12, 312e12, 19.5e12, 1.6e-6, 80 * GIB)),
    ("sm_86", profile("RTX 3090", 82, 0.936e12, 71e12, 35.6e12, 1.6e-6, 24 * GIB)),
    ("sm_89", profile("RTX 4090", 128, 1.008e12, 165e12, 82.6e12, 1.4e-6, 24 * GIB)),
    ("sm_90", profile("H200", 132, 4.5e12, 777e12, 60e12, 0.78e-6, 139 * GIB)),
    ("sm_90", profile("H100", 132, 3.1e12, 777e12, 60e12, 0.78e-6, 80 * GIB)),
    ("sm_90", profile("GH200", 132, 3.7e12, 777e12, 60e12, 0.78e-6, 96 * GIB)),
    ("sm_100", profile("B200", 148, 7.2e12, 2250e12, 75e12, 0.8e-6, 180 * GIB)),
    ("sm_120", profile("RTX 5090", 170, 1.79e12, 210e12, 105e12, 1.0e-6, 32 * GIB)),
];

/// Known targets.
pub const TARGETS: &[Target] = &[
    Target {
        name: "sm_80",
        nvrtc_arch: "sm_80",
        capability: (8, 0),
        shared_bytes: 163 * 1024,
        registers: 65536,
        threads: 2048,
        row_columns: 512,
        row_bytes: 1280 * 1024,
        features: AMPERE,
        profile: PROFILES[0].1,
    },
    Target {
        name: "sm_86",
        nvrtc_arch: "sm_86",
        capability: (8, 6),
        shared_bytes: 99 * 1024,
        registers: 65536,
        threads: 1536,
        row_columns: 512,
        row_bytes: 1280 * 1024,
        features: AMPERE,
        profile: PROFILES[1].1,
    },
    Target {
        name: "sm_89",
        nvrtc_arch: "sm_89",
        capability: (8, 9),
        shared_bytes: 99 * 1024,
        registers: 65536,
        threads: 1536,
        row_columns: 512,
        row_bytes: 1280 * 1024,
        features: ADA,
        profile: PROFILES[2].1,
    },
    Target {
        name: "sm_90",
        nvrtc_arch: "sm_90a",
        capability: (9, 0),
        shared_bytes: 227 * 1024,
        registers: 65536,
        threads: 2048,
        row_columns: 512,
        row_bytes: 1280 * 1024,
        features: HOPPER,
        profile: PROFILES[3].1,
    },
    Target {
        name: "sm_100",
        nvrtc_arch: "sm_100a",
        capability: (10, 0),
        shared_bytes: 227 * 1024,
        registers: 65536,
        threads: 2048,
        row_columns: 512,
        row_bytes: 1280 * 1024,
        features: BLACKWELL,
        profile: PROFILES[6].1,
    },
    Target {
        name: "sm_120",
        nvrtc_arch: "sm_120a",
        capability: (12, 0),
        shared_bytes: 99 * 1024,
        registers: 65536,
        threads: 1536,
        row_columns: 512,
        row_bytes: 1280 * 1024,
        features: BLACKWELL_CONSUMER,
        profile: PROFILES[7].1,
    },
];

impl Target {
    /// The target of this name (`sm_90`; `sm_90a` names the same), or an error that lists the known ones.
    pub fn parse(name: &str) -> Result<&'static Target, String> {
        TARGETS.iter().find(|t| t.name == name || t.nvrtc_arch == name).ok_or_else(|| {
            let known: Vec<&str> = TARGETS.iter().map(|t| t.name).collect();
            format!("unknown target '{name}'; known targets: {}", known.join(", "))
        })
    }

    /// The target that runs on a GPU of this compute capability.
    pub fn for_capability(major: u32, minor: u32) -> Option<&'static Target> {
        TARGETS.iter().find(|t| t.capability == (major, minor))
    }
}
