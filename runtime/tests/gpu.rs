//! The driver layer on a GPU. Without one, every test says so loudly and returns.

mod common;

use weft_runtime::Error;
use weft_runtime::nvrtc::Nvrtc;
use weft_runtime::sys::context::Context;
use weft_runtime::sys::driver::{Device, Driver};
use weft_runtime::sys::graph::{EdgeKind, Graph};
use weft_runtime::sys::memory::{DeviceBuffer, PinnedBuffer};
use weft_runtime::sys::module::{KernelArg, LaunchDims, Module};
use weft_runtime::sys::stream::{Event, Stream};

const N: usize = 1 << 20;
const THREADS: u32 = 256;

const SOURCE: &str = include_str!("kernels.cu");

struct Gpu {
    device: Device,
    context: Context,
    module: Module,
}

/// The first GPU with the test's kernels, or `None` with a loud line.
fn gpu() -> Option<Gpu> {
    let device = match Driver::init().and_then(|driver| driver.device(0)) {
        Ok(device) => device,
        Err(error) => {
            common::shout(&format!("SKIPPED: no GPU ({error})"));
            return None;
        }
    };
    let nvrtc: Nvrtc = common::nvrtc()?;
    let context = Context::retain(&device).expect("a context");
    let compiled = nvrtc.compile(SOURCE, "gpu_tests", &device.specific_arch(), &[]).expect("compiles");
    let module = Module::load(&context, &compiled.cubin, "gpu_tests").expect("loads");
    Some(Gpu { device, context, module })
}

fn floats(values: impl IntoIterator<Item = f32>) -> Vec<u8> {
    values.into_iter().flat_map(f32::to_le_bytes).collect()
}

fn to_floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|word| f32::from_le_bytes(word.try_into().expect("4 bytes"))).collect()
}

#[test]
fn describes_the_device() {
    let Some(gpu) = gpu() else { return };
    println!("{:?}", gpu.device);
    assert!(!gpu.device.name.is_empty() && gpu.device.sm_count > 0 && gpu.device.l2_bytes > 0);
    assert!(gpu.device.shared_per_block_optin >= 48 << 10);
    let memory = gpu.context.memory().expect("memory");
    assert!(memory.free <= memory.total && memory.free > 0, "{memory:?}");
    let driver = Driver::init().expect("a driver");
    assert!(driver.cuda_version().major >= 12);
    let count = driver.device_count().expect("a count");
    assert!(matches!(driver.device(count), Err(Error::NoSuchDevice { .. })));
}

#[test]
fn copies_and_fills_are_checked_and_exact() {
    let Some(gpu) = gpu() else { return };
    let stream = Stream::new(&gpu.context).expect("a stream");
    let bytes: Vec<u8> = (0..1000u32).map(|i| (i * 7) as u8).collect();
    let buffer = DeviceBuffer::from_bytes(&gpu.context, &bytes).expect("a buffer");
    let mut back = vec![0; 1000];
    buffer.copy_to_host(0, &mut back).expect("copies");
    assert_eq!(back, bytes);

    buffer.fill(10, 20, 0xAB).expect("fills");
    buffer.fill_u32_async(40, 2, 0x0403_0201, &stream).expect("fills");
    stream.synchronize().expect("runs");
    buffer.copy_to_host(0, &mut back).expect("copies");
    assert_eq!(back[..10], bytes[..10]);
    assert!(back[10..30].iter().all(|&byte| byte == 0xAB));
    assert_eq!(back[40..48], [1, 2, 3, 4, 1, 2, 3, 4]);

    let pinned = PinnedBuffer::alloc(&gpu.context, 64).expect("pinned");
    pinned.write(8, b"hello").expect("writes");
    buffer.copy_from_pinned_async(100, &pinned, 8, 5, &stream).expect("copies");
    let other = DeviceBuffer::alloc(&gpu.context, 16).expect("a buffer");
    other.fill_async(0, 16, 0, &stream).expect("fills");
    other.copy_from_device_async(3, &buffer, 100, 5, &stream).expect("copies");
    other.copy_to_pinned_async(0, &pinned, 32, 16, &stream).expect("copies");
    stream.synchronize().expect("runs");
    assert!(stream.is_idle().expect("asks"));
    let mut text = [0; 16];
    pinned.read(32, &mut text).expect("reads");
    assert_eq!(&text, b"\0\0\0hello\0\0\0\0\0\0\0\0");

    assert!(matches!(buffer.copy_from_host(999, b"ab"), Err(Error::OutOfRange { .. })));
    assert!(matches!(buffer.copy_to_host(1001, &mut []), Err(Error::OutOfRange { .. })));
    assert!(matches!(pinned.write(60, b"hello"), Err(Error::OutOfRange { .. })));
    assert!(matches!(pinned.load_u32(2), Err(Error::BadArgument { .. })));
    assert!(pinned.device_address().is_err(), "it is not mapped");
    assert!(buffer.address_at(1000).is_ok() && buffer.address_at(1001).is_err());
    assert_eq!(DeviceBuffer::alloc(&gpu.context, 0).expect("empty").len(), 0);
    let error = DeviceBuffer::alloc(&gpu.context, 1 << 50).expect_err("a petabyte");
    assert!(error.to_string().contains("cuMemAlloc_v2 failed: CUDA_ERROR_OUT_OF_MEMORY (2)"), "{error}");
}

/// Copy in, add, scale, copy out, as one graph with programmatic edges between the kernels.
#[test]
fn a_graph_with_programmatic_edges_adds_vectors() {
    let Some(gpu) = gpu() else { return };
    let kind = if gpu.device.compute_major >= 9 { EdgeKind::Programmatic } else { EdgeKind::Full };
    let stream = Stream::new(&gpu.context).expect("a stream");
    let len = 4 * N;
    let [a, b, c] = std::array::from_fn(|_| DeviceBuffer::alloc(&gpu.context, len).expect("a buffer"));
    let [pinned_a, pinned_c] =
        std::array::from_fn(|_| PinnedBuffer::alloc(&gpu.context, len).expect("pinned"));
    b.copy_from_host(0, &floats((0..N).map(|i| 2.0 * i as f32))).expect("copies");

    let (add, scale) =
        (gpu.module.function("add").expect("add"), gpu.module.function("scale").expect("scale"));
    assert_eq!(add.parameters(), [8, 8, 8, 4]);
    let dims = LaunchDims::linear((N as u32).div_ceil(THREADS), THREADS);
    let mut graph = Graph::new(&gpu.context).expect("a graph");
    let input = graph.add_copy_from_pinned((&a, 0), (&pinned_a, 0), len, &[]).expect("a copy");
    let args = [
        KernelArg::Ptr(a.address()),
        KernelArg::Ptr(b.address()),
        KernelArg::Ptr(c.address()),
        KernelArg::I32(N as i32),
    ];
    let clear = graph.add_fill_u32((&c, 0), N, 0, &[]).expect("a fill");
    let ready = graph.add_empty(&[input, clear]).expect("a join");
    let mut last = graph.add_kernel_node(&add, dims, &args, &[(ready, EdgeKind::Full)]).expect("a kernel");
    for factor in [2.0, 0.5, 3.0] {
        let args = [KernelArg::Ptr(c.address()), KernelArg::F32(factor), KernelArg::I32(N as i32)];
        last = graph.add_kernel_node(&scale, dims, &args, &[(last, kind)]).expect("a kernel");
    }
    graph.add_copy_to_pinned((&pinned_c, 0), (&c, 0), len, &[last]).expect("a copy");
    assert_eq!(graph.len(), 8);

    // What cannot be, is refused by name.
    let error = graph.add_kernel_node(&add, dims, &args[..3], &[]).expect_err("an argument short");
    assert!(error.to_string().contains("the kernel takes [8, 8, 8, 4]"), "{error}");
    let error =
        graph.add_kernel_node(&add, dims, &args, &[(input, EdgeKind::Programmatic)]).expect_err("no kernel");
    assert!(error.to_string().contains("only kernels"), "{error}");
    let mut other = Graph::new(&gpu.context).expect("a graph");
    assert!(other.add_empty(&[input]).is_err(), "a node of another graph");

    let exec = graph.instantiate().expect("instantiates");
    // The executable graph keeps what it needs.
    drop((graph, gpu.module));
    exec.upload(&stream).expect("uploads");
    let (start, end) = (Event::new(&gpu.context).expect("event"), Event::new(&gpu.context).expect("event"));
    for round in 0..20 {
        let offset = round as f32;
        pinned_a.write(0, &floats((0..N).map(|i| i as f32 + offset))).expect("writes");
        stream.record(&start).expect("records");
        exec.launch(&stream).expect("launches");
        stream.record(&end).expect("records");
        stream.synchronize().expect("runs");
        let mut bytes = vec![0; len];
        pinned_c.read(0, &mut bytes).expect("reads");
        let wrong = to_floats(&bytes).iter().enumerate().find_map(|(i, &value)| {
            let expected = (i as f32 + offset + 2.0 * i as f32) * 2.0 * 0.5 * 3.0;
            (value != expected).then_some((i, value, expected))
        });
        assert_eq!(wrong, None, "round {round}");
    }
    assert!(end.is_done().expect("asks"));
    let milliseconds = end.milliseconds_since(&start).expect("times");
    assert!(milliseconds > 0.0 && milliseconds < 1000.0, "{milliseconds} ms");
    println!("graph: {milliseconds} ms");
}

#[test]
fn launches_on_a_stream_with_large_shared_memory_and_structs() {
    let Some(gpu) = gpu() else { return };
    let stream = Stream::new(&gpu.context).expect("a stream");
    let out = DeviceBuffer::alloc(&gpu.context, 4 * 256).expect("a buffer");
    let function = gpu.module.function("big_shared").expect("a kernel");
    let dims = LaunchDims::linear(1, 256).with_shared(64 << 10);
    let args = [KernelArg::Ptr(out.address())];
    let error = function.launch(&stream, dims, &args).expect_err("more than 48 KiB was not asked for");
    assert!(error.to_string().contains("cuLaunchKernel for `big_shared` failed"), "{error}");
    function.set_max_dynamic_shared(64 << 10).expect("the device has it");
    let attributes = function.attributes().expect("attributes");
    assert_eq!(attributes.max_dynamic_shared_bytes, 64 << 10);
    assert!(attributes.registers > 0 && attributes.max_threads_per_block >= 256, "{attributes:?}");
    assert!(function.blocks_per_sm(256, 64 << 10).expect("occupancy") >= 1);
    function.launch(&stream, dims, &args).expect("launches");
    stream.synchronize().expect("runs");
    let mut bytes = vec![0; 4 * 256];
    out.copy_to_host(0, &mut bytes).expect("copies");
    assert_eq!(to_floats(&bytes), (0..256).rev().map(|i| i as f32).collect::<Vec<_>>());

    let function = gpu.module.function("by_value").expect("a kernel");
    let pair = [40i32.to_le_bytes(), 2.5f32.to_le_bytes()].concat();
    let args = [KernelArg::Bytes(pair), KernelArg::Ptr(out.address())];
    function.launch(&stream, LaunchDims::linear(1, 1), &args).expect("launches");
    stream.synchronize().expect("runs");
    out.copy_to_host(0, &mut bytes[..4]).expect("copies");
    assert_eq!(to_floats(&bytes[..4]), [42.5]);
    let error = gpu.module.function("absent").expect_err("no such kernel");
    assert!(error.to_string().contains("`absent` failed: CUDA_ERROR_NOT_FOUND"), "{error}");
}

/// One launch runs a loop on the device and streams numbers out through mapped memory.
#[test]
fn a_while_loop_streams_through_mapped_memory() {
    let Some(gpu) = gpu() else { return };
    const LIMIT: u32 = 100;
    let stream = Stream::new(&gpu.context).expect("a stream");
    let counter = DeviceBuffer::alloc(&gpu.context, 4).expect("a buffer");
    let host = PinnedBuffer::alloc_mapped(&gpu.context, 4 * (LIMIT as usize + 1)).expect("mapped");
    let mut graph = Graph::new(&gpu.context).expect("a graph");
    let clear = graph.add_fill_u32((&counter, 0), 1, 0, &[]).expect("a fill");
    let condition = graph.condition(1).expect("a condition");
    let (_, mut body) = graph.add_while(condition, &[(clear, EdgeKind::Full)]).expect("a loop");
    let args = [
        KernelArg::Ptr(counter.address()),
        KernelArg::U32(LIMIT),
        KernelArg::Ptr(host.device_address().expect("is mapped")),
        condition.arg(),
    ];
    let count = gpu.module.function("count").expect("a kernel");
    body.add_kernel_node(&count, LaunchDims::linear(1, 1), &args, &[]).expect("a kernel");
    assert!(body.instantiate().is_err(), "only the outermost graph");
    let exec = graph.instantiate().expect("instantiates");
    drop((graph, body));
    for _ in 0..2 {
        host.store_u32(0, 0).expect("writes");
        exec.launch(&stream).expect("launches");
        // Watch it from here while it runs.
        let mut seen = 0;
        while seen < LIMIT {
            let now = host.load_u32(0).expect("reads");
            for index in seen + 1..=now {
                assert_eq!(host.load_u32(4 * index as usize).expect("reads"), index * 10);
            }
            seen = now;
        }
        stream.synchronize().expect("runs");
        assert_eq!(host.load_u32(0).expect("reads"), LIMIT);
    }
}

#[test]
fn foreign_code_is_refused_with_its_name() {
    let Some(gpu) = gpu() else { return };
    let error = Module::load(&gpu.context, b"not a cubin", "norm").expect_err("no ELF");
    assert!(matches!(error, Error::BadArgument { .. }), "{error}");
    let Some(nvrtc) = common::nvrtc() else { return };
    let other = if gpu.device.compute_major == 8 { "sm_120" } else { "sm_80" };
    let cubin =
        nvrtc.compile("extern \"C\" __global__ void k() {}", "k", other, &[]).expect("compiles").cubin;
    let error = Module::load(&gpu.context, &cubin, "norm").expect_err("another architecture");
    assert!(error.to_string().contains("for `norm` failed: CUDA_ERROR_NO_BINARY_FOR_GPU"), "{error}");
}

#[test]
fn objects_move_between_threads() {
    let Some(gpu) = gpu() else { return };
    let buffer = DeviceBuffer::alloc(&gpu.context, 64).expect("a buffer");
    let filled = std::thread::spawn(move || {
        buffer.fill(0, 64, 7).expect("fills on a thread that never saw the context");
        buffer
    });
    let buffer = filled.join().expect("joins");
    let mut bytes = [0; 64];
    buffer.copy_to_host(0, &mut bytes).expect("copies");
    assert_eq!(bytes, [7; 64]);
}
