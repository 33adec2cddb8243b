//! The fused decode step made by hand: on the emulator against the reference, and through NVRTC at public
//! shapes.

use weft_ir::reference::WeightBytes;
use weft_ir::target::Target;
use weft_testsuite::decoder::decode_plan;
use weft_testsuite::emulate::{Distance, Emulated, ragged};
use weft_testsuite::nvrtc::{compile_all, load};
use weft_testsuite::synthetic::{LLAMA_1B, LlamaShape, SMOLLM2};

/// Any tensor of these plans: values of about 0.1.
struct Noise(Vec<u8>);

impl WeightBytes for Noise {
    fn bytes(&self, tensor: &str) -> Option<&[u8]> {
        let (h, q, kv) = (TINY.hidden, TINY.heads * TINY.head_dim, TINY.kv_heads * TINY.head_dim);
        let elements = match tensor.rsplit('.').next()? {
            "embed" => TINY.vocab * h,
            "qkv" => (q + 2 * kv) * h,
            "o" => q * h,
            "gate_up" => 2 * TINY.intermediate * h,
            "down" => TINY.intermediate * h,
            _ => h,
        };
        self.0.get(..2 * elements)
    }
}

const TINY: LlamaShape = LlamaShape {
    layers: 2,
    hidden: 72,
    intermediate: 104,
    heads: 4,
    kv_heads: 2,
    head_dim: 16,
    vocab: 300,
    tied: true,
};

/// Some steps of a whole decoder, five kernels a layer: each kernel close to the reference on its inputs, and
/// a sequence's logits the same bits alone and with another one.
#[test]
fn fused_decoder() {
    let mut seed = 7u32;
    let mut next = || {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        ((seed >> 8) as f32 / (1 << 23) as f32 - 1.0) * 0.2
    };
    let noise = (0..TINY.vocab * TINY.hidden).flat_map(|_| next().to_bits().to_le_bytes()[2..].to_vec());
    let noise = Noise(noise.collect());
    let target = Target::parse("sm_90").expect("sm_90");
    let (mut alone, mut beside) = (Vec::new(), Vec::new());
    for (batch, other) in [(1, 0), (2, 0), (3, 0), (3, 5)] {
        let plan = decode_plan(&TINY, target, (48, batch), &|_, _| {});
        weft_ir::verify::plan::verify(&plan).unwrap_or_else(|f| panic!("{f:?}"));
        let mut run = Emulated::with_weights(&plan, &noise);
        let entry = &plan.entries[0];
        for at in 0..3 {
            let ids: Vec<[i32; 1]> = (0..batch).map(|i| [((17 + other) * i + at) as i32]).collect();
            let pieces: Vec<(&[i32], usize)> = ids.iter().map(|t| (&t[..], at)).collect();
            let distances = run.step(&entry.name, &ragged(entry, &pieces, 48, true));
            let far: Vec<&Distance> = distances.iter().filter(|d| !d.is_close()).collect();
            assert!(far.is_empty(), "batch {batch}, step {at}: {far:?}");
            let bits: Vec<u32> = run.output("logits")[..TINY.vocab].iter().map(|x| x.to_bits()).collect();
            match batch {
                1 => alone.push(bits),
                2 => assert!(alone[at] == bits, "batch {batch}, step {at}: other bits"),
                // On tensor cores, in another order; whatever the others are.
                _ if beside.len() <= at => beside.push(bits),
                _ => assert!(beside[at] == bits, "batch {batch}, step {at}: other bits"),
            }
        }
    }
}

#[test]
fn fused_decoders_of_public_shapes_do_not_spill() {
    let Some(nvrtc) = load() else { return };
    let target = Target::parse("sm_90").expect("sm_90");
    let mut spilled = Vec::new();
    for (name, shape) in [("smollm2", SMOLLM2), ("llama-1b", LLAMA_1B)] {
        for batch in [1, 8] {
            let plan = decode_plan(&LlamaShape { layers: 1, ..shape }, target, (1152, batch), &|_, _| {});
            let kernels = weft_codegen::emit(&plan).unwrap_or_else(|e| panic!("{e}"));
            for b in compile_all(&nvrtc, &kernels, "sm_90a") {
                let used = b.compiled.report.kernel(&b.name).expect("a report");
                let spec = plan.kernels.iter().find(|k| k.name == b.name).expect("a kernel");
                println!("{name} {batch} {}: {} registers, {:?}", b.name, used.registers, spec.schedule);
                let lost = (used.spill_stores, used.spill_loads, used.stack);
                if lost != (0, 0, 0) {
                    spilled.push(format!("{name} {batch} {}: {lost:?}, {:?}", b.name, spec.schedule));
                }
            }
        }
    }
    assert!(spilled.is_empty(), "{}", spilled.join("\n"));
}
