//! Uploads to memory instead of a device.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use weft_ir::dtype::{DType, Encoding};
use weft_ir::plan::Pack;

use super::chunks::{Item, chunks};
use super::{Bytes, Constant, Packed, STAGE, Target, upload};
use crate::error::{Error, Result};

/// Memory, copied to when a buffer is waited for: so a buffer that is written too early spoils what it held.
struct Memory {
    bytes: Mutex<Vec<u8>>,
    copies: AtomicUsize,
    /// The copy that fails.
    fails: Option<usize>,
}

struct Stage {
    bytes: Arc<Mutex<Vec<u8>>>,
    /// Place and length of a copy that is under way.
    under_way: Mutex<Option<(usize, usize)>>,
}

impl Target for Memory {
    type Stage = Stage;

    fn stage(&self, bytes: usize) -> Result<Stage> {
        Ok(Stage { bytes: Arc::new(Mutex::new(vec![0xAA; bytes])), under_way: Mutex::new(None) })
    }

    fn wait(&self, stage: &Stage) -> Result<()> {
        if let Some((at, len)) = stage.under_way.lock().expect("a lock").take() {
            let from = stage.bytes.lock().expect("a lock");
            self.bytes.lock().expect("a lock")[at..at + len].copy_from_slice(&from[..len]);
        }
        Ok(())
    }

    fn fill(&self, stage: &mut Stage, write: &mut dyn FnMut(&mut [u8]) -> Result<()>) -> Result<()> {
        write(&mut stage.bytes.lock().expect("a lock"))
    }

    fn send(&self, stage: &Stage, at: usize, len: usize) -> Result<()> {
        if Some(self.copies.fetch_add(1, Ordering::Relaxed)) == self.fails {
            return Err(Error::bad("copy", "it failed"));
        }
        *stage.under_way.lock().expect("a lock") = Some((at, len));
        Ok(())
    }
}

type Weights = BTreeMap<String, Vec<u8>>;

/// Buffers of all ways and of sizes from some bytes to many chunks, with gaps as in a plan.
fn buffers() -> (Weights, Vec<(Pack, DType, usize)>) {
    let (rows, columns) = (3001, 259);
    let stored: Vec<u8> =
        (0..rows * columns).flat_map(|i: usize| ((i * 31 % 2003) as f32 - 1000.0).to_le_bytes()).collect();
    let small: Vec<u8> = (0..77u8).flat_map(|i| f32::from(i).to_le_bytes()).collect();
    let weights: Weights = [("big".to_owned(), stored), ("small".to_owned(), small)].into();
    let tensor = |name: &str, shape: &[usize]| Pack::Tensor {
        name: name.into(),
        encoding: Encoding::Plain(DType::F32),
        shape: shape.to_vec(),
    };
    let (big, small) = (tensor("big", &[rows, columns]), tensor("small", &[77]));
    let turned = Pack::Transpose(vec![1, 0], Box::new(big.clone()));
    let all = Pack::Concat(0, vec![big.clone(), big.clone(), big.clone()]);
    let mut out = vec![(small.clone(), DType::F32, 77); 5];
    out.push((all, DType::F32, 3 * rows * columns));
    out.extend(vec![(small.clone(), DType::BF16, 77); 9]);
    out.push((big, DType::BF16, rows * columns));
    out.push((turned, DType::F16, rows * columns));
    out.push((small, DType::F16, 77));
    (weights, out)
}

fn constants<'a>(buffers: &'a [(Pack, DType, usize)], literal: &'a [u8]) -> Vec<Constant<'a>> {
    let mut at = 0;
    let packed = buffers.iter().map(|(p, d, n)| (Bytes::Packed("w", p, *d, *n), n * d.size()));
    let plain = [(Bytes::Plain(literal), literal.len())];
    let place = |(bytes, len): (Bytes<'a>, usize)| {
        let constant = Constant { at, len, bytes };
        at = (at + len).next_multiple_of(256);
        constant
    };
    packed.chain(plain).map(place).collect()
}

#[test]
fn every_byte_arrives_whatever_the_threads() {
    let (weights, buffers) = buffers();
    let literal: Vec<u8> = (0..STAGE + 12).map(|i| (i % 251) as u8).collect();
    let constants = constants(&buffers, &literal);
    let size = constants.last().map_or(0, |c| c.at + c.len);
    assert!(size > 6 * STAGE, "more than the buffers of two threads hold");
    let mut wanted = vec![0; size];
    for c in &constants {
        let bytes = match c.bytes {
            Bytes::Plain(bytes) => bytes.to_vec(),
            Bytes::Packed(name, pack, dtype, _) => {
                Packed::moved(name, pack, dtype, &weights).and_then(|p| p.to_vec()).expect("bytes")
            }
        };
        wanted[c.at..c.at + c.len].copy_from_slice(&bytes);
    }
    let all: usize = constants.iter().map(|c| c.len).sum();
    for threads in [1, 2, 7] {
        // Padding must arrive as zeros.
        let bytes = Mutex::new(vec![0xAA; size]);
        let memory = Memory { bytes, copies: AtomicUsize::new(0), fails: None };
        let most = AtomicU64::new(0);
        let progress = |done: u64| {
            most.fetch_max(done, Ordering::Relaxed);
        };
        let stop = AtomicBool::new(false);
        let report = upload(&memory, &constants, &weights, NonZeroUsize::new(threads), &stop, &progress);
        let report = report.expect("an upload");
        assert!(memory.bytes.into_inner().expect("bytes") == wanted, "{threads} threads");
        assert_eq!((report.bytes, report.threads), (all as u64, threads));
        assert!(most.into_inner() <= all as u64 && !stop.into_inner());
    }
}

#[test]
fn what_fails_ends_all_threads() {
    let (mut weights, buffers) = buffers();
    let constants = constants(&buffers, &[]);
    let size = constants.last().map_or(0, |c| c.at + c.len);
    let memory = |fails| Memory { bytes: Mutex::new(vec![0; size]), copies: AtomicUsize::new(0), fails };
    let run = |memory: &Memory, weights: &Weights, stop: &AtomicBool| {
        upload(memory, &constants, weights, NonZeroUsize::new(2), stop, &|_| {})
    };
    let (failing, stop) = (memory(Some(1)), AtomicBool::new(false));
    assert!(run(&failing, &weights, &stop).expect_err("a fault").to_string().contains("it failed"));
    assert!(stop.load(Ordering::Relaxed) && failing.copies.into_inner() < 6);
    // Whoever stopped it has the error.
    let stopped = memory(None);
    assert_eq!(run(&stopped, &weights, &stop).expect("no fault of its own").bytes, 0);
    weights.remove("big");
    let error = run(&memory(None), &weights, &AtomicBool::new(false)).expect_err("a fault").to_string();
    assert!(error.contains("no tensor \"big\""), "{error}");
}

#[test]
fn chunks_are_whole_and_never_cut_an_element() {
    for lens in [vec![], vec![0], vec![1, 5000, 256, 0, 4096, 8192, 3], vec![256; 64], vec![100_000, 4]] {
        let mut at = 0;
        let mut items = Vec::new();
        for len in lens {
            items.push(Item { at, len });
            at = (at + len).next_multiple_of(256);
        }
        let chunks = chunks(&items, 4096);
        let mut written = vec![0; items.len()];
        for pair in chunks.windows(2) {
            assert!(pair[0].at + pair[0].len <= pair[1].at);
        }
        for chunk in &chunks {
            assert!(chunk.len > 0 && chunk.len <= 4096);
            for p in &chunk.parts {
                assert_eq!(chunk.at + p.to, items[p.item].at + p.from, "in its place");
                assert_eq!((written[p.item], p.from % 256), (p.from, 0), "in order");
                written[p.item] += p.len;
            }
            let last = chunk.parts.last().expect("a part");
            assert_eq!(last.to + last.len, chunk.len);
        }
        assert_eq!(written, items.iter().map(|i| i.len).collect::<Vec<_>>());
    }
}
