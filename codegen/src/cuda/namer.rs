//! Names of a kernel: readable hints made unique, never a word that C, CUDA or the helpers use.

use std::collections::BTreeSet;

/// Words that cannot name a variable, sorted.
const RESERVED: &str = "\
    alignas alignof and and_eq asm atomicAdd auto bf16 bitand bitor blockDim blockIdx bool break case \
    catch char class compl const const_cast constexpr continue cosf decltype default delete do double \
    dynamic_cast else enum erff exp2f expf explicit export extern f16 fabsf false float float2 float4 \
    fmaf fmaxf fminf for friend goto gridDim half if inline int int2 int4 logf long main max min mutable \
    namespace new noexcept not not_eq nullptr operator or or_eq powf private protected public register \
    reinterpret_cast restrict return rsqrtf short signed sinf sizeof smem sqrtf static static_assert \
    static_cast struct switch tanhf template this threadIdx thread_local throw true try typedef typeid \
    typename uint2 uint4 union unsigned using virtual void volatile warpSize wchar_t while xor xor_eq";

/// Gives unique names in nested scopes: a name is free again when its scope ends, and no live name is
/// ever shadowed.
#[derive(Debug)]
pub struct Namer {
    live: BTreeSet<String>,
    scopes: Vec<Vec<String>>,
}

impl Namer {
    /// A namer in which `taken` names are never given out.
    pub fn new<'a>(taken: impl IntoIterator<Item = &'a str>) -> Self {
        let live = RESERVED.split_whitespace().chain(taken).map(String::from).collect();
        Namer { live, scopes: Vec::new() }
    }

    /// Opens a scope.
    pub fn enter(&mut self) {
        self.scopes.push(Vec::new());
    }

    /// Closes the innermost scope and frees its names.
    pub fn leave(&mut self) {
        for name in self.scopes.pop().unwrap_or_default() {
            self.live.remove(&name);
        }
    }

    /// A unique name like the hint.
    pub fn name(&mut self, hint: &str) -> String {
        let base = identifier(hint);
        let mut name = base.clone();
        let mut n = 2u32;
        while self.live.contains(&name) {
            name = format!("{base}_{n}");
            n += 1;
        }
        self.live.insert(name.clone());
        if let Some(scope) = self.scopes.last_mut() {
            scope.push(name.clone());
        }
        name
    }
}

/// The hint as a C identifier.
pub(super) fn identifier(hint: &str) -> String {
    let mut out = String::with_capacity(hint.len());
    for c in hint.chars() {
        let c = if c.is_ascii_alphanumeric() { c } else { '_' };
        // Double underscores and leading underscores belong to the implementation.
        if c != '_' || !(out.is_empty() || out.ends_with('_')) {
            out.push(c);
        }
    }
    match out.chars().next() {
        None => "v".into(),
        Some(c) if c.is_ascii_digit() => format!("v{out}"),
        Some(_) => out,
    }
}
