//! The streaming kernel adds up all it should, whatever the number of bytes, and reads each byte once.

use weft_codegen::emulator::{Arg, Launch, Memory, run};
use weft_codegen::kernels::{STREAM_VECTOR, emit_stream, stream, stream_launch, stream_sums};
use weft_ir::dtype::DType;

#[test]
fn the_sum_of_all_words_is_right() {
    // Two multiprocessors: less than a block, whole blocks, several rounds, and a ragged end.
    for bytes in [1, 16, 8192, 8192 * 16 + 48, 3 * 2048 * 8 * 16 + 16 * 777] {
        for programmatic in [false, true] {
            let launch = stream_launch(bytes, 2).expect("a launch");
            assert!(launch.blocks <= 4);
            let words = u64::from(launch.vectors as u32) * STREAM_VECTOR / 4;
            assert_eq!(words * 4, bytes.next_multiple_of(STREAM_VECTOR));
            let values: Vec<i64> = (0..words).map(|i| (i * 0x9e37_79b9 + 7) as i64 & 0xffff_ffff).collect();
            let mut m = Memory::new();
            let data = m.ints(DType::U32, &values);
            let sums = m.uninitialised(DType::U32, stream_sums(launch.blocks));
            let args =
                [Arg::Buffer(data), Arg::Buffer(sums), Arg::i32(launch.vectors), Arg::i32(launch.rounds)];
            let at = Launch { grid: [launch.blocks, 1, 1], args: args.to_vec() };
            let stats = run(&stream(programmatic), &at, &mut m).unwrap_or_else(|f| panic!("{bytes}: {f}"));
            let got = m.read_ints(sums).into_iter().map(|v| v.expect("written"));
            let got = got.fold(0u32, |a, b| a.wrapping_add(b as u32));
            let expected = values.iter().fold(0u32, |a, b| a.wrapping_add(*b as u32));
            assert_eq!(got, expected, "{bytes} bytes");
            assert_eq!(stats.bytes_loaded, words * 4, "{bytes} bytes");
        }
    }
}

#[test]
fn launches_grow_with_the_bytes_up_to_two_blocks_a_multiprocessor() {
    let blocks = |bytes| stream_launch(bytes, 132).expect("a launch").blocks;
    assert_eq!((blocks(0), blocks(8192), blocks(8193)), (1, 1, 2));
    assert_eq!((blocks(1 << 20), blocks(1 << 30)), (128, 264));
    assert_eq!(stream_launch(1 << 30, 132).expect("a launch").rounds, 63);
    assert_eq!(stream_launch(64 << 30, 132), None);
}

#[test]
fn its_text() {
    insta::assert_snapshot!("stream", emit_stream(true).expect("emits").source);
    let plain = emit_stream(false).expect("emits").source;
    assert!(!plain.contains("grid_dependency"));
}
