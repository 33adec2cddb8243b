//! Every storage encoding against values that other programs decoded (`goldens/encodings.py`): bit for bit, in whole and
//! in parts, and by every way that a weight takes to its buffer.

use half::bf16;
use safetensors::SafeTensors;
use std::collections::BTreeMap;
use weft_ir::decode::{DecodeError, Scales, decode_f32};
use weft_ir::dtype::{Coded, DType, Encoding};
use weft_ir::plan::Pack;
use weft_runtime::exec::pack::{Packed, Way};

const E4M3: Encoding = Encoding::Scaled { of: Coded::E4M3, rows: 2, columns: 4 };
const E2M1: Encoding = Encoding::Scaled { of: Coded::E2M1, rows: 1, columns: 32 };

struct Golden(Vec<u8>);

impl Golden {
    fn open() -> Golden {
        let path = weft_testsuite::fixture::folder().join("encodings/golden.safetensors");
        Golden(std::fs::read(path).expect("reads"))
    }

    fn bytes(&self, name: &str) -> Vec<u8> {
        let file = SafeTensors::deserialize(&self.0).expect("a safetensors file");
        file.tensor(name).expect(name).data().to_vec()
    }

    fn values(&self, name: &str) -> Vec<f32> {
        self.bytes(name).as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b)).collect()
    }
}

/// Equal bits; NaN is NaN.
#[track_caller]
fn same(found: &[f32], wanted: &[f32], what: &str) {
    assert_eq!(found.len(), wanted.len(), "{what}");
    for (i, (f, w)) in found.iter().zip(wanted).enumerate() {
        assert!(f.to_bits() == w.to_bits() || (f.is_nan() && w.is_nan()), "{what} [{i}]: {f} for {w}");
    }
}

fn ggml() -> impl Iterator<Item = Encoding> {
    Encoding::BLOCKS.into_iter().filter(|e| *e != Encoding::E8M0)
}

#[test]
fn ggml_blocks() {
    let golden = Golden::open();
    for e in ggml() {
        let (bytes, wanted) = (golden.bytes(&format!("{e}.bytes")), golden.values(&format!("{e}.values")));
        let mut all = vec![f32::NAN; wanted.len()];
        decode_f32(e, &bytes, &mut all).expect("decodes");
        same(&all, &wanted, &e.to_string());
        // Runs of whole blocks, from an odd address.
        let (block, size) = e.block();
        let shifted: Vec<u8> = std::iter::once(0).chain(bytes.iter().copied()).collect();
        for (from, to) in [(0, 1), (1, 2), (3, 8), (0, wanted.len() / block)] {
            let mut part = vec![0.0; (to - from) * block];
            decode_f32(e, &shifted[1 + from * size..1 + to * size], &mut part).expect("decodes");
            same(&part, &wanted[from * block..to * block], &format!("{e} {from}..{to}"));
        }
    }
}

#[test]
fn scaled_elements() {
    let golden = Golden::open();
    for (e, shape) in [(E4M3, vec![3, 5, 10]), (E2M1, vec![7, 64])] {
        let scale_type = if e == E4M3 { Encoding::Plain(DType::F32) } else { Encoding::E8M0 };
        let (bytes, scales) = (golden.bytes(&format!("{e}.bytes")), golden.bytes(&format!("{e}.scales")));
        let wanted = golden.values(&format!("{e}.values"));
        let scales = Scales::new(e, &shape, scale_type, &scales).expect("fit");
        let (block, size) = e.block();
        for from in (0..wanted.len()).step_by(block) {
            for n in [block, 3 * block, 17 * block, wanted.len()] {
                let to = (from + n).min(wanted.len());
                let mut out = vec![f32::NAN; to - from];
                let run = &bytes[from / block * size..to / block * size];
                scales.decode(from, run, &mut out).expect("decodes");
                same(&out, &wanted[from..to], &format!("{e} {from}..{to}"));
            }
        }
    }
}

#[test]
fn every_code_of_eight_bits() {
    let golden = Golden::open();
    let codes: Vec<u8> = (0..=255).collect();
    let of = Encoding::Scaled { of: Coded::E4M3, rows: 1, columns: 256 };
    let one = 1f32.to_le_bytes();
    let mut out = vec![0.0; 256];
    let scales = Scales::new(of, &[1, 256], Encoding::Plain(DType::F32), &one).expect("fits");
    scales.decode(0, &codes, &mut out).expect("decodes");
    same(&out, &golden.values("e4m3.every"), "e4m3");
    decode_f32(Encoding::E8M0, &codes, &mut out).expect("decodes");
    same(&out, &golden.values("e8m0.every"), "e8m0");
}

#[test]
fn truncated_and_odd_lengths_are_named() {
    for e in ggml().chain([Encoding::E8M0]) {
        let (block, size) = e.block();
        for wrong in [0, 1, size.saturating_sub(1), size + 1, 2 * size].into_iter().filter(|n| *n != size) {
            let found = decode_f32(e, &vec![0; wrong], &mut vec![0.0; block]);
            assert_eq!(found, Err(DecodeError::Length { encoding: e, elements: block, bytes: wrong }));
        }
        if block > 1 {
            let found = decode_f32(e, &vec![0; size], &mut vec![0.0; block - 1]).expect_err("refuses");
            assert!(found.to_string().contains(&format!("{} elements of {e}", block - 1)), "{found}");
        }
    }
}

/// The copy that a device gets is the same whether it is made run by run, in parts, or as a whole first.
#[test]
fn all_ways_to_a_buffer() {
    let golden = Golden::open();
    let mut weights = BTreeMap::new();
    let mut packs = Vec::new();
    for e in ggml() {
        weights.insert(e.to_string(), golden.bytes(&format!("{e}.bytes")));
        let tensor = Pack::Tensor { name: e.to_string(), encoding: e, shape: vec![8, 256] };
        packs.push((e.to_string(), Pack::Decode(Box::new(tensor)), vec![8, 256]));
    }
    for (e, shape) in [(E4M3, vec![3, 5, 10]), (E2M1, vec![7, 64])] {
        let scale_encoding = if e == E4M3 { Encoding::Plain(DType::F32) } else { Encoding::E8M0 };
        weights.insert(e.to_string(), golden.bytes(&format!("{e}.bytes")));
        weights.insert(format!("{e} scales"), golden.bytes(&format!("{e}.scales")));
        let (name, scales) = (e.to_string(), format!("{e} scales"));
        let pack = Pack::Scaled { name, encoding: e, shape: shape.clone(), scales, scale_encoding };
        packs.push((e.to_string(), pack, shape));
    }
    for (name, pack, shape) in packs {
        let wanted = golden.values(&format!("{name}.values"));
        let bf16s = |values: &[f32]| -> Vec<u8> {
            values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect()
        };
        let cast = |p: Pack| Box::new(Pack::Cast(DType::BF16, Box::new(p)));
        let inner = wanted.len() / shape[0];
        let slice = Pack::Slice(0, 1, 2, Box::new(pack.clone()));
        let swap: Vec<usize> = (0..shape.len() - 2).chain([shape.len() - 1, shape.len() - 2]).collect();
        let twice = Pack::Transpose(swap.clone(), cast(Pack::Transpose(swap, Box::new(pack.clone()))));
        let cases = [
            (Way::Converted, pack.clone(), wanted.clone()),
            (Way::Converted, slice.clone(), wanted[inner..3 * inner].to_vec()),
            (
                Way::Converted,
                Pack::Concat(0, vec![slice, pack.clone()]),
                [&wanted[inner..3 * inner], &wanted].concat(),
            ),
            (Way::Converted, twice, wanted.clone()),
        ];
        for (way, pack, wanted) in cases {
            let fast = Packed::new("w", &pack, DType::BF16, wanted.len(), &weights).expect("packs");
            let slow = Packed::moved("w", &pack, DType::BF16, &weights).expect("packs");
            assert_eq!(fast.way(), way, "{name}");
            let nan_free = |b: Vec<u8>| {
                b.as_chunks::<2>()
                    .0
                    .iter()
                    .map(|&b| bf16::from_le_bytes(b))
                    .map(|x| if x.is_nan() { bf16::NAN } else { x }.to_bits())
                    .collect::<Vec<u16>>()
            };
            let (fast, slow) =
                (nan_free(fast.to_vec().expect("bytes")), nan_free(slow.to_vec().expect("bytes")));
            assert_eq!(fast, slow, "{name}");
            assert_eq!(fast, nan_free(bf16s(&wanted)), "{name}");
        }
    }
}
