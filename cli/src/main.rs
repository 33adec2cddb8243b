//! The `weft` binary.

fn main() -> std::process::ExitCode {
    weft::main_with(std::env::args_os())
}
