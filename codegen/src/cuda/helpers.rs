//! Device helpers, emitted on demand: storage types, conversions and one function an intrinsic.

use super::cluster::{await_bytes, cluster_address, cluster_barrier, expect_bytes, send};
use super::{rings, wgmma};
use weft_ir::dtype::DType;
use weft_ir::kernel::MatrixCount;

/// A device helper. The order is the order of emission: a helper needs only earlier ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Helper {
    Bf16,
    F16,
    Bf16ToFloat,
    FloatToBf16,
    F16ToFloat,
    FloatToF16,
    PackBf16,
    PackF16,
    Exp2Approx,
    LoadOnce4,
    LoadOnce8,
    LoadOnce16,
    PrefetchL2,
    SharedAddress,
    LdMatrixX1,
    LdMatrixX1Trans,
    LdMatrixX2,
    LdMatrixX2Trans,
    LdMatrixX4,
    LdMatrixX4Trans,
    MmaBf16,
    MmaF16,
    CopyAsync4,
    CopyAsync8,
    CopyAsync16,
    CopyAsyncOrZero4,
    CopyAsyncOrZero8,
    CopyAsyncOrZero16,
    CopyAsyncCommit,
    CopyAsyncWait,
    GridDependencyWait,
    GridDependencyLaunch,
    LastBlock,
    SetCondition,
    ClusterBarrier,
    ExpectBytes,
    ClusterAddress,
    Send4,
    Send8,
    Send16,
    AwaitBytes,
    WgmmaDescriptor,
    Wgmma64Bf16,
    Wgmma64F16,
    Wgmma128Bf16,
    Wgmma128F16,
    Wgmma192Bf16,
    Wgmma192F16,
    Wgmma256Bf16,
    Wgmma256F16,
    WgmmaFence,
    WgmmaCommit,
    WgmmaWait,
    AsyncProxyFence,
    TensorMap,
    MakeRing,
    BeginFilling,
    CopyTile,
    AwaitStage,
}

impl Helper {
    /// Every helper, in order.
    pub(super) const ALL: [Helper; 59] = [
        Helper::Bf16,
        Helper::F16,
        Helper::Bf16ToFloat,
        Helper::FloatToBf16,
        Helper::F16ToFloat,
        Helper::FloatToF16,
        Helper::PackBf16,
        Helper::PackF16,
        Helper::Exp2Approx,
        Helper::LoadOnce4,
        Helper::LoadOnce8,
        Helper::LoadOnce16,
        Helper::PrefetchL2,
        Helper::SharedAddress,
        Helper::LdMatrixX1,
        Helper::LdMatrixX1Trans,
        Helper::LdMatrixX2,
        Helper::LdMatrixX2Trans,
        Helper::LdMatrixX4,
        Helper::LdMatrixX4Trans,
        Helper::MmaBf16,
        Helper::MmaF16,
        Helper::CopyAsync4,
        Helper::CopyAsync8,
        Helper::CopyAsync16,
        Helper::CopyAsyncOrZero4,
        Helper::CopyAsyncOrZero8,
        Helper::CopyAsyncOrZero16,
        Helper::CopyAsyncCommit,
        Helper::CopyAsyncWait,
        Helper::GridDependencyWait,
        Helper::GridDependencyLaunch,
        Helper::LastBlock,
        Helper::SetCondition,
        Helper::ClusterBarrier,
        Helper::ExpectBytes,
        Helper::ClusterAddress,
        Helper::Send4,
        Helper::Send8,
        Helper::Send16,
        Helper::AwaitBytes,
        Helper::WgmmaDescriptor,
        Helper::Wgmma64Bf16,
        Helper::Wgmma64F16,
        Helper::Wgmma128Bf16,
        Helper::Wgmma128F16,
        Helper::Wgmma192Bf16,
        Helper::Wgmma192F16,
        Helper::Wgmma256Bf16,
        Helper::Wgmma256F16,
        Helper::WgmmaFence,
        Helper::WgmmaCommit,
        Helper::WgmmaWait,
        Helper::AsyncProxyFence,
        Helper::TensorMap,
        Helper::MakeRing,
        Helper::BeginFilling,
        Helper::CopyTile,
        Helper::AwaitStage,
    ];

    /// The storage type of a 16-bit float, if it is one.
    pub(super) fn storage(dtype: DType) -> Option<Helper> {
        match dtype {
            DType::BF16 => Some(Helper::Bf16),
            DType::F16 => Some(Helper::F16),
            DType::F32 | DType::I64 | DType::I32 | DType::U32 | DType::Bool => None,
        }
    }

    /// The `ldmatrix` of a shape.
    pub(super) fn ld_matrix(count: MatrixCount, transpose: bool) -> Helper {
        match (count, transpose) {
            (MatrixCount::X1, false) => Helper::LdMatrixX1,
            (MatrixCount::X1, true) => Helper::LdMatrixX1Trans,
            (MatrixCount::X2, false) => Helper::LdMatrixX2,
            (MatrixCount::X2, true) => Helper::LdMatrixX2Trans,
            (MatrixCount::X4, false) => Helper::LdMatrixX4,
            (MatrixCount::X4, true) => Helper::LdMatrixX4Trans,
        }
    }

    /// The `wgmma` of so many columns, if there is a helper for it.
    pub(super) fn wgmma(columns: u32, dtype: DType) -> Option<Helper> {
        match (columns, dtype) {
            (64, DType::BF16) => Some(Helper::Wgmma64Bf16),
            (64, DType::F16) => Some(Helper::Wgmma64F16),
            (128, DType::BF16) => Some(Helper::Wgmma128Bf16),
            (128, DType::F16) => Some(Helper::Wgmma128F16),
            (192, DType::BF16) => Some(Helper::Wgmma192Bf16),
            (192, DType::F16) => Some(Helper::Wgmma192F16),
            (256, DType::BF16) => Some(Helper::Wgmma256Bf16),
            (256, DType::F16) => Some(Helper::Wgmma256F16),
            _ => None,
        }
    }

    /// Helpers this one uses.
    pub(super) fn needs(self) -> &'static [Helper] {
        match self {
            Helper::Bf16ToFloat | Helper::FloatToBf16 => &[Helper::Bf16],
            Helper::F16ToFloat | Helper::FloatToF16 => &[Helper::F16],
            Helper::LdMatrixX1
            | Helper::LdMatrixX1Trans
            | Helper::LdMatrixX2
            | Helper::LdMatrixX2Trans
            | Helper::LdMatrixX4
            | Helper::LdMatrixX4Trans
            | Helper::CopyAsync4
            | Helper::CopyAsync8
            | Helper::CopyAsync16
            | Helper::CopyAsyncOrZero4
            | Helper::CopyAsyncOrZero8
            | Helper::CopyAsyncOrZero16
            | Helper::ExpectBytes
            | Helper::ClusterAddress
            | Helper::AwaitBytes
            | Helper::WgmmaDescriptor
            | Helper::MakeRing
            | Helper::BeginFilling
            | Helper::AwaitStage => &[Helper::SharedAddress],
            Helper::CopyTile => &[Helper::SharedAddress, Helper::TensorMap],
            Helper::Send4 | Helper::Send8 | Helper::Send16 => {
                &[Helper::SharedAddress, Helper::ClusterAddress]
            }
            Helper::Wgmma64Bf16
            | Helper::Wgmma64F16
            | Helper::Wgmma128Bf16
            | Helper::Wgmma128F16
            | Helper::Wgmma192Bf16
            | Helper::Wgmma192F16
            | Helper::Wgmma256Bf16
            | Helper::Wgmma256F16 => &[Helper::SharedAddress, Helper::WgmmaDescriptor],
            Helper::Bf16
            | Helper::F16
            | Helper::PackBf16
            | Helper::PackF16
            | Helper::Exp2Approx
            | Helper::LoadOnce4
            | Helper::LoadOnce8
            | Helper::LoadOnce16
            | Helper::PrefetchL2
            | Helper::SharedAddress
            | Helper::MmaBf16
            | Helper::MmaF16
            | Helper::CopyAsyncCommit
            | Helper::CopyAsyncWait
            | Helper::GridDependencyWait
            | Helper::GridDependencyLaunch
            | Helper::LastBlock
            | Helper::SetCondition
            | Helper::ClusterBarrier
            | Helper::WgmmaFence
            | Helper::WgmmaCommit
            | Helper::WgmmaWait
            | Helper::AsyncProxyFence
            | Helper::TensorMap => &[],
        }
    }

    /// Name in the text.
    pub(super) fn name(self) -> &'static str {
        match self {
            Helper::Bf16 => "bf16",
            Helper::F16 => "f16",
            Helper::Bf16ToFloat => "bf16_to_float",
            Helper::FloatToBf16 => "float_to_bf16",
            Helper::F16ToFloat => "f16_to_float",
            Helper::FloatToF16 => "float_to_f16",
            Helper::PackBf16 => "pack_bf16",
            Helper::PackF16 => "pack_f16",
            Helper::Exp2Approx => "exp2_approx",
            Helper::LoadOnce4 => "load_once_4",
            Helper::LoadOnce8 => "load_once_8",
            Helper::LoadOnce16 => "load_once_16",
            Helper::PrefetchL2 => "prefetch_l2",
            Helper::SharedAddress => "shared_address",
            Helper::LdMatrixX1 => "ldmatrix_x1",
            Helper::LdMatrixX1Trans => "ldmatrix_x1_trans",
            Helper::LdMatrixX2 => "ldmatrix_x2",
            Helper::LdMatrixX2Trans => "ldmatrix_x2_trans",
            Helper::LdMatrixX4 => "ldmatrix_x4",
            Helper::LdMatrixX4Trans => "ldmatrix_x4_trans",
            Helper::MmaBf16 => "mma_m16n8k16_bf16",
            Helper::MmaF16 => "mma_m16n8k16_f16",
            Helper::CopyAsync4 => "copy_async_4",
            Helper::CopyAsync8 => "copy_async_8",
            Helper::CopyAsync16 => "copy_async_16",
            Helper::CopyAsyncOrZero4 => "copy_async_or_zero_4",
            Helper::CopyAsyncOrZero8 => "copy_async_or_zero_8",
            Helper::CopyAsyncOrZero16 => "copy_async_or_zero_16",
            Helper::CopyAsyncCommit => "copy_async_commit",
            Helper::CopyAsyncWait => "copy_async_wait",
            Helper::GridDependencyWait => "grid_dependency_wait",
            Helper::GridDependencyLaunch => "grid_dependency_launch",
            Helper::LastBlock => "last_block",
            Helper::SetCondition => "cudaGraphSetConditional",
            Helper::ClusterBarrier => "cluster_barrier",
            Helper::ExpectBytes => "expect_bytes",
            Helper::ClusterAddress => "cluster_address",
            Helper::Send4 => "send_4",
            Helper::Send8 => "send_8",
            Helper::Send16 => "send_16",
            Helper::AwaitBytes => "await_bytes",
            Helper::WgmmaDescriptor => "wgmma_descriptor",
            Helper::Wgmma64Bf16 => "wgmma_m64n64k16_bf16",
            Helper::Wgmma64F16 => "wgmma_m64n64k16_f16",
            Helper::Wgmma128Bf16 => "wgmma_m64n128k16_bf16",
            Helper::Wgmma128F16 => "wgmma_m64n128k16_f16",
            Helper::Wgmma192Bf16 => "wgmma_m64n192k16_bf16",
            Helper::Wgmma192F16 => "wgmma_m64n192k16_f16",
            Helper::Wgmma256Bf16 => "wgmma_m64n256k16_bf16",
            Helper::Wgmma256F16 => "wgmma_m64n256k16_f16",
            Helper::WgmmaFence => "wgmma_fence",
            Helper::WgmmaCommit => "wgmma_commit",
            Helper::WgmmaWait => "wgmma_wait",
            Helper::AsyncProxyFence => "async_proxy_fence",
            Helper::TensorMap => "tensor_map",
            Helper::MakeRing => "make_ring",
            Helper::BeginFilling => "begin_filling",
            Helper::CopyTile => "copy_tile",
            Helper::AwaitStage => "await_stage",
        }
    }

    /// Definition, without a trailing newline.
    pub(super) fn source(self) -> String {
        let name = self.name();
        match self {
            Helper::Bf16 | Helper::F16 => format!("struct __align__(2) {name} {{ unsigned short bits; }};"),
            Helper::Bf16ToFloat => {
                function("float", name, "bf16 x", &["return __uint_as_float((unsigned)x.bits << 16);"])
            }
            Helper::F16ToFloat => function(
                "float",
                name,
                "f16 x",
                &["float y;", r#"asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));"#, "return y;"],
            ),
            Helper::FloatToBf16 => convert(name, "bf16"),
            Helper::FloatToF16 => convert(name, "f16"),
            Helper::PackBf16 => pack(name, "bf16x2"),
            Helper::PackF16 => pack(name, "f16x2"),
            Helper::Exp2Approx => function(
                "float",
                name,
                "float x",
                &["float y;", r#"asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));"#, "return y;"],
            ),
            Helper::LoadOnce4 => load_once(name, WORD),
            Helper::LoadOnce8 => load_once(name, TWO_WORDS),
            Helper::LoadOnce16 => load_once(name, FOUR_WORDS),
            Helper::PrefetchL2 => function(
                "void",
                name,
                "const void* p, unsigned bytes",
                &[
                    r#"asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;""#,
                    r#"             :: "l"(__cvta_generic_to_global(p)), "r"(bytes));"#,
                ],
            ),
            Helper::SharedAddress => function(
                "unsigned",
                name,
                "const void* p",
                &["return (unsigned)__cvta_generic_to_shared(p);"],
            ),
            Helper::LdMatrixX1 => ld_matrix(name, 1, ""),
            Helper::LdMatrixX1Trans => ld_matrix(name, 1, ".trans"),
            Helper::LdMatrixX2 => ld_matrix(name, 2, ""),
            Helper::LdMatrixX2Trans => ld_matrix(name, 2, ".trans"),
            Helper::LdMatrixX4 => ld_matrix(name, 4, ""),
            Helper::LdMatrixX4Trans => ld_matrix(name, 4, ".trans"),
            Helper::MmaBf16 => mma(name, "bf16"),
            Helper::MmaF16 => mma(name, "f16"),
            Helper::CopyAsync4 => copy(name, "ca", 4),
            Helper::CopyAsync8 => copy(name, "ca", 8),
            Helper::CopyAsync16 => copy(name, "cg", 16),
            Helper::CopyAsyncOrZero4 => copy_or_zero(name, "ca", 4),
            Helper::CopyAsyncOrZero8 => copy_or_zero(name, "ca", 8),
            Helper::CopyAsyncOrZero16 => copy_or_zero(name, "cg", 16),
            Helper::CopyAsyncCommit => instruction(name, "cp.async.commit_group"),
            Helper::CopyAsyncWait => format!(
                "template <int pending>\n{}",
                function(
                    "void",
                    name,
                    "",
                    &[r#"asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");"#]
                )
            ),
            Helper::GridDependencyWait => instruction(name, "griddepcontrol.wait"),
            Helper::GridDependencyLaunch => instruction(name, "griddepcontrol.launch_dependents"),
            Helper::LastBlock => last_block(name),
            // A function of the device runtime, which the compiler knows.
            Helper::SetCondition => {
                format!("extern \"C\" __device__ void {name}(unsigned long long condition, unsigned value);")
            }
            Helper::ClusterBarrier => cluster_barrier(name),
            Helper::ExpectBytes => expect_bytes(name),
            Helper::ClusterAddress => cluster_address(name),
            Helper::Send4 => send(name, WORD),
            Helper::Send8 => send(name, TWO_WORDS),
            Helper::Send16 => send(name, FOUR_WORDS),
            Helper::AwaitBytes => await_bytes(name),
            Helper::WgmmaDescriptor => wgmma::descriptor(name),
            Helper::Wgmma64Bf16 => wgmma::product(name, 64, "bf16"),
            Helper::Wgmma64F16 => wgmma::product(name, 64, "f16"),
            Helper::Wgmma128Bf16 => wgmma::product(name, 128, "bf16"),
            Helper::Wgmma128F16 => wgmma::product(name, 128, "f16"),
            Helper::Wgmma192Bf16 => wgmma::product(name, 192, "bf16"),
            Helper::Wgmma192F16 => wgmma::product(name, 192, "f16"),
            Helper::Wgmma256Bf16 => wgmma::product(name, 256, "bf16"),
            Helper::Wgmma256F16 => wgmma::product(name, 256, "f16"),
            Helper::WgmmaFence => instruction(name, "wgmma.fence.sync.aligned"),
            Helper::WgmmaCommit => instruction(name, "wgmma.commit_group.sync.aligned"),
            Helper::WgmmaWait => wgmma::wait(name),
            Helper::AsyncProxyFence => instruction(name, "fence.proxy.async.shared::cta"),
            Helper::TensorMap => rings::map(name),
            Helper::MakeRing => rings::make(name),
            Helper::BeginFilling => rings::begin(name),
            Helper::CopyTile => rings::copy(name, Helper::TensorMap.name()),
            Helper::AwaitStage => rings::wait(name),
        }
    }
}

pub(super) fn function(result: &str, name: &str, params: &str, body: &[&str]) -> String {
    let body: String = body.iter().map(|line| format!("    {line}\n")).collect();
    format!("__device__ __forceinline__ {result} {name}({params}) {{\n{body}}}")
}

fn instruction(name: &str, ptx: &str) -> String {
    function("void", name, "", &[&format!(r#"asm volatile("{ptx};" ::: "memory");"#)])
}

/// The barrier before makes the stores of all threads happen before the first thread's release, which is
/// cumulative; the barrier behind hands what that thread acquired to all others, with the answer.
fn last_block(name: &str) -> String {
    function(
        "bool",
        name,
        "unsigned* counter, unsigned expected",
        &[
            "unsigned before = 0;",
            "__syncthreads();",
            "if (threadIdx.x == 0) {",
            r#"    asm volatile("atom.acq_rel.gpu.global.inc.u32 %0, [%1], %2;""#,
            r#"                 : "=r"(before) : "l"(__cvta_generic_to_global(counter)), "r"(expected - 1) : "memory");"#,
            "}",
            "return __syncthreads_or(threadIdx.x == 0 && before == expected - 1);",
        ],
    )
}

fn convert(name: &str, to: &str) -> String {
    let asm = format!(r#"asm("cvt.rn.{to}.f32 %0, %1;" : "=h"(y.bits) : "f"(x));"#);
    function(to, name, "float x", &[&format!("{to} y;"), &asm, "return y;"])
}

fn pack(name: &str, to: &str) -> String {
    let asm = format!(r#"asm("cvt.rn.{to}.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));"#);
    function("unsigned", name, "float low, float high", &["unsigned y;", &asm, "return y;"])
}

/// A vector type, its suffix in PTX, and its fields.
pub(super) type Words = (&'static str, &'static str, &'static [&'static str]);

const WORD: Words = ("unsigned", "u32", &["value"]);
const TWO_WORDS: Words = ("uint2", "v2.u32", &["value.x", "value.y"]);
const FOUR_WORDS: Words = ("uint4", "v4.u32", &["value.x", "value.y", "value.z", "value.w"]);

fn load_once(name: &str, (result, shape, fields): Words) -> String {
    let registers: Vec<String> = (0..fields.len()).map(|i| format!("%{i}")).collect();
    let registers = match fields.len() {
        1 => registers.join(", "),
        _ => format!("{{{}}}", registers.join(", ")),
    };
    let outputs: Vec<String> = fields.iter().map(|f| format!(r#""=r"({f})"#)).collect();
    let first =
        format!(r#"asm volatile("ld.global.L1::no_allocate.{shape} {registers}, [%{}];""#, fields.len());
    let second = format!(r#"             : {} : "l"(__cvta_generic_to_global(p)));"#, outputs.join(", "));
    function(result, name, "const void* p", &[&format!("{result} value;"), &first, &second, "return value;"])
}

fn ld_matrix(name: &str, count: usize, suffix: &str) -> String {
    let registers: Vec<String> = (0..count).map(|i| format!("%{i}")).collect();
    let outputs: Vec<String> = (0..count).map(|i| format!(r#""=r"(d[{i}])"#)).collect();
    let first = format!(
        r#"asm volatile("ldmatrix.sync.aligned.m8n8.x{count}{suffix}.shared.b16 {{{}}}, [%{count}];""#,
        registers.join(", ")
    );
    let second = format!(r#"             : {} : "r"(shared_address(row)) : "memory");"#, outputs.join(", "));
    function("void", name, "unsigned* d, const void* row", &[&first, &second])
}

fn mma(name: &str, ty: &str) -> String {
    function(
        "void",
        name,
        "float* d, const unsigned* a, const unsigned* b",
        &[
            &format!(r#"asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.{ty}.{ty}.f32 ""#),
            r#"             "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};""#,
            r#"             : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])"#,
            r#"             : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));"#,
        ],
    )
}

fn copy(name: &str, cache: &str, bytes: u32) -> String {
    function(
        "void",
        name,
        "void* to, const void* from",
        &[
            &format!(r#"asm volatile("cp.async.{cache}.shared.global [%0], [%1], {bytes};""#),
            r#"             ::"r"(shared_address(to)), "l"(__cvta_generic_to_global(from)) : "memory");"#,
        ],
    )
}

fn copy_or_zero(name: &str, cache: &str, bytes: u32) -> String {
    function(
        "void",
        name,
        "void* to, const void* from, bool valid",
        &[
            &format!("const int size = valid ? {bytes} : 0;"),
            &format!(r#"asm volatile("cp.async.{cache}.shared.global [%0], [%1], {bytes}, %2;""#),
            r#"             ::"r"(shared_address(to)), "l"(__cvta_generic_to_global(from)), "r"(size)"#,
            r#"             : "memory");"#,
        ],
    )
}
