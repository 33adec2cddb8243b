//! Helpers of products of four warps from shared memory (PTX ISA, *Asynchronous Warpgroup Level Matrix Instructions*).

use super::helpers::function;

/// A matrix descriptor of swizzled rows: the address, and so many elements of the rows before the first, eight rows (1024 bytes) from one group of rows to the next, 128-byte
/// swizzling; all in units of 16 bytes.
pub(super) fn descriptor(name: &str) -> String {
    function(
        "unsigned long long",
        name,
        "const void* p, int k",
        &[
            "const unsigned long long at = (shared_address(p) >> 4) + k / 8;",
            "return at | 1ull << 16 | 64ull << 32 | 1ull << 62;",
        ],
    )
}

/// The product of 64 rows and so many columns.
pub(super) fn product(name: &str, columns: usize, ty: &str) -> String {
    let count = columns / 2;
    let lines = |text: &dyn Fn(usize) -> String| -> Vec<String> {
        (0..count)
            .collect::<Vec<_>>()
            .chunks(8)
            .map(|c| c.iter().map(|i| text(*i)).collect::<Vec<_>>().join(", "))
            .collect()
    };
    let registers = lines(&|i| format!("%{i}"));
    let operands = lines(&|i| format!(r#""+f"(d[{i}])"#));
    let mut body = vec![
        r#"asm volatile("{ .reg .pred p; setp.eq.u32 p, 0, 0; ""#.to_owned(),
        format!(r#"             "wgmma.mma_async.sync.aligned.m64n{columns}k16.f32.{ty}.{ty} {{""#),
    ];
    for (i, line) in registers.iter().enumerate() {
        let end = if i + 1 < registers.len() { ", " } else { "" };
        body.push(format!(r#"             "{line}{end}""#));
    }
    body.push(format!(r#"             "}}, %{count}, %{}, p, 1, 1, 0, 0; }}""#, count + 1));
    for (i, line) in operands.iter().enumerate() {
        let (start, end) = (if i == 0 { ": " } else { "  " }, if i + 1 < operands.len() { "," } else { "" });
        body.push(format!("             {start}{line}{end}"));
    }
    body.push(r#"             : "l"(wgmma_descriptor(a, k)), "l"(wgmma_descriptor(b, k)));"#.to_owned());
    let body: Vec<&str> = body.iter().map(String::as_str).collect();
    function("void", name, "float* d, const void* a, const void* b, int k", &body)
}

/// Waits for groups. Behind a wait for all of them the compiler takes the accumulators for changed there.
pub(super) fn wait(name: &str) -> String {
    let body = function(
        "void",
        name,
        "float* d",
        &[
            r#"asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(pending) : "memory");"#,
            "#pragma unroll",
            "for (int i = 0; pending == 0 && i < count; ++i) {",
            r#"    asm volatile("" : "+f"(d[i])::"memory");"#,
            "}",
        ],
    );
    format!("template <int pending, int count>\n{body}")
}
