//! Bytes and operations of each kind of work, against numbers reckoned by hand.

#[allow(dead_code)]
mod maker;

use maker::*;
use weft_ir::dtype::DType;
use weft_ir::ids::OperandId;
use weft_ir::plan::*;
use weft_ir::scalar::{Binary, Compare, Reduce, Unary};
use weft_ir::shape::{Bindings, Dim, Sym};
use weft_ir::target::Target;

const BIND: Bindings = Bindings { tokens: 3, seqs: 2, rows: 2, context: 8, slots: 16 };

fn operand(dtype: DType, dims: &[Dim]) -> Operand {
    Operand { name: "x".into(), dtype, shape: dims.to_vec(), constant: false }
}

fn work(compute: Compute, reads: Vec<Operand>, writes: Vec<Operand>) -> Work {
    Work { name: "w".into(), compute, reads, writes, in_place: vec![], ops: vec![], rules: vec![] }
}

fn less(a: Scalar, b: Scalar) -> Scalar {
    Scalar::Compare(Compare::Lt, Box::new(a), Box::new(b))
}

fn at_most(a: Scalar, b: Scalar) -> Scalar {
    Scalar::Compare(Compare::Le, Box::new(a), Box::new(b))
}

/// x · rsqrt(Σx²/4 + ε) · w over rows of 4: x and out are 3·4 elements of 2 bytes, w is 4. A square and a sum
/// an element; then a division, an addition, a root and two products.
#[test]
fn a_norm() {
    let x = || load_at(0, &[at(0), at(1)]);
    let mean = op(Binary::Div, Scalar::Reduced(0), Scalar::Float(4.0));
    let scale = Scalar::unary(Unary::Rsqrt, op(Binary::Add, mean, Scalar::Float(1e-5)));
    let value = op(Binary::Mul, op(Binary::Mul, x(), scale), load_at(1, &[Scalar::Int(0), at(1)]));
    let compute = Compute::Loop(Loop {
        domain: vec![TOKENS],
        reduced: Some(c(4)),
        stages: vec![Stage { op: Reduce::Sum, value: op(Binary::Mul, x(), x()) }],
        element_stores: vec![store(0, &[at(0), at(1)], value)],
        row_stores: vec![],
    });
    let bf16 = |dims: &[Dim]| operand(DType::BF16, dims);
    let w = work(compute, vec![bf16(&[TOKENS, c(4)]), bf16(&[c(1), c(4)])], vec![bf16(&[TOKENS, c(4)])]);
    let expected = Cost { read: 24 + 8, written: 24, products: 0, scalar: 12 * 2 + 12 * 5 };
    assert_eq!(cost(&w, &BIND), expected);
}

/// Rows of a table of 100: those of 3 tokens are read, and the 3 ids.
#[test]
fn a_gather_reads_its_rows_only() {
    let id = load_at(1, &[at(0)]);
    let compute = elementwise(&[TOKENS, c(4)], vec![store(0, &[at(0), at(1)], load_at(0, &[id, at(1)]))]);
    let reads = vec![operand(DType::F32, &[c(100), c(4)]), operand(DType::I32, &[TOKENS])];
    let w = work(compute, reads, vec![operand(DType::F32, &[TOKENS, c(4)])]);
    assert_eq!(cost(&w, &BIND), Cost { read: 48 + 12, written: 48, products: 0, scalar: 0 });
}

/// Both halves of a row read the same two columns of a table, at the row of their position.
#[test]
fn a_rotation_reads_its_table_once() {
    let position = load_at(1, &[at(0)]);
    let column = op(Binary::Rem, at(1), Scalar::Int(2));
    let cosine = load_at(0, &[position, column]);
    let value = op(Binary::Mul, cosine, load_at(2, &[at(0), at(1)]));
    let compute = elementwise(&[TOKENS, c(4)], vec![store(0, &[at(0), at(1)], value)]);
    let x = operand(DType::F32, &[TOKENS, c(4)]);
    let reads = vec![operand(DType::F32, &[c(8), c(2)]), operand(DType::I32, &[TOKENS]), x.clone()];
    let w = work(compute, reads, vec![x]);
    assert_eq!(cost(&w, &BIND), Cost { read: 3 * 2 * 4 + 12 + 48, written: 48, products: 0, scalar: 12 });
}

/// Merged products in pairs, 3 of 5 points to one array and 2 to the slots of another, with a row sum.
#[test]
fn a_product_with_an_epilogue() {
    let x = || load_at(0, &[at(0), at(1)]);
    let first = Store {
        guard: Some(less(at(1), Scalar::Int(3))),
        ..store(0, &[at(0), at(1)], op(Binary::Add, Scalar::Acc(0), Scalar::Acc(1)))
    };
    let slot = || load_at(2, &[at(0)]);
    let inside = op(Binary::And, at_most(Scalar::Int(3), at(1)), at_most(Scalar::Int(0), slot()));
    let moved = op(Binary::Add, at(1), Scalar::Int(-3));
    let second = Store {
        guard: Some(inside),
        ..store(1, &[slot(), moved], op(Binary::Mul, Scalar::Acc(0), Scalar::Reduced(0)))
    };
    let compute = Compute::MatMul(MatMul {
        m: TOKENS,
        n: 5,
        group: 2,
        k: 8,
        a: x(),
        b: OperandId(1),
        stages: vec![Stage { op: Reduce::Sum, value: op(Binary::Mul, x(), x()) }],
        row: None,
        draw: None,
        stores: vec![first, second],
    });
    let reads = vec![
        operand(DType::BF16, &[TOKENS, c(8)]),
        operand(DType::BF16, &[c(10), c(8)]),
        operand(DType::I32, &[TOKENS]),
    ];
    let writes = vec![operand(DType::BF16, &[TOKENS, c(3)]), operand(DType::F32, &[SLOTS, c(2)])];
    let w = work(compute, reads, writes);
    let expected = Cost {
        read: 3 * 8 * 2 + 10 * 8 * 2 + 3 * 4,
        written: 3 * 3 * 2 + 3 * 2 * 4,
        products: 2 * 3 * 10 * 8,
        scalar: 3 * 8 * 2 + 3 * 3 + 3 * 2,
    };
    assert_eq!(cost(&w, &BIND), expected);
}

/// A product whose rows get a residual and a norm: a sum, a square and its sum, then a division, a root and a
/// product for each of 3·5 elements, which are stored twice.
#[test]
fn a_product_with_a_row_epilogue() {
    let here = [at(0), at(1)];
    let row = RowEpilogue {
        value: op(Binary::Add, Scalar::Acc(0), load_at(2, &here)),
        stages: vec![Stage { op: Reduce::Sum, value: op(Binary::Mul, Scalar::Acc(0), Scalar::Acc(0)) }],
    };
    let mean = op(Binary::Div, Scalar::Reduced(0), Scalar::Float(5.0));
    let scaled = op(Binary::Mul, Scalar::Acc(0), Scalar::unary(Unary::Rsqrt, mean));
    let compute = Compute::MatMul(MatMul {
        m: TOKENS,
        n: 5,
        group: 1,
        k: 8,
        a: load_at(0, &here),
        b: OperandId(1),
        stages: vec![],
        row: Some(row),
        draw: None,
        stores: vec![store(0, &here, Scalar::Acc(0)), store(1, &here, scaled)],
    });
    let reads = vec![
        operand(DType::BF16, &[TOKENS, c(8)]),
        operand(DType::BF16, &[c(5), c(8)]),
        operand(DType::F32, &[TOKENS, c(5)]),
    ];
    let writes = vec![operand(DType::F32, &[TOKENS, c(5)]), operand(DType::BF16, &[TOKENS, c(5)])];
    let expected = Cost {
        read: 3 * 8 * 2 + 5 * 8 * 2 + 3 * 5 * 4,
        written: 3 * 5 * 4 + 3 * 5 * 2,
        products: 2 * 3 * 5 * 8,
        scalar: 15 + 15 * 2 + 15 * 3,
    };
    assert_eq!(cost(&work(compute, reads, writes), &BIND), expected);
}

/// Three tokens of at most two sequences, 8 keys each, two heads of keys for four of queries.
#[test]
fn attention_over_the_cache() {
    let base = load_at(4, &[load_at(3, &[at(0)])]);
    let compute = Compute::Attention(Attention {
        length: op(Binary::Add, load_at(5, &[at(0)]), Scalar::Int(1)),
        score: op(Binary::Mul, Scalar::Acc(0), Scalar::Float(0.5)),
        ..attention(2, 4, 4, op(Binary::Add, base, at(1)))
    });
    let cache = || operand(DType::BF16, &[SLOTS, c(2), c(4)]);
    let reads = vec![
        operand(DType::BF16, &[TOKENS, c(4), c(4)]),
        cache(),
        cache(),
        operand(DType::I32, &[TOKENS]),
        operand(DType::I32, &[Dim::Sym(Sym::Seqs)]),
        operand(DType::I32, &[TOKENS]),
    ];
    let w = work(compute, reads, vec![operand(DType::F32, &[TOKENS, c(4), c(4)])]);
    let pairs = 3 * 4 * 8;
    let expected = Cost {
        read: 3 * 4 * 4 * 2 + 2 * (2 * 8 * 2 * 4 * 2) + 3 * 4 + 2 * 4 + 3 * 4,
        written: 3 * 4 * 4 * 4,
        products: pairs * 2 * (4 + 4),
        scalar: pairs * (4 + 1),
    };
    assert_eq!(cost(&w, &BIND), expected);
    // With a shorter context the keys are fewer, and nothing else.
    let short = cost(&w, &Bindings { context: 2, ..BIND });
    assert_eq!(expected.read - short.read, 2 * (2 * 6 * 2 * 4 * 2));
    assert_eq!(short.products, 3 * 4 * 2 * 16);
    let within = |keys: usize| {
        let mut windowed = w.clone();
        let Compute::Attention(a) = &mut windowed.compute else { panic!("an attention") };
        a.window = Some(keys);
        cost(&windowed, &BIND)
    };
    // Of a window of 3 keys, the two tokens of a sequence see 4 together.
    assert_eq!(expected.read - within(3).read, 2 * (2 * 4 * 2 * 4 * 2));
    assert_eq!((within(3).products, within(3).written), (3 * 4 * 3 * 16, expected.written));
    assert_eq!(within(100), expected);
}

/// Each row that attention makes is an addition an element of its stage, and its operations; own keys are written.
#[test]
fn attention_that_makes_its_rows() {
    let row = |x: u32| {
        let element = || load_at(x, &[at(0), at(1), at(2)]);
        let square = op(Binary::Mul, element(), element());
        MadeRow {
            stages: vec![Stage { op: Reduce::Sum, value: square }],
            value: op(Binary::Mul, element(), Scalar::Reduced(0)),
        }
    };
    let keep = store(1, &[load_at(5, &[at(0)]), at(1), at(2)], Scalar::Acc(0));
    let prologue = AttentionPrologue { query: row(0), key: row(4), dtype: DType::BF16, keep };
    let of = |prologue: Option<AttentionPrologue>| {
        let attention = Attention {
            settled: true,
            prologue,
            projection: None,
            ..attention(2, 4, 4, op(Binary::Add, Scalar::Int(0), at(1)))
        };
        let cache = || operand(DType::BF16, &[SLOTS, c(2), c(4)]);
        let tokens = || operand(DType::I32, &[TOKENS]);
        let (queries, keys) =
            (operand(DType::F32, &[TOKENS, c(4), c(4)]), operand(DType::F32, &[TOKENS, c(2), c(4)]));
        let reads = vec![queries.clone(), cache(), cache(), tokens(), keys, tokens()];
        cost(&work(Compute::Attention(attention), reads, vec![queries, cache()]), &BIND)
    };
    let (plain, made) = (of(None), of(Some(prologue)));
    let (query, key) = (3 * 4 * 4, 3 * 2 * 4);
    assert_eq!(made.read - plain.read, key * 4 + 3 * 4);
    assert_eq!(made.written - plain.written, key * 2);
    assert_eq!(made.scalar - plain.scalar, 3 * (query + key));
    assert_eq!(made.products, plain.products);
}

/// A projection's weight is read once, each of its elements multiplied for each token; addends take the outputs' place.
#[test]
fn attention_that_projects() {
    let of = |projection: Option<Box<AttentionProjection>>| {
        let [rows, elements] = if projection.is_some() { [2, 10] } else { [4, 4] };
        let attention = Attention {
            settled: true,
            projection,
            ..attention(2, 4, 4, op(Binary::Add, Scalar::Int(0), at(1)))
        };
        let cache = || operand(DType::BF16, &[SLOTS, c(2), c(4)]);
        let queries = operand(DType::F32, &[TOKENS, c(4), c(4)]);
        let weight = operand(DType::BF16, &[c(10), c(16)]);
        let reads = vec![queries, cache(), cache(), operand(DType::I32, &[TOKENS]), weight];
        let out = operand(DType::F32, &[TOKENS, c(rows), c(elements)]);
        cost(&work(Compute::Attention(attention), reads, vec![out]), &BIND)
    };
    let value = op(Binary::Mul, Scalar::Acc(0), Scalar::Float(2.0));
    let (plain, made) =
        (of(None), of(Some(Box::new(AttentionProjection { weight: OperandId(4), columns: 10, value }))));
    assert_eq!(made.read - plain.read, 10 * 16 * 2);
    assert_eq!((plain.written, made.written), (3 * 4 * 4 * 4, 3 * 2 * 10 * 4));
    assert_eq!(made.scalar - plain.scalar, 3 * 4 * 4);
    assert_eq!(made.products - plain.products, 2 * 3 * 10 * 16);
}

/// Two rows of 10 logits, six settings of a row, one token of a row.
#[test]
fn sampling() {
    let compute = Compute::Sample(Sample { rows: Dim::Sym(Sym::Rows), vocab: 10 });
    let rows = Dim::Sym(Sym::Rows);
    let mut reads = vec![operand(DType::F32, &[rows, c(10)])];
    reads.extend((0..6).map(|_| operand(DType::F32, &[rows])));
    let w = work(compute, reads, vec![operand(DType::I32, &[rows])]);
    assert_eq!(cost(&w, &BIND), Cost { read: 80 + 48, written: 8, products: 0, scalar: 40 });
}

#[test]
fn the_roofline() {
    let profile = &Target::parse("sm_90").expect("known").profile;
    let gemv = Schedule::Gemv {
        rows: 1,
        warps: 8,
        lanes: 32,
        split: 1,
        columns: 1,
        depth: 4,
        blocks: 264,
        staged: true,
        resident: 1,
        behind: 0,
        ahead: 0,
        late: false,
    };
    let gemm =
        Schedule::Gemm { tile_m: 64, tile_n: 64, tile_k: 32, warps_m: 2, warps_n: 2, warps_k: 1, stages: 3 };
    let cost = Cost { read: 9_000_000, written: 0, products: 600_000_000, scalar: 0 };
    // 2 µs of bytes; 10 µs at the f32 rate, 0.77 µs on tensor cores; 0.78 µs of launch.
    let streaming = cost.estimate(&gemv, profile);
    assert_eq!(streaming.bound, Bound::Compute);
    assert!((streaming.seconds - 10.78e-6).abs() < 1e-9, "{streaming:?}");
    let tiled = cost.estimate(&gemm, profile);
    assert_eq!(tiled.bound, Bound::Memory);
    assert!((tiled.seconds - 2.78e-6).abs() < 1e-9, "{tiled:?}");
    let nothing = Cost { read: 100, ..Cost::default() }.estimate(&gemm, profile);
    assert_eq!(nothing.bound, Bound::Launch);
}
