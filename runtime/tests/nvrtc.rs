//! NVRTC, the compiled-code cache and the parallel compiler. Runs without a GPU.

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use weft_runtime::Error;
use weft_runtime::cache::{Cache, Key, Lookup};
use weft_runtime::compile::{Compiler, Job, Origin};
use weft_runtime::nvrtc::Nvrtc;

const ADD: &str = r#"
extern "C" __global__ void add(const float* a, const float* b, float* c, int n) {
    __shared__ float pad[64];
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    pad[threadIdx.x & 63] = 1.0f;
    __syncthreads();
    if (i < n) c[i] = a[i] + b[i] * pad[(threadIdx.x + 1) & 63];
}
"#;

/// A local array indexed at run time: a stack frame; few registers allowed: spills.
const HEAVY: &str = r#"
extern "C" __global__ void __launch_bounds__(256, 8) heavy(float* x, int n) {
    float t[128];
    for (int i = 0; i < 128; i++) t[i] = x[i * n + threadIdx.x];
    float r = 0;
    for (int i = 0; i < 128; i++) r += t[i] * t[(i * 7 + n) & 127];
    x[threadIdx.x] = r;
}
extern "C" __global__ void light(float* x) { x[threadIdx.x] = 1.0f; }
"#;

fn no_options() -> Vec<String> {
    Vec::new()
}

#[test]
fn compiles_for_every_family() {
    let Some(nvrtc) = common::nvrtc() else { return };
    assert!(nvrtc.version().major >= 12, "NVRTC {}", nvrtc.version());
    assert!(nvrtc.supported_archs().contains(&90));
    for arch in ["sm_80", "sm_86", "sm_89", "sm_90a", "sm_100a", "sm_120a"] {
        let compiled =
            nvrtc.compile(ADD, "add", arch, &no_options()).unwrap_or_else(|error| panic!("{error}"));
        assert!(compiled.cubin.starts_with(b"\x7fELF"), "{arch}");
        let add = compiled
            .report
            .kernel("add")
            .unwrap_or_else(|| panic!("{arch}: no figures in\n{}", compiled.log));
        assert!((4..=64).contains(&add.registers), "{arch}: {add:?}");
        // From sm_100 on, ptxas counts the driver's reserved shared memory too.
        assert!(add.shared >= 256, "{arch}: {add:?}");
        assert_eq!((add.stack, add.spill_stores, add.spill_loads), (0, 0, 0), "{arch}");
        assert_eq!(add.barriers, 1, "{arch}");
    }
}

#[test]
fn the_gpu_tests_kernels_compile() {
    let Some(nvrtc) = common::nvrtc() else { return };
    for arch in ["sm_80", "sm_86", "sm_89", "sm_90a", "sm_100a", "sm_120a"] {
        let compiled = nvrtc.compile(include_str!("kernels.cu"), "gpu_tests", arch, &no_options());
        let compiled = compiled.unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(compiled.report.kernels.len(), 5, "{}", compiled.log);
        assert!(compiled.report.ptxas_warnings.is_empty(), "{:?}", compiled.report.ptxas_warnings);
    }
}

#[test]
fn reports_spills_per_kernel() {
    let Some(nvrtc) = common::nvrtc() else { return };
    let compiled = nvrtc.compile(HEAVY, "heavy", "sm_90a", &no_options()).expect("compiles");
    let heavy = compiled.report.kernel("heavy").expect("figures of heavy");
    assert!(heavy.stack >= 512 && heavy.spill_stores > 0 && heavy.spill_loads > 0, "{heavy:?}");
    let light = compiled.report.kernel("light").expect("figures of light");
    assert_eq!((light.stack, light.spill_stores, light.shared), (0, 0, 0), "{light:?}");
    assert_eq!(compiled.report.kernels.len(), 2);
}

#[test]
fn equal_input_gives_equal_output() {
    let Some(nvrtc) = common::nvrtc() else { return };
    let first = nvrtc.compile(HEAVY, "heavy", "sm_90a", &no_options()).expect("compiles");
    let second = nvrtc.compile(HEAVY, "heavy", "sm_90a", &no_options()).expect("compiles");
    assert!(first == second, "cubin or log differs:\n{}\n{}", first.log, second.log);
}

#[test]
fn ptx_is_text_for_the_architecture() {
    let Some(nvrtc) = common::nvrtc() else { return };
    let ptx = nvrtc.ptx(ADD, "add", "sm_90a", &no_options()).expect("compiles");
    assert!(ptx.contains(".target sm_90a") && ptx.contains(".entry add("), "{ptx}");
}

#[test]
fn errors_carry_the_kernel_and_the_log() {
    let Some(nvrtc) = common::nvrtc() else { return };
    let broken = "extern \"C\" __global__ void k(float* x) { x[0] = undeclared; }";
    let error = nvrtc.compile(broken, "norm", "sm_90a", &no_options()).expect_err("is broken");
    let Error::Compile { kernel, arch, log } = &error else { panic!("{error}") };
    assert_eq!((kernel.as_str(), arch.as_str()), ("norm", "sm_90a"));
    assert!(log.contains("norm.cu(1): error") && log.contains("undeclared"), "{log}");

    // An instruction that the architecture lacks is ptxas's to refuse.
    let pdl = "extern \"C\" __global__ void k() { asm volatile(\"griddepcontrol.wait;\" ::: \"memory\"); }";
    let error = nvrtc.compile(pdl, "pdl", "sm_80", &no_options()).expect_err("needs sm_90");
    assert!(
        matches!(&error, Error::Compile { .. }) && error.to_string().contains("requires .target sm_90"),
        "{error}"
    );

    let error = nvrtc.compile(ADD, "add", "sm_12", &no_options()).expect_err("no such architecture");
    assert!(matches!(&error, Error::Nvrtc { kernel: Some(name), .. } if name == "add"), "{error}");
    assert!(error.to_string().contains("sm_12"), "{error}");
    let error = nvrtc.compile(ADD, "add", "compute_90", &no_options()).expect_err("no real architecture");
    assert!(matches!(error, Error::BadArgument { .. }), "{error}");
    let error = nvrtc.compile("a\0b", "nul", "sm_90a", &no_options()).expect_err("holds a NUL");
    assert!(error.to_string().contains("NUL"), "{error}");
}

#[test]
fn a_missing_nvrtc_is_named_with_its_remedy() {
    let folder = tempfile::tempdir().expect("a folder");
    let error = Nvrtc::load_with(Some(folder.path().into()), &[]).expect_err("an empty folder");
    let text = error.to_string();
    assert!(error.is_missing() && text.contains("WEFT_NVRTC") && text.contains("pip install"), "{text}");

    // A file that is no library: the loader's reason is kept.
    let file = folder.path().join("libnvrtc.so.13");
    fs::write(&file, "not a library").expect("writes");
    let error = Nvrtc::load_with(Some(file.into()), &[]).expect_err("no library");
    assert!(error.to_string().contains("libnvrtc.so.13"), "{error}");

    // A toolkit's stub loads like the real one, and crashes when it is called.
    let stubs = folder.path().join("stubs");
    fs::create_dir(&stubs).expect("makes");
    fs::write(stubs.join("libnvrtc.so"), "").expect("writes");
    let error = Nvrtc::load_with(Some(stubs.into()), &[]).expect_err("a stub");
    assert!(error.to_string().contains("stub"), "{error}");
}

#[test]
fn every_way_of_naming_it_finds_it() {
    let Some(nvrtc) = common::nvrtc() else { return };
    // The folder holds links to one file: compare what they lead to.
    let real = |path: &Path| path.canonicalize().expect("exists");
    let (file, folder) = (nvrtc.path().to_owned(), nvrtc.path().parent().expect("a folder").to_owned());
    for variable in [file.clone().into_os_string(), folder.clone().into_os_string()] {
        let found = Nvrtc::load_with(Some(variable), &[]).expect("loads");
        assert_eq!((real(found.path()), found.version()), (real(&file), nvrtc.version()));
    }
    let found = Nvrtc::load_with(None, &["absent".into(), folder]).expect("loads");
    assert_eq!(real(found.path()), real(&file));
    found.compile(ADD, "add", "sm_80", &no_options()).expect("compiles");
}

#[test]
fn the_cache_hits_only_for_the_same_work() {
    let Some(nvrtc) = common::nvrtc() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let cache = Cache::open(Some(&folder.path().join("a/b"))).expect("opens");
    cache.check_writable().expect("writable");
    let compiler = Compiler { nvrtc: &nvrtc, cache: Some(&cache), threads: None };
    let job = Job::new("add", ADD);

    let first = compiler.compile(&job, "sm_90a").expect("compiles");
    assert_eq!(first.origin, Origin::Compiled);
    let again = compiler.compile(&job, "sm_90a").expect("is cached");
    assert_eq!(again.origin, Origin::Cached);
    assert_eq!(first.compiled, again.compiled);
    assert_eq!(cache.size().expect("counts").entries, 1);

    // Architecture, options, source and name each make another key.
    let mut others = vec![job.clone(), job.clone(), job.clone()];
    others[0].options.push("-lineinfo".into());
    others[1].source.push('\n');
    others[2].name.push('2');
    for other in &others {
        assert_eq!(compiler.compile(other, "sm_90a").expect("compiles").origin, Origin::Compiled);
    }
    assert_eq!(compiler.compile(&job, "sm_80").expect("compiles").origin, Origin::Compiled);
    assert_eq!(cache.size().expect("counts").entries, 5);
}

#[test]
fn a_damaged_entry_is_rebuilt() {
    let Some(nvrtc) = common::nvrtc() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let cache = Cache::open(Some(folder.path())).expect("opens");
    let compiler = Compiler { nvrtc: &nvrtc, cache: Some(&cache), threads: None };
    let job = Job::new("add", ADD);
    let good = compiler.compile(&job, "sm_90a").expect("compiles").compiled;
    let key = Key::new(&job.source, &job.name, "sm_90a", &job.options, nvrtc.version());
    let file = cache.file(&key);
    let whole = fs::read(&file).expect("is there");

    let mut flipped = whole.clone();
    *flipped.last_mut().expect("not empty") ^= 1;
    let other_key = Key::new("other", "add", "sm_90a", &[], nvrtc.version());
    cache.put(&other_key, &good).expect("stores");
    let foreign = fs::read(cache.file(&other_key)).expect("is there");
    for damaged in
        [flipped, whole[..whole.len() - 9].to_vec(), Vec::new(), b"something else".to_vec(), foreign]
    {
        fs::write(&file, &damaged).expect("writes");
        assert!(matches!(cache.get(&key), Lookup::Corrupt(_)));
        let rebuilt = compiler.compile(&job, "sm_90a").expect("compiles");
        assert!(matches!(rebuilt.origin, Origin::Rebuilt(_)), "{:?}", rebuilt.origin);
        assert_eq!(rebuilt.compiled, good);
        assert_eq!(fs::read(&file).expect("is there"), whole);
    }
}

#[test]
fn writers_may_race() {
    let Some(nvrtc) = common::nvrtc() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let cache = Cache::open(Some(folder.path())).expect("opens");
    let good = nvrtc.compile(ADD, "add", "sm_90a", &no_options()).expect("compiles");
    let key = Key::new(ADD, "add", "sm_90a", &[], nvrtc.version());
    cache.put(&key, &good).expect("stores");
    std::thread::scope(|scope| {
        for _ in 0..4 {
            // Each with a cache of its own, as processes would have.
            scope.spawn(|| {
                let cache = Cache::open(Some(folder.path())).expect("opens");
                for _ in 0..200 {
                    cache.put(&key, &good).expect("stores");
                    assert!(matches!(cache.get(&key), Lookup::Hit(found) if found == good));
                }
            });
        }
    });
    let left: Vec<PathBuf> =
        fs::read_dir(folder.path()).expect("lists").map(|e| e.expect("entry").path()).collect();
    assert_eq!(left, [cache.file(&key)], "temporary files are left over");
}

#[test]
fn a_cache_that_cannot_be_written_does_not_stop_compiling() {
    let Some(nvrtc) = common::nvrtc() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let cache = Cache::open(Some(&folder.path().join("gone"))).expect("opens");
    fs::remove_dir(cache.folder()).expect("removes");
    let compiler = Compiler { nvrtc: &nvrtc, cache: Some(&cache), threads: None };
    let built = compiler.compile(&Job::new("add", ADD), "sm_90a").expect("compiles");
    assert!(matches!(built.cache_error, Some(Error::Cache { .. })));
}

#[test]
fn many_kernels_compile_in_parallel_and_in_order() {
    let Some(nvrtc) = common::nvrtc() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let cache = Cache::open(Some(folder.path())).expect("opens");
    let compiler = Compiler { nvrtc: &nvrtc, cache: Some(&cache), threads: NonZeroUsize::new(4) };
    let source =
        |i: usize| format!("extern \"C\" __global__ void k{i}(float* x) {{ x[threadIdx.x] = {i}.0f; }}");
    let jobs: Vec<Job> = (0..12).map(|i| Job::new(format!("k{i}"), source(i))).collect();
    let seen = Mutex::new(Vec::new());
    let built = compiler
        .compile_all(&jobs, "sm_90a", &|progress| {
            assert_eq!(progress.total, 12);
            seen.lock().expect("lock").push((progress.done, progress.name.to_owned()));
        })
        .expect("all compile");
    let names: Vec<&str> = built.iter().map(|built| built.name.as_str()).collect();
    assert_eq!(names, jobs.iter().map(|job| job.name.as_str()).collect::<Vec<_>>());
    for (i, built) in built.iter().enumerate() {
        assert!(built.compiled.report.kernel(&format!("k{i}")).is_some());
    }
    let seen = seen.into_inner().expect("lock");
    assert_eq!(seen.iter().map(|(done, _)| *done).collect::<Vec<_>>(), (1..=12).collect::<Vec<_>>());
    assert_eq!(seen.iter().map(|(_, name)| name).collect::<BTreeSet<_>>().len(), 12);

    // Four at a time give what one at a time gives.
    let alone = Compiler { nvrtc: &nvrtc, cache: None, threads: NonZeroUsize::new(1) };
    for (job, built) in jobs.iter().zip(&built) {
        assert_eq!(alone.compile(job, "sm_90a").expect("compiles").compiled, built.compiled);
    }
    let again = compiler.compile_all(&jobs, "sm_90a", &|_| ()).expect("all are cached");
    assert!(again.iter().all(|built| built.origin == Origin::Cached));
}

#[test]
fn the_first_failing_kernel_is_named() {
    let Some(nvrtc) = common::nvrtc() else { return };
    let compiler = Compiler { nvrtc: &nvrtc, cache: None, threads: None };
    let jobs = [Job::new("good", ADD), Job::new("bad", "syntax error"), Job::new("worse", "more of it")];
    let error = compiler.compile_all(&jobs, "sm_90a", &|_| ()).map(|_| ()).expect_err("one is broken");
    assert!(matches!(&error, Error::Compile { kernel, .. } if kernel == "bad"), "{error}");
    assert!(compiler.compile_all(&[], "sm_90a", &|_| ()).expect("nothing to do").is_empty());
}
