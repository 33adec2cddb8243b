//! Row kernels: which rows they ask for before they need them (`codegen/src/kernels/rows_ahead.rs`).

use weft_ir::dtype::{DType, Encoding};
use weft_ir::ids::{BufferId, OperandId};
use weft_ir::plan::{Buffer, BufferKind, Compute, Loop, Operand, Pack, Plan, Scalar, Stage, Work};
use weft_ir::scalar::{Binary, Reduce};
use weft_ir::shape::{Bindings, Dim};
use weft_ir::target::Target;
use weft_testsuite::nvrtc;
use weft_testsuite::one_work::OneWork;
use weft_testsuite::product::{at, load_at, op, store};

/// Tokens, heads, elements.
const DOMAIN: [usize; 3] = [3, 4, 40];

/// Σ x² of a row, times an element of each of some arrays: their names, shapes and places.
fn plan(target: &str, arrays: &[(&str, &[usize], Vec<Scalar>)]) -> Plan {
    let dims = |shape: &[usize]| shape.iter().map(|&n| Dim::Const(n)).collect::<Vec<_>>();
    let mut buffers = Vec::new();
    let mut operand = |name: &str, shape: &[usize], kind: BufferKind| {
        buffers.push(Buffer { name: name.into(), dtype: DType::F32, shape: dims(shape), kind });
        Operand { name: name.into(), dtype: DType::F32, shape: dims(shape), constant: name.starts_with('w') }
    };
    let (mut reads, mut value) = (Vec::new(), Scalar::Reduced(0));
    let x = ("x", &DOMAIN[..], vec![at(0), at(1), at(2)]);
    for (i, (name, shape, place)) in std::iter::once(&x).chain(arrays).enumerate() {
        let encoding = Encoding::Plain(DType::F32);
        let pack = Pack::Tensor { name: (*name).into(), encoding, shape: (*shape).into() };
        reads.push(operand(name, shape, BufferKind::Weight(pack)));
        value = op(Binary::Mul, value, load_at(OperandId::new(i), place));
    }
    let writes = vec![operand("y", &DOMAIN, BufferKind::Output("y".into()))];
    let squared = load_at(OperandId::new(0), &x.2);
    let compute = Loop {
        domain: dims(&DOMAIN[..2]),
        reduced: Some(Dim::Const(DOMAIN[2])),
        stages: vec![Stage { op: Reduce::Sum, value: op(Binary::Mul, squared.clone(), squared) }],
        element_stores: vec![store(0, &x.2, value, None)],
        row_stores: vec![],
    };
    let on = [(0..reads.len()).map(BufferId::new).collect(), vec![BufferId::new(reads.len())]];
    let compute = Compute::Loop(compute);
    let name = "row".into();
    let work =
        Work { name, compute, reads, writes, in_place: vec![], ops: vec!["sum".into()], rules: vec![] };
    let bind = Bindings { tokens: 3, seqs: 3, rows: 3, context: 64, slots: 64 };
    let target = Target::parse(target).expect("a target");
    OneWork { work, buffers, on, bind, dtype: DType::BF16 }.plan(target, &|_| {})
}

/// A weight before the wait, a token's row of a table behind it; no row that depends on the head, none that is not
/// whole pieces of 16 bytes, none that is long, and nothing where kernels do not wait themselves.
#[test]
fn rows_are_asked_for_before_they_are_needed() {
    let arrays: [(&str, &[usize], Vec<Scalar>); 6] = [
        ("w_norm", &[1, 40], vec![Scalar::Int(0), at(2)]),
        ("table", &[3, 40], vec![at(0), at(2)]),
        ("w_head", &[4, 40], vec![at(1), at(2)]),
        ("w_other", &[4, 40], vec![at(0), at(2)]),
        ("w_odd", &[1, 41], vec![Scalar::Int(0), at(2)]),
        ("w_long", &[1, 1028], vec![Scalar::Int(0), at(2)]),
    ];
    let emitted = |target: &str| weft_codegen::emit(&plan(target, &arrays)).expect("emits");
    let kernels = emitted("sm_90");
    let source = &kernels[0].source;
    let body = source.split_once("extern \"C\"").expect("a kernel").1;
    let (before, behind) = body.split_once("grid_dependency_wait();").expect("a wait");
    let asked = |text: &str| -> Vec<String> {
        let calls = text.lines().filter_map(|l| l.trim().strip_prefix("prefetch_l2("));
        calls.map(|c| c.trim_end_matches(");").to_owned()).collect()
    };
    assert_eq!(asked(before), ["w_norm, 160"], "{source}");
    let [table] = &asked(behind)[..] else { panic!("{source}") };
    assert!(table.starts_with("&table[") && table.ends_with(", 160"), "{table}");
    assert!(
        behind.find("prefetch_l2").expect("one") < behind.find("reduced0 +=").expect("a sum"),
        "{source}"
    );
    assert!(!emitted("sm_80")[0].source.contains("prefetch"), "bulk prefetches are Hopper's");
    if let Some(nvrtc) = nvrtc::load() {
        nvrtc::compile_all(&nvrtc, &kernels, "sm_90a");
    }
}

/// Kernels that wait themselves have bulk prefetches.
#[test]
fn targets_that_wait_have_bulk_prefetches() {
    for t in weft_ir::target::TARGETS {
        assert!(!t.features.programmatic_launch || t.features.tma, "{}", t.name);
    }
}
