//! Helpers of tiles that are copied in the background (PTX ISA, "cp.async.bulk.tensor", "mbarrier").

use super::helpers::function;

/// A tensor map (CUDA driver API, `CUtensorMap`).
pub(super) fn map(name: &str) -> String {
    format!("struct __align__(128) {name} {{ unsigned long long words[16]; }};")
}

/// One arrival completes a stage, and the bytes that it announces.
pub(super) fn make(name: &str) -> String {
    function(
        "void",
        name,
        "unsigned long long* ring, int stages",
        &[
            "if (threadIdx.x == 0) {",
            "    for (int i = 0; i < stages; ++i) {",
            r#"        asm volatile("mbarrier.init.shared.b64 [%0], 1;" ::"r"(shared_address(&ring[i])) : "memory");"#,
            "    }",
            r#"    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");"#,
            "}",
        ],
    )
}

pub(super) fn begin(name: &str) -> String {
    function(
        "void",
        name,
        "unsigned long long* stage, int bytes",
        &[
            r#"asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;""#,
            r#"             ::"r"(shared_address(stage)), "r"(bytes) : "memory");"#,
        ],
    )
}

pub(super) fn copy(name: &str, map: &str) -> String {
    function(
        "void",
        name,
        &format!("void* to, const {map}& from, int column, int row, unsigned long long* stage"),
        &[
            r#"asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes ""#,
            r#"             "[%0], [%1, {%2, %3}], [%4];""#,
            r#"             ::"r"(shared_address(to)), "l"(&from), "r"(column), "r"(row), "r"(shared_address(stage))"#,
            r#"             : "memory");"#,
        ],
    )
}

pub(super) fn wait(name: &str) -> String {
    function(
        "void",
        name,
        "unsigned long long* stage, int parity",
        &[
            "unsigned done;",
            "do {",
            r#"    asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared.b64 p, [%1], %2; ""#,
            r#"                 "selp.u32 %0, 1, 0, p; }""#,
            r#"                 : "=r"(done) : "r"(shared_address(stage)), "r"(parity) : "memory");"#,
            "} while (done == 0);",
        ],
    )
}
