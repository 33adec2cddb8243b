//! Helpers of clusters: their barrier, and data that one block sends into the shared memory of another (PTX ISA,
//! "mbarrier", "st.async", "barrier.cluster").

use super::helpers::{Words, function};

pub(super) fn cluster_barrier(name: &str) -> String {
    function(
        "void",
        name,
        "",
        &[
            r#"asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");"#,
            r#"asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");"#,
        ],
    )
}

/// One arrival, which is the making itself, and the bytes. The fence shows it to the cluster's other blocks.
pub(super) fn expect_bytes(name: &str) -> String {
    function(
        "void",
        name,
        "unsigned long long* signal, int bytes",
        &[
            "if (threadIdx.x == 0) {",
            r#"    asm volatile("mbarrier.init.shared.b64 [%0], 1;" ::"r"(shared_address(signal)) : "memory");"#,
            r#"    asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;""#,
            r#"                 ::"r"(shared_address(signal)), "r"(bytes) : "memory");"#,
            r#"    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");"#,
            "}",
        ],
    )
}

pub(super) fn cluster_address(name: &str) -> String {
    function(
        "unsigned",
        name,
        "const void* p, int rank",
        &[
            "unsigned there;",
            r#"asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(shared_address(p)), "r"(rank));"#,
            "return there;",
        ],
    )
}

pub(super) fn send(name: &str, (vector, shape, fields): Words) -> String {
    let registers: Vec<String> = (1..=fields.len()).map(|i| format!("%{i}")).collect();
    let registers = match fields.len() {
        1 => registers.join(", "),
        _ => format!("{{{}}}", registers.join(", ")),
    };
    let inputs: Vec<String> = fields.iter().map(|f| format!(r#""r"({f})"#)).collect();
    let first =
        format!(r#"asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.{shape} ""#);
    let second = format!(r#"             "[%0], {registers}, [%{}];""#, fields.len() + 1);
    let third = format!(r#"             ::"r"(cluster_address(to, rank)), {},"#, inputs.join(", "));
    let fourth = r#"             "r"(cluster_address(signal, rank)) : "memory");"#;
    let params = format!("void* to, {vector} value, int rank, unsigned long long* signal");
    function("void", name, &params, &[&first, &second, &third, fourth])
}

pub(super) fn await_bytes(name: &str) -> String {
    function(
        "void",
        name,
        "unsigned long long* signal",
        &[
            "unsigned done;",
            "do {",
            r#"    asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], 0; ""#,
            r#"                 "selp.u32 %0, 1, 0, p; }""#,
            r#"                 : "=r"(done) : "r"(shared_address(signal)) : "memory");"#,
            "} while (done == 0);",
        ],
    )
}
