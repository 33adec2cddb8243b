//! Dumps kernels (scratch).
use weft_ir::dtype::DType;
use weft_testsuite::fixture::*;
fn main() {
    let out = std::env::args().nth(1).unwrap();
    let model = std::env::args().nth(2).unwrap();
    let ckpt = weft_frontend::checkpoint::Checkpoint::open(&model).unwrap();
    for (target, opt) in [("sm_90", 0u8), ("sm_90", 2), ("sm_80", 2)] {
        let t = std::time::Instant::now();
        let graph = weft_frontend::models::build(&ckpt, DType::BF16).unwrap();
        let b = t.elapsed();
        let plan = compile(&graph, target, DType::BF16, opt, (2048, 8));
        let c = t.elapsed();
        let k = weft_codegen::emit(&plan).unwrap();
        println!("{target} O{opt}: build {b:?} compile {c:?} emit {:?}: {} works {} kernels {} dispatches ron {} bytes", t.elapsed(), plan.works.len(), plan.kernels.len(), plan.bodies[0].dispatches.len(), plan.to_ron().unwrap().len());
        let dir = format!("{out}/{target}_O{opt}");
        std::fs::create_dir_all(&dir).unwrap();
        for e in k { std::fs::write(format!("{dir}/{}.cu", e.name), e.source).unwrap(); }
        std::fs::write(format!("{dir}/plan.ron"), plan.to_ron().unwrap()).unwrap();
    }
}
